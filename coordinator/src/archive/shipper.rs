//! Carries commits to the second place, and sees to base backups there.
//!
//! One task. When it starts it looks in the place for the end of what it had shipped; when that is just
//! what the store holds, the chain of log files goes on, otherwise a new chain begins and a base is made
//! in it. Whatever fails is tried again; after an append that failed a new file is begun, since what
//! became of the old one's pages is unknown.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cairn_proto::ClusterId;
use cairn_runtime::clock::{self, Instant};
use cairn_runtime::random;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::base::{self, Piece};
use super::chain::{Catalogue, Follow, Found};
use super::error::ArchiveError;
use super::file::{FileHeader, FileKind, HEADER_SIZE, Record, RecordKind, file_name, parse_name};
use super::place::remote::RemotePlace;
use super::place::{DirectoryPlace, Place};
use super::queue::{BaseDone, Entry, Shipping};
use crate::config::{CoordinatorConfig, SHIP_TO_DATANODES};
use crate::context::Context;
use crate::membership::state::NodeState;
use crate::store::{AdminState, Readers, SCHEMA};

/// Bytes of commits in one append.
const APPEND_BYTES: usize = 4 << 20;
/// A log file is closed at this size.
const LOG_SIZE_MAX: u64 = 64 << 20;
/// Pauses between tries, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest sleep, after which the schedule is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Pause after a base that failed.
const BASE_PAUSE: Duration = Duration::from_secs(30);
/// Datanodes that are known get so long to register before others are taken.
const REGISTER_TIME: Duration = Duration::from_secs(8);
/// And those of a new cluster so long, until there are as many as shall hold a copy.
const JOIN_TIME: Duration = Duration::from_secs(3);
/// Requests for bases that may wait.
const REQUESTS: usize = 16;
/// Pause between looks for datanodes that could hold another copy.
const COPIES_PAUSE: Duration = Duration::from_secs(30);
/// What is left at the end gets so long to arrive.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// Asks for a base in the place now; answered when it is complete.
pub(crate) type BaseRequest = oneshot::Sender<Result<BaseDone, String>>;

/// How the place is opened, again after it has failed.
pub(crate) type OpenPlace =
    Box<dyn Fn() -> futures::future::BoxFuture<'static, Result<Place, ArchiveError>> + Send + Sync>;

/// What the shipper has to know.
pub(crate) struct ShipperSettings {
    pub(crate) cluster: ClusterId,
    pub(crate) term: u64,
    pub(crate) readers: Arc<dyn Readers>,
    pub(crate) shipping: Arc<Shipping>,
    pub(crate) open: OpenPlace,
    pub(crate) every: Duration,
    pub(crate) keep: usize,
    /// Datanodes that shall hold a copy.
    pub(crate) copies: usize,
}

/// Starts the shipper when a second place is set. It ends after the executor.
pub(crate) fn start(
    config: &CoordinatorConfig,
    context: &Arc<Context>,
    readers: &Arc<dyn Readers>,
) -> Option<(mpsc::Sender<BaseRequest>, JoinHandle<()>)> {
    let target = config.log_ship.clone()?;
    let (requests, received) = mpsc::channel(REQUESTS);
    let to_datanodes = target == SHIP_TO_DATANODES;
    let copies = if to_datanodes { config.log_copies as usize } else { 1 };
    let open: OpenPlace = match to_datanodes {
        true => {
            let (context, began) = (Arc::clone(context), clock::now());
            Box::new(move || {
                let place = datanodes(&context, copies, began.elapsed());
                Box::pin(async move { place.map(Place::Remote) })
            })
        }
        false => Box::new(move || {
            let path = PathBuf::from(&target);
            Box::pin(async move { Ok(Place::Directory(DirectoryPlace::open(&path).await?)) })
        }),
    };
    let settings = ShipperSettings {
        cluster: context.cluster.id(),
        term: context.cluster.term(),
        readers: Arc::clone(readers),
        shipping: Arc::clone(&context.shipping),
        open,
        every: config.backup_every,
        keep: config.backup_keep as usize,
        copies,
    };
    Some((requests, tokio::spawn(Shipper::new(settings, received).run())))
}

/// The datanodes that shall hold the log: those that are up, always in the same order, so that the same
/// ones are found again after a restart. Those that may still register are waited for.
fn datanodes(context: &Context, copies: usize, waited: Duration) -> Result<RemotePlace, ArchiveError> {
    let members = context.cluster.members();
    let known = members.nodes.values().filter(|entry| entry.row.admin != AdminState::Out);
    let up = known.clone().filter(|entry| entry.state == NodeState::Up);
    let (known, ready) = (known.count(), up.clone().count());
    if (ready < known && waited < REGISTER_TIME) || (ready < copies && waited < JOIN_TIME) {
        return Err(ArchiveError::Unusable("not all datanodes have registered yet".into()));
    }
    let mut up: Vec<_> = up.map(|entry| (entry.row.id, entry.row.address.clone())).collect();
    up.sort();
    let addresses: Vec<_> = up.into_iter().take(copies).map(|(_, address)| address).collect();
    if addresses.is_empty() {
        return Err(ArchiveError::Unusable("no datanode is up that could hold the metadata log".into()));
    }
    RemotePlace::new(&addresses)
}

/// The log file that is appended to.
struct LogFile {
    name: String,
    length: u64,
    /// The commit behind which it begins.
    start: u64,
    /// The digest that its first record gives.
    previous: u64,
}

/// A base that is being made.
struct Making {
    result: oneshot::Receiver<Result<BaseDone, ArchiveError>>,
    /// It covers the chain that began when this was the number of chains.
    chain: u64,
}

pub(crate) struct Shipper {
    settings: ShipperSettings,
    requests: mpsc::Receiver<BaseRequest>,
    waiting: Vec<BaseRequest>,
    place: Option<Arc<Place>>,
    log: Option<LogFile>,
    /// The last commit that is in the log, and its digest; 0 before the first commit of a chain.
    position: u64,
    digest: u64,
    /// Chains begun by this process; 0 before the place was looked at.
    chain: u64,
    making: Option<Making>,
    base_at: Instant,
    rotate: bool,
    /// When more copies are looked for.
    look_again: Instant,
}

impl Shipper {
    pub(crate) fn new(settings: ShipperSettings, requests: mpsc::Receiver<BaseRequest>) -> Self {
        let base_at = clock::now() + settings.every;
        Self {
            settings,
            requests,
            waiting: Vec::new(),
            place: None,
            log: None,
            position: 0,
            digest: 0,
            chain: 0,
            making: None,
            base_at,
            rotate: false,
            look_again: clock::now(),
        }
    }

    /// Runs until the executor has ended and what it left has arrived, or can not.
    pub(crate) async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut closing: Option<Instant> = None;
        loop {
            let result = self.step().await;
            let shipping = &self.settings.shipping;
            if let Some(empty) = shipping.closing() {
                let deadline = *closing.get_or_insert_with(|| clock::now() + CLOSE_TIME);
                if empty || clock::now() >= deadline {
                    break;
                }
            }
            let sleep = match result {
                Ok(()) => {
                    pause = PAUSE_MIN;
                    TICK
                }
                Err(error) => {
                    self.on_error(&error);
                    let now = random::jitter(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                    now
                }
            };
            self.wait(sleep).await;
        }
        self.settings.shipping.stop();
    }

    fn on_error(&mut self, error: &ArchiveError) {
        let text = error.to_string();
        let is_new =
            self.settings.shipping.standing().is_none_or(|known| known.error.as_ref() != Some(&text));
        if is_new {
            tracing::warn!(%error, "the metadata log can not be shipped; it is tried again");
        }
        self.settings.shipping.failed(&text);
        self.log = None;
    }

    async fn wait(&mut self, sleep: Duration) {
        let shipping = Arc::clone(&self.settings.shipping);
        let made = async {
            match &mut self.making {
                Some(making) => (&mut making.result).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shipping.wake.notified() => {}
            () = clock::sleep(sleep) => {}
            result = made => {
                let making = self.making.take();
                let result = result.unwrap_or_else(|_| Err(ArchiveError::Unusable("the backup was ended".into())));
                self.on_base(making.map_or(0, |making| making.chain), result).await;
            }
            Some(request) = self.requests.recv() => {
                self.waiting.push(request);
                self.base_at = clock::now();
            }
        }
    }

    async fn step(&mut self) -> Result<(), ArchiveError> {
        let place = match &self.place {
            Some(place) => Arc::clone(place),
            None => {
                let place = Arc::new((self.settings.open)().await?);
                self.place = Some(Arc::clone(&place));
                place
            }
        };
        let place = self.with_more_copies(place).await;
        if self.chain == 0 {
            self.resume(&place).await?;
        } else if self.settings.shipping.has_gap() {
            self.begin_chain();
        }
        if self.log.is_none() {
            self.begin_log(&place).await?;
            self.settings.shipping.shipped(self.position);
        }
        if self.base_at <= clock::now() && self.making.is_none() {
            self.begin_base(&place)?;
        }
        loop {
            let entries = self.settings.shipping.oldest(APPEND_BYTES);
            if entries.is_empty() || self.settings.shipping.has_gap() {
                return Ok(());
            }
            self.append(&place, &entries).await?;
        }
    }

    /// Another place when this one has fewer copies than it shall and another could have more.
    async fn with_more_copies(&mut self, place: Arc<Place>) -> Arc<Place> {
        let Place::Remote(old) = &*place else { return place };
        if old.copies() >= self.settings.copies || self.look_again > clock::now() || self.making.is_some() {
            return place;
        }
        self.look_again = clock::now() + COPIES_PAUSE;
        match (self.settings.open)().await {
            Ok(Place::Remote(new)) if new.copies() > old.copies() => {
                tracing::info!(place = new.describe(), "the metadata log moves to more datanodes");
                let new = Arc::new(Place::Remote(new));
                self.place = Some(Arc::clone(&new));
                self.begin_chain();
                self.settings.shipping.uncovered();
                new
            }
            _ => place,
        }
    }

    /// Goes on with the chain of an earlier reign when it holds just what the store does.
    async fn resume(&mut self, place: &Arc<Place>) -> Result<(), ArchiveError> {
        let catalogue = Catalogue::read(place, Some(self.settings.cluster)).await?;
        for (name, why) in &catalogue.unusable {
            tracing::warn!(place = place.describe(), name, why, "a file of the second place can not be used");
        }
        let found = self.end_of(place, &catalogue).await;
        let committed = self.settings.shipping.collect();
        match found {
            Ok(Some((position, digest, base))) if position == committed => {
                (self.position, self.digest) = (position, digest);
                self.chain = 1;
                tracing::info!(sequence = position, place = place.describe(), "the metadata log goes on");
                let due = clock::wall_ns().saturating_sub(base.time_ns);
                let due =
                    self.settings.every.saturating_sub(Duration::from_nanos(due.try_into().unwrap_or(0)));
                self.base_at = clock::now() + due;
                self.settings.shipping.shipped(position);
                self.settings.shipping.covered(Some(base));
                Ok(())
            }
            other => {
                match other {
                    Err(error) => tracing::warn!(%error, "the metadata log can not be gone on with"),
                    Ok(Some((position, ..))) => {
                        tracing::warn!(position, committed, "the metadata log is not where the store is");
                    }
                    Ok(None) => {}
                }
                self.begin_chain();
                Ok(())
            }
        }
    }

    /// The last commit of the newest chain that a base reaches, when the reign before this one wrote it.
    async fn end_of(
        &self,
        place: &Arc<Place>,
        catalogue: &Catalogue,
    ) -> Result<Option<(u64, u64, BaseDone)>, ArchiveError> {
        let Some((base, rows)) = catalogue.bases.last() else { return Ok(None) };
        let chain = catalogue.chain_of(base);
        let Some(last) = chain.last() else { return Ok(None) };
        let newest = catalogue.logs.last().is_some_and(|newest| newest.name == last.name);
        let same_reign = last.header.term.checked_add(1) == Some(self.settings.term);
        if !newest || !same_reign || u64::from(last.header.schema) != SCHEMA {
            return Ok(None);
        }
        // All of it is read, so that what could not be restored is noticed now.
        let mut follow = Follow::new(Arc::clone(place), chain, base.header.sequence);
        while follow.next().await?.is_some() {}
        let Some(digest) = follow.digest() else { return Ok(None) };
        let base = BaseDone {
            name: base.name.clone(),
            sequence: base.header.sequence,
            time_ns: base.header.time_ns,
            bytes: base.length,
            rows: *rows,
        };
        Ok(Some((follow.position(), digest, base)))
    }

    /// Commits were not shipped: a new chain begins here, and needs a base.
    fn begin_chain(&mut self) {
        self.position = self.settings.shipping.collect();
        self.digest = 0;
        self.log = None;
        self.chain += 1;
        self.base_at = clock::now();
    }

    async fn begin_log(&mut self, place: &Place) -> Result<(), ArchiveError> {
        let header = FileHeader {
            kind: FileKind::Log,
            schema: u32::try_from(SCHEMA).unwrap_or(u32::MAX),
            cluster: self.settings.cluster,
            term: self.settings.term,
            sequence: self.position,
            digest: self.digest,
            time_ns: clock::wall_ns(),
        };
        let name = file_name(FileKind::Log, header.term, header.sequence);
        place.append(&name, 0, header.encode(), true).await?;
        let (start, previous) = (self.position, header.first_previous());
        self.log = Some(LogFile { name, length: HEADER_SIZE as u64, start, previous });
        self.rotate = false;
        Ok(())
    }

    async fn append(&mut self, place: &Place, entries: &[Entry]) -> Result<(), ArchiveError> {
        let is_over =
            |log: &LogFile| log.start < self.position && (self.rotate || log.length >= LOG_SIZE_MAX);
        if self.log.as_ref().is_none_or(is_over) {
            self.begin_log(place).await?;
        }
        let Some(log) = &mut self.log else { return Ok(()) };
        let mut bytes = BytesMut::new();
        let (mut position, mut digest) = (self.position, self.digest);
        if digest == 0 {
            digest = log.previous;
        }
        for entry in entries {
            let Entry { sequence, time_ns, body, .. } = entry.clone();
            let record = Record { kind: RecordKind::Commit, sequence, time_ns, previous: digest, body };
            digest = record.encode(&mut bytes);
            position = sequence;
        }
        let length = bytes.len() as u64;
        place.append(&log.name, log.length, bytes.freeze(), true).await?;
        log.length += length;
        (self.position, self.digest) = (position, digest);
        self.settings.shipping.shipped(position);
        crate::metrics::shipped(entries.len(), length);
        Ok(())
    }

    fn begin_base(&mut self, place: &Arc<Place>) -> Result<(), ArchiveError> {
        let pieces =
            base::start(Arc::clone(&self.settings.readers), self.settings.cluster, self.settings.term)?;
        let (answer, result) = oneshot::channel();
        let place = Arc::clone(place);
        tokio::spawn(async move {
            let _ = answer.send(store_base(&place, pieces).await);
        });
        self.making = Some(Making { result, chain: self.chain });
        self.base_at = clock::now() + self.settings.every;
        // So that the log files before the base can go one day.
        self.rotate = true;
        Ok(())
    }

    async fn on_base(&mut self, chain: u64, result: Result<BaseDone, ArchiveError>) {
        match &result {
            Ok(base) => {
                tracing::info!(
                    name = base.name,
                    rows = base.rows,
                    bytes = base.bytes,
                    "a base backup of the metadata"
                );
                if chain == self.chain {
                    self.settings.shipping.covered(Some(base.clone()));
                }
                if let Some(place) = self.place.clone()
                    && let Err(error) = self.forget_old(&place).await
                {
                    tracing::warn!(%error, "old backups of the metadata could not be removed");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a base backup of the metadata failed; it is tried again");
                self.settings.shipping.base_failed(&error.to_string());
                self.base_at = clock::now() + BASE_PAUSE;
            }
        }
        let told = result.map_err(|error| error.to_string());
        for request in self.waiting.drain(..) {
            let _ = request.send(told.clone());
        }
    }

    /// Removes all but the newest bases, and the log files that only older ones need.
    async fn forget_old(&self, place: &Place) -> Result<(), ArchiveError> {
        let catalogue = Catalogue::read(place, Some(self.settings.cluster)).await?;
        let keep_from = catalogue.bases.len().saturating_sub(self.settings.keep);
        let kept = catalogue.bases.get(keep_from..).unwrap_or_default();
        let Some((oldest, _)) = kept.first() else { return Ok(()) };
        let chain = catalogue.chain_of(oldest);
        let first_needed = chain.iter().rposition(|file| file.header.sequence <= oldest.header.sequence);
        let Some(first) = first_needed.and_then(|index| chain.get(index)) else { return Ok(()) };
        let first = (first.header.term, first.header.sequence);
        place
            .remove(&|name| match parse_name(name) {
                Some((FileKind::Base, ..)) => !kept.iter().any(|(base, _)| base.name == name),
                Some((FileKind::Log, term, sequence)) => (term, sequence) < first,
                None => false,
            })
            .await
    }
}

/// Writes a base into the place; it counts once its last record is there, durably.
async fn store_base(
    place: &Place,
    mut pieces: mpsc::Receiver<Result<Piece, ArchiveError>>,
) -> Result<BaseDone, ArchiveError> {
    let mut done = BaseDone::default();
    let mut waiting = BytesMut::new();
    while let Some(piece) = pieces.recv().await {
        match piece? {
            Piece::Header(header) => {
                done.name = file_name(FileKind::Base, header.term, header.sequence);
                (done.sequence, done.time_ns) = (header.sequence, header.time_ns);
                // Nothing has changed since that one was made.
                let same = |(known, _): &&(Found, u64)| known.name == done.name;
                let catalogue = Catalogue::read(place, Some(header.cluster)).await?;
                if let Some((known, rows)) = catalogue.bases.iter().find(same) {
                    (done.bytes, done.rows) = (known.length, *rows);
                    return Ok(done);
                }
            }
            Piece::Data(data) => {
                waiting.extend_from_slice(&data);
                if waiting.len() >= APPEND_BYTES {
                    let data = waiting.split().freeze();
                    done.bytes += append_base(place, &done, data, false).await?;
                }
            }
            Piece::Done(rows) => {
                done.rows = rows;
                done.bytes += append_base(place, &done, waiting.split().freeze(), true).await?;
                return Ok(done);
            }
        }
    }
    Err(ArchiveError::Unusable("the metadata could not be read to its end".into()))
}

async fn append_base(place: &Place, done: &BaseDone, data: Bytes, sync: bool) -> Result<u64, ArchiveError> {
    let length = data.len() as u64;
    place.append(&done.name, done.bytes, data, sync).await?;
    Ok(length)
}
