//! Three fleets with their liveness, on engines and logs in memory, in one thread with virtual time: the network delivers
//! what is not cut, a crash loses what was not flushed, and clients retry with the same id.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_range::boot::bootstrap;
use flotilla_range::check::hash;
use flotilla_range::event::{Effect, Event, FlushMark, Now, Token};
use flotilla_range::fleet::{Fleet, FleetConfig};
use flotilla_range::gc::GcConfig;
use flotilla_range::liveness::{
    Liveness, LivenessConfig, LivenessEffect, LivenessEvent, LivenessMessage, LivenessNow, SupportView,
};
use flotilla_range::message::{PeerMessage, SnapshotHeader};
use flotilla_range::raft::{GroupConfig, LogRead};
use flotilla_range::snapshot::frames::FrameWriter;
use flotilla_range::snapshot::intake::{Intake, install};
use flotilla_storage::engine::{Cursor, Engine, EngineError, Reader, WriteBatch};
use flotilla_storage::keys::RangeRecord;
use flotilla_storage::log::{LogBatch, LogEntry, LogOp, LogStore, ReadLogError};
use flotilla_storage::memory::MemoryEngine;
use flotilla_storage::memory_log::MemoryLog;
use flotilla_storage::state::{Applied, LeaseState, encode_replica_id};
use flotilla_types::{
    Admin, CheckId, Command, ConfTarget, Generation, Hlc, Key, KeySpan, LogIndex, RangeDescriptor, RangeError, RangeId,
    RangeReply, RangeRequest, Read, ReadAt, ReplicaDescriptor, ReplicaHash, ReplicaId, ReplicaKind, Reply, RequestId,
    StoreId, Timestamp, Write, WriteResult, keys,
};

pub const USER: RangeId = RangeId(5);
pub const START: Duration = Duration::from_secs(1_000_000);
const TICK: Duration = Duration::from_millis(5);
const TIMES: LivenessConfig =
    LivenessConfig { support: Duration::from_millis(2500), interval: Duration::from_millis(500) };

struct SharedLog(Arc<MemoryLog>);

impl LogRead for SharedLog {
    fn entries(&self, range: RangeId, from: LogIndex, to: LogIndex, max: usize) -> Result<Vec<LogEntry>, ReadLogError> {
        self.0.entries(range, from, to, max)
    }
}

#[derive(Clone)]
enum Post {
    Range(PeerMessage),
    Liveness(LivenessMessage),
    Snapshot(SnapshotHeader, Vec<Bytes>),
}

/// Where a receiver of a snapshot may be made to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The frames are verified, the fleet has not heard of it.
    BeforeEvent,
    /// Term and vote are synced.
    BeforeIngest,
    /// The files are part of the engine.
    AfterIngest,
    /// The log still is the old one.
    BeforeReset,
    /// The log begins anew; the leader does not know yet.
    AfterReset,
}

fn dies(plan: &mut Option<(StoreId, Point)>, store: StoreId, point: Point) -> bool {
    let now = *plan == Some((store, point));
    if now {
        *plan = None;
    }
    now
}

pub struct Node {
    pub fleet: Fleet,
    liveness: Liveness,
    clock: Hlc,
    pub(crate) events: Vec<Event>,
    /// The picture of liveness that its fleet last heard of.
    told: Arc<SupportView>,
    boot: u32,
    pub down: bool,
    /// Engine changes of this boot.
    written: u64,
}

impl Node {
    /// Something happens to its fleet.
    pub fn push(&mut self, event: Event) {
        self.events.push(event);
    }
}

/// A disk that reads nothing any more.
struct Unreadable;

impl Reader for Unreadable {
    fn get(&self, _: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Err(EngineError::Io { action: "read", cause: "broken on purpose".to_owned() })
    }

    fn cursor<'a>(&'a self, _: &[u8], _: &[u8]) -> Box<dyn Cursor + 'a> {
        panic!("not asked for in these tests")
    }

    fn first_in_prefix(&self, _: &[u8], _: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        Err(EngineError::Io { action: "read", cause: "broken on purpose".to_owned() })
    }
}

pub struct World {
    pub time: Duration,
    pub nodes: BTreeMap<StoreId, Node>,
    disks: BTreeMap<StoreId, (MemoryEngine, Arc<MemoryLog>)>,
    network: VecDeque<(StoreId, StoreId, Timestamp, Post)>,
    pub cut: BTreeSet<(StoreId, StoreId)>,
    /// Cut for ranges alone: liveness goes through.
    pub cut_ranges: BTreeSet<(StoreId, StoreId)>,
    /// The other way round.
    pub cut_liveness: BTreeSet<(StoreId, StoreId)>,
    /// By how much the wall clocks of stores are ahead of true time.
    pub ahead: BTreeMap<StoreId, Duration>,
    /// When old versions go.
    gc: GcConfig,
    /// What the fleets counted.
    pub counts: BTreeMap<&'static str, u64>,
    pub answers: BTreeMap<Token, Result<RangeReply, RangeError>>,
    next_token: u64,
    /// A store whose engine answers every read with an error.
    pub unreadable: Option<StoreId>,
    /// A store that may find replicas out of order when it starts.
    pub may_lose: Option<StoreId>,
    /// What these stores gave up.
    pub lost: Vec<RangeId>,
    /// Which receiver of a snapshot dies where.
    pub crash_at: Option<(StoreId, Point)>,
    /// Stores that want to be flushed.
    flushes: Vec<StoreId>,
    /// Who asks for the addressing record of which range.
    confirms: Vec<(StoreId, RangeId)>,
    /// How many snapshots were sent.
    pub snapshots: u32,
    /// How many messages of ranges were sent.
    pub range_messages: u32,
    /// What checks found.
    pub hashes: BTreeMap<(StoreId, RangeId, CheckId), ReplicaHash>,
}

impl World {
    /// Three stores with all ranges on each.
    pub fn new() -> Self {
        Self::with(&[1, 2, 3], 3)
    }

    /// Three stores with all ranges on each, the users' keys cut into many.
    pub fn with_ranges(ranges: u64) -> Self {
        Self::build(&[1, 2, 3], 3, ranges, GcConfig::default())
    }

    /// The ranges begin on the named stores, of as many as there are.
    pub fn with(first: &[u64], stores: u64) -> Self {
        Self::build(first, stores, 0, GcConfig::default())
    }

    /// Three stores with all ranges on each, whose old versions go so soon.
    pub fn with_gc(gc: GcConfig) -> Self {
        Self::build(&[1, 2, 3], 3, 0, gc)
    }

    /// The same on the named stores, of as many as there are.
    pub fn build_with(first: &[u64], stores: u64, gc: GcConfig) -> Self {
        Self::build(first, stores, 0, gc)
    }

    fn build(first: &[u64], stores: u64, extra: u64, gc: GcConfig) -> Self {
        let mut world = Self {
            time: START,
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            cut_ranges: BTreeSet::new(),
            cut_liveness: BTreeSet::new(),
            ahead: BTreeMap::new(),
            gc,
            counts: BTreeMap::new(),
            answers: BTreeMap::new(),
            next_token: 0,
            unreadable: None,
            may_lose: None,
            lost: Vec::new(),
            crash_at: None,
            flushes: Vec::new(),
            confirms: Vec::new(),
            snapshots: 0,
            range_messages: 0,
            hashes: BTreeMap::new(),
        };
        let first: Vec<_> = first.iter().map(|store| StoreId(*store)).collect();
        for store in (1..=stores).map(StoreId) {
            let (engine, log) = (MemoryEngine::new(), Arc::new(MemoryLog::new()));
            let (mut batch, mut ops) =
                if first.contains(&store) { bootstrap(&first, store) } else { Default::default() };
            if extra > 0 {
                cut(&mut batch, &mut ops, &first, store, extra);
            }
            engine.write(&batch).unwrap();
            engine.flush().unwrap();
            log.write(&LogBatch { ops }).unwrap();
            world.disks.insert(store, (engine, log));
            world.boot(store, 1);
        }
        world
    }

    fn boot(&mut self, store: StoreId, boot: u32) {
        let (engine, log) = &self.disks[&store];
        let group = GroupConfig { seed: store.0, ..GroupConfig::default() };
        let config = FleetConfig { store, boot, group, gc: self.gc };
        let reader = Arc::new(SharedLog(Arc::clone(log)));
        let (fleet, effects) = Fleet::boot(config, engine, reader, &log.heads(), self.time).unwrap();
        let now = LivenessNow { hlc: Timestamp::ZERO, mono: self.time };
        let phase = Duration::from_millis(store.0 * 30);
        let liveness = Liveness::restore(TIMES, boot, phase, &log.metas(), now).unwrap();
        let clock = Hlc::starting_at(liveness.bound(), Duration::from_millis(250));
        engine.discard_ssts("").unwrap();
        let node =
            Node { fleet, liveness, clock, events: Vec::new(), told: Arc::default(), boot, down: false, written: 0 };
        self.nodes.insert(store, node);
        for effect in effects {
            match effect {
                Effect::Peers(peers) => self.liveness(store, LivenessEvent::Peers(peers)),
                Effect::Append { ticket, ops } => {
                    self.disks[&store].1.write(&LogBatch { ops }).unwrap();
                    self.nodes.get_mut(&store).unwrap().events.push(Event::Persisted(ticket));
                }
                Effect::Lost { range, .. } if self.may_lose == Some(store) => self.lost.push(range),
                Effect::PublishGc { span, threshold, .. } => self.disks[&store].0.gc().publish(&span, threshold),
                Effect::Lost { range, why } => panic!("{range} is lost at boot: {why}"),
                other => panic!("not expected at boot: {other:?}"),
            }
        }
    }

    /// A crash.
    pub fn kill(&mut self, store: StoreId) {
        self.nodes.get_mut(&store).unwrap().down = true;
        self.disks[&store].0.crash();
    }

    /// Leases 2.7: comes back once its clock has passed its old bound.
    pub fn restart(&mut self, store: StoreId) {
        let node = &self.nodes[&store];
        let (bound, boot) = (node.clock.bound(), node.boot + 1);
        while Timestamp::from_wall(self.wall(store).as_nanos() as u64) < bound {
            self.tick();
        }
        self.boot(store, boot);
    }

    /// What a store's wall clock shows.
    pub fn wall(&self, store: StoreId) -> Duration {
        self.time + self.ahead.get(&store).copied().unwrap_or_default()
    }

    /// Cuts a store from all others, for what `links` stands for.
    pub fn isolate(stores: &[u64], alone: StoreId, links: &mut BTreeSet<(StoreId, StoreId)>) {
        for other in stores.iter().map(|store| StoreId(*store)).filter(|store| *store != alone) {
            links.extend([(alone, other), (other, alone)]);
        }
    }

    fn liveness(&mut self, store: StoreId, event: LivenessEvent) {
        let wall = self.wall(store);
        let node = self.nodes.get_mut(&store).unwrap();
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = LivenessNow { hlc: node.clock.peek(wall), mono: self.time };
            for effect in node.liveness.step(event, now) {
                match effect {
                    LivenessEffect::WriteLog(ticket, ops) => {
                        self.disks[&store].1.write(&LogBatch { ops }).unwrap();
                        events.push_back(LivenessEvent::Durable(ticket));
                    }
                    LivenessEffect::RaiseBound(bound) => node.clock.raise_bound(bound),
                    LivenessEffect::Send(to, message) => {
                        if let Ok(sent) = node.clock.now(wall) {
                            self.network.push_back((store, to, sent, Post::Liveness(message)));
                        }
                    }
                    LivenessEffect::SupportLeft(peer, epoch) => {
                        node.events.push(Event::SupportLeft { peer, epoch });
                    }
                    LivenessEffect::ViewChanged => {}
                }
            }
        }
    }

    fn fleet(&mut self, store: StoreId) {
        let wall = self.wall(store);
        let node = self.nodes.get_mut(&store).unwrap();
        let mut peers = None;
        loop {
            let Ok(hlc) = node.clock.now(wall) else { return };
            let (engine, log) = &self.disks[&store];
            let view = node.liveness.view(hlc);
            let now = Now { hlc, mono: self.time };
            let unreadable = Unreadable;
            let reader: &dyn Reader = if self.unreadable == Some(store) { &unreadable } else { engine };
            for effect in node.fleet.step(std::mem::take(&mut node.events), now, reader, view.as_ref()) {
                match effect {
                    Effect::Write(batch) => {
                        engine.write(&batch).unwrap();
                        node.written += 1;
                    }
                    Effect::Append { ticket, ops } => {
                        let resets = ops.iter().any(|op| matches!(op, LogOp::Reset { .. }));
                        if resets && dies(&mut self.crash_at, store, Point::BeforeReset) {
                            return self.kill(store);
                        }
                        log.write(&LogBatch { ops }).unwrap();
                        if resets && dies(&mut self.crash_at, store, Point::AfterReset) {
                            return self.kill(store);
                        }
                        node.events.push(Event::Persisted(ticket));
                    }
                    Effect::Send { to, message } => {
                        self.range_messages += 1;
                        self.network.push_back((store, to, hlc, Post::Range(message)));
                    }
                    Effect::Reply { token, result } => {
                        assert!(self.answers.insert(token, result).is_none(), "answered twice: {token:?}");
                    }
                    Effect::SendSnapshot { to, header } => {
                        let view = engine.snapshot();
                        let spans = flotilla_storage::keys::spans(header.descriptor.range, &header.descriptor.span);
                        let mut writer = FrameWriter::new(view.as_ref(), header.id, spans);
                        let frames = std::iter::from_fn(|| writer.next_frame().unwrap()).collect();
                        self.network.push_back((store, to, hlc, Post::Snapshot(header, frames)));
                        self.snapshots += 1;
                    }
                    Effect::Ingest { id, files, cleared } => {
                        node.written += 1;
                        if dies(&mut self.crash_at, store, Point::BeforeIngest) {
                            return self.kill(store);
                        }
                        install(engine, id, &files, &cleared).unwrap();
                        if dies(&mut self.crash_at, store, Point::AfterIngest) {
                            return self.kill(store);
                        }
                        node.events.push(Event::Ingested(id));
                    }
                    Effect::PublishGc { span, threshold, .. } => engine.gc().publish(&span, threshold),
                    Effect::WithdrawGc { span } => engine.gc().forget(&span),
                    Effect::Peers(stores) => peers = Some(stores),
                    Effect::Flush => self.flushes.push(store),
                    Effect::Confirm { range, .. } => self.confirms.push((store, range)),
                    Effect::Discard { files } => {
                        files.iter().for_each(|file| engine.discard_ssts(file).unwrap());
                    }
                    Effect::Hash { descriptor, replica, check, applied } => {
                        let hash = hash(engine.snapshot().as_ref(), &descriptor, replica, applied).unwrap();
                        self.hashes.insert((store, descriptor.range, check), hash);
                    }
                    Effect::Lost { range, .. } if self.unreadable == Some(store) || self.may_lose == Some(store) => {
                        self.lost.push(range);
                    }
                    Effect::Lost { range, why } => panic!("{range} is lost on {store}: {why}"),
                    Effect::Count(what, by) => *self.counts.entry(what).or_default() += by,
                    _ => {}
                }
            }
            if node.events.is_empty() && !node.fleet.has_work() {
                break;
            }
        }
        if let Some(peers) = peers {
            self.liveness(store, LivenessEvent::Peers(peers));
        }
    }

    /// The IO thread of a receiver.
    fn receive(&mut self, to: StoreId, header: SnapshotHeader, frames: &[Bytes]) -> bool {
        let engine = &self.disks[&to].0;
        let mut intake = Intake::new(&header);
        for frame in frames {
            intake.accept(engine, frame).unwrap();
        }
        let files = intake.finish().unwrap();
        if dies(&mut self.crash_at, to, Point::BeforeEvent) {
            self.kill(to);
            return false;
        }
        self.nodes.get_mut(&to).unwrap().events.push(Event::SnapshotReceived { header, files });
        true
    }

    /// Flushes a store's engine, and tells its fleet.
    pub fn flush(&mut self, store: StoreId) {
        self.disks[&store].0.flush().unwrap();
        let node = self.nodes.get_mut(&store).unwrap();
        node.events.push(Event::Flushed(FlushMark(node.written)));
    }

    /// A store's engine and log.
    pub fn disk(&self, store: StoreId) -> &(MemoryEngine, Arc<MemoryLog>) {
        &self.disks[&store]
    }

    pub fn tick(&mut self) {
        self.time += TICK;
        let up: Vec<_> = self.nodes.iter().filter(|(_, node)| !node.down).map(|(store, _)| *store).collect();
        for store in &up {
            self.liveness(*store, LivenessEvent::FleetTurned);
            self.liveness(*store, LivenessEvent::Tick);
            let wall = self.wall(*store);
            let node = self.nodes.get_mut(store).unwrap();
            let view = node.liveness.view(node.clock.peek(wall));
            if !view.tells_the_same(&node.told) {
                node.events.push(Event::SupportChanged);
                node.told = view;
            }
            self.fleet(*store);
        }
        for store in std::mem::take(&mut self.flushes) {
            if !self.nodes[&store].down {
                self.flush(store);
            }
        }
        for (store, range) in std::mem::take(&mut self.confirms) {
            let of = |world: &Self| {
                let leader = world.leader(range)?;
                let status = world.nodes[&leader].fleet.status();
                status.into_iter().find(|status| status.descriptor.range == range).map(|status| status.descriptor)
            };
            if let Some(current) = of(self) {
                self.nodes.get_mut(&store).unwrap().events.push(Event::Confirmed { range, current });
            }
        }
        for _ in 0..self.network.len() {
            let (from, to, sent, post) = self.network.pop_front().unwrap();
            let wall = self.wall(to);
            let node = self.nodes.get_mut(&to).unwrap();
            if node.down || self.cut.contains(&(from, to)) || node.clock.forward(sent, wall).is_err() {
                if let Post::Snapshot(header, _) = post {
                    let failed = Event::SnapshotSent { id: header.id, delivered: false };
                    self.nodes.get_mut(&from).unwrap().events.push(failed);
                }
                continue;
            }
            match post {
                Post::Snapshot(header, frames) => {
                    let (id, whole) = (header.id, self.receive(to, header, &frames));
                    self.nodes.get_mut(&from).unwrap().events.push(Event::SnapshotSent { id, delivered: whole });
                }
                Post::Range(_) if self.cut_ranges.contains(&(from, to)) => {}
                Post::Range(message) => node.events.push(Event::Message { from, message }),
                Post::Liveness(_) if self.cut_liveness.contains(&(from, to)) => {}
                Post::Liveness(message) => self.liveness(to, LivenessEvent::Message { from, sent, message }),
            }
        }
    }

    pub fn leader(&self, range: RangeId) -> Option<StoreId> {
        let leads =
            |node: &Node| !node.down && node.fleet.status().iter().any(|r| r.descriptor.range == range && r.leads);
        self.nodes.iter().find(|(_, node)| leads(node)).map(|(store, _)| *store)
    }

    pub fn run_until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let limit = self.time + Duration::from_secs(60);
        while !holds(self) {
            assert!(self.time < limit, "a minute passed without: {what}");
            self.tick();
        }
    }

    pub fn ask(&mut self, store: StoreId, command: Command) -> Token {
        self.ask_of(store, USER, command)
    }

    pub fn ask_of(&mut self, store: StoreId, range: RangeId, command: Command) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        let request = RangeRequest { range, timeout: Duration::from_secs(3), command };
        self.nodes.get_mut(&store).unwrap().events.push(Event::Request { token, request });
        token
    }

    /// What the router will do: asks the leader, again and again with the same id, until somebody knows.
    pub fn call(&mut self, command: &Command) -> Result<Reply, RangeError> {
        self.call_of(USER, command)
    }

    pub fn call_of(&mut self, range: RangeId, command: &Command) -> Result<Reply, RangeError> {
        for _ in 0..100 {
            self.run_until("a leader", |world| world.leader(range).is_some());
            let leader = self.leader(range).unwrap();
            let token = self.ask_of(leader, range, command.clone());
            let mut waited = 0;
            while !self.answers.contains_key(&token) && !self.nodes[&leader].down && waited < 2000 {
                self.tick();
                waited += 1;
            }
            match self.answers.get(&token) {
                Some(Ok(reply)) => return Ok(reply.reply.clone()),
                Some(Err(
                    error @ (RangeError::Invalid { .. }
                    | RangeError::RangeMismatch { .. }
                    | RangeError::GenerationMismatch { .. }),
                )) => {
                    return Err(error.clone());
                }
                _ => self.tick(),
            }
        }
        panic!("never answered: {command:?}");
    }

    pub fn write(&mut self, n: u32, write: Write) -> Result<WriteResult, RangeError> {
        let id = RequestId::new(self.time.as_millis() as u64, 1, n);
        match self.call(&Command::Write { id, write })? {
            Reply::Write(result) => Ok(result),
            other => panic!("a write was answered with {other:?}"),
        }
    }

    /// The user range as its leader knows it.
    pub fn descriptor(&self) -> Option<RangeDescriptor> {
        let leader = self.leader(USER)?;
        let status = self.nodes[&leader].fleet.status();
        status.into_iter().find(|range| range.descriptor.range == USER).map(|range| range.descriptor)
    }

    /// One step towards these voters, as the router asks for it.
    pub fn step_towards(&mut self, voters: &[u64]) -> Option<Result<RangeReply, RangeError>> {
        let (descriptor, leader) = (self.descriptor()?, self.leader(USER)?);
        let voters = voters.iter().map(|store| StoreId(*store)).collect();
        let target = ConfTarget { voters, learners: Default::default() };
        let admin = Admin::ChangeReplicas { generation: descriptor.generation, target };
        let token = self.ask(leader, Command::Admin(admin));
        for _ in 0..1000 {
            if self.answers.contains_key(&token) || self.nodes[&leader].down {
                break;
            }
            self.tick();
        }
        self.answers.get(&token).cloned()
    }

    /// All steps, until exactly these stores hold voters and nobody else holds anything.
    pub fn move_to(&mut self, voters: &[u64]) {
        for _ in 0..300 {
            let done = self.descriptor().is_some_and(|descriptor| {
                let mut stores: Vec<_> = descriptor.replicas.iter().map(|replica| replica.store.0).collect();
                stores.sort_unstable();
                let full = descriptor.replicas.iter().all(|r| r.kind == ReplicaKind::Voter);
                full && stores == voters
            });
            if done {
                return;
            }
            self.step_towards(voters);
            (0..20).for_each(|_| self.tick());
        }
        panic!("never reached {voters:?}: {:?}", self.descriptor());
    }

    pub fn get(&mut self, key: &str) -> Option<Bytes> {
        let read = Read::Get { key: user(key) };
        match self.call(&Command::Read { at: ReadAt::Leaseholder, read }) {
            Ok(Reply::Get(row)) => row.map(|row| row.value),
            other => panic!("a get was answered with {other:?}"),
        }
    }
}

/// Cuts the users' range before it begins to live.
fn cut(batch: &mut WriteBatch, ops: &mut Vec<LogOp>, stores: &[StoreId], here: StoreId, pieces: u64) {
    let replicas: Vec<_> = stores
        .iter()
        .zip(1..)
        .map(|(store, id)| ReplicaDescriptor { replica: ReplicaId(id), store: *store, kind: ReplicaKind::Voter })
        .collect();
    let me = replicas.iter().find(|replica| replica.store == here).unwrap().replica;
    let LogOp::Create { trunc, hard, .. } = ops[0].clone() else { panic!("a bootstrap creates ranges") };
    let bound = |n: u64| if n > pieces { Key::MAX } else { user(&format!("{n:08}")) };
    for n in 0..=pieces {
        let range = if n == 0 { USER } else { RangeId(1000 + n) };
        let start = if n == 0 { keys::USER } else { bound(n) };
        let descriptor = RangeDescriptor {
            range,
            span: KeySpan { start, end: bound(n + 1) },
            generation: Generation(1),
            replicas: replicas.iter().copied().collect(),
            next_replica: ReplicaId(replicas.len() as u64 + 1),
        };
        let record = |record| flotilla_storage::keys::range_record(range, record);
        batch.put(record(RangeRecord::Descriptor), descriptor.encode());
        batch.put(record(RangeRecord::Applied), Applied { pos: trunc, ..Applied::default() }.encode());
        batch.put(record(RangeRecord::Lease), LeaseState::default().encode());
        batch.put(record(RangeRecord::ReplicaId), encode_replica_id(me));
        if n > 0 {
            ops.push(LogOp::Create { range, replica: me, birth: None, trunc, hard });
        }
    }
}

pub fn user(key: &str) -> Key {
    keys::user(key.as_bytes())
}

pub fn put(key: &str, value: &str) -> Write {
    Write::Put { key: user(key), value: Bytes::copy_from_slice(value.as_bytes()) }
}

pub fn text(value: Option<Bytes>) -> Option<String> {
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}
