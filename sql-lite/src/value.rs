//! The values that keys are made of, and their order.

use std::cmp::Ordering;

use crate::Decimal;

/// Whether a column of an index ascends or descends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// Smallest first, NULL before all.
    #[default]
    Asc,
    /// Largest first, NULL after all.
    Desc,
}

/// A value of a column.
#[derive(Debug, Clone)]
pub enum Value {
    /// No value. Sorts before all others, and equals itself: a key has to have one place.
    Null,
    /// `boolean`.
    Bool(bool),
    /// `smallint`, `integer`, `bigint`.
    Int(i64),
    /// `real`, `double precision`. As in PostgreSQL NaN equals itself and is above all; −0 equals 0, and reads back as 0.
    Float(f64),
    /// `numeric`. 1.0 equals 1.00, and reads back without its trailing zeros.
    Decimal(Decimal),
    /// `text`, `varchar`: ordered by bytes (collation "C").
    Text(String),
    /// `bytea`.
    Bytes(Vec<u8>),
    /// `date`: days since 1970-01-01. The ends of `i32` are −infinity and infinity.
    Date(i32),
    /// `timestamp`, `timestamptz`: microseconds since 1970-01-01 UTC. The ends of `i64` are −infinity and infinity.
    Timestamp(i64),
    /// `uuid`.
    Uuid([u8; 16]),
}

impl Value {
    /// Orders types among themselves, so that all values have one order. An index column has one type and NULL.
    const fn rank(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Bool(_) => 1,
            Self::Int(_) => 2,
            Self::Float(_) => 3,
            Self::Decimal(_) => 4,
            Self::Text(_) => 5,
            Self::Bytes(_) => 6,
            Self::Date(_) => 7,
            Self::Timestamp(_) => 8,
            Self::Uuid(_) => 9,
        }
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) | (Self::Timestamp(a), Self::Timestamp(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => compare_floats(*a, *b),
            (Self::Decimal(a), Self::Decimal(b)) => a.cmp(b),
            (Self::Text(a), Self::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            (Self::Bytes(a), Self::Bytes(b)) => a.cmp(b),
            (Self::Date(a), Self::Date(b)) => a.cmp(b),
            (Self::Uuid(a), Self::Uuid(b)) => a.cmp(b),
            (a, b) => a.rank().cmp(&b.rank()),
        }
    }
}

fn compare_floats(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
        (a, b) => a.cmp(&b),
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}
