//! What the threads of a store share, and what each of them is given.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam::channel::Receiver;
use flotilla_range::fleet::{Fleet, FleetConfig};
use flotilla_range::liveness::{ClockWatch, Liveness, LivenessNow, SupportView};
use flotilla_range::raft::GroupConfig;
use flotilla_storage::engine::Engine;
use flotilla_storage::log::{LogSeq, LogStore};
use flotilla_storage::writer::LogWriter;

use super::background::Background;
use super::boot::{Booted, StartError};
use super::bucket::Bucket;
use super::config::StoreConfig;
use super::fleet::FleetLoop;
use super::flusher::{FlushRequests, Flusher};
use super::handle::Shared;
use super::hashes::Hashes;
use super::ident::Identity;
use super::inbox::Inbox;
use super::intake::Incoming;
use super::io::IoQueue;
use super::liveness::{LivenessInbox, LivenessLoop};
use super::log::LogReads;
use super::marks::Marks;
use super::meters;
use crate::ports::Ports;

/// What is shared.
pub(super) struct Wiring {
    pub(super) identity: Identity,
    pub(super) boot: u32,
    pub(super) recovered: LogSeq,
    /// The newest synced batch of the log.
    pub(super) synced: Arc<AtomicU64>,
    pub(super) config: StoreConfig,
    pub(super) ports: Ports,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) log: Arc<dyn LogStore>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) liveness: Arc<LivenessInbox>,
    pub(super) view: Arc<ArcSwap<SupportView>>,
    pub(super) hashes: Arc<Hashes>,
    pub(super) marks: Arc<Marks>,
    /// Counts the turns of the fleet's loop.
    pub(super) turns: Arc<AtomicU64>,
    /// The disk has no room for another replica.
    pub(super) tight: Arc<AtomicBool>,
}

impl Wiring {
    /// The pure core of liveness as its records left it, and what is shared around it. The node's clock starts here.
    pub(super) fn new(
        identity: Identity,
        booted: &Booted,
        config: StoreConfig,
        ports: Ports,
    ) -> Result<(Self, Liveness), StartError> {
        let now = LivenessNow { hlc: ports.clock.peek(), mono: ports.clock.mono() };
        let phase = config.liveness.interval.mul_f64(rand::random::<f64>());
        let liveness = Liveness::restore(config.liveness, booted.boot, phase, &booted.log.metas(), now)?;
        ports.clock.start_at(liveness.bound());
        let wiring = Self {
            identity,
            boot: booted.boot,
            recovered: booted.recovered,
            synced: Arc::new(AtomicU64::new(booted.log.seq().0)),
            config,
            ports,
            engine: Arc::clone(&booted.engine),
            log: Arc::clone(&booted.log),
            inbox: Arc::new(Inbox::new(identity.store)),
            liveness: Arc::default(),
            view: Arc::new(ArcSwap::new(liveness.view(now.hlc))),
            hashes: Arc::default(),
            marks: Arc::default(),
            turns: Arc::default(),
            tight: Arc::default(),
        };
        Ok((wiring, liveness))
    }

    /// The fleet as both engines left it, with the first things that it wants.
    pub(super) fn fleet(&self) -> Result<(Fleet, Vec<flotilla_range::event::Effect>), StartError> {
        let group = GroupConfig {
            heartbeat_interval: self.config.liveness.interval,
            support_duration: self.config.liveness.support,
            max_offset: self.ports.clock.max_offset(),
            seed: if self.config.group.seed == 0 { rand::random() } else { self.config.group.seed },
            ..self.config.group.clone()
        };
        let config = FleetConfig { store: self.identity.store, boot: self.boot, group, gc: self.config.gc };
        let reads = Arc::new(LogReads(Arc::clone(&self.log)));
        Ok(Fleet::boot(config, self.engine.as_ref(), reads, &self.log.heads(), self.ports.clock.mono())?)
    }

    pub(super) fn handle(&self, io: IoQueue) -> Arc<Shared> {
        let incoming = Arc::new(Incoming {
            store: self.identity.store,
            engine: Arc::clone(&self.engine),
            inbox: Arc::clone(&self.inbox),
            io,
            bucket: Bucket::new(self.config.snapshot_bytes_per_second),
            open: AtomicUsize::new(0),
            tight: Arc::clone(&self.tight),
        });
        Arc::new(Shared {
            identity: self.identity,
            boot: self.boot,
            recovered: self.recovered,
            synced: Arc::clone(&self.synced),
            clock: Arc::clone(&self.ports.clock),
            inbox: Arc::clone(&self.inbox),
            liveness: Arc::clone(&self.liveness),
            view: Arc::clone(&self.view),
            hashes: Arc::clone(&self.hashes),
            incoming: ArcSwapOption::new(Some(incoming)),
            dropped: meters::dropped("fleet"),
            dropped_liveness: meters::dropped("liveness"),
        })
    }

    pub(super) fn flusher(&self, requests: Receiver<()>) -> Flusher {
        Flusher {
            engine: Arc::clone(&self.engine),
            log: Arc::clone(&self.log),
            inbox: Arc::clone(&self.inbox),
            marks: Arc::clone(&self.marks),
            boot: self.boot,
            on_failure: self.config.on_failure.clone(),
            meters: meters::FlushMeters::new(),
            requests,
        }
    }

    pub(super) fn fleet_loop(
        &self,
        fleet: Fleet,
        log: Arc<LogWriter>,
        background: Background,
        flush: FlushRequests,
    ) -> FleetLoop {
        FleetLoop {
            store: self.identity.store,
            fleet,
            engine: Arc::clone(&self.engine),
            inbox: Arc::clone(&self.inbox),
            clock: Arc::clone(&self.ports.clock),
            view: Arc::clone(&self.view),
            log,
            network: Arc::clone(&self.ports.network),
            keeper: Arc::clone(&self.ports.keeper),
            liveness: Arc::clone(&self.liveness),
            marks: Arc::clone(&self.marks),
            background,
            flush,
            turns: Arc::clone(&self.turns),
            on_failure: self.config.on_failure.clone(),
            meters: meters::FleetMeters::new(),
        }
    }

    pub(super) fn liveness_loop(&self, liveness: Liveness, log: Arc<LogWriter>) -> LivenessLoop {
        LivenessLoop {
            liveness,
            inbox: Arc::clone(&self.liveness),
            fleet: Arc::clone(&self.inbox),
            clock: Arc::clone(&self.ports.clock),
            log,
            network: Arc::clone(&self.ports.network),
            view: Arc::clone(&self.view),
            turns: Arc::clone(&self.turns),
            watch: ClockWatch::new(self.ports.clock.max_offset()),
            suspended: false,
            on_failure: self.config.on_failure.clone(),
        }
    }
}
