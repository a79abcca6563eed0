//! The store's metrics, as handles: looked up once per thread, so that a turn pays for no name.
//!
//! A recorder has to be installed before the store starts. The steps of a write are sampled, one write per turn at
//! most: at a hundred thousand writes a second the turn's write tells as much as all of them.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// Of the fleet's thread.
pub(super) struct FleetMeters {
    pub(super) turn: Histogram,
    pub(super) events: Histogram,
    /// From the mailbox into a turn.
    pub(super) queue: Histogram,
    /// The turn that evaluated and proposed it.
    pub(super) evaluate: Histogram,
    /// From the log writer's queue to durable here.
    pub(super) log_sync: Histogram,
    /// From durable here to committed by a quorum and applied.
    pub(super) quorum: Histogram,
    /// One write of the engine: everything that a turn applied.
    pub(super) apply: Histogram,
    /// All of it.
    pub(super) write: Histogram,
    pub(super) proposals: Counter,
    pub(super) applied_bytes: Counter,
    pub(super) mute_turns: Counter,
    pub(super) mute_dropped: Counter,
    pub(super) replicas: Gauge,
    pub(super) leaders: Gauge,
    pub(super) asleep: Gauge,
    /// Old versions that compactions dropped.
    pub(super) collected: Counter,
    pub(super) collected_bytes: Counter,
    /// Of the oldest threshold in force.
    pub(super) gc_age: Gauge,
    /// Locks in ranges that are led here, and the age of the oldest.
    pub(super) locks: Gauge,
    pub(super) lock_age: Gauge,
}

impl FleetMeters {
    pub(super) fn new() -> Self {
        let step = |step| histogram!("flotilla_write_step_seconds", "step" => step);
        Self {
            turn: histogram!("flotilla_fleet_turn_seconds"),
            events: histogram!("flotilla_fleet_turn_events"),
            queue: step("queue"),
            evaluate: step("evaluate"),
            log_sync: step("log_sync"),
            quorum: step("quorum"),
            apply: step("apply"),
            write: step("total"),
            proposals: counter!("flotilla_log_submissions_total"),
            applied_bytes: counter!("flotilla_engine_written_bytes_total"),
            mute_turns: counter!("flotilla_fleet_mute_turns_total"),
            mute_dropped: dropped("mute"),
            replicas: gauge!("flotilla_replicas"),
            leaders: gauge!("flotilla_leaders"),
            asleep: gauge!("flotilla_asleep"),
            collected: counter!("flotilla_gc_versions_collected_total"),
            collected_bytes: counter!("flotilla_gc_bytes_collected_total"),
            gc_age: gauge!("flotilla_gc_threshold_age_seconds"),
            locks: gauge!("flotilla_locks"),
            lock_age: gauge!("flotilla_lock_age_seconds"),
        }
    }
}

/// Of the log writer.
pub(super) struct LogMeters {
    pub(super) sync: Histogram,
    pub(super) submissions: Histogram,
    pub(super) syncs: Counter,
}

impl LogMeters {
    pub(super) fn new() -> Self {
        Self {
            sync: histogram!("flotilla_log_sync_seconds"),
            submissions: histogram!("flotilla_log_batch_submissions"),
            syncs: counter!("flotilla_fsyncs_total"),
        }
    }
}

/// Of the flusher.
pub(super) struct FlushMeters {
    pub(super) flush: Histogram,
    pub(super) log_bytes: Gauge,
    pub(super) engine_bytes: Gauge,
}

impl FlushMeters {
    pub(super) fn new() -> Self {
        Self {
            flush: histogram!("flotilla_flush_seconds"),
            log_bytes: gauge!("flotilla_log_bytes"),
            engine_bytes: gauge!("flotilla_engine_bytes"),
        }
    }
}

/// Messages that found no room.
pub(super) fn dropped(queue: &'static str) -> Counter {
    counter!("flotilla_messages_dropped_total", "queue" => queue)
}

/// Bytes of snapshots, one way.
pub(super) fn snapshot_bytes(direction: &'static str) -> Counter {
    counter!("flotilla_snapshot_bytes_total", "direction" => direction)
}

/// Ends of snapshots, one way.
pub(super) fn snapshots(direction: &'static str, outcome: &'static str) -> Counter {
    counter!("flotilla_snapshots_total", "direction" => direction, "outcome" => outcome)
}
