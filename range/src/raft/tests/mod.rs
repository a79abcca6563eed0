//! Real groups on a fake liveness and an in-test network.
//!
//! Each store's clock is its own; every delivery forwards the receiver's clock, as the transport does (leases 1.2).

mod elections;
mod filter;
mod groups;
mod leases;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::log::{Birth, HardState, LogEntry, LogHead, LogOp, LogPos, ReadLogError};
use flotilla_storage::state::LeaseState;
use flotilla_types::{
    Generation, Key, KeySpan, LogIndex, RangeDescriptor, RangeId, ReplicaDescriptor, ReplicaId, ReplicaKind, StoreId,
    Term, Timestamp,
};
use protobuf::Message as _;
use raft::eraftpb::ConfChangeV2;

use super::*;
use crate::message::{Beat, BeatReply, Envelope};

const RANGE: RangeId = RangeId(7);
const INIT: LogPos = LogPos { index: RangeDescriptor::INITIAL_INDEX, term: RangeDescriptor::INITIAL_TERM };

/// Who gives whom what, as all stores see it. `(giver, receiver) → (epoch, active, until)`.
#[derive(Default)]
struct World {
    given: BTreeMap<(u64, u64), (u64, bool, u64)>,
    bound: BTreeMap<u64, u64>,
    free: BTreeSet<(u64, u64)>,
}

struct View<'a> {
    world: &'a RefCell<World>,
    store: u64,
    now: u64,
}

impl Support for View<'_> {
    fn given(&self, peer: StoreId) -> Option<Given> {
        let world = self.world.borrow();
        let (epoch, active, until) = *world.given.get(&(self.store, peer.0))?;
        Some(Given { epoch, active, until: Timestamp::from_wall(until) })
    }
    fn received_until(&self, peer: StoreId, epoch: u64) -> Timestamp {
        let world = self.world.borrow();
        let row = world.given.get(&(peer.0, self.store)).filter(|row| row.0 == epoch && row.1);
        row.map_or(Timestamp::ZERO, |row| Timestamp::from_wall(row.2))
    }
    fn is_supported_by(&self, peer: StoreId) -> bool {
        let world = self.world.borrow();
        world.given.get(&(peer.0, self.store)).is_some_and(|row| row.1 && row.2 > self.now)
    }
    fn own_bound(&self) -> Timestamp {
        Timestamp::from_wall(self.world.borrow().bound[&self.store])
    }
    fn hinted_free(&self, witness: StoreId, of: StoreId, _epoch: u64) -> bool {
        self.world.borrow().free.contains(&(witness.0, of.0))
    }
}

/// A durable log in memory. What is not in here is lost in a crash.
#[derive(Default)]
struct Disk {
    head: Option<LogHead>,
    entries: Vec<LogEntry>,
}

#[derive(Default, Clone)]
struct SharedDisk(Arc<Mutex<Disk>>);

impl LogRead for SharedDisk {
    fn entries(&self, _: RangeId, from: LogIndex, to: LogIndex, _: usize) -> Result<Vec<LogEntry>, ReadLogError> {
        let disk = self.0.lock().unwrap();
        Ok(disk.entries.iter().filter(|e| e.pos.index >= from && e.pos.index < to).cloned().collect())
    }
}

impl SharedDisk {
    fn born(&self, replica: ReplicaId, at: LogPos) {
        let hard = HardState { term: at.term, vote: ReplicaId(0), commit: at.index };
        let birth: Option<Birth> = None;
        let head = LogHead { replica, birth, hard, hard_last: at, promise: None, trunc: at, last: at };
        self.0.lock().unwrap().head = Some(head);
    }
    fn write(&self, ops: &[LogOp]) {
        let mut disk = self.0.lock().unwrap();
        let mut head = disk.head.unwrap();
        for op in ops {
            match op {
                LogOp::Append { entries, .. } => {
                    let first = entries[0].pos.index;
                    assert!(first.0 <= head.last.index.0 + 1);
                    disk.entries.retain(|e| e.pos.index < first);
                    disk.entries.extend(entries.iter().cloned());
                    head.last = entries.last().unwrap().pos;
                }
                LogOp::Hard { hard, .. } => (head.hard, head.hard_last) = (*hard, head.last),
                LogOp::Promise { promise, .. } => head.promise = *promise,
                LogOp::Reset { at, hard, .. } => {
                    disk.entries.clear();
                    (head.trunc, head.last, head.hard, head.hard_last) = (*at, *at, *hard, *at);
                }
                other => panic!("not expected: {other:?}"),
            }
        }
        disk.head = Some(head);
    }
}

#[derive(Debug, Clone)]
enum Post {
    Raft(Envelope),
    Beat(Beat),
    Reply(BeatReply),
    Release(ReplicaId, Term),
}

struct Node {
    group: Group,
    disk: SharedDisk,
    /// Log ops given to the writer and not synced.
    writing: VecDeque<(Option<u64>, Vec<LogOp>)>,
    descriptor: RangeDescriptor,
    applied: LogPos,
    lease: LeaseState,
    done: Vec<Bytes>,
    reads: Vec<(u64, LogIndex)>,
    rejected: Vec<LogIndex>,
    proposed: BTreeMap<LogIndex, Bytes>,
    catch_up: bool,
    snapshots_wanted: Vec<ReplicaId>,
    clock: u64,
}

struct Net {
    world: RefCell<World>,
    nodes: BTreeMap<u64, Node>,
    post: VecDeque<(u64, u64, Post)>,
    cut: BTreeSet<u64>,
    /// Stores whose log writer does not sync.
    stalled: BTreeSet<u64>,
    mono: Duration,
}

fn descriptor(kinds: &[ReplicaKind]) -> RangeDescriptor {
    let replica =
        |(kind, n): (&ReplicaKind, u64)| ReplicaDescriptor { replica: ReplicaId(n), store: StoreId(n), kind: *kind };
    RangeDescriptor {
        range: RANGE,
        span: KeySpan { start: Key::new(&b"a"[..]), end: Key::new(&b"z"[..]) },
        generation: Generation(1),
        replicas: kinds.iter().zip(1..).map(replica).collect(),
        next_replica: ReplicaId(kinds.len() as u64 + 1),
    }
}

const MS: u64 = 1_000_000;

impl Net {
    fn new(kinds: &[ReplicaKind]) -> Self {
        let mut net = Self {
            world: RefCell::default(),
            nodes: BTreeMap::new(),
            post: VecDeque::new(),
            cut: BTreeSet::new(),
            stalled: BTreeSet::new(),
            mono: Duration::ZERO,
        };
        let all = kinds.len() as u64;
        for store in 1..=all {
            net.world.borrow_mut().bound.insert(store, 60_000 * MS);
            for peer in (1..=all).filter(|peer| *peer != store) {
                net.world.borrow_mut().given.insert((store, peer), (1 << 32, true, 10_000 * MS));
            }
        }
        for store in 1..=all {
            let disk = SharedDisk::default();
            disk.born(ReplicaId(store), INIT);
            net.boot(store, &descriptor(kinds), disk, INIT, LeaseState::default());
        }
        net
    }

    fn voters(n: usize) -> Self {
        Self::new(&vec![ReplicaKind::Voter; n])
    }

    fn boot(&mut self, store: u64, d: &RangeDescriptor, disk: SharedDisk, applied: LogPos, lease: LeaseState) {
        let head = disk.0.lock().unwrap().head.unwrap();
        let boot = GroupBoot {
            range: RANGE,
            me: ReplicaId(store),
            store: StoreId(store),
            descriptor: (applied.index.0 > 0).then_some(d),
            head,
            applied,
            lease,
            commit_at_least: LogIndex(0),
            mono: self.mono,
        };
        // The entries of these tests are bare words.
        let config = GroupConfig { verify_entries: false, ..GroupConfig::default() };
        let group = Group::start(&boot, &config, Arc::new(disk.clone())).unwrap();
        let node = Node {
            group,
            disk,
            writing: VecDeque::new(),
            descriptor: d.clone(),
            applied,
            lease,
            done: Vec::new(),
            reads: Vec::new(),
            rejected: Vec::new(),
            proposed: BTreeMap::new(),
            catch_up: false,
            snapshots_wanted: Vec::new(),
            clock: self.nodes.get(&store).map_or(1000 * MS, |n| n.clock),
        };
        self.nodes.insert(store, node);
    }

    /// Crash and restart from what is durable.
    fn restart(&mut self, store: u64) {
        let node = &self.nodes[&store];
        let (disk, d, applied, lease) = (node.disk.clone(), node.descriptor.clone(), node.applied, node.lease);
        self.boot(store, &d, disk, applied, lease);
    }

    fn with<R>(&mut self, store: u64, f: impl FnOnce(&mut Group, &Ctx<'_>) -> R) -> R {
        let node = self.nodes.get_mut(&store).unwrap();
        node.clock += 1;
        let view = View { world: &self.world, store, now: node.clock };
        let ctx = Ctx { now: Timestamp::from_wall(node.clock), mono: self.mono, support: &view, may_campaign: true };
        f(&mut node.group, &ctx)
    }

    fn group(&self, store: u64) -> &Group {
        &self.nodes[&store].group
    }

    fn send(&mut self, from: u64, sends: Sends) {
        let node = self.nodes.get_mut(&from).unwrap();
        node.snapshots_wanted.extend(sends.wants_snapshot.iter().map(|(replica, _)| *replica));
        let raft = sends.messages.into_iter().map(|(to, m)| (to, Post::Raft(m)));
        let beats = sends.beats.into_iter().map(|(to, m)| (to, Post::Beat(m)));
        let replies = sends.beat_replies.into_iter().map(|(to, m)| (to, Post::Reply(m)));
        for (to, post) in raft.chain(beats).chain(replies) {
            self.post.push_back((from, to.0, post));
        }
    }

    /// Carries out readies of a store until there are none.
    fn turn(&mut self, store: u64) {
        while let Some(ready) = self.with(store, |group, ctx| group.ready(ctx)) {
            self.send(store, ready.sends);
            for (to, term) in ready.releases {
                self.post.push_back((store, to.0, Post::Release(ReplicaId(store), term)));
            }
            let node = self.nodes.get_mut(&store).unwrap();
            node.catch_up |= ready.wants_catch_up;
            node.reads.extend(ready.reads);
            if !ready.log_ops.is_empty() {
                node.writing.push_back((ready.number, ready.log_ops));
            }
            if let Some(snapshot) = ready.snapshot {
                node.applied = snapshot.pos;
                let (d, lease) = (node.descriptor.clone(), node.lease);
                let after = self.with(store, |group, ctx| group.restored(ctx, &d, &lease));
                self.nodes.get_mut(&store).unwrap().writing.push_back((after.number, after.log_ops));
            }
            for entry in ready.committed {
                self.apply(store, &entry);
            }
            let applied = self.nodes[&store].applied;
            self.with(store, |group, ctx| group.advance_applied(ctx, applied));
            if self.with(store, |group, _| group.needs_lease_start()) {
                self.with(store, |group, ctx| {
                    let data = format!("start {} {} {store}", group.term().0, ctx.now.wall);
                    group.propose_lease_start(ctx, data.into()).unwrap();
                });
            }
            self.sync(store);
        }
        self.sync(store);
    }

    fn sync(&mut self, store: u64) {
        if self.stalled.contains(&store) {
            return;
        }
        while let Some((number, ops)) = self.nodes.get_mut(&store).unwrap().writing.pop_front() {
            self.nodes[&store].disk.write(&ops);
            if let Some(number) = number {
                let sends = self.with(store, |group, ctx| group.persisted(ctx, number));
                self.send(store, sends);
            }
        }
    }

    fn apply(&mut self, store: u64, entry: &LogEntry) {
        let node = self.nodes.get_mut(&store).unwrap();
        assert_eq!(entry.pos.index.0, node.applied.index.0 + 1, "applied in order");
        node.applied = entry.pos;
        if node.proposed.remove(&entry.pos.index).is_some_and(|data| data != entry.data) {
            node.rejected.push(entry.pos.index);
        }
        if entry.data.is_empty() && entry.kind == 0 {
            return;
        }
        if entry.kind == 2 {
            let mut change = ConfChangeV2::default();
            change.merge_from_bytes(&entry.data).unwrap();
            self.with(store, |group, ctx| group.apply_conf_change(ctx, &change)).unwrap();
            return;
        }
        let text = String::from_utf8(entry.data.to_vec()).unwrap();
        let words: Vec<&str> = text.split(' ').collect();
        let mut lease = node.lease;
        match words[..] {
            ["start", term, at, who] if term.parse() == Ok(entry.pos.term.0) => {
                lease.term = entry.pos.term;
                lease.ended = false;
                lease.seq += 1;
                lease.start = Timestamp::from_wall(at.parse().unwrap()).max(lease.read_floor.next());
                lease.replica = ReplicaId(who.parse().unwrap());
            }
            ["end", term, floor] if term.parse() == Ok(lease.term.0) => {
                lease.ended = true;
                lease.read_floor = lease.read_floor.max(Timestamp::from_wall(floor.parse().unwrap()));
            }
            _ => {
                self.nodes.get_mut(&store).unwrap().done.push(entry.data.clone());
                return;
            }
        }
        self.nodes.get_mut(&store).unwrap().lease = lease;
        self.with(store, |group, ctx| group.note_applied_lease(ctx, &lease));
    }

    /// Delivers everything until nothing is under way.
    fn settle(&mut self) {
        for store in self.nodes.keys().copied().collect::<Vec<_>>() {
            if !self.cut.contains(&store) {
                self.turn(store);
            }
        }
        while let Some((from, to, post)) = self.post.pop_front() {
            self.deliver(from, to, &post);
            if self.nodes.contains_key(&to) && !self.cut.contains(&to) {
                self.turn(to);
            }
        }
    }

    fn deliver(&mut self, from: u64, to: u64, post: &Post) {
        if self.cut.contains(&from) || self.cut.contains(&to) || !self.nodes.contains_key(&to) {
            return;
        }
        let heard = self.nodes[&from].clock;
        let node = self.nodes.get_mut(&to).unwrap();
        node.clock = node.clock.max(heard);
        self.with(to, |group, ctx| match post {
            // What the fleet does: snapshots are told apart by where their frames came from.
            Post::Raft(m) => {
                group.receive(ctx, StoreId(from), m);
                group.receive_snapshot(ctx, StoreId(from), m);
            }
            Post::Beat(m) => group.receive_beat(ctx, StoreId(from), m),
            Post::Reply(m) => group.receive_beat_reply(ctx, StoreId(from), m),
            Post::Release(replica, term) => group.receive_release(ctx, *replica, *term),
        });
    }

    /// Lets time pass in steps of 50 ms; stops as soon as `until` holds, and says whether it did.
    fn pass(&mut self, most: Duration, until: impl Fn(&Self) -> bool) -> bool {
        let end = self.mono + most;
        while self.mono < end {
            if until(self) {
                return true;
            }
            self.mono += Duration::from_millis(50);
            for store in self.nodes.keys().copied().collect::<Vec<_>>() {
                if !self.cut.contains(&store) {
                    self.nodes.get_mut(&store).unwrap().clock += 50 * MS;
                    self.with(store, |group, ctx| group.tick(ctx));
                }
            }
            self.settle();
        }
        until(self)
    }

    fn usable(&self) -> Option<u64> {
        self.nodes.iter().find(|(store, n)| !self.cut.contains(store) && n.group.usable()).map(|(store, _)| *store)
    }

    /// Makes `store` the leader with a lease.
    fn lead(&mut self, store: u64) {
        self.with(store, |group, ctx| group.campaign_soon(ctx));
        self.with(store, |group, ctx| group.tick(ctx));
        self.settle();
        assert!(self.group(store).usable(), "{store} leads: {:?}", self.group(store).role());
    }

    fn until(&mut self, store: u64) -> u64 {
        self.with(store, |group, ctx| group.lease_until(ctx)).wall
    }

    /// `giver` durably leaves its support of `of`.
    fn leave(&mut self, giver: u64, of: u64) {
        let (epoch, _, until) = self.world.borrow().given[&(giver, of)];
        let node = self.nodes.get_mut(&giver).unwrap();
        node.clock = node.clock.max(until);
        self.world.borrow_mut().given.insert((giver, of), (epoch + 1, false, 0));
        self.world.borrow_mut().free.insert((giver, of));
        // The others go on supporting each other while this time passes.
        for (pair, row) in &mut self.world.borrow_mut().given {
            if pair.0 != of && pair.1 != of {
                row.2 = row.2.max(until + 20_000 * MS);
            }
        }
        self.with(giver, |group, ctx| group.support_left(ctx, StoreId(of), epoch));
        for store in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.with(store, |group, ctx| group.support_changed(ctx));
        }
    }

    fn put(&mut self, store: u64, text: &'static str) -> Result<LogPos, Refused> {
        let at = self.with(store, |group, ctx| group.propose(ctx, Bytes::from_static(text.as_bytes())))?;
        self.nodes.get_mut(&store).unwrap().proposed.insert(at.index, Bytes::from_static(text.as_bytes()));
        Ok(at)
    }

    fn end(&mut self, store: u64, then: AfterEnd) -> Result<LogPos, Refused> {
        let floor = self.until(store);
        self.with(store, |group, ctx| {
            let data = format!("end {} {floor}", group.term().0);
            group.propose_end(ctx, data.into(), then)
        })
    }
}
