//! Transactions that are known as a whole when they are sent: compare, then do one thing or another.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::Key;

/// What must hold for the first branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Which key.
    pub key: Key,
    /// The value it must have; `None`: it must be absent.
    pub expected: Option<Bytes>,
}

/// One step of a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OneShot {
    /// Reads a key.
    Get(Key),
    /// Sets a key, or removes it with `None`.
    Write(Key, Option<Bytes>),
    /// Adds to a counter.
    Increment(Key, i64),
}

impl OneShot {
    /// The key it is about.
    #[must_use]
    pub const fn key(&self) -> &Key {
        match self {
            Self::Get(key) | Self::Write(key, _) | Self::Increment(key, _) => key,
        }
    }

    /// Whether it changes the key.
    #[must_use]
    pub const fn writes(&self) -> bool {
        !matches!(self, Self::Get(_))
    }
}

/// If all comparisons hold, the first branch is done, else the second: all or nothing, at one timestamp.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Whole {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is done then, in order.
    pub then: Vec<OneShot>,
    /// What is done else, in order.
    pub otherwise: Vec<OneShot>,
}

impl Whole {
    /// All keys that it names, in no order and some perhaps twice.
    pub fn keys(&self) -> impl Iterator<Item = &Key> + Clone {
        let steps = self.then.iter().chain(&self.otherwise).map(OneShot::key);
        self.compares.iter().map(|compare| &compare.key).chain(steps)
    }

    /// One of the branches.
    #[must_use]
    pub fn branch(&self, held: bool) -> &[OneShot] {
        if held { &self.then } else { &self.otherwise }
    }

    /// All keys that it names, each once, and whether a step of any branch may change it.
    #[must_use]
    pub fn named(&self) -> BTreeMap<&Key, bool> {
        let mut named: BTreeMap<&Key, bool> = self.compares.iter().map(|compare| (&compare.key, false)).collect();
        for step in self.then.iter().chain(&self.otherwise) {
            *named.entry(step.key()).or_default() |= step.writes();
        }
        named
    }
}
