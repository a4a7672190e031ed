//! `cairn locate`: on which datanodes the chunks of a file lie, and whether each copy is good.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::v1;
use comfy_table::Cell;
use serde_json::{Value, json};

use super::{Tool, close};
use crate::args::LocateArgs;
use crate::cluster::{node_name, stat_chunks};
use crate::failure::{Exit, Failure};
use crate::human;
use crate::output::{BAD, GOOD, Output, STRONG, WARN, table};
use crate::remote::Remote;

/// Chunks in one question to a datanode.
const QUESTION_MAX: usize = 4096;

/// One copy of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// The datanode has it (and, with `--verify`, has read all of it without a fault).
    Healthy,
    /// The datanode does not have it.
    Missing,
    /// It is there and its checksum does not fit.
    Corrupt,
    /// The datanode does not answer.
    Unreachable,
}

impl Copy {
    fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Missing => "missing",
            Self::Corrupt => "corrupt",
            Self::Unreachable => "unreachable",
        }
    }

    fn style(self) -> anstyle::Style {
        match self {
            Self::Healthy => GOOD,
            Self::Unreachable => WARN,
            Self::Missing | Self::Corrupt => BAD,
        }
    }
}

/// What each datanode says of the chunks that it should hold.
type Answers = BTreeMap<Vec<u8>, Result<BTreeMap<u64, v1::ChunkStat>, String>>;

/// Shows where files lie. As JSON: an array with an object for each file.
pub(super) async fn locate(tool: &Tool, args: &LocateArgs) -> Result<Exit, Failure> {
    let (client, shutdown) = tool.client().await?;
    let cluster = tool.cluster_quietly()?;
    let remote = Remote::new(&client);
    let mut files = Vec::new();
    let mut exit = Exit::Done;
    for path in &args.paths {
        let attr = remote.stat(path).await?;
        if attr.kind != cairn_client::Kind::File {
            return Err(Failure::new(
                format!("locate {path}"),
                "it is no regular file, and only those have chunks",
            )
            .next(format!("`cairn ls {path}` lists what is in a directory")));
        }
        let (extents, chunks) = cluster.layout(attr.inode.get(), attr.size).await?;
        let map = cluster.map().await?;
        let answers = ask_nodes(&map, &chunks, args.verify).await;
        let file = Located { path: path.to_string(), size: attr.size, extents, chunks, map, answers };
        if file.is_degraded() {
            exit = Exit::Unhealthy;
        }
        files.push(file);
    }
    close(&client, &shutdown).await?;
    print(tool.output, &files)?;
    Ok(exit)
}

/// One file and all that is known of its copies.
struct Located {
    path: String,
    size: u64,
    extents: Vec<v1::Extent>,
    chunks: BTreeMap<u64, v1::ChunkRef>,
    map: v1::ClusterMap,
    answers: Answers,
}

impl Located {
    fn set(&self, chunk: &v1::ChunkRef) -> Option<&v1::ReplicaSet> {
        self.map.sets.iter().find(|set| set.id == chunk.set)
    }

    fn members(&self, chunk: &v1::ChunkRef) -> Vec<Vec<u8>> {
        self.set(chunk).map_or_else(Vec::new, |set| set.members.iter().map(|m| m.node.to_vec()).collect())
    }

    fn address(&self, node: &[u8]) -> &str {
        self.map.nodes.iter().find(|known| known.node == node).map_or("?", |known| &known.address)
    }

    fn copy(&self, chunk: &v1::ChunkRef, node: &[u8]) -> Copy {
        let Some(Ok(answer)) = self.answers.get(node) else { return Copy::Unreachable };
        match answer.get(&chunk.chunk) {
            Some(stat) if stat.present && stat.error == 0 && stat.crc32c == chunk.crc32c => Copy::Healthy,
            Some(stat) if stat.present => Copy::Corrupt,
            Some(_) | None => Copy::Missing,
        }
    }

    /// Whether a chunk has fewer good copies than its set wants.
    fn is_degraded(&self) -> bool {
        self.chunks.values().any(|chunk| {
            let members = self.members(chunk);
            let good = members.iter().filter(|node| self.copy(chunk, node) == Copy::Healthy).count();
            good < self.set(chunk).map_or(1, |set| set.replicas as usize)
        })
    }

    fn as_json(&self) -> Value {
        let extents: Vec<Value> = self
            .extents
            .iter()
            .filter_map(|extent| {
                let chunk = self.chunks.get(&extent.chunk)?;
                let copies: Vec<Value> = self
                    .members(chunk)
                    .iter()
                    .map(|node| {
                        json!({
                            "node": node_name(node),
                            "address": self.address(node),
                            "state": self.copy(chunk, node).word(),
                        })
                    })
                    .collect();
                Some(json!({
                    "offset": extent.offset, "length": extent.length, "chunk": extent.chunk,
                    "chunk_offset": extent.chunk_offset, "chunk_length": chunk.length,
                    "crc32c": format!("{:08x}", chunk.crc32c), "set": chunk.set, "copies": copies,
                }))
            })
            .collect();
        json!({ "path": self.path, "size": self.size, "degraded": self.is_degraded(), "extents": extents })
    }
}

/// Asks every datanode that should hold one of the chunks, all at once.
async fn ask_nodes(map: &v1::ClusterMap, chunks: &BTreeMap<u64, v1::ChunkRef>, verify: bool) -> Answers {
    let mut wanted: BTreeMap<Vec<u8>, BTreeSet<u64>> = BTreeMap::new();
    for chunk in chunks.values() {
        for member in map.sets.iter().filter(|set| set.id == chunk.set).flat_map(|set| &set.members) {
            wanted.entry(member.node.to_vec()).or_default().insert(chunk.chunk);
        }
    }
    let questions = wanted.into_iter().map(|(node, chunks)| {
        let address = map.nodes.iter().find(|known| known.node == node).map(|known| known.address.clone());
        async move {
            let answer = match address {
                Some(address) => ask_node(&address, chunks.into_iter().collect(), verify).await,
                None => Err("the coordinator does not know it".to_owned()),
            };
            (node, answer)
        }
    });
    futures::future::join_all(questions).await.into_iter().collect()
}

async fn ask_node(
    address: &str,
    chunks: Vec<u64>,
    verify: bool,
) -> Result<BTreeMap<u64, v1::ChunkStat>, String> {
    let mut all = BTreeMap::new();
    for part in chunks.chunks(QUESTION_MAX) {
        all.extend(stat_chunks(address, part.to_vec(), verify).await?);
    }
    Ok(all)
}

fn print(output: Output, files: &[Located]) -> Result<(), Failure> {
    if output.json {
        return output.json(&files.iter().map(Located::as_json).collect::<Vec<_>>());
    }
    for file in files {
        let chunks = human::count(file.chunks.len() as u64, "chunk");
        output.say(format!("{}: {} in {chunks}", output.paint(STRONG, &file.path), human::size(file.size)));
        let mut rows =
            table(&["OFFSET", "LENGTH", "CHUNK", "SET", "DATANODE", "ADDRESS", "COPY"], &[0, 1, 2, 3]);
        for extent in &file.extents {
            let Some(chunk) = file.chunks.get(&extent.chunk) else { continue };
            let mut head = [
                extent.offset.to_string(),
                extent.length.to_string(),
                extent.chunk.to_string(),
                chunk.set.to_string(),
            ];
            for node in file.members(chunk) {
                let copy = file.copy(chunk, &node);
                let tail = [
                    Cell::new(node_name(&node).chars().take(8).collect::<String>()),
                    Cell::new(file.address(&node)),
                    output.cell(copy.style(), copy.word()),
                ];
                rows.add_row(head.iter().map(Cell::new).chain(tail));
                // What is the same for all copies stands once.
                head = Default::default();
            }
        }
        if !rows.is_empty() {
            output.table(rows)?;
        }
    }
    Ok(())
}
