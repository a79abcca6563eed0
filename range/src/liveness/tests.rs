//! A few stores with clocks, disks and a network that the test controls: scenarios of docs/leases.md section 10, and a
//! random run that holds invariants I1 to I3 after every step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::log::{LogOp, MetaKey};
use flotilla_types::{Hlc, StoreId, Timestamp};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::raft::Support;

const D: Duration = Duration::from_millis(2500);
const H: Duration = Duration::from_millis(500);
const OFFSET: Duration = Duration::from_millis(250);
const CONFIG: LivenessConfig = LivenessConfig { support: D, interval: H };
/// The world's time at the start, so that clocks can be set back.
const EPOCH: Duration = Duration::from_secs(1_000_000);

struct Store {
    liveness: Liveness,
    clock: Hlc,
    boot: u32,
    /// How far the wall clock is ahead of the world's, in milliseconds.
    skew_ms: i64,
    disk: BTreeMap<MetaKey, Bytes>,
    writing: VecDeque<(LogTicket, Vec<LogOp>)>,
    left: BTreeSet<(StoreId, u64)>,
    fleet_hangs: bool,
    disk_stalls: bool,
}

struct Message {
    from: StoreId,
    to: StoreId,
    sent: Timestamp,
    content: LivenessMessage,
}

struct World {
    time: Duration,
    stores: BTreeMap<StoreId, Store>,
    network: VecDeque<Message>,
    /// Directed links that lose everything.
    cut: BTreeSet<(StoreId, StoreId)>,
}

fn id(n: u64) -> StoreId {
    StoreId(n)
}

impl World {
    fn new(count: u64) -> Self {
        let mut world = Self { time: EPOCH, stores: BTreeMap::new(), network: VecDeque::new(), cut: BTreeSet::new() };
        for n in 1..=count {
            let metas = BTreeMap::new();
            world.start(id(n), metas, 1, 0);
        }
        world
    }

    fn start(&mut self, store: StoreId, disk: BTreeMap<MetaKey, Bytes>, boot: u32, skew_ms: i64) {
        let metas: Vec<_> = disk.iter().map(|(key, value)| (*key, value.clone())).collect();
        let now = LivenessNow { hlc: Timestamp::ZERO, mono: self.time };
        let liveness = Liveness::restore(CONFIG, boot, Duration::from_millis(store.0 * 40), &metas, now).unwrap();
        let clock = Hlc::starting_at(liveness.bound(), OFFSET);
        let left = self.stores.get(&store).map(|old| old.left.clone()).unwrap_or_default();
        let (writing, fleet_hangs, disk_stalls) = (VecDeque::new(), false, false);
        let new = Store { liveness, clock, boot, skew_ms, disk, writing, left, fleet_hangs, disk_stalls };
        self.stores.insert(store, new);
        let peers = self.stores.keys().copied().collect::<BTreeSet<_>>();
        for of in peers.clone() {
            let others = peers.iter().copied().filter(|peer| *peer != of).collect();
            self.step(of, LivenessEvent::Peers(others));
        }
    }

    /// Loses what was being written, keeps the rest.
    fn restart(&mut self, store: StoreId, skew_ms: i64) {
        let old = &self.stores[&store];
        let (disk, boot) = (old.disk.clone(), old.boot + 1);
        self.start(store, disk, boot, skew_ms);
    }

    fn wall(&self, store: StoreId) -> Duration {
        let skew = self.stores[&store].skew_ms;
        let by = Duration::from_millis(skew.unsigned_abs());
        if skew < 0 { self.time - by } else { self.time + by }
    }

    fn step(&mut self, store: StoreId, event: LivenessEvent) {
        let wall = self.wall(store);
        let node = self.stores.get_mut(&store).unwrap();
        let now = LivenessNow { hlc: node.clock.peek(wall), mono: self.time };
        for effect in node.liveness.step(event, now) {
            match effect {
                LivenessEffect::WriteLog(ticket, ops) => node.writing.push_back((ticket, ops)),
                LivenessEffect::RaiseBound(bound) => node.clock.raise_bound(bound),
                LivenessEffect::SupportLeft(peer, epoch) => {
                    node.left.insert((peer, epoch));
                }
                LivenessEffect::ViewChanged => {}
                LivenessEffect::Send(to, content) => {
                    let Ok(sent) = node.clock.now(wall) else { continue };
                    if let LivenessMessage::Heartbeat(asked) = &content {
                        assert!(asked.until <= node.liveness.bound(), "I3: asks beyond its durable bound");
                    }
                    if let LivenessMessage::Reply(reply) = &content {
                        let left = node.left.contains(&(to, reply.epoch));
                        assert!(!left || reply.until == Timestamp::ZERO, "I1: {store} grants a left epoch to {to}");
                    }
                    assert!(sent <= node.liveness.bound(), "I3: a reading beyond the bound leaves the store");
                    self.network.push_back(Message { from: store, to, sent, content });
                }
            }
        }
        self.check();
    }

    /// I2: what a store holds, its supporter gives, or the supporter's clock is past it.
    fn check(&self) {
        for (holder, node) in &self.stores {
            let view = node.liveness.view(Timestamp::ZERO);
            for (giver, other) in self.stores.iter().filter(|(giver, _)| *giver != holder) {
                let (epoch, until) = view.received.get(giver).copied().unwrap_or_default();
                if until == Timestamp::ZERO {
                    continue;
                }
                let row = other.liveness.view(Timestamp::ZERO).given(*holder);
                let gives = row.is_some_and(|row| row.active && row.epoch == epoch && row.until >= until);
                let mut clock = other.clock.clone();
                let past = clock.peek(self.wall(*giver)) > until;
                // A newer boot of the holder may have taken the row over; this boot holds nothing then.
                assert!(gives || past, "I2: {holder} holds {epoch:#x} until {until} of {giver}, which gives {row:?}");
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        if self.cut.contains(&(message.from, message.to)) {
            return;
        }
        let wall = self.wall(message.to);
        let node = self.stores.get_mut(&message.to).unwrap();
        if node.clock.forward(message.sent, wall).is_ok() {
            let event = LivenessEvent::Message { from: message.from, sent: message.sent, message: message.content };
            self.step(message.to, event);
        }
    }

    fn sync(&mut self, store: StoreId) {
        let node = self.stores.get_mut(&store).unwrap();
        let Some((ticket, ops)) = node.writing.pop_front() else { return };
        for op in ops {
            if let LogOp::Meta { key, value } = op {
                node.disk.insert(key, value);
            }
        }
        self.step(store, LivenessEvent::Durable(ticket));
    }

    /// Lets the world run: fleets turn, disks sync, messages arrive at once.
    fn run(&mut self, duration: Duration) {
        let until = self.time + duration;
        while self.time < until {
            self.time += Duration::from_millis(10);
            let all: Vec<_> = self.stores.keys().copied().collect();
            for store in all {
                if !self.stores[&store].fleet_hangs {
                    self.step(store, LivenessEvent::FleetTurned);
                }
                self.step(store, LivenessEvent::Tick);
                while !self.stores[&store].disk_stalls && !self.stores[&store].writing.is_empty() {
                    self.sync(store);
                }
            }
            while let Some(message) = self.network.pop_front() {
                self.deliver(message);
            }
            let stalled: Vec<_> = self.stores.iter().filter(|(_, s)| !s.disk_stalls).map(|(id, _)| *id).collect();
            for store in stalled {
                while !self.stores[&store].writing.is_empty() {
                    self.sync(store);
                }
            }
        }
    }

    fn supported(&self, store: StoreId, by: StoreId) -> bool {
        let mut clock = self.stores[&store].clock.clone();
        self.stores[&store].liveness.view(clock.peek(self.wall(store))).is_supported_by(by)
    }

    fn gives(&self, giver: StoreId, to: StoreId) -> bool {
        self.stores[&giver].liveness.view(Timestamp::ZERO).given(to).is_some_and(|given| given.active)
    }
}

#[test]
fn two_stores_that_hear_each_other_support_each_other() {
    let mut world = World::new(2);
    world.run(2 * H);
    assert!(world.supported(id(1), id(2)) && world.supported(id(2), id(1)));
    world.run(10 * D);
    assert!(world.supported(id(1), id(2)) && world.supported(id(2), id(1)));
    assert!(world.stores.values().all(|store| store.left.is_empty()), "support that is renewed is never left");
}

#[test]
fn a_link_that_works_one_way_counts_as_cut_in_both() {
    for (from, to) in [(1, 2), (2, 1)] {
        let mut world = World::new(3);
        world.run(2 * D);
        world.cut.insert((id(from), id(to)));
        world.run(2 * D);
        assert!(!world.gives(id(1), id(2)) && !world.gives(id(2), id(1)));
        assert!(!world.supported(id(1), id(2)) && !world.supported(id(2), id(1)));
        assert!(world.supported(id(1), id(3)) && world.supported(id(2), id(3)), "the third hears both");
        world.cut.clear();
        world.run(2 * H);
        assert!(world.supported(id(1), id(2)) && world.supported(id(2), id(1)));
    }
}

#[test]
fn a_store_whose_log_disk_stalls_loses_support_and_gives_none() {
    let mut world = World::new(3);
    world.run(2 * D);
    world.stores.get_mut(&id(1)).unwrap().disk_stalls = true;
    world.run(2 * D);
    assert!(!world.gives(id(2), id(1)) && !world.gives(id(3), id(1)));
    assert!(!world.supported(id(2), id(1)), "it extends nothing while it cannot acknowledge writes");
    assert!(world.supported(id(2), id(3)));
    world.stores.get_mut(&id(1)).unwrap().disk_stalls = false;
    world.run(D);
    assert!(world.supported(id(1), id(2)) && world.supported(id(2), id(1)));
}

#[test]
fn nobody_is_left_at_a_time_above_the_durable_bound() {
    let mut world = World::new(2);
    world.run(2 * D);
    world.stores.get_mut(&id(1)).unwrap().disk_stalls = true;
    world.run(4 * D);
    let node = &world.stores[&id(1)];
    let until = node.liveness.view(Timestamp::ZERO).given(id(2)).unwrap().until;
    assert!(until > node.liveness.bound(), "the case that this is about");
    let leaves = |op: &LogOp| matches!(op, LogOp::Meta { key: MetaKey::Support(_), .. });
    assert!(!node.writing.iter().flat_map(|(_, ops)| ops).any(leaves));
}

#[test]
fn a_store_whose_fleet_hangs_asks_nobody() {
    let mut world = World::new(2);
    world.run(2 * D);
    world.stores.get_mut(&id(1)).unwrap().fleet_hangs = true;
    world.run(2 * D);
    assert!(!world.gives(id(2), id(1)));
    assert!(world.supported(id(2), id(1)), "it still answers for its log disk");
}

#[test]
fn support_given_before_a_restart_is_kept_until_it_can_have_run_out() {
    let mut world = World::new(2);
    world.run(2 * D);
    let held = world.stores[&id(1)].liveness.view(Timestamp::ZERO).received[&id(2)];
    world.restart(id(2), 0);
    let row = world.stores[&id(2)].liveness.view(Timestamp::ZERO).given(id(1)).unwrap();
    assert!(row.active && row.epoch == held.0 && row.until >= held.1);
}

#[test]
fn a_restarted_store_asks_in_a_new_epoch_and_its_old_one_is_left() {
    let mut world = World::new(2);
    world.run(2 * D);
    world.restart(id(1), 0);
    world.run(3 * D);
    assert!(world.stores[&id(2)].left.contains(&(id(1), 1 << 32)));
    let row = world.stores[&id(2)].liveness.view(Timestamp::ZERO).given(id(1)).unwrap();
    assert!(row.active && row.epoch >> 32 == 2);
}

#[test]
fn a_hint_tells_the_third_whom_a_store_has_left() {
    let mut world = World::new(3);
    world.run(2 * D);
    let free = |world: &World| {
        let mut clock = world.stores[&id(3)].clock.clone();
        world.stores[&id(3)].liveness.view(clock.peek(world.wall(id(3)))).hinted_free(id(2), id(1), 1 << 32)
    };
    assert!(!free(&world));
    world.cut.extend([(id(1), id(2)), (id(2), id(1))]);
    world.run(2 * D);
    assert!(free(&world));
}

#[test]
fn records_read_back_as_written() {
    let row = Row { epoch: 3 << 32 | 7, active: true, support: D };
    assert_eq!(decode_row(&encode_row(&row)), Ok(row));
    assert!(decode_row(b"").is_err() && decode_bound(b"\x07").is_err());
}

/// Loss, delay, reordering, duplication, one-way cuts, stalls, restarts with clocks that jump within the offset.
#[test]
fn invariants_hold_in_random_runs() {
    let mut given_up = 0;
    for seed in 0..40 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::new(3);
        for _ in 0..4000 {
            let store = id(random.random_range(1..=3));
            match random.random_range(0..100) {
                0..20 => world.time += Duration::from_millis(random.random_range(1..200)),
                20..45 => world.step(store, LivenessEvent::Tick),
                45..65 => world.sync(store),
                65..92 => {
                    let waiting = world.network.len();
                    if waiting > 0 {
                        let at = random.random_range(0..waiting.min(4));
                        let message = world.network.remove(at).unwrap();
                        if random.random_bool(0.1) {
                            let Message { from, to, sent, content } = &message;
                            let (from, to, sent, content) = (*from, *to, *sent, content.clone());
                            world.network.push_back(Message { from, to, sent, content });
                        }
                        if random.random_bool(0.95) {
                            world.deliver(message);
                        }
                    }
                }
                92..96 => world.step(store, LivenessEvent::FleetTurned),
                96 => {
                    world.cut.insert((store, id(random.random_range(1..=3))));
                }
                97 => world.cut.clear(),
                98 => world.stores.get_mut(&store).unwrap().skew_ms = random.random_range(-120..120),
                _ if random.random_bool(0.2) => {
                    // The boot wait: the world waits for the store's wall clock.
                    world.restart(store, random.random_range(-120..120));
                    let bound = Duration::from_nanos(world.stores[&store].clock.bound().wall);
                    world.time = world.time.max(bound + Duration::from_millis(120));
                }
                _ => {}
            }
        }
        given_up += world.stores.values().map(|store| store.left.len()).sum::<usize>();
    }
    assert!(given_up > 100, "the runs must contain what they are about: {given_up} epochs were left");
}
