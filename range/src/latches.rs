//! Latches: commands on overlapping keys go one after the other, from their evaluation until they are applied.
//!
//! The only room in which a request waits for another (docs/life-of-a-request.md, step 6). A command names the spans it
//! reads and writes; reads share, writes exclude. Whoever came first goes first: a later command also waits for an
//! earlier one that still waits itself, so that a stream of readers cannot starve a writer, and no cycle of waiting can
//! come about, since everybody waits only for earlier ones.
//!
//! Cost: acquiring looks at the open commands whose spans start below the end of the new one. Open commands per range are
//! few (they live for one round of consensus), and the queue is bounded by the caller.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::KeySpan;

/// Names one command that holds latches or waits for them. Ascends in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LatchId(u64);

/// What a command does with a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Shares it with other reads.
    Read,
    /// Has it alone.
    Write,
}

#[derive(Debug)]
struct Command {
    spans: Vec<(KeySpan, Access)>,
    /// Earlier commands that it waits for; empty once it holds its latches.
    waits_for: BTreeSet<LatchId>,
    /// Later commands that wait for it.
    blocks: Vec<LatchId>,
}

/// The latches of one range.
#[derive(Debug, Default)]
pub struct Latches {
    next: u64,
    commands: BTreeMap<LatchId, Command>,
}

impl Latches {
    /// Enters a command. The second part says whether it holds its latches at once; else a later `release` names it.
    pub fn acquire(&mut self, spans: Vec<(KeySpan, Access)>) -> (LatchId, bool) {
        let spans = in_order(spans);
        let id = LatchId(self.next);
        self.next += 1;
        let mut waits_for = BTreeSet::new();
        for (earlier, command) in &mut self.commands {
            if conflict(&command.spans, &spans) {
                waits_for.insert(*earlier);
                command.blocks.push(id);
            }
        }
        let held = waits_for.is_empty();
        self.commands.insert(id, Command { spans, waits_for, blocks: Vec::new() });
        (id, held)
    }

    /// Ends a command, whether it held its latches or gave up waiting. Returns the commands that hold theirs now, in the
    /// order of their arrival. Ending it twice does nothing.
    pub fn release(&mut self, id: LatchId) -> Vec<LatchId> {
        let Some(command) = self.commands.remove(&id) else { return Vec::new() };
        let mut woken = Vec::new();
        for blocked in command.blocks {
            if let Some(later) = self.commands.get_mut(&blocked)
                && later.waits_for.remove(&id)
                && later.waits_for.is_empty()
            {
                woken.push(blocked);
            }
        }
        woken.sort_unstable();
        woken
    }

    /// Commands that hold latches or wait for them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether no command holds or waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

/// Whether two commands clash. Both lists are sorted by start, so that one walk over both finds it: of two large batches each
/// span is looked at once. Spans of one command may overlap, as long as the one that reaches furthest stands for those it covers.
fn conflict(earlier: &[(KeySpan, Access)], later: &[(KeySpan, Access)]) -> bool {
    let (mut a, mut b) = (0, 0);
    while let (Some(one), Some(other)) = (earlier.get(a), later.get(b)) {
        if one.0.overlaps(&other.0) && (one.1 == Access::Write || other.1 == Access::Write) {
            return true;
        }
        // Whichever ends first clashes with nothing that comes later in the other list.
        if one.0.end <= other.0.end {
            a += 1;
        } else {
            b += 1;
        }
    }
    false
}

/// Sorts spans, and joins those that overlap: the stronger access counts for all of them.
fn in_order(mut spans: Vec<(KeySpan, Access)>) -> Vec<(KeySpan, Access)> {
    if spans.len() < 2 {
        return spans;
    }
    spans.sort_by(|a, b| a.0.start.cmp(&b.0.start));
    let mut joined: Vec<(KeySpan, Access)> = Vec::with_capacity(spans.len());
    for (span, access) in spans {
        match joined.last_mut() {
            Some((last, known)) if span.start < last.end => {
                if span.end > last.end {
                    last.end = span.end;
                }
                if access == Access::Write {
                    *known = Access::Write;
                }
            }
            _ => joined.push((span, access)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use flotilla_types::keys;
    use proptest::prelude::*;

    use super::*;

    fn span(start: u8, end: u8) -> KeySpan {
        KeySpan::new(keys::user(&[start]), keys::user(&[end])).unwrap()
    }

    #[test]
    fn reads_share_and_writes_exclude() {
        let mut latches = Latches::default();
        let (first, held) = latches.acquire(vec![(span(1, 5), Access::Read)]);
        assert!(held);
        assert!(latches.acquire(vec![(span(2, 3), Access::Read)]).1);
        let (writer, held) = latches.acquire(vec![(span(4, 6), Access::Write)]);
        assert!(!held);
        assert!(latches.acquire(vec![(span(6, 9), Access::Write)]).1, "a span that only touches is free");
        assert_eq!(latches.release(first), [writer]);
    }

    #[test]
    fn a_reader_does_not_overtake_a_writer_that_waits() {
        let mut latches = Latches::default();
        let (reader, _) = latches.acquire(vec![(span(1, 2), Access::Read)]);
        let (writer, _) = latches.acquire(vec![(span(1, 2), Access::Write)]);
        let (late, held) = latches.acquire(vec![(span(1, 2), Access::Read)]);
        assert!(!held);
        assert_eq!(latches.release(reader), [writer]);
        assert_eq!(latches.release(writer), [late]);
    }

    #[test]
    fn who_gives_up_waiting_blocks_nobody() {
        let mut latches = Latches::default();
        let (reader, _) = latches.acquire(vec![(span(1, 2), Access::Read)]);
        let (writer, _) = latches.acquire(vec![(span(1, 2), Access::Write)]);
        let (late, _) = latches.acquire(vec![(span(1, 2), Access::Read)]);
        assert_eq!(latches.release(writer), [late], "it conflicts with the writer only");
        assert_eq!(latches.release(reader), []);
        latches.release(late);
        assert!(latches.is_empty());
    }

    /// Open commands: what they want, and whether they hold it.
    type OpenCommands = BTreeMap<LatchId, (Vec<(KeySpan, Access)>, bool)>;

    proptest! {
        /// Nobody holds a latch that conflicts with an earlier open command, everybody gets theirs in the end, and
        /// nobody waits who need not.
        #[test]
        fn holders_never_conflict_and_waiters_always_have_a_reason(
            commands in prop::collection::vec((0u8..6, 1u8..4, any::<bool>(), any::<prop::sample::Index>()), 1..60),
        ) {
            let mut latches = Latches::default();
            let mut open = OpenCommands::new();
            let check = |open: &OpenCommands| {
                open.iter().all(|(id, (spans, held))| {
                    let free = open.range(..*id).all(|(_, (earlier, _))| !conflict(earlier, spans));
                    free == *held
                })
            };
            for (start, length, write, which) in commands {
                let access = if write { Access::Write } else { Access::Read };
                let spans = vec![(span(start, start + length), access)];
                let (id, held) = latches.acquire(spans.clone());
                open.insert(id, (spans, held));
                prop_assert!(check(&open));
                if which.index(3) > 0 {
                    let ids: Vec<_> = open.keys().copied().collect();
                    let ended = *which.get(&ids);
                    open.remove(&ended);
                    for woken in latches.release(ended) {
                        open.get_mut(&woken).unwrap().1 = true;
                    }
                    prop_assert!(check(&open));
                }
            }
            while let Some((id, _)) = open.pop_first() {
                for woken in latches.release(id) {
                    open.get_mut(&woken).unwrap().1 = true;
                }
                prop_assert!(check(&open));
            }
            prop_assert!(latches.is_empty());
        }
    }
}
