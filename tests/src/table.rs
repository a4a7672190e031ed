//! Tables of bad input: each row is sent in a session of its own and has to be told its error; afterwards
//! everybody else is served on, in bounded memory, and nothing has panicked.

use std::time::Duration;

use cairn_proto::{ErrorKind, WireError, wire_error_of};

use crate::{Cluster, MIB, Wire};

/// How much more memory a process may hold after all of it.
const GROWTH_MAX: u64 = 96 << 20;

type Run = Box<dyn FnOnce(&Wire) -> Result<(), WireError>>;

/// One bad input: what it is, what may be told, and how to send it.
pub struct Row(String, &'static [ErrorKind], Run);

pub fn row(
    what: impl Into<String>,
    expected: &'static [ErrorKind],
    run: impl FnOnce(&Wire) -> Result<(), WireError> + 'static,
) -> Row {
    Row(what.into(), expected, Box::new(run))
}

/// Sends every row with a session of its own, and sees that the services live.
#[track_caller]
pub fn check(cluster: &mut Cluster, rows: Vec<Row>) {
    let before = memory(cluster);
    let mut wrong = Vec::new();
    assert!(!rows.is_empty());
    for Row(what, expected, run) in rows {
        let wire = cluster.wire();
        match run(&wire) {
            Ok(()) => wrong.push(format!("{what}: accepted")),
            Err(error) if !expected.contains(&error.kind) => {
                wrong.push(format!("{what}: told {:?} ({error}), expected {expected:?}", error.kind));
            }
            Err(_) => {}
        }
        wire.goodbye();
    }
    for line in &wrong {
        eprintln!("{line}");
    }
    all_is_well(cluster, before);
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

pub fn memory(cluster: &mut Cluster) -> Vec<u64> {
    let mut memory = vec![cluster.coordinator_process().resident()];
    memory.extend((0..cluster.nodes()).map(|index| cluster.node_process(index).resident()));
    memory
}

/// Every process runs and serves, with no more memory than before, and none has panicked.
#[track_caller]
pub fn all_is_well(cluster: &mut Cluster, before: Vec<u64>) {
    let wire = cluster.wire();
    let name =
        format!("well-{}", wire.next_id().session.iter().map(|b| format!("{b:02x}")).collect::<String>());
    let wire = cluster.wire();
    let inode = wire.create(&name);
    wire.upload(inode, 1, 3 * MIB + 5, MIB);
    wire.check_replicas(inode, 1, 3 * MIB + 5, 3);
    for (before, after) in before.into_iter().zip(memory(cluster)) {
        assert!(after < before + GROWTH_MAX, "memory grew from {before} to {after} bytes");
    }
    let mut logs = vec![cluster.coordinator_process().log()];
    logs.extend((0..cluster.nodes()).map(|index| cluster.node_process(index).log()));
    for log in logs {
        let panic = log.lines().find(|line| line.contains("panicked at"));
        assert_eq!(panic, None, "a server panicked");
    }
}

/// How a stream of answers ended: its error; none when it goes on for a while.
pub fn first_error(
    wire: &Wire,
    answers: impl Future<Output = Result<(), tonic::Status>>,
) -> Result<(), WireError> {
    let limited = async { tokio::time::timeout(Duration::from_secs(5), answers).await };
    match wire.block_on(limited) {
        Ok(result) => result.map_err(|status| wire_error_of(&status)),
        Err(_) => Ok(()),
    }
}
