//! The two standing streams to one peer: dialled, fed, listened to, and dialled again when they break.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flotilla_kv::SendError;
use flotilla_proto::internal::{self as wire, peer_client::PeerClient};
use flotilla_range::liveness::LivenessMessage;
use flotilla_types::{RangeError, RangeReply};
use futures::stream;
use rand::Rng as _;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::link::{HeartbeatItem, Link, RaftItem};
use super::meters::Lane;
use super::{Peers, convert, hello};

/// What one frame should hold: enough to be worth a system call, little enough to be soon done.
const FRAME_BYTES: usize = 512 << 10;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A peer that answers no ping for so long is gone, whatever TCP thinks.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection of its own to a peer.
pub(super) async fn connect(address: &str) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| Status::invalid_argument(format!("{address}: {error}")))?;
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20);
    endpoint.connect().await.map_err(|error| Status::unavailable(format!("{address}: {}", chain(&error))))
}

/// An error with its causes: tonic's own text is "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

pub(super) async fn client(peers: &Peers, link: &Link) -> Result<PeerClient<Channel>, Status> {
    let contact = peers.directory.contact(link.peer).ok_or_else(|| Status::not_found("it is not known any more"))?;
    let channel = connect(&contact.peer_address).await?;
    let bytes_max = peers.message_bytes_max;
    Ok(PeerClient::new(channel).max_decoding_message_size(bytes_max).max_encoding_message_size(bytes_max))
}

/// Runs a lane until the node stops: dials, and dials again with growing pauses.
pub(super) async fn keep<F>(peers: Arc<Peers>, link: Arc<Link>, lane: Lane, run: impl Fn(Arc<Peers>, Arc<Link>) -> F)
where
    F: Future<Output = Status>,
{
    let mut pause = BACKOFF_MIN;
    let mut told = None;
    loop {
        let begun = peers.clock.mono();
        let broke = run(Arc::clone(&peers), Arc::clone(&link)).await;
        if peers.stopping() {
            return;
        }
        if hello::fences(&broke) {
            peers.fenced(broke.message());
        }
        // Said once for each new reason, not once for each try.
        if told.as_ref() != Some(&broke.message().to_owned()) {
            tracing::info!(peer = %link.peer, lane = lane.name(), why = broke.message(), "no connection");
            told = Some(broke.message().to_owned());
        }
        let lasted = peers.clock.mono().saturating_sub(begun);
        pause = if lasted > BACKOFF_MAX { BACKOFF_MIN } else { (pause * 2).min(BACKOFF_MAX) };
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = peers.stop.cancelled() => return,
        }
    }
}

/// One life of the raft lane.
pub(super) async fn raft(peers: Arc<Peers>, link: Arc<Link>) -> Status {
    let broke = raft_until_broken(&peers, &link).await;
    link.raft_broke(broke.message());
    if let Some(store) = peers.store() {
        store.unreachable(link.peer);
    }
    broke
}

async fn raft_until_broken(peers: &Arc<Peers>, link: &Arc<Link>) -> Status {
    let mut client = match client(peers, link).await {
        Ok(client) => client,
        Err(status) => return status,
    };
    let life = link.raft.open();
    let sender = RaftSender { peers: Arc::clone(peers), link: Arc::clone(link), life, number: 0 };
    let frames = stream::unfold(sender, RaftSender::next);
    let call = tokio::select! {
        call = client.raft(frames) => call,
        () = peers.stop.cancelled() => return Status::cancelled("this node stops"),
    };
    let mut answers = match call {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status,
    };
    tracing::debug!(peer = %link.peer, "raft lane stands");
    loop {
        let answer = tokio::select! {
            answer = answers.message() => answer,
            () = peers.stop.cancelled() => return Status::cancelled("this node stops"),
        };
        match answer {
            Ok(Some(answer)) => take_answer(peers, link, answer),
            Ok(None) => return Status::unavailable("the peer ended the stream"),
            Err(status) => return status,
        }
    }
}

/// Makes the frames of one life of the raft lane.
struct RaftSender {
    peers: Arc<Peers>,
    link: Arc<Link>,
    life: u64,
    number: u64,
}

impl RaftSender {
    async fn next(mut self) -> Option<(wire::RaftFrame, Self)> {
        let mut frame = wire::RaftFrame { number: self.number, ..wire::RaftFrame::default() };
        if self.number == 0 {
            // Goes alone and at once: the peer answers it, and so the lane is known to stand.
            frame.hello = Some(self.peers.me()?.hello(self.link.peer));
        } else {
            for item in self.link.raft.take(self.life, FRAME_BYTES).await? {
                put(&mut frame, item);
            }
            self.link.sent(self.number, self.peers.clock.mono());
        }
        // Taken last, so that the receiver's clock is moved above everything that the frame tells (leases 1.2).
        frame.now = Some(self.peers.clock.now().ok()?.into());
        self.peers.meters(self.link.peer).lane(Lane::Raft).sent(&frame);
        self.number += 1;
        Some((frame, self))
    }
}

fn put(frame: &mut wire::RaftFrame, item: RaftItem) {
    match item {
        RaftItem::Envelope(envelope) => frame.envelopes.push(convert::envelope_out(envelope)),
        RaftItem::Release { range, replica, term } => {
            frame.releases.push(wire::Release { range_id: range.0, replica_id: replica.0, term: term.0 });
        }
        RaftItem::Removed { range, next } => {
            frame.removed.push(wire::Removed { range_id: range.0, next_replica_id: next.0 });
        }
        RaftItem::Request { id, request } => {
            frame.requests.push(wire::ForwardedRequest { id, request: Some((&request).into()) });
        }
    }
}

fn take_answer(peers: &Peers, link: &Link, answer: wire::RaftAnswer) {
    if !peers.take_clock(link.peer, answer.now) {
        // The answers are true all the same; what they say of time is held against the clock by whoever reads it.
        tracing::debug!(peer = %link.peer, "its clock could not be taken in");
    }
    if answer.clock_ahead {
        peers.meters(link.peer).clock_ahead.increment(1);
    }
    link.acknowledged(answer.acknowledged);
    for reply in answer.replies {
        link.answer(reply.id, result_in(reply.result));
    }
}

fn result_in(result: Option<wire::forwarded_reply::Result>) -> Result<RangeReply, SendError> {
    use wire::forwarded_reply::Result as R;
    let malformed = |error: flotilla_proto::gate::WireError| SendError::Lost(error.to_string());
    match result {
        Some(R::Reply(reply)) => RangeReply::try_from(reply).map_err(malformed),
        Some(R::Error(error)) => Err(RangeError::try_from(error).map_or_else(malformed, SendError::Range)),
        None => Err(SendError::Lost("the answer is empty".to_owned())),
    }
}

/// One life of the heartbeat lane.
pub(super) async fn heartbeats(peers: Arc<Peers>, link: Arc<Link>) -> Status {
    let broke = heartbeats_until_broken(&peers, &link).await;
    link.up.store(false, Ordering::Release);
    link.heartbeats.shut();
    link.liveness.shut();
    broke
}

async fn heartbeats_until_broken(peers: &Arc<Peers>, link: &Arc<Link>) -> Status {
    let mut client = match client(peers, link).await {
        Ok(client) => client,
        Err(status) => return status,
    };
    let lives = (link.liveness.open(), link.heartbeats.open());
    let sender = HeartbeatSender { peers: Arc::clone(peers), link: Arc::clone(link), lives, first: true };
    let frames = stream::unfold(sender, HeartbeatSender::next);
    let call = tokio::select! {
        call = client.heartbeats(frames) => call,
        () = peers.stop.cancelled() => return Status::cancelled("this node stops"),
    };
    let mut answers = match call {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status,
    };
    loop {
        let answer = tokio::select! {
            answer = answers.message() => answer,
            () = peers.stop.cancelled() => return Status::cancelled("this node stops"),
        };
        match answer {
            Ok(Some(answer)) => {
                link.up.store(true, Ordering::Release);
                peers.take_clock(link.peer, answer.now);
                if answer.clock_ahead {
                    peers.meters(link.peer).clock_ahead.increment(1);
                }
            }
            Ok(None) => return Status::unavailable("the peer ended the stream"),
            Err(status) => return status,
        }
    }
}

/// Makes the frames of one life of the heartbeat lane.
struct HeartbeatSender {
    peers: Arc<Peers>,
    link: Arc<Link>,
    /// Of liveness, and of the heartbeats of ranges.
    lives: (u64, u64),
    first: bool,
}

impl HeartbeatSender {
    async fn next(mut self) -> Option<(wire::HeartbeatFrame, Self)> {
        let mut frame = wire::HeartbeatFrame::default();
        if std::mem::take(&mut self.first) {
            frame.hello = Some(self.peers.me()?.hello(self.link.peer));
        } else {
            let items = tokio::select! {
                biased;
                items = self.link.liveness.take(self.lives.0, FRAME_BYTES) => items,
                items = self.link.heartbeats.take(self.lives.1, FRAME_BYTES) => items,
            };
            for item in items? {
                put_heartbeat(&mut frame, item);
            }
        }
        frame.synced = self.peers.store().map_or(0, |store| store.synced().0);
        frame.now = Some(self.peers.clock.now().ok()?.into());
        self.peers.meters(self.link.peer).lane(Lane::Heartbeats).sent(&frame);
        Some((frame, self))
    }
}

fn put_heartbeat(frame: &mut wire::HeartbeatFrame, item: HeartbeatItem) {
    match item {
        HeartbeatItem::Liveness(LivenessMessage::Heartbeat(heartbeat)) => {
            frame.heartbeats.push(convert::heartbeat_out(&heartbeat));
        }
        HeartbeatItem::Liveness(LivenessMessage::Reply(reply)) => frame.replies.push(convert::reply_out(reply)),
        HeartbeatItem::Beats(beats) => frame.beats.extend(beats.into_iter().map(convert::beat_out)),
        HeartbeatItem::BeatReplies(replies) => {
            frame.beat_replies.extend(replies.into_iter().map(convert::beat_reply_out));
        }
    }
}
