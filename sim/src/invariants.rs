//! What must hold after every turn of every fleet (durability, section 9; leases, section 9).

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::{LogIndex, RangeId, StoreId};

use crate::node::Node;

/// Remembers so many running checksums per range.
const SUMS_MAX: usize = 4096;

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    /// What the first replica that applied up to there had for its checksum.
    sums: BTreeMap<RangeId, BTreeMap<LogIndex, u64>>,
    /// Where each store's replica stood when it was last looked at.
    seen: BTreeMap<(StoreId, RangeId), LogIndex>,
    /// Replicas that slept when they were last looked at.
    asleep: BTreeSet<(StoreId, RangeId)>,
    /// How many fell asleep and woke since they were counted.
    pub(crate) slept: (u64, u64),
    looks: u64,
}

impl Invariants {
    pub(crate) fn look(&mut self, store: StoreId, node: &Node) -> Result<(), String> {
        self.looks += 1;
        // Every turn would cost more than the turn.
        if !self.looks.is_multiple_of(4) {
            return Ok(());
        }
        let status = node.fleet.status();
        for range in &status {
            let id = range.descriptor.range;
            match (range.asleep, self.asleep.contains(&(store, id))) {
                (true, false) => {
                    self.asleep.insert((store, id));
                    self.slept.0 += 1;
                }
                (false, true) => {
                    self.asleep.remove(&(store, id));
                    self.slept.1 += 1;
                }
                _ => {}
            }
            if self.seen.insert((store, id), range.applied) == Some(range.applied) {
                continue;
            }
            let sums = self.sums.entry(id).or_default();
            let known = *sums.entry(range.applied).or_insert(range.sum);
            if known != range.sum {
                let (at, sum) = (range.applied, range.sum);
                return Err(format!("{id} on {store} applied other commands: sum {sum:x} at {at}, not {known:x}"));
            }
            if sums.len() > SUMS_MAX {
                sums.pop_first();
            }
        }
        let mut spans: Vec<_> = status.iter().map(|range| (&range.descriptor.span, range.descriptor.range)).collect();
        spans.sort();
        match spans.windows(2).find(|pair| pair[0].0.overlaps(pair[1].0)) {
            Some(pair) => Err(format!("D9: {} and {} overlap on {store}", pair[0].1, pair[1].1)),
            None => Ok(()),
        }
    }
}
