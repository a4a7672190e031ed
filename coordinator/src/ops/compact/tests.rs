//! Files read the same before and after, whatever happens between the copy and the commit.

use std::collections::BTreeMap;

use cairn_proto::{InodeId, NodeId};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::ops::access::Caller;
use crate::ops::commit::{Confirm, FileCommit, NewExtent, confirm};
use crate::ops::tests::{make_file, name, tx};
use crate::ops::{CloneRange, Mutation, SetAttr, apply};
use crate::store::{Counter, Garbage, Members, Scan, Table};

const SIZE: u64 = 400;

fn node(number: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(number))
}

fn set_id() -> ReplicaSetId {
    ReplicaSetId::new(1).unwrap()
}

/// Files, and the bytes that chunks hold.
struct World {
    tx: Tx,
    files: [InodeId; 2],
    chunks: BTreeMap<ChunkId, Vec<u8>>,
    models: [Vec<u8>; 2],
    next: u8,
}

impl World {
    fn new() -> Self {
        let mut tx = tx();
        let members = Members::active([node(1), node(2)]);
        tx.put(ReplicaSet { id: set_id(), members, replicas: 2, min_replicas: 2, epoch: 1 });
        let files = ["a", "b"].map(|text| make_file(&mut tx, text).id);
        Self { tx, files, chunks: BTreeMap::new(), models: [Vec::new(), Vec::new()], next: 0 }
    }

    fn stored(&self, plan: &Plan, length: u64) -> StoredChunk {
        StoredChunk {
            id: plan.first,
            set: set_id(),
            epoch: 1,
            length,
            crc32c: 0,
            stored_by: [node(1), node(2)].into(),
            synced: true,
        }
    }

    fn write(&mut self, file: usize, offset: u64, length: u64) {
        self.next = self.next.wrapping_add(1).max(1);
        let plan = self.tx.attempt(|tx| plan(tx, set_id())).unwrap();
        let data: Vec<u8> = (0..length).map(|i| self.next.wrapping_mul(31).wrapping_add(i as u8)).collect();
        let stored = self.stored(&plan, length);
        let extent =
            NewExtent { range: ByteRange::new(offset, length).unwrap(), chunk: plan.first, chunk_offset: 0 };
        let file_commit = FileCommit {
            inode: self.files[file],
            extents: vec![extent],
            mtime_ns: None,
            keep_privileges: true,
            drop_capability: false,
        };
        let op = Confirm { session: NOBODY, chunks: vec![stored], files: vec![file_commit] };
        let results = self.tx.attempt(|tx| confirm(tx, &op)).unwrap();
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        let model = &mut self.models[file];
        model.resize(model.len().max((offset + length) as usize), 0);
        model[offset as usize..(offset + length) as usize].copy_from_slice(&data);
        self.chunks.insert(plan.first, data);
    }

    fn truncate(&mut self, file: usize, size: u64) {
        let op = SetAttr {
            inode: self.files[file],
            mode: None,
            uid: None,
            gid: None,
            size: Some(size),
            atime: None,
            mtime: None,
            via_handle: true,
        };
        self.tx.attempt(|tx| apply(tx, &Mutation::SetAttr(op), &Caller::default())).unwrap();
        self.models[file].resize(size as usize, 0);
    }

    fn clone(&mut self, from: usize, source: u64, length: u64, destination: u64) {
        let op = CloneRange {
            source: self.files[from],
            source_range: ByteRange::new(source, length).unwrap(),
            destination: self.files[1 - from],
            destination_offset: destination,
        };
        self.tx.attempt(|tx| apply(tx, &Mutation::CloneRange(op), &Caller::default())).unwrap();
        let end = (self.models[from].len() as u64).min(source + length);
        if source >= end {
            return;
        }
        let bytes = self.models[from][source as usize..end as usize].to_vec();
        let model = &mut self.models[1 - from];
        let (start, stop) = (destination as usize, destination as usize + bytes.len());
        model.resize(model.len().max(stop), 0);
        model[start..stop].copy_from_slice(&bytes);
    }

    fn extents(&mut self) -> Vec<Extent> {
        self.tx.list(&Scan::all(Table::Extent)).unwrap()
    }

    /// What a datanode does.
    fn repack(&mut self, packed: &Packed) -> Plan {
        let mut data = vec![0; packed.length as usize];
        for part in &packed.parts {
            let from = &self.chunks[&part.chunk][part.range.start() as usize..part.range.end() as usize];
            data[part.to as usize..part.to as usize + from.len()].copy_from_slice(from);
        }
        let plan = self.tx.attempt(|tx| plan(tx, set_id())).unwrap();
        self.chunks.insert(plan.first, data);
        plan
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let all = self.extents();
        let mut live: BTreeMap<ChunkId, u64> = BTreeMap::new();
        for (index, file) in self.files.into_iter().enumerate() {
            let inode = self.tx.inode(file).unwrap();
            let mut bytes = vec![0; inode.size as usize];
            for extent in all.iter().filter(|extent| extent.inode == file) {
                let (start, len) = (extent.offset as usize, extent.length as usize);
                let from = extent.chunk_offset as usize;
                bytes[start..start + len].copy_from_slice(&self.chunks[&extent.chunk][from..from + len]);
                *live.entry(extent.chunk).or_default() += extent.length;
            }
            prop_assert!(bytes == self.models[index], "file {} reads otherwise", index);
        }
        let rows: Vec<Chunk> = self.tx.list(&Scan::all(Table::Chunk)).unwrap();
        let counted: BTreeMap<_, _> = rows.iter().map(|row| (row.id, row.live)).collect();
        prop_assert_eq!(counted, live);
        let garbage: Vec<Garbage> = self.tx.list(&Scan::all(Table::Garbage)).unwrap();
        prop_assert!(garbage.iter().all(|row| all.iter().all(|extent| extent.chunk != row.chunk)));
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, u64, u64),
    Truncate(usize, u64),
    Clone(usize, u64, u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..SIZE;
    prop_oneof![
        4 => (0..2usize, at(), 1..120u64).prop_map(|(file, at, len)| Step::Write(file, at, len)),
        1 => (0..2usize, at()).prop_map(|(file, size)| Step::Truncate(file, size)),
        2 => (0..2usize, at(), 1..120u64, at()).prop_map(|(from, at, len, to)| Step::Clone(from, at, len, to)),
    ]
}

impl World {
    fn execute(&mut self, steps: &[Step]) {
        for step in steps {
            match *step {
                Step::Write(file, offset, length) => self.write(file, offset, length),
                Step::Truncate(file, size) => self.truncate(file, size),
                Step::Clone(from, source, length, to) => self.clone(from, source, length, to),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn files_read_the_same_whatever_happens_before_the_commit(
        before in proptest::collection::vec(step(), 1..25),
        between in proptest::collection::vec(step(), 0..6),
        size in 40..400u64,
    ) {
        let mut world = World::new();
        world.execute(&before);
        let used = world.extents();
        let packed = pack(used, size);
        let copies: Vec<_> = packed.iter().map(|packed| world.repack(packed)).collect();
        world.execute(&between);
        for (packed, plan) in packed.iter().zip(&copies) {
            let stored = world.stored(plan, packed.length);
            world.tx.attempt(|tx| commit(tx, &stored, packed)).unwrap();
            world.check()?;
        }
        if between.is_empty() {
            // Everything that fits has left its old chunk.
            let old: BTreeSet<_> = packed.iter().flat_map(|packed| &packed.parts).map(|part| part.chunk).collect();
            let whole = packed.iter().map(|packed| packed.length).sum::<u64>();
            let too_long = world.extents().iter().any(|extent| old.contains(&extent.chunk));
            prop_assert!(!too_long || whole == 0 || size < 2 * SIZE, "{old:?}");
        }
    }
}

#[test]
fn an_old_chunk_goes_once_nothing_uses_it() {
    let mut world = World::new();
    world.write(0, 0, 300);
    world.truncate(0, 10);
    let packed = pack(world.extents(), 1000);
    assert_eq!((packed.len(), packed[0].length), (1, 10));
    let plan = world.repack(&packed[0]);
    let stored = world.stored(&plan, 10);
    assert_eq!(world.tx.attempt(|tx| commit(tx, &stored, &packed[0])).unwrap(), 10);
    world.check().unwrap();
    let garbage: Vec<Garbage> = world.tx.list(&Scan::all(Table::Garbage)).unwrap();
    assert_eq!(garbage.len(), 1);
    // A second commit of the same copy is refused.
    assert_eq!(
        world.tx.attempt(|tx| commit(tx, &stored, &packed[0])).unwrap_err().kind(),
        ErrorKind::AlreadyCommitted
    );
}

#[test]
fn a_copy_of_what_was_deleted_meanwhile_is_garbage_at_once() {
    let mut world = World::new();
    world.write(0, 0, 300);
    let packed = pack(world.extents(), 1000);
    let plan = world.repack(&packed[0]);
    let op = Mutation::Unlink { parent: InodeId::ROOT, name: name("a") };
    world.tx.attempt(|tx| apply(tx, &op, &Caller::default())).unwrap();
    let stored = world.stored(&plan, 300);
    assert_eq!(world.tx.attempt(|tx| commit(tx, &stored, &packed[0])).unwrap(), 0);
    let chunks: Counter = world.tx.find(&Key::Counter(Count::Chunks)).unwrap().unwrap();
    assert_eq!(chunks.value, 0);
    let garbage: Vec<Garbage> = world.tx.list(&Scan::all(Table::Garbage)).unwrap();
    assert_eq!(garbage.len(), 2);
}

#[test]
fn only_old_large_sound_and_mostly_dead_chunks_are_worth_it() {
    let good = Chunk {
        id: ChunkId::new(1).unwrap(),
        replica_set: set_id(),
        length: 1 << 20,
        crc32c: 0,
        live: 1 << 17,
        faults: 0,
        created_ns: 0,
    };
    let now = 2 * AGE_MIN_NS;
    assert!(is_mostly_dead(&good, now));
    assert!(!is_mostly_dead(&good, AGE_MIN_NS - 1));
    assert!(!is_mostly_dead(&Chunk { live: 1 << 18, ..good.clone() }, now));
    assert!(!is_mostly_dead(&Chunk { faults: 1, ..good.clone() }, now));
    assert!(!is_mostly_dead(&Chunk { length: 60_000, live: 1, ..good }, now));
}
