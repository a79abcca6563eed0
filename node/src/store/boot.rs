//! The steps of a start, before any message leaves (docs/durability.md, "Boot").

use std::sync::Arc;

use bytes::Bytes;
use flotilla_range::boot::BootError;
use flotilla_range::liveness::RestoreError;
use flotilla_storage::engine::{Engine, EngineError};
use flotilla_storage::log::{LogBatch, LogFatal, LogOp, LogSeq, LogStore, MetaKey};
use flotilla_storage::raft_log::{EngineLog, Tail};
use flotilla_storage::reserve::Reserve;
use flotilla_storage::rocks::RocksEngine;
use flotilla_types::{RecordError, RecordReader, RecordWriter, StoreId};
use thiserror::Error;

use super::config::StoreConfig;
use super::dir::{DirError, StoreDir};
use super::disk::{DiskWatch, Verdict, default_reserve};

const VERSION: u8 = 1;

/// Why a store did not start. Nothing was said to anybody.
#[derive(Debug, Error)]
pub enum StartError {
    /// The directory is refused.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The log lost its end.
    #[error(
        "{store} is fenced: its log ends at batch {found:?} although batch {synced:?} was synced, so it may have \
         forgotten votes and acknowledged writes. It must not start as itself: replace the node: give it an empty \
         directory and let it join again; keep this directory until the cluster is whole"
    )]
    Fenced {
        /// Which store.
        store: StoreId,
        /// The newest batch found.
        found: LogSeq,
        /// The newest batch that was synced.
        synced: LogSeq,
    },
    /// The log is damaged or the disk failed.
    #[error(
        "{0}; do not delete anything: if the disk is sound, replace the node: give it an empty directory and let it join again"
    )]
    Log(LogFatal),
    /// The engine is damaged or the disk failed.
    #[error(
        "{0}; do not delete anything: if the disk is sound, replace the node: give it an empty directory and let it join again"
    )]
    Engine(EngineError),
    /// No room.
    #[error(
        "the disk under {0} is full, and the reserve is used up: make room, then start again; all that was acknowledged is there"
    )]
    DiskFull(String),
    /// Log and engine contradict each other.
    #[error("the store contradicts itself: {0}; replace the node: give it an empty directory and let it join again")]
    Contradiction(#[from] BootError),
    /// A record of liveness is damaged.
    #[error("{0}; replace the node: give it an empty directory and let it join again")]
    Liveness(#[from] RestoreError),
    /// A record of the store is damaged.
    #[error("{0}; replace the node: give it an empty directory and let it join again")]
    Record(#[from] RecordError),
    /// The system refused a thread, or the disk could not be asked.
    #[error("{action}: {source}")]
    System {
        /// What was being done.
        action: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
}

impl StartError {
    /// The exit code of the process.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Dir(_) | Self::Fenced { .. } | Self::Contradiction(_) | Self::Liveness(_) | Self::Record(_) => 3,
            Self::Log(LogFatal::Damaged(_)) | Self::Engine(EngineError::Corrupt { .. }) => 3,
            Self::Log(_) | Self::Engine(_) => 4,
            Self::DiskFull(_) => 5,
            Self::System { .. } => 1,
        }
    }
}

/// A store whose parts are open and belong together, in its new boot.
pub(super) struct Booted {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) log: Arc<dyn LogStore>,
    pub(super) boot: u32,
    /// How far the log was synced before this boot.
    pub(super) recovered: LogSeq,
    pub(super) disk: DiskWatch,
}

/// Opens everything, checks that it belongs together, and counts the boot.
pub(super) fn open(dir: &StoreDir, config: &StoreConfig) -> Result<Booted, StartError> {
    let disk = watch(dir, config)?;
    let full = || StartError::DiskFull(dir.path().display().to_string());
    let system = |source| StartError::System { action: "ask the disk for its room", source };
    if disk.before_boot().map_err(system)? == Verdict::Out {
        return Err(full());
    }
    let sort_log = |error| if error == LogFatal::DiskFull { full() } else { StartError::Log(error) };
    let sort_engine = |error| if error == EngineError::DiskFull { full() } else { StartError::Engine(error) };
    let identity = dir.identity();
    let (log, tail) = EngineLog::open(&dir.path().join("log"), identity.uuid).map_err(sort_log)?;
    if let Tail::Lost { found, synced } = tail {
        return Err(StartError::Fenced { store: identity.store, found, synced });
    }
    let engine = RocksEngine::open(&dir.path().join("kv"), config.engine).map_err(sort_engine)?;
    dir.check_copies(&engine, &log)?;
    // Files of snapshots that a crash left behind.
    engine.discard_ssts("").map_err(sort_engine)?;
    let recovered = log.seq();
    let boot = log.meta(MetaKey::Boot).map(|value| decode_boot(&value)).transpose()?.unwrap_or(0) + 1;
    // Synced before the first message: peers accept only higher ones. It makes the recovered tail durable, too.
    let op = LogOp::Meta { key: MetaKey::Boot, value: encode_boot(boot) };
    log.write(&LogBatch { ops: vec![op] }).map_err(sort_log)?;
    Ok(Booted { engine: Arc::new(engine), log: Arc::new(log), boot, recovered, disk })
}

fn watch(dir: &StoreDir, config: &StoreConfig) -> Result<DiskWatch, StartError> {
    let system = |source| StartError::System { action: "ask the disk for its room", source };
    let reserve_bytes = match config.reserve_bytes {
        Some(bytes) => bytes,
        None => default_reserve(config.space.space(dir.path()).map_err(system)?.total),
    };
    Ok(DiskWatch {
        dir: dir.path().to_owned(),
        reserve: Reserve::new(dir.path().join("reserve"), reserve_bytes),
        reserve_bytes,
        probe: Arc::clone(&config.space),
    })
}

fn encode_boot(boot: u32) -> Bytes {
    RecordWriter::new(VERSION).u32(boot).finish().into()
}

fn decode_boot(bytes: &[u8]) -> Result<u32, RecordError> {
    let mut record = RecordReader::new("boot counter", VERSION, bytes)?;
    let boot = record.u32()?;
    record.end()?;
    Ok(boot)
}
