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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::thread::JoinHandle;

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam::channel::{Sender, bounded};
use flotilla_range::fleet::{Fleet, FleetConfig};
use flotilla_range::liveness::{ClockWatch, Liveness, LivenessNow};
use flotilla_range::raft::GroupConfig;
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

/// A running store. Dropping it closes it.
pub struct Store {
    shared: Arc<Shared>,
    outgoing: Arc<outgoing::Outgoing>,
    /// Their drop tells the threads behind them to end.
    stops: Vec<Sender<()>>,
    flush: Option<flusher::FlushRequests>,
    log: Option<Arc<LogWriter>>,
    fleet: Option<JoinHandle<()>>,
    liveness: Option<JoinHandle<()>>,
    /// Ends after the fleet's thread, which feeds them.
    workers: Vec<JoinHandle<()>>,
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
        let boot::Booted { engine, log, boot, disk } = boot::open(&dir, &config)?;
        let identity = dir.identity();
        let Ports { network, keeper, clock } = ports;
        let now = LivenessNow { hlc: clock.peek(), mono: clock.mono() };
        let phase = config.liveness.interval.mul_f64(rand::random::<f64>());
        let liveness = Liveness::restore(config.liveness, boot, phase, &log.metas(), now)?;
        clock.start_at(liveness.bound());
        let group = GroupConfig {
            heartbeat_interval: config.liveness.interval,
            support_duration: config.liveness.support,
            seed: if config.group.seed == 0 { rand::random() } else { config.group.seed },
            ..config.group.clone()
        };
        let fleet_config = FleetConfig { store: identity.store, boot, group };
        let reads = Arc::new(log::LogReads(Arc::clone(&log)));
        let (fleet, first) = Fleet::boot(fleet_config, engine.as_ref(), reads, &log.heads(), clock.mono())?;

        let inbox = Arc::new(inbox::Inbox::new(identity.store));
        let liveness_inbox = Arc::new(liveness::LivenessInbox::default());
        let view = Arc::new(ArcSwap::new(liveness.view(now.hlc)));
        let hashes = Arc::new(hashes::Hashes::default());
        let marks = Arc::new(marks::Marks::default());
        let turns = Arc::new(AtomicU64::new(0));
        let (flush, flush_requests) = flusher::requests();
        let observer = log::Observer { meters: meters::LogMeters::new(), on_failure: config.on_failure.clone() };
        let system = |source| StartError::System { action: "start a thread", source };
        let writer = LogWriter::spawn(Arc::clone(&log), config.log_priority, observer).map_err(system)?;
        let writer = Arc::new(writer);
        let (stop_io, io_stops) = bounded(0);
        let (io, io_threads) = io::spawn(&io_stops).map_err(system)?;
        let outgoing = Arc::new(outgoing::Outgoing::new(
            Arc::clone(&network),
            Arc::clone(&inbox),
            config.snapshot_bytes_per_second,
        ));
        let tight = Arc::new(AtomicBool::new(false));
        let incoming = Arc::new(intake::Incoming {
            store: identity.store,
            engine: Arc::clone(&engine),
            inbox: Arc::clone(&inbox),
            io: io.clone(),
            bucket: Bucket::new(config.snapshot_bytes_per_second),
            open: AtomicUsize::new(0),
            tight: Arc::clone(&tight),
        });
        let shared = Arc::new(Shared {
            identity,
            boot,
            clock: Arc::clone(&clock),
            inbox: Arc::clone(&inbox),
            liveness: Arc::clone(&liveness_inbox),
            view: Arc::clone(&view),
            hashes: Arc::clone(&hashes),
            incoming: ArcSwapOption::new(Some(incoming)),
            dropped: meters::dropped("fleet"),
            dropped_liveness: meters::dropped("liveness"),
        });
        let mut store = Self {
            shared: Arc::clone(&shared),
            outgoing: Arc::clone(&outgoing),
            stops: vec![stop_io],
            flush: Some(flush.clone()),
            log: Some(Arc::clone(&writer)),
            fleet: None,
            liveness: None,
            workers: io_threads,
            flusher: None,
            _dir: dir,
        };

        // From here on an error drops `store`, which ends what was started.
        let on_failure = &config.on_failure;
        let (stop_hasher, hasher_stops) = bounded(0);
        store.stops.push(stop_hasher);
        let (hash_queue, hasher) =
            hasher::Hasher::new(Bucket::new(config.hash_bytes_per_second), hashes, Arc::clone(&inbox), hasher_stops);
        store.workers.push(spawn("hasher", on_failure, move || hasher.run())?);
        let (stop_disk, disk_stops) = bounded(0);
        store.stops.push(stop_disk);
        let (disk_inbox, disk_failure) = (Arc::clone(&inbox), on_failure.clone());
        let watch = move || disk.run(&disk_stops, &disk_inbox, &tight, &disk_failure);
        store.workers.push(spawn("disk", on_failure, watch)?);
        let flusher = flusher::Flusher {
            engine: Arc::clone(&engine),
            log,
            inbox: Arc::clone(&inbox),
            marks: Arc::clone(&marks),
            boot,
            on_failure: on_failure.clone(),
            meters: meters::FlushMeters::new(),
            requests: flush_requests,
        };
        store.flusher = Some(spawn("flusher", on_failure, move || flusher.run())?);
        let background = Background {
            engine: Arc::clone(&engine),
            inbox: Arc::clone(&inbox),
            marks: Arc::clone(&marks),
            io,
            outgoing,
            hashes: hash_queue,
            on_failure: on_failure.clone(),
        };
        let fleet = fleet::FleetLoop {
            store: identity.store,
            fleet,
            engine,
            inbox: Arc::clone(&inbox),
            clock: Arc::clone(&clock),
            view: Arc::clone(&view),
            log: Arc::clone(&writer),
            network: Arc::clone(&network),
            keeper,
            liveness: Arc::clone(&liveness_inbox),
            marks,
            background,
            flush,
            turns: Arc::clone(&turns),
            on_failure: on_failure.clone(),
            meters: meters::FleetMeters::new(),
        };
        store.fleet = Some(spawn("fleet", on_failure, move || fleet.run(first))?);
        let watch = ClockWatch::new(clock.max_offset());
        let liveness = liveness::LivenessLoop {
            liveness,
            inbox: liveness_inbox,
            fleet: inbox,
            clock,
            log: writer,
            network,
            view,
            turns,
            watch,
            suspended: false,
            on_failure: on_failure.clone(),
        };
        store.liveness = Some(spawn("liveness", on_failure, move || liveness.run())?);
        tracing::info!(store = %identity.store, uuid = %identity.uuid, cluster = %identity.cluster, boot, "the store starts");
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
        join("liveness", self.liveness.take());
        join("fleet", self.fleet.take());
        // The fleet's thread held the last queues into these.
        self.stops.clear();
        for worker in self.workers.drain(..) {
            join("a worker", Some(worker));
        }
        // Waits until everything submitted is synced.
        self.log = None;
        self.flush = None;
        join("flusher", self.flusher.take());
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A thread whose panic ends the process instead of leaving a store that limps.
fn spawn(
    name: &'static str,
    on_failure: &OnFailure,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let on_failure = on_failure.clone();
    let guarded = move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            on_failure.meet(Failure::Panic(name));
        }
    };
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(guarded);
    started.map_err(|source| StartError::System { action: "start a thread", source })
}

fn join(name: &'static str, thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!(name, "a thread of the store panicked");
    }
}
