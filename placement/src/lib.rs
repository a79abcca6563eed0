//! Where replicas should live. Pure: a view in, operators out; the same view and seed give the same operators.
//!
//! This version holds the checker: it finishes joint configurations, replaces replicas on dead and draining stores, and
//! brings every range to its number of replicas, over as many failure domains as there are. Balancing comes later.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod checker;
mod lost;
#[cfg(test)]
mod tests;

pub use checker::{CheckerConfig, Operator, RangeView, StoreState, StoreView, Urgency, View, check};
pub use lost::without_lost;
