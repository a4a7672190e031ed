//! Extents against a map of bytes.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::{ByteRange, ChunkId, ReplicaSetId};
use proptest::prelude::*;

use crate::executor::Tx;
use crate::ops::access::Caller;
use crate::ops::chunks::LiveChanges;
use crate::ops::tests::{make_file, tx};
use crate::ops::{Allocate, CloneRange, Mutation, SetAttr, apply};
use crate::store::{Chunk, Count, Counter, DeadRange, Extent, Garbage, Inode, Key, Scan, Table};

const SIZE: u64 = 200;

#[derive(Debug, Clone)]
enum Step {
    /// A new chunk of this length is written at this offset.
    Write {
        file: usize,
        offset: u64,
        length: u64,
    },
    Truncate {
        file: usize,
        size: u64,
    },
    Punch {
        file: usize,
        offset: u64,
        length: u64,
    },
    Clone {
        from: usize,
        to: usize,
        source: u64,
        length: u64,
        destination: u64,
    },
    /// The worker goes on for one step.
    Reap,
    /// The group is committed and the coordinator starts again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..SIZE;
    let length = || 1..60u64;
    prop_oneof![
        4 => (0..2usize, at(), length()).prop_map(|(file, offset, length)| Step::Write { file, offset, length }),
        1 => (0..2usize, at()).prop_map(|(file, size)| Step::Truncate { file, size }),
        2 => (0..2usize, at(), length()).prop_map(|(file, offset, length)| Step::Punch { file, offset, length }),
        2 => (0..2usize, 0..2usize, at(), length(), at()).prop_map(|(from, to, source, length, destination)| {
            Step::Clone { from, to, source, length, destination }
        }),
        2 => Just(Step::Reap),
        1 => Just(Step::Restart),
    ]
}

/// Byte → (chunk, offset in it), and the size.
#[derive(Debug, Clone, Default)]
struct Model {
    bytes: BTreeMap<u64, (u64, u64)>,
    size: u64,
}

fn write(tx: &mut Tx, file: &mut Inode, chunk: u64, offset: u64, length: u64) {
    let id = ChunkId::new(chunk).unwrap();
    tx.put(Chunk {
        id,
        replica_set: ReplicaSetId::new(1).unwrap(),
        length,
        crc32c: 0,
        live: 0,
        faults: 0,
        created_ns: 0,
    });
    tx.count(Count::Chunks, 1).unwrap();
    let mut live = LiveChanges::default();
    super::cut(tx, file, ByteRange::new(offset, length).unwrap(), &mut live).unwrap();
    let extent = Extent { inode: file.id, offset, length, chunk: id, chunk_offset: 0 };
    super::insert(tx, file, extent, &mut live).unwrap();
    live.apply(tx).unwrap();
    file.size = file.size.max(offset + length);
    tx.put(file.clone());
}

fn execute(tx: &mut Tx, step: &Step, chunk: u64, files: &[Inode; 2], models: &mut [Model; 2]) {
    let root = Caller::default();
    match *step {
        Step::Write { file, offset, length } => {
            let mut inode = tx.inode(files[file].id).unwrap();
            write(tx, &mut inode, chunk, offset, length);
            let model = &mut models[file];
            model.bytes.extend((0..length).map(|i| (offset + i, (chunk, i))));
            model.size = model.size.max(offset + length);
        }
        Step::Truncate { file, size } => {
            let op = SetAttr {
                inode: files[file].id,
                mode: None,
                uid: None,
                gid: None,
                size: Some(size),
                atime: None,
                mtime: None,
                via_handle: true,
            };
            apply(tx, &Mutation::SetAttr(op), &root).unwrap();
            models[file].bytes.retain(|&at, _| at < size);
            models[file].size = size;
        }
        Step::Punch { file, offset, length } => {
            let range = ByteRange::new(offset, length).unwrap();
            let op = Allocate { inode: files[file].id, range, keep_size: true, make_hole: true };
            apply(tx, &Mutation::Allocate(op), &root).unwrap();
            models[file].bytes.retain(|&at, _| !range.contains(at));
        }
        Step::Clone { from, to, source, length, destination } => {
            let op = CloneRange {
                source: files[from].id,
                source_range: ByteRange::new(source, length).unwrap(),
                destination: files[to].id,
                destination_offset: destination,
            };
            let done = apply(tx, &Mutation::CloneRange(op), &root);
            let asked = models[from].size.min(source + length).saturating_sub(source);
            let length = done.as_ref().map_or(asked, |applied| applied.copied);
            assert!(length <= asked && (length > 0 || asked == 0), "{length} of {asked} bytes are copied");
            let overlap = from == to && source < destination + asked && destination < source + asked;
            assert_eq!(done.is_err(), overlap && asked > 0, "{done:?}");
            if overlap || length == 0 {
                return;
            }
            let origin = models[from].bytes.clone();
            let model = &mut models[to];
            for i in 0..length {
                match origin.get(&(source + i)) {
                    Some(&byte) => drop(model.bytes.insert(destination + i, byte)),
                    None => drop(model.bytes.remove(&(destination + i))),
                }
            }
            model.size = model.size.max(destination + length);
        }
        Step::Reap => drop(super::reap(tx).unwrap()),
        Step::Restart => tx.commit().unwrap(),
    }
}

fn counter(tx: &mut Tx, name: Count) -> u64 {
    tx.find::<Counter>(&Key::Counter(name)).unwrap().map_or(0, |row| row.value)
}

fn check(tx: &mut Tx, files: &[Inode; 2], models: &[Model; 2]) -> Result<(), TestCaseError> {
    let mut live: BTreeMap<u64, u64> = BTreeMap::new();
    for (file, model) in files.iter().zip(models) {
        let inode = tx.inode(file.id).unwrap();
        let rows: Vec<Extent> =
            tx.list(&Scan::between(Key::Extent(file.id, 0), Key::Extent(file.id, i64::MAX as u64))).unwrap();
        for row in &rows {
            *live.entry(row.chunk.get()).or_default() += row.length;
        }
        let dead: Vec<DeadRange> = tx
            .list(&Scan::between(Key::DeadRange(file.id, 0), Key::DeadRange(file.id, i64::MAX as u64)))
            .unwrap();
        prop_assert!(dead.windows(2).all(|pair| pair[0].end < pair[1].start + 1), "{dead:?}");
        prop_assert_eq!(dead.len() as u64, inode.dead_ranges());
        let everything = ByteRange::between(0, i64::MAX as u64).unwrap();
        let extents = super::touching(tx, &inode, everything, usize::MAX).unwrap();
        let mut bytes = BTreeMap::new();
        for extent in &extents {
            for i in 0..extent.length {
                let at = (extent.chunk.get(), extent.chunk_offset + i);
                prop_assert!(bytes.insert(extent.offset + i, at).is_none(), "extents overlap: {extents:?}");
            }
        }
        prop_assert_eq!(&bytes, &model.bytes);
        for at in (0..SIZE + 60).step_by(7) {
            let here = super::touching(tx, &inode, ByteRange::new(at, 1).unwrap(), 9).unwrap();
            let byte =
                here.first().map(|extent| (extent.chunk.get(), extent.chunk_offset + at - extent.offset));
            prop_assert_eq!((here.len() <= 1, byte.as_ref()), (true, model.bytes.get(&at)), "at {}", at);
        }
        prop_assert_eq!(inode.size, model.size);
        let allocated: u64 = rows.iter().map(|row| row.length).sum();
        prop_assert_eq!(inode.allocated, allocated);
        prop_assert!(!dead.is_empty() || allocated == model.bytes.len() as u64, "a row is left: {rows:?}");
    }
    let chunks: Vec<Chunk> = tx.list(&Scan::all(Table::Chunk)).unwrap();
    let stored: BTreeMap<_, _> = chunks.iter().map(|chunk| (chunk.id.get(), chunk.live)).collect();
    prop_assert_eq!(&stored, &live);
    prop_assert_eq!(counter(tx, Count::Bytes), live.values().sum::<u64>());
    prop_assert_eq!(counter(tx, Count::Chunks), live.len() as u64);
    let garbage: Vec<Garbage> = tx.list(&Scan::all(Table::Garbage)).unwrap();
    let garbage: BTreeSet<_> = garbage.iter().map(|row| row.chunk.get()).collect();
    prop_assert!(garbage.iter().all(|chunk| !live.contains_key(chunk)), "a chunk in use is garbage");
    prop_assert_eq!(counter(tx, Count::Garbage), garbage.len() as u64);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn extents_hold_what_a_map_of_bytes_holds(
        steps in proptest::collection::vec(step(), 1..40),
        extents_at_once in prop_oneof![1..4usize, Just(2048)],
    ) {
        let mut tx = tx();
        tx.extents_at_once = extents_at_once;
        let files = [make_file(&mut tx, "a"), make_file(&mut tx, "b")];
        let mut models = [Model::default(), Model::default()];
        for (chunk, step) in (1..).zip(&steps) {
            execute(&mut tx, step, chunk, &files, &mut models);
            check(&mut tx, &files, &models)?;
        }
        while super::reap(&mut tx).unwrap() {
            check(&mut tx, &files, &models)?;
        }
        check(&mut tx, &files, &models)?;
        for (file, model) in files.iter().zip(&models) {
            let inode = tx.inode(file.id).unwrap();
            prop_assert_eq!((inode.dead_ranges(), inode.allocated), (0, model.bytes.len() as u64));
        }
    }
}
