//! A simulated cluster in a test's hands: one thing goes wrong at a time, and the test says what must follow.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{KvError, Router, TxnConfig};
use flotilla_types::{Key, RangeError, RangeId, StoreId, Write, WriteResult};

use crate::disk::Disk;
use crate::time::lock;
use crate::world::World;

/// What a client was told, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// The answer.
    pub result: Result<T, KvError>,
    /// When it came.
    pub at: Duration,
}

/// A client's call that is under way.
pub struct Pending<T>(Arc<Mutex<Option<Answer<T>>>>);

impl<T> Pending<T> {
    /// Whether the answer has come, and was not taken yet.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// The answer, if it has come. It is there once.
    #[must_use]
    pub fn take(&self) -> Option<Answer<T>> {
        lock(&self.0).take()
    }
}

/// See the module's page.
pub struct Cluster {
    world: World,
    /// The id that the next range gets.
    next_range: u64,
}

impl Cluster {
    /// Stores 1 to `stores`, healthy, every range on the first three and led somewhere.
    #[must_use]
    pub fn new(seed: u64, stores: u64) -> Self {
        Self::warmed_up(World::new(seed, stores, 3))
    }

    /// The same in as many datacenters: every message between two of them takes exactly `one_way`, every sync the same short
    /// time, and the nodes are configured as the product is, so that what differs between two latencies is their messages.
    #[must_use]
    pub fn over_datacenters(seed: u64, stores: u64, one_way: Duration) -> Self {
        let mut world = World::new(seed, stores, 3);
        world.network.fixed = Some(one_way);
        for host in world.hosts.values_mut() {
            host.disk.sync_max = Disk::SYNC_MIN;
            host.txn = Some(TxnConfig::default());
        }
        Self::warmed_up(world)
    }

    fn warmed_up(world: World) -> Self {
        let mut cluster = Self { world, next_range: 100 };
        cluster.run_for(Duration::from_secs(6));
        cluster
    }

    /// Virtual time since the beginning.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.world.now()
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        let limit = self.world.now() + time;
        while self.world.step(limit).is_some() {}
    }

    /// Lets time pass until something is the case, at most until `limit`.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn() -> bool) {
        while !done() && self.world.step(limit).is_some() {}
    }

    /// What went wrong so far that must never go wrong.
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.world.failures
    }

    /// How often something happened.
    #[must_use]
    pub fn count(&self, what: &str) -> u64 {
        self.world.trace.counts.get(what).copied().unwrap_or(0)
    }

    /// Stores that lead at least one range and are up.
    #[must_use]
    pub fn led_by(&self, store: u64) -> usize {
        let node = self.world.node(StoreId(store));
        node.map_or(0, |node| node.fleet.status().iter().filter(|status| status.leads).count())
    }

    /// The store that leads the range of a key.
    #[must_use]
    pub fn leader(&self, key: &Key) -> Option<u64> {
        let leads = |store: &StoreId| {
            let status = self.world.node(*store).map(|node| node.fleet.status()).unwrap_or_default();
            status.iter().any(|status| status.leads && status.descriptor.span.contains(key))
        };
        self.world.up().into_iter().rev().find(leads).map(|store| store.0)
    }

    /// Moves the leadership of a key's range. Says whether it came there.
    pub fn transfer(&mut self, key: &Key, to: u64) -> bool {
        let key = key.clone();
        let done = self.ask(to, Duration::from_secs(10), move |router, deadline| async move {
            router.transfer(&key, StoreId(to), deadline).await
        });
        done.is_some_and(|answer| answer.result.is_ok())
    }

    /// Cuts a key's range in two before the key. Says whether it was done.
    pub fn split(&mut self, key: &Key) -> bool {
        let (key, right) = (key.clone(), RangeId(self.next_range));
        self.next_range += 1;
        let done = self.ask(1, Duration::from_secs(10), move |router, deadline| async move {
            router.split(&key, right, deadline).await
        });
        done.is_some_and(|answer| answer.result.is_ok())
    }

    /// Begins a client's call through the router of a node and lets no time pass. `None`: the node is down.
    pub fn start<T: Send + 'static, F>(
        &mut self,
        gateway: u64,
        patience: Duration,
        call: impl FnOnce(Router, Duration) -> F,
    ) -> Option<Pending<T>>
    where
        F: Future<Output = Result<T, KvError>> + Send + 'static,
    {
        let router = self.world.node(StoreId(gateway))?.router.clone();
        let deadline = self.world.now() + patience;
        let (told, clock) = (Arc::new(Mutex::new(None)), Arc::clone(router.clock()));
        let (tell, future) = (Arc::clone(&told), call(router, deadline));
        self.world.executor.spawn(StoreId(gateway), async move {
            let result = future.await;
            *lock(&tell) = Some(Answer { result, at: clock.mono() });
        });
        Some(Pending(told))
    }

    /// Runs a client's call through the router of a node, at most for `patience` and a little. `None`: no answer came.
    fn ask<T: Send + 'static, F>(
        &mut self,
        gateway: u64,
        patience: Duration,
        call: impl FnOnce(Router, Duration) -> F,
    ) -> Option<Answer<T>>
    where
        F: Future<Output = Result<T, KvError>> + Send + 'static,
    {
        let limit = self.world.now() + patience + Duration::from_secs(2);
        let pending = self.start(gateway, patience, call)?;
        self.run_until(limit, || pending.is_answered());
        pending.take()
    }

    /// Writes through a node.
    pub fn put(&mut self, gateway: u64, key: &Key, value: &str, patience: Duration) -> Option<Answer<()>> {
        let write = Write::Put { key: key.clone(), value: Bytes::copy_from_slice(value.as_bytes()) };
        self.ask(gateway, patience, move |router, deadline| async move {
            let id = router.request_id()?;
            router.write(id, write, deadline).await.map(|(result, _)| debug_assert_eq!(result, WriteResult::Done))
        })
    }

    /// Deletes through a node.
    pub fn delete(&mut self, gateway: u64, key: &Key, patience: Duration) -> Option<Answer<()>> {
        let write = Write::Delete { key: key.clone() };
        self.ask(gateway, patience, move |router, deadline| async move {
            let id = router.request_id()?;
            router.write(id, write, deadline).await.map(drop)
        })
    }

    /// Reads through a node.
    pub fn get(&mut self, gateway: u64, key: &Key, patience: Duration) -> Option<Answer<Option<String>>> {
        let key = key.clone();
        self.ask(gateway, patience, move |router, deadline| async move {
            let answer = router.get(key, deadline).await?;
            Ok(answer.row.map(|row| String::from_utf8_lossy(&row.value).into_owned()))
        })
    }

    /// Asks one store for a key, whoever leads: what a client with an old hint does. The reply, if one comes in time.
    pub fn get_at(&mut self, store: u64, key: &Key, patience: Duration) -> Option<Result<Option<String>, RangeError>> {
        self.world.ask_store(StoreId(store), key, patience)
    }

    /// No fsync of a store's log ends for a while.
    pub fn stall_disk(&mut self, store: u64, time: Duration) {
        let until = self.world.now() + time;
        if let Some(host) = self.world.hosts.get_mut(&StoreId(store)) {
            host.disk.stalled_until = until;
        }
    }

    /// Nothing passes from one store to another.
    pub fn cut(&mut self, from: u64, to: u64) {
        self.world.network.cut_off(StoreId(from), StoreId(to));
    }

    /// What was cut from one store to another passes again.
    pub fn mend(&mut self, from: u64, to: u64) {
        self.world.network.cut.remove(&(StoreId(from), StoreId(to)));
    }

    /// So many of all messages are lost, and so many come much later than the others. Until `heal`.
    pub fn spoil_network(&mut self, loss: f64, lateness: f64) {
        self.world.network.loss = loss;
        self.world.network.lateness = lateness;
    }

    /// Sets a store's wall clock.
    pub fn step_clock(&mut self, store: u64, by_ms: i64) {
        let now = self.world.now();
        if let Some(host) = self.world.hosts.get_mut(&StoreId(store)) {
            lock(&host.wall).step(now, by_ms);
        }
    }

    /// The watermark of a store's disk is passed, one way or the other.
    pub fn fill_disk(&mut self, store: u64, is_full: bool) {
        self.world.fill(StoreId(store), is_full);
    }

    /// Remembers a store's log as it is: `lose_log_tail` goes back there.
    pub fn save_log(&mut self, store: u64) {
        if let Some(host) = self.world.hosts.get_mut(&StoreId(store)) {
            host.disk.save();
        }
    }

    /// A store's machine stops and starts again; everything that its log synced since `save_log` is gone.
    pub fn lose_log_tail(&mut self, store: u64) {
        self.world.crash(StoreId(store));
        if let Some(host) = self.world.hosts.get_mut(&StoreId(store)) {
            host.disk.lose_tail();
        }
        self.world.restart(StoreId(store), Duration::from_secs(1));
    }

    /// A store's machine stops, one entry of its log rots, and it starts again. Says whether there was one to rot.
    pub fn damage_an_entry(&mut self, store: u64) -> bool {
        self.world.crash(StoreId(store));
        let hit = self.world.hosts.get(&StoreId(store)).and_then(|host| host.disk.damage_an_entry());
        if hit.is_some() {
            self.world.damaged.insert(StoreId(store));
        }
        self.world.restart(StoreId(store), Duration::from_secs(1));
        hit.is_some()
    }

    /// Why a store must not start as itself any more.
    #[must_use]
    pub fn fenced(&self, store: u64) -> Option<&str> {
        self.world.hosts.get(&StoreId(store))?.fenced.as_deref()
    }

    /// A crash, and a start after a while.
    pub fn crash(&mut self, store: u64, down: Duration) {
        self.world.crash(StoreId(store));
        self.world.restart(StoreId(store), down);
    }

    /// Everything is well again.
    pub fn heal(&mut self) {
        self.world.heal();
    }
}
