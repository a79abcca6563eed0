//! What goes wrong, when, and until when. Drawn from the seed; every fault ends by itself.

use std::time::Duration;

use flotilla_range::event::Event;
use flotilla_types::StoreId;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::time::lock;
use crate::world::World;

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// The machine stops, loses what was not durable, and comes back.
    Crash(Vec<StoreId>),
    /// Nothing passes between these and the others.
    Partition(Vec<StoreId>),
    /// Nothing passes from the one to the other.
    OneWay(StoreId, StoreId),
    /// The process stands still.
    Pause(StoreId),
    /// No fsync of the log ends.
    Stall(StoreId),
    /// Every fsync of the log takes long.
    SlowDisk(StoreId),
    /// The wall clock is set by so many milliseconds.
    Step(StoreId, i64),
    /// The wall clock runs at another rate.
    Drift(StoreId, f64),
    /// Messages are lost, doubled, late.
    BadNetwork,
    /// The disk's watermark is passed.
    FullDisk(StoreId),
    /// What the log syncs from now on is gone when the fault ends, with a crash.
    LostTail(StoreId),
    /// A crash, and an entry of the log cannot be read any more.
    DamagedEntry(StoreId),
}

/// Which faults a seed knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Profile {
    /// Clocks may differ by more than the configured bound.
    pub(crate) wild_clocks: bool,
    /// One disk loses something that it had synced.
    pub(crate) damage: bool,
    /// How long after one fault the next begins.
    pub(crate) every: Duration,
}

impl Profile {
    pub(crate) fn draw(random: &mut ChaCha8Rng) -> Self {
        let every = Duration::from_millis(random.random_range(700..5000));
        Self { wild_clocks: random.random_bool(0.25), damage: random.random_bool(0.3), every }
    }
}

fn some(random: &mut ChaCha8Rng, stores: &[StoreId]) -> StoreId {
    stores[random.random_range(0..stores.len())]
}

/// Draws a fault and how long it lasts.
pub(crate) fn draw(random: &mut ChaCha8Rng, profile: Profile, stores: &[StoreId]) -> (Fault, Duration) {
    let lasts = Duration::from_millis(random.random_range(100..7000));
    let one = some(random, stores);
    let fault = match random.random_range(0..100) {
        0..22 => Fault::Crash(vec![one]),
        22..25 => Fault::Crash(stores.to_vec()),
        25..40 => {
            let side = random.random_range(1..stores.len());
            let mut left = stores.to_vec();
            while left.len() > side {
                left.remove(random.random_range(0..left.len()));
            }
            Fault::Partition(left)
        }
        40..55 => Fault::OneWay(one, some(random, stores)),
        55..62 => Fault::Pause(one),
        62..70 => Fault::Stall(one),
        70..76 => Fault::SlowDisk(one),
        76..79 => Fault::FullDisk(one),
        79..85 => {
            let most = if profile.wild_clocks { 3000 } else { 100 };
            Fault::Step(one, random.random_range(-most..most))
        }
        85..91 => {
            // Within the bound even if it lasts: 7 s at 1 % are 70 ms.
            let rate =
                if profile.wild_clocks { random.random_range(0.0..2.0) } else { random.random_range(0.99..1.01) };
            Fault::Drift(one, if profile.wild_clocks && random.random_bool(0.3) { 0.0 } else { rate })
        }
        _ => Fault::BadNetwork,
    };
    (fault, lasts)
}

/// Draws how a disk goes bad. At most once in a run: two bad disks may hold the only two copies of something.
pub(crate) fn draw_damage(random: &mut ChaCha8Rng, stores: &[StoreId]) -> (Fault, Duration) {
    let one = some(random, stores);
    let fault = if random.random_bool(0.5) { Fault::LostTail(one) } else { Fault::DamagedEntry(one) };
    (fault, Duration::from_millis(random.random_range(500..4000)))
}

impl World {
    /// It begins.
    pub(crate) fn strike(&mut self, fault: &Fault, lasts: Duration) {
        let now = self.now();
        self.note(&format!("{fault:?} for {:.3} s", lasts.as_secs_f64()));
        let all: Vec<_> = self.hosts.keys().copied().collect();
        match fault {
            Fault::Crash(stores) => {
                let all = stores.len() > 1;
                self.trace.count(if all { "crashes of all stores" } else { "crashes" });
                for store in stores {
                    self.crash(*store);
                    self.restart(*store, lasts);
                }
            }
            Fault::Partition(left) => {
                self.trace.count("partitions");
                for store in &all {
                    for other in all.iter().filter(|other| left.contains(store) != left.contains(other)) {
                        self.network.cut_off(*store, *other);
                    }
                }
            }
            Fault::OneWay(from, to) if from != to => {
                self.trace.count("one-way partitions");
                self.network.cut_off(*from, *to);
            }
            Fault::OneWay(..) => {}
            Fault::Pause(store) => {
                self.trace.count("pauses");
                self.on(*store, |host| host.paused_until = now + lasts);
            }
            Fault::Stall(store) => {
                self.trace.count("stalled disks");
                self.on(*store, |host| host.disk.stalled_until = now + lasts);
            }
            Fault::SlowDisk(store) => {
                self.trace.count("slow disks");
                self.on(*store, |host| host.disk.sync_max = Duration::from_millis(700));
            }
            Fault::Step(store, by_ms) => {
                self.trace.count(if by_ms.abs() > 125 { "clock steps beyond the bound" } else { "clock steps" });
                self.on(*store, |host| lock(&host.wall).step(now, *by_ms));
            }
            Fault::Drift(store, rate) => {
                self.trace.count(if *rate == 0.0 { "frozen clocks" } else { "drifting clocks" });
                self.on(*store, |host| lock(&host.wall).run(now, *rate));
            }
            Fault::FullDisk(store) => {
                self.trace.count("full disks");
                self.fill(*store, true);
            }
            Fault::LostTail(store) => self.on(*store, |host| host.disk.save()),
            Fault::DamagedEntry(store) => {
                self.crash(*store);
                let hit = self.hosts.get(store).and_then(|host| host.disk.damage_an_entry());
                if let Some(range) = hit {
                    self.trace.count("damaged log entries");
                    self.note(&format!("an entry of {range} on {store} is damaged"));
                    self.damaged.insert(*store);
                }
                self.restart(*store, lasts);
            }
            Fault::BadNetwork => {
                self.trace.count("bad networks");
                self.network.loss = self.random.random_range(0.0..0.2);
                self.network.doubling = self.random.random_range(0.0..0.2);
                self.network.lateness = self.random.random_range(0.0..0.1);
                self.network.delay_max = Duration::from_millis(self.random.random_range(2..80));
            }
        }
    }

    /// It ends.
    pub(crate) fn relent(&mut self, fault: &Fault) {
        let now = self.now();
        match fault {
            Fault::Partition(_) | Fault::OneWay(..) | Fault::BadNetwork => self.network.heal(),
            Fault::SlowDisk(store) => self.on(*store, |host| host.disk.sync_max = Duration::from_millis(2)),
            Fault::Step(store, _) | Fault::Drift(store, _) => self.on(*store, |host| lock(&host.wall).mend(now)),
            Fault::FullDisk(store) => self.fill(*store, false),
            Fault::LostTail(store) => {
                self.trace.count("lost log tails");
                self.crash(*store);
                self.on(*store, |host| host.disk.lose_tail());
                self.restart(*store, Duration::from_millis(500));
            }
            Fault::Crash(_) | Fault::Pause(_) | Fault::Stall(_) | Fault::DamagedEntry(_) => {}
        }
    }

    /// The watermark of a disk is passed, one way or the other.
    pub(crate) fn fill(&mut self, store: StoreId, is_full: bool) {
        self.on(store, |host| host.is_full = is_full);
        self.tell(store, Event::DiskFull(is_full));
    }

    fn on(&mut self, store: StoreId, change: impl FnOnce(&mut crate::node::Host)) {
        if let Some(host) = self.hosts.get_mut(&store) {
            change(host);
        }
    }

    /// Everything is well from now on.
    pub(crate) fn heal(&mut self) {
        let now = self.now();
        self.note("everything is healed");
        self.network.heal();
        for host in self.hosts.values_mut() {
            host.paused_until = Duration::ZERO;
            host.disk.stalled_until = Duration::ZERO;
            host.disk.sync_max = Duration::from_millis(2);
            lock(&host.wall).mend(now);
        }
        for store in self.hosts.keys().copied().collect::<Vec<_>>() {
            self.fill(store, false);
            self.end_sync(store);
        }
        let down: Vec<_> = self.hosts.iter().filter(|(_, host)| host.node.is_none()).map(|(store, _)| *store).collect();
        for store in down {
            self.restart(store, Duration::ZERO);
        }
    }
}
