//! Chunks against what datanodes hold: how many good copies each has, which are missing, which chunks have
//! none left.
//!
//! Looks at what is now, window by window: rows first, then the listings of all datanodes for the same ids.
//! So a chunk that is committed in between is not looked at, and one that is deleted in between is asked
//! for once more before anything is said of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cairn_proto::{ChunkId, NodeId, ReplicaSetId, v1};

use super::chunks::LOST_MAX;
use super::report::{Finding, Severity};
use super::{PAGE, Run};
use crate::error::OpError;
use crate::ops::reconcile;
use crate::store::{Chunk, Count, Fault, Key, MemberState, ReplicaSet, Scan, Table, list};

/// Ids of one window: what one listing can hold.
const WINDOW: u64 = 65_536;

/// What is known of all chunks so far.
#[derive(Default)]
struct Totals {
    /// Good copies → chunks, of those with fewer than their set wants.
    few: BTreeMap<usize, u64>,
    lost: BTreeSet<ChunkId>,
    /// No copy was found, and datanodes that may have one could not be asked.
    unknown: u64,
    silent: BTreeMap<NodeId, String>,
}

/// Returns the chunks of which no good copy is left.
pub(super) async fn check(run: &mut Run) -> Result<BTreeSet<ChunkId>, OpError> {
    let total = run.shared.read_many(|reader| Ok(crate::store::count(reader, Count::Chunks)?)).await?;
    let nodes: Vec<NodeId> = run.shared.context.cluster.members().nodes.keys().copied().collect();
    let mut totals = Totals::default();
    let mut after = None;
    let mut done = 0;
    loop {
        run.progress("copies on datanodes", done, total).await?;
        let rows = run.shared.read_many(move |reader| window(reader, after)).await?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { break };
        let range = (first.id, last.id);
        after = Some(last.id);
        done += rows.len() as u64;
        let mut held = HashMap::new();
        for &node in &nodes {
            if totals.silent.contains_key(&node) {
                continue;
            }
            match run.shared.datanodes.list(&run.shared.context.cluster, node, range).await {
                Ok(listing) => drop(held.insert(node, good_copies(&listing))),
                Err(error) => drop(totals.silent.insert(node, error.to_string())),
            }
        }
        check_window(run, &rows, &held, &mut totals).await?;
    }
    run.summary.nodes_asked = nodes.len() as u64 - totals.silent.len() as u64;
    tell(run, totals).await
}

/// Chunk → length, of the sound ones.
fn good_copies(listing: &[v1::HeldChunk]) -> HashMap<u64, u64> {
    let good = listing.iter().filter(|held| !held.quarantined && !held.trash);
    good.map(|held| (held.chunk, held.length)).collect()
}

/// The next chunks, all within one window of ids.
fn window(reader: &dyn crate::store::Reader, after: Option<ChunkId>) -> Result<Vec<Chunk>, OpError> {
    let mut rows: Vec<Chunk> = Vec::new();
    let mut after = after;
    loop {
        let page: Vec<Chunk> = list(reader, &Scan::behind(Table::Chunk, after.map(Key::Chunk)).limit(PAGE))?;
        let Some(last) = page.last() else { return Ok(rows) };
        after = Some(last.id);
        for row in page {
            if rows.first().is_some_and(|first| row.id.get() - first.id.get() >= WINDOW) {
                return Ok(rows);
            }
            rows.push(row);
        }
    }
}

async fn check_window(
    run: &mut Run,
    rows: &[Chunk],
    held: &HashMap<NodeId, HashMap<u64, u64>>,
    totals: &mut Totals,
) -> Result<(), OpError> {
    let sets: HashMap<ReplicaSetId, ReplicaSet> = {
        let members = run.shared.context.cluster.members();
        rows.iter()
            .filter_map(|row| members.sets.get(&row.replica_set))
            .map(|set| (set.id, set.clone()))
            .collect()
    };
    let mut missing: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
    for row in rows {
        let Some(set) = sets.get(&row.replica_set) else { continue }; // told by the check of rows
        let has =
            |node: &NodeId| held.get(node).and_then(|copies| copies.get(&row.id.get())) == Some(&row.length);
        let counts =
            |state| matches!(state, MemberState::Active | MemberState::Leaving | MemberState::Backfilling);
        let good = set.members.0.iter().filter(|member| counts(member.state) && has(&member.node)).count();
        run.summary.copies += good as u64;
        let must = set.members.0.iter().filter(|member| {
            matches!(member.state, MemberState::Active | MemberState::Leaving)
                && held.contains_key(&member.node)
        });
        for member in must.filter(|member| !has(&member.node)) {
            missing.entry(member.node).or_default().push(row.id);
        }
        if good > 0 {
            if good < set.replicas as usize {
                *totals.few.entry(good).or_default() += 1;
            }
            continue;
        }
        if still_there(run, row.id).await? {
            nothing_left(run, row, held, totals, has).await?;
        }
    }
    for (node, chunks) in missing {
        for page in chunks.chunks(PAGE) {
            told_missing(run, node, page.to_vec()).await?;
        }
    }
    Ok(())
}

async fn still_there(run: &Run, chunk: ChunkId) -> Result<bool, OpError> {
    run.shared.read_many(move |reader| Ok(reader.get(&Key::Chunk(chunk))?.is_some())).await
}

/// No member has a good copy.
async fn nothing_left(
    run: &mut Run,
    row: &Chunk,
    held: &HashMap<NodeId, HashMap<u64, u64>>,
    totals: &mut Totals,
    has: impl Fn(&NodeId) -> bool,
) -> Result<(), OpError> {
    let chunk = row.id;
    if let Some(node) = held.keys().find(|node| has(node)) {
        let text = format!(
            "the only copy of chunk {chunk} is on datanode {}, which is no active member of its set",
            node.short()
        );
        let finding = Finding { node: Some(*node), ..Finding::error("COPY_OUTSIDE", text).of_chunk(chunk) };
        return run.found(finding, None).await;
    }
    if totals.silent.is_empty() {
        let text = format!("no datanode has a good copy of chunk {chunk} ({} bytes)", row.length);
        if totals.lost.len() < LOST_MAX {
            totals.lost.insert(chunk);
        }
        return run.found(Finding::loss("CHUNK_LOST", text).of_chunk(chunk), None).await;
    }
    totals.unknown += 1;
    Ok(())
}

/// Copies that should be there and are not. Those that are known to be bad are being repaired.
async fn told_missing(run: &mut Run, node: NodeId, chunks: Vec<ChunkId>) -> Result<(), OpError> {
    let asked = chunks.clone();
    let unknown = run.shared.read_many(move |reader| {
        let mut unknown = Vec::new();
        for chunk in asked {
            let known = crate::store::find::<Fault>(reader, &Key::Fault(chunk, node))?.is_some();
            if !known && reader.get(&Key::Chunk(chunk))?.is_some() {
                unknown.push(chunk);
            }
        }
        Ok(unknown)
    });
    let unknown = unknown.await?;
    let mut queued = false;
    if run.repair && !unknown.is_empty() {
        let chunks = unknown.clone();
        queued = run.shared.executor.run(move |tx| reconcile::record_missing(tx, node, &chunks)).await? > 0;
    }
    for chunk in unknown {
        let what = if queued { "; it is queued for repair" } else { "" };
        let text = format!("datanode {} has no good copy of chunk {chunk}{what}", node.short());
        let finding = Finding { node: Some(node), ..Finding::error("COPY_MISSING", text).of_chunk(chunk) };
        run.found_repaired(finding, queued).await?;
    }
    Ok(())
}

/// What concerns many chunks.
async fn tell(run: &mut Run, totals: Totals) -> Result<BTreeSet<ChunkId>, OpError> {
    for (copies, chunks) in &totals.few {
        let text =
            format!("{chunks} chunks have {copies} good copies within reach, fewer than their sets want");
        run.found(Finding::new("FEW_COPIES", Severity::Note, text), None).await?;
    }
    run.summary.nodes_missing = totals.silent.len() as u64;
    for (node, error) in &totals.silent {
        let text = format!("its inventory could not be had: {error}");
        let finding = Finding { node: Some(*node), ..Finding::new("NOT_ASKED", Severity::Note, text) };
        run.found(finding, None).await?;
    }
    if totals.unknown > 0 {
        let text = format!(
            "of {} chunks no copy was found, and not every datanode could be asked: bring them back, then check \
             again",
            totals.unknown
        );
        run.found(Finding::error("COPIES_UNKNOWN", text), None).await?;
    }
    Ok(totals.lost)
}
