use super::*;
use crate::store::{AdminState, Labels};

const TIMING: Timing = Timing {
    suspect_after: Duration::from_secs(3),
    down_after: Duration::from_secs(10),
    lost_after: Duration::from_secs(600),
};

fn node(number: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(number))
}

fn row(number: u128) -> Datanode {
    Datanode {
        id: node(number),
        address: format!("host{number}:7080"),
        metrics_address: String::new(),
        labels: Labels::default(),
        capacity: 100,
        used: 0,
        version: String::new(),
        last_seen_ns: 0,
        admin: AdminState::In,
    }
}

fn registered(number: u128, incarnation: u128, now: Moment) -> Event {
    let incarnation = Uuid::from_u128(incarnation);
    Event::Registered { row: row(number), incarnation, report: Report::default(), now, now_ns: 0 }
}

fn beat(number: u128, incarnation: u128, stream: u64, now: Moment) -> Event {
    let incarnation = Uuid::from_u128(incarnation);
    Event::Beat { node: node(number), incarnation, stream, report: Report::default(), now, now_ns: 0 }
}

fn members(now: Moment) -> Members {
    Members::new(TIMING, vec![row(1)], vec![], 1, now)
}

fn deadline(now: Moment) -> Event {
    Event::Deadline { now, resumed: Moment::default() }
}

fn state(members: &Members, number: u128) -> NodeState {
    members.nodes[&node(number)].state
}

#[test]
fn silence_makes_suspect_then_down_then_lost_and_a_heartbeat_up_again() {
    let start = Moment::default();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut members = members(start);
    assert_eq!(state(&members, 1), NodeState::Suspect, "known from the store alone");
    members.apply(registered(1, 1, at(0))).unwrap();
    assert_eq!(state(&members, 1), NodeState::Up);
    assert_eq!(members.next_deadline(), Some(at(3)));
    members.apply(deadline(at(2))).unwrap();
    assert_eq!(state(&members, 1), NodeState::Up);
    let revision = members.revision;
    members.apply(deadline(at(3))).unwrap();
    assert_eq!((state(&members, 1), members.revision), (NodeState::Suspect, revision + 1));
    members.apply(deadline(at(10))).unwrap();
    assert_eq!((state(&members, 1), members.next_deadline()), (NodeState::Down, Some(at(600))));
    members.apply(deadline(at(600))).unwrap();
    assert_eq!((state(&members, 1), members.next_deadline()), (NodeState::Lost, None));
    members.apply(beat(1, 1, 1, at(11))).unwrap();
    assert_eq!(state(&members, 1), NodeState::Up);
}

#[test]
fn after_a_pause_of_the_coordinator_everybody_has_the_whole_time_again() {
    let at = |seconds| Moment::default() + Duration::from_secs(seconds);
    let mut members = members(at(0));
    members.apply(registered(1, 1, at(0))).unwrap();
    members.apply(Event::Deadline { now: at(3), resumed: at(3) }).unwrap();
    assert_eq!((state(&members, 1), members.next_deadline()), (NodeState::Up, Some(at(6))));
    members.apply(Event::Deadline { now: at(6), resumed: at(3) }).unwrap();
    assert_eq!((state(&members, 1), members.next_deadline()), (NodeState::Suspect, Some(at(13))));
    members.apply(Event::Deadline { now: at(13), resumed: at(12) }).unwrap();
    assert_eq!(state(&members, 1), NodeState::Suspect);
}

#[test]
fn heartbeats_alone_do_not_change_the_map() {
    let now = Moment::default();
    let mut members = members(now);
    members.apply(registered(1, 1, now)).unwrap();
    let revision = members.revision;
    for _ in 0..5 {
        members.apply(beat(1, 1, 1, now)).unwrap();
    }
    assert_eq!(members.revision, revision);
}

#[test]
fn a_second_process_with_the_same_id_is_refused_while_the_first_lives() {
    let now = Moment::default();
    let mut members = members(now);
    members.apply(registered(1, 1, now)).unwrap();
    members.apply(beat(1, 1, 1, now)).unwrap();
    assert_eq!(members.apply(registered(1, 2, now)).unwrap_err().kind(), ErrorKind::Busy);
    // Its stream has broken: the process was restarted.
    members.apply(Event::StreamLost { node: node(1), stream: 1, now }).unwrap();
    assert_eq!(state(&members, 1), NodeState::Suspect);
    members.apply(registered(1, 2, now)).unwrap();
    assert_eq!(members.apply(beat(1, 1, 3, now)).unwrap_err().kind(), ErrorKind::Busy);
    members.apply(beat(1, 2, 2, now)).unwrap();
    // The end of the old stream means nothing now.
    members.apply(Event::StreamLost { node: node(1), stream: 1, now }).unwrap();
    assert_eq!(state(&members, 1), NodeState::Up);
}

#[test]
fn an_orderly_stop_counts_at_once() {
    let now = Moment::default();
    let mut members = members(now);
    members.apply(registered(1, 1, now)).unwrap();
    members.apply(beat(1, 1, 1, now)).unwrap();
    members.apply(Event::Leaving { node: node(1), incarnation: Uuid::from_u128(1) }).unwrap();
    assert_eq!(state(&members, 1), NodeState::Down);
    members.apply(registered(1, 2, now)).unwrap();
    assert_eq!(state(&members, 1), NodeState::Up);
}

#[test]
fn a_stranger_must_register_first() {
    let now = Moment::default();
    assert_eq!(members(now).apply(beat(9, 1, 1, now)).unwrap_err().kind(), ErrorKind::NotFound);
}
