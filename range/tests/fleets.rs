//! Three fleets with their liveness, on engines and logs in memory, in one thread with virtual time: the network delivers
//! what is not cut, a crash loses what was not flushed, and clients retry with the same id.

#![allow(clippy::unwrap_used, missing_docs)]

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
use flotilla_storage::engine::Engine;
use flotilla_storage::log::{LogBatch, LogEntry, LogStore, ReadLogError};
use flotilla_storage::memory::MemoryEngine;
use flotilla_storage::memory_log::MemoryLog;
use flotilla_types::{
    BatchOp, Command, Hlc, Key, KeySpan, LogIndex, RangeError, RangeId, RangeReply, RangeRequest, Read, ReadAt, Reply,
    RequestId, StoreId, Timestamp, Write, WriteResult, keys,
};

const USER: RangeId = RangeId(5);
const START: Duration = Duration::from_secs(1_000_000);
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

struct Node {
    fleet: Fleet,
    liveness: Liveness,
    clock: Hlc,
    events: Vec<Event>,
    boot: u32,
    down: bool,
}

struct World {
    time: Duration,
    nodes: BTreeMap<StoreId, Node>,
    disks: BTreeMap<StoreId, (MemoryEngine, Arc<MemoryLog>)>,
    network: VecDeque<(StoreId, StoreId, Timestamp, Post)>,
    cut: BTreeSet<(StoreId, StoreId)>,
    answers: BTreeMap<Token, Result<RangeReply, RangeError>>,
    next_token: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            time: START,
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            answers: BTreeMap::new(),
            next_token: 0,
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
        let config = FleetConfig { store, group };
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

    fn kill(&mut self, store: StoreId) {
        self.nodes.get_mut(&store).unwrap().down = true;
        self.disks[&store].0.crash();
    }

    /// Leases 2.7: comes back once its clock has passed its old bound.
    fn restart(&mut self, store: StoreId) {
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
            for effect in node.fleet.step(std::mem::take(&mut node.events), now, engine, view.as_ref()) {
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
                    Effect::Lost { range, why } => panic!("{range} is lost on {store}: {why}"),
                    _ => {}
                }
            }
            if node.events.is_empty() && !node.fleet.has_work() {
                return;
            }
        }
    }

    fn tick(&mut self) {
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

    fn leader(&self, range: RangeId) -> Option<StoreId> {
        let leads =
            |node: &Node| !node.down && node.fleet.status().iter().any(|r| r.descriptor.range == range && r.leads);
        self.nodes.iter().find(|(_, node)| leads(node)).map(|(store, _)| *store)
    }

    fn run_until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let limit = self.time + Duration::from_secs(60);
        while !holds(self) {
            assert!(self.time < limit, "a minute passed without: {what}");
            self.tick();
        }
    }

    fn ask(&mut self, store: StoreId, command: Command) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        let request = RangeRequest { range: USER, timeout: Duration::from_secs(3), command };
        self.nodes.get_mut(&store).unwrap().events.push(Event::Request { token, request });
        token
    }

    /// What the router will do: asks the leader, again and again with the same id, until somebody knows.
    fn call(&mut self, command: &Command) -> Result<Reply, RangeError> {
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

    fn write(&mut self, n: u32, write: Write) -> Result<WriteResult, RangeError> {
        let id = RequestId::new(self.time.as_millis() as u64, 1, n);
        match self.call(&Command::Write { id, write })? {
            Reply::Write(result) => Ok(result),
            other => panic!("a write was answered with {other:?}"),
        }
    }

    fn get(&mut self, key: &str) -> Option<Bytes> {
        let read = Read::Get { key: user(key) };
        match self.call(&Command::Read { at: ReadAt::Leaseholder, read }) {
            Ok(Reply::Get(row)) => row.map(|row| row.value),
            other => panic!("a get was answered with {other:?}"),
        }
    }
}

fn user(key: &str) -> Key {
    keys::user(key.as_bytes())
}

fn put(key: &str, value: &str) -> Write {
    Write::Put { key: user(key), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn text(value: Option<Bytes>) -> Option<String> {
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

#[test]
fn three_stores_elect_leaders_and_keep_what_they_acknowledge() {
    let mut world = World::new();
    for n in 0..20 {
        assert_eq!(world.write(n, put(&format!("k{n}"), &format!("v{n}"))), Ok(WriteResult::Done));
    }
    for n in 0..20 {
        assert_eq!(text(world.get(&format!("k{n}"))), Some(format!("v{n}")));
    }
    world.run_until("all replicas agree", |world| {
        let user = |node: &Node| {
            let status = node.fleet.status().into_iter().find(|range| range.descriptor.range == USER).unwrap();
            (status.applied, status.sum)
        };
        world.nodes.values().map(user).collect::<BTreeSet<_>>().len() == 1
    });
}

#[test]
fn every_kind_of_write_and_read_does_what_it_says() {
    let mut world = World::new();
    let swap = |expected: Option<&'static str>, new: Option<&'static str>| Write::CompareAndSwap {
        key: user("c"),
        expected: expected.map(Bytes::from),
        new: new.map(Bytes::from),
    };
    assert_eq!(world.write(1, swap(None, Some("1"))), Ok(WriteResult::Done));
    let failed = WriteResult::ConditionFailed { actual: Some(Bytes::from("1")) };
    assert_eq!(world.write(2, swap(None, Some("2"))), Ok(failed));
    assert_eq!(world.write(3, swap(Some("1"), None)), Ok(WriteResult::Done));
    assert_eq!(world.get("c"), None);
    let ops = ["a", "b", "d"].map(|key| BatchOp::Put { key: user(key), value: Bytes::from("x") });
    assert_eq!(world.write(4, Write::Batch { ops: ops.to_vec() }), Ok(WriteResult::Done));
    assert_eq!(world.write(5, Write::Delete { key: user("b") }), Ok(WriteResult::Done));
    let span = KeySpan::new(user("a"), user("z")).unwrap();
    let read = Read::Scan { span: span.clone(), reverse: true, rows_max: 0, bytes_max: 1 << 20 };
    let Ok(Reply::Scan(found)) = world.call(&Command::Read { at: ReadAt::Leaseholder, read }) else { panic!() };
    assert_eq!(found.rows.iter().map(|row| row.key.clone()).collect::<Vec<_>>(), [user("d"), user("a")]);
    let twice = vec![BatchOp::Delete { key: user("a") }, BatchOp::Delete { key: user("a") }];
    assert!(matches!(world.write(6, Write::Batch { ops: twice }), Err(RangeError::Invalid { .. })));
    let deleted = |keys, resume: Option<&str>| Ok(WriteResult::Deleted { keys, resume: resume.map(user) });
    assert_eq!(world.write(7, Write::DeleteRange { span: span.clone(), keys_max: 1 }), deleted(1, Some("b")));
    assert_eq!(world.write(8, Write::DeleteRange { span, keys_max: 9 }), deleted(1, None));
    let outside = Write::Put { key: keys::SYSTEM, value: Bytes::new() };
    assert!(matches!(world.write(9, outside), Err(RangeError::RangeMismatch { .. })));
}

#[test]
fn a_request_that_is_sent_again_takes_effect_once() {
    let mut world = World::new();
    let id = RequestId::new(world.time.as_millis() as u64, 1, 1);
    let swap = Write::CompareAndSwap { key: user("c"), expected: None, new: Some(Bytes::from("mine")) };
    let command = Command::Write { id, write: swap };
    let first = world.call(&command);
    assert_eq!(first, Ok(Reply::Write(WriteResult::Done)));
    assert_eq!(world.write(2, put("c", "another's")), Ok(WriteResult::Done));
    assert_eq!(world.call(&command), first, "the retry hears what the first try would have heard");
    assert_eq!(text(world.get("c")), Some("another's".to_owned()));
    let leader = world.leader(USER).unwrap();
    world.kill(leader);
    assert_eq!(world.call(&command), first, "also from another leader");
    let span = KeySpan::new(user("a"), user("z")).unwrap();
    let id = RequestId::new(world.time.as_millis() as u64, 1, 3);
    let delete = Command::Write { id, write: Write::DeleteRange { span, keys_max: 10 } };
    assert_eq!(world.call(&delete), world.call(&delete));
}

#[test]
fn leaders_die_one_after_the_other_and_nothing_acknowledged_is_lost() {
    let mut world = World::new();
    let mut acknowledged = BTreeMap::new();
    for round in 0..6u32 {
        for n in 0..5 {
            let (key, value) = (format!("k{}", (round * 3 + n) % 11), format!("{round}-{n}"));
            assert_eq!(world.write(round * 10 + n, put(&key, &value)), Ok(WriteResult::Done));
            acknowledged.insert(key, value);
        }
        let leader = world.leader(USER).unwrap();
        world.kill(leader);
        world.run_until("another leader", |world| world.leader(USER).is_some_and(|new| new != leader));
        for (key, value) in &acknowledged {
            assert_eq!(text(world.get(key)).as_ref(), Some(value));
        }
        world.restart(leader);
    }
}

#[test]
fn all_stores_crash_at_once_and_come_back_with_everything() {
    let mut world = World::new();
    for n in 0..10 {
        world.write(n, put(&format!("k{n}"), "kept")).unwrap();
    }
    let stores: Vec<_> = world.nodes.keys().copied().collect();
    stores.iter().for_each(|store| world.kill(*store));
    stores.iter().for_each(|store| world.restart(*store));
    for n in 0..10 {
        assert_eq!(text(world.get(&format!("k{n}"))), Some("kept".to_owned()));
    }
}

#[test]
fn a_leader_that_is_cut_off_stops_answering_before_another_writes() {
    let mut world = World::new();
    world.write(1, put("k", "old")).unwrap();
    let old = world.leader(USER).unwrap();
    for other in world.nodes.keys().copied().filter(|store| *store != old).collect::<Vec<_>>() {
        world.cut.extend([(old, other), (other, old)]);
    }
    let usable_elsewhere = |world: &World| {
        let leads = |node: &Node| node.fleet.status().iter().any(|r| r.descriptor.range == USER && r.leads);
        world.nodes.iter().any(|(store, node)| *store != old && leads(node))
    };
    let mut served = 0;
    while !usable_elsewhere(&world) {
        let token = world.ask(old, Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: user("k") } });
        world.tick();
        served += u32::from(matches!(world.answers.get(&token), Some(Ok(_))));
    }
    assert!(served > 0, "it serves while it is supported");
    for _ in 0..400 {
        let token = world.ask(old, Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: user("k") } });
        world.tick();
        assert!(!matches!(world.answers.get(&token), Some(Ok(_))), "a stale leader answered");
    }
    world.cut.clear();
    assert_eq!(text(world.get("k")), Some("old".to_owned()));
}

#[test]
fn a_minority_acknowledges_nothing_and_says_so_in_time() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    for other in world.nodes.keys().copied().filter(|store| *store != leader).collect::<Vec<_>>() {
        world.kill(other);
    }
    let id = RequestId::new(world.time.as_millis() as u64, 2, 2);
    let token = world.ask(leader, Command::Write { id, write: put("k", "2") });
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    assert!(matches!(world.answers[&token], Err(RangeError::Ambiguous { .. })), "{:?}", world.answers[&token]);
}

#[test]
fn what_comes_from_the_future_is_refused() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let later = world.time + Duration::from_secs(60);
    let id = RequestId::new(later.as_millis() as u64, 1, 2);
    let refused = world.call(&Command::Write { id, write: put("k", "2") });
    assert!(matches!(refused, Err(RangeError::Invalid { .. })), "its retries could not be recognised");
    let leader = world.leader(USER).unwrap();
    let timestamp = Timestamp::from_wall(world.time.as_nanos() as u64 + 1_000_000_000);
    let at = ReadAt::Timestamp { timestamp, limit: timestamp };
    let token = world.ask(leader, Command::Read { at, read: Read::Get { key: user("k") } });
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    assert_eq!(world.answers[&token], Err(RangeError::FutureTimestamp { timestamp }));
}

#[test]
fn a_read_of_the_past_sees_the_past_and_a_write_in_its_uncertainty_restarts_it() {
    let mut world = World::new();
    world.write(1, put("k", "old")).unwrap();
    world.run_until("time passes", |world| world.time > START + Duration::from_secs(8));
    let before = Timestamp::from_wall(world.time.as_nanos() as u64);
    world.run_until("time passes", |world| world.time > START + Duration::from_secs(9));
    world.write(2, put("k", "new")).unwrap();
    let leader = world.leader(USER).unwrap();
    let mut read = |limit: Timestamp| {
        let at = ReadAt::Timestamp { timestamp: before, limit };
        let token = world.ask(leader, Command::Read { at, read: Read::Get { key: user("k") } });
        world.run_until("an answer", |world| world.answers.contains_key(&token));
        world.answers[&token].clone()
    };
    let Ok(RangeReply { reply: Reply::Get(Some(row)), .. }) = read(before) else { panic!("the past is gone") };
    assert_eq!(row.value, Bytes::from("old"));
    assert!(matches!(read(before.plus(Duration::from_secs(2))), Err(RangeError::Uncertain { .. })));
}
