//! Stores in one process, wired to each other without sockets.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flotilla_node::clock::NodeClock;
use flotilla_node::ports::{Broken, Keeper, Network, Ports, Push, SnapshotOutlet};
use flotilla_node::store::{Opened, SnapshotIntake, StartError, Store, StoreConfig, StoreDir, StoreHandle};
use flotilla_range::liveness::{LivenessConfig, LivenessMessage};
use flotilla_range::message::{PeerMessage, SnapshotHeader};
use flotilla_storage::rocks::RocksOptions;
use flotilla_storage::writer::LogPriority;
use flotilla_types::{
    Admin, CheckId, ClusterId, Command, ConfTarget, Key, RangeDescriptor, RangeError, RangeId, RangeReply,
    RangeRequest, Read, ReadAt, Reply, RequestId, StoreId, Timestamp, Write, WriteResult, keys,
};

/// The range of applications' keys after a bootstrap.
pub const USER: RangeId = RangeId(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// Short times, so that a test waits for seconds and not for minutes.
pub fn config() -> StoreConfig {
    StoreConfig {
        engine: RocksOptions { cache_bytes: 8 << 20, background_jobs: 2 },
        liveness: LivenessConfig { support: Duration::from_millis(1200), interval: Duration::from_millis(200) },
        log_priority: LogPriority::Normal,
        reserve_bytes: Some(1 << 20),
        ..StoreConfig::default()
    }
}

fn clock() -> Arc<NodeClock> {
    Arc::new(NodeClock::new(Duration::from_millis(250)))
}

/// A network of one, and a keeper who keeps nothing.
pub struct Silent;

impl Network for Silent {
    fn send(&self, _: Vec<(StoreId, PeerMessage)>) {}
    fn send_liveness(&self, _: StoreId, _: LivenessMessage) {}
    fn open_snapshot(&self, _: StoreId, _: SnapshotHeader) -> Box<dyn SnapshotOutlet> {
        Box::new(Direct { intake: None, runtime: tokio::runtime::Handle::current() })
    }
}

impl Keeper for Silent {
    fn lead(&self, _: RangeDescriptor) {}
    fn confirm(&self, _: RangeId, _: Key) {}
    fn push(&self, _: Push) {}

    fn lost(&self, range: RangeId, why: &str) {
        panic!("{range} is lost: {why}");
    }
}

/// A new store in an empty directory.
pub fn store_dir(dir: &Path, cluster: ClusterId, stores: &[u64], here: u64) -> StoreDir {
    let Ok(Opened::Fresh(fresh)) = StoreDir::open(dir) else { panic!("not a fresh directory") };
    let stores: Vec<_> = stores.iter().copied().map(StoreId).collect();
    fresh.begin_cluster(cluster, &stores, StoreId(here)).unwrap()
}

pub async fn try_start(dir: StoreDir, config: StoreConfig) -> Result<(Store, StoreHandle), StartError> {
    let ports = Ports { network: Arc::new(Silent), keeper: Arc::new(Silent), clock: clock() };
    tokio::task::spawn_blocking(move || Store::start(dir, config, ports)).await.unwrap()
}

pub async fn start(dir: &Path) -> (Store, StoreHandle) {
    start_with(dir, config()).await
}

pub async fn start_with(dir: &Path, config: StoreConfig) -> (Store, StoreHandle) {
    let Ok(Opened::Store(opened)) = StoreDir::open(dir) else { panic!("no store there") };
    try_start(opened, config).await.unwrap()
}

pub async fn close(store: Store) {
    tokio::task::spawn_blocking(move || store.close()).await.unwrap();
}

static NEXT: AtomicU32 = AtomicU32::new(1);

fn request(command: Command) -> RangeRequest {
    RangeRequest { range: USER, timeout: Duration::from_secs(5), command }
}

fn new_id() -> RequestId {
    let born = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    RequestId::new(born, 7, NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn put(key: &str, value: &str) -> Write {
    Write::Put { key: keys::user(key.as_bytes()), value: Bytes::copy_from_slice(value.as_bytes()) }
}

pub fn put_request(key: &str, value: &str) -> RangeRequest {
    request(Command::Write { id: new_id(), write: put(key, value) })
}

pub fn get_request_at(key: &str, timestamp: Timestamp) -> RangeRequest {
    let read = Read::Get { key: keys::user(key.as_bytes()) };
    request(Command::Read { at: ReadAt::Timestamp { timestamp, limit: timestamp }, read })
}

pub fn get_request(key: &str) -> RangeRequest {
    request(Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: keys::user(key.as_bytes()) } })
}

/// Asks until somebody knows; the same request each time.
pub async fn ask(handles: &[StoreHandle], request: RangeRequest) -> RangeReply {
    let mut last = None;
    let asked = async {
        loop {
            for handle in handles {
                match handle.request(request.clone()).await {
                    Ok(reply) => return reply,
                    Err(error @ (RangeError::Invalid { .. } | RangeError::RangeMismatch { .. })) => panic!("{error}"),
                    Err(error) => last = Some(error),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    answer.unwrap_or_else(|_| panic!("never answered: {last:?}"))
}

async fn write_to(handles: &[StoreHandle], write: Write) {
    let reply = ask(handles, request(Command::Write { id: new_id(), write })).await;
    assert_eq!(reply.reply, Reply::Write(WriteResult::Done));
}

async fn get_from(handles: &[StoreHandle], key: &str) -> Option<String> {
    match ask(handles, get_request(key)).await.reply {
        Reply::Get(row) => row.map(|row| String::from_utf8(row.value.to_vec()).unwrap()),
        other => panic!("a get was answered with {other:?}"),
    }
}

pub async fn write(handle: &StoreHandle, write: Write) {
    write_to(std::slice::from_ref(handle), write).await;
}

pub async fn get(handle: &StoreHandle, key: &str) -> Option<String> {
    get_from(std::slice::from_ref(handle), key).await
}

/// Who is up, for the wires between them.
#[derive(Default)]
struct Wires {
    up: Mutex<BTreeMap<StoreId, StoreHandle>>,
}

/// One store's end of the wires: delivers at once, as if the network took no time.
struct Wire {
    me: StoreId,
    wires: Arc<Wires>,
    runtime: tokio::runtime::Handle,
}

impl Wire {
    /// The receiver, with its clock forwarded first (leases 1.2); nothing if one of them is down or mute.
    fn to(&self, to: StoreId) -> Option<(StoreHandle, Timestamp)> {
        let up = self.wires.up.lock().unwrap();
        let sent = up.get(&self.me)?.clock().now().ok()?;
        let receiver = up.get(&to)?.clone();
        drop(up);
        receiver.clock().forward(sent).ok()?;
        Some((receiver, sent))
    }
}

impl Network for Wire {
    fn send(&self, turn: Vec<(StoreId, PeerMessage)>) {
        let mut of: BTreeMap<StoreId, Vec<PeerMessage>> = BTreeMap::new();
        for (to, message) in turn {
            of.entry(to).or_default().push(message);
        }
        for (to, messages) in of {
            match self.to(to) {
                Some((receiver, _)) => receiver.deliver(self.me, messages),
                None => {
                    if let Some(me) = self.wires.up.lock().unwrap().get(&self.me) {
                        me.unreachable(to);
                    }
                }
            }
        }
    }

    fn send_liveness(&self, to: StoreId, message: LivenessMessage) {
        if let Some((receiver, sent)) = self.to(to) {
            receiver.deliver_liveness(self.me, sent, message);
        }
    }

    fn open_snapshot(&self, to: StoreId, header: SnapshotHeader) -> Box<dyn SnapshotOutlet> {
        let intake = self.to(to).and_then(|(receiver, _)| receiver.intake(header).ok());
        Box::new(Direct { intake, runtime: self.runtime.clone() })
    }
}

struct Direct {
    intake: Option<SnapshotIntake>,
    runtime: tokio::runtime::Handle,
}

impl SnapshotOutlet for Direct {
    fn frame(&mut self, frame: Bytes) -> Result<(), Broken> {
        let intake = self.intake.as_mut().ok_or_else(|| Broken("it was not admitted".to_owned()))?;
        self.runtime.block_on(intake.frame(frame)).map_err(|error| Broken(error.to_string()))
    }

    fn finish(mut self: Box<Self>) -> bool {
        self.intake.take().is_some_and(|intake| intake.finish().is_ok())
    }
}

/// Several stores.
pub struct Cluster {
    wires: Arc<Wires>,
    dirs: BTreeMap<StoreId, (tempfile::TempDir, PathBuf)>,
    stores: BTreeMap<StoreId, Store>,
}

const CLUSTER: ClusterId = ClusterId([3; 16]);

impl Cluster {
    pub async fn start(count: u64) -> Self {
        let mut cluster = Self { wires: Arc::default(), dirs: BTreeMap::new(), stores: BTreeMap::new() };
        let ids: Vec<_> = (1..=count).collect();
        for id in &ids {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().to_owned();
            drop(store_dir(&path, CLUSTER, &ids, *id));
            cluster.dirs.insert(StoreId(*id), (dir, path));
        }
        for id in ids {
            cluster.restart(StoreId(id)).await;
        }
        cluster
    }

    /// An empty store beside the others.
    pub async fn join(&mut self, id: StoreId) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let Ok(Opened::Fresh(fresh)) = StoreDir::open(&path) else { panic!("not a fresh directory") };
        drop(fresh.join_cluster(CLUSTER, id).unwrap());
        self.dirs.insert(id, (dir, path));
        self.restart(id).await;
    }

    pub async fn restart(&mut self, id: StoreId) {
        let Ok(Opened::Store(dir)) = StoreDir::open(&self.dirs[&id].1) else { panic!("no store there") };
        let runtime = tokio::runtime::Handle::current();
        let network = Arc::new(Wire { me: id, wires: Arc::clone(&self.wires), runtime });
        let ports = Ports { network, keeper: Arc::new(Silent), clock: clock() };
        let started = tokio::task::spawn_blocking(move || Store::start(dir, config(), ports)).await.unwrap();
        let (store, handle) = started.unwrap();
        self.stores.insert(id, store);
        self.wires.up.lock().unwrap().insert(id, handle);
    }

    /// The files as a killed process leaves them: copied from under the running store, before it is taken away.
    pub async fn kill(&mut self, id: StoreId) {
        self.wires.up.lock().unwrap().remove(&id);
        let copy = tempfile::tempdir().unwrap();
        let (from, to) = (self.dirs[&id].1.clone(), copy.path().join("store"));
        copy_dir(&from, &to);
        let store = self.stores.remove(&id).unwrap();
        close(store).await;
        self.dirs.insert(id, (copy, to));
    }

    pub fn handle(&self, id: StoreId) -> StoreHandle {
        self.wires.up.lock().unwrap()[&id].clone()
    }

    pub fn handles(&self) -> Vec<StoreHandle> {
        self.wires.up.lock().unwrap().values().cloned().collect()
    }

    pub async fn write(&self, write: Write) {
        write_to(&self.handles(), write).await;
    }

    pub async fn write_in(&self, range: RangeId, write: Write) {
        let request = RangeRequest { range, ..request(Command::Write { id: new_id(), write }) };
        assert_eq!(ask(&self.handles(), request).await.reply, Reply::Write(WriteResult::Done));
    }

    pub async fn get_in(&self, range: RangeId, key: &str) -> Option<String> {
        match ask(&self.handles(), RangeRequest { range, ..get_request(key) }).await.reply {
            Reply::Get(row) => row.map(|row| String::from_utf8(row.value.to_vec()).unwrap()),
            other => panic!("a get was answered with {other:?}"),
        }
    }

    pub async fn get(&self, key: &str) -> Option<String> {
        get_from(&self.handles(), key).await
    }

    /// A request to whoever leads a range, once.
    pub async fn admin(&self, range: RangeId, command: Command) -> Result<RangeReply, RangeError> {
        let leader = self.leader_of(range).await.store();
        let handle = self.wires.up.lock().unwrap()[&leader].clone();
        handle.request(RangeRequest { range, timeout: Duration::from_secs(5), command }).await
    }

    /// Until the range lives on these stores alone.
    pub async fn move_to(&self, range: RangeId, stores: &[u64]) {
        let moved = async {
            loop {
                let leader = self.leader_of(range).await;
                let Some(status) = leader.inspect_range(range).await else { continue };
                let on: Vec<_> = status.descriptor.replicas.iter().map(|replica| replica.store.0).collect();
                let sorted = {
                    let mut on = on;
                    on.sort_unstable();
                    on
                };
                if sorted == stores && !status.descriptor.is_joint() {
                    return;
                }
                let voters = stores.iter().copied().map(StoreId).collect();
                let target = ConfTarget { voters, learners: Default::default() };
                let generation = status.descriptor.generation;
                let _ = self.admin(range, Command::Admin(Admin::ChangeReplicas { generation, target })).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, moved).await.unwrap();
    }

    /// Cuts the range of applications' keys that holds the key; gives the right half.
    pub async fn split(&self, range: RangeId, key: &str, right: u64) -> RangeDescriptor {
        let (key, right) = (keys::user(key.as_bytes()), RangeId(right));
        let generation = self.leader_of(range).await.inspect_range(range).await.unwrap().descriptor.generation;
        let reply = self.admin(range, Command::Admin(Admin::Split { generation, key, right })).await.unwrap();
        let Reply::Admin(halves) = reply.reply else { panic!("not a split's answer") };
        halves[1].clone()
    }

    /// Has all replicas of a range hashed, and compares.
    pub async fn compare(&self, range: RangeId, check: u64) {
        let check = CheckId(check);
        self.admin(range, Command::Admin(Admin::Check { check })).await.unwrap();
        let descriptor = self.leader_of(range).await.inspect_range(range).await.unwrap().descriptor;
        let mut hashes = Vec::new();
        for handle in self.handles() {
            if descriptor.on_store(handle.store()).is_some() {
                let deadline = handle.clock().mono() + PATIENCE;
                hashes.push(handle.hash(range, check, deadline).await.unwrap().hash);
            }
        }
        assert!(hashes.iter().all(|hash| hash.hash == hashes[0].hash), "{range}: {hashes:?}");
        assert_eq!(hashes.len(), descriptor.replicas.len());
    }

    /// Who leads the applications' keys.
    pub async fn leader(&self) -> StoreId {
        self.leader_of(USER).await.store()
    }

    /// Who leads a range.
    pub async fn leader_of(&self, range: RangeId) -> StoreHandle {
        let found = async {
            loop {
                for handle in self.handles() {
                    if handle.inspect_range(range).await.is_some_and(|status| status.leads) {
                        return handle;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap()
    }

    pub async fn drain(&self, id: StoreId, time: Duration) -> bool {
        let handle = self.wires.up.lock().unwrap()[&id].clone();
        handle.drain(handle.clock().mono() + time).await
    }

    /// Waits until all replicas of the applications' keys have applied the same; gives their checksums.
    pub async fn settle(&self) -> Vec<u64> {
        let settled = async {
            loop {
                let mut found = Vec::new();
                for handle in self.handles() {
                    found.extend(handle.inspect_range(USER).await.map(|status| (status.applied, status.sum)));
                }
                if found.len() == self.handles().len() && found.iter().all(|(applied, _)| *applied == found[0].0) {
                    return found.into_iter().map(|(_, sum)| sum).collect();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.unwrap()
    }

    pub async fn close(&mut self) {
        self.wires.up.lock().unwrap().clear();
        for (_, store) in std::mem::take(&mut self.stores) {
            close(store).await;
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&source, &target);
        } else if entry.file_name() != "LOCK" {
            std::fs::copy(&source, &target).unwrap();
        }
    }
}
