//! Who depends on whom.

use std::collections::{BTreeMap, BTreeSet};

use super::versions::{Versions, appends, name};
use super::{Act, Ended, Transaction};

/// Why one transaction comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// ww: it wrote the version before.
    Overwritten,
    /// wr: it wrote what the other read.
    Read,
    /// rw: it read the version before the one that the other wrote.
    Missed,
    /// rw, found by a predicate.
    MissedByPredicate,
    /// It ended before the other began.
    Earlier,
}

/// The dependencies of those that count as committed.
pub(super) struct Graph {
    /// From each transaction to those that come after it.
    pub(super) after: Vec<BTreeMap<usize, BTreeSet<Why>>>,
}

impl Graph {
    pub(super) fn of(history: &[Transaction], versions: &Versions) -> Self {
        let mut graph = Self { after: vec![BTreeMap::new(); history.len()] };
        for (key, list) in &versions.order {
            for pair in list.windows(2) {
                if let (Some(earlier), Some(later)) = (versions.writer.get(&pair[0]), versions.writer.get(&pair[1])) {
                    graph.add(versions, *earlier, *later, Why::Overwritten);
                }
            }
            if let Some(last) = list.last().and_then(|element| versions.writer.get(element)) {
                for unseen in versions.unseen.get(key).into_iter().flatten() {
                    graph.add(versions, *last, versions.writer[unseen], Why::Overwritten);
                }
            }
        }
        for (reader, transaction) in history.iter().enumerate() {
            for act in &transaction.acts {
                if let Act::Read { key, list, by_predicate } = act {
                    let missed = if *by_predicate { Why::MissedByPredicate } else { Why::Missed };
                    graph.read(history, versions, reader, *key, list, missed);
                }
            }
        }
        graph.real_time(history, versions);
        graph
    }

    fn add(&mut self, versions: &Versions, earlier: usize, later: usize, why: Why) {
        if earlier != later && versions.committed[earlier] && versions.committed[later] {
            self.after[earlier].entry(later).or_default().insert(why);
        }
    }

    fn read(
        &mut self,
        history: &[Transaction],
        versions: &Versions,
        reader: usize,
        key: u64,
        list: &[u64],
        missed: Why,
    ) {
        // What it put there itself says nothing about others.
        let own = list.iter().rev().take_while(|element| versions.writer.get(element) == Some(&reader)).count();
        let foreign = &list[..list.len() - own];
        if let Some(writer) = foreign.last().and_then(|element| versions.writer.get(element)) {
            self.add(versions, *writer, reader, Why::Read);
        }
        let order = versions.order.get(&key).map_or(&[][..], Vec::as_slice);
        let next = order[foreign.len().min(order.len())..]
            .iter()
            .find(|element| versions.writer.get(element) != Some(&reader));
        match next.and_then(|element| versions.writer.get(element)) {
            Some(writer) => self.add(versions, reader, *writer, missed),
            None => {
                for unseen in versions.unseen.get(&key).into_iter().flatten() {
                    debug_assert!(appends(&history[versions.writer[unseen]]).any(|append| append == (key, *unseen)));
                    self.add(versions, reader, versions.writer[unseen], missed);
                }
            }
        }
    }

    /// Edges from each that ended to each that began later, but for those that follow from others.
    fn real_time(&mut self, history: &[Transaction], versions: &Versions) {
        let mut moments = Vec::new();
        for (index, transaction) in history.iter().enumerate().filter(|(index, _)| versions.committed[*index]) {
            // What ends and what begins at one time are concurrent, so beginnings come first.
            moments.push((transaction.began, false, index));
            if let Ended::Committed(at) = transaction.ended {
                moments.push((at, true, index));
            }
        }
        moments.sort_unstable();
        // Those that ended and that no transaction has both begun after and ended since.
        let mut frontier: BTreeSet<usize> = BTreeSet::new();
        let mut at_begin: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (_, ends, index) in moments {
            if ends {
                for implied in at_begin.remove(&index).unwrap_or_default() {
                    frontier.remove(&implied);
                }
                frontier.insert(index);
            } else {
                for earlier in &frontier {
                    self.add(versions, *earlier, index, Why::Earlier);
                }
                at_begin.insert(index, frontier.clone());
            }
        }
    }

    /// A cycle in words.
    pub(super) fn tell(&self, cycle: &[(usize, Why)]) -> String {
        let steps = cycle.iter().enumerate().map(|(at, (from, why))| {
            let to = cycle[(at + 1) % cycle.len()].0;
            let verb = match why {
                Why::Overwritten => "was overwritten by",
                Why::Read => "was read by",
                Why::Missed => "did not see the write of",
                Why::MissedByPredicate => "did not find the write of",
                Why::Earlier => "ended before the beginning of",
            };
            format!("{} {verb} {}", name(*from), name(to))
        });
        steps.collect::<Vec<_>>().join(", ")
    }
}
