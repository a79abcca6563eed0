//! One store's shell: the fleet, its liveness and its log writer, as the node's threads run them, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{Router, RouterConfig, TxnConfig};
use flotilla_range::check::hash;
use flotilla_range::event::{Effect, Event, FlushMark, Now, Token};
use flotilla_range::fleet::{Fleet, FleetConfig};
use flotilla_range::gc::GcConfig;
use flotilla_range::liveness::{
    Liveness, LivenessConfig, LivenessEffect, LivenessEvent, LivenessMessage, LivenessNow, SupportView,
};
use flotilla_range::message::{SnapshotHeader, SnapshotId};
use flotilla_range::raft::{GroupConfig, LogRead};
use flotilla_range::snapshot::frames::FrameWriter;
use flotilla_range::snapshot::intake::{Intake, install};
use flotilla_storage::SstFile;
use flotilla_storage::engine::{Engine, Reader};
use flotilla_storage::keys;
use flotilla_storage::log::{LogEntry, LogOp, LogStore, ReadLogError};
use flotilla_storage::memory_log::MemoryLog;
use flotilla_types::{
    CheckId, Key, LogIndex, PushTxn, RangeDescriptor, RangeError, RangeId, RangeReply, ReplicaHash, StoreId, Timestamp,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::disk::{Disk, Submitter};
use crate::network::Post;
use crate::suspicion::Suspicion;
use crate::time::{NodeClock, Time, WallClock, lock};
use crate::transport::{Outbox, SimTransport};

/// The times of store liveness: the defaults of the product.
pub(crate) const TIMES: LivenessConfig =
    LivenessConfig { support: Duration::from_millis(2500), interval: Duration::from_millis(500) };
/// A fleet turns at least so often, to say that it does not hang.
const IDLE_TURN: Duration = Duration::from_millis(200);
/// Steps of one turn before the fleet is said to spin.
const STEPS_MAX: usize = 10_000;

/// What a store wants of the world.
#[derive(Debug)]
pub(crate) enum Want {
    Send { to: StoreId, sent: Timestamp, post: Post },
    Answer { token: Token, sent: Timestamp, result: Result<RangeReply, RangeError> },
    Lead(RangeDescriptor),
    Confirm(RangeId, Key),
    Push { range: RangeId, number: u64, keys: Vec<Key>, push: Box<PushTxn> },
    Lost { range: RangeId, why: String },
    Count(&'static str, u64),
    Later(Duration, Work),
}

/// What a store does at a time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Turn,
    Liveness,
    Synced,
    Flush,
    Compact,
    Ingest(SnapshotId),
}

/// How long a seed keeps old versions: two of three let them go within the run, often while somebody still asks for them.
const fn old_versions(seed: u64) -> GcConfig {
    // Not in step with the number of stores.
    let ttl = match seed / 3 % 3 {
        0 => GcConfig::TTL,
        1 => Duration::from_secs(8),
        _ => Duration::from_secs(20),
    };
    let worth_markers = if seed.is_multiple_of(2) { 3 } else { u64::MAX };
    GcConfig { ttl, every: Duration::from_millis(500 + seed % 7 * 500), worth_bytes: 1, worth_markers }
}

/// Reads the log for a fleet.
struct SharedLog(Arc<MemoryLog>);

impl LogRead for SharedLog {
    fn entries(&self, range: RangeId, from: LogIndex, to: LogIndex, max: usize) -> Result<Vec<LogEntry>, ReadLogError> {
        self.0.entries(range, from, to, max)
    }
}

/// A running store.
pub(crate) struct Node {
    pub(crate) fleet: Fleet,
    pub(crate) liveness: Liveness,
    pub(crate) clock: Arc<NodeClock>,
    pub(crate) router: Router,
    pub(crate) events: Vec<Event>,
    pub(crate) hashes: BTreeMap<(RangeId, CheckId), ReplicaHash>,
    /// The newest descriptor of each range led here whose record is to be kept.
    pub(crate) keeping: Arc<Mutex<BTreeMap<RangeId, RangeDescriptor>>>,
    pub(crate) suspicion: Suspicion,
    view: Arc<SupportView>,
    /// Engine changes given out in this boot.
    written: u64,
    /// Those of them that are not carried out yet.
    ingesting: BTreeMap<SnapshotId, (u64, Vec<String>, Vec<SstFile>)>,
    turn_at: Option<Duration>,
    liveness_at: Option<Duration>,
    flush_at: Option<Duration>,
}

/// A machine: what survives a crash, and the process while it runs.
pub(crate) struct Host {
    pub(crate) store: StoreId,
    pub(crate) disk: Disk,
    pub(crate) wall: Arc<Mutex<WallClock>>,
    pub(crate) node: Option<Node>,
    /// The process stands still until then.
    pub(crate) paused_until: Duration,
    /// The disk's watermark is passed.
    pub(crate) is_full: bool,
    /// Since when the process does not run.
    pub(crate) down_since: Duration,
    /// It must not start as itself any more.
    pub(crate) fenced: Option<String>,
    /// How its router carries out transactions, if not as the dice say.
    pub(crate) txn: Option<TxnConfig>,
}

/// The time and the dice of one call.
pub(crate) struct Env<'a> {
    pub(crate) time: Duration,
    pub(crate) random: &'a mut ChaCha8Rng,
    pub(crate) wants: Vec<Want>,
}

impl Env<'_> {
    fn later(&mut self, at: Duration, work: Work) {
        self.wants.push(Want::Later(at, work));
    }
}

impl Host {
    pub(crate) fn new(store: StoreId) -> Self {
        let wall = Arc::new(Mutex::new(WallClock::default()));
        Self {
            store,
            disk: Disk::new(),
            wall,
            node: None,
            paused_until: Duration::ZERO,
            is_full: false,
            down_since: Duration::ZERO,
            fenced: None,
            txn: None,
        }
    }

    pub(crate) const fn id(host: &Self) -> StoreId {
        host.store
    }

    /// The durable bound of the clock, which a start has to wait for (leases 2.7).
    pub(crate) fn bound(&self) -> Result<Timestamp, String> {
        let now = LivenessNow { hlc: Timestamp::ZERO, mono: Duration::ZERO };
        let restored = Liveness::restore(TIMES, 0, Duration::ZERO, &self.disk.log.metas(), now);
        restored.map(|liveness| liveness.bound()).map_err(|why| why.to_string())
    }

    /// Starts the process. The boot wait is over.
    pub(crate) fn start(
        &mut self,
        env: &mut Env<'_>,
        time: &Arc<Time>,
        outbox: &Outbox,
        seed: u64,
    ) -> Result<(), String> {
        self.disk.boot += 1;
        let boot = self.disk.boot;
        let (engine, log) = (&self.disk.engine, &self.disk.log);
        engine.discard_ssts("").map_err(|why| why.to_string())?;
        for (range, _) in log.heads().iter().filter(|(_, head)| head.birth.is_some()) {
            let record = keys::range_record(*range, keys::RangeRecord::Descriptor);
            if engine.get(&record).is_ok_and(|found| found.is_none()) {
                env.wants.push(Want::Count("births replayed", 1));
            }
        }
        let reader = Arc::new(SharedLog(Arc::clone(log)));
        let group = GroupConfig { seed: seed ^ self.store.0 << 32 ^ u64::from(boot), ..GroupConfig::default() };
        let config = FleetConfig { store: self.store, boot, group, gc: old_versions(seed) };
        let (fleet, effects) =
            Fleet::boot(config, engine, reader, &log.heads(), env.time).map_err(|why| why.to_string())?;
        let now = LivenessNow { hlc: Timestamp::ZERO, mono: env.time };
        let phase = Duration::from_millis(env.random.random_range(0..500));
        let liveness = Liveness::restore(TIMES, boot, phase, &log.metas(), now).map_err(|why| why.to_string())?;
        let clock = Arc::new(NodeClock::new(Arc::clone(time), Arc::clone(&self.wall), liveness.bound()));
        let transport = Arc::new(SimTransport { gateway: self.store, outbox: outbox.clone() });
        let kv_clock: Arc<dyn flotilla_kv::Clock> = clock.clone();
        // Each way to commit alone, and all together.
        let drawn = TxnConfig {
            one_phase: env.random.random_bool(0.7),
            parallel_commit: env.random.random_bool(0.7),
            pipelining: env.random.random_bool(0.7),
            local: env.random.random_bool(0.7),
            ..TxnConfig::default()
        };
        let txn = self.txn.unwrap_or(drawn);
        let config = RouterConfig { seed: env.random.random(), txn, ..RouterConfig::default() };
        let router = Router::new(Arc::clone(&transport) as _, kv_clock, transport, config);
        let suspicion = Suspicion::new(clock.physical(), env.time);
        let view = liveness.view(Timestamp::ZERO);
        self.node = Some(Node {
            fleet,
            liveness,
            clock,
            router,
            events: Vec::new(),
            hashes: BTreeMap::new(),
            keeping: Arc::default(),
            suspicion,
            view,
            written: 0,
            ingesting: BTreeMap::new(),
            turn_at: None,
            liveness_at: None,
            flush_at: None,
        });
        let peers = self.carry_out(env, effects, Timestamp::ZERO);
        if let Some(peers) = peers {
            self.step_liveness(env, LivenessEvent::Peers(peers));
        }
        if self.is_full {
            self.tell(env, Event::DiskFull(true));
        }
        self.plan_turn(env, Duration::ZERO);
        self.step_liveness(env, LivenessEvent::Tick);
        Ok(())
    }

    /// Something happened to the fleet.
    pub(crate) fn tell(&mut self, env: &mut Env<'_>, event: Event) {
        let Some(node) = &mut self.node else { return };
        node.events.push(event);
        let soon = Duration::from_micros(env.random.random_range(10..80));
        self.plan_turn(env, soon);
    }

    fn plan_turn(&mut self, env: &mut Env<'_>, after: Duration) {
        let Some(node) = &mut self.node else { return };
        let at = env.time + after;
        if node.turn_at.is_none_or(|planned| at < planned) {
            node.turn_at = Some(at);
            env.later(at, Work::Turn);
        }
    }

    /// Time for work of its own. Plans that were overtaken are ignored.
    pub(crate) fn work(&mut self, env: &mut Env<'_>, work: Work) -> Result<(), String> {
        let Some(node) = &mut self.node else { return Ok(()) };
        match work {
            Work::Turn if node.turn_at.is_some_and(|at| at <= env.time) => {
                node.turn_at = None;
                return self.turn(env);
            }
            Work::Liveness if node.liveness_at.is_some_and(|at| at <= env.time) => {
                node.liveness_at = None;
                self.step_liveness(env, LivenessEvent::Tick);
            }
            Work::Flush if node.flush_at.is_some_and(|at| at <= env.time) => {
                node.flush_at = None;
                return self.flush(env);
            }
            Work::Compact => self.compact(env),
            Work::Synced => return self.synced(env),
            Work::Ingest(id) => return self.ingest(env, id),
            Work::Turn | Work::Liveness | Work::Flush => {}
        }
        Ok(())
    }

    /// One turn of the fleet's loop.
    fn turn(&mut self, env: &mut Env<'_>) -> Result<(), String> {
        let mut peers = None;
        for step in 0.. {
            if step == STEPS_MAX {
                return Err(format!("the fleet of {} still has work after {STEPS_MAX} steps", self.store));
            }
            let Some(node) = &mut self.node else { return Ok(()) };
            if let Some(suspended) = node.suspicion.look(node.clock.physical(), env.time) {
                node.clock.suspend(suspended);
                node.events.push(Event::Suspended(suspended));
                env.wants.push(Want::Count(if suspended { "suspended" } else { "resumed" }, 1));
            }
            // 1.3: beyond its durable bound a store decides nothing. It is woken when the bound rises.
            let Ok(hlc) = node.clock.reading() else {
                env.wants.push(Want::Count("turns beyond the bound", 1));
                return Ok(());
            };
            let now = Now { hlc, mono: env.time };
            let events = std::mem::take(&mut node.events);
            let effects = node.fleet.step(events, now, &self.disk.engine, node.view.as_ref());
            peers = self.carry_out(env, effects, hlc).or(peers);
            let Some(node) = &self.node else { return Ok(()) };
            if node.events.is_empty() && !node.fleet.has_work() {
                break;
            }
        }
        if let Some(peers) = peers {
            self.step_liveness(env, LivenessEvent::Peers(peers));
        }
        self.step_liveness(env, LivenessEvent::FleetTurned);
        let Some(node) = &self.node else { return Ok(()) };
        let wake = node.fleet.next_wake().map_or(IDLE_TURN, |at| at.saturating_sub(env.time).min(IDLE_TURN));
        self.plan_turn(env, wake.max(Duration::from_micros(50)));
        Ok(())
    }

    /// Carries out a fleet's effects, in order. The stores that liveness must know are the answer.
    fn carry_out(&mut self, env: &mut Env<'_>, effects: Vec<Effect>, sent: Timestamp) -> Option<BTreeSet<StoreId>> {
        let mut peers = None;
        for effect in effects {
            match effect {
                Effect::Append { ticket, ops } => self.submit(env, ops, Submitter::Fleet(ticket)),
                Effect::Peers(stores) => {
                    if let Some(node) = &mut self.node {
                        node.suspicion.peers = stores.len();
                    }
                    peers = Some(stores);
                }
                Effect::Send { to, message } => {
                    env.wants.push(Want::Send { to, sent, post: Post::Range(message) });
                }
                Effect::Reply { token, result } => env.wants.push(Want::Answer { token, sent, result }),
                Effect::Lead { descriptor } => env.wants.push(Want::Lead(descriptor)),
                Effect::Confirm { range, key } => env.wants.push(Want::Confirm(range, key)),
                Effect::Push { range, number, keys, push } => {
                    env.wants.push(Want::Push { range, number, keys, push });
                }
                Effect::Lost { range, why } => env.wants.push(Want::Lost { range, why }),
                Effect::Count(what, by) => env.wants.push(Want::Count(what, by)),
                Effect::Flush => {
                    let soon = Duration::from_millis(env.random.random_range(2..40));
                    self.plan_flush(env, soon);
                }
                other => self.on_engine(env, other, sent),
            }
        }
        peers
    }

    /// Effects on the engine, and looks at it between them.
    fn on_engine(&mut self, env: &mut Env<'_>, effect: Effect, sent: Timestamp) {
        let engine = &self.disk.engine;
        let Some(node) = &mut self.node else { return };
        match effect {
            Effect::Write(batch) => {
                // The engine in memory refuses nothing.
                if engine.write(&batch).is_ok() {
                    node.written += 1;
                }
                let soon = Duration::from_millis(env.random.random_range(300..3000));
                self.plan_flush(env, soon);
            }
            Effect::SendSnapshot { to, header } => {
                let view = engine.snapshot();
                let spans = keys::spans(header.descriptor.range, &header.descriptor.span);
                let mut writer = FrameWriter::new(view.as_ref(), header.id, spans);
                let frames = std::iter::from_fn(|| writer.next_frame().ok().flatten()).collect();
                env.wants.push(Want::Count("snapshots sent", 1));
                env.wants.push(Want::Send { to, sent, post: Post::Snapshot(header, frames) });
            }
            Effect::Ingest { id, files, cleared } => {
                node.written += 1;
                node.ingesting.insert(id, (node.written, files, cleared));
                let at = env.time + Duration::from_millis(env.random.random_range(1..60));
                env.later(at, Work::Ingest(id));
            }
            Effect::PublishGc { span, threshold, .. } => {
                engine.gc().publish(&span, threshold);
                env.wants.push(Want::Count("GC thresholds published", 1));
                let at = env.time + Duration::from_millis(env.random.random_range(0..3000));
                env.later(at, Work::Compact);
            }
            Effect::WithdrawGc { span } => engine.gc().forget(&span),
            Effect::Discard { files } => {
                let discarded: Result<Vec<()>, _> = files.iter().map(|file| engine.discard_ssts(file)).collect();
                debug_assert!(discarded.is_ok());
            }
            Effect::Hash { descriptor, replica, check, applied } => {
                if let Ok(hash) = hash(engine.snapshot().as_ref(), &descriptor, replica, applied) {
                    node.hashes.insert((descriptor.range, check), hash);
                    node.events.push(Event::Hashed { range: descriptor.range, check, hash });
                }
            }
            _ => {}
        }
    }

    /// The IO thread: flushes, then takes the files in.
    fn ingest(&mut self, env: &mut Env<'_>, id: SnapshotId) -> Result<(), String> {
        let Some(node) = &mut self.node else { return Ok(()) };
        let Some((_, files, cleared)) = node.ingesting.remove(&id) else { return Ok(()) };
        install(&self.disk.engine, id, &files, &cleared).map_err(|why| why.to_string())?;
        env.wants.push(Want::Count("snapshots ingested", 1));
        self.tell(env, Event::Ingested(id));
        Ok(())
    }

    fn plan_flush(&mut self, env: &mut Env<'_>, after: Duration) {
        let Some(node) = &mut self.node else { return };
        let at = env.time + after;
        if node.flush_at.is_none_or(|planned| at < planned) {
            node.flush_at = Some(at);
            env.later(at, Work::Flush);
        }
    }

    fn flush(&mut self, env: &mut Env<'_>) -> Result<(), String> {
        self.disk.engine.flush().map_err(|why| why.to_string())?;
        self.compact(env);
        let Some(node) = &self.node else { return Ok(()) };
        // An ingest that is still under way holds the mark back: the fleet has counted it already.
        let first_open = node.ingesting.values().map(|(number, _, _)| number - 1).min();
        let mark = FlushMark(first_open.unwrap_or(node.written));
        self.tell(env, Event::Flushed(mark));
        Ok(())
    }

    /// The engine rewrites some of its files, all of them, or none.
    fn compact(&self, env: &mut Env<'_>) {
        let engine = &self.disk.engine;
        let before = engine.gc().collected().0;
        let dice: u64 = env.random.random();
        match dice % 4 {
            0 => engine.compact_all(),
            1 | 2 => engine.compact_part(&mut |key| {
                let mix = |mixed: u64, byte: &u8| mixed.wrapping_mul(0x100_0000_01b3) ^ u64::from(*byte);
                key.iter().fold(dice, mix).count_ones() % 2 == 0
            }),
            _ => {}
        }
        match engine.gc().collected().0 - before {
            0 => {}
            gone => env.wants.push(Want::Count("old versions collected", gone)),
        }
    }

    fn submit(&mut self, env: &mut Env<'_>, ops: Vec<LogOp>, submitter: Submitter) {
        if let Some(at) = self.disk.submit(ops, submitter, env.time, env.random) {
            env.later(at, Work::Synced);
        }
    }

    /// The log writer's sync ended.
    fn synced(&mut self, env: &mut Env<'_>) -> Result<(), String> {
        if env.time < self.disk.stalled_until {
            let until = self.disk.stalled_until;
            env.later(until, Work::Synced);
            return Ok(());
        }
        let (told, next) = self.disk.synced(env.time, env.random).map_err(|why| why.to_string())?;
        if let Some(at) = next {
            env.later(at, Work::Synced);
        }
        for submitter in told {
            match submitter {
                Submitter::Fleet(ticket) => self.tell(env, Event::Persisted(ticket)),
                Submitter::Liveness(ticket) => self.step_liveness(env, LivenessEvent::Durable(ticket)),
            }
        }
        Ok(())
    }

    /// One step of the liveness thread.
    pub(crate) fn step_liveness(&mut self, env: &mut Env<'_>, event: LivenessEvent) {
        let mut events = VecDeque::from([event]);
        let mut changed = false;
        while let Some(event) = events.pop_front() {
            let Some(node) = &mut self.node else { return };
            let now = LivenessNow { hlc: node.clock.peek(), mono: env.time };
            for effect in node.liveness.step(event, now) {
                match effect {
                    LivenessEffect::WriteLog(ticket, ops) => self.submit(env, ops, Submitter::Liveness(ticket)),
                    LivenessEffect::RaiseBound(bound) => {
                        let Some(node) = &self.node else { return };
                        node.clock.raise_bound(bound);
                        self.plan_turn(env, Duration::ZERO);
                    }
                    LivenessEffect::Send(to, message) => self.send_liveness(env, to, message),
                    LivenessEffect::SupportLeft(peer, epoch) => {
                        env.wants.push(Want::Count("support left", 1));
                        self.tell(env, Event::SupportLeft { peer, epoch });
                    }
                    LivenessEffect::ViewChanged => changed = true,
                }
            }
        }
        let Some(node) = &mut self.node else { return };
        let now = LivenessNow { hlc: node.clock.peek(), mono: env.time };
        if changed {
            node.view = node.liveness.view(now.hlc);
            self.tell(env, Event::SupportChanged);
        }
        let Some(node) = &mut self.node else { return };
        let at = node.liveness.next_wake(now).max(env.time + Duration::from_millis(1));
        if node.liveness_at.is_none_or(|planned| at < planned || planned <= env.time) {
            node.liveness_at = Some(at);
            env.later(at, Work::Liveness);
        }
    }

    fn send_liveness(&mut self, env: &mut Env<'_>, to: StoreId, message: LivenessMessage) {
        let Some(node) = &self.node else { return };
        if let Ok(sent) = node.clock.reading() {
            env.wants.push(Want::Send { to, sent, post: Post::Liveness(message) });
        }
    }

    /// The IO thread of a receiver: builds files from the frames, and tells the fleet. Says whether all came.
    pub(crate) fn receive_snapshot(&mut self, env: &mut Env<'_>, header: SnapshotHeader, frames: &[Bytes]) -> bool {
        let mut intake = Intake::new(&header);
        let taken = frames.iter().all(|frame| intake.accept(&self.disk.engine, frame).is_ok());
        match intake.finish().filter(|_| taken) {
            Some(files) => {
                self.tell(env, Event::SnapshotReceived { header, files });
                true
            }
            None => false,
        }
    }

    /// The machine stops. Says whether log batches were lost.
    pub(crate) fn crash(&mut self, random: &mut ChaCha8Rng) -> bool {
        self.node = None;
        self.disk.crash(random)
    }

    pub(crate) fn wall(&self) -> WallClock {
        *lock(&self.wall)
    }
}
