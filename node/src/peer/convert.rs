//! What ranges and liveness say to each other, as it stands on the wire.

use flotilla_proto::gate::{WireError, needed};
use flotilla_proto::internal as wire;
use flotilla_range::check::{Chunk, Survey};
use flotilla_range::liveness::{GivenHint, Heartbeat, HeartbeatReply};
use flotilla_range::message::{Beat, BeatReply, Envelope};
use flotilla_types::{LogIndex, RangeId, ReplicaHash, ReplicaId, StoreId, Term, Timestamp};

pub(super) fn envelope_out(envelope: Envelope) -> wire::Envelope {
    wire::Envelope {
        range_id: envelope.range.0,
        from: envelope.from.0,
        to: envelope.to.0,
        promised: envelope.promised,
        message: envelope.message,
    }
}

/// Raft's own bytes are checked by the range, before it parses them.
pub(super) fn envelope_in(envelope: wire::Envelope) -> Envelope {
    Envelope {
        range: RangeId(envelope.range_id),
        from: ReplicaId(envelope.from),
        to: ReplicaId(envelope.to),
        promised: envelope.promised,
        message: envelope.message,
    }
}

pub(super) fn beat_out(beat: Beat) -> wire::Beat {
    wire::Beat {
        range_id: beat.range.0,
        from: beat.from.0,
        to: beat.to.0,
        term: beat.term.0,
        commit: beat.commit.0,
        sleep_at: beat.sleep_at.0,
        keep_from: beat.keep_from.0,
    }
}

pub(super) fn beat_in(beat: wire::Beat) -> Beat {
    Beat {
        range: RangeId(beat.range_id),
        from: ReplicaId(beat.from),
        to: ReplicaId(beat.to),
        term: Term(beat.term),
        commit: LogIndex(beat.commit),
        sleep_at: LogIndex(beat.sleep_at),
        keep_from: LogIndex(beat.keep_from),
    }
}

pub(super) fn beat_reply_out(reply: BeatReply) -> wire::BeatReply {
    wire::BeatReply {
        range_id: reply.range.0,
        from: reply.from.0,
        to: reply.to.0,
        term: reply.term.0,
        commit: reply.commit.0,
        applied: reply.applied.0,
        sum: reply.sum,
        promised: reply.promised,
        asleep: reply.asleep,
    }
}

pub(super) fn beat_reply_in(reply: wire::BeatReply) -> BeatReply {
    BeatReply {
        range: RangeId(reply.range_id),
        from: ReplicaId(reply.from),
        to: ReplicaId(reply.to),
        term: Term(reply.term),
        commit: LogIndex(reply.commit),
        applied: LogIndex(reply.applied),
        sum: reply.sum,
        promised: reply.promised,
        asleep: reply.asleep,
    }
}

pub(super) fn heartbeat_out(heartbeat: &Heartbeat) -> wire::LivenessHeartbeat {
    let given = heartbeat.given.iter();
    wire::LivenessHeartbeat {
        epoch: heartbeat.epoch,
        until: Some(heartbeat.until.into()),
        support_ns: u64::try_from(heartbeat.support.as_nanos()).unwrap_or(u64::MAX),
        heard: Some(heartbeat.heard.into()),
        given: given.map(|g| wire::Given { store_id: g.store.0, boot: g.boot, active: g.active }).collect(),
    }
}

pub(super) fn heartbeat_in(heartbeat: wire::LivenessHeartbeat) -> Result<Heartbeat, WireError> {
    let given = heartbeat.given.into_iter();
    Ok(Heartbeat {
        epoch: heartbeat.epoch,
        until: needed(heartbeat.until, "a heartbeat's end")?.into(),
        support: std::time::Duration::from_nanos(heartbeat.support_ns),
        heard: heartbeat.heard.map_or(Timestamp::ZERO, Into::into),
        given: given.map(|g| GivenHint { store: StoreId(g.store_id), boot: g.boot, active: g.active }).collect(),
    })
}

pub(super) fn reply_out(reply: HeartbeatReply) -> wire::LivenessReply {
    let wall_ns = u64::try_from(reply.wall.as_nanos()).unwrap_or(0);
    wire::LivenessReply { epoch: reply.epoch, until: Some(reply.until.into()), wall_ns }
}

pub(super) fn reply_in(reply: wire::LivenessReply) -> HeartbeatReply {
    HeartbeatReply {
        epoch: reply.epoch,
        until: reply.until.map_or(Timestamp::ZERO, Into::into),
        wall: std::time::Duration::from_nanos(reply.wall_ns),
    }
}

pub(super) fn survey_out(survey: &Survey) -> wire::HashResponse {
    let Survey { hash, chunks } = survey;
    let chunk =
        |chunk: &Chunk| wire::HashChunk { first: chunk.first.clone().into(), hash: chunk.hash, pairs: chunk.pairs };
    wire::HashResponse {
        hash: Some(wire::ReplicaHash {
            replica_id: hash.replica.0,
            applied_index: hash.applied.0,
            hash: hash.hash,
            pairs: hash.pairs,
        }),
        chunks: chunks.iter().map(chunk).collect(),
    }
}

/// `None`: no replica there hashed the range.
pub(crate) fn survey_in(answer: wire::HashResponse) -> Option<Survey> {
    let hash = answer.hash?;
    Some(Survey {
        hash: ReplicaHash {
            replica: ReplicaId(hash.replica_id),
            applied: LogIndex(hash.applied_index),
            hash: hash.hash,
            pairs: hash.pairs,
        },
        chunks: answer
            .chunks
            .into_iter()
            .map(|chunk| Chunk { first: chunk.first.to_vec(), hash: chunk.hash, pairs: chunk.pairs })
            .collect(),
    })
}
