//! Prints what three datanodes in this process take: streams of 8 MiB chunks, and small chunks one
//! after another. `cargo run --release -p cairn-datanode --example throughput [GiB]`; `CAIRN_TEST_DIR` names
//! the directory of the data.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use cairn_proto::v1::StoreHeader;
use cairn_runtime::clock;
use common::{Cluster, content, frames, retrieve};

const CHUNK: usize = 8 << 20;
/// Chunks that are under way at once.
const WINDOW: u64 = 4;

fn resident_mib() -> u64 {
    #[allow(clippy::disallowed_methods)] // a figure of this process, not data
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[tokio::main]
async fn main() {
    let gib: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let cluster = Cluster::start(3).await;
    let data = content(1, CHUNK);
    let chunks = gib * 1024 / 8;

    let mut stream = cluster.stream(0).await;
    let started = clock::now();
    let template = frames(1, cluster.header(CHUNK as u64), &data);
    for chunk in 1..=chunks {
        if chunk > WINDOW {
            let ack = stream.ack().await;
            assert!(ack.stored && ack.stored_by.len() == 3, "{ack:?}");
        }
        for frame in &template {
            let mut frame = frame.clone();
            frame.chunk = chunk;
            stream.send(frame).await;
        }
    }
    for _ in 0..WINDOW.min(chunks) {
        assert!(stream.ack().await.stored);
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("store: {:.0} MiB/s of user data on 3 replicas ({gib} GiB)", gib as f64 * 1024.0 / seconds);
    println!("peak resident memory of all nodes and the client: {} MiB", resident_mib());

    let started = clock::now();
    for chunk in 1..=chunks.min(128) {
        let mut client = cluster.client((chunk % 3) as usize);
        assert_eq!(retrieve(&mut client, chunk, 0, CHUNK as u64).await.unwrap().1.len(), CHUNK);
    }
    let read = chunks.min(128) as f64 * 8.0;
    println!("retrieve: {:.0} MiB/s, one at a time", read / started.elapsed().as_secs_f64());

    for sync in [false, true] {
        let small = content(2, 4096);
        let rounds = if sync { 300 } else { 2000 };
        let started = clock::now();
        for round in 0..rounds {
            let chunk = 1_000_000 + u64::from(sync) * 10_000 + round;
            let header = StoreHeader { sync, ..cluster.header(4096) };
            assert!(stream.store(chunk, header, &small).await.stored);
        }
        let each = started.elapsed().as_secs_f64() * 1e6 / rounds as f64;
        println!("4 KiB chunk, sync {sync}: {each:.0} µs each, one at a time");
    }
}
