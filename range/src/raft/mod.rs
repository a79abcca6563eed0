//! One replica's Raft group: the library's `RawNode`, unchanged, and everything that stands before and behind it.
//!
//! Promises: nothing reaches the library that the filter of leases 4 forbids; no promise, vote or acknowledgement leaves
//! before it is durable; a panic of the library loses this replica and not the node; the same inputs give the same
//! outputs. How: `Group` is a passive machine. The fleet calls it with messages, time and persisted numbers, then takes
//! one `GroupReady` and carries it out in order.
//!
//! ```text
//!  receive ─► filter ─► RawNode ─► ready ─► log ops ─► persisted ─► messages that waited
//!              ▲  ▲                  └────► committed ─► advance_applied
//!        promise  hold, U (lease)
//! ```
//!
//! Left out: applying entries after a commit that is not durable here (raft 0.7 cannot), and asynchronous reads of the
//! log for slow followers: an entry that fell out of the cache is read in the call.

mod elections;
mod filter;
mod group;
mod lease;
mod log;
mod propose;
mod ready;
mod receive;
mod support;
#[cfg(test)]
mod tests;
mod tick;
mod types;
mod wire;

pub use group::Group;
pub(crate) use lease::majority_value;
pub use support::{Ctx, Given, Support};
pub use types::{
    AfterEnd, GroupBoot, GroupConfig, GroupReady, LogRead, LossReason, Peer, Reader, Refused, Role, RoleState, Sends,
    SnapshotIn,
};
