//! What the services need of the node they stand in. The process implements it; tests do with an imitation.

use std::time::Duration;

use flotilla_kv::{KvError, Router};
use flotilla_types::{CheckId, ClusterId, Locality, LogIndex, NodeId, RangeId, ReplicaHash, StoreId, Term, Timestamp};
use futures::future::BoxFuture;
use thiserror::Error;

/// The node, as its services see it.
pub trait Site: Send + Sync + 'static {
    /// Who this node is; `None` until it belongs to a cluster.
    fn identity(&self) -> Option<(ClusterId, NodeId)>;
    /// The way to all data; `None` until the node belongs to a cluster, and again while it stops.
    fn router(&self) -> Option<Router>;
    /// Why it does not serve at this moment, if it does not.
    fn not_serving(&self) -> Option<String>;
    /// Replicas on this node, and how many of them lead.
    fn counts(&self) -> BoxFuture<'static, (u64, u64)>;
    /// The node's clock, if it may be read.
    fn timestamp(&self) -> Option<Timestamp>;
    /// Makes a cluster of which this node is the first.
    fn init(&self) -> BoxFuture<'static, Result<ClusterId, InitError>>;
    /// The nodes of the cluster, this one included.
    fn nodes(&self, deadline: Duration) -> BoxFuture<'static, Result<Vec<NodeView>, KvError>>;
    /// A range id that was never used.
    fn next_range_id(&self, deadline: Duration) -> BoxFuture<'static, Result<RangeId, KvError>>;
    /// The replicas on a node, as that node sees them.
    fn replicas(&self, node: NodeId, deadline: Duration) -> BoxFuture<'static, Result<Vec<ReplicaView>, String>>;
    /// A replica's hash of a check that went through the log.
    fn hash(
        &self,
        store: StoreId,
        range: RangeId,
        check: CheckId,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<ReplicaHash, String>>;
}

/// Why a node makes no cluster.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InitError {
    /// It belongs to one, or joins one.
    #[error("{0}")]
    Already(String),
    /// It could not.
    #[error("{0}")]
    Failed(String),
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Which.
    pub node: NodeId,
    /// Where clients reach it.
    pub address: String,
    /// Where it stands.
    pub locality: Locality,
    /// Whether it is reached from here.
    pub live: bool,
    /// Its version, if known.
    pub version: Option<String>,
    /// Replicas there, and how many of them lead, if known.
    pub counts: Option<(u64, u64)>,
}

/// A replica, as its store sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaView {
    /// Of which range.
    pub range: RangeId,
    /// Whether it leads and may serve.
    pub leads: bool,
    /// What it applied.
    pub applied: LogIndex,
    /// Its raft term.
    pub term: Term,
    /// Bytes of its data, about.
    pub bytes: u64,
}
