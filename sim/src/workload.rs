//! What a client does: one operation after another on small files of its own directory, and a look
//! at those of others now and then. Everything it is told is checked at once.

mod held;
mod others;
mod rotating;
mod syncing;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{AttrChange, HandleId, Listing, OpenFlags, RenameMode, Vfs, VfsError, WriteOrigin};
use cairn_client::{Caller, Client};
use cairn_proto::{ErrorKind, FileName, InodeId};
use cairn_runtime::clock;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::knobs::Knobs;
use crate::model::{Area, FileId, FileModel, Node, admissible};
use crate::world::{Phase, Shared};
use held::Held;

/// An operation that takes longer has an unknown outcome.
const OPERATION_MAX: Duration = Duration::from_secs(90);
const FILES_MAX: usize = 24;
/// How long a client shows attributes and names that no lease covers.
const VALID: Duration = Duration::from_millis(500);
/// How often the file that is used most is used.
const HOT: f64 = 0.2;
/// Larger chunks would make bursts of writes dear.
const BURST_CHUNK_MAX: usize = 128 << 10;
const READ_WRITE: OpenFlags = OpenFlags {
    read: true,
    write: true,
    append: false,
    truncate: false,
    exclusive: false,
    sync: false,
    direct: false,
};

/// Why an area is closed.
enum Stop {
    /// Nobody knows what became of the last operation.
    Unknown(ErrorKind),
    TooSlow,
}

type Outcome<T> = Result<T, Stop>;

struct Worker<'a> {
    shared: &'a Shared,
    knobs: &'a Knobs,
    index: usize,
    rng: StdRng,
    vfs: Arc<Vfs>,
    me: Caller,
    /// Inode of the area's root.
    root: InodeId,
    /// Files of the area that stay open.
    held: Vec<Held>,
}

/// Works until told to finish.
pub(crate) async fn run(shared: &Shared, knobs: &Knobs, index: usize, seed: u64, client: Arc<Client>) {
    close_area(shared, index, "its client started again");
    let lives = shared.with(|world| world.areas[index].len() as u64);
    let rng = StdRng::seed_from_u64(seed.wrapping_add(lives));
    let vfs = Vfs::new(client, VALID);
    let (me, root, held) = (Caller::root(), InodeId::ROOT, Vec::new());
    let mut worker = Worker { shared, knobs, index, rng, vfs, me, root, held };
    while shared.phase() == Phase::Work {
        let ended = worker.live_in_area().await;
        worker.let_go();
        match ended {
            Ok(()) => {}
            Err(Stop::Unknown(kind)) => close_area(shared, index, &format!("unknown outcome: {kind:?}")),
            Err(Stop::TooSlow) => close_area(shared, index, "an operation took too long"),
        }
    }
}

fn close_area(shared: &Shared, index: usize, why: &str) {
    let closed = shared.with(|world| match world.areas[index].last_mut() {
        Some(area) if !area.closed => {
            area.closed = true;
            world.counts.unknown += 1;
            Some(area.root.clone())
        }
        _ => None,
    });
    if let Some(root) = closed {
        shared.event(format_args!("u{index} leaves {root}: {why}"));
    }
}

fn name(text: &str) -> Result<FileName, VfsError> {
    Ok(FileName::new(Bytes::copy_from_slice(text.as_bytes()))?)
}

impl Worker<'_> {
    /// The area in use.
    fn area<T>(&self, work: impl FnOnce(&mut Area) -> T) -> T {
        self.shared.with(|world| match world.areas[self.index].last_mut() {
            Some(area) => work(area),
            None => work(&mut Area::new(String::new())),
        })
    }

    fn log(&self, what: &str, path: &str, result: &Result<impl Sized, ErrorKind>) {
        let index = self.index;
        match result {
            Ok(_) => self.shared.event(format_args!("u{index} {what} {path}")),
            Err(kind) => self.shared.event(format_args!("u{index} {what} {path}: {kind:?}")),
        }
        self.shared.with(|world| world.counts.operations += 1);
    }

    /// Waits for an operation and judges its error: what the model rules out is a violation, what may
    /// have happened or not closes the area.
    async fn ask<T>(
        &self,
        what: &str,
        path: &str,
        operation: impl Future<Output = Result<T, VfsError>>,
    ) -> Outcome<T> {
        let result = match clock::timeout(OPERATION_MAX, operation).await {
            Ok(result) => result,
            Err(_) => {
                self.log(what, path, &Err::<(), _>(ErrorKind::TimedOut));
                return Err(Stop::TooSlow);
            }
        };
        let kind = result.as_ref().err().map(VfsError::kind);
        self.log(what, path, &kind.map_or(Ok(()), Err));
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                let kind = error.kind();
                // What was not synced yet may be gone; who asks for it to be synced is told.
                let is_loss =
                    what == "fsync" && matches!(kind, ErrorKind::Corrupt | ErrorKind::ChunkNotFound);
                if !is_outage(kind) && !is_loss {
                    let root = self.area(|area| area.root.clone());
                    self.shared.violation(format_args!("{what} {root}/{path}: {kind:?} ({error})"));
                }
                Err(Stop::Unknown(kind))
            }
        }
    }

    /// A new area, and operations in it until one stays unknown or all is to end.
    async fn live_in_area(&mut self) -> Outcome<()> {
        let number = self.shared.with(|world| world.areas[self.index].len());
        let root = format!("u{}-{number}", self.index);
        self.shared.with(|world| world.areas[self.index].push(Area::new(root.clone())));
        let made = async { self.vfs.mkdir(InodeId::ROOT, &name(&root)?, 0o755, &self.me).await };
        self.root = self.ask("mkdir", "", made).await?.attr.inode;
        while self.shared.phase() == Phase::Work {
            self.step().await?;
            let pause = self.knobs.think_max.mul_f64(self.rng.random());
            clock::sleep(pause).await;
        }
        self.sync_all().await
    }

    /// Makes everything durable at the end.
    async fn sync_all(&mut self) -> Outcome<()> {
        for (path, id) in self.area(|area| area.paths()) {
            if self.area(|area| area.files.get(&id).is_some_and(|file| file.durable)) {
                continue;
            }
            let handle = self.open(&path).await?;
            self.settle(&path, id, handle, true).await?;
            self.vfs.release(handle);
        }
        self.sync_names().await
    }

    /// fsync of the directory: no change of names can be lost from here on.
    async fn sync_names(&mut self) -> Outcome<()> {
        let handle = self.vfs.opendir(self.root);
        self.ask("fsync", "", self.vfs.fsyncdir(handle)).await?;
        self.vfs.releasedir(handle);
        self.area(Area::settle_names);
        Ok(())
    }

    async fn step(&mut self) -> Outcome<()> {
        let files = self.area(|area| area.paths());
        if files.len() < 3 {
            return self.create().await;
        }
        // One file is in use more than others, so that clients meet there.
        let chosen = if self.rng.random_bool(HOT) { 0 } else { self.rng.random_range(0..files.len()) };
        let (path, id) = files[chosen].clone();
        match self.rng.random_range(0..121) {
            0..18 if files.len() < FILES_MAX => self.create().await,
            0..40 => self.rewrite(&path, id).await,
            40..58 => self.read(&path, id).await,
            58..66 => self.read_other().await,
            66..74 => self.rename(&path).await,
            74..84 => self.unlink(&path).await,
            84..88 => self.clone_file(&path, id).await,
            88..91 => self.make_or_remove_dir().await,
            91..93 => self.sync_later().await,
            93 => self.sync_other().await,
            94 => self.sync_names().await,
            95..100 => self.list().await,
            100..109 => self.rotate().await,
            _ => self.use_held(&path, id).await,
        }
    }

    /// Syncs what was committed without sync some time ago; much may have happened meanwhile.
    async fn sync_later(&mut self) -> Outcome<()> {
        let unsynced = self.area(|area| {
            let durable = |id: &FileId| area.files.get(id).is_some_and(|file| file.durable);
            area.paths().into_iter().find(|(_, id)| !durable(id))
        });
        let Some((path, id)) = unsynced else { return Ok(()) };
        let handle = self.open(&path).await?;
        self.settle(&path, id, handle, true).await?;
        self.vfs.release(handle);
        Ok(())
    }

    fn bytes(&mut self) -> Vec<u8> {
        let most = self.knobs.file_size_max;
        let len = match self.rng.random_range(0..4) {
            0 => self.rng.random_range(1..=most),
            _ => self.rng.random_range(1..=most.min(8192)),
        };
        let mut data = vec![0; len];
        self.rng.fill_bytes(&mut data);
        data
    }

    /// A path that nothing has, in the root of the area or one of its directories.
    fn new_path(&mut self, prefix: &str) -> String {
        let directories = self.area(|area| area.directories());
        let number = self.rng.random_range(0..1_000_000_000);
        match directories.len() {
            count if count > 0 && self.rng.random_bool(0.4) => {
                format!("{}/{prefix}{number}", directories[self.rng.random_range(0..count)])
            }
            _ => format!("{prefix}{number}"),
        }
    }

    /// The directory of a path, and the last name.
    async fn place(&self, path: &str) -> Result<(InodeId, FileName), VfsError> {
        match path.rsplit_once('/') {
            None => Ok((self.root, name(path)?)),
            Some((directory, last)) => {
                let entry = self.vfs.lookup(self.root, &name(directory)?, &self.me).await?;
                Ok((entry.attr.inode, name(last)?))
            }
        }
    }

    async fn open(&self, path: &str) -> Outcome<HandleId> {
        let open = async {
            let (parent, last) = self.place(path).await?;
            let entry = self.vfs.lookup(parent, &last, &self.me).await?;
            self.vfs.open(entry.attr.inode, READ_WRITE, &self.me).await
        };
        Ok(self.ask("open", path, open).await?.handle)
    }

    async fn create(&mut self) -> Outcome<()> {
        let path = self.new_path("f");
        let (id, handle) = self.create_at(&path).await?;
        self.write_some(&path, id, handle).await?;
        self.finish(&path, id, handle).await
    }

    /// A new file where nothing is, open.
    async fn create_at(&self, path: &str) -> Outcome<(FileId, HandleId)> {
        let id = self.area(|area| {
            let id = area.new_file();
            let mut after = area.names.clone();
            after.insert(path.to_owned(), Node::File(id));
            area.begin(after);
            id
        });
        let create = async {
            let (parent, last) = self.place(path).await?;
            let flags = OpenFlags { exclusive: true, ..READ_WRITE };
            self.vfs.create_open(parent, &last, 0o644, flags, &self.me).await
        };
        let handle = self.ask("create", path, create).await?.handle;
        self.area(|area| area.end(true));
        Ok((id, handle))
    }

    async fn rewrite(&mut self, path: &str, id: FileId) -> Outcome<()> {
        let handle = self.open(path).await?;
        if self.rng.random_bool(0.2) {
            let mut content = self.last(id).to_vec();
            let size = self.rng.random_range(0..=content.len() + 5000);
            content.resize(size, 0);
            self.area(|area| area.files.entry(id).or_insert_with(FileModel::empty).push(content));
            let change = AttrChange { size: Some(size as u64), ..AttrChange::default() };
            let truncate = async {
                let (parent, last) = self.place(path).await?;
                let inode = self.vfs.lookup(parent, &last, &self.me).await?.attr.inode;
                self.vfs.setattr(inode, change, Some(handle), &self.me).await
            };
            self.ask("truncate", &format!("{path} {size}"), truncate).await?;
        } else {
            self.write_some(path, id, handle).await?;
        }
        self.finish(path, id, handle).await
    }

    fn last(&self, id: FileId) -> Rc<Vec<u8>> {
        self.area(|area| area.files.get(&id).map(FileModel::last).unwrap_or_default())
    }

    async fn write_some(&mut self, path: &str, id: FileId, handle: HandleId) -> Outcome<()> {
        // The second half of a chunk leaves at once: the same bytes are then on their way several times.
        let chunk = self.knobs.chunk_bytes();
        let is_burst = chunk <= BURST_CHUNK_MAX && self.rng.random_bool(0.15);
        for _ in 0..self.rng.random_range(1..=if is_burst { 5 } else { 3 }) {
            let mut content = self.last(id).to_vec();
            let (offset, data) = if is_burst {
                let mut data = vec![0; chunk / 2];
                self.rng.fill_bytes(&mut data);
                (chunk - chunk / 2, data)
            } else {
                let data = self.bytes();
                let offset = match self.rng.random_range(0..3) {
                    0 => content.len(),
                    _ => self.rng.random_range(0..=content.len()),
                };
                (offset, data)
            };
            if content.len() < offset + data.len() {
                content.resize(offset + data.len(), 0);
            }
            let end = offset + data.len();
            content[offset..end].copy_from_slice(&data);
            self.area(|area| {
                area.files.entry(id).or_insert_with(FileModel::empty).push_write(content, end);
            });
            let what = format!("{path} {offset}+{}", data.len());
            let write = self.vfs.write(handle, offset as u64, Bytes::from(data), WriteOrigin::Call);
            self.ask("write", &what, write).await?;
        }
        Ok(())
    }

    async fn finish(&mut self, path: &str, id: FileId, handle: HandleId) -> Outcome<()> {
        if self.rng.random_bool(self.knobs.fsync) {
            // First without, so that the sync has to ask for what was stored before.
            if self.rng.random_bool(0.3) {
                self.settle(path, id, handle, false).await?;
                if self.rng.random_bool(0.2) {
                    let pause = self.knobs.think_max.mul_f64(self.rng.random_range(0.0..4.0));
                    clock::sleep(pause).await;
                }
            }
            self.settle(path, id, handle, true).await?;
        } else if self.rng.random_bool(0.6) {
            self.settle(path, id, handle, false).await?;
        }
        self.vfs.release(handle);
        Ok(())
    }

    async fn settle(&self, path: &str, id: FileId, handle: HandleId, durable: bool) -> Outcome<()> {
        match durable {
            true => self.ask("fsync", path, self.vfs.fsync(handle)).await?,
            false => self.ask("flush", path, self.vfs.flush(handle)).await?,
        }
        self.on_settled(path, id, durable);
        Ok(())
    }

    fn on_settled(&self, path: &str, id: FileId, durable: bool) {
        if self.area(|area| area.files.get(&id).is_some_and(|file| file.lost)) {
            self.shared
                .violation(format_args!("u{} stores {path}, and is not told what was lost", self.index));
        }
        self.area(|area| area.files.entry(id).or_insert_with(FileModel::empty).settle(durable));
        if durable {
            self.area(|area| area.settle_names_of(id));
            self.shared.with(|world| world.counts.synced += 1);
        }
    }

    /// Reads a whole file, or says why it can not be read now.
    async fn content(&self, path: &str, handle: HandleId) -> Outcome<Result<Vec<u8>, ErrorKind>> {
        let mut all = Vec::new();
        loop {
            let read = self.vfs.read(handle, all.len() as u64, 256 << 10);
            match clock::timeout(OPERATION_MAX, read).await {
                Ok(Ok(data)) if data.is_empty() => break,
                Ok(Ok(data)) => all.extend_from_slice(&data),
                Ok(Err(error)) => {
                    self.log("read", path, &Err::<(), _>(error.kind()));
                    self.shared.with(|world| world.counts.refused_reads += 1);
                    return Ok(Err(error.kind()));
                }
                Err(_) => return Err(Stop::TooSlow),
            }
        }
        self.log("read", path, &Ok(()));
        self.shared.with(|world| world.counts.read += 1);
        Ok(Ok(all))
    }

    /// The client sees its own writes exactly. But a file that was released with writes in the buffer, as
    /// pages of a mapping are, may lose them: then who stores it next is told.
    async fn read(&mut self, path: &str, id: FileId) -> Outcome<()> {
        let handle = self.open(path).await?;
        if let Ok(read) = self.content(path, handle).await? {
            self.compare(path, id, &read);
        }
        self.vfs.release(handle);
        Ok(())
    }

    fn compare(&self, path: &str, id: FileId, read: &[u8]) {
        let last = |area: &mut Area| area.files.get(&id).map(|file| file.last_version().to_vec());
        if let Err(what) = admissible(&self.area(last).unwrap_or_default(), read) {
            let index = self.index;
            let versions = self.area(|area| area.files.get(&id).map(|file| file.versions().to_vec()));
            match versions.unwrap_or_default() {
                versions if versions.len() > 1 && admissible(&versions, read).is_ok() => {
                    self.shared.event(format_args!("u{index} finds {path} without its last writes"));
                    self.area(|area| area.files.entry(id).or_insert_with(FileModel::empty).lost = true);
                }
                _ => self.shared.violation(format_args!("u{index} reads {path}: {what}")),
            }
        }
    }

    async fn rename(&mut self, path: &str) -> Outcome<()> {
        let files = self.area(|area| area.paths());
        let target = match self.rng.random_bool(0.4) {
            true => files[self.rng.random_range(0..files.len())].0.clone(),
            false => self.new_path("r"),
        };
        if target == path {
            return Ok(());
        }
        self.rename_to(path, &target, RenameMode::Replace).await
    }

    async fn unlink(&mut self, path: &str) -> Outcome<()> {
        self.area(|area| {
            let mut after = area.names.clone();
            after.remove(path);
            area.begin(after);
        });
        let unlink = async {
            let (parent, last) = self.place(path).await?;
            self.vfs.unlink(parent, &last, &self.me).await
        };
        self.ask("unlink", path, unlink).await?;
        self.area(|area| area.end(true));
        Ok(())
    }

    /// A new file with the content of another one, by extents.
    async fn clone_file(&mut self, path: &str, id: FileId) -> Outcome<()> {
        let copy = self.new_path("k");
        let content = self.last(id);
        let durable = self.area(|area| area.files.get(&id).is_some_and(|file| file.durable));
        let (new, target) = self.create_at(&copy).await?;
        self.area(|area| area.files.entry(new).or_insert_with(FileModel::empty).push(content.to_vec()));
        let source = self.open(path).await?;
        let length = content.len() as u64;
        let clone = self.vfs.copy_file_range(source, 0, target, 0, length.max(1), &self.me);
        self.ask("clone", &format!("{path} {copy}"), clone).await?;
        // The source was stored and committed for it.
        self.area(|area| {
            area.files.entry(id).or_insert_with(FileModel::empty).settle(false);
            let file = area.files.entry(new).or_insert_with(FileModel::empty);
            file.settle(durable);
        });
        self.vfs.release(source);
        self.vfs.release(target);
        Ok(())
    }

    async fn make_or_remove_dir(&mut self) -> Outcome<()> {
        let directories = self.area(|area| area.directories());
        if directories.len() < 3 {
            let path = format!("d{}", self.rng.random_range(0..1_000_000_000));
            self.area(|area| {
                let mut after = area.names.clone();
                after.insert(path.clone(), Node::Directory);
                area.begin(after);
            });
            let mkdir = async { self.vfs.mkdir(self.root, &name(&path)?, 0o755, &self.me).await };
            self.ask("mkdir", &path, mkdir).await?;
            self.area(|area| area.end(true));
            return Ok(());
        }
        let path = directories[self.rng.random_range(0..directories.len())].clone();
        let below = format!("{path}/");
        let empty = self.area(|area| !area.names.keys().any(|name| name.starts_with(&below)));
        let rmdir = async { self.vfs.rmdir(self.root, &name(&path)?, &self.me).await };
        if !empty {
            let refused = clock::timeout(OPERATION_MAX, rmdir).await.map_err(|_| Stop::TooSlow)?;
            let kind = refused.err().map(|error| error.kind());
            self.log("rmdir", &path, &kind.map_or(Ok(()), Err));
            match kind {
                Some(ErrorKind::NotEmpty) => return Ok(()),
                Some(kind) if is_outage(kind) => return Err(Stop::Unknown(kind)),
                other => self.shared.violation(format_args!("rmdir {path}, which is full: {other:?}")),
            }
            return Ok(());
        }
        self.area(|area| {
            let mut after = area.names.clone();
            after.remove(&path);
            area.begin(after);
        });
        self.ask("rmdir", &path, rmdir).await?;
        self.area(|area| area.end(true));
        Ok(())
    }

    /// The listing of the area is the model's.
    async fn list(&mut self) -> Outcome<()> {
        let handle = self.vfs.opendir(self.root);
        let list = async {
            let mut names: Vec<String> = Vec::new();
            let mut position = 0;
            loop {
                let page = self.vfs.readdir(handle, position, Listing::Names).await?;
                let before = position;
                for entry in page.iter() {
                    position = entry.next;
                    names.push(String::from_utf8_lossy(entry.name).into_owned());
                }
                if position == before {
                    return Ok(names);
                }
            }
        };
        let listed = self.ask("list", "", list).await?;
        self.vfs.releasedir(handle);
        let mut listed: Vec<String> = listed.into_iter().filter(|name| name != "." && name != "..").collect();
        listed.sort();
        let expected: Vec<String> =
            self.area(|area| area.names.keys().filter(|path| !path.contains('/')).cloned().collect());
        if listed != expected {
            self.shared.violation(format_args!("u{} lists {listed:?}, not {expected:?}", self.index));
        }
        Ok(())
    }
}

/// Errors that a cluster in trouble may give; whether the operation happened is then not known.
fn is_outage(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Unavailable
            | ErrorKind::TimedOut
            | ErrorKind::SessionExpired
            | ErrorKind::Overloaded
            | ErrorKind::NoSpace
            | ErrorKind::TooFewReplicas
            | ErrorKind::Io
            | ErrorKind::Interrupted
    )
}
