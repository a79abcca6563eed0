//! What is counted on the lanes.

use flotilla_types::StoreId;
use prost::Message;

pub(super) const RAFT: &str = "raft";
pub(super) const HEARTBEATS: &str = "heartbeats";
pub(super) const BULK: &str = "bulk";

/// A frame left.
pub(super) fn sent(lane: &'static str, peer: StoreId, frame: &impl Message) {
    let peer = peer.0.to_string();
    metrics::counter!("flotilla_peer_frames_sent_total", "lane" => lane, "peer" => peer.clone()).increment(1);
    metrics::counter!("flotilla_peer_bytes_sent_total", "lane" => lane, "peer" => peer)
        .increment(frame.encoded_len() as u64);
}

/// A frame came.
pub(super) fn received(lane: &'static str, peer: StoreId) {
    let peer = peer.0.to_string();
    metrics::counter!("flotilla_peer_frames_received_total", "lane" => lane, "peer" => peer).increment(1);
}

/// Messages had no room in the queue, or no connection.
pub(super) fn dropped(lane: &'static str, peer: StoreId, count: usize) {
    let peer = peer.0.to_string();
    metrics::counter!("flotilla_peer_messages_dropped_total", "lane" => lane, "peer" => peer).increment(count as u64);
}

/// A frame was dropped because one of the two clocks is too far ahead of the other.
pub(super) fn clock_ahead(peer: StoreId) {
    metrics::counter!("flotilla_peer_clock_ahead_total", "peer" => peer.0.to_string()).increment(1);
}

/// How far ahead a peer's clock seemed when its frame came; its way counts as lag.
pub(super) fn clock_offset(peer: StoreId, seconds: f64) {
    metrics::gauge!("flotilla_peer_clock_offset_seconds", "peer" => peer.0.to_string()).set(seconds);
}
