//! The order of appends to each key, as the reads tell it, and what is wrong without any cycle.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{Act, Ended, Finding, Malformed, Phenomenon, Transaction};

/// One key.
#[derive(Default)]
pub(super) struct Versions {
    /// Of each key the longest list that was read.
    pub(super) order: BTreeMap<u64, Vec<u64>>,
    /// Who appended an element.
    pub(super) writer: HashMap<u64, usize>,
    /// Of each key the elements of transactions that count as committed and that no read showed: they come after all
    /// that were shown, in an order nobody knows.
    pub(super) unseen: BTreeMap<u64, Vec<u64>>,
    /// Which transactions count as committed.
    pub(super) committed: Vec<bool>,
}

impl Versions {
    /// Orders the appends of a history; gives what is wrong about single reads, too.
    pub(super) fn of(history: &[Transaction]) -> Result<(Self, Vec<Finding>), Malformed> {
        let mut versions = Self::default();
        let mut appended: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (index, transaction) in history.iter().enumerate() {
            for act in &transaction.acts {
                let Act::Append { key, element } = act else { continue };
                if versions.writer.insert(*element, index).is_some() {
                    return Err(Malformed::ElementUsedTwice(*element));
                }
                appended.entry(*key).or_default().push(*element);
            }
        }
        let mut findings = Vec::new();
        // That it saw its own writes does not tell that it committed.
        let foreign = |(reader, _, list): (usize, u64, &[u64])| {
            let writer = &versions.writer;
            list.iter().filter(|element| writer.get(element) != Some(&reader)).copied().collect::<Vec<_>>()
        };
        let shown: HashSet<u64> = reads(history).flat_map(foreign).collect();
        versions.committed = (0..history.len())
            .map(|index| match history[index].ended {
                Ended::Committed(_) => true,
                Ended::Aborted => false,
                Ended::Unknown => appends(&history[index]).any(|(_, element)| shown.contains(&element)),
            })
            .collect();
        for (reader, key, list) in reads(history) {
            findings.extend(versions.wrong_read(history, reader, key, list));
            let own = |element: &&u64| versions.writer.get(element) == Some(&reader);
            let uncommitted = if versions.committed[reader] { 0 } else { list.iter().rev().take_while(own).count() };
            let list = &list[..list.len() - uncommitted];
            let longest = versions.order.entry(key).or_default();
            let shared = longest.len().min(list.len());
            if longest[..shared] != list[..shared] {
                findings.push(Finding {
                    phenomenon: Phenomenon::TwoOrders,
                    transactions: vec![reader],
                    because: format!("{} read key {key} as {list:?}, others as {longest:?}", name(reader)),
                });
            } else if list.len() > longest.len() {
                list.clone_into(longest);
            }
        }
        for (index, transaction) in history.iter().enumerate() {
            findings.extend(internal(index, transaction));
        }
        for (key, elements) in appended {
            let known: HashSet<u64> = versions.order.get(&key).into_iter().flatten().copied().collect();
            let counts = |element: &u64| versions.committed[versions.writer[element]];
            let unseen = elements.into_iter().filter(|element| !known.contains(element) && counts(element));
            versions.unseen.insert(key, unseen.collect());
        }
        Ok((versions, findings))
    }

    /// What a single read shows that no store should.
    fn wrong_read(&self, history: &[Transaction], reader: usize, key: u64, list: &[u64]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut found = |phenomenon, other: Option<usize>, because: String| {
            let transactions = [reader].into_iter().chain(other).collect();
            findings.push(Finding { phenomenon, transactions, because });
        };
        let mut seen = HashSet::new();
        for element in list {
            if !seen.insert(element) {
                found(Phenomenon::Twice, None, format!("{} read {element} twice in key {key}", name(reader)));
            }
            match self.writer.get(element) {
                Some(writer) if appends(&history[*writer]).any(|append| append == (key, *element)) => {
                    if history[*writer].ended == Ended::Aborted && *writer != reader {
                        let because = format!("{} read {element} of {}, which aborted", name(reader), name(*writer));
                        found(Phenomenon::AbortedRead, Some(*writer), because);
                    }
                }
                _ => {
                    let because = format!("{} read {element} in key {key}, where nobody put it", name(reader));
                    found(Phenomenon::Phantom, None, because);
                }
            }
        }
        let mut writers: Vec<usize> = list.iter().filter_map(|element| self.writer.get(element)).copied().collect();
        writers.dedup();
        for writer in writers {
            let shown = list.iter().filter(|element| self.writer.get(element) == Some(&writer));
            let put = appends(&history[writer]).filter(|append| append.0 == key).map(|append| append.1);
            if !shown.copied().zip(put).all(|(shown, put)| shown == put) {
                let because = format!("{} read {list:?}, not in the order of {}", name(reader), name(writer));
                found(Phenomenon::TwoOrders, Some(writer), because);
            }
        }
        // Only the last element can be in between: what lies before it was overwritten, in whatever order.
        let last = list.last().and_then(|element| Some((*element, *self.writer.get(element)?)));
        if let Some((element, writer)) = last.filter(|(_, writer)| *writer != reader) {
            let final_one = appends(&history[writer]).filter(|append| append.0 == key).last();
            if final_one.is_some_and(|append| append.1 != element) {
                let because =
                    format!("{} read key {key} up to {element}, in the midst of {}", name(reader), name(writer));
                found(Phenomenon::IntermediateRead, Some(writer), because);
            }
        }
        findings
    }

    /// Committed transactions that read one version of a key before they wrote the next.
    pub(super) fn lost_updates(&self, history: &[Transaction]) -> Vec<Finding> {
        let mut rested: BTreeMap<(u64, usize), BTreeSet<usize>> = BTreeMap::new();
        for (index, transaction) in history.iter().enumerate().filter(|(index, _)| self.committed[*index]) {
            let mut first_read: BTreeMap<u64, usize> = BTreeMap::new();
            let mut wrote = BTreeSet::new();
            for act in &transaction.acts {
                match act {
                    Act::Read { key, list, .. } if !wrote.contains(key) => {
                        first_read.entry(*key).or_insert(list.len());
                    }
                    Act::Read { .. } => {}
                    Act::Append { key, .. } => {
                        if let Some(length) = first_read.get(key).filter(|_| wrote.insert(*key)) {
                            rested.entry((*key, *length)).or_default().insert(index);
                        }
                    }
                }
            }
        }
        let lost = rested.into_iter().filter(|(_, writers)| writers.len() > 1);
        lost.map(|((key, length), writers)| {
            let names: Vec<_> = writers.iter().map(|index| name(*index)).collect();
            Finding {
                phenomenon: Phenomenon::LostUpdate,
                transactions: writers.into_iter().collect(),
                because: format!("{} read key {key} with {length} elements and wrote it", names.join(", ")),
            }
        })
        .collect()
    }
}

/// A transaction's name in reports.
pub(super) fn name(index: usize) -> String {
    format!("T{index}")
}

/// Its appends, in order.
pub(super) fn appends(transaction: &Transaction) -> impl Iterator<Item = (u64, u64)> {
    transaction.acts.iter().filter_map(|act| match act {
        Act::Append { key, element } => Some((*key, *element)),
        Act::Read { .. } => None,
    })
}

/// All reads that count: those of transactions that committed, and those of unknown outcome, whose answers were given all
/// the same. What an aborted transaction read is not promised by every level.
fn reads(history: &[Transaction]) -> impl Iterator<Item = (usize, u64, &[u64])> {
    let answered = history.iter().enumerate().filter(|(_, transaction)| transaction.ended != Ended::Aborted);
    answered.flat_map(|(index, transaction)| {
        transaction.acts.iter().filter_map(move |act| match act {
            Act::Read { key, list, .. } => Some((index, *key, list.as_slice())),
            Act::Append { .. } => None,
        })
    })
}

/// A transaction sees what it wrote itself so far, at the end of what was there, and nothing of what it writes later.
fn internal(index: usize, transaction: &Transaction) -> Option<Finding> {
    let ever: HashSet<u64> = appends(transaction).map(|(_, element)| element).collect();
    let mut own: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for act in &transaction.acts {
        match act {
            Act::Append { key, element } => own.entry(*key).or_default().push(*element),
            Act::Read { key, list, .. } => {
                let expected = own.get(key).map_or(&[][..], Vec::as_slice);
                let foreign = list.len().saturating_sub(expected.len());
                if !list.ends_with(expected) || list[..foreign].iter().any(|element| ever.contains(element)) {
                    let because = format!("{} read key {key} as {list:?} after it appended {expected:?}", name(index));
                    return Some(Finding { phenomenon: Phenomenon::Internal, transactions: vec![index], because });
                }
            }
        }
    }
    None
}
