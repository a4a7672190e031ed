//! Commits in the face of read leases. Their rules stand in `tests/service.rs`.

use uuid::Uuid;

use super::*;
use crate::leases::Grant;
use crate::ops::tests::{make_file, tx};
use crate::store::{Inode, Members};

const LENGTH: u64 = 100;

fn session(number: u128) -> SessionId {
    SessionId::from_uuid(Uuid::from_u128(number))
}

fn nodes() -> [NodeId; 2] {
    [1, 2].map(|number| NodeId::from_uuid(Uuid::from_u128(number)))
}

fn set_id() -> ReplicaSetId {
    ReplicaSetId::new(1).unwrap()
}

/// Two files, both listed by session 2; sessions 1 and 2 have each a plan of ten chunks.
struct Listed {
    tx: Tx,
    files: [InodeId; 2],
    number: u64,
}

impl Listed {
    fn new() -> Self {
        let mut tx = tx();
        tx.put(ReplicaSet {
            id: set_id(),
            members: Members::active(nodes()),
            replicas: 2,
            min_replicas: 2,
            epoch: 1,
        });
        tx.put(Counter { name: Count::NextChunk, value: 100 });
        for (number, first) in [(1, 10), (2, 20)] {
            tx.put(Plan {
                first: ChunkId::new(first).unwrap(),
                count: 10,
                replica_set: set_id(),
                epoch: 1,
                session: session(number),
                expires_ns: i64::MAX,
                used: Bytes::new(),
            });
        }
        let files = ["f", "g"].map(|text| make_file(&mut tx, text).id);
        tx.commit().unwrap();
        tx.context.leases.group_ended();
        let leases = &tx.context.leases;
        leases.attach(session(2));
        let grant = leases.grant_reads(session(2), InodeId::ROOT, &files, leases.committed()).unwrap();
        assert_eq!(grant.without, [0; 0]);
        Self { tx, files, number: grant.number }
    }

    /// Writes each of the files with a chunk of its own.
    fn write(
        &mut self,
        of: u128,
        first: u64,
        files: &[InodeId],
    ) -> Result<Vec<Result<Applied, OpError>>, OpError> {
        let ids: Vec<_> = (first..).map(|id| ChunkId::new(id).unwrap()).take(files.len()).collect();
        let stored = |&id: &ChunkId| StoredChunk {
            id,
            set: set_id(),
            epoch: 1,
            length: LENGTH,
            crc32c: 0,
            stored_by: nodes().into(),
            synced: false,
        };
        let range = ByteRange::new(0, LENGTH).unwrap();
        let file = |(&inode, &chunk): (&InodeId, &ChunkId)| FileCommit {
            inode,
            extents: vec![NewExtent { range, chunk, chunk_offset: 0 }],
            mtime_ns: None,
            keep_privileges: true,
            drop_capability: false,
        };
        let op = Confirm {
            session: session(of),
            chunks: ids.iter().map(stored).collect(),
            files: files.iter().zip(&ids).map(file).collect(),
        };
        self.tx.attempt(|tx| confirm(tx, &op))
    }

    fn give_back(&self, inode: InodeId) {
        let grant = Grant { inode, number: self.number };
        self.tx.context.leases.give_back_reads(session(2), &[grant]);
    }

    fn sizes(&mut self) -> [u64; 2] {
        self.files.map(|id| self.tx.find::<Inode>(&Key::Inode(id)).unwrap().unwrap().size)
    }
}

fn in_the_way(result: Result<Vec<Result<Applied, OpError>>, OpError>) -> Vec<InodeId> {
    match result {
        Err(OpError::Leased(inodes)) => inodes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_another_session_may_show_is_not_written_until_that_is_given_back() {
    let mut t = Listed::new();
    let [f, g] = t.files;
    assert_eq!(in_the_way(t.write(1, 10, &[f])), [f]);
    assert_eq!(in_the_way(t.write(1, 10, &[f, g])), [f, g]);
    assert_eq!(t.tx.changed_rows(), 0, "no chunk, no mark that its id is used");
    t.give_back(f);
    assert_eq!(in_the_way(t.write(1, 10, &[f, g])), [g], "all files or none");
    assert_eq!((t.tx.changed_rows(), t.sizes()), (0, [0, 0]));
    let written = t.write(1, 10, &[f]).unwrap();
    assert!(written[0].is_ok(), "the same chunk is still good: {written:?}");
    t.give_back(g);
    assert!(t.write(1, 11, &[g]).unwrap()[0].is_ok());
    assert_eq!(t.sizes(), [LENGTH, LENGTH]);
}

#[test]
fn who_may_show_a_file_may_write_it() {
    let mut t = Listed::new();
    let files = t.files;
    let written = t.write(2, 20, &files).unwrap();
    assert!(written.iter().all(Result::is_ok), "{written:?}");
    assert_eq!(t.tx.context.leases.changing(Some(session(1)), &files), files, "and still show it");
}

#[test]
fn a_file_that_is_not_written_in_the_end_may_be_shown() {
    let mut t = Listed::new();
    let [f, g] = t.files;
    t.give_back(g);
    let foreign = 20;
    let refused = t.write(1, foreign, &[f]).unwrap();
    assert_eq!(refused[0].as_ref().unwrap_err().kind(), ErrorKind::PlanForeign);
    let written = t.write(1, 10, &[InodeId::ROOT, g]).unwrap();
    assert_eq!(written[0].as_ref().unwrap_err().kind(), ErrorKind::IsDirectory, "it is read, too");
    assert!(written[1].is_ok());
}

#[test]
fn chunks_stored_without_sync_have_rows_and_are_known_by_their_files_and_clones() {
    use crate::ops::{CloneRange, Mutation, apply, unsynced};
    let mut t = Listed::new();
    let [f, g] = t.files;
    let chunk = ChunkId::new(20).unwrap();
    assert!(t.write(2, 20, &[f]).unwrap()[0].is_ok());
    assert!(t.tx.get(&Key::Unsynced(chunk)).unwrap().is_some());
    assert_eq!(t.tx.context.unsynced.of_file(f).chunks, [chunk]);
    assert!(t.tx.context.unsynced.is_synced(g));
    let source_range = ByteRange::new(0, LENGTH).unwrap();
    let clone = CloneRange { source: f, source_range, destination: g, destination_offset: 0 };
    let root = crate::ops::access::Caller::root();
    apply(&mut t.tx, &Mutation::CloneRange(clone), &root).unwrap();
    assert_eq!(t.tx.context.unsynced.of_file(g).chunks, [chunk]);
    // While it is there it is kept, and when nothing refers to it any more it is not.
    unsynced::forget_gone(&mut t.tx, &[chunk]).unwrap();
    assert!(!t.tx.context.unsynced.is_synced(g));
    t.tx.delete(Key::Chunk(chunk));
    unsynced::forget_gone(&mut t.tx, &[chunk]).unwrap();
    assert!(t.tx.context.unsynced.is_synced(f) && t.tx.context.unsynced.is_synced(g));
    assert!(t.tx.get(&Key::Unsynced(chunk)).unwrap().is_none());
}
