//! The node as a member of its cluster: how it becomes one, who the others are, and what has to be done for ranges
//! outside of their own log (docs/cluster.md).
//!
//! The list of nodes is one record of the system range (`registry`); every node keeps a copy (`peer::directory`) and
//! looks at the record now and then, or when somebody calls whom it does not know.

mod auditor;
mod driver;
mod ids;
mod joining;
mod keeper;
mod registry;

use std::sync::Arc;
use std::time::Duration;

use flotilla_kv::{KvError, Router};
use flotilla_placement::CheckerConfig;
use flotilla_proto::internal as wire;
use flotilla_range::check::Survey;
use flotilla_types::{CheckId, ClusterId, RangeId, ReplicaId, StoreId, StoreUuid};
use tokio::task::JoinSet;
use tonic::{Response, Status};

use self::auditor::Auditor;
use self::driver::Driver;
use self::ids::RangeIds;
pub use self::joining::{InitDesk, InitRefused, Membership, become_member};
pub use self::keeper::RangeKeeper;
pub use self::registry::{Registry, RegistryError};
use crate::peer::convert::survey_in;
use crate::peer::directory::Directory;
use crate::peer::member::{Contact, Member};
use crate::peer::{JoinDesk, Peers, check_offset, malformed};
use crate::store::StoreHandle;

/// How often the registry is looked at although nothing asks for it.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Calls of strangers do not bring more looks than this.
const LOOK_PAUSE: Duration = Duration::from_millis(300);
const LOOK_TIME: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);

/// See the module's page.
pub struct Cluster {
    id: ClusterId,
    me: Member,
    router: Router,
    peers: Arc<Peers>,
    store: StoreHandle,
    ids: RangeIds,
}

/// Settings of a member.
#[derive(Debug, Clone, Copy)]
pub struct ClusterConfig {
    /// A store that was not heard of for this long is dead.
    pub dead_after: Duration,
    /// What the driver aims at.
    pub checker: CheckerConfig,
    /// How often the replicas of each range are compared; zero: never.
    pub check_interval: Duration,
}

impl Cluster {
    /// The keeper of ranges that a store starts with; `start` puts it to work.
    #[must_use]
    pub fn keeper(directory: &Arc<Directory>) -> Arc<RangeKeeper> {
        RangeKeeper::new(Arc::clone(directory))
    }

    /// Puts the node to work as a member: it registers its addresses, takes others in, keeps records true, and drives
    /// placement where that is its turn. The tasks end when the set is dropped.
    pub fn start(
        store: &StoreHandle,
        contact: Contact,
        router: &Router,
        peers: &Arc<Peers>,
        keeper: &Arc<RangeKeeper>,
        config: ClusterConfig,
    ) -> (Arc<Self>, JoinSet<()>) {
        let identity = store.identity();
        let me = Member { store: identity.store, uuid: identity.uuid, contact };
        let cluster = Arc::new(Self {
            id: identity.cluster,
            me,
            router: router.clone(),
            peers: Arc::clone(peers),
            store: store.clone(),
            ids: RangeIds::default(),
        });
        peers.set_desk(Arc::clone(&cluster) as Arc<dyn JoinDesk>);
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(keeper).run(router.clone(), store.clone()));
        tasks.spawn(Arc::clone(keeper).push_all(router.clone(), store.clone()));
        tasks.spawn(Arc::clone(&cluster).follow_registry());
        let driver = Driver {
            router: router.clone(),
            store: store.clone(),
            peers: Arc::clone(peers),
            keeper: Arc::clone(keeper),
            config: config.checker,
            dead_after: config.dead_after,
        };
        tasks.spawn(driver.run());
        if !config.check_interval.is_zero() {
            let (router, store, keeper) = (router.clone(), store.clone(), Arc::clone(keeper));
            let cluster = Arc::clone(&cluster);
            let auditor = Auditor { cluster, router, store, keeper, every: config.check_interval };
            tasks.spawn(auditor.run());
        }
        (cluster, tasks)
    }

    /// Which cluster.
    #[must_use]
    pub const fn id(&self) -> ClusterId {
        self.id
    }

    /// The nodes that are known here, and whether each is reached.
    #[must_use]
    pub fn nodes(&self) -> Vec<(Member, bool)> {
        let live = |member: &Member| member.store == self.me.store || self.peers.is_up(member.store);
        self.peers.directory.members().into_iter().map(|member| (member.clone(), live(&member))).collect()
    }

    /// A range id that was never given.
    ///
    /// # Errors
    /// The system range could not be asked.
    pub async fn next_range_id(&self, deadline: Duration) -> Result<RangeId, KvError> {
        self.ids.next(&self.router, deadline).await
    }

    /// What a replica hashed for a check.
    ///
    /// # Errors
    /// Its node is not reached, or it did not hash in time.
    pub async fn survey(
        &self,
        store: StoreId,
        range: RangeId,
        check: CheckId,
        deadline: Duration,
    ) -> Result<Survey, String> {
        if store == self.me.store {
            let survey = self.store.hash(range, check, deadline).await;
            return survey
                .map(|survey| (*survey).clone())
                .ok_or_else(|| format!("the replica on {store} did not hash {range} in time"));
        }
        let request = wire::HashRequest { range_id: range.0, check_id: check.0 };
        loop {
            let left = deadline.saturating_sub(self.router.clock().mono());
            if left.is_zero() {
                return Err(format!("the replica on {store} did not hash {range} in time"));
            }
            let ask = |mut client: wire::peer_client::PeerClient<_>| async move {
                client.hash(request).await.map(Response::into_inner)
            };
            let answer = self.peers.ask(store, left, ask).await.map_err(|status| status.message().to_owned())?;
            if let Some(survey) = survey_in(answer) {
                return Ok(survey);
            }
        }
    }

    /// Tells a store what a check found: that its replica is wrong, and why, or whether the range is without a majority.
    ///
    /// # Errors
    /// The node is not reached.
    async fn judge(
        &self,
        store: StoreId,
        range: RangeId,
        wrong: Option<(ReplicaId, String)>,
        diverged: bool,
    ) -> Result<(), String> {
        if store == self.me.store {
            match wrong {
                Some((replica, why)) => self.store.give_up(range, replica, why),
                None => self.store.diverged(range, diverged),
            }
            return Ok(());
        }
        let (replica, why) = wrong.unwrap_or_default();
        let request = wire::JudgeRequest { range_id: range.0, replica_id: replica.0, why, diverged };
        let ask = |mut client: wire::peer_client::PeerClient<_>| async move { client.judge(request).await.map(drop) };
        self.peers.ask(store, LOOK_TIME, ask).await.map_err(|status| status.message().to_owned())
    }

    /// The replicas on another node, as it sees them.
    ///
    /// # Errors
    /// The node is not reached.
    pub async fn replicas(&self, store: StoreId, deadline: Duration) -> Result<Vec<wire::Replica>, String> {
        let left = deadline.saturating_sub(self.router.clock().mono());
        let ask = |mut client: wire::peer_client::PeerClient<_>| async move {
            let mut pages = client.replicas(wire::ReplicasRequest {}).await?.into_inner();
            let mut replicas = Vec::new();
            while let Some(page) = pages.message().await? {
                replicas.extend(page.replicas);
            }
            Ok(replicas)
        };
        self.peers.ask(store, left, ask).await.map_err(|status| status.message().to_owned())
    }

    /// Enters this node's addresses, then keeps the directory true.
    async fn follow_registry(self: Arc<Self>) {
        let mut entered = false;
        loop {
            let looked = self.look(entered).await;
            match looked {
                Ok(()) => entered = true,
                Err(error) => tracing::info!(%error, "the registry of nodes is not reached; trying again"),
            }
            if !entered {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.peers.unknown_caller() => {}
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    async fn look(&self, entered: bool) -> Result<(), RegistryError> {
        let deadline = self.router.clock().mono() + LOOK_TIME;
        let registry = if entered {
            Registry::read(&self.router, deadline).await?
        } else {
            let enter = |registry: &mut Registry| registry.enter(self.me.uuid, &self.me.contact);
            let (registry, store) = Registry::update(&self.router, deadline, enter).await?;
            if store != self.me.store {
                tracing::error!(known = %store, mine = %self.me.store, "the registry knows this store by another number");
            }
            registry
        };
        // What a node said of itself since is newer than what the registry says of it.
        let known: Vec<StoreId> = self.peers.directory.members().iter().map(|member| member.store).collect();
        let news = registry.members.into_iter().filter(|member| !known.contains(&member.store));
        self.peers.directory.learn(news.collect());
        Ok(())
    }
}

#[tonic::async_trait]
impl JoinDesk for Cluster {
    async fn join(&self, request: wire::JoinRequest) -> Result<wire::JoinResponse, Status> {
        let uuid = StoreUuid::try_from(&request.store_uuid[..]).map_err(|error| malformed(&error))?;
        let contact = request.contact.ok_or_else(|| Status::invalid_argument("the caller's contact is missing"))?;
        let contact = Contact::try_from(contact).map_err(|error| malformed(&error))?;
        check_offset(request.max_offset_ns, self.peers.max_offset())?;
        let deadline = self.router.clock().mono() + LOOK_TIME;
        // The first node enters itself first, so that its number is its own.
        let mine = (self.me.uuid, &self.me.contact);
        let enter = |registry: &mut Registry| {
            if registry.members.is_empty() {
                registry.enter(mine.0, mine.1);
            }
            registry.enter(uuid, &contact)
        };
        let (registry, store) = Registry::update(&self.router, deadline, enter)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        tracing::info!(%store, %uuid, address = contact.peer_address, "a node was taken in");
        self.peers.directory.learn(registry.members.clone());
        Ok(wire::JoinResponse {
            cluster_id: self.id.0.to_vec().into(),
            store_id: store.0,
            members: registry.members.iter().map(Into::into).collect(),
        })
    }
}
