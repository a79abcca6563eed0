//! Settings of a store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use flotilla_range::gc::GcConfig;
use flotilla_range::liveness::LivenessConfig;
use flotilla_range::raft::GroupConfig;
use flotilla_storage::rocks::RocksOptions;
use flotilla_storage::writer::LogPriority;

use super::disk::{RealSpace, SpaceProbe};
use super::fatal::OnFailure;

/// How a store runs.
#[derive(Clone)]
pub struct StoreConfig {
    /// Cache and background threads of the engine.
    pub engine: RocksOptions,
    /// D and H of store liveness; the same on every store.
    pub liveness: LivenessConfig,
    /// Of every range; its times are taken from `liveness`, its seed is drawn at the start if it is 0.
    pub group: GroupConfig,
    /// When old versions go.
    pub gc: GcConfig,
    /// Whether the log writer goes before other threads.
    pub log_priority: LogPriority,
    /// Snapshots, each way.
    pub snapshot_bytes_per_second: u64,
    /// Consistency checks.
    pub hash_bytes_per_second: u64,
    /// Room kept for hard times; `None`: a share of the disk.
    pub reserve_bytes: Option<u64>,
    /// Who tells how much room the disk has.
    pub space: Arc<dyn SpaceProbe>,
    /// What is done when the store cannot go on.
    pub on_failure: OnFailure,
}

impl Default for StoreConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            engine: RocksOptions {
                cache_bytes: 256 << 20,
                background_jobs: i32::try_from((cores / 2).clamp(2, 8)).unwrap_or(2),
            },
            liveness: LivenessConfig { support: Duration::from_millis(2500), interval: Duration::from_millis(500) },
            group: GroupConfig::default(),
            gc: GcConfig::default(),
            log_priority: LogPriority::Raised,
            snapshot_bytes_per_second: 32 << 20,
            hash_bytes_per_second: 8 << 20,
            reserve_bytes: None,
            space: Arc::new(RealSpace),
            on_failure: OnFailure::default(),
        }
    }
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig").field("liveness", &self.liveness).field("group", &self.group).finish()
    }
}
