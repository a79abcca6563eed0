//! Store liveness: which stores support this one, and which ones it supports (docs/leases.md, section 2).
//!
//! Two stores that share a range support each other for bounded times. No range, record or process is on the path of
//! every renewal. [`Liveness`] is the pure state machine of one store: events and time in, effects out. A shell with a
//! thread of its own feeds it, so that a busy fleet cannot hold up support, and publishes its [`SupportView`] to the
//! fleets.
//!
//! ```text
//!            bound durable                       row durable, if the epoch is new
//!  tick ──► Heartbeat{epoch, until ≤ bound} ──► supporter ──► HeartbeatReply{epoch, until}
//!  supporter's clock ≥ until ──► row := (epoch + 1, inactive) durable ──► SupportLeft: promises may be broken
//! ```
//!
//! What makes it safe is durable before it is said: the bound before a request that reaches up to it, a new epoch
//! before its answer, leaving before anybody acts on it. `watch` says when the clock itself must not be trusted (1.4).
//! Left out in this version: closed timestamps of sleeping ranges (7.6), and leaving `given` out of a heartbeat when it did not change.

mod records;
mod state;
#[cfg(test)]
mod tests;
mod view;
mod watch;

pub use records::{decode_bound, decode_row, encode_bound, encode_row};
pub use state::{
    GivenHint, Heartbeat, HeartbeatReply, Liveness, LivenessConfig, LivenessEffect, LivenessEvent, LivenessMessage,
    LivenessNow, LogTicket, RestoreError, Row,
};
pub use view::SupportView;
pub use watch::{ClockVerdict, ClockWatch, Suspicion};
