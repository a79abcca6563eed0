//! Snapshots: the content of a range on its way to a replica that the log cannot bring up to date any more.
//!
//! ```text
//!  leader's fleet ─► SendSnapshot ─► frames ═ bulk lane ═► intake ─► SnapshotReceived ─► receiver's fleet
//!  (outgoing)                       SnapshotSent ◄─┘                  (incoming) ─► Ingest ─► Ingested ─► log reset
//! ```

pub mod frames;
mod incoming;
pub mod intake;
mod outgoing;

pub(crate) use incoming::{Incoming, Stage};
pub(crate) use outgoing::{Open, Outgoing};
