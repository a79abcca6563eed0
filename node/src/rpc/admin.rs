//! `flotilla.v1.Admin`: the cluster, its ranges, and changes of both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::Router;
use flotilla_proto::reason::Reason;
use flotilla_proto::v1::{self, admin_server::Admin};
use flotilla_types::{CheckId, ConfTarget, Key, KeySpan, NodeId, RangeDescriptor, RangeId, StoreId};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert;
use super::door::{Door, Method};
use super::kv::wire;
use super::refusal::{of_kv, refusal};
use super::site::{InitError, NodeView, ReplicaView, Site};

/// Ranges in one message of a listing: some 200 KiB.
const RANGES_PER_PAGE: usize = 500;
/// Ranges that are hashed at a time: each reads all its data on every replica.
const CHECKS_AT_ONCE: usize = 4;
/// Transactions in an answer, if the caller names no bound, and at most: some megabyte.
const TRANSACTIONS_DEFAULT: usize = 1000;
const TRANSACTIONS_MAX: usize = 10_000;
/// Messages that wait for a slow reader.
const AHEAD: usize = 2;
/// How long another node may take to tell its figures; without it they are left out.
const FIGURES_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands that move data get at least this long if the caller names no deadline.
const MOVE_TIMEOUT: Duration = Duration::from_secs(120);

/// The service.
#[derive(Clone)]
pub(crate) struct AdminService {
    pub(crate) door: Door,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Admin for AdminService {
    async fn init(&self, _: Request<v1::InitRequest>) -> Answer<v1::InitResponse> {
        match self.door.site.init().await {
            Ok(cluster) => Ok(Response::new(v1::InitResponse { cluster_id: Bytes::copy_from_slice(&cluster.0) })),
            Err(InitError::Already(what)) => Err(refusal(Reason::AlreadyInitialized, &what)),
            Err(InitError::Failed(what)) => Err(refusal(Reason::NodeNotServing, &what)),
        }
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let site = &self.door.site;
        let mut answer = v1::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            timestamp: site.timestamp().map(wire),
            ..Default::default()
        };
        let Some((cluster, node)) = site.identity() else { return Ok(Response::new(answer)) };
        answer.cluster_id = Bytes::copy_from_slice(&cluster.0);
        answer.node_id = node.0;
        (answer.replicas, answer.leaders) = site.counts().await;
        if let Some(router) = site.router() {
            // What this node knows of itself is told also while the cluster's records cannot be read.
            let timeout = self.door.timeout(request.metadata()).min(FIGURES_TIMEOUT);
            if let Ok(nodes) = site.nodes(router.clock().mono() + timeout).await {
                answer.nodes = nodes.len() as u64;
                answer.nodes_live = nodes.iter().filter(|node| node.live).count() as u64;
            }
        }
        Ok(Response::new(answer))
    }

    async fn nodes(&self, request: Request<v1::NodesRequest>) -> Answer<v1::NodesResponse> {
        let entered = self.door.enter(Method::Admin, request.metadata())?;
        let nodes = self.door.site.nodes(entered.deadline).await.map_err(|error| of_kv(&error))?;
        Ok(Response::new(v1::NodesResponse { nodes: nodes.into_iter().map(convert::node).collect() }))
    }

    type RangesStream = ReceiverStream<Result<v1::RangesResponse, Status>>;

    async fn ranges(&self, request: Request<v1::RangesRequest>) -> Answer<Self::RangesStream> {
        let entered = self.door.enter(Method::Admin, request.metadata())?;
        let asked = request.into_inner();
        let end = asked.end.map_or(Key::MAX, Key::new);
        let span =
            KeySpan::new(Key::new(asked.start), end).map_err(|error| refusal(Reason::Invalid, &error.to_string()))?;
        let mut ranges = entered.router.ranges(&span, entered.deadline).await.map_err(|error| of_kv(&error))?;
        if asked.ranges_max > 0 {
            ranges.truncate(usize::try_from(asked.ranges_max).unwrap_or(usize::MAX));
        }
        let leaders = leaders(&self.door.site, &entered.router, entered.deadline).await;
        let (to, pages) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let _entered = entered;
            for page in ranges.chunks(RANGES_PER_PAGE) {
                let page = page.iter().map(|range| convert::range(range, leaders.get(&range.range))).collect();
                if to.send(Ok(v1::RangesResponse { ranges: page })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(pages)))
    }

    async fn split(&self, request: Request<v1::SplitRequest>) -> Answer<v1::SplitResponse> {
        let entered = self.door.enter(Method::Admin, request.metadata())?;
        let key = Key::new(request.into_inner().key);
        if key <= flotilla_types::keys::META2 || key >= Key::MAX {
            return Err(refusal(Reason::Invalid, "a range cannot be cut there: give a logical key above 02"));
        }
        let right = self.door.site.next_range_id(entered.deadline).await.map_err(|error| of_kv(&error))?;
        let halves = entered.router.split(&key, right, entered.deadline).await.map_err(|error| of_kv(&error))?;
        let (left, right) = (convert::descriptor(&halves.left), convert::descriptor(&halves.right));
        Ok(Response::new(v1::SplitResponse { left: Some(left), right: Some(right) }))
    }

    async fn transfer_leader(&self, request: Request<v1::TransferLeaderRequest>) -> Answer<v1::TransferLeaderResponse> {
        let entered = self.door.enter(Method::Admin, request.metadata())?;
        let asked = request.into_inner();
        let range = entered.router.range(RangeId(asked.range_id), entered.deadline).await;
        let range = range.map_err(|error| of_kv(&error))?;
        let done = entered.router.transfer(&range.span.start, StoreId(asked.to_store), entered.deadline).await;
        done.map_err(|error| of_kv(&error))?;
        Ok(Response::new(v1::TransferLeaderResponse {}))
    }

    async fn change_replicas(&self, request: Request<v1::ChangeReplicasRequest>) -> Answer<v1::ChangeReplicasResponse> {
        let mut entered = self.door.enter(Method::Admin, request.metadata())?;
        if !request.metadata().contains_key("grpc-timeout") {
            entered.deadline = entered.router.clock().mono() + MOVE_TIMEOUT;
        }
        let asked = request.into_inner();
        let stores = |ids: Vec<u64>| ids.into_iter().map(StoreId).collect();
        let target = ConfTarget { voters: stores(asked.voters), learners: stores(asked.learners) };
        self.check_target(&target, entered.deadline).await?;
        let range = entered.router.range(RangeId(asked.range_id), entered.deadline).await;
        let range = range.map_err(|error| of_kv(&error))?;
        let changed = entered.router.change_replicas(&range.span.start, target, entered.deadline).await;
        let changed = changed.map_err(|error| of_kv(&error))?;
        Ok(Response::new(v1::ChangeReplicasResponse { descriptor: Some(convert::descriptor(&changed)) }))
    }

    type ChecksumStream = ReceiverStream<Result<v1::ChecksumResponse, Status>>;

    async fn checksum(&self, request: Request<v1::ChecksumRequest>) -> Answer<Self::ChecksumStream> {
        let entered = self.door.enter(Method::Admin, request.metadata())?;
        let patience = self.door.timeout(request.metadata()).max(Duration::from_secs(30));
        let ranges = match request.into_inner().range_id {
            Some(range) => entered.router.range(RangeId(range), entered.deadline).await.map(|range| vec![range]),
            None => entered.router.ranges(&KeySpan::ALL, entered.deadline).await,
        };
        let ranges = ranges.map_err(|error| of_kv(&error))?;
        let (to, answers) = mpsc::channel(AHEAD);
        let site = Arc::clone(&self.door.site);
        tokio::spawn(async move {
            let check = |range| check(Arc::clone(&site), entered.router.clone(), range, patience);
            let mut checks = stream::iter(ranges).map(check).buffered(CHECKS_AT_ONCE);
            while let Some(answer) = checks.next().await {
                if to.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn transactions(&self, request: Request<v1::TransactionsRequest>) -> Answer<v1::TransactionsResponse> {
        let entered = self.door.enter(Method::Admin, request.metadata())?;
        let max = match request.into_inner().transactions_max {
            0 => TRANSACTIONS_DEFAULT,
            asked => usize::try_from(asked).unwrap_or(usize::MAX).min(TRANSACTIONS_MAX),
        };
        let (open, transactions) = entered.router.open_transactions(max);
        Ok(Response::new(v1::TransactionsResponse {
            node_id: self.door.site.identity().map_or(0, |(_, node)| node.0),
            transactions: transactions.into_iter().map(convert::transaction).collect(),
            waits: entered.router.lock_waits().into_iter().map(convert::lock_wait).collect(),
            open: open as u64,
        }))
    }
}

impl AdminService {
    /// A target names stores of this cluster, each once, and at least one voter.
    async fn check_target(&self, target: &ConfTarget, deadline: Duration) -> Result<(), Status> {
        let mut named: Vec<StoreId> = target.voters.iter().chain(&target.learners).copied().collect();
        named.sort_unstable();
        if target.voters.is_empty() || named.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(refusal(Reason::Invalid, "name at least one voter, and each store once"));
        }
        let nodes = self.door.site.nodes(deadline).await.map_err(|error| of_kv(&error))?;
        match named.iter().find(|store| nodes.iter().all(|node| StoreId::from(node.node) != **store)) {
            Some(stranger) => Err(refusal(
                Reason::NodeNotFound,
                &format!("the cluster has no store {stranger}: see `flotilla node ls`"),
            )),
            None => Ok(()),
        }
    }
}

/// Who leads which range, as the nodes that answer in time tell.
async fn leaders(
    site: &Arc<dyn Site>,
    router: &Router,
    deadline: Duration,
) -> BTreeMap<RangeId, (NodeId, ReplicaView)> {
    let figures_by = deadline.min(router.clock().mono() + FIGURES_TIMEOUT);
    let nodes = site.nodes(figures_by).await.unwrap_or_default();
    let live = nodes.into_iter().filter(|node| node.live);
    let asked = live.map(|NodeView { node, .. }| {
        let answer = site.replicas(node, figures_by);
        async move { (node, answer.await.unwrap_or_default()) }
    });
    let mut leaders: BTreeMap<RangeId, (NodeId, ReplicaView)> = BTreeMap::new();
    for (node, replicas) in futures::future::join_all(asked).await {
        for replica in replicas.into_iter().filter(|replica| replica.leads) {
            // Of two that say so, the one of the later term is right.
            let known = leaders.get(&replica.range).is_some_and(|(_, known)| known.term > replica.term);
            if !known {
                leaders.insert(replica.range, (node, replica));
            }
        }
    }
    leaders
}

/// Checks one range. What goes wrong is part of the answer: the other ranges are checked all the same.
async fn check(
    site: Arc<dyn Site>,
    router: Router,
    range: RangeDescriptor,
    patience: Duration,
) -> v1::ChecksumResponse {
    let check = CheckId(rand::random());
    let deadline = router.clock().mono() + patience;
    let (range, failed) = match router.check(&range.span.start, check, deadline).await {
        Ok(checked) => (checked, None),
        Err(error) => (range, Some(error.to_string())),
    };
    let asked = range.replicas.iter().map(|replica| {
        let answer = match &failed {
            Some(why) => Box::pin(futures::future::ready(Err(why.clone()))),
            None => site.hash(replica.store, range.range, check, deadline),
        };
        async move { convert::hash(replica, answer.await) }
    });
    let hashes = futures::future::join_all(asked).await;
    let states: Vec<_> = hashes.iter().map(|hash| (hash.applied_index, hash.hash, hash.pairs)).collect();
    let agree = hashes.iter().all(|hash| hash.error.is_none()) && states.windows(2).all(|pair| pair[0] == pair[1]);
    if !agree {
        tracing::warn!(range = %range.range, ?states, "a check did not find the replicas alike");
    }
    v1::ChecksumResponse { range_id: range.range.0, hashes, agree }
}
