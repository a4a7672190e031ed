//! `cairn salvage`: content from the directories of datanodes, without a cluster.
#![allow(clippy::disallowed_methods)] // files of the person at the machine

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use cairn_coordinator::{SalvagedEntry, SalvagedKind, SalvagedMetadata};
use cairn_datanode::Salvage;
use serde_json::json;

use super::Tool;
use crate::args::SalvageArgs;
use crate::failure::{Context, Exit, Failure};
use crate::human;

/// Files with names, below the target.
const FILES: &str = "files";
/// Chunks that no file refers to, by their ids.
const CHUNKS: &str = "chunks";
/// A copy of the metadata, while it is read.
const WORK: &str = ".salvage";

/// What came of it.
#[derive(Debug, Default)]
struct Report {
    files: u64,
    incomplete: u64,
    missing_bytes: u64,
    skipped: u64,
    chunks: u64,
    bad_copies: u64,
    damaged_rows: u64,
}

/// Where the sound copies of each chunk may be.
struct Chunks {
    directories: Vec<Salvage>,
    held: BTreeMap<u64, Vec<usize>>,
}

impl Chunks {
    fn open(paths: &[PathBuf], report: &mut Report, tool: &Tool) -> Result<Self, Failure> {
        let mut found = Self { directories: Vec::new(), held: BTreeMap::new() };
        for path in paths {
            match Salvage::open(path) {
                Ok(directory) => {
                    for chunk in directory.chunks() {
                        found.held.entry(chunk).or_default().push(found.directories.len());
                    }
                    report.bad_copies += directory.damaged();
                    found.directories.push(directory);
                }
                // One that can not be read shall not keep the others from being read.
                Err(error) => tool.output.note(format!("{}: {error}; it is left out", path.display())),
            }
        }
        match found.directories.is_empty() {
            true => Err(Failure::new("salvage", "none of the directories can be read")
                .next("name the data directories of datanodes, those with segments/ in them")),
            false => Ok(found),
        }
    }

    /// The content of a chunk from the first copy that is sound and fits the metadata.
    async fn read(
        &self,
        chunk: u64,
        metadata: Option<&SalvagedMetadata>,
        report: &mut Report,
    ) -> Option<Vec<u8>> {
        for &at in self.held.get(&chunk).into_iter().flatten() {
            let content = match self.directories.get(at)?.read(chunk).await {
                Ok(pieces) => pieces.concat(),
                Err(_) => {
                    report.bad_copies += 1;
                    continue;
                }
            };
            if metadata.is_none_or(|metadata| metadata.fits(chunk, &content)) {
                return Some(content);
            }
            report.bad_copies += 1;
        }
        None
    }
}

/// Writes what can be read of the directories to `--to`.
pub(super) async fn salvage(tool: &Tool, args: SalvageArgs) -> Result<Exit, Failure> {
    tool.init_command_logs()?;
    let to = &args.to;
    std::fs::create_dir_all(to).doing(to.display())?;
    if std::fs::read_dir(to).doing(to.display())?.next().is_some() {
        return Err(Failure::usage(to.display(), "it is not empty").next("name another directory"));
    }
    for directory in &args.directories {
        if is_within(to, directory) {
            return Err(Failure::usage(to.display(), "it lies in a directory that is only to be read"));
        }
    }
    let mut report = Report::default();
    let chunks = Chunks::open(&args.directories, &mut report, tool)?;
    let mut placed = BTreeSet::new();
    if let Some(metadata) = &args.metadata {
        let work = to.join(WORK);
        std::fs::create_dir(&work).doing(work.display())?;
        let read = SalvagedMetadata::read(metadata, &work).await;
        std::fs::remove_dir_all(&work).doing(work.display())?;
        let metadata = read.map_err(|error| Failure::new(metadata.display(), error))?;
        report.damaged_rows = metadata.damaged_rows;
        placed = metadata.chunks();
        write_files(&to.join(FILES), &chunks, &metadata, &mut report).await?;
    }
    write_chunks(&to.join(CHUNKS), &chunks, &placed, &mut report).await?;
    tell(tool, to, &report)
}

fn is_within(path: &Path, directory: &Path) -> bool {
    match (path.canonicalize(), directory.canonicalize()) {
        (Ok(path), Ok(directory)) => path.starts_with(directory),
        _ => false,
    }
}

async fn write_files(
    root: &Path,
    chunks: &Chunks,
    metadata: &SalvagedMetadata,
    report: &mut Report,
) -> Result<(), Failure> {
    std::fs::create_dir(root).doing(root.display())?;
    let mut entries = Vec::new();
    report.skipped += metadata.walk(&mut |entry| entries.push(entry));
    let mut first_names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut directories = Vec::new();
    for entry in entries {
        let mut path = root.to_owned();
        path.extend(entry.path.iter().map(|name| OsStr::from_bytes(name)));
        let shown = path.display().to_string();
        match &entry.kind {
            SalvagedKind::Directory => {
                std::fs::create_dir(&path).doing(&shown)?;
                directories.push((path, entry));
            }
            SalvagedKind::Symlink(target) => {
                std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).doing(&shown)?;
            }
            SalvagedKind::Special => report.skipped += 1,
            SalvagedKind::File(_) => match first_names.get(&entry.inode) {
                Some(first) => std::fs::hard_link(first, &path).doing(&shown)?,
                None => {
                    write_file(&path, &entry, chunks, metadata, report).await.doing(&shown)?;
                    first_names.insert(entry.inode, path);
                }
            },
        }
    }
    // Last, since a directory may be one that its owner can not write to.
    for (path, entry) in directories.iter().rev() {
        set_attributes(path, entry).doing(path.display())?;
    }
    Ok(())
}

async fn write_file(
    path: &Path,
    entry: &SalvagedEntry,
    chunks: &Chunks,
    metadata: &SalvagedMetadata,
    report: &mut Report,
) -> std::io::Result<()> {
    let SalvagedKind::File(extents) = &entry.kind else { return Ok(()) };
    let file = File::create_new(path)?;
    file.set_len(entry.size)?;
    let mut missing = 0;
    let mut last: Option<(u64, Vec<u8>)> = None;
    for extent in extents {
        if last.as_ref().is_none_or(|(chunk, _)| *chunk != extent.chunk) {
            last = chunks
                .read(extent.chunk, Some(metadata), report)
                .await
                .map(|content| (extent.chunk, content));
        }
        let from = usize::try_from(extent.chunk_offset).unwrap_or(usize::MAX);
        let end = from.saturating_add(usize::try_from(extent.length).unwrap_or(usize::MAX));
        match last.as_ref().and_then(|(_, content)| content.get(from..end)) {
            Some(part) => file.write_all_at(part, extent.offset)?,
            None => missing += extent.length,
        }
    }
    report.files += 1;
    report.incomplete += u64::from(missing > 0);
    report.missing_bytes += missing;
    drop(file);
    set_attributes(path, entry)
}

fn set_attributes(path: &Path, entry: &SalvagedEntry) -> std::io::Result<()> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(entry.uid), Some(entry.gid))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(entry.mode & 0o7777))?;
    let since = Duration::from_nanos(u64::try_from(entry.mtime_ns).unwrap_or(0));
    File::open(path)?.set_modified(UNIX_EPOCH + since)
}

/// Chunks of which no file is known.
async fn write_chunks(
    root: &Path,
    chunks: &Chunks,
    placed: &BTreeSet<u64>,
    report: &mut Report,
) -> Result<(), Failure> {
    for &chunk in chunks.held.keys().filter(|chunk| !placed.contains(chunk)) {
        let Some(content) = chunks.read(chunk, None, report).await else { continue };
        std::fs::create_dir_all(root).doing(root.display())?;
        let path = root.join(format!("{chunk:016}"));
        std::fs::write(&path, content).doing(path.display())?;
        report.chunks += 1;
    }
    Ok(())
}

fn tell(tool: &Tool, to: &Path, report: &Report) -> Result<Exit, Failure> {
    let Report { files, incomplete, missing_bytes, skipped, chunks, bad_copies, damaged_rows } = *report;
    let exit = if incomplete + skipped + damaged_rows > 0 { Exit::Unhealthy } else { Exit::Done };
    if tool.output.json {
        tool.output.json(&json!({
            "files": files, "incomplete": incomplete, "missing_bytes": missing_bytes, "skipped": skipped,
            "chunks": chunks, "bad_copies": bad_copies, "damaged_rows": damaged_rows,
        }))?;
        return Ok(exit);
    }
    let say = |text: String| tool.output.say(text);
    say(format!(
        "{}: {} by name, {} by number",
        to.display(),
        human::count(files, "file"),
        human::count(chunks, "chunk")
    ));
    if incomplete > 0 {
        let size = human::size(missing_bytes);
        say(format!("{} lack {size} of content, which reads as zeros", human::count(incomplete, "file")));
    }
    if skipped > 0 {
        say(format!(
            "{} are left out: special files, or names that could not be used",
            human::count(skipped, "entry")
        ));
    }
    if bad_copies > 0 {
        say(format!("{} of chunks are damaged", human::count(bad_copies, "copy")));
    }
    if damaged_rows > 0 {
        say(format!("{} of the metadata are damaged", human::count(damaged_rows, "row")));
    }
    Ok(exit)
}
