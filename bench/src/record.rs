//! What one client saw, and all of them together.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::run::Done;

/// The longest latency told apart, in microseconds; longer ones count as this.
const LATENCY_MAX: u64 = 600_000_000;

/// The kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Get,
    Put,
    Insert,
    Scan,
    /// Reads, modifies and writes in a transaction.
    Modify,
    Increment,
    /// Moves money.
    Transfer,
    /// Looks whether all money is there.
    Check,
    /// A one-shot transaction.
    Transact,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Get,
        Self::Put,
        Self::Insert,
        Self::Scan,
        Self::Modify,
        Self::Increment,
        Self::Transfer,
        Self::Check,
        Self::Transact,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Insert => "insert",
            Self::Scan => "scan",
            Self::Modify => "modify",
            Self::Increment => "increment",
            Self::Transfer => "transfer",
            Self::Check => "check",
            Self::Transact => "transact",
        }
    }
}

/// Latencies and errors.
pub(crate) struct Record {
    latencies: BTreeMap<Kind, Histogram<u64>>,
    /// How often transactions were begun again.
    restarts: BTreeMap<Kind, u64>,
    /// By reason, of all kinds.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self { latencies: BTreeMap::new(), restarts: BTreeMap::new(), errors: BTreeMap::new() }
    }

    /// An operation ended.
    pub(crate) fn add(&mut self, done: &Done, took: Duration) {
        *self.restarts.entry(done.kind).or_default() += done.restarts;
        if let Err(error) = &done.result {
            let reason = error.reason().map_or_else(|| "UNREACHABLE".to_owned(), |reason| reason.to_string());
            *self.errors.entry(reason).or_default() += 1;
            return;
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(LATENCY_MAX);
        self.histogram(done.kind).saturating_record(micros.max(1));
    }

    /// Takes in what another client saw.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (kind, histogram) in &other.latencies {
            // Both have the same bounds, so nothing can be out of them.
            let _ = self.histogram(*kind).add(histogram);
        }
        for (kind, count) in &other.restarts {
            *self.restarts.entry(*kind).or_default() += count;
        }
        for (reason, count) in &other.errors {
            *self.errors.entry(reason.clone()).or_default() += count;
        }
    }

    /// How many operations succeeded.
    pub(crate) fn count(&self) -> u64 {
        self.latencies.values().map(Histogram::len).sum()
    }

    /// The figures of one kind; `None` if there were none.
    pub(crate) fn latency(&self, kind: Kind, over: Duration) -> Option<Latency> {
        let histogram = self.latencies.get(&kind).filter(|histogram| !histogram.is_empty())?;
        #[allow(clippy::cast_precision_loss)]
        Some(Latency {
            kind,
            operations: histogram.len(),
            restarts_per_operation: self.restarts.get(&kind).copied().unwrap_or_default() as f64
                / histogram.len() as f64,
            per_second: histogram.len() as f64 / over.as_secs_f64(),
            mean_us: histogram.mean(),
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        })
    }

    fn histogram(&mut self, kind: Kind) -> &mut Histogram<u64> {
        self.latencies.entry(kind).or_insert_with(|| {
            // Three digits over ten minutes are bounds that the crate accepts.
            Histogram::new_with_bounds(1, LATENCY_MAX, 3).expect("valid bounds")
        })
    }
}

/// The figures of one kind of operation.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Latency {
    pub(crate) kind: Kind,
    pub(crate) operations: u64,
    /// How often a transaction was begun again, on average.
    pub(crate) restarts_per_operation: f64,
    pub(crate) per_second: f64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: u64,
    pub(crate) p90_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) max_us: u64,
}
