//! A dumb cluster in memory, in virtual time: ranges that split and change leaders, stores that are down, requests that
//! are lost, doubled by a retry, or arrive late. All replicas of a range share one state, so it knows nothing of
//! consensus; what it checks is the router.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{Clock, Router, RouterConfig, SendError, Tasks, Transport};
use flotilla_types::{
    Admin, BatchOp, ClockError, Command, Generation, Key, KeySpan, RangeDescriptor, RangeError, RangeId, RangeReply,
    RangeRequest, Read, ReadAt, ReplicaDescriptor, ReplicaId, ReplicaKind, Reply, RequestId, Row, ScanResult, StoreId,
    Term, Timestamp, Write, WriteResult, keys,
};
use futures::FutureExt;
use futures::future::BoxFuture;

pub const STORES: [StoreId; 3] = [StoreId(1), StoreId(2), StoreId(3)];
pub const MAX_OFFSET: Duration = Duration::from_millis(250);
const EPOCH: Duration = Duration::from_secs(1_790_000_000);

/// How often, in a thousand, a request meets what.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub not_sent: u64,
    pub lost_before: u64,
    pub lost_after: u64,
    /// Done long after the router has stopped waiting.
    pub late: u64,
    pub overloaded: u64,
}

#[derive(Debug, Clone)]
pub struct FakeRange {
    pub descriptor: RangeDescriptor,
    pub leader: Option<StoreId>,
    pub term: Term,
}

#[derive(Debug, Clone)]
struct Version {
    timestamp: Timestamp,
    value: Option<Bytes>,
    id: Option<RequestId>,
}

#[derive(Default)]
pub struct State {
    mono: Duration,
    timers: Vec<Duration>,
    pub ranges: Vec<FakeRange>,
    data: BTreeMap<Key, Vec<Version>>,
    finished: BTreeMap<(Key, [u8; 16]), (RangeReply, Key)>,
    pub down: Vec<StoreId>,
    /// Stores that take requests and never answer.
    pub hung: Vec<StoreId>,
    pub faults: Faults,
    rng: u64,
    logical: u32,
    pub requests: u64,
    late: Vec<(Duration, StoreId, RangeRequest)>,
    /// Records of splits that are not written yet, if the world is told to lag.
    pub lagging: Option<Vec<RangeDescriptor>>,
}

#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

impl World {
    /// The five first ranges, on all three stores, led by the first.
    pub fn new(seed: u64) -> Self {
        let bounds = [Key::MIN, keys::META2, keys::SYSTEM, keys::SQL, keys::USER, Key::MAX];
        let replica =
            |store: StoreId| ReplicaDescriptor { replica: ReplicaId(store.0), store, kind: ReplicaKind::Voter };
        let mut state = State { rng: seed, mono: Duration::from_secs(1), ..State::default() };
        for (ends, id) in bounds.windows(2).zip(1..) {
            let descriptor = RangeDescriptor {
                range: RangeId(id),
                span: KeySpan { start: ends[0].clone(), end: ends[1].clone() },
                generation: Generation(1),
                replicas: STORES.into_iter().map(replica).collect(),
                next_replica: ReplicaId(4),
            };
            state.record(&descriptor);
            state.ranges.push(FakeRange { descriptor, leader: Some(STORES[0]), term: Term(6) });
        }
        Self(Arc::new(Mutex::new(state)))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn router(&self) -> Router {
        let config = RouterConfig { seed: 7, ..RouterConfig::default() };
        Router::new(Arc::new(self.clone()), Arc::new(self.clone()), Arc::new(self.clone()), config)
    }

    pub fn deadline(&self, seconds: u64) -> Duration {
        self.mono() + Duration::from_secs(seconds)
    }

    /// Runs a future to its end; when it waits, time moves on.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..1_000_000 {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            let mut state = self.state();
            let now = state.mono;
            state.timers.retain(|at| *at > now);
            state.mono = state.timers.iter().min().copied().unwrap_or(now + Duration::from_millis(1));
            state.serve_late();
        }
        panic!("it waits for ever");
    }

    fn wait_until(&self, at: Duration) -> Wait {
        self.state().timers.push(at);
        Wait { world: self.clone(), at }
    }
}

struct Wait {
    world: World,
    at: Duration,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.world.state().mono >= self.at { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Clock for World {
    fn now(&self) -> Result<Timestamp, ClockError> {
        Ok(self.state().hlc())
    }

    fn physical(&self) -> Timestamp {
        Timestamp::from_wall(u64::try_from((EPOCH + self.state().mono).as_nanos()).unwrap())
    }

    fn mono(&self) -> Duration {
        self.state().mono
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let at = self.mono() + time;
        self.wait_until(at).boxed()
    }

    fn max_offset(&self) -> Duration {
        MAX_OFFSET
    }
}

impl Tasks for World {
    fn spawn(&self, _: BoxFuture<'static, ()>) {
        panic!("these tests have no transactions")
    }
}

impl Transport for World {
    fn send(&self, to: StoreId, request: RangeRequest) -> BoxFuture<'static, Result<RangeReply, SendError>> {
        let world = self.clone();
        async move {
            let (faults, roll) = {
                let mut state = world.state();
                state.requests += 1;
                if state.down.contains(&to) {
                    return Err(SendError::NotSent(format!("{to} is down")));
                }
                (state.faults, state.roll(1000))
            };
            if world.state().hung.contains(&to) {
                return futures::future::pending().await;
            }
            let mut bound = 0;
            let mut meets = |share: u64| {
                bound += share;
                roll < bound && roll >= bound - share
            };
            if meets(faults.not_sent) {
                return Err(SendError::NotSent("no connection".to_owned()));
            }
            if meets(faults.lost_before) {
                return Err(SendError::Lost("lost on the way there".to_owned()));
            }
            if meets(faults.overloaded) {
                let retry_after = Duration::from_millis(5);
                return Err(RangeError::Overloaded { queue: "a test".into(), retry_after }.into());
            }
            if meets(faults.late) {
                let delay = Duration::from_millis(world.state().roll(20_000));
                world.later(delay, to, request);
                return futures::future::pending().await;
            }
            let at = world.mono() + Duration::from_micros(500);
            world.wait_until(at).await;
            let answer = world.state().serve(to, &request);
            if meets(faults.lost_after) {
                return Err(SendError::Lost("lost on the way back".to_owned()));
            }
            Ok(answer?)
        }
        .boxed()
    }

    fn root(&self, _: Option<Generation>) -> BoxFuture<'static, Result<RangeDescriptor, String>> {
        let root = self.state().ranges[0].descriptor.clone();
        futures::future::ready(Ok(root)).boxed()
    }
}

impl World {
    /// Puts a request aside that arrives when somebody looks at the world after its time.
    fn later(&self, delay: Duration, to: StoreId, request: RangeRequest) {
        let mut state = self.state();
        let at = state.mono + delay;
        state.late.push((at, to, request));
    }
}

impl State {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.rng = self.rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.rng >> 33) % below
    }

    pub fn hlc(&mut self) -> Timestamp {
        self.logical += 1;
        let wall = u64::try_from((EPOCH + self.mono).as_nanos()).unwrap();
        Timestamp { wall, logical: self.logical }
    }

    fn record(&mut self, descriptor: &RangeDescriptor) {
        let Some(key) = keys::meta_record(&descriptor.span.start, &descriptor.span.end) else { return };
        let timestamp = self.hlc();
        let version = Version { timestamp, value: Some(descriptor.encode()), id: None };
        self.data.entry(key).or_default().push(version);
    }

    /// Writes the records that were held back.
    pub fn catch_up(&mut self) {
        for descriptor in self.lagging.take().unwrap_or_default() {
            self.record(&descriptor);
        }
    }

    /// Writes the oldest of the records that were held back.
    pub fn record_first_lagging(&mut self) {
        let first = self.lagging.as_mut().map(|lagging| lagging.remove(0));
        first.iter().for_each(|descriptor| self.record(descriptor));
    }

    pub fn range_of(&mut self, key: &Key) -> &mut FakeRange {
        self.ranges.iter_mut().find(|range| range.descriptor.span.contains(key)).unwrap()
    }

    pub fn split(&mut self, key: &Key) {
        let right = RangeId(self.ranges.iter().map(|range| range.descriptor.range.0).max().unwrap() + 1);
        let parent = self.range_of(key);
        let Some((left, child)) = parent.descriptor.split(key, right) else { return };
        parent.descriptor = left.clone();
        let born = FakeRange { descriptor: child.clone(), leader: parent.leader, term: parent.term };
        self.ranges.push(born);
        match &mut self.lagging {
            Some(lagging) => lagging.extend([left, child]),
            None => [left, child].iter().for_each(|descriptor| self.record(descriptor)),
        }
    }

    /// Another replica leads from now on, or none.
    pub fn move_leader(&mut self, key: &Key, to: Option<StoreId>) {
        let range = self.range_of(key);
        range.leader = to;
        range.term = range.term.next();
    }

    /// Serves what is late and due; nobody hears the answers.
    pub fn serve_late(&mut self) {
        let now = self.mono;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.late).into_iter().partition(|(at, ..)| *at <= now);
        self.late = later;
        for (_, to, request) in due {
            let _ = self.serve(to, &request);
        }
    }

    fn serve(&mut self, to: StoreId, request: &RangeRequest) -> Result<RangeReply, RangeError> {
        let now = self.hlc();
        let Some(range) = self.ranges.iter().find(|range| range.descriptor.range == request.range).cloned() else {
            return Err(RangeError::RangeNotFound { range: request.range, store: to });
        };
        let descriptor = range.descriptor;
        if descriptor.on_store(to).is_none() {
            return Err(RangeError::RangeNotFound { range: request.range, store: to });
        }
        if range.leader != Some(to) {
            let (range, leader, term) = (descriptor.range, range.leader, range.term);
            return Err(RangeError::NotLeaseholder { range, leader, term });
        }
        if let Some(span) = request.command.span()
            && !descriptor.span.covers(&span)
        {
            return Err(RangeError::RangeMismatch { range: descriptor.range, span, known: vec![descriptor] });
        }
        match &request.command {
            Command::Read { at, read } => self.read(*at, read, now),
            Command::Write { id, write } => self.write(*id, write, now),
            Command::Admin(admin) => self.admin(&descriptor, admin, now),
            other => panic!("these tests have no transactions: {other:?}"),
        }
    }

    fn read(&self, at: ReadAt, read: &Read, now: Timestamp) -> Result<RangeReply, RangeError> {
        let (at, limit) = match at {
            ReadAt::Leaseholder => (now, now),
            ReadAt::Timestamp { timestamp, limit } => (timestamp, limit),
        };
        if at > now {
            return Err(RangeError::FutureTimestamp { timestamp: at });
        }
        let visible = |key: &Key| -> Result<Option<Row>, RangeError> {
            let versions = self.data.get(key).map(Vec::as_slice).unwrap_or_default();
            if let Some(newer) = versions.iter().find(|version| version.timestamp > at && version.timestamp <= limit) {
                return Err(RangeError::Uncertain { key: key.clone(), read: at, existing: newer.timestamp });
            }
            let newest = versions.iter().filter(|version| version.timestamp <= at).max_by_key(|v| v.timestamp);
            let row = newest.and_then(|v| Some((v.value.clone()?, v.timestamp)));
            Ok(row.map(|(value, timestamp)| Row { key: key.clone(), value, timestamp }))
        };
        let reply = match read {
            Read::Get { key } => Reply::Get(visible(key)?),
            Read::Scan { span, reverse, rows_max, bytes_max } => {
                let keys: Vec<_> = self.data.range(span.start.clone()..span.end.clone()).map(|(key, _)| key).collect();
                let keys: Box<dyn Iterator<Item = &Key>> =
                    if *reverse { Box::new(keys.into_iter().rev()) } else { Box::new(keys.into_iter()) };
                let (mut result, mut bytes) = (ScanResult::default(), 0);
                for key in keys {
                    let Some(row) = visible(key)? else { continue };
                    bytes += (row.key.as_bytes().len() + row.value.len()) as u64;
                    let next = if *reverse { row.key.clone() } else { row.key.next() };
                    result.rows.push(row);
                    if bytes >= *bytes_max || result.rows.len() as u64 == *rows_max {
                        result.resume = Some(next);
                        break;
                    }
                }
                Reply::Scan(result)
            }
        };
        Ok(RangeReply { timestamp: at, reply })
    }

    /// A version from a clock of its own.
    pub fn write_at(&mut self, key: &Key, value: &'static str, timestamp: Timestamp) {
        let version = Version { timestamp, value: Some(Bytes::from_static(value.as_bytes())), id: None };
        self.data.entry(key.clone()).or_default().push(version);
    }

    fn newest(&self, key: &Key) -> Option<&Version> {
        self.data.get(key)?.iter().max_by_key(|version| version.timestamp)
    }

    fn earlier(&self, key: &Key, id: RequestId) -> Option<Timestamp> {
        self.data.get(key)?.iter().find(|version| version.id == Some(id)).map(|version| version.timestamp)
    }

    fn put(&mut self, key: &Key, value: Option<Bytes>, id: RequestId, timestamp: Timestamp) {
        self.data.entry(key.clone()).or_default().push(Version { timestamp, value, id: Some(id) });
    }

    fn write(&mut self, id: RequestId, write: &Write, now: Timestamp) -> Result<RangeReply, RangeError> {
        let done = |timestamp, result| Ok(RangeReply { timestamp, reply: Reply::Write(result) });
        if let Some(first) = write.span().map(|span| span.start)
            && !matches!(write, Write::DeleteRange { .. })
            && let Some(timestamp) = self.earlier(&first, id)
        {
            return done(timestamp, WriteResult::Done);
        }
        match write {
            Write::Put { key, value } => self.put(key, Some(value.clone()), id, now),
            Write::Delete { key } => self.put(key, None, id, now),
            Write::CompareAndSwap { key, expected, new } => {
                let actual = self.newest(key).and_then(|version| version.value.clone());
                if actual != *expected {
                    return done(now, WriteResult::ConditionFailed { actual });
                }
                self.put(key, new.clone(), id, now);
            }
            Write::Batch { ops } => {
                for op in ops {
                    match op {
                        BatchOp::Put { key, value } => self.put(key, Some(value.clone()), id, now),
                        BatchOp::Delete { key } => self.put(key, None, id, now),
                    }
                }
            }
            Write::Increment(_) | Write::Whole(_) => panic!("these tests know no transactions"),
            Write::DeleteRange { span, keys_max } => return self.delete_range(id, span, *keys_max, now),
            Write::PutMeta { key, descriptor } => {
                let known = self.newest(key).and_then(|version| version.value.clone());
                let known = known.map(|value| RangeDescriptor::decode(&value).unwrap().generation);
                if known.is_none_or(|known| known < descriptor.generation) {
                    self.put(key, Some(descriptor.encode()), id, now);
                }
            }
        }
        done(now, WriteResult::Done)
    }

    fn delete_range(
        &mut self,
        id: RequestId,
        span: &KeySpan,
        keys_max: u64,
        now: Timestamp,
    ) -> Result<RangeReply, RangeError> {
        let anchor = (span.start.clone(), id.0);
        if let Some((reply, end)) = self.finished.get(&anchor) {
            let mut reply = reply.clone();
            if let Reply::Write(WriteResult::Deleted { resume: resume @ None, .. }) = &mut reply.reply {
                *resume = (*end != span.end).then(|| end.clone());
            }
            return Ok(reply);
        }
        let there = self.data.range(span.start.clone()..span.end.clone());
        let there = there.filter(|(key, _)| self.newest(key).is_some_and(|version| version.value.is_some()));
        let there: Vec<Key> =
            there.map(|(key, _)| key.clone()).take(usize::try_from(keys_max).unwrap_or(usize::MAX)).collect();
        there.iter().for_each(|key| self.put(key, None, id, now));
        let full = there.len() as u64 == keys_max;
        let resume = there.last().filter(|_| full).map(Key::next);
        let result = WriteResult::Deleted { keys: there.len() as u64, resume };
        let reply = RangeReply { timestamp: now, reply: Reply::Write(result) };
        self.finished.insert(anchor, (reply.clone(), span.end.clone()));
        Ok(reply)
    }

    fn admin(&mut self, now: &RangeDescriptor, admin: &Admin, at: Timestamp) -> Result<RangeReply, RangeError> {
        let stale = || RangeError::GenerationMismatch { current: Box::new(now.clone()) };
        let answer = |descriptors| Ok(RangeReply { timestamp: at, reply: Reply::Admin(descriptors) });
        match admin {
            Admin::Split { generation, .. } | Admin::ChangeReplicas { generation, .. }
                if *generation != now.generation =>
            {
                Err(stale())
            }
            Admin::Split { key, .. } => {
                self.split(key);
                let (left, right) =
                    (self.range_of(&now.span.start).descriptor.clone(), self.range_of(key).descriptor.clone());
                answer(vec![left, right])
            }
            Admin::TransferLeader { to } => {
                self.move_leader(&now.span.start, Some(*to));
                answer(vec![now.clone()])
            }
            Admin::ChangeReplicas { target, .. } => {
                // One step: a store more, or a store less.
                let mut next = RangeDescriptor { generation: now.generation.next(), ..now.clone() };
                if let Some(new) = target.voters.iter().find(|store| now.on_store(**store).is_none()) {
                    let kind = ReplicaKind::Voter;
                    next.replicas.push(ReplicaDescriptor { replica: next.next_replica, store: *new, kind });
                    next.next_replica = next.next_replica.next();
                } else if let Some(old) = now.replicas.iter().find(|replica| !target.voters.contains(&replica.store)) {
                    next.replicas.retain(|replica| replica.store != old.store);
                }
                self.range_of(&now.span.start).descriptor = next.clone();
                self.record(&next);
                answer(vec![next])
            }
            Admin::Check { .. } => answer(vec![now.clone()]),
        }
    }
}
