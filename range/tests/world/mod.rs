//! Three fleets with their liveness, on engines and logs in memory, in one thread with virtual time: the network delivers
//! what is not cut, a crash loses what was not flushed, and clients retry with the same id.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_range::boot::bootstrap;
use flotilla_range::event::{Effect, Event, Now, Token};
use flotilla_range::fleet::{Fleet, FleetConfig};
use flotilla_range::liveness::{Liveness, LivenessConfig, LivenessEffect, LivenessEvent, LivenessMessage, LivenessNow};
use flotilla_range::message::PeerMessage;
use flotilla_range::raft::{GroupConfig, LogRead};
use flotilla_storage::engine::{Cursor, Engine, EngineError, Reader};
use flotilla_storage::log::{LogBatch, LogEntry, LogStore, ReadLogError};
use flotilla_storage::memory::MemoryEngine;
use flotilla_storage::memory_log::MemoryLog;
use flotilla_types::{
    Command, Hlc, Key, LogIndex, RangeError, RangeId, RangeReply, RangeRequest, Read, ReadAt, Reply, RequestId,
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
}

pub struct Node {
    pub fleet: Fleet,
    liveness: Liveness,
    clock: Hlc,
    pub(crate) events: Vec<Event>,
    boot: u32,
    pub down: bool,
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
    pub answers: BTreeMap<Token, Result<RangeReply, RangeError>>,
    next_token: u64,
    /// A store whose engine answers every read with an error.
    pub unreadable: Option<StoreId>,
    /// What that store gave up.
    pub lost: Vec<RangeId>,
}

impl World {
    pub fn new() -> Self {
        let mut world = Self {
            time: START,
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            answers: BTreeMap::new(),
            next_token: 0,
            unreadable: None,
            lost: Vec::new(),
        };
        let stores: Vec<_> = (1..=3).map(StoreId).collect();
        for store in &stores {
            let (engine, log) = (MemoryEngine::new(), Arc::new(MemoryLog::new()));
            let (batch, ops) = bootstrap(&stores, *store);
            engine.write(&batch).unwrap();
            engine.flush().unwrap();
            log.write(&LogBatch { ops }).unwrap();
            world.disks.insert(*store, (engine, log));
            world.boot(*store, 1);
        }
        world
    }

    fn boot(&mut self, store: StoreId, boot: u32) {
        let (engine, log) = &self.disks[&store];
        let group = GroupConfig { seed: store.0, ..GroupConfig::default() };
        let config = FleetConfig { store, boot, group };
        let reader = Arc::new(SharedLog(Arc::clone(log)));
        let (fleet, effects) = Fleet::boot(config, engine, reader, &log.heads(), self.time).unwrap();
        let now = LivenessNow { hlc: Timestamp::ZERO, mono: self.time };
        let phase = Duration::from_millis(store.0 * 30);
        let liveness = Liveness::restore(TIMES, boot, phase, &log.metas(), now).unwrap();
        let clock = Hlc::starting_at(liveness.bound(), Duration::from_millis(250));
        self.nodes.insert(store, Node { fleet, liveness, clock, events: Vec::new(), boot, down: false });
        for effect in effects {
            match effect {
                Effect::Peers(peers) => self.liveness(store, LivenessEvent::Peers(peers)),
                Effect::Lost { range, why } => panic!("{range} is lost at boot: {why}"),
                other => panic!("not expected at boot: {other:?}"),
            }
        }
    }

    pub fn kill(&mut self, store: StoreId) {
        self.nodes.get_mut(&store).unwrap().down = true;
        self.disks[&store].0.crash();
    }

    /// Leases 2.7: comes back once its clock has passed its old bound.
    pub fn restart(&mut self, store: StoreId) {
        let node = &self.nodes[&store];
        let (bound, boot) = (node.clock.bound(), node.boot + 1);
        while Timestamp::from_wall(self.time.as_nanos() as u64) < bound {
            self.tick();
        }
        self.boot(store, boot);
    }

    fn liveness(&mut self, store: StoreId, event: LivenessEvent) {
        let node = self.nodes.get_mut(&store).unwrap();
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = LivenessNow { hlc: node.clock.peek(self.time), mono: self.time };
            for effect in node.liveness.step(event, now) {
                match effect {
                    LivenessEffect::WriteLog(ticket, ops) => {
                        self.disks[&store].1.write(&LogBatch { ops }).unwrap();
                        events.push_back(LivenessEvent::Durable(ticket));
                    }
                    LivenessEffect::RaiseBound(bound) => node.clock.raise_bound(bound),
                    LivenessEffect::Send(to, message) => {
                        if let Ok(sent) = node.clock.now(self.time) {
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
        let node = self.nodes.get_mut(&store).unwrap();
        loop {
            let Ok(hlc) = node.clock.now(self.time) else { return };
            let (engine, log) = &self.disks[&store];
            let view = node.liveness.view(hlc);
            let now = Now { hlc, mono: self.time };
            let unreadable = Unreadable;
            let reader: &dyn Reader = if self.unreadable == Some(store) { &unreadable } else { engine };
            for effect in node.fleet.step(std::mem::take(&mut node.events), now, reader, view.as_ref()) {
                match effect {
                    Effect::Write(batch) => engine.write(&batch).unwrap(),
                    Effect::Append { ticket, ops } => {
                        log.write(&LogBatch { ops }).unwrap();
                        node.events.push(Event::Persisted(ticket));
                    }
                    Effect::Send { to, message } => {
                        self.network.push_back((store, to, hlc, Post::Range(message)));
                    }
                    Effect::Reply { token, result } => {
                        assert!(self.answers.insert(token, result).is_none(), "answered twice: {token:?}");
                    }
                    Effect::Lost { range, .. } if self.unreadable == Some(store) => self.lost.push(range),
                    Effect::Lost { range, why } => panic!("{range} is lost on {store}: {why}"),
                    _ => {}
                }
            }
            if node.events.is_empty() && !node.fleet.has_work() {
                return;
            }
        }
    }

    pub fn tick(&mut self) {
        self.time += TICK;
        let up: Vec<_> = self.nodes.iter().filter(|(_, node)| !node.down).map(|(store, _)| *store).collect();
        for store in &up {
            self.liveness(*store, LivenessEvent::FleetTurned);
            self.liveness(*store, LivenessEvent::Tick);
            self.nodes.get_mut(store).unwrap().events.push(Event::SupportChanged);
            self.fleet(*store);
        }
        for _ in 0..self.network.len() {
            let (from, to, sent, post) = self.network.pop_front().unwrap();
            let node = self.nodes.get_mut(&to).unwrap();
            if node.down || self.cut.contains(&(from, to)) || node.clock.forward(sent, self.time).is_err() {
                continue;
            }
            match post {
                Post::Range(message) => node.events.push(Event::Message { from, message }),
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
        self.next_token += 1;
        let token = Token(self.next_token);
        let request = RangeRequest { range: USER, timeout: Duration::from_secs(3), command };
        self.nodes.get_mut(&store).unwrap().events.push(Event::Request { token, request });
        token
    }

    /// What the router will do: asks the leader, again and again with the same id, until somebody knows.
    pub fn call(&mut self, command: &Command) -> Result<Reply, RangeError> {
        for _ in 0..100 {
            self.run_until("a leader", |world| world.leader(USER).is_some());
            let leader = self.leader(USER).unwrap();
            let token = self.ask(leader, command.clone());
            let mut waited = 0;
            while !self.answers.contains_key(&token) && !self.nodes[&leader].down && waited < 2000 {
                self.tick();
                waited += 1;
            }
            match self.answers.get(&token) {
                Some(Ok(reply)) => return Ok(reply.reply.clone()),
                Some(Err(error @ (RangeError::Invalid { .. } | RangeError::RangeMismatch { .. }))) => {
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

    pub fn get(&mut self, key: &str) -> Option<Bytes> {
        let read = Read::Get { key: user(key) };
        match self.call(&Command::Read { at: ReadAt::Leaseholder, read }) {
            Ok(Reply::Get(row)) => row.map(|row| row.value),
            other => panic!("a get was answered with {other:?}"),
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
