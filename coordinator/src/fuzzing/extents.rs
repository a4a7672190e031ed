//! Commits, truncations, holes and copies of ranges against two arrays of bytes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn_proto::{ByteRange, ChunkId, FileName, InodeId, NodeId, ReplicaSetId, SessionId};
use uuid::Uuid;

use super::{Input, new_tx};
use crate::executor::Tx;
use crate::ops::access::Caller;
use crate::ops::commit::{self, Confirm, FileCommit, NewExtent, StoredChunk};
use crate::ops::{self, Allocate, CloneRange, Create, Mutation, NewInode, SetAttr};
use crate::store::{
    Chunk, Count, Counter, Extent, Garbage, Inode, Key, Members, Plan, ReplicaSet, Scan, Table,
};

/// Offsets and sizes stay below this, so that ranges meet often.
const SIZE: u64 = 512;
/// Steps of one input; more add nothing but time.
const STEPS_MAX: usize = 64;
/// Chunks that the plan grants.
const CHUNKS: u32 = 4096;

/// What a file holds: byte → (chunk, offset in it), and its size.
#[derive(Debug, Clone, Default)]
struct Model {
    bytes: BTreeMap<u64, (u64, u64)>,
    size: u64,
}

/// The store beside its model.
struct Trial {
    tx: Tx,
    files: [InodeId; 2],
    models: [Model; 2],
    session: SessionId,
    node: NodeId,
    next_chunk: u64,
    /// Lengths of chunks that some file refers to.
    lengths: BTreeMap<u64, u64>,
}

/// Runs the steps that the bytes spell, and compares after each.
pub fn run(data: &[u8]) {
    let Some(mut trial) = Trial::new() else { return };
    let mut input = Input(data);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        trial.step(&mut input);
        trial.check();
    }
    assert!(trial.tx.commit().is_ok());
    trial.check();
}

impl Trial {
    fn new() -> Option<Self> {
        let mut tx = new_tx()?;
        let session = SessionId::from_uuid(Uuid::from_u128(7));
        let node = NodeId::from_uuid(Uuid::from_u128(8));
        let set = ReplicaSetId::new(1).ok()?;
        tx.put(ReplicaSet {
            id: set,
            members: Members::active([node]),
            replicas: 1,
            min_replicas: 1,
            epoch: 1,
        });
        let first = ChunkId::new(1).ok()?;
        let expires_ns = i64::MAX;
        tx.put(Plan {
            first,
            count: CHUNKS,
            replica_set: set,
            epoch: 1,
            session,
            expires_ns,
            used: Bytes::new(),
        });
        tx.put(Counter { name: Count::NextChunk, value: u64::from(CHUNKS) + 1 });
        let mut files = [InodeId::ROOT; 2];
        for (file, name) in files.iter_mut().zip(["a", "b"]) {
            let new = NewInode::File { exclusive: true, open: None };
            let create = Create {
                parent: InodeId::ROOT,
                name: FileName::new(Bytes::from_static(name.as_bytes())).ok()?,
                new,
                mode: 0o644,
                id: None,
                lease: false,
            };
            let made = tx.attempt(|tx| ops::apply(tx, &Mutation::Create(create), &Caller::default()));
            *file = made.ok()?.inode?.id;
        }
        let models = Default::default();
        Some(Self { tx, files, models, session, node, next_chunk: 1, lengths: BTreeMap::new() })
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let file = usize::from(input.byte() % 2);
        match input.byte() % 5 {
            0 | 1 => self.write(file, input),
            2 => self.truncate(file, input.below(SIZE)),
            3 => self.punch(file, input.below(SIZE), input.below(SIZE)),
            _ => self.copy(file, input),
        }
    }

    /// One new chunk, and up to four extents of it or of an older chunk, in one commit.
    fn write(&mut self, file: usize, input: &mut Input<'_>) {
        let (id, length) = (self.next_chunk, 1 + input.below(SIZE));
        self.next_chunk += 1;
        let chunk = StoredChunk {
            id: valid(id),
            set: set(),
            epoch: 1,
            length,
            crc32c: 0,
            stored_by: BTreeSet::from([self.node]),
            synced: true,
        };
        let mut extents = Vec::new();
        for _ in 0..=input.byte() % 4 {
            let known = self.lengths.keys().nth(usize::from(input.byte()) % 16).copied();
            let of = known.filter(|_| input.byte().is_multiple_of(4)).unwrap_or(id);
            let (offset, length) = (input.below(SIZE), input.below(SIZE));
            let Some(range) = ByteRange::new(offset, length) else { continue };
            extents.push(NewExtent { range, chunk: valid(of), chunk_offset: input.below(SIZE) });
        }
        let mut lengths = self.lengths.clone();
        lengths.insert(id, length);
        let fits =
            |extent: &NewExtent| extent.chunk_offset + extent.range.len() <= lengths[&extent.chunk.get()];
        let mut sorted = extents.clone();
        sorted.sort_by_key(|extent| extent.range);
        let apart = sorted.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start());
        let files = vec![FileCommit {
            inode: self.files[file],
            extents: extents.clone(),
            mtime_ns: Some(1),
            keep_privileges: true,
            drop_capability: false,
        }];
        let confirm = Confirm { session: self.session, chunks: vec![chunk], files };
        let results = match self.tx.attempt(|tx| commit::confirm(tx, &confirm)) {
            Ok(results) => results,
            Err(error) => panic!("a commit of a planned chunk was refused whole: {error}"),
        };
        let good = apart && extents.iter().all(fits);
        assert_eq!(results.iter().all(Result::is_ok), good, "{results:?} of {confirm:?}");
        if !good {
            return;
        }
        let model = &mut self.models[file];
        for extent in &extents {
            let place = |i| (extent.range.start() + i, (extent.chunk.get(), extent.chunk_offset + i));
            model.bytes.extend((0..extent.range.len()).map(place));
            model.size = model.size.max(extent.range.end());
        }
        self.lengths = lengths;
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
        assert!(self.apply(Mutation::SetAttr(op)), "a truncation was refused");
        self.models[file].bytes.retain(|&at, _| at < size);
        self.models[file].size = size;
    }

    fn punch(&mut self, file: usize, offset: u64, length: u64) {
        let Some(range) = ByteRange::new(offset, length) else { return };
        let op = Allocate { inode: self.files[file], range, keep_size: true, make_hole: true };
        assert!(self.apply(Mutation::Allocate(op)), "a hole was refused");
        self.models[file].bytes.retain(|&at, _| !range.contains(at));
    }

    fn copy(&mut self, to: usize, input: &mut Input<'_>) {
        let from = usize::from(input.byte() % 2);
        let (source, length, destination) = (input.below(SIZE), input.below(SIZE), input.below(SIZE));
        let Some(source_range) = ByteRange::new(source, length) else { return };
        let op = CloneRange {
            source: self.files[from],
            source_range,
            destination: self.files[to],
            destination_offset: destination,
        };
        let length = self.models[from].size.min(source + length).saturating_sub(source);
        // Small copies fit one job.
        let done = self.apply(Mutation::CloneRange(op));
        if !done || length == 0 {
            assert!(done || from == to, "a copy between two files was refused");
            return;
        }
        let origin = self.models[from].bytes.clone();
        let model = &mut self.models[to];
        for i in 0..length {
            match origin.get(&(source + i)) {
                Some(&byte) => drop(model.bytes.insert(destination + i, byte)),
                None => drop(model.bytes.remove(&(destination + i))),
            }
        }
        model.size = model.size.max(destination + length);
    }

    fn apply(&mut self, mutation: Mutation) -> bool {
        self.tx.attempt(|tx| ops::apply(tx, &mutation, &Caller::default())).is_ok()
    }

    /// The rows say what the model says, and every count agrees with them.
    fn check(&mut self) {
        let mut live: BTreeMap<u64, u64> = BTreeMap::new();
        for (&file, model) in self.files.iter().zip(&self.models) {
            let all = Scan::between(Key::Extent(file, 0), Key::Extent(file, i64::MAX as u64));
            let extents: Vec<Extent> = list(&mut self.tx, &all);
            let mut bytes = BTreeMap::new();
            for extent in &extents {
                for i in 0..extent.length {
                    let place = (extent.chunk.get(), extent.chunk_offset + i);
                    let before = bytes.insert(extent.offset + i, place);
                    assert!(before.is_none(), "extents overlap: {extents:?}");
                }
                *live.entry(extent.chunk.get()).or_default() += extent.length;
            }
            assert_eq!(bytes, model.bytes, "inode {file}");
            let inode: Option<Inode> = self.tx.find(&Key::Inode(file)).ok().flatten();
            let sizes = inode.map(|inode| (inode.size, inode.allocated));
            assert_eq!(sizes, Some((model.size, model.bytes.len() as u64)));
        }
        let chunks: Vec<Chunk> = list(&mut self.tx, &Scan::all(Table::Chunk));
        let stored: BTreeMap<u64, u64> = chunks.iter().map(|chunk| (chunk.id.get(), chunk.live)).collect();
        assert_eq!(stored, live);
        self.lengths.retain(|chunk, _| live.contains_key(chunk));
        let garbage: Vec<Garbage> = list(&mut self.tx, &Scan::all(Table::Garbage));
        assert!(garbage.iter().all(|row| !live.contains_key(&row.chunk.get())), "a chunk in use is garbage");
        let counts = [Count::Bytes, Count::Chunks, Count::Garbage].map(|count| counter(&mut self.tx, count));
        assert_eq!(counts, [live.values().sum(), live.len() as u64, garbage.len() as u64]);
    }
}

fn valid(chunk: u64) -> ChunkId {
    match ChunkId::new(chunk) {
        Ok(id) => id,
        Err(error) => panic!("{error}"),
    }
}

fn set() -> ReplicaSetId {
    match ReplicaSetId::new(1) {
        Ok(id) => id,
        Err(error) => panic!("{error}"),
    }
}

fn list<R: crate::store::Record>(tx: &mut Tx, scan: &Scan) -> Vec<R> {
    match tx.list(scan) {
        Ok(rows) => rows,
        Err(error) => panic!("{error}"),
    }
}

/// A counter as it is now.
pub(super) fn counter(tx: &mut Tx, name: Count) -> u64 {
    tx.find::<Counter>(&Key::Counter(name)).ok().flatten().map_or(0, |row| row.value)
}
