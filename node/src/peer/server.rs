//! The service that other nodes dial: their streams in, what they ask for out.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use flotilla_proto::gate::needed;
use flotilla_proto::internal::{self as wire, peer_server::Peer, snapshot_part::Part};
use flotilla_range::liveness::LivenessMessage;
use flotilla_range::message::{PeerMessage, SnapshotHeader, SnapshotId};
use flotilla_storage::log::LogSeq;
use flotilla_types::{
    CheckId, RangeDescriptor, RangeError, RangeId, RangeReply, RangeRequest, ReplicaId, Term, Timestamp,
};
use futures::{Stream, StreamExt, stream};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::hello::{Caller, malformed, refusal};
use super::meters::Lane;
use super::outbox::{Outbox, Weighed};
use super::{Peers, convert};
use crate::store::StoreHandle;

/// Forwarded requests that one peer may have under way here.
const REQUESTS_MAX: usize = 4096;
const ANSWERS_MAX: usize = 4 * REQUESTS_MAX;
const ANSWER_BYTES: usize = 512 << 10;
/// Answers wait here while the peer is slower than the ranges.
const ANSWERS_BYTES_MAX: usize = 64 << 20;
/// A caller that presents itself must do so at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const SNAPSHOT_IDLE: Duration = Duration::from_secs(60);
/// Replicas in one page of an answer.
const PAGE: usize = 1000;
/// How long a hash may be waited for in one call; the caller asks again.
const HASH_WAIT: Duration = Duration::from_secs(10);

/// The service.
#[derive(Clone)]
pub struct PeerService {
    peers: Arc<Peers>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl PeerService {
    /// Serves for this node.
    #[must_use]
    pub const fn new(peers: Arc<Peers>) -> Self {
        Self { peers }
    }

    fn store(&self) -> Result<StoreHandle, Status> {
        self.peers.store().ok_or_else(|| Status::unavailable("this node does not serve yet; ask again"))
    }

    fn admit(&self, hello: Option<wire::Hello>) -> Result<Caller, Status> {
        let me =
            self.peers.me().ok_or_else(|| Status::unavailable("this node belongs to no cluster yet; ask again"))?;
        let caller = me.admit(hello, &self.peers.directory);
        if let Err(refused) = &caller {
            if refused.code() == tonic::Code::Unavailable {
                self.peers.unknown_caller.notify_one();
            }
            tracing::info!(why = refused.message(), "a caller was turned away");
        }
        caller
    }
}

/// The first message of a stream, which presents the caller.
async fn first<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, stream.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("the caller did not present itself in time"))??;
    first.ok_or_else(|| Status::invalid_argument("the stream ended before the caller presented itself"))
}

#[tonic::async_trait]
impl Peer for PeerService {
    type RaftStream = Answers<wire::RaftAnswer>;
    type HeartbeatsStream = Answers<wire::HeartbeatAnswer>;
    type ReplicasStream = Answers<wire::ReplicasResponse>;

    async fn raft(&self, request: Request<Streaming<wire::RaftFrame>>) -> Result<Response<Self::RaftStream>, Status> {
        let mut frames = request.into_inner();
        let hello = first(&mut frames).await?;
        let caller = self.admit(hello.hello)?;
        let store = self.store()?;
        let answers = Arc::new(Outbox::new(ANSWERS_MAX, ANSWERS_BYTES_MAX));
        let life = answers.open();
        answers.push([RaftPart::Acknowledged { number: 0, clock_ahead: false }]);
        let (peers, refused) = (Arc::clone(&self.peers), false);
        let listener = RaftListener { peers, store, caller, answers: Arc::clone(&answers), refused };
        self.peers.spawn(listener.run(frames));
        let peers = Arc::clone(&self.peers);
        let stream = stream::unfold((peers, answers, life), |(peers, answers, life)| async move {
            let parts = answers.take(life, ANSWER_BYTES).await?;
            let answer = raft_answer(&peers, parts);
            Some((answer, (peers, answers, life)))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn heartbeats(
        &self,
        request: Request<Streaming<wire::HeartbeatFrame>>,
    ) -> Result<Response<Self::HeartbeatsStream>, Status> {
        let mut frames = request.into_inner();
        let hello = first(&mut frames).await?;
        let caller = self.admit(hello.hello)?;
        let store = self.store()?;
        let peers = Arc::clone(&self.peers);
        // One answer at once, and then one for each frame that is dropped.
        let begin = stream::iter([Ok(wire::HeartbeatAnswer { now: peers.now(), clock_ahead: false })]);
        let listened = stream::unfold((peers, store, frames), move |(peers, store, mut frames)| async move {
            loop {
                // Without this a node that stopped within a living process would go on listening, deaf, in its successor's place.
                let frame = tokio::select! {
                    frame = frames.message() => frame,
                    () = peers.stop.cancelled() => return None,
                };
                let frame = match frame {
                    Ok(Some(frame)) => frame,
                    Ok(None) => return None,
                    Err(status) => return Some((Err(status), (peers, store, frames))),
                };
                if let Err(fenced) = peers.still_newest(caller) {
                    return Some((Err(fenced), (peers, store, frames)));
                }
                peers.meters(caller.store).lane(Lane::Heartbeats).received.increment(1);
                if !peers.take_clock(caller.store, frame.now) {
                    let answer = wire::HeartbeatAnswer { now: peers.now(), clock_ahead: true };
                    return Some((Ok(answer), (peers, store, frames)));
                }
                peers.directory.heard_synced(caller.store, caller.boot, LogSeq(frame.synced));
                take_heartbeats(&store, caller, frame);
            }
        });
        Ok(Response::new(Box::pin(begin.chain(listened))))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotPart>>,
    ) -> Result<Response<wire::SnapshotAnswer>, Status> {
        let mut parts = request.into_inner();
        let Some(Part::Header(header)) = first(&mut parts).await?.part else {
            return Err(Status::invalid_argument("a snapshot begins with its header"));
        };
        let caller = self.admit(header.hello.clone())?;
        if !self.peers.take_clock(caller.store, header.now) {
            return Err(Status::failed_precondition("the two nodes' clocks are too far apart"));
        }
        let store = self.store()?;
        let header = snapshot_header(caller, header)?;
        let mut intake = store.intake(header).map_err(|error| Status::resource_exhausted(error.to_string()))?;
        loop {
            let part = tokio::time::timeout(SNAPSHOT_IDLE, parts.message()).await;
            match part.map_err(|_| Status::deadline_exceeded("no frame came for a minute"))?? {
                Some(wire::SnapshotPart { part: Some(Part::Frame(frame)) }) => {
                    intake.frame(frame).await.map_err(|error| Status::data_loss(error.to_string()))?;
                }
                Some(_) => return Err(Status::invalid_argument("only frames follow a snapshot's header")),
                None => break,
            }
        }
        intake.finish().map_err(|error| Status::data_loss(error.to_string()))?;
        Ok(Response::new(wire::SnapshotAnswer {}))
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        self.peers.desk()?.join(request.into_inner()).await.map(Response::new)
    }

    async fn root(&self, _: Request<wire::RootRequest>) -> Result<Response<wire::RootResponse>, Status> {
        Ok(Response::new(wire::RootResponse {
            cluster_id: self.peers.me().map(|me| me.identity.cluster.0.to_vec().into()).unwrap_or_default(),
            descriptor: self.peers.own_root().await.as_ref().map(Into::into),
            members: self.peers.directory.members().iter().map(Into::into).collect(),
        }))
    }

    async fn hash(&self, request: Request<wire::HashRequest>) -> Result<Response<wire::HashResponse>, Status> {
        let wire::HashRequest { range_id, check_id } = request.into_inner();
        let deadline = self.peers.clock.mono() + HASH_WAIT;
        let hash = self.store()?.hash(RangeId(range_id), CheckId(check_id), deadline).await;
        Ok(Response::new(hash.map(|survey| convert::survey_out(&survey)).unwrap_or_default()))
    }

    async fn judge(&self, request: Request<wire::JudgeRequest>) -> Result<Response<wire::JudgeResponse>, Status> {
        let wire::JudgeRequest { range_id, replica_id, why, diverged } = request.into_inner();
        match replica_id {
            0 => self.store()?.diverged(RangeId(range_id), diverged),
            replica => self.store()?.give_up(RangeId(range_id), ReplicaId(replica), why),
        }
        Ok(Response::new(wire::JudgeResponse {}))
    }

    async fn replicas(&self, _: Request<wire::ReplicasRequest>) -> Result<Response<Self::ReplicasStream>, Status> {
        let replicas: Vec<_> = self.store()?.inspect_sizes().await.iter().map(replica_out).collect();
        let pages: Vec<_> =
            replicas.chunks(PAGE).map(|page| Ok(wire::ReplicasResponse { replicas: page.to_vec() })).collect();
        Ok(Response::new(Box::pin(stream::iter(pages))))
    }

    async fn out_of_order(
        &self,
        _: Request<wire::OutOfOrderRequest>,
    ) -> Result<Response<wire::OutOfOrderResponse>, Status> {
        let mut found = self.store()?.out_of_order().await;
        // More are replaced when these are.
        found.truncate(PAGE);
        let replicas = found.into_iter();
        let replicas =
            replicas.map(|(range, replica)| wire::BrokenReplica { range_id: range.0, replica_id: replica.0 });
        Ok(Response::new(wire::OutOfOrderResponse { replicas: replicas.collect() }))
    }
}

fn replica_out((status, bytes): &(flotilla_range::fleet::RangeStatus, u64)) -> wire::Replica {
    wire::Replica {
        range_id: status.descriptor.range.0,
        leads: status.leads,
        applied_index: status.applied.0,
        term: status.term.0,
        bytes: *bytes,
    }
}

fn snapshot_header(caller: Caller, header: wire::SnapshotHeader) -> Result<SnapshotHeader, Status> {
    let descriptor = header.descriptor.ok_or_else(|| Status::invalid_argument("a snapshot's descriptor is missing"))?;
    let envelope = header.envelope.ok_or_else(|| Status::invalid_argument("a snapshot's envelope is missing"))?;
    Ok(SnapshotHeader {
        id: SnapshotId { from: caller.store, number: header.number },
        descriptor: RangeDescriptor::try_from(descriptor).map_err(|error| malformed(&error))?,
        envelope: convert::envelope_in(envelope),
    })
}

fn take_heartbeats(store: &StoreHandle, caller: Caller, frame: wire::HeartbeatFrame) {
    let sent: Timestamp = frame.now.map_or(Timestamp::ZERO, Into::into);
    for heartbeat in frame.heartbeats {
        match convert::heartbeat_in(heartbeat) {
            Ok(heartbeat) => store.deliver_liveness(caller.store, sent, LivenessMessage::Heartbeat(heartbeat)),
            Err(error) => tracing::warn!(peer = %caller.store, %error, "a heartbeat was dropped"),
        }
    }
    for reply in frame.replies {
        store.deliver_liveness(caller.store, sent, LivenessMessage::Reply(convert::reply_in(reply)));
    }
    let mut messages = Vec::new();
    if !frame.beats.is_empty() {
        messages.push(PeerMessage::Beats(frame.beats.into_iter().map(convert::beat_in).collect()));
    }
    if !frame.beat_replies.is_empty() {
        messages.push(PeerMessage::BeatReplies(frame.beat_replies.into_iter().map(convert::beat_reply_in).collect()));
    }
    if !messages.is_empty() {
        store.deliver(caller.store, messages);
    }
}

/// What goes back on a raft stream.
enum RaftPart {
    Acknowledged {
        number: u64,
        clock_ahead: bool,
    },
    Reply {
        id: u64,
        result: Result<RangeReply, RangeError>,
    },
    /// The stream ends with this.
    Refused(Status),
}

impl Weighed for RaftPart {
    fn weight(&self) -> usize {
        use flotilla_types::Reply;
        match self {
            Self::Reply { result: Ok(RangeReply { reply: Reply::Get(Some(row)), .. }), .. } => 128 + row.value.len(),
            Self::Reply { result: Ok(RangeReply { reply: Reply::Scan(scan), .. }), .. } => {
                scan.rows.iter().map(|row| 64 + row.key.as_bytes().len() + row.value.len()).sum()
            }
            Self::Acknowledged { .. } | Self::Reply { .. } | Self::Refused(_) => 128,
        }
    }
}

/// Listens to one raft stream.
struct RaftListener {
    peers: Arc<Peers>,
    store: StoreHandle,
    caller: Caller,
    answers: Arc<Outbox<RaftPart>>,
    /// The last answer, which ends the stream, waits to be sent.
    refused: bool,
}

/// However it ends, and a stop may end it between two lines, its dialler must hear of it: else it takes the stream for whole
/// and this node for deaf.
impl Drop for RaftListener {
    fn drop(&mut self) {
        if !self.refused {
            self.answers.close();
        }
    }
}

impl RaftListener {
    async fn run(mut self, mut frames: Streaming<wire::RaftFrame>) {
        let permits = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            let frame = tokio::select! {
                frame = frames.message() => frame,
                () = self.peers.stop.cancelled() => break,
            };
            // A broken stream has told its dialler already.
            let Ok(Some(frame)) = frame else { break };
            if let Err(fenced) = self.peers.still_newest(self.caller) {
                self.refused = true;
                self.answers.push([RaftPart::Refused(fenced)]);
                return;
            }
            self.take(frame, &permits);
        }
    }

    fn take(&self, frame: wire::RaftFrame, permits: &Arc<Semaphore>) {
        self.peers.meters(self.caller.store).lane(Lane::Raft).received.increment(1);
        let clock_ahead = !self.peers.take_clock(self.caller.store, frame.now);
        self.answers.push([RaftPart::Acknowledged { number: frame.number, clock_ahead }]);
        if clock_ahead {
            for request in frame.requests {
                let why = "the clocks of the two nodes are too far apart".to_owned();
                self.refuse(request.id, RangeError::StoreNotServing { store: self.store.store(), why });
            }
            return;
        }
        let mut messages: Vec<_> =
            frame.envelopes.into_iter().map(|envelope| PeerMessage::Raft(convert::envelope_in(envelope))).collect();
        messages.extend(frame.releases.into_iter().map(|release| PeerMessage::Release {
            range: RangeId(release.range_id),
            replica: ReplicaId(release.replica_id),
            term: Term(release.term),
        }));
        messages.extend(frame.removed.into_iter().map(|removed| PeerMessage::Removed {
            range: RangeId(removed.range_id),
            next: ReplicaId(removed.next_replica_id),
        }));
        if !messages.is_empty() {
            self.store.deliver(self.caller.store, messages);
        }
        for request in frame.requests {
            self.request(request, permits);
        }
    }

    fn request(&self, forwarded: wire::ForwardedRequest, permits: &Arc<Semaphore>) {
        let id = forwarded.id;
        let request = needed(forwarded.request, "a forwarded request").and_then(RangeRequest::try_from);
        let request = match request {
            Ok(request) => request,
            Err(error) => return self.refuse(id, RangeError::Invalid { what: error.to_string() }),
        };
        let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
            let retry_after = Duration::from_millis(50);
            return self.refuse(id, RangeError::Overloaded { queue: "the node's requests".into(), retry_after });
        };
        let (store, answers) = (self.store.clone(), Arc::clone(&self.answers));
        self.peers.spawn(async move {
            let result = store.request(request).await;
            answers.push([RaftPart::Reply { id, result }]);
            drop(permit);
        });
    }

    fn refuse(&self, id: u64, error: RangeError) {
        self.answers.push([RaftPart::Reply { id, result: Err(error) }]);
    }
}

fn raft_answer(peers: &Peers, parts: Vec<RaftPart>) -> Result<wire::RaftAnswer, Status> {
    use wire::forwarded_reply::Result as R;
    let mut answer = wire::RaftAnswer { now: peers.now(), ..wire::RaftAnswer::default() };
    for part in parts {
        match part {
            RaftPart::Acknowledged { number, clock_ahead } => {
                answer.acknowledged = answer.acknowledged.max(number);
                answer.clock_ahead |= clock_ahead;
            }
            RaftPart::Reply { id, result } => {
                let result = Some(match result {
                    Ok(reply) => R::Reply(reply.into()),
                    Err(error) => R::Error(error.into()),
                });
                answer.replies.push(wire::ForwardedReply { id, result });
            }
            RaftPart::Refused(status) => return Err(status),
        }
    }
    Ok(answer)
}

impl Peers {
    /// A process with a higher start of the same directory shuts this caller out.
    fn still_newest(&self, caller: Caller) -> Result<(), Status> {
        let known = self.directory.boot(caller.store);
        if caller.boot >= known {
            return Ok(());
        }
        let stranger = super::directory::Stranger::Copy { store: caller.store, known, presented: caller.boot };
        Err(refusal(&stranger))
    }
}
