//! Snapshots on their way in, from the last verified frame to the reset of the log (docs/durability.md, "Snapshots").
//!
//! ```text
//!  received ─► checked against the map, stepped ─► term and vote synced ─► ingest ─► state read, log reset ─► told
//!                    └─ refused ─► discard
//! ```
//! A crash before the ingest leaves the old replica; after it, the applied state says `via_snapshot` and the boot
//! finishes what is missing.

use std::collections::BTreeMap;

use flotilla_types::{RangeDescriptor, RangeId};

use crate::event::Ticket;
use crate::message::{SnapshotHeader, SnapshotId};

/// How far one has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Given to the library, which may refuse it.
    Stepped,
    /// Term and vote are on their way to the log.
    Logging(Ticket),
    /// Being ingested.
    Ingesting,
}

/// A snapshot whose frames are all here.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) header: SnapshotHeader,
    pub(crate) files: Vec<String>,
    pub(crate) stage: Stage,
}

/// All of a store: at most one for a range.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    arrivals: BTreeMap<RangeId, Arrival>,
}

impl Incoming {
    /// Begins one. The range must have none.
    pub(crate) fn begin(&mut self, header: SnapshotHeader, files: Vec<String>) {
        self.arrivals.insert(header.descriptor.range, Arrival { header, files, stage: Stage::Stepped });
    }

    /// The range's.
    pub(crate) fn get_mut(&mut self, range: RangeId) -> Option<&mut Arrival> {
        self.arrivals.get_mut(&range)
    }

    /// Whether the range has one.
    pub(crate) fn is_arriving(&self, range: RangeId) -> bool {
        self.arrivals.contains_key(&range)
    }

    /// Another range's arrival that claims keys of this descriptor.
    pub(crate) fn overlapping(&self, descriptor: &RangeDescriptor) -> Option<RangeId> {
        let claims = |arrival: &&Arrival| {
            let other = &arrival.header.descriptor;
            other.range != descriptor.range && other.span.overlaps(&descriptor.span)
        };
        self.arrivals.values().find(claims).map(|arrival| arrival.header.descriptor.range)
    }

    /// Ends the range's, if the library refused it.
    pub(crate) fn take_refused(&mut self, range: RangeId) -> Option<Arrival> {
        self.arrivals.get(&range).filter(|arrival| arrival.stage == Stage::Stepped)?;
        self.arrivals.remove(&range)
    }

    /// The ranges whose term and vote are durable now.
    pub(crate) fn logged(&mut self, through: Ticket) -> Vec<RangeId> {
        let due = |arrival: &Arrival| matches!(arrival.stage, Stage::Logging(ticket) if ticket <= through);
        self.arrivals.iter().filter(|(_, arrival)| due(arrival)).map(|(range, _)| *range).collect()
    }

    /// Ends the one that was ingested.
    pub(crate) fn ingested(&mut self, id: SnapshotId) -> Option<Arrival> {
        let found = self.arrivals.iter().find(|(_, arrival)| arrival.header.id == id).map(|(range, _)| *range)?;
        self.arrivals.remove(&found)
    }

    /// Whether the range's files are entering the engine.
    pub(crate) fn is_ingesting(&self, range: RangeId) -> bool {
        self.arrivals.get(&range).is_some_and(|arrival| arrival.stage == Stage::Ingesting)
    }

    /// Gives up whatever the range has that is not being ingested yet.
    pub(crate) fn give_up(&mut self, range: RangeId) -> Option<Arrival> {
        self.arrivals.get(&range).filter(|arrival| arrival.stage != Stage::Ingesting)?;
        self.arrivals.remove(&range)
    }
}
