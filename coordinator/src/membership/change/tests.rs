//! Changes of sets against every history of datanodes that fits in a test.

use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::super::selector::SpreadSelector;
use super::super::state::Timing;
use super::*;
use crate::store::{Datanode, Labels, Members as SetMembers};

const TIMING: Timing = Timing {
    suspect_after: Duration::from_secs(3),
    down_after: Duration::from_secs(10),
    lost_after: Duration::from_secs(600),
};
const CAPACITY: u64 = 1 << 40;

fn node(number: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(number))
}

fn set_id(number: u64) -> ReplicaSetId {
    ReplicaSetId::new(number).unwrap()
}

/// A cluster of which the standing of each datanode is set by hand.
struct Trial {
    members: Members,
}

impl Trial {
    fn new(nodes: u128, sets: &[&[u128]]) -> Self {
        let row = |number: u128| Datanode {
            id: node(number),
            address: format!("127.0.0.1:{number}"),
            metrics_address: String::new(),
            labels: Labels::default(),
            capacity: CAPACITY,
            used: 0,
            version: String::new(),
            last_seen_ns: 0,
            admin: AdminState::In,
        };
        let set = |(index, members): (usize, &&[u128])| ReplicaSet {
            id: set_id(index as u64 + 1),
            members: SetMembers::active(members.iter().map(|&number| node(number))),
            replicas: 3,
            min_replicas: 2,
            epoch: 1,
        };
        let sets = sets.iter().enumerate().map(set).collect();
        let members = {
            let now = crate::attendance::Moment::default();
            Members::new(TIMING, (1..=nodes).map(row).collect(), sets, 1, now)
        };
        let mut trial = Self { members };
        (1..=nodes).for_each(|number| trial.stand(number, NodeState::Up));
        trial
    }

    fn stand(&mut self, number: u128, state: NodeState) {
        if let Some(entry) = self.members.nodes.get_mut(&node(number)) {
            entry.state = state;
        }
    }

    fn admin(&mut self, number: u128, admin: AdminState) {
        self.members.set_admin(node(number), admin);
    }

    /// Applies what is due once; whether anything was.
    fn settle(&mut self) -> bool {
        let changes = settle(&self.members, &SpreadSelector, 100);
        for change in &changes {
            let set = self.members.sets.get_mut(&change.set).unwrap();
            set.members = SetMembers(change.members.clone());
        }
        !changes.is_empty()
    }

    /// Repair fills the first member that waits and can be filled; whether there was one.
    fn fill(&mut self) -> bool {
        let up = |members: &Members, node| members.is_up(node);
        let sets: Vec<_> = self.members.sets.keys().copied().collect();
        for id in sets {
            let set = self.members.sets[&id].clone();
            let source = set.members.0.iter().any(|m| holds_all(m.state) && up(&self.members, m.node));
            let waits = set
                .members
                .0
                .iter()
                .position(|m| m.state == MemberState::Backfilling && up(&self.members, m.node));
            if let (true, Some(index)) = (source, waits) {
                let set = self.members.sets.get_mut(&id).unwrap();
                set.members.0[index].state = MemberState::Active;
                return true;
            }
        }
        false
    }

    /// Settles and fills until nothing changes any more.
    fn rest(&mut self) {
        for _ in 0..1000 {
            let settled = self.settle();
            if !self.fill() && !settled {
                return;
            }
        }
        panic!("changes without end: {:?}", self.members.sets);
    }

    fn states(&self, set: u64) -> Vec<(u128, MemberState)> {
        let members = &self.members.sets[&set_id(set)].members.0;
        members.iter().map(|member| (member.node.as_uuid().as_u128(), member.state)).collect()
    }
}

use MemberState::{Active, Backfilling, Leaving, Lost};

#[test]
fn a_lost_datanode_is_replaced_and_goes_once_another_has_all() {
    let mut trial = Trial::new(4, &[&[1, 2, 3]]);
    trial.stand(2, NodeState::Down);
    assert!(!trial.settle(), "a datanode that is down may come back");
    trial.stand(2, NodeState::Lost);
    assert!(trial.settle());
    assert_eq!(trial.states(1), [(1, Active), (2, Lost), (3, Active), (4, Backfilling)]);
    assert!(!trial.settle());
    assert!(trial.fill());
    trial.settle();
    assert_eq!(trial.states(1), [(1, Active), (3, Active), (4, Active)]);
}

#[test]
fn a_datanode_that_returns_is_filled_up_and_not_replaced() {
    let mut trial = Trial::new(3, &[&[1, 2, 3]]);
    trial.stand(2, NodeState::Lost);
    trial.settle();
    assert_eq!(trial.states(1), [(1, Active), (2, Lost), (3, Active)], "nobody is there to replace it");
    trial.stand(2, NodeState::Up);
    trial.settle();
    assert_eq!(trial.states(1), [(1, Active), (2, Backfilling), (3, Active)]);
    trial.rest();
    assert_eq!(trial.states(1), [(1, Active), (2, Active), (3, Active)]);
}

#[test]
fn the_last_that_hold_everything_are_never_given_up() {
    let mut trial = Trial::new(3, &[&[1, 2, 3]]);
    (1..=3).for_each(|number| trial.stand(number, NodeState::Lost));
    assert!(!trial.settle());
    assert_eq!(trial.states(1), [(1, Active), (2, Active), (3, Active)]);
}

#[test]
fn a_set_whose_members_were_all_removed_gets_new_ones() {
    let mut trial = Trial::new(5, &[&[1, 2, 3]]);
    (1..=3).for_each(|number| trial.admin(number, AdminState::Out));
    assert!(trial.settle());
    let states = trial.states(1);
    assert_eq!(states[..3], [(1, Lost), (2, Lost), (3, Lost)]);
    assert_eq!(states[3..], [(4, Backfilling), (5, Backfilling)]);
}

#[test]
fn a_drained_datanode_leaves_when_its_place_is_filled() {
    let mut trial = Trial::new(4, &[&[1, 2, 3]]);
    trial.admin(1, AdminState::Draining);
    trial.settle();
    assert_eq!(trial.states(1), [(1, Leaving), (2, Active), (3, Active), (4, Backfilling)]);
    trial.rest();
    assert_eq!(trial.states(1), [(2, Active), (3, Active), (4, Active)]);
}

#[test]
fn a_member_that_was_being_moved_stays_when_another_is_lost() {
    let mut trial = Trial::new(4, &[&[1, 2, 3]]);
    let set = trial.members.sets.get_mut(&set_id(1)).unwrap();
    set.members.0[2].state = MemberState::Leaving;
    set.members.0.push(Member { node: node(4), state: MemberState::Backfilling });
    trial.stand(1, NodeState::Lost);
    trial.rest();
    let mut held: Vec<_> = trial.members.sets[&set_id(1)].members.0.clone();
    held.sort_by_key(|member| member.node);
    let active = |number| Member { node: node(number), state: MemberState::Active };
    assert_eq!(held, [active(2), active(3), active(4)]);
    // What an operator wants to be empty does not.
    trial.admin(3, AdminState::Draining);
    trial.stand(2, NodeState::Lost);
    trial.rest();
    let state = trial.members.sets[&set_id(1)].members.0.iter().find(|m| m.node == node(3)).unwrap().state;
    assert_eq!(state, MemberState::Leaving);
}

#[test]
fn a_member_leaves_only_while_the_others_are_up() {
    let mut trial = Trial::new(4, &[&[1, 2, 3]]);
    trial.admin(1, AdminState::Draining);
    trial.settle();
    trial.fill();
    trial.stand(2, NodeState::Down);
    trial.settle();
    assert_eq!(trial.states(1), [(1, Leaving), (2, Active), (3, Active), (4, Active)]);
}

#[test]
fn short_sets_grow_when_datanodes_join() {
    let mut trial = Trial::new(3, &[&[1, 2]]);
    trial.rest();
    assert_eq!(trial.states(1), [(1, Active), (2, Active), (3, Active)]);
}

#[test]
fn use_is_evened_out_and_nothing_moves_back() {
    let mut trial = Trial::new(4, &[&[1, 2, 3], &[2, 3, 1], &[3, 1, 2], &[1, 3, 2]]);
    let bytes: BTreeMap<_, _> = (1..=4).map(|set| (set_id(set), CAPACITY / 10)).collect();
    let mut moves = 0;
    let mut apart = REBALANCE_START;
    while let Some(wish) = rebalance(&trial.members, &bytes, apart) {
        apart = REBALANCE_STOP;
        moves += 1;
        assert!(moves < 10, "moves without end");
        assert_eq!(wish.to, node(4), "only the empty one gets anything");
        let set = trial.members.sets.get_mut(&wish.set).unwrap();
        set.members.0.iter_mut().filter(|m| m.node == wish.from).for_each(|m| m.state = Leaving);
        set.members.0.push(Member { node: wish.to, state: Backfilling });
        trial.rest();
    }
    assert!(moves >= 2, "{moves} moves");
    assert_eq!(rebalance(&trial.members, &bytes, REBALANCE_START), None);
}

#[derive(Debug, Clone)]
enum Step {
    Stand(u128, u8),
    Admin(u128, bool),
    Settle,
    Fill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..=6u128, 0..4u8).prop_map(|(node, state)| Step::Stand(node, state)),
        1 => (1..=6u128, any::<bool>()).prop_map(|(node, drain)| Step::Admin(node, drain)),
        3 => Just(Step::Settle),
        2 => Just(Step::Fill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn whatever_datanodes_do_sets_keep_a_holder_and_become_whole(steps in prop::collection::vec(step(), 1..60)) {
        let mut trial = Trial::new(6, &[&[1, 2, 3], &[2, 3, 4], &[5, 6, 1]]);
        for step in &steps {
            match *step {
                Step::Stand(number, state) => {
                    let states = [NodeState::Up, NodeState::Suspect, NodeState::Down, NodeState::Lost];
                    trial.stand(number, states[usize::from(state)]);
                }
                Step::Admin(number, drain) => {
                    trial.admin(number, if drain { AdminState::Draining } else { AdminState::In });
                }
                Step::Settle => drop(trial.settle()),
                Step::Fill => drop(trial.fill()),
            }
            for set in trial.members.sets.values() {
                let holders = set.members.0.iter().filter(|member| holds_all(member.state)).count();
                prop_assert!(holders >= 1, "nobody holds all: {set:?}");
                prop_assert!(set.members.0.len() <= 9, "{set:?}");
                let mut nodes: Vec<_> = set.members.nodes().collect();
                nodes.sort_unstable();
                nodes.dedup();
                prop_assert_eq!(nodes.len(), set.members.0.len(), "a member twice");
            }
        }
        for number in 1..=6 {
            trial.stand(number, NodeState::Up);
            trial.admin(number, AdminState::In);
        }
        // As the operation does that takes draining back.
        for set in trial.members.sets.values_mut() {
            set.members.0.iter_mut().filter(|m| m.state == Leaving).for_each(|m| m.state = Active);
        }
        trial.rest();
        for set in trial.members.sets.values() {
            let active = set.members.0.iter().filter(|member| member.state == Active).count();
            prop_assert_eq!((active, set.members.0.len()), (3, 3), "{:?}", set);
        }
    }
}
