//! The node as its public services see it, from the first moment to the last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use flotilla_kv::{KvError, Router};
use flotilla_types::{CheckId, ClusterId, LogIndex, NodeId, RangeId, ReplicaHash, StoreId, Term, Timestamp};
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::member::Member;
use crate::clock::NodeClock;
use crate::cluster::{Cluster, InitDesk, InitRefused};
use crate::rpc::{self, Health, InitError, NodeView, ReplicaView, Site};
use crate::store::{Identity, StoreHandle};

/// How often the health service is told how the node is.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// See the module's page.
pub(super) struct NodeSite {
    clock: Arc<NodeClock>,
    desk: Arc<InitDesk>,
    /// Known before the store is open.
    identity: OnceLock<Identity>,
    parts: ArcSwapOption<Parts>,
    stopping: AtomicBool,
}

struct Parts {
    store: StoreHandle,
    router: Router,
    cluster: Arc<Cluster>,
}

impl NodeSite {
    pub(super) fn new(clock: Arc<NodeClock>, desk: InitDesk) -> Arc<Self> {
        let parts = ArcSwapOption::empty();
        let (identity, stopping) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Self { clock, desk: Arc::new(desk), identity, parts, stopping })
    }

    pub(super) fn init_desk(&self) -> &InitDesk {
        &self.desk
    }

    /// The node belongs to a cluster; its store is about to be opened.
    pub(super) fn belongs(&self, identity: Identity) {
        // Set once: a node stays who it is.
        let _ = self.identity.set(identity);
        self.desk.close(identity.cluster);
    }

    /// The store is open.
    pub(super) fn is_member(&self, member: &Member) {
        let Member { store, router, cluster, .. } = member;
        let parts = Parts { store: store.clone(), router: router.clone(), cluster: Arc::clone(cluster) };
        self.parts.store(Some(Arc::new(parts)));
    }

    pub(super) fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub(super) fn store(&self) -> Option<StoreHandle> {
        self.parts.load().as_ref().map(|parts| parts.store.clone())
    }

    fn no_cluster<T: Send + 'static>() -> BoxFuture<'static, Result<T, String>> {
        Box::pin(async { Err("this node belongs to no cluster yet".to_owned()) })
    }
}

fn unavailable(why: String) -> KvError {
    KvError::Unavailable { range: None, why }
}

impl Site for NodeSite {
    fn identity(&self) -> Option<(ClusterId, NodeId)> {
        let identity = self.identity.get()?;
        Some((identity.cluster, identity.store.into()))
    }

    fn router(&self) -> Option<Router> {
        self.parts.load().as_ref().map(|parts| parts.router.clone())
    }

    fn not_serving(&self) -> Option<String> {
        if self.stopping.load(Ordering::Acquire) {
            return Some("this node stops".to_owned());
        }
        if self.identity.get().is_none() {
            let how = "run 'flotilla init' on one node of a new cluster, once, or start this one with --join";
            return Some(format!("this node belongs to no cluster yet: {how}"));
        }
        if self.parts.load().is_none() {
            return Some("its store is being opened; ask again".to_owned());
        }
        self.clock.now().err().map(|error| format!("this node does not serve at this moment: {error}"))
    }

    fn counts(&self) -> BoxFuture<'static, (u64, u64)> {
        let store = self.store();
        Box::pin(async move {
            let Some(store) = store else { return (0, 0) };
            let replicas = store.inspect().await;
            (replicas.len() as u64, replicas.iter().filter(|replica| replica.leads).count() as u64)
        })
    }

    fn timestamp(&self) -> Option<Timestamp> {
        self.clock.now().ok()
    }

    fn init(&self) -> BoxFuture<'static, Result<ClusterId, InitError>> {
        let desk = Arc::clone(&self.desk);
        Box::pin(async move {
            desk.init().await.map_err(|refused| match refused {
                InitRefused::Member(_) | InitRefused::Joining => InitError::Already(refused.to_string()),
                InitRefused::Failed(_) => InitError::Failed(refused.to_string()),
            })
        })
    }

    fn nodes(&self, deadline: Duration) -> BoxFuture<'static, Result<Vec<NodeView>, KvError>> {
        let (clock, parts) = (Arc::clone(&self.clock), self.parts.load_full());
        Box::pin(async move {
            let parts = parts.ok_or_else(|| unavailable("this node belongs to no cluster yet".to_owned()))?;
            let views = parts.cluster.nodes().into_iter().map(|(member, live)| {
                let (clock, parts) = (Arc::clone(&clock), Arc::clone(&parts));
                async move {
                    let left = deadline.saturating_sub(clock.mono());
                    let counts = if live { counts(&parts, member.store, deadline, left).await } else { None };
                    NodeView {
                        node: member.store.into(),
                        address: member.contact.client_address,
                        locality: member.contact.locality,
                        live,
                        version: Some(member.contact.version),
                        counts,
                    }
                }
            });
            Ok(futures::future::join_all(views).await)
        })
    }

    fn next_range_id(&self, deadline: Duration) -> BoxFuture<'static, Result<RangeId, KvError>> {
        let parts = self.parts.load_full();
        Box::pin(async move {
            let parts = parts.ok_or_else(|| unavailable("this node belongs to no cluster yet".to_owned()))?;
            parts.cluster.next_range_id(deadline).await
        })
    }

    fn replicas(&self, node: NodeId, deadline: Duration) -> BoxFuture<'static, Result<Vec<ReplicaView>, String>> {
        let Some(parts) = self.parts.load_full() else { return Self::no_cluster() };
        Box::pin(async move { replicas(&parts, node.into(), deadline).await })
    }

    fn hash(
        &self,
        store: StoreId,
        range: RangeId,
        check: CheckId,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<ReplicaHash, String>> {
        let Some(parts) = self.parts.load_full() else { return Self::no_cluster() };
        Box::pin(async move { parts.cluster.survey(store, range, check, deadline).await.map(|survey| survey.hash) })
    }
}

/// How many replicas a store has and how many of them lead; `None` if it does not say in time.
async fn counts(parts: &Parts, store: StoreId, deadline: Duration, left: Duration) -> Option<(u64, u64)> {
    let replicas = tokio::time::timeout(left, replicas(parts, store, deadline)).await.ok()?.ok()?;
    Some((replicas.len() as u64, replicas.iter().filter(|replica| replica.leads).count() as u64))
}

async fn replicas(parts: &Parts, store: StoreId, deadline: Duration) -> Result<Vec<ReplicaView>, String> {
    if parts.store.store() == store {
        let own = parts.store.inspect_sizes().await.into_iter();
        return Ok(own
            .map(|(status, bytes)| ReplicaView {
                range: status.descriptor.range,
                leads: status.leads,
                applied: status.applied,
                term: status.term,
                bytes,
            })
            .collect());
    }
    let theirs = parts.cluster.replicas(store, deadline).await?.into_iter();
    Ok(theirs
        .map(|replica| ReplicaView {
            range: RangeId(replica.range_id),
            leads: replica.leads,
            applied: LogIndex(replica.applied_index),
            term: Term(replica.term),
            bytes: replica.bytes,
        })
        .collect())
}

/// Keeps the health service true until the node stops.
pub(super) async fn report_health(site: Arc<NodeSite>, health: Health, stop: CancellationToken) {
    let mut said = None;
    let mut every = tokio::time::interval(REPORT_EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = stop.cancelled() => return rpc::report(&health, false).await,
        }
        let serving = site.not_serving().is_none();
        if said != Some(serving) {
            rpc::report(&health, serving).await;
            said = Some(serving);
        }
    }
}
