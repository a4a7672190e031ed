//! The last word: a new client and the datanodes themselves are asked, and compared with what the
//! model and the metadata say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::fs::{Files, Last};
use cairn_client::{Caller, Client, Kind};
use cairn_coordinator::sim::{ChunkFacts, Metadata};
use cairn_proto::checksum::crc32c;
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::v1::{NodeAction, NodeState, RetrieveChunkRequest, ScrubRequest};
use cairn_proto::{NodeId, limits::MESSAGE_SIZE_MAX};
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::{clock, net};

use crate::fleet::{self, Standing};
use crate::knobs::{Knobs, datanode_address};
use crate::model::{FileModel, Names, Node};
use crate::world::Shared;

/// A healed cluster answers within this time.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Before all is as it should be, a file is not waited for longer.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(2);
/// The same for one that was never synced.
const UNSYNCED_ANSWER_MAX: Duration = Duration::from_secs(20);
/// Full redundancy is back within this time.
const HEAL_MAX: Duration = Duration::from_secs(240);
/// A scrub of a store of this size is done within this time.
const SCRUB_MAX: Duration = Duration::from_secs(60);
const FILE_MAX: u64 = 64 << 20;

/// Judges, and leaves what it found in the world.
pub(crate) async fn judge(shared: Shared, knobs: Knobs, metadata: Metadata) {
    let shutdown = Shutdown::new();
    let client = loop {
        match Client::connect(knobs.client(), "judge".into(), &shutdown).await {
            Ok(client) => break client,
            Err(error) if clock::now().elapsed() > ANSWER_MAX => {
                shared.violation(format_args!("the healed cluster takes no client: {error}"));
                return;
            }
            Err(_) => clock::sleep(Duration::from_millis(200)).await,
        }
    };
    let nodes = nodes(&shared, &client).await;
    // First as things are, when only wrong bytes are wrong; then by a client that knows nothing of it.
    judge_files(&shared, &client, Judged::Bytes).await;
    let _ = client.close().await;
    let client = match Client::connect(knobs.client(), "judge".into(), &shutdown).await {
        Ok(client) => client,
        Err(error) => return shared.violation(format_args!("the healed cluster takes no client: {error}")),
    };
    scrub(&shared, &nodes).await;
    wait_for_redundancy(&shared, &metadata, &nodes).await;
    remove_drained(&shared).await;
    judge_files(&shared, &client, Judged::All).await;
    judge_chunks(&shared, &metadata, &nodes).await;
    if let Err(error) = client.close().await {
        shared.violation(format_args!("the judge's client can not close: {error}"));
    }
    shutdown.drain().await;
    shared.with(|world| world.judged = true);
}

/// Names of the datanodes that stand so.
fn standing(shared: &Shared, wanted: Standing) -> Vec<String> {
    let standings = shared.with(|world| world.standings.clone());
    let fitting = standings.iter().enumerate().filter(|(_, standing)| **standing == wanted);
    fitting.map(|(index, _)| format!("d{index}")).collect()
}

/// When all is stored as often as it is to be, what was drained is empty, and can be removed.
async fn remove_drained(shared: &Shared) {
    for name in standing(shared, Standing::Leaves) {
        shared.with(|world| world.removed.insert(name.clone()));
        let deadline = clock::now() + HEAL_MAX;
        let address = datanode_address(&name);
        loop {
            match fleet::ask(&address, true, NodeAction::Remove, false).await {
                Ok(()) => break shared.event(format_args!("{name} is removed")),
                Err(error) if clock::now() > deadline => {
                    break shared
                        .violation(format_args!("{name} was drained; it can not be removed: {error}"));
                }
                Err(_) => clock::sleep(Duration::from_millis(500)).await,
            }
        }
    }
}

/// Addresses of the datanodes that serve, by id.
async fn nodes(shared: &Shared, client: &Arc<Client>) -> BTreeMap<NodeId, String> {
    let known: BTreeSet<String> =
        standing(shared, Standing::Serves).iter().map(|name| datanode_address(name)).collect();
    let deadline = clock::now() + ANSWER_MAX;
    loop {
        let listed = client.coordinator().list_nodes().await.unwrap_or_default();
        let nodes: BTreeMap<NodeId, String> = listed
            .nodes
            .into_iter()
            .filter(|node| node.state() == NodeState::Up)
            .filter_map(|node| Some((NodeId::from_wire(&node.node).ok()?, node.address)))
            .filter(|(_, address)| known.contains(address))
            .collect();
        if nodes.len() == known.len() || clock::now() > deadline {
            return nodes;
        }
        clock::sleep(Duration::from_millis(300)).await;
    }
}

/// Lets every datanode look at every copy that it has.
async fn scrub(shared: &Shared, nodes: &BTreeMap<NodeId, String>) {
    for address in nodes.values() {
        let deadline = clock::now() + SCRUB_MAX;
        let mut start = true;
        while clock::now() < deadline {
            let request = ScrubRequest { start, bytes_per_second: 1 << 30 };
            let status = match connect(address) {
                Ok(mut node) => node.scrub(request).await.map(|answer| answer.into_inner().status),
                Err(error) => return shared.violation(format_args!("{address}: {error}")),
            };
            match status {
                Ok(Some(status)) if !start && !status.running => break,
                Ok(_) => start = false,
                Err(_) => {}
            }
            clock::sleep(Duration::from_millis(500)).await;
        }
        if clock::now() >= deadline {
            shared.violation(format_args!("{address} has not read its copies within {SCRUB_MAX:?}"));
        }
    }
}

fn connect(address: &str) -> Result<DataNodeClient<tonic::transport::Channel>, String> {
    let channel = net::connect(address).map_err(|error| error.to_string())?;
    Ok(DataNodeClient::new(channel).max_decoding_message_size(MESSAGE_SIZE_MAX))
}

/// What is wrong with the redundancy that metadata shows.
fn shortfall(metadata: &Metadata, nodes: &BTreeMap<NodeId, String>) -> Option<String> {
    let chunks = match metadata.chunks() {
        Ok(chunks) => chunks,
        Err(error) => return Some(format!("metadata can not be read: {error}")),
    };
    // What no datanode has is lost; whether it may be, the files tell.
    let short = chunks.iter().filter(|chunk| !chunk.holders.is_empty()).filter(|chunk| {
        let is_elsewhere = !chunk.holders.iter().all(|holder| nodes.contains_key(holder));
        chunk.holders.len() < chunk.replicas.min(nodes.len()) || !chunk.others.is_empty() || is_elsewhere
    });
    let short: Vec<&ChunkFacts> = short.collect();
    let first = short.first()?;
    Some(format!("{} of {} chunks are short of copies, such as {first:?}", short.len(), chunks.len()))
}

async fn wait_for_redundancy(shared: &Shared, metadata: &Metadata, nodes: &BTreeMap<NodeId, String>) {
    let began = clock::now();
    loop {
        let Some(what) = shortfall(metadata, nodes) else {
            return shared.event(format_args!("redundancy is full after {:?}", began.elapsed()));
        };
        if began.elapsed() > HEAL_MAX {
            return shared.violation(format_args!("not healed after {HEAL_MAX:?}: {what}"));
        }
        clock::sleep(Duration::from_millis(500)).await;
    }
}

/// What is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judged {
    /// Bytes that are read must be right; that they can be read is not asked yet.
    Bytes,
    All,
}

async fn judge_files(shared: &Shared, client: &Arc<Client>, what: Judged) {
    let fs = Files::new(Arc::clone(client), Caller::root());
    type Snapshot = (String, Vec<Names>, bool, BTreeMap<u64, FileModel>);
    let areas: Vec<Snapshot> = shared.with(|world| {
        let areas = world.areas.iter().flatten();
        areas
            .map(|area| {
                let may_be_gone = !area.rooted && (area.closed || area.names.is_empty());
                (area.root.clone(), area.possible_names(), may_be_gone, area.files.clone())
            })
            .collect()
    });
    for (index, (root, possible, may_be_gone, files)) in areas.iter().enumerate() {
        let listed = match list_tree(&fs, root).await {
            Ok(listed) => listed,
            // Its creation was the operation whose outcome is not known, or was lost with its client.
            Err(_) if *may_be_gone => continue,
            Err(error) => {
                shared.violation(format_args!("{root} can not be listed: {error}"));
                continue;
            }
        };
        let fits = |names: &&Names| {
            names.len() == listed.len()
                && names.iter().all(|(path, node)| listed.get(path) == Some(&(*node == Node::Directory)))
        };
        let fitting: Vec<&Names> = possible.iter().filter(fits).collect();
        if fitting.is_empty() {
            let found: Vec<&String> = listed.keys().collect();
            let expected: Vec<Vec<&String>> = possible.iter().map(|names| names.keys().collect()).collect();
            shared.violation(format_args!("{root} has {found:?}, none of {expected:?} (area {index})"));
            continue;
        }
        let model = |names: &Names, path: &String| match names.get(path) {
            Some(Node::File(id)) => files.get(id),
            _ => None,
        };
        let mut contents = BTreeMap::new();
        for (path, _) in listed.iter().filter(|(_, is_directory)| !**is_directory) {
            let durable = fitting.iter().any(|names| model(names, path).is_some_and(|model| model.durable));
            let full = format!("{root}/{path}");
            contents.insert(path, read_file(shared, &fs, &full, durable, what).await);
        }
        // The same names may have led to other files at another moment: all of one moment has to be right.
        let wrong = fitting.iter().map(|names| {
            let models = contents.iter().filter_map(|(path, read)| Some((path, model(names, path)?, read)));
            let wrong = models.filter_map(|(path, model, read)| {
                Some(format!("{root}/{path} {}", judge_file(model, read, what).err()?))
            });
            wrong.collect::<Vec<String>>()
        });
        let least = wrong.min_by_key(Vec::len).unwrap_or_default();
        least.iter().for_each(|wrong| shared.violation(format_args!("{wrong}")));
    }
}

/// What came of reading a file.
enum Content {
    Bytes(Bytes),
    Refused(String),
    NoAnswer,
}

async fn read_file(shared: &Shared, fs: &Files, path: &str, durable: bool, judged: Judged) -> Content {
    let limit = match judged {
        Judged::All if durable => ANSWER_MAX,
        // There may be many whose chunks are gone.
        Judged::All => UNSYNCED_ANSWER_MAX,
        Judged::Bytes => FIRST_ANSWER_MAX,
    };
    match clock::timeout(limit, fs.read_all(path, FILE_MAX)).await {
        Ok(Ok(data)) => {
            shared.event(format_args!("judge reads {path}: {}", data.len()));
            shared.with(|world| world.counts.read += 1);
            Content::Bytes(data)
        }
        Ok(Err(error)) => {
            shared.event(format_args!("judge can not read {path}: {:?}", error.kind()));
            Content::Refused(error.to_string())
        }
        Err(_) => {
            shared.event(format_args!("judge: {path} does not answer"));
            Content::NoAnswer
        }
    }
}

/// What is wrong with a file.
fn judge_file(model: &FileModel, read: &Content, judged: Judged) -> Result<(), String> {
    match read {
        Content::Bytes(data) => {
            model.check(data).map_err(|what| format!("(durable: {}): {what}", model.durable))
        }
        // What was never synced may be gone.
        _ if judged == Judged::Bytes || !model.durable => Ok(()),
        Content::Refused(error) => Err(format!("was synced and can not be read: {error}")),
        Content::NoAnswer => Err("was synced; its read does not end".into()),
    }
}

/// Paths below `root`, and whether each is a directory.
async fn list_tree(fs: &Files, root: &str) -> cairn_client::Result<BTreeMap<String, bool>> {
    let mut found = BTreeMap::new();
    fs.stat(root, Last::Follow).await?;
    let mut todo = vec![String::new()];
    while let Some(directory) = todo.pop() {
        for entry in fs.read_dir(format!("{root}/{directory}")).await? {
            let name = String::from_utf8_lossy(entry.name.as_bytes()).into_owned();
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            let is_directory = entry.kind == Kind::Directory;
            if is_directory {
                todo.push(path.clone());
            }
            found.insert(path, is_directory);
        }
    }
    Ok(found)
}

/// Every copy that metadata counts on is there and sound; those of chunks that were never made durable
/// may be gone everywhere.
async fn judge_chunks(shared: &Shared, metadata: &Metadata, nodes: &BTreeMap<NodeId, String>) {
    let chunks = match metadata.chunks() {
        Ok(chunks) => chunks,
        Err(error) => return shared.violation(format_args!("metadata can not be read: {error}")),
    };
    let mut bad = Vec::new();
    for chunk in &chunks {
        let mut wrong = Vec::new();
        for node in &chunk.holders {
            let address = nodes.get(node).map(String::as_str).unwrap_or_default();
            if let Err(what) = fetch_copy(chunk, address).await {
                wrong.push(format!("{address}: {what}"));
            }
        }
        if !wrong.is_empty() && wrong.len() < chunk.holders.len() {
            bad.push((chunk.id, wrong.join(", ")));
        }
    }
    // Repacked meanwhile, a chunk is garbage and goes.
    match metadata.chunks() {
        Ok(now) => bad.retain(|(id, _)| now.iter().any(|chunk| chunk.id == *id && chunk.is_used)),
        Err(error) => return shared.violation(format_args!("metadata can not be read: {error}")),
    }
    shared.event(format_args!("judge: {} chunks, {} with bad copies", chunks.len(), bad.len()));
    if let Some((first, what)) = bad.first() {
        shared.violation(format_args!(
            "{} of {} chunks have bad copies, such as chunk {first}: {what}",
            bad.len(),
            chunks.len()
        ));
    }
}

async fn fetch_copy(chunk: &ChunkFacts, address: &str) -> Result<(), String> {
    let mut node = connect(address)?;
    let request = RetrieveChunkRequest {
        chunk: chunk.id,
        set: chunk.set,
        offset: 0,
        length: chunk.length,
        ..RetrieveChunkRequest::default()
    };
    let work = async {
        let mut frames = node.retrieve_chunk(request).await?.into_inner();
        let mut data = Vec::new();
        while let Some(frame) = frames.message().await? {
            data.extend_from_slice(&frame.data);
        }
        Ok::<_, tonic::Status>(data)
    };
    let data = match clock::timeout(ANSWER_MAX, work).await {
        Ok(Ok(data)) => data,
        Ok(Err(status)) => return Err(format!("{:?} {}", status.code(), status.message())),
        Err(_) => return Err("no answer".into()),
    };
    match crc32c(&data) == chunk.crc32c {
        true => Ok(()),
        false => Err(format!("{} bytes with another checksum", data.len())),
    }
}
