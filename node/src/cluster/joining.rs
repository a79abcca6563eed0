//! How a fresh node becomes a member: it begins a cluster when it is told to, or asks the nodes of `--join` to take it in.
//! Both happen at most once, and never both.

use std::sync::Mutex;
use std::time::Duration;

use flotilla_proto::internal::{self as wire, peer_client::PeerClient};
use flotilla_types::{ClusterId, StoreId};
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status};

use crate::peer::directory::Directory;
use crate::peer::member::{Contact, Member};
use crate::peer::{connect, malformed};
use crate::store::FreshDir;

/// How long one node of `--join` may take: it asks the system range.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why a node makes no cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitRefused {
    /// It belongs to one.
    #[error("this node belongs to cluster {0} already: a cluster is initialised once, through one node")]
    Member(ClusterId),
    /// It joins one.
    #[error("this node is about to join the cluster of the nodes it was given by --join, which is initialised already")]
    Joining,
    /// The disk, or the end of the process.
    #[error("the cluster was not made: {0}")]
    Failed(String),
}

type InitAnswer = oneshot::Sender<Result<ClusterId, InitRefused>>;

/// Where a request to begin a cluster goes while the node is fresh.
pub struct InitDesk {
    state: Mutex<InitState>,
}

enum InitState {
    Open(mpsc::Sender<InitAnswer>),
    Joining,
    Member(ClusterId),
}

impl InitDesk {
    /// A desk, and what comes to it.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<InitAnswer>) {
        let (asks, asked) = mpsc::channel(1);
        (Self { state: Mutex::new(InitState::Open(asks)) }, asked)
    }

    /// Makes a cluster of which this node is the first.
    ///
    /// # Errors
    /// See [`InitRefused`].
    pub async fn init(&self) -> Result<ClusterId, InitRefused> {
        let asks = match &*self.lock() {
            InitState::Open(asks) => asks.clone(),
            InitState::Joining => return Err(InitRefused::Joining),
            InitState::Member(cluster) => return Err(InitRefused::Member(*cluster)),
        };
        let (answer, outcome) = oneshot::channel();
        let asked = asks.try_send(answer);
        asked.map_err(|_| InitRefused::Failed("another init is under way".to_owned()))?;
        outcome.await.unwrap_or_else(|_| Err(InitRefused::Failed("the node stops".to_owned())))
    }

    /// The node is one of this cluster from now on.
    pub fn close(&self, cluster: ClusterId) {
        *self.lock() = InitState::Member(cluster);
    }

    fn joining(&self) {
        *self.lock() = InitState::Joining;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, InitState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What became of a fresh node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// It begins a cluster.
    Begins(ClusterId),
    /// It was taken in under this number.
    Joins(ClusterId, StoreId),
}

/// Waits until the node is told to begin a cluster, or is taken into one. The caller makes the store, and answers who
/// asked for a new cluster.
pub async fn become_member(
    fresh: &FreshDir,
    me: &Contact,
    join: &[String],
    max_offset: Duration,
    directory: &Directory,
    desk: &InitDesk,
    mut asked: mpsc::Receiver<InitAnswer>,
) -> (Membership, Option<InitAnswer>) {
    let mut pause = PAUSE_MIN;
    let mut told = String::new();
    loop {
        for address in join.iter().filter(|address| **address != me.peer_address) {
            let request = wire::JoinRequest {
                store_uuid: fresh.uuid().0.to_vec().into(),
                contact: Some(me.into()),
                max_offset_ns: u64::try_from(max_offset.as_nanos()).unwrap_or(u64::MAX),
            };
            let answer = tokio::select! {
                answer = ask(address, request) => answer,
                Some(answer) = asked.recv() => return (Membership::Begins(ClusterId(rand::random())), Some(answer)),
            };
            match answer.and_then(|answer| taken_in(answer, directory)) {
                Ok(membership) => {
                    desk.joining();
                    return (membership, None);
                }
                Err(status) => {
                    let text = format!("{address}: {}", status.message());
                    // Once for each new reason; that nobody has begun a cluster yet is no reason to worry.
                    if text != told && status.code() != Code::Unavailable {
                        tracing::info!(why = text, "not taken into a cluster yet");
                    }
                    told = text;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Some(answer) = asked.recv() => return (Membership::Begins(ClusterId(rand::random())), Some(answer)),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn ask(address: &str, request: wire::JoinRequest) -> Result<wire::JoinResponse, Status> {
    let asked = async { PeerClient::new(connect(address).await?).join(request).await };
    match tokio::time::timeout(JOIN_TIMEOUT, asked).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::unavailable("it did not answer in time")),
    }
}

fn taken_in(answer: wire::JoinResponse, directory: &Directory) -> Result<Membership, Status> {
    let cluster = ClusterId::try_from(&answer.cluster_id[..]).map_err(|error| malformed(&error))?;
    let members = answer.members.into_iter().map(Member::try_from).collect::<Result<Vec<_>, _>>();
    directory.learn(members.map_err(|error| malformed(&error))?);
    if answer.store_id == 0 {
        return Err(Status::data_loss("the cluster gave no number"));
    }
    Ok(Membership::Joins(cluster, StoreId(answer.store_id)))
}
