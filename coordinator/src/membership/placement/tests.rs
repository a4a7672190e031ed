use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::super::selector::SpreadSelector;
use super::super::state::{Event, Report, Timing};
use super::*;
use crate::store::{AdminState, Datanode, Labels, Members as SetMembers};

const GIB: u64 = 1 << 30;
const SIZE: u64 = 8 << 20;

fn node(number: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(number))
}

struct Bench {
    members: Members,
    policy: Policy,
    excluded: BTreeSet<NodeId>,
}

impl Bench {
    /// Datanodes 1, 2, … with so much free space each.
    fn new(free: &[u64]) -> Self {
        let timing = Timing {
            suspect_after: Duration::from_secs(3),
            down_after: Duration::from_secs(9),
            lost_after: Duration::from_secs(600),
        };
        let now = crate::attendance::Moment::default();
        let mut members = Members::new(timing, vec![], vec![], 1, now);
        for (number, &free) in (1..).zip(free) {
            let row = Datanode {
                id: node(number),
                address: String::new(),
                metrics_address: String::new(),
                labels: Labels::default(),
                capacity: 100 * GIB,
                used: 0,
                version: String::new(),
                last_seen_ns: 0,
                admin: AdminState::In,
            };
            let report = Report { capacity: 100 * GIB, used: 100 * GIB - free, disks: vec![] };
            let incarnation = Uuid::from_u128(number);
            members.apply(Event::Registered { row, incarnation, report, now, now_ns: 0 }).unwrap();
        }
        Self { members, policy: Policy::default(), excluded: BTreeSet::new() }
    }

    fn down(&mut self, number: u128) {
        let incarnation = Uuid::from_u128(number);
        self.members.apply(Event::Leaving { node: node(number), incarnation }).unwrap();
    }

    /// Asks until sets can be used, making those that are asked for.
    fn place(&mut self) -> Result<Vec<Vec<NodeId>>, OpError> {
        for _ in 0..3 {
            let mut state = 0.0;
            let mut draw = move || {
                state = (state + 0.37) % 1.0;
                state
            };
            match place(&self.members, &SpreadSelector, &self.policy, &self.excluded, SIZE, &mut draw, 8)? {
                Placement::Use(picked) => {
                    let nodes = |set: &ReplicaSetId| self.members.sets[set].members.nodes().collect();
                    return Ok(picked.iter().map(nodes).collect());
                }
                Placement::Make(sets) => {
                    let epoch = self.members.epoch + 1;
                    let first = self.members.sets.len() as u64 + 1;
                    let rows = (first..).zip(sets).map(|(id, nodes)| ReplicaSet {
                        id: ReplicaSetId::new(id).unwrap(),
                        members: SetMembers::active(nodes),
                        replicas: self.policy.replicas,
                        min_replicas: self.policy.min_replicas,
                        epoch,
                    });
                    let rows = rows.collect();
                    self.members.add_sets(rows, epoch);
                }
            }
        }
        panic!("sets are made without end");
    }
}

#[test]
fn three_datanodes_give_one_set_for_each_rotation() {
    let mut bench = Bench::new(&[50 * GIB; 3]);
    let mut leaders: Vec<_> = bench.place().unwrap().iter().map(|set| set[0]).collect();
    leaders.sort_unstable();
    assert_eq!(leaders, [node(1), node(2), node(3)]);
    assert_eq!(bench.members.sets.len(), 3);
    bench.place().unwrap();
    assert_eq!(bench.members.sets.len(), 3, "and no more");
}

#[test]
fn two_of_three_datanodes_still_take_writes_on_the_same_sets() {
    let mut bench = Bench::new(&[50 * GIB; 3]);
    bench.place().unwrap();
    bench.down(2);
    assert_eq!(bench.place().unwrap().len(), 3);
    assert_eq!(bench.members.sets.len(), 3);
    bench.down(3);
    let error = bench.place().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.to_string(), "2 datanodes are needed, 1 is up");
}

#[test]
fn short_sets_are_left_when_more_datanodes_join() {
    let mut bench = Bench::new(&[50 * GIB; 2]);
    assert!(bench.place().unwrap().iter().all(|set| set.len() == 2));
    let short = std::mem::replace(&mut bench, Bench::new(&[50 * GIB; 3])).members.sets;
    bench.members.add_sets(short.into_values().collect(), 2);
    assert!(bench.place().unwrap().iter().all(|set| set.len() == 3));
}

#[test]
fn a_fourth_datanode_replaces_one_that_is_down() {
    let mut bench = Bench::new(&[50 * GIB; 4]);
    bench.place().unwrap();
    bench.down(1);
    let sets = bench.place().unwrap();
    assert!(!sets.is_empty() && sets.iter().all(|set| set.len() == 3 && !set.contains(&node(1))), "{sets:?}");
}

#[test]
fn full_datanodes_give_no_space_and_excluded_ones_are_avoided() {
    let mut bench = Bench::new(&[50 * GIB, 50 * GIB, GIB]);
    assert!(bench.place().unwrap().iter().all(|set| !set.contains(&node(3))));
    let mut bench = Bench::new(&[50 * GIB, GIB, GIB]);
    assert_eq!(bench.place().unwrap_err().kind(), ErrorKind::NoSpace);
    let mut bench = Bench::new(&[5 * GIB; 3]);
    bench.place().unwrap();
    bench.excluded = BTreeSet::from([node(1), node(2)]);
    assert_eq!(bench.place().unwrap_err().kind(), ErrorKind::NoSpace, "they were excluded for lack of room");
    let mut bench = Bench::new(&[50 * GIB; 3]);
    bench.excluded = BTreeSet::from([node(1), node(2)]);
    assert_eq!(bench.place().unwrap_err().kind(), ErrorKind::Unavailable);
}

proptest! {
    #[test]
    fn whatever_is_up_a_placement_can_be_written(
        count in 1usize..9, replicas in 1u32..5, down in proptest::collection::btree_set(1u128..9, 0..5),
    ) {
        let mut bench = Bench::new(&vec![50 * GIB; count]);
        bench.policy.replicas = replicas;
        bench.policy.min_replicas = replicas.min(2);
        let min = bench.policy.min_replicas as usize;
        if let Ok(sets) = bench.place() {
            prop_assert!(sets.iter().all(|set| set.len() == count.min(replicas as usize)));
        }
        for &number in down.iter().filter(|&&number| number <= count as u128) {
            bench.down(number);
        }
        let up = (1..=count as u128).filter(|&number| bench.members.is_up(node(number))).count();
        match bench.place() {
            Ok(sets) => for set in sets {
                let live = set.iter().filter(|&&node| bench.members.is_up(node)).count();
                prop_assert!(live >= min && live == up.min(replicas as usize), "{live} of {up} up");
            },
            Err(error) => prop_assert!(up < min, "{error} with {up} up"),
        }
    }
}
