//! Measures a coordinator alone: creates, look-ups and listings per second over gRPC on loopback.
//!
//! `cargo run --release -p cairn-coordinator --example load -- [callers] [seconds] [batch]`
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairn_coordinator::{CoordinatorConfig, start};
use cairn_proto::listing::Entries;
use cairn_proto::v1;
use cairn_proto::v1::coordinator_client::CoordinatorClient;
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::{clock, net};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

type Client = CoordinatorClient<Channel>;

fn create(parent: u64, name: String, kind: v1::InodeKind) -> v1::Mutation {
    let op =
        v1::Create { parent, name: name.into(), kind: kind.into(), mode: 0o755, ..v1::Create::default() };
    v1::Mutation { op: Some(v1::mutation::Op::Create(op)), ..v1::Mutation::default() }
}

struct Load {
    client: Client,
    session: Bytes,
}

impl Load {
    async fn apply(
        &mut self,
        slot: u32,
        sequence: u64,
        mutations: Vec<v1::Mutation>,
    ) -> Vec<v1::MutationResult> {
        let id = Some(v1::RequestId { session: self.session.clone(), slot, sequence });
        let credentials = Some(v1::Credentials::default());
        let request = v1::ApplyRequest { id, mutations, credentials, ..v1::ApplyRequest::default() };
        self.client.apply(request).await.unwrap().into_inner().results
    }
}

async fn measure<F, Fut>(what: &str, callers: u32, time: Duration, each: u64, call: F)
where
    F: Fn(u32, u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let done = Arc::new(AtomicU64::new(0));
    let began = clock::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (call, done) = (call.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut round = 0;
                while began.elapsed() < time {
                    call(caller, round).await;
                    round += 1;
                    done.fetch_add(each, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{what:24} {callers:4} callers {:10.0}/s", done.load(Ordering::Relaxed) as f64 / seconds);
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let arguments: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let argument = |index: usize, default| arguments.get(index).copied().unwrap_or(default);
    let callers = u32::try_from(argument(0, 16)).unwrap();
    let time = Duration::from_secs(argument(1, 2));
    let batch = argument(2, 100);
    let directory = tempfile::tempdir().unwrap();
    let shutdown = Shutdown::new();
    let config = CoordinatorConfig {
        listen: "127.0.0.1:0".into(),
        data: directory.path().join("meta"),
        lease: Duration::from_secs(600),
        garbage_grace: Duration::from_secs(1200),
        ..CoordinatorConfig::default()
    };
    let running = start(config, shutdown.clone()).await.unwrap();
    let mut client: Client = CoordinatorClient::new(net::connect(&running.address.to_string()).unwrap());
    let hello = v1::session_request::Message::Hello(v1::ClientHello::default());
    let first = v1::SessionRequest { message: Some(hello) };
    let requests = tokio_stream::iter([first]).chain(tokio_stream::pending());
    let mut answers = client.session(requests).await.unwrap().into_inner();
    let Some(v1::session_response::Message::Welcome(welcome)) =
        answers.message().await.unwrap().unwrap().message
    else {
        return;
    };
    let session = welcome.session;
    let load = |client: &Client| Load { client: client.clone(), session: session.clone() };
    let mut setup = load(&client);
    let mut dirs = Vec::new();
    for caller in 0..=callers {
        let made = setup.apply(
            200,
            u64::from(caller) + 1,
            vec![create(1, format!("d{caller}"), v1::InodeKind::Directory)],
        );
        dirs.push(made.await[0].attr.as_ref().unwrap().inode);
    }
    let dirs = Arc::new(dirs);
    let next: Arc<Vec<AtomicU64>> = Arc::new((0..=callers).map(|_| AtomicU64::new(1)).collect());
    let make = {
        let (client, session, dirs, next) =
            (client.clone(), session.clone(), Arc::clone(&dirs), Arc::clone(&next));
        move |caller: u32, count: u64| {
            let mut load = Load { client: client.clone(), session: session.clone() };
            let dir = dirs[caller as usize];
            let sequence = next[caller as usize].fetch_add(1, Ordering::Relaxed);
            let names = (0..count).map(move |i| create(dir, format!("{sequence}.{i}"), v1::InodeKind::File));
            async move {
                let results = load.apply(caller, sequence, names.collect()).await;
                assert!(results.iter().all(|result| result.error == 0), "{:?}", results.first());
            }
        }
    };
    let single = make.clone();
    measure("create, lone", 1, time, 1, move |caller, _| single(caller, 1)).await;
    let single = make.clone();
    measure("create", callers, time, 1, move |caller, _| single(caller, 1)).await;
    measure("create in batches", callers, time, batch, move |caller, _| make(caller, batch)).await;
    let look = {
        let (client, dirs) = (client.clone(), Arc::clone(&dirs));
        move |caller: u32, _| {
            let mut client = client.clone();
            let credentials = Some(v1::Credentials::default());
            let request = v1::LookupRequest {
                parent: dirs[caller as usize],
                name: "1.0".into(),
                credentials,
                session: Bytes::new(),
            };
            async move { drop(client.lookup(request).await.unwrap()) }
        }
    };
    measure("lookup, lone", 1, time, 1, look.clone()).await;
    measure("lookup", callers, time, 1, look).await;
    for attributes in [false, true] {
        let mut entries = 0u64;
        let began = clock::now();
        for &inode in dirs.iter() {
            let mut after = 0;
            loop {
                let request = v1::ReadDirRequest {
                    inode,
                    after,
                    limit: 65_536,
                    attributes,
                    ..v1::ReadDirRequest::default()
                };
                let page = client.read_dir(request).await.unwrap().into_inner();
                let listed = Entries::decode(&page.entries).unwrap();
                entries += listed.len() as u64;
                after = listed.last_cookie().unwrap_or(after);
                if page.end {
                    break;
                }
            }
        }
        let rate = entries as f64 / began.elapsed().as_secs_f64();
        println!("readdir, attributes {attributes:5} {entries:8} entries {rate:10.0}/s");
    }
    shutdown.request();
    running.wait().await.unwrap();
}
