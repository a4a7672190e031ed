//! Garbage and strays: against a model of files and datanodes, and rule by rule.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::{ByteRange, InodeId, ReplicaSetId, SessionId};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::membership::state::{Event, Report};
use crate::ops::access::Caller;
use crate::ops::chunks::LiveChanges;
use crate::ops::tests::{make_file, name, tx};
use crate::ops::{CloneRange, Mutation, SetAttr, apply, extents, open};
use crate::sessions::Open;
use crate::store::{Datanode, Extent, Inode, Labels, Members};

const NODES: u128 = 3;

fn node(number: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(number))
}

fn chunk_id(id: u64) -> ChunkId {
    ChunkId::new(id).unwrap()
}

fn set_id() -> ReplicaSetId {
    ReplicaSetId::new(1).unwrap()
}

/// A store with one set of three datanodes, all up.
fn cluster() -> Tx {
    let mut tx = tx();
    for number in 1..=NODES {
        register(&tx, number);
    }
    let members = Members::active((1..=NODES).map(node));
    put_set(&mut tx, members);
    tx
}

fn register(tx: &Tx, number: u128) {
    let row = Datanode {
        id: node(number),
        address: "localhost:1".into(),
        metrics_address: String::new(),
        labels: Labels::default(),
        capacity: 1 << 30,
        used: 0,
        version: String::new(),
        last_seen_ns: 0,
        admin: AdminState::In,
    };
    let event = Event::Registered {
        row,
        incarnation: Uuid::from_u128(number),
        report: Report::default(),
        now: crate::attendance::Moment::default(),
        now_ns: 1,
    };
    tx.context.cluster.apply(event).unwrap();
}

fn put_set(tx: &mut Tx, members: Members) {
    let set = ReplicaSet { id: set_id(), members, replicas: 3, min_replicas: 2, epoch: 1 };
    tx.put(set.clone());
    tx.context.cluster.members().add_sets(vec![set], 1);
}

fn put_chunk(tx: &mut Tx, id: u64, faults: u32) -> Chunk {
    let row = Chunk {
        id: chunk_id(id),
        replica_set: set_id(),
        length: 100,
        crc32c: 0,
        live: 100,
        faults,
        created_ns: 0,
    };
    tx.put(row.clone());
    row
}

fn counter(tx: &mut Tx, name: Count) -> u64 {
    tx.find::<Counter>(&Key::Counter(name)).unwrap().map_or(0, |row| row.value)
}

fn write(tx: &mut Tx, file: InodeId, chunk: u64, offset: u64, length: u64) {
    let mut file = tx.inode(file).unwrap();
    let row = Chunk { length, live: 0, ..put_chunk(tx, chunk, 0) };
    tx.put(row);
    tx.count(Count::Chunks, 1).unwrap();
    let mut live = LiveChanges::default();
    extents::cut(tx, &mut file, ByteRange::new(offset, length).unwrap(), &mut live).unwrap();
    let extent = Extent { inode: file.id, offset, length, chunk: chunk_id(chunk), chunk_offset: 0 };
    extents::insert(tx, &mut file, extent, &mut live).unwrap();
    live.apply(tx).unwrap();
    file.size = file.size.max(offset + length);
    tx.put(file);
}

#[derive(Debug, Clone)]
enum Step {
    Create(usize),
    Write {
        file: usize,
        offset: u64,
        length: u64,
    },
    Truncate {
        file: usize,
        size: u64,
    },
    Clone {
        from: usize,
        to: usize,
        length: u64,
    },
    Open(usize),
    Unlink(usize),
    CloseAll,
    /// A pass of gc, during which some datanodes do not answer.
    Collect {
        silent: u8,
    },
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let file = || 0..3usize;
    prop_oneof![
        3 => file().prop_map(Step::Create),
        6 => (file(), 0..100u64, 1..60u64)
            .prop_map(|(file, offset, length)| Step::Write { file, offset, length }),
        2 => (file(), 0..100u64).prop_map(|(file, size)| Step::Truncate { file, size }),
        3 => (file(), file(), 1..100u64).prop_map(|(from, to, length)| Step::Clone { from, to, length }),
        1 => file().prop_map(Step::Open),
        3 => file().prop_map(Step::Unlink),
        1 => Just(Step::CloseAll),
        3 => (0..8u8).prop_map(|silent| Step::Collect { silent }),
        2 => Just(Step::Commit),
    ]
}

/// What datanodes hold, and who has which file open.
struct World {
    tx: Tx,
    session: SessionId,
    held: BTreeMap<NodeId, BTreeSet<ChunkId>>,
    open: BTreeMap<InodeId, u64>,
    files: BTreeMap<usize, InodeId>,
    next_chunk: u64,
}

impl World {
    fn new() -> Self {
        let mut tx = cluster();
        let session = SessionId::from_uuid(Uuid::from_u128(9));
        tx.attempt(|tx| open::begin_session(tx, session, "a mount".into(), true)).unwrap();
        let held = (1..=NODES).map(|number| (node(number), BTreeSet::new())).collect();
        Self { tx, session, held, open: BTreeMap::new(), files: BTreeMap::new(), next_chunk: 1 }
    }

    fn execute(&mut self, step: &Step) {
        let root = Caller::default();
        match *step {
            Step::Create(file) => {
                let tx = &mut self.tx;
                self.files.entry(file).or_insert_with(|| make_file(tx, &format!("f{file}")).id);
            }
            Step::Write { file, offset, length } => {
                let Some(&inode) = self.files.get(&file) else { return };
                let chunk = self.next_chunk;
                self.next_chunk += 1;
                self.held.values_mut().for_each(|held| assert!(held.insert(chunk_id(chunk))));
                let done = self.tx.attempt(|tx| {
                    write(tx, inode, chunk, offset, length);
                    Ok(())
                });
                done.unwrap();
            }
            Step::Truncate { file, size } => {
                let Some(&inode) = self.files.get(&file) else { return };
                let op = SetAttr {
                    inode,
                    mode: None,
                    uid: None,
                    gid: None,
                    size: Some(size),
                    atime: None,
                    mtime: None,
                    via_handle: true,
                };
                self.tx.attempt(|tx| apply(tx, &Mutation::SetAttr(op), &root)).unwrap();
            }
            Step::Clone { from, to, length } => {
                let (Some(&source), Some(&destination)) = (self.files.get(&from), self.files.get(&to)) else {
                    return;
                };
                let op = CloneRange {
                    source,
                    source_range: ByteRange::new(0, length).unwrap(),
                    destination,
                    destination_offset: 200,
                };
                let _ = self.tx.attempt(|tx| apply(tx, &Mutation::CloneRange(op), &root));
            }
            Step::Open(file) => {
                let Some(&inode) = self.files.get(&file) else { return };
                let sequence = self.open.len() as u64 + 1;
                self.tx.context.sessions.register(self.session, Open { inode, sequence }).unwrap();
                self.open.insert(inode, sequence);
            }
            Step::Unlink(file) => {
                if self.files.remove(&file).is_none() {
                    return;
                }
                let op = Mutation::Unlink { parent: InodeId::ROOT, name: name(&format!("f{file}")) };
                self.tx.attempt(|tx| apply(tx, &op, &root)).unwrap();
            }
            Step::CloseAll => {
                for (inode, _) in std::mem::take(&mut self.open) {
                    let closed = [Open { inode, sequence: u64::MAX }];
                    let orphans = self.tx.context.sessions.close(self.session, &closed);
                    let session = self.session;
                    self.tx.attempt(|tx| open::release(tx, session, &orphans)).unwrap();
                }
            }
            Step::Collect { silent } => self.collect(silent),
            Step::Commit => self.tx.commit().unwrap(),
        }
    }

    /// As the worker does it; datanodes whose bit is set do not answer.
    fn collect(&mut self, silent: u8) {
        let rows: Vec<Garbage> = self.tx.list(&Scan::all(Table::Garbage)).unwrap();
        let claim = self.tx.attempt(|tx| claim(tx, &rows)).unwrap();
        let mut left = BTreeSet::new();
        for (node, chunks) in &claim.ask {
            let number = node.as_uuid().as_u128() - 1;
            if silent & (1 << number) != 0 {
                left.extend(chunks.iter().copied());
                continue;
            }
            let held = self.held.get_mut(node).unwrap();
            held.retain(|chunk| !chunks.contains(chunk));
        }
        let done: Vec<_> = claim.rows.into_iter().filter(|row| !left.contains(&row.chunk)).collect();
        self.tx.attempt(|tx| finish(tx, &done)).unwrap();
    }

    /// Every extent's bytes are on every datanode; what is on one is referred to or queued.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let extents: Vec<Extent> = self.tx.list(&Scan::all(Table::Extent)).unwrap();
        let garbage: Vec<Garbage> = self.tx.list(&Scan::all(Table::Garbage)).unwrap();
        for extent in &extents {
            let inode: Option<Inode> = self.tx.find(&Key::Inode(extent.inode)).unwrap();
            prop_assert!(inode.is_some(), "an extent without its inode");
            for (node, held) in &self.held {
                prop_assert!(held.contains(&extent.chunk), "{node} has lost chunk {}", extent.chunk);
            }
        }
        for held in self.held.values() {
            for chunk in held {
                let used = extents.iter().any(|extent| extent.chunk == *chunk);
                let queued = garbage.iter().any(|row| row.chunk == *chunk);
                prop_assert!(used || queued, "chunk {chunk} is held for nothing, and nobody knows");
            }
        }
        prop_assert_eq!(counter(&mut self.tx, Count::Garbage), garbage.len() as u64);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn nothing_is_deleted_that_a_name_or_an_open_file_refers_to(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.execute(step);
            world.check()?;
        }
        // With everything closed and removed nothing stays.
        world.execute(&Step::CloseAll);
        (0..3).for_each(|file| world.execute(&Step::Unlink(file)));
        world.collect(0);
        world.check()?;
        prop_assert!(world.held.values().all(BTreeSet::is_empty), "{:?}", world.held);
        for name in [Count::Garbage, Count::Chunks, Count::Bytes] {
            prop_assert_eq!(counter(&mut world.tx, name), 0);
        }
    }
}

fn garbage(tx: &mut Tx, chunk: u64, not_before_ns: i64) -> Garbage {
    let row = Garbage { not_before_ns, chunk: chunk_id(chunk), replica_set: set_id() };
    tx.put(row.clone());
    tx.count(Count::Garbage, 1).unwrap();
    row
}

#[test]
fn what_is_stopped_or_in_use_is_not_claimed() {
    let mut tx = cluster();
    let rows = [garbage(&mut tx, 1, 5), garbage(&mut tx, 2, 6)];
    // Two rows that contradict one another: the file's side is believed.
    put_chunk(&mut tx, 2, 0);
    let claimed = claim(&mut tx, &rows).unwrap();
    assert_eq!(claimed.rows, [rows[0].clone()]);
    assert_eq!(claimed.ask.len(), 3);
    assert!(claimed.ask.values().all(|chunks| chunks == &[chunk_id(1)]));
    set_paused(&mut tx, true).unwrap();
    assert_eq!(claim(&mut tx, &rows).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(
        claim_strays(&mut tx, node(1), &BTreeSet::from([chunk_id(1)])).unwrap_err().kind(),
        ErrorKind::Busy
    );
    set_paused(&mut tx, false).unwrap();
    assert_eq!(claim(&mut tx, &rows).unwrap().rows.len(), 1);
    tx.put(Counter { name: Count::RolledBack, value: 1 });
    assert_eq!(claim(&mut tx, &rows).unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn members_that_count_for_nothing_are_not_asked() {
    let mut tx = cluster();
    let rows = [garbage(&mut tx, 1, 5)];
    let mut members = Members::active((1..=NODES).map(node));
    members.0[0].state = MemberState::Lost;
    put_set(&mut tx, members);
    tx.context.cluster.members().nodes.get_mut(&node(2)).unwrap().row.admin = AdminState::Out;
    assert_eq!(claim(&mut tx, &rows).unwrap().ask.into_keys().collect::<Vec<_>>(), [node(3)]);
    tx.context.cluster.members().nodes.get_mut(&node(3)).unwrap().state = NodeState::Down;
    assert_eq!(claim(&mut tx, &rows).unwrap().ask.into_keys().collect::<Vec<_>>(), [node(3)]);
}

#[test]
fn rows_come_in_pages_and_not_before_their_time() {
    let store = crate::store::memory::MemoryStore::default();
    let mut tx = crate::ops::tests::tx_on(&store, |writer| writer);
    let rows: Vec<_> = [(1, 5), (2, 5), (3, 7), (4, 9)].map(|(id, at)| garbage(&mut tx, id, at)).into();
    tx.commit().unwrap();
    let reader = crate::store::Readers::reader(&store, true).unwrap();
    let page = due(&*reader, None, 7, 1).unwrap();
    assert_eq!(page, rows[..1]);
    assert_eq!(due(&*reader, page.last(), 7, 10).unwrap(), rows[1..3]);
    assert_eq!(due(&*reader, Some(&rows[2]), 7, 10).unwrap(), []);
}

#[test]
fn an_upload_under_way_is_no_stray_until_its_plan_is_over() {
    let mut tx = cluster();
    tx.put(Counter { name: Count::NextChunk, value: 100 });
    let now = tx.now_ns();
    let plan = |first, expires_ns| Plan {
        first: chunk_id(first),
        count: 10,
        replica_set: set_id(),
        epoch: 1,
        session: SessionId::from_uuid(Uuid::from_u128(1)),
        expires_ns,
        used: Bytes::new(),
    };
    let minute = Duration::from_secs(60).as_nanos() as i64;
    tx.put(plan(10, now + minute));
    tx.put(plan(20, now - 1));
    put_chunk(&mut tx, 30, 0);
    let held: BTreeSet<_> = [5, 10, 19, 20, 30, 40, 50, 100, 500].map(chunk_id).into();
    let strays = claim_strays(&mut tx, node(1), &held).unwrap();
    // Not 10 and 19 (planned), 30 (in use), 100 and 500 (not granted yet).
    assert_eq!(strays, [5, 20, 40, 50].map(chunk_id));
}

#[test]
fn a_copy_outside_of_its_set_stays_while_it_may_be_needed() {
    let mut tx = cluster();
    tx.put(Counter { name: Count::NextChunk, value: 100 });
    register(&tx, 4);
    put_chunk(&mut tx, 1, 0);
    put_chunk(&mut tx, 2, 1);
    let held: BTreeSet<_> = [1, 2].map(chunk_id).into();
    let strays = |tx: &mut Tx| claim_strays(tx, node(4), &held).unwrap();
    // Of chunk 2 another copy is bad: this one may be what it is repaired from.
    assert_eq!(strays(&mut tx), [chunk_id(1)]);
    let mut members = Members::active((1..=NODES).map(node));
    members.0[1].state = MemberState::Backfilling;
    put_set(&mut tx, members);
    assert_eq!(strays(&mut tx), []);
    put_set(&mut tx, Members::active([node(1), node(2)]));
    assert_eq!(strays(&mut tx), []);
    put_set(&mut tx, Members::active([node(1), node(2), node(4)]));
    assert_eq!(strays(&mut tx), []);
}
