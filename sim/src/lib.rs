//! The cluster in one seeded thread: virtual time, faulty network, disks and clocks (docs/simulation.md).
//!
//! The product's own parts run here unchanged: `range::fleet`, `range::liveness`, `kv::Router`. What the node's threads,
//! sockets and disks do is done by this crate, in virtual time and with dice, so that a seed replays exactly.
//!
//! ```text
//!   run ── clients, faults, changes of ranges; then heals and verifies
//!    └► world ── the queue of events
//!         ├► node ── one store's shell: fleet, liveness      ├► executor ── tasks of the routers and clients
//!         ├► disk ── engine, log, log writer                 ├► transport ── kv's way to the stores
//!         └► time ── true time, wall clocks, HLCs            └► network ── who hears whom, and when
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod clients;
mod cluster;
mod disk;
mod driver;
mod executor;
mod faults;
mod history;
mod invariants;
mod network;
mod node;
mod one_shots;
mod run;
mod suspicion;
mod time;
mod trace;
mod transactions;
mod transport;
mod verify;
mod world;

pub use cluster::{Answer, Cluster, Pending};
pub use history::History;
pub use run::{Options, Report, run};
