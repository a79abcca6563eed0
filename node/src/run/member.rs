//! A node with a store in a cluster: the parts that run, and how they end.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use flotilla_kv::{Clock, Router, RouterConfig, Tasks, Transport};
use flotilla_placement::CheckerConfig;
use flotilla_storage::rocks::RocksOptions;
use flotilla_types::StoreId;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{NodeError, off_runtime};
use crate::clock::NodeClock;
use crate::cluster::{Cluster, ClusterConfig, Membership};
use crate::config::NodeConfig;
use crate::peer::directory::Directory;
use crate::peer::member::Contact;
use crate::peer::{PeerNetwork, Peers};
use crate::ports::Ports;
use crate::store::{DirError, FreshDir, Store, StoreConfig, StoreDir, StoreHandle};

/// The first store of a cluster holds everything until others join.
const FIRST: StoreId = StoreId(1);

/// How often what is known of peers is written although nobody moved.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// Makes the store that a membership is about. Blocks on the disk.
pub(super) fn make_store(fresh: FreshDir, membership: Membership) -> Result<StoreDir, DirError> {
    match membership {
        Membership::Begins(cluster) => fresh.begin_cluster(cluster, &[FIRST], FIRST),
        Membership::Joins(cluster, store) => fresh.join_cluster(cluster, store),
    }
}

/// See the module's page.
pub(super) struct Member {
    pub(super) store: StoreHandle,
    pub(super) router: Router,
    pub(super) cluster: Arc<Cluster>,
    owner: Store,
    tasks: JoinSet<()>,
    stop_behind: CancellationToken,
    saver: JoinHandle<()>,
    stop_saver: CancellationToken,
}

impl Member {
    pub(super) async fn start(
        dir: StoreDir,
        config: &NodeConfig,
        contact: &Contact,
        clock: &Arc<NodeClock>,
        directory: &Arc<Directory>,
        peers: &Arc<Peers>,
    ) -> Result<Self, NodeError> {
        let keeper = Cluster::keeper(directory);
        let network = PeerNetwork(Arc::clone(peers));
        let ports =
            Ports { network: Arc::new(network.clone()), keeper: Arc::clone(&keeper) as _, clock: Arc::clone(clock) };
        let store_config = store_config(config);
        let (owner, store) = off_runtime("start-store", move || Store::start(dir, store_config, ports)).await??;
        peers.attach(store.clone(), contact.clone());
        let router_config = RouterConfig { seed: rand::random(), txn: config.txn, ..RouterConfig::default() };
        let transport: Arc<dyn Transport> = Arc::new(network);
        let behind = Arc::new(Behind(CancellationToken::new()));
        let stop_behind = behind.0.clone();
        let router = Router::new(transport, Arc::clone(clock) as Arc<dyn Clock>, behind, router_config);
        let checker = CheckerConfig { seed: rand::random(), ..CheckerConfig::default() };
        let cluster_config =
            ClusterConfig { dead_after: config.dead_after, checker, check_interval: config.check_interval };
        let (cluster, tasks) = Cluster::start(&store, contact.clone(), &router, peers, &keeper, cluster_config);
        let stop_saver = CancellationToken::new();
        let saver = spawn_saver(Arc::clone(directory), stop_saver.clone())?;
        Ok(Self { store, router, cluster, owner, tasks, stop_behind, saver, stop_saver })
    }

    /// Ends everything, the store last.
    pub(super) async fn stop(mut self) -> Result<(), NodeError> {
        self.stop_behind.cancel();
        self.tasks.shutdown().await;
        self.stop_saver.cancel();
        off_runtime("close-store", move || {
            if self.saver.join().is_err() {
                tracing::error!("the thread that saves the list of peers panicked");
            }
            self.owner.close();
        })
        .await
    }
}

/// What routers do behind their callers' backs: each task ends in bounded time, and all with the node.
struct Behind(CancellationToken);

impl Tasks for Behind {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let stop = self.0.clone();
        tokio::spawn(async move { stop.run_until_cancelled(task).await });
    }
}

fn store_config(config: &NodeConfig) -> StoreConfig {
    let defaults = StoreConfig::default();
    let cache_bytes = usize::try_from(config.cache_bytes).unwrap_or(usize::MAX);
    StoreConfig {
        engine: RocksOptions { cache_bytes, ..defaults.engine },
        liveness: config.liveness,
        gc: config.gc,
        log_priority: config.log_priority,
        reserve_bytes: config.reserve_bytes,
        ..defaults
    }
}

/// Writes the list of peers when it changed. A thread of its own, since it syncs.
fn spawn_saver(directory: Arc<Directory>, stop: CancellationToken) -> Result<JoinHandle<()>, NodeError> {
    let (runtime, mut changed) = (Handle::current(), directory.watch());
    let save = move || {
        if let Err(error) = directory.save() {
            tracing::warn!(%error, "the list of peers could not be written; the next change tries again");
        }
    };
    let run = move || {
        save();
        loop {
            let again = runtime.block_on(async {
                tokio::select! {
                    changed = changed.changed() => changed.is_ok(),
                    // How far the peers' logs are is written now and then.
                    () = tokio::time::sleep(SAVE_EVERY) => true,
                    () = stop.cancelled() => false,
                }
            });
            save();
            if !again {
                return;
            }
        }
    };
    let spawned = std::thread::Builder::new().name("save-peers".to_owned()).spawn(run);
    spawned.map_err(|error| NodeError::Thread(error.to_string()))
}
