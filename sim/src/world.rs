//! The world: one queue of what will happen, and everything it happens to.
//!
//! ```text
//!   queue ──► dispatch ──► host (fleet, liveness, log) ──► wants ──► network ──► queue
//!   timers ─► executor (routers, clients) ──► outbox ─────────────► network ──► queue
//! ```
//! Time jumps from one event to the next, so that quiet minutes cost nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_kv::{KvError, SendError};
use flotilla_range::boot::bootstrap;
use flotilla_range::event::{Event, Token};
use flotilla_range::liveness::LivenessEvent;
use flotilla_range::message::SnapshotId;
use flotilla_storage::engine::Engine;
use flotilla_storage::log::{LogBatch, LogStore};
use flotilla_types::{
    Command, Key, KeySpan, PushTxn, RangeDescriptor, RangeError, RangeId, RangeReply, RangeRequest, Read, ReadAt,
    Reply, StoreId, Timestamp, nanoseconds,
};
use futures::channel::oneshot;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::executor::Executor;
use crate::invariants::Invariants;
use crate::network::{CallId, Fate, Network, Post};
use crate::node::{Env, Host, Node, Want, Work};
use crate::time::Time;
use crate::trace::Trace;
use crate::transport::{Outbox, Wish};

/// A message that is above the receiver's durable bound is looked at again after this time, a few times.
const HELD: Duration = Duration::from_millis(50);
const HELD_MAX: u32 = 20;

/// What will happen.
#[derive(Debug)]
enum Happening {
    Work(StoreId, u32, Work),
    Arrival {
        from: StoreId,
        to: StoreId,
        sent: Timestamp,
        delay: Duration,
        held: u32,
        post: Post,
    },
    Start(StoreId),
    Unreachable(StoreId, StoreId),
    SnapshotSent(SnapshotId, bool),
    CallEnds(CallId, Result<RangeReply, SendError>),
    Root(oneshot::Sender<Result<RangeDescriptor, String>>, Result<RangeDescriptor, String>),
    /// Something that the run planned: see `Run`.
    Planned(u64),
}

/// What became of changes of ranges: their kind, what was wanted, and how they ended.
pub(crate) type Changes = Arc<Mutex<Vec<(&'static str, String, Result<(), KvError>)>>>;

/// See the module's page.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) time: Arc<Time>,
    pub(crate) random: ChaCha8Rng,
    pub(crate) hosts: BTreeMap<StoreId, Host>,
    pub(crate) network: Network,
    pub(crate) executor: Executor,
    pub(crate) trace: Trace,
    pub(crate) invariants: Invariants,
    /// Stores whose log was damaged on purpose: of the range, or of the parent that it was to be born from.
    pub(crate) damaged: BTreeSet<StoreId>,
    /// Replicas that are out of order and have to be replaced.
    pub(crate) lost: Arc<Mutex<BTreeSet<(StoreId, RangeId)>>>,
    /// How changes of ranges ended, by kind.
    pub(crate) changes: Changes,
    /// What went wrong, first things first.
    pub(crate) failures: Vec<String>,
    outbox: Outbox,
    queue: BTreeMap<(Duration, u64), Happening>,
    numbers: u64,
    /// Requests that a store has not answered yet: who asked.
    open: BTreeMap<Token, (StoreId, StoreId, CallId)>,
    /// Plans of the run that are due.
    due: Vec<u64>,
}

impl World {
    /// Stores 1 to `stores`, the first ranges on the first `replicas` of them.
    pub(crate) fn new(seed: u64, stores: u64, replicas: u64) -> Self {
        let mut world = Self {
            seed,
            time: Arc::new(Time::default()),
            random: ChaCha8Rng::seed_from_u64(seed),
            hosts: BTreeMap::new(),
            network: Network::default(),
            executor: Executor::default(),
            trace: Trace::default(),
            invariants: Invariants::default(),
            damaged: BTreeSet::new(),
            lost: Arc::default(),
            changes: Arc::default(),
            failures: Vec::new(),
            outbox: Outbox::default(),
            queue: BTreeMap::new(),
            numbers: 0,
            open: BTreeMap::new(),
            due: Vec::new(),
        };
        let first: Vec<_> = (1..=replicas).map(StoreId).collect();
        for store in (1..=stores).map(StoreId) {
            world.add_store(store, &first);
        }
        world
    }

    /// A new machine with an empty disk, or one of the first.
    pub(crate) fn add_store(&mut self, store: StoreId, first: &[StoreId]) {
        let mut host = Host::new(store);
        if first.contains(&store) {
            let (batch, ops) = bootstrap(first, store);
            let written = host.disk.engine.write(&batch).and_then(|()| host.disk.engine.flush());
            let logged = host.disk.log.write(&LogBatch { ops });
            if written.is_err() || logged.is_err() {
                self.fail(format!("{store} could not be made"));
            }
            host.disk.mark = host.disk.log.seq();
        }
        self.hosts.insert(store, host);
        self.plan(Duration::from_millis(store.0), Happening::Start(store));
    }

    pub(crate) fn now(&self) -> Duration {
        self.time.now()
    }

    pub(crate) fn note(&mut self, line: &str) {
        self.trace.note(self.time.now(), line);
    }

    /// The run has failed; it goes on, so that one sees what follows.
    pub(crate) fn fail(&mut self, why: String) {
        self.note(&format!("FAILED: {why}"));
        if self.failures.len() < 20 {
            self.failures.push(why);
        }
    }

    fn plan(&mut self, after: Duration, what: Happening) {
        let at = self.now() + after;
        self.plan_at(at, what);
    }

    fn plan_at(&mut self, at: Duration, what: Happening) {
        self.numbers += 1;
        self.queue.insert((at.max(self.now()), self.numbers), what);
    }

    /// The run is called back with this number.
    pub(crate) fn call_back(&mut self, after: Duration, number: u64) {
        self.plan(after, Happening::Planned(number));
    }

    /// Lets the next thing happen, unless it lies beyond `limit`; then time goes on to there. The answer is what the run
    /// planned for this moment.
    pub(crate) fn step(&mut self, limit: Duration) -> Option<Vec<u64>> {
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        let next = queued.into_iter().chain(self.time.next_timer()).min();
        let Some(at) = next.filter(|at| *at <= limit) else {
            self.time.set(limit);
            return None;
        };
        self.time.set(at.max(self.now()));
        if queued.is_some_and(|queued| queued <= at)
            && let Some((_, what)) = self.queue.pop_first()
        {
            self.dispatch(what);
        }
        self.time.fire();
        self.executor.run();
        self.grant_wishes();
        Some(std::mem::take(&mut self.due))
    }

    fn dispatch(&mut self, what: Happening) {
        match what {
            Happening::Work(store, boot, work) => self.work(store, boot, work),
            Happening::Arrival { from, to, sent, delay, held, post } => self.arrive(from, to, sent, delay, held, post),
            Happening::Start(store) => self.start(store),
            Happening::Unreachable(store, peer) => self.tell(store, Event::Unreachable(peer)),
            Happening::SnapshotSent(id, delivered) => self.tell(id.from, Event::SnapshotSent { id, delivered }),
            Happening::CallEnds(call, answer) => self.outbox.answer(call, answer),
            Happening::Root(asker, found) => {
                // The router may have ended.
                let _ = asker.send(found);
            }
            Happening::Planned(number) => self.due.push(number),
        }
    }

    /// Calls into a host with the time and the dice, and carries out what it wants.
    pub(crate) fn with<R>(&mut self, store: StoreId, call: impl FnOnce(&mut Host, &mut Env<'_>) -> R) -> Option<R> {
        let host = self.hosts.get_mut(&store)?;
        let mut env = Env { time: self.time.now(), random: &mut self.random, wants: Vec::new() };
        let result = call(host, &mut env);
        let (wants, boot) = (env.wants, host.disk.boot);
        for want in wants {
            self.grant(store, boot, want);
        }
        Some(result)
    }

    pub(crate) fn tell(&mut self, store: StoreId, event: Event) {
        self.with(store, |host, env| host.tell(env, event));
    }

    fn work(&mut self, store: StoreId, boot: u32, work: Work) {
        let Some(host) = self.hosts.get(&store) else { return };
        if host.disk.boot != boot || host.node.is_none() {
            return;
        }
        if host.paused_until > self.now() {
            let until = host.paused_until;
            return self.plan_at(until, Happening::Work(store, boot, work));
        }
        if let Some(Err(why)) = self.with(store, |host, env| host.work(env, work)) {
            self.fail(format!("{store}: {why}"));
        }
        if work == Work::Turn {
            self.look_at(store);
        }
    }

    /// What must hold after every turn.
    fn look_at(&mut self, store: StoreId) {
        let Some(node) = self.hosts.get(&store).and_then(|host| host.node.as_ref()) else { return };
        if let Err(why) = self.invariants.look(store, node) {
            self.fail(why);
        }
    }

    fn grant(&mut self, store: StoreId, boot: u32, want: Want) {
        match want {
            Want::Later(at, work) => self.plan_at(at, Happening::Work(store, boot, work)),
            Want::Send { to, sent, post } => self.send(store, to, sent, post),
            Want::Answer { token, sent, result } => {
                let Some((gateway, by, call)) = self.open.remove(&token) else {
                    return self.fail(format!("{store} answered {token:?} twice, or without being asked"));
                };
                if by != store {
                    return self.fail(format!("{store} answered {token:?}, which was asked of {by}"));
                }
                if let Err(RangeError::Ambiguous { .. }) = &result {
                    self.trace.count("ambiguous answers");
                }
                self.send(store, gateway, sent, Post::Reply(call, result));
            }
            Want::Confirm(range, key) => self.confirm(store, range, key),
            Want::Push { range, number, keys, push } => self.push(store, range, number, keys, *push),
            Want::Lead(descriptor) => self.keep_meta(store, descriptor),
            Want::Lost { range, why } => self.replica_lost(store, range, &why),
            Want::Count(what, by) => {
                self.trace.add(what, by);
                if what == "flotilla_replicas_diverged_total" {
                    self.fail(format!("{store} finds a replica that applied other commands"));
                }
            }
        }
    }

    fn send(&mut self, from: StoreId, to: StoreId, sent: Timestamp, post: Post) {
        match self.network.fate(from, to, &post, &mut self.random) {
            Fate::Arrives(delay, again) => {
                if let Some(later) = again {
                    self.trace.count("messages doubled");
                    let post = post.clone();
                    self.plan(later, Happening::Arrival { from, to, sent, delay: later, held: 0, post });
                }
                self.plan(delay, Happening::Arrival { from, to, sent, delay, held: 0, post });
            }
            Fate::Lost => {
                self.trace.count("messages lost");
                self.not_delivered(from, to, post, false);
            }
        }
    }

    /// A message did not arrive. `refused`: the sender learns at once that nobody is there.
    fn not_delivered(&mut self, from: StoreId, to: StoreId, post: Post, refused: bool) {
        let soon = Duration::from_millis(self.random.random_range(1..40));
        match post {
            Post::Snapshot(header, _) => {
                self.note(&format!("a snapshot of {} from {from} to {to} breaks", header.descriptor.range));
                self.plan(soon * 10, Happening::SnapshotSent(header.id, false));
            }
            // Nobody hears of a request that is lost: the router's patience ends first.
            Post::Request(call, _) if refused => {
                let answer = Err(SendError::NotSent(format!("{to} refuses the connection")));
                self.plan(soon, Happening::CallEnds(call, answer));
            }
            Post::Range(_) if refused || self.random.random_bool(0.2) => {
                self.plan(soon, Happening::Unreachable(from, to));
            }
            Post::Request(..) | Post::Reply(..) | Post::Range(_) | Post::Liveness(_) => {}
        }
    }

    fn arrive(&mut self, from: StoreId, to: StoreId, sent: Timestamp, delay: Duration, held: u32, post: Post) {
        let now = self.now();
        let Some(host) = self.hosts.get_mut(&to) else { return };
        if host.paused_until > now {
            let (until, delay) = (host.paused_until, delay + (host.paused_until - now));
            return self.plan_at(until, Happening::Arrival { from, to, sent, delay, held, post });
        }
        let Some(node) = &mut host.node else {
            let refused = self.random.random_bool(0.7);
            return self.not_delivered(from, to, post, refused);
        };
        if from != to {
            let there = Duration::from_nanos(sent.wall) + delay;
            let here = node.clock.physical();
            let apart = i64::try_from(there.abs_diff(here).as_millis()).unwrap_or(i64::MAX);
            node.suspicion.measured(from, if there < here { -apart } else { apart });
            match node.clock.forward(sent) {
                Ok(()) => {}
                Err(flotilla_types::ClockError::Ahead { .. }) => {
                    self.trace.count("messages from a clock too far ahead");
                    return self.not_delivered(from, to, post, false);
                }
                Err(flotilla_types::ClockError::BeyondBound { .. }) if held < HELD_MAX => {
                    let (delay, held) = (delay + HELD, held + 1);
                    return self.plan(HELD, Happening::Arrival { from, to, sent, delay, held, post });
                }
                Err(flotilla_types::ClockError::BeyondBound { .. }) => {
                    return self.not_delivered(from, to, post, false);
                }
            }
        }
        self.trace.mix(now, &[from.0, to.0, sent.wall, u64::from(sent.logical)]);
        match post {
            Post::Range(message) => self.tell(to, Event::Message { from, message }),
            Post::Liveness(message) => {
                let event = LivenessEvent::Message { from, sent, message };
                self.with(to, |host, env| host.step_liveness(env, event));
            }
            Post::Snapshot(header, frames) => {
                let id = header.id;
                self.note(&format!("{to} receives a snapshot of {} from {from}", header.descriptor.range));
                let whole = self.with(to, |host, env| host.receive_snapshot(env, header, &frames)) == Some(true);
                self.plan(Duration::from_millis(1), Happening::SnapshotSent(id, whole));
            }
            Post::Request(call, request) => {
                self.numbers += 1;
                let token = Token(self.numbers);
                self.open.insert(token, (from, to, call));
                self.tell(to, Event::Request { token, request });
            }
            Post::Reply(call, result) => self.outbox.answer(call, result.map_err(SendError::Range)),
        }
    }

    fn grant_wishes(&mut self) {
        for wish in self.outbox.take() {
            match wish {
                Wish::Send { gateway, to, call, request } => {
                    let clock = self.node(gateway).map(|node| node.clock.reading());
                    match clock {
                        Some(Ok(sent)) => self.send(gateway, to, sent, Post::Request(call, *request)),
                        _ => {
                            let why = "the gateway's clock is beyond its bound".to_owned();
                            self.plan(HELD, Happening::CallEnds(call, Err(SendError::NotSent(why))));
                        }
                    }
                }
                Wish::Confirmed { gateway, range, current } => {
                    self.trace.count("records confirmed");
                    self.tell(gateway, Event::Confirmed { range, current: *current });
                }
                Wish::Pushed { gateway, range, number, result } => {
                    self.trace.count("pushes answered");
                    self.tell(gateway, Event::Pushed { range, number, result });
                }
                // What a dying process leaves behind does not run.
                Wish::Spawn { gateway, .. } if self.node(gateway).is_none() => {}
                Wish::Spawn { gateway, task } => self.executor.spawn(gateway, task),
                Wish::Root { gateway, answer } => {
                    let found = self.find_root(gateway).ok_or_else(|| "nobody who is reached knows it".to_owned());
                    self.plan(Duration::from_millis(2), Happening::Root(answer, found));
                }
            }
        }
    }

    /// The newest descriptor of the first range among those whom a gateway reaches.
    fn find_root(&self, gateway: StoreId) -> Option<RangeDescriptor> {
        let reached = |store: &StoreId| {
            *store == gateway
                || !(self.network.cut.contains(&(gateway, *store)) || self.network.cut.contains(&(*store, gateway)))
        };
        let nodes = self.hosts.iter().filter(|(store, _)| reached(store)).filter_map(|(_, host)| host.node.as_ref());
        let known = nodes.flat_map(|node| node.fleet.status()).map(|status| status.descriptor);
        known.filter(|range| range.span.start == KeySpan::ALL.start).max_by_key(|range| range.generation)
    }

    pub(crate) fn node(&self, store: StoreId) -> Option<&Node> {
        self.hosts.get(&store)?.node.as_ref()
    }

    /// Stores whose process runs.
    pub(crate) fn up(&self) -> Vec<StoreId> {
        self.hosts.iter().filter(|(_, host)| host.node.is_some()).map(|(store, _)| *store).collect()
    }

    /// Asks a store for a key, past every router, and waits for its answer.
    pub(crate) fn ask_store(
        &mut self,
        store: StoreId,
        key: &Key,
        patience: Duration,
    ) -> Option<Result<Option<String>, RangeError>> {
        let status = self.node(store)?.fleet.status();
        let range = status.iter().find(|status| status.descriptor.span.contains(key))?.descriptor.range;
        let command = Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: key.clone() } };
        let (call, answered) = self.outbox.call(store);
        self.numbers += 1;
        let token = Token(self.numbers);
        self.open.insert(token, (store, store, call));
        self.tell(store, Event::Request { token, request: RangeRequest { range, timeout: patience, command } });
        let told = Arc::new(Mutex::new(None));
        let tell = Arc::clone(&told);
        self.executor.spawn(store, async move {
            *crate::time::lock(&tell) = answered.await.ok();
        });
        let limit = self.now() + patience;
        while crate::time::lock(&told).is_none() && self.step(limit).is_some() {}
        let answer = crate::time::lock(&told).take()?;
        let text = |reply: RangeReply| match reply.reply {
            Reply::Get(row) => row.map(|row| String::from_utf8_lossy(&row.value).into_owned()),
            _ => None,
        };
        match answer {
            Ok(reply) => Some(Ok(text(reply))),
            Err(SendError::Range(error)) => Some(Err(error)),
            Err(_) => None,
        }
    }

    /// The sync that a stalled disk holds up ends now.
    pub(crate) fn end_sync(&mut self, store: StoreId) {
        let boot = self.hosts.get(&store).map_or(0, |host| host.disk.boot);
        self.plan(Duration::from_millis(1), Happening::Work(store, boot, Work::Synced));
    }

    /// A crash of the machine.
    pub(crate) fn crash(&mut self, store: StoreId) {
        let Some(host) = self.hosts.get_mut(&store).filter(|host| host.node.is_some()) else { return };
        if host.crash(&mut self.random) {
            self.trace.count("crashes that lost log batches");
        }
        host.paused_until = Duration::ZERO;
        host.down_since = self.time.now();
        self.executor.drop_tasks_of(store);
        self.outbox.forget(store);
        self.note(&format!("{store} crashes"));
        // Peers see the connection break, and what was asked there is in doubt.
        let asked: Vec<_> = self.open.iter().filter(|(_, (_, by, _))| *by == store).map(|(token, _)| *token).collect();
        for token in asked {
            let Some((_, _, call)) = self.open.remove(&token) else { continue };
            if self.random.random_bool(0.5) {
                let broken = Err(SendError::Lost(format!("the connection to {store} broke")));
                self.plan(Duration::from_millis(2), Happening::CallEnds(call, broken));
            }
        }
        for peer in self.up() {
            self.plan(Duration::from_millis(2), Happening::Unreachable(peer, store));
        }
    }

    /// Starts a store after a while.
    pub(crate) fn restart(&mut self, store: StoreId, after: Duration) {
        self.plan(after, Happening::Start(store));
    }

    /// A start, or a look whether the boot wait is over.
    fn start(&mut self, store: StoreId) {
        let (now, time, outbox, seed) = (self.now(), Arc::clone(&self.time), self.outbox.clone(), self.seed);
        let Some(host) = self.hosts.get_mut(&store) else { return };
        if host.node.is_some() || host.fenced.is_some() {
            return;
        }
        // Durability, "Log": less than was synced once is a lost tail.
        if host.disk.log.seq() < host.disk.mark {
            let why = format!("its log ends at {:?} and was synced up to {:?}", host.disk.log.seq(), host.disk.mark);
            self.trace.count("stores fenced");
            self.note(&format!("{store} is fenced: {why}"));
            if let Some(host) = self.hosts.get_mut(&store) {
                host.fenced = Some(why);
            }
            return;
        }
        match host.bound() {
            Ok(bound) if Timestamp::from_wall(nanoseconds(host.wall().read(now))) < bound => {
                self.trace.count("boot waits");
                return self.plan(Duration::from_millis(100), Happening::Start(store));
            }
            Ok(_) => {}
            Err(why) => return self.fail(format!("{store} cannot start: {why}")),
        }
        self.trace.count("starts");
        self.note(&format!("{store} starts"));
        if let Some(Err(why)) = self.with(store, |host, env| host.start(env, &time, &outbox, seed)) {
            self.fail(format!("{store} cannot start: {why}"));
        }
    }

    /// Counts the changes of ranges that ended, by how.
    pub(crate) fn count_changes(&mut self) {
        let ended = std::mem::take(&mut *crate::time::lock(&self.changes));
        for (kind, what, result) in ended {
            match &result {
                Ok(()) => self.note(&format!("{kind} ({what}): done")),
                Err(why) => self.note(&format!("{kind} ({what}): {why}")),
            }
            self.trace.count(match (kind, result) {
                ("splits", Ok(())) => "splits",
                ("splits", Err(_)) => "splits that failed",
                ("transfers", Ok(())) => "transfers",
                ("transfers", Err(_)) => "transfers that failed",
                ("operators", Ok(())) => "operators",
                ("operators", Err(_)) => "operators that failed",
                (_, Ok(())) => "membership changes",
                (_, Err(_)) => "membership changes that failed",
            });
        }
    }

    /// A replica gave up. Only a disk that lost something may be the cause.
    fn replica_lost(&mut self, store: StoreId, range: RangeId, why: &str) {
        self.trace.count("replicas lost");
        self.note(&format!("{range} is lost on {store}: {why}"));
        if !self.damaged.contains(&store) {
            self.fail(format!("{range} is lost on {store}: {why}"));
        }
        crate::time::lock(&self.lost).insert((store, range));
    }

    /// Reads the record of a range for one of its replicas that hears nothing any more.
    fn confirm(&mut self, store: StoreId, range: RangeId, key: Key) {
        let Some(node) = self.node(store) else { return };
        let (router, outbox) = (node.router.clone(), self.outbox.clone());
        self.executor.spawn(store, async move {
            let deadline = router.clock().mono() + Duration::from_secs(10);
            if let Ok(current) = router.owner(&key, deadline).await {
                outbox.wish(Wish::Confirmed { gateway: store, range, current: Box::new(current) });
            }
        });
    }

    /// Asks the record of a transaction in the way of a request.
    fn push(&mut self, store: StoreId, range: RangeId, number: u64, keys: Vec<Key>, push: PushTxn) {
        let Some(node) = self.node(store) else { return };
        let (router, outbox) = (node.router.clone(), self.outbox.clone());
        self.executor.spawn(store, async move {
            let result = router.push(push, keys).await.ok();
            outbox.wish(Wish::Pushed { gateway: store, range, number, result });
        });
    }

    /// What the keeper of a node does: writes the newest descriptor's record until it is there.
    fn keep_meta(&mut self, store: StoreId, descriptor: RangeDescriptor) {
        let Some(node) = self.hosts.get(&store).and_then(|host| host.node.as_ref()) else { return };
        let range = descriptor.range;
        let mut keeping = crate::time::lock(&node.keeping);
        if keeping.get(&range).is_some_and(|known| known.generation > descriptor.generation) {
            return;
        }
        if keeping.insert(range, descriptor).is_some() {
            // The task that keeps it takes the newest each time.
            return;
        }
        let (router, kept) = (node.router.clone(), Arc::clone(&node.keeping));
        self.executor.spawn(store, async move {
            loop {
                let Some(newest) = crate::time::lock(&kept).get(&range).cloned() else { return };
                let deadline = router.clock().mono() + Duration::from_secs(10);
                let done = router.keep_meta(newest.clone(), deadline).await.is_ok();
                if done && is_kept(&kept, &newest) {
                    return;
                }
                router.clock().sleep(Duration::from_millis(300)).await;
            }
        });
    }
}

/// A record was written: forgets the range unless a newer descriptor came meanwhile.
fn is_kept(keeping: &Mutex<BTreeMap<RangeId, RangeDescriptor>>, written: &RangeDescriptor) -> bool {
    let mut keeping = crate::time::lock(keeping);
    let kept = keeping.get(&written.range).is_none_or(|newest| newest.generation == written.generation);
    if kept {
        keeping.remove(&written.range);
    }
    kept
}
