//! The store: one directory, two engines, and the threads around the fleet.
//!
//! ```text
//!              StoreHandle (any thread, tokio's too)
//!                 │ requests, messages      ▲ answers
//!                 ▼                         │
//!   liveness ─► mailbox ─────────► fleet ───┴──► Network, Keeper
//!     │           ▲  ▲  ▲            │
//!     │ records   │  │  └─ flusher ◄─┤ asks for a flush        disk: reserve and watermark
//!     ▼           │  │               │
//!   log-writer ───┘  └─── io-N, snapshot-out, hasher ◄─┘
//! ```
//! All thinking is in `range`; here is what turns its effects into disk and network, and nothing here blocks a thread of
//! the runtime. Every queue has a size. Every thread has this store as its owner, which waits for it in `close`.

mod background;
mod boot;
mod bucket;
mod callers;
mod config;
mod dir;
mod disk;
mod fatal;
mod files;
mod fleet;
mod flusher;
mod fresh;
mod handle;
mod hasher;
mod hashes;
mod ident;
mod inbox;
mod intake;
mod io;
mod liveness;
mod log;
mod marks;
mod meters;
mod outgoing;
mod reclaim;
mod wiring;
mod workers;

use std::sync::Arc;
use std::thread::JoinHandle;

use flotilla_storage::writer::LogWriter;

pub use boot::StartError;
pub use config::StoreConfig;
pub use dir::{DirError, Opened, StoreDir};
pub use disk::{RealSpace, Space, SpaceProbe, default_reserve};
pub use fatal::{Failure, OnFailure};
pub use fresh::FreshDir;
pub use handle::StoreHandle;
pub use ident::Identity;
pub use intake::{IntakeError, SnapshotIntake};

use crate::ports::Ports;
use background::Background;
use bucket::Bucket;
use handle::Shared;
use hasher::Hasher;
use outgoing::Outgoing;
use wiring::Wiring;
use workers::Workers;

/// A running store. Dropping it closes it.
pub struct Store {
    shared: Arc<Shared>,
    outgoing: Arc<Outgoing>,
    /// Dismissed after the fleet's thread ended, which feeds it.
    workers: Workers,
    flush: Option<flusher::FlushRequests>,
    log: Option<Arc<LogWriter>>,
    fleet: Option<JoinHandle<()>>,
    liveness: Option<JoinHandle<()>>,
    flusher: Option<JoinHandle<()>>,
    /// Held until everything is closed.
    _dir: StoreDir,
}

impl Store {
    /// Starts a store: opens its engines, checks that they belong together, and lets its threads go. It serves once its
    /// clock has passed what it promised before (leases 2.7); until then it answers that it does not serve yet. Blocks on
    /// the disk: not for a runtime's thread. Install the metrics recorder before.
    ///
    /// # Errors
    /// See [`StartError`]; nothing was said to anybody.
    pub fn start(dir: StoreDir, config: StoreConfig, ports: Ports) -> Result<(Self, StoreHandle), StartError> {
        let booted = boot::open(&dir, &config)?;
        let (wiring, liveness) = Wiring::new(dir.identity(), &booted, config, ports)?;
        let (fleet, first) = wiring.fleet()?;
        let (config, on_failure) = (&wiring.config, wiring.config.on_failure.clone());

        let observer = log::Observer {
            meters: meters::LogMeters::new(),
            on_failure: on_failure.clone(),
            log: Arc::clone(&wiring.log),
            synced: Arc::clone(&wiring.synced),
        };
        let writer = LogWriter::spawn(Arc::clone(&wiring.log), config.log_priority, observer);
        let writer = Arc::new(writer.map_err(|source| StartError::System { action: "start a thread", source })?);
        let (flush, flush_requests) = flusher::requests();
        let (io, io_jobs) = io::queue();
        let snapshot_bytes = config.snapshot_bytes_per_second;
        let outgoing = Outgoing::new(Arc::clone(&wiring.ports.network), Arc::clone(&wiring.inbox), snapshot_bytes);
        let outgoing = Arc::new(outgoing);
        let shared = wiring.handle(io.clone());
        let mut store = Self {
            shared: Arc::clone(&shared),
            outgoing: Arc::clone(&outgoing),
            workers: Workers::new(on_failure.clone()),
            flush: Some(flush.clone()),
            log: Some(Arc::clone(&writer)),
            fleet: None,
            liveness: None,
            flusher: None,
            _dir: dir,
        };

        // From here on an error drops `store`, which ends what was started.
        let workers = &mut store.workers;
        for name in io::THREADS {
            let (jobs, stop) = (io_jobs.clone(), workers.stop());
            workers.hire(name, move || io::run(&jobs, &stop))?;
        }
        let bucket = Bucket::new(config.hash_bytes_per_second);
        let (hashes, hasher) =
            Hasher::new(bucket, Arc::clone(&wiring.hashes), Arc::clone(&wiring.inbox), workers.stop());
        workers.hire("hasher", move || hasher.run())?;
        let (disk, stop, failure) = (booted.disk, workers.stop(), on_failure.clone());
        let (inbox, tight) = (Arc::clone(&wiring.inbox), Arc::clone(&wiring.tight));
        workers.hire("disk", move || disk.run(&stop, &inbox, &tight, &failure))?;

        let flusher = wiring.flusher(flush_requests);
        store.flusher = Some(workers::spawn("flusher", &on_failure, move || flusher.run())?);
        let background = Background {
            engine: Arc::clone(&wiring.engine),
            inbox: Arc::clone(&wiring.inbox),
            marks: Arc::clone(&wiring.marks),
            io,
            outgoing,
            reclaim: Arc::default(),
            hashes,
            on_failure: on_failure.clone(),
        };
        let fleet = wiring.fleet_loop(fleet, Arc::clone(&writer), background, flush);
        store.fleet = Some(workers::spawn("fleet", &on_failure, move || fleet.run(first))?);
        let liveness = wiring.liveness_loop(liveness, writer);
        store.liveness = Some(workers::spawn("liveness", &on_failure, move || liveness.run())?);
        let Identity { store: number, uuid, cluster } = wiring.identity;
        tracing::info!(store = %number, %uuid, %cluster, boot = wiring.boot, "the store starts");
        Ok((store, StoreHandle { shared }))
    }

    /// Stops everything and waits for it, and flushes the engine, so that the next start has nothing to replay. Hand the
    /// leaderships over before (`StoreHandle::drain`). Blocks: not for a runtime's thread.
    pub fn close(self) {
        drop(self);
    }

    fn stop(&mut self) {
        // No more work comes in; open transfers end.
        self.shared.inbox.close();
        self.shared.incoming.store(None);
        self.outgoing.close();
        // Who is behind them sees the store go silent, not wrong: liveness first, then the fleet.
        self.shared.liveness.close();
        workers::join("liveness", self.liveness.take());
        workers::join("fleet", self.fleet.take());
        // The fleet's thread held the last queues into these.
        self.workers.dismiss();
        // Waits until everything submitted is synced.
        self.log = None;
        self.flush = None;
        workers::join("flusher", self.flusher.take());
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}
