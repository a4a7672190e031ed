//! Where the checks put what they find.

use cairn_proto::{ChunkId, InodeId, NodeId, v1};
use tokio::sync::mpsc;

use super::{Abort, Event, Mend};

/// Rows between two reports of progress.
const PROGRESS_ROWS: u64 = 20_000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// It mends itself.
    Note,
    /// Redundancy or bookkeeping is damaged, no content is lost.
    Error,
    /// Content can not be read.
    Loss,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) code: &'static str,
    pub(crate) severity: Severity,
    pub(crate) detail: String,
    pub(crate) inode: Option<InodeId>,
    pub(crate) path: Vec<u8>,
    pub(crate) chunk: Option<ChunkId>,
    pub(crate) node: Option<NodeId>,
    pub(crate) bytes: u64,
}

impl Finding {
    pub(crate) fn new(code: &'static str, severity: Severity, detail: String) -> Self {
        Self { code, severity, detail, inode: None, path: Vec::new(), chunk: None, node: None, bytes: 0 }
    }

    pub(crate) fn error(code: &'static str, detail: String) -> Self {
        Self::new(code, Severity::Error, detail)
    }

    pub(crate) fn loss(code: &'static str, detail: String) -> Self {
        Self::new(code, Severity::Loss, detail)
    }

    pub(crate) fn of_inode(self, inode: InodeId) -> Self {
        Self { inode: Some(inode), ..self }
    }

    pub(crate) fn of_chunk(self, chunk: ChunkId) -> Self {
        Self { chunk: Some(chunk), ..self }
    }

    pub(super) fn into_wire(self) -> v1::FsckFinding {
        let severity = match self.severity {
            Severity::Note => v1::FsckSeverity::Note,
            Severity::Error => v1::FsckSeverity::Error,
            Severity::Loss => v1::FsckSeverity::Loss,
        };
        v1::FsckFinding {
            code: self.code.into(),
            severity: severity.into(),
            inode: self.inode.map_or(0, InodeId::get),
            path: self.path.into(),
            chunk: self.chunk.map_or(0, ChunkId::get),
            node: self.node.map(NodeId::to_wire).unwrap_or_default(),
            detail: self.detail,
            repaired: false,
            bytes: self.bytes,
        }
    }
}

/// Takes findings and progress from a thread that reads.
pub(crate) struct Report {
    events: mpsc::Sender<Event>,
    pub(super) summary: v1::FsckSummary,
    phase: &'static str,
    done: u64,
    total: u64,
}

impl Report {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, summary: v1::FsckSummary::default(), phase: "", done: 0, total: 0 }
    }

    fn send(&self, event: Event) -> Result<(), Abort> {
        self.events.blocking_send(event).map_err(|_| Abort::Gone)
    }

    /// A new phase of about `total` rows.
    pub(super) fn begin(&mut self, phase: &'static str, total: u64) -> Result<(), Abort> {
        (self.phase, self.done, self.total) = (phase, 0, total);
        self.send(Event::Progress { phase, done: 0, total })
    }

    /// More rows of the phase are looked at.
    pub(super) fn step(&mut self, rows: u64) -> Result<(), Abort> {
        let before = self.done / PROGRESS_ROWS;
        self.done += rows;
        if self.done / PROGRESS_ROWS == before {
            return Ok(());
        }
        self.send(Event::Progress { phase: self.phase, done: self.done, total: self.total })
    }

    pub(super) fn found(&mut self, finding: Finding) -> Result<(), Abort> {
        self.send(Event::Finding(finding, None))
    }

    /// Something that can be mended.
    pub(super) fn found_with(&mut self, finding: Finding, mend: Mend) -> Result<(), Abort> {
        self.send(Event::Finding(finding, Some(mend)))
    }
}
