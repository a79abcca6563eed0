//! What is counted of each peer and lane, as handles: looked up once per peer, so that a frame pays for no name.

use flotilla_types::StoreId;
use metrics::{Counter, Gauge, counter, gauge};
use prost::Message;

/// The standing streams between two nodes; snapshots travel on streams of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Raft,
    Heartbeats,
}

impl Lane {
    /// Its name in metrics and logs.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Heartbeats => "heartbeats",
        }
    }
}

/// Of one peer.
pub(super) struct PeerMeters {
    raft: LaneMeters,
    heartbeats: LaneMeters,
    /// Bytes of snapshots sent.
    pub(super) snapshot_bytes: Counter,
    /// Frames dropped because one of the two clocks is too far ahead of the other.
    pub(super) clock_ahead: Counter,
    /// How far ahead the peer's clock seemed when its frame came, in seconds; the frame's way counts as lag.
    pub(super) clock_offset: Gauge,
}

/// Of one lane to and from a peer.
pub(super) struct LaneMeters {
    sent: Counter,
    bytes_sent: Counter,
    pub(super) received: Counter,
    /// Messages that had no room in the queue, or no connection.
    pub(super) dropped: Counter,
}

impl PeerMeters {
    pub(super) fn new(peer: StoreId) -> Self {
        let peer = peer.0.to_string();
        let bytes_sent = |lane| counter!("flotilla_peer_bytes_sent_total", "lane" => lane, "peer" => peer.clone());
        let lane = |lane: Lane| LaneMeters {
            sent: counter!("flotilla_peer_frames_sent_total", "lane" => lane.name(), "peer" => peer.clone()),
            bytes_sent: bytes_sent(lane.name()),
            received: counter!("flotilla_peer_frames_received_total", "lane" => lane.name(), "peer" => peer.clone()),
            dropped: counter!("flotilla_peer_messages_dropped_total", "lane" => lane.name(), "peer" => peer.clone()),
        };
        Self {
            raft: lane(Lane::Raft),
            heartbeats: lane(Lane::Heartbeats),
            snapshot_bytes: bytes_sent("bulk"),
            clock_ahead: counter!("flotilla_peer_clock_ahead_total", "peer" => peer.clone()),
            clock_offset: gauge!("flotilla_peer_clock_offset_seconds", "peer" => peer.clone()),
        }
    }

    pub(super) const fn lane(&self, lane: Lane) -> &LaneMeters {
        match lane {
            Lane::Raft => &self.raft,
            Lane::Heartbeats => &self.heartbeats,
        }
    }
}

impl LaneMeters {
    /// A frame left.
    pub(super) fn sent(&self, frame: &impl Message) {
        self.sent.increment(1);
        self.bytes_sent.increment(frame.encoded_len() as u64);
    }
}
