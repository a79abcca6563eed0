//! What the clients did and saw, cut by key, and judged.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_check::{Operation, Outcome, Seen, Verdict, linearizable};
use flotilla_types::Key;

/// States that the search for one key may visit.
const STATES_MAX: usize = 2_000_000;

/// One client operation, as the client saw it end. Values are unique: each is written by one operation only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// Each key of the operation, and what it means for it.
    Keys(Vec<(Key, Seen<Bytes>)>),
    /// Nothing was done: no part of the history.
    Nothing,
}

/// See the module's page.
#[derive(Debug, Clone, Default)]
pub struct History {
    by_key: BTreeMap<Key, Vec<Operation<Bytes>>>,
    /// Keys whose histories were too hard to judge.
    pub undecided: u64,
}

impl History {
    /// An operation ended, or will never be known to have ended.
    pub fn push(&mut self, key: Key, operation: Operation<Bytes>) {
        self.by_key.entry(key).or_default().push(operation);
    }

    /// What one key's clients did.
    #[must_use]
    pub fn of(&self, key: &Key) -> &[Operation<Bytes>] {
        self.by_key.get(key).map_or(&[], Vec::as_slice)
    }

    /// The same, to be tampered with by those who test the judge.
    pub fn of_mut(&mut self, key: &Key) -> &mut Vec<Operation<Bytes>> {
        self.by_key.entry(key.clone()).or_default()
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.by_key.keys().cloned().collect()
    }

    /// Judges every key.
    pub fn judge(&mut self) -> Vec<String> {
        let mut violations = Vec::new();
        for (key, operations) in &self.by_key {
            if let Some(why) = phantom(operations) {
                violations.push(format!("{key}: {why}"));
                continue;
            }
            match linearizable(operations, STATES_MAX) {
                Verdict::Linearizable => {}
                Verdict::Violated(violation) => violations.push(format!("{key}: {violation}")),
                Verdict::Undecided => self.undecided += 1,
            }
        }
        violations
    }
}

/// A value that was read and that nobody wrote: the search would find it too, this names it.
fn phantom(operations: &[Operation<Bytes>]) -> Option<String> {
    let written: BTreeSet<&Bytes> = operations
        .iter()
        .filter_map(|operation| match &operation.seen {
            Seen::Wrote(value) | Seen::CompareAndSwap { new: value, .. } => value.as_ref(),
            Seen::Read(_) => None,
        })
        .collect();
    operations.iter().find_map(|operation| match &operation.seen {
        Seen::Read(Some(value)) if !written.contains(value) && operation.ended != Outcome::Unknown => {
            Some(format!("nobody wrote what this read saw: {operation}"))
        }
        _ => None,
    })
}
