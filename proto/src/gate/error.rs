//! Why a range did not do it.

use std::time::Duration;

use flotilla_types::{Key, RangeDescriptor, RangeError, RangeId, StoreId, Term, nanoseconds};

use super::{WireError, key_out, needed, txn};
use crate::internal::{self as wire, range_error::Kind};

impl From<RangeError> for wire::RangeError {
    fn from(error: RangeError) -> Self {
        let of = |kind: Kind| Self { kind: kind.into(), ..Self::default() };
        match error {
            RangeError::NotLeaseholder { range, leader, term } => Self {
                range_id: range.0,
                store_id: leader.map_or(0, |store| store.0),
                term: term.0,
                ..of(Kind::NotLeaseholder)
            },
            RangeError::RangeNotFound { range, store } => {
                Self { range_id: range.0, store_id: store.0, ..of(Kind::RangeNotFound) }
            }
            RangeError::RangeMismatch { range, span, known } => Self {
                range_id: range.0,
                span: Some((&span).into()),
                descriptors: known.iter().map(Into::into).collect(),
                ..of(Kind::RangeMismatch)
            },
            RangeError::RangeUnavailable { range, why } => {
                Self { range_id: range.0, text: why, ..of(Kind::RangeUnavailable) }
            }
            RangeError::StoreNotServing { store, why } => {
                Self { store_id: store.0, text: why, ..of(Kind::StoreNotServing) }
            }
            RangeError::Overloaded { queue, retry_after } => {
                Self { text: queue.into_owned(), retry_after_ns: nanoseconds(retry_after), ..of(Kind::Overloaded) }
            }
            RangeError::DiskFull { store } => Self { store_id: store.0, ..of(Kind::DiskFull) },
            RangeError::Uncertain { key, read, existing } => Self {
                key: key_out(&key),
                timestamp: Some(read.into()),
                other_timestamp: Some(existing.into()),
                ..of(Kind::Uncertain)
            },
            RangeError::FutureTimestamp { timestamp } => {
                Self { timestamp: Some(timestamp.into()), ..of(Kind::FutureTimestamp) }
            }
            RangeError::BelowGcThreshold { timestamp, threshold } => Self {
                timestamp: Some(timestamp.into()),
                other_timestamp: Some(threshold.into()),
                ..of(Kind::BelowGcThreshold)
            },
            RangeError::GenerationMismatch { current } => {
                Self { descriptors: vec![current.as_ref().into()], ..of(Kind::GenerationMismatch) }
            }
            RangeError::DeadlineExceeded { range } => Self { range_id: range.0, ..of(Kind::DeadlineExceeded) },
            RangeError::Ambiguous { why } => Self { text: why, ..of(Kind::Ambiguous) },
            RangeError::TooOld { range, floor } => {
                Self { range_id: range.0, timestamp: Some(floor.into()), ..of(Kind::TooOld) }
            }
            RangeError::Diverged { range } => Self { range_id: range.0, ..of(Kind::Diverged) },
            RangeError::Txn(refusal) => txn::refusal_out(refusal),
            RangeError::Invalid { what } => Self { text: what, ..of(Kind::Invalid) },
        }
    }
}

impl TryFrom<wire::RangeError> for RangeError {
    type Error = WireError;

    fn try_from(error: wire::RangeError) -> Result<Self, WireError> {
        let (range, store) = (RangeId(error.range_id), StoreId(error.store_id));
        if let Some(refusal) = txn::refusal_in(&error)? {
            return Ok(Self::Txn(refusal));
        }
        let kind = error.kind();
        let timestamp = || needed(error.timestamp, "an error's timestamp").map(Into::into);
        let other = || needed(error.other_timestamp, "an error's other timestamp").map(Into::into);
        Ok(match kind {
            Kind::NotLeaseholder => {
                Self::NotLeaseholder { range, leader: (store.0 != 0).then_some(store), term: Term(error.term) }
            }
            Kind::RangeNotFound => Self::RangeNotFound { range, store },
            Kind::RangeMismatch => Self::RangeMismatch {
                range,
                span: needed(error.span, "an error's span")?.try_into()?,
                known: error.descriptors.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            },
            Kind::RangeUnavailable => Self::RangeUnavailable { range, why: error.text },
            Kind::StoreNotServing => Self::StoreNotServing { store, why: error.text },
            Kind::Overloaded => {
                let queue = error.text.into();
                Self::Overloaded { queue, retry_after: Duration::from_nanos(error.retry_after_ns) }
            }
            Kind::DiskFull => Self::DiskFull { store },
            Kind::Uncertain => {
                Self::Uncertain { key: Key::new(error.key.clone()), read: timestamp()?, existing: other()? }
            }
            Kind::FutureTimestamp => Self::FutureTimestamp { timestamp: timestamp()? },
            Kind::BelowGcThreshold => Self::BelowGcThreshold { timestamp: timestamp()?, threshold: other()? },
            Kind::GenerationMismatch => {
                let current = needed(error.descriptors.into_iter().next(), "an error's descriptor")?;
                Self::GenerationMismatch { current: Box::new(RangeDescriptor::try_from(current)?) }
            }
            Kind::DeadlineExceeded => Self::DeadlineExceeded { range },
            Kind::Ambiguous => Self::Ambiguous { why: error.text },
            Kind::TooOld => Self::TooOld { range, floor: timestamp()? },
            Kind::Diverged => Self::Diverged { range },
            Kind::Invalid => Self::Invalid { what: error.text },
            Kind::Unspecified => return Err(WireError::new("an error has no kind")),
            // Taken above.
            Kind::WriteTooOld
            | Kind::TxnPushed
            | Kind::RefreshFailed
            | Kind::TxnAborted
            | Kind::LockHeld
            | Kind::LockTimeout
            | Kind::StaleWrite
            | Kind::IntentMissing
            | Kind::AlreadyCommitted => return Err(WireError::new("a transaction's error is malformed")),
        })
    }
}
