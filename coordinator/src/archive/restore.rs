//! Makes a metadata store of a base backup and the commits after it.
//!
//! What was lost behind the end of the log may still be known to others: datanodes hold chunks whose ids
//! were granted, clients hold maps and sessions. So ids and the term go on far above what they were,
//! sessions end, and the store remembers that it was restored, which keeps chunks from being deleted until
//! the operator has looked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_proto::{ClusterId, ErrorKind};
use cairn_runtime::clock;
use futures::future::BoxFuture;

use super::chain::{Catalogue, FileScan, Follow, Found, Step};
use super::error::ArchiveError;
use super::file::{FileHeader, FileKind, HEADER_SIZE, RecordKind};
use super::place::remote::RemotePlace;
use super::place::{DirectoryPlace, Place};
use super::record::decode_batch;
use crate::server::CoordinatorError;
use crate::sessions::NOBODY;
use crate::store::sqlite::rebuild::Rebuild;
use crate::store::{Batch, Count, Counter, Key, Orphan, SCHEMA, Scan, Table, count, list};

/// Added to ids and to the term: more than can have been given out behind the end of the log, and small
/// enough for two thousand million restores.
const STEP: u64 = 1 << 32;
/// What the place of datanodes begins with: `datanode:HOST:PORT`.
const DATANODE: &str = "datanode:";

/// Where to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Behind the commit of this number.
    Sequence(u64),
    /// Before the first commit after this time, ns since the epoch.
    TimeNs(i64),
}

impl Until {
    fn is_past(self, sequence: u64, time_ns: i64) -> bool {
        match self {
            Self::Sequence(last) => sequence > last,
            Self::TimeNs(last) => time_ns > last,
        }
    }
}

/// What to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Where backups lie: directories, backup files, or `datanode:HOST:PORT`. The one that reaches
    /// furthest is taken.
    pub from: Vec<String>,
    /// An empty directory for the store.
    pub data: PathBuf,
    /// `None`: everything.
    pub until: Option<Until>,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Whose metadata it is.
    pub cluster: ClusterId,
    /// Where it came from.
    pub place: String,
    /// The base backup, and the commit that it held.
    pub base: String,
    /// Last commit in the base.
    pub base_sequence: u64,
    /// Last commit that was restored.
    pub sequence: u64,
    /// When that was, ns since the epoch.
    pub time_ns: i64,
    /// Inodes in the store, among them directories and symlinks.
    pub inodes: u64,
    /// Bytes of file content that the store refers to.
    pub bytes: u64,
    /// What may be missing, in sentences.
    pub warnings: Vec<String>,
}

impl From<ArchiveError> for CoordinatorError {
    fn from(error: ArchiveError) -> Self {
        Self::Store { kind: error.kind(), message: error.to_string() }
    }
}

/// Makes a store in an empty directory.
///
/// Boxed for the reason that `server::start_on` gives.
pub fn restore(options: RestoreOptions) -> BoxFuture<'static, Result<Restored, CoordinatorError>> {
    Box::pin(restore_from_best(options))
}

async fn restore_from_best(options: RestoreOptions) -> Result<Restored, CoordinatorError> {
    let mut sources = Vec::new();
    for from in &options.from {
        sources.push(Source::find(from, options.until).await?);
    }
    let best = sources.into_iter().max_by_key(|source| source.order());
    let Some(source) = best else {
        let message = "name at least one place with backups".to_owned();
        return Err(CoordinatorError::Store { kind: ErrorKind::InvalidArgument, message });
    };
    Ok(source.restore(&options).await?)
}

/// A place with the base to begin from.
struct Source {
    place: Arc<Place>,
    base: Found,
    rows: u64,
    chain: Vec<Found>,
    /// Term and sequence of the newest log file of the chain.
    newest: (u64, u64),
    warnings: Vec<String>,
}

impl Source {
    async fn find(from: &str, until: Option<Until>) -> Result<Self, ArchiveError> {
        if let Some(address) = from.strip_prefix(DATANODE) {
            let place = RemotePlace::new(&[address.to_owned()])?;
            return Self::in_place(Place::Remote(place), until).await;
        }
        let path = Path::new(from);
        if std::fs::metadata(path).is_ok_and(|found| found.is_file()) {
            return Self::of_file(path, until).await;
        }
        Self::in_place(Place::Directory(DirectoryPlace::open_read_only(path).await?), until).await
    }

    /// A single file that `cairn coordinator backup FILE` has written.
    async fn of_file(path: &Path, until: Option<Until>) -> Result<Self, ArchiveError> {
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let place = Arc::new(Place::Directory(DirectoryPlace::open_read_only(directory).await?));
        let length = std::fs::metadata(path).map_err(|e| ArchiveError::place(&name, "look at it", e))?.len();
        let header = FileHeader::decode(&place.read(&name, 0, HEADER_SIZE).await?)
            .map_err(|why| ArchiveError::Damaged { file: name.clone(), offset: 0, why })?;
        let base = Found { name, length, header };
        let rows = super::chain::rows_at_end(&place, &base).await?;
        let Some(rows) = rows.filter(|_| header.kind == FileKind::Base) else {
            return Err(ArchiveError::Unusable(format!("{} is no complete base backup", path.display())));
        };
        if until.is_some_and(|until| until.is_past(header.sequence, header.time_ns)) {
            return Err(ArchiveError::Unusable(format!("{} was made later than asked for", path.display())));
        }
        let newest = (header.term, header.sequence);
        Ok(Self { place, base, rows, chain: Vec::new(), newest, warnings: Vec::new() })
    }

    async fn in_place(place: Place, until: Option<Until>) -> Result<Self, ArchiveError> {
        let catalogue = Catalogue::read(&place, None).await?;
        let shown = place.describe();
        let early = |found: &&(Found, u64)| {
            until.is_none_or(|until| !until.is_past(found.0.header.sequence, found.0.header.time_ns))
        };
        let Some((base, rows)) = catalogue.bases.iter().rev().find(early) else {
            return Err(ArchiveError::Unusable(format!(
                "{shown} holds {} complete base backups, none of them early enough; name another place",
                catalogue.bases.len()
            )));
        };
        let mixed = catalogue.bases.iter().map(|(file, _)| file).chain(&catalogue.logs);
        if mixed.clone().any(|file| file.header.cluster != base.header.cluster) {
            return Err(ArchiveError::Unusable(format!(
                "{shown} holds the metadata of several clusters; move the files of one to a directory of its own"
            )));
        }
        let chain = catalogue.chain_of(base).to_vec();
        let newest = chain.last().map_or((base.header.term, base.header.sequence), |file| {
            (file.header.term, file.header.sequence)
        });
        let mut warnings: Vec<_> = catalogue
            .unusable
            .iter()
            .map(|(name, why)| format!("{shown}/{name} was not used: {why}"))
            .collect();
        let later = catalogue.logs.iter().find(|log| {
            (log.header.term, log.header.sequence) > newest
                && !chain.iter().any(|known| known.name == log.name)
        });
        if let Some(later) = later.filter(|_| until.is_none()) {
            warnings.push(format!(
                "commits from {} on are in {shown}/{} and later files, but no complete base backup leads there: \
                 they are not restored",
                later.header.sequence + 1,
                later.name
            ));
        }
        Ok(Self { place: Arc::new(place), base: base.clone(), rows: *rows, chain, newest, warnings })
    }

    /// How far it reaches: by reign, then by commit, then by length of the newest log.
    fn order(&self) -> (u64, u64, u64) {
        let length = self.chain.last().map_or(0, |file| file.length);
        (self.newest.0, self.newest.1, length)
    }

    async fn restore(mut self, options: &RestoreOptions) -> Result<Restored, ArchiveError> {
        let schemas =
            std::iter::once(&self.base).chain(&self.chain).map(|file| u64::from(file.header.schema));
        if let Some(other) = schemas.into_iter().find(|&schema| schema != SCHEMA) {
            return Err(ArchiveError::Unusable(format!(
                "the backup was written by another version (schema {other}; this build knows {SCHEMA}): restore \
                 it with that version, then start this one on the result"
            )));
        }
        let mut store = Rebuild::create(&options.data)?;
        self.read_base(&mut store).await?;
        let mut follow = Follow::new(Arc::clone(&self.place), &self.chain, self.base.header.sequence);
        let (mut sequence, mut time_ns) = (self.base.header.sequence, self.base.header.time_ns);
        while let Some(record) = follow.next().await? {
            if options.until.is_some_and(|until| until.is_past(record.sequence, record.time_ns)) {
                break;
            }
            let batch = decode_batch(&record.body).filter(|_| record.kind == RecordKind::Commit);
            let why = "the record holds no rows that this version knows";
            let batch = batch.ok_or_else(|| ArchiveError::Damaged {
                file: format!("the record of commit {}", record.sequence),
                offset: 0,
                why,
            })?;
            store.apply(&batch)?;
            (sequence, time_ns) = (record.sequence, record.time_ns);
        }
        if let Some((file, offset)) = &follow.torn {
            self.warnings
                .push(format!("{file} ends at offset {offset} in a record that was never completed"));
        }
        let newest_term = self.chain.iter().map(|file| file.header.term).max().unwrap_or_default();
        let summary = step_ahead(&mut store, newest_term.max(self.base.header.term))?;
        store.finish()?;
        Ok(Restored {
            cluster: self.base.header.cluster,
            place: self.place.describe(),
            base: self.base.name,
            base_sequence: self.base.header.sequence,
            sequence,
            time_ns,
            inodes: summary.0,
            bytes: summary.1,
            warnings: self.warnings,
        })
    }

    async fn read_base(&self, store: &mut Rebuild) -> Result<(), ArchiveError> {
        let damaged = |offset, why| Err(ArchiveError::Damaged { file: self.base.name.clone(), offset, why });
        let mut scan = FileScan::new(Arc::clone(&self.place), &self.base);
        let mut rows = 0u64;
        loop {
            match scan.next().await? {
                Step::Record { record, .. } if record.kind == RecordKind::Rows => {
                    let Some(batch) = decode_batch(&record.body) else {
                        return damaged(0, "a record holds no rows that this version knows");
                    };
                    rows += batch.puts.len() as u64;
                    store.apply(&batch)?;
                }
                Step::Record { record, .. } if record.kind == RecordKind::End && rows == self.rows => {
                    return Ok(());
                }
                Step::Record { .. } => return damaged(0, "it does not have as many rows as it says"),
                Step::End => return damaged(self.base.length, "it has no end"),
                Step::Bad { offset, why } => return damaged(offset, why),
            }
        }
    }
}

/// Begins a later reign, goes on with ids, ends sessions, and notes that this was a restore. Returns how
/// many inodes and bytes there are.
///
/// Sequence and epoch stay: by them the coordinator notices what datanodes have seen beyond the end of the
/// log, and tells the operator.
fn step_ahead(store: &mut Rebuild, term: u64) -> Result<(u64, u64), ArchiveError> {
    let reader = store.reader();
    let term = count(reader, Count::Term)?.max(term);
    let mut batch = Batch::default();
    let mut set = |name, value| batch.puts.push(Counter { name, value }.into());
    set(Count::Term, term.saturating_add(STEP));
    for name in [Count::NextChunk, Count::NextInode, Count::NextSet] {
        set(name, count(reader, name)?.saturating_add(STEP));
    }
    set(Count::Restored, u64::try_from(clock::wall_ns()).unwrap_or(1).max(1));
    for orphan in list::<Orphan>(reader, &Scan::all(Table::Orphan))? {
        batch.deletes.push(Key::Orphan(orphan.inode, orphan.session));
        batch.puts.push(Orphan { session: NOBODY, ..orphan }.into());
    }
    for table in [Table::Session, Table::Slot, Table::Plan] {
        reader.each(table, &mut |row| {
            batch.deletes.push(row.key());
            Ok(())
        })?;
    }
    let nobodys = |key: &Key| matches!(key, Key::Orphan(_, session) if *session == NOBODY);
    batch.deletes.retain(|key| !nobodys(key));
    let totals = (count(reader, Count::Inodes)?, count(reader, Count::Bytes)?);
    store.apply(&batch)?;
    Ok(totals)
}
