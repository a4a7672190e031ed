//! A base backup: all rows as they were after one commit, as a stream of bytes.
//!
//! A thread of its own reads one consistent snapshot, in which every row is verified against its
//! checksum. The executor goes on meanwhile; what the snapshot costs is that SQLite can not reuse its log
//! file until it ends, so a receiver that stops receiving must be given up.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cairn_proto::ClusterId;
use cairn_runtime::clock;
#[cfg(not(feature = "sim"))]
use cairn_runtime::threads;
use tokio::sync::mpsc;

use super::error::ArchiveError;
use super::file::{FileHeader, FileKind, Record, RecordKind};
use super::record::encode_row;
use crate::store::{Count, Reader, Readers, SCHEMA, StoreError, Table, count};

/// Bytes of rows in one record.
const BODY_SIZE: usize = 256 << 10;
/// Pieces that wait for their receiver.
const PIECES: usize = 4;

/// A part of a base.
#[derive(Debug)]
pub(crate) enum Piece {
    /// First: which commit it holds.
    Header(FileHeader),
    /// Bytes of the file, the header included.
    Data(Bytes),
    /// Last: how many rows it has.
    Done(u64),
}

type Pieces = mpsc::Sender<Result<Piece, ArchiveError>>;

/// Begins to read a base. Dropping the receiver ends it.
#[cfg(not(feature = "sim"))]
pub(crate) fn start(
    readers: Arc<dyn Readers>,
    cluster: ClusterId,
    term: u64,
) -> Result<mpsc::Receiver<Result<Piece, ArchiveError>>, ArchiveError> {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let work = move || send_all(&*readers, cluster, term, &pieces);
    threads::spawn("base", work).map_err(|error| ArchiveError::place("a thread", "start it", error))?;
    Ok(receiver)
}

/// A simulation has one thread for everything, which must not wait for a receiver: it makes no backups.
#[cfg(feature = "sim")]
pub(crate) fn start(
    readers: Arc<dyn Readers>,
    cluster: ClusterId,
    term: u64,
) -> Result<mpsc::Receiver<Result<Piece, ArchiveError>>, ArchiveError> {
    let _ = (readers, cluster, term, send_all, PIECES);
    Err(ArchiveError::Unusable("a simulation makes no backups".into()))
}

fn send_all(readers: &dyn Readers, cluster: ClusterId, term: u64, pieces: &Pieces) {
    let failed = match readers.reader(true) {
        Ok(reader) => write(&*reader, cluster, term, pieces).err(),
        Err(error) => Some(error),
    };
    if let Some(error) = failed {
        let _ = pieces.blocking_send(Err(error.into()));
    }
}

/// The receiver is gone: nobody wants the rest.
fn unwanted() -> StoreError {
    StoreError::Unusable("the backup was given up".into())
}

fn write(reader: &dyn Reader, cluster: ClusterId, term: u64, pieces: &Pieces) -> Result<(), StoreError> {
    let send = |piece| pieces.blocking_send(Ok(piece)).map_err(|_| unwanted());
    let header = FileHeader {
        kind: FileKind::Base,
        schema: u32::try_from(SCHEMA).unwrap_or(u32::MAX),
        cluster,
        term,
        sequence: count(reader, Count::Sequence)?,
        digest: 0,
        time_ns: clock::wall_ns(),
    };
    send(Piece::Header(header))?;
    send(Piece::Data(header.encode()))?;
    let mut records = Records { previous: header.first_previous(), sequence: 0, time_ns: header.time_ns };
    let (mut body, mut rows, mut in_body) = (BytesMut::new(), 0u64, 0u32);
    body.extend_from_slice(&[0; 4]);
    for &table in Table::ALL {
        reader.each(table, &mut |row| {
            encode_row(&row, &mut body);
            rows += 1;
            in_body += 1;
            if body.len() >= BODY_SIZE {
                send(Piece::Data(records.rows(&mut body, &mut in_body)))?;
            }
            Ok(())
        })?;
    }
    send(Piece::Data(records.rows(&mut body, &mut in_body)))?;
    send(Piece::Data(records.next(RecordKind::End, Bytes::copy_from_slice(&rows.to_le_bytes()))))?;
    send(Piece::Done(rows))
}

/// Writes one record after another.
struct Records {
    previous: u64,
    sequence: u64,
    time_ns: i64,
}

impl Records {
    fn next(&mut self, kind: RecordKind, body: Bytes) -> Bytes {
        self.sequence += 1;
        let Self { previous, sequence, time_ns } = *self;
        let mut out = BytesMut::new();
        self.previous = Record { kind, sequence, time_ns, previous, body }.encode(&mut out);
        out.freeze()
    }

    /// The rows gathered so far as a batch without deletions.
    fn rows(&mut self, body: &mut BytesMut, count: &mut u32) -> Bytes {
        body.extend_from_slice(&0u32.to_le_bytes());
        let mut full = std::mem::take(body);
        body.extend_from_slice(&[0; 4]);
        if let Some(place) = full.get_mut(..4) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        *count = 0;
        self.next(RecordKind::Rows, full.freeze())
    }
}
