//! Linearizability of one register, by Wing and Gong's search with Lowe's memory of visited states ("Testing for
//! linearizability", 2016).
//!
//! The search walks through all orders that real time allows: an operation may come next if it began before every
//! operation that is not placed yet has ended. It remembers which sets of placed operations led to which value, so that
//! no such pair is walked twice. An operation whose outcome is unknown may be placed at any time after it began, or
//! never: it has no end, and need not be placed for the search to succeed.
//!
//! Left out: a guarantee on time. The problem is NP-complete; many operations of unknown outcome on one key make it
//! slow, and a search that exceeds its budget answers [`Verdict::Undecided`] instead of guessing.

use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::hash::Hash;

/// What an operation did, as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<V> {
    /// It read this; `None`: nothing was there.
    Read(Option<V>),
    /// It wrote this; `None`: it removed what was there.
    Wrote(Option<V>),
    /// It compared with `expected` and, if that was there, wrote `new`.
    CompareAndSwap {
        /// What had to be there.
        expected: Option<V>,
        /// What it wrote.
        new: Option<V>,
        /// Whether it was there; `None` if the client was not told.
        swapped: Option<bool>,
    },
}

/// When an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered at this time.
    Answered(u64),
    /// The client never learnt what became of it. (An operation that certainly did nothing is not part of a history.)
    Unknown,
}

/// One operation of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<V> {
    /// Who did it; for reports.
    pub client: u64,
    /// When it was sent, on the clock that `Outcome::Answered` uses too.
    pub began: u64,
    /// When it ended.
    pub ended: Outcome,
    /// What it did.
    pub seen: Seen<V>,
}

/// No order of the operations explains what the clients saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation<V> {
    /// The longest run of operations that could be placed, in an order that explains them.
    pub explained: Vec<Operation<V>>,
    /// The operations that could have come next, none of which fits.
    pub stuck: Vec<Operation<V>>,
}

impl<V: Debug> fmt::Display for Violation<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const TAIL: usize = 12;
        let skipped = self.explained.len().saturating_sub(TAIL);
        writeln!(f, "not linearizable; an order that explains the first {} operations:", self.explained.len())?;
        for operation in &self.explained[skipped..] {
            writeln!(f, "  {operation}")?;
        }
        writeln!(f, "none of these can come next:")?;
        self.stuck.iter().try_for_each(|operation| writeln!(f, "  {operation}"))
    }
}

impl<V: Debug> fmt::Display for Operation<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ended {
            Outcome::Answered(at) => write!(f, "[{}, {at}] client {}: {:?}", self.began, self.client, self.seen),
            Outcome::Unknown => write!(f, "[{}, ?] client {}: {:?}", self.began, self.client, self.seen),
        }
    }
}

/// What a judge says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<V> {
    /// Some order explains it all.
    Linearizable,
    /// No order does.
    Violated(Violation<V>),
    /// The budget of visited states was used up.
    Undecided,
}

/// Judges the operations on one register that starts empty, visiting at most `states_max` states.
///
/// # Panics
/// If an operation ends before it begins: the history is not one.
pub fn linearizable<V: Clone + Eq + Hash + Debug>(history: &[Operation<V>], states_max: usize) -> Verdict<V> {
    // A read that nobody saw the answer of explains nothing and needs no explanation.
    let silent = |op: &Operation<V>| op.ended == Outcome::Unknown && matches!(op.seen, Seen::Read(_));
    let mut operations: Vec<_> = history.iter().filter(|op| !silent(op)).collect();
    operations.sort_by_key(|op| op.began);
    for op in &operations {
        assert!(end(op) >= op.began, "an operation ends before it begins: {op}");
    }
    Search { operations, states_max, visited: HashSet::new(), longest: Vec::new() }.run()
}

fn end<V>(operation: &Operation<V>) -> u64 {
    match operation.ended {
        Outcome::Answered(at) => at,
        Outcome::Unknown => u64::MAX,
    }
}

/// Which operations are placed, one bit each.
type Placed = Vec<u64>;

fn is_placed(placed: &Placed, index: usize) -> bool {
    placed[index / 64] >> (index % 64) & 1 == 1
}

/// One level of the search: the state before an operation was placed, and which to try next.
struct Level<V> {
    value: Option<V>,
    candidates: Vec<usize>,
    next: usize,
}

struct Search<'a, V> {
    operations: Vec<&'a Operation<V>>,
    states_max: usize,
    visited: HashSet<(Placed, Option<V>)>,
    /// The longest order found so far.
    longest: Vec<usize>,
}

impl<V: Clone + Eq + Hash + Debug> Search<'_, V> {
    fn run(mut self) -> Verdict<V> {
        let mut placed: Placed = vec![0; self.operations.len().div_ceil(64)];
        let mut order: Vec<usize> = Vec::new();
        let mut levels = vec![Level { value: None, candidates: self.candidates(&placed), next: 0 }];
        while let Some(level) = levels.last_mut() {
            if self.operations.iter().enumerate().all(|(i, op)| is_placed(&placed, i) || op.ended == Outcome::Unknown) {
                return Verdict::Linearizable;
            }
            let Some(&candidate) = level.candidates.get(level.next) else {
                levels.pop();
                if let Some(last) = order.pop() {
                    placed[last / 64] &= !(1 << (last % 64));
                }
                continue;
            };
            level.next += 1;
            let Some(value) = place(&self.operations[candidate].seen, &level.value) else { continue };
            placed[candidate / 64] |= 1 << (candidate % 64);
            if !self.visited.insert((placed.clone(), value.clone())) {
                placed[candidate / 64] &= !(1 << (candidate % 64));
                continue;
            }
            if self.visited.len() > self.states_max {
                return Verdict::Undecided;
            }
            order.push(candidate);
            if order.len() > self.longest.len() {
                self.longest.clone_from(&order);
            }
            levels.push(Level { value, candidates: self.candidates(&placed), next: 0 });
        }
        Verdict::Violated(self.violation())
    }

    /// Operations that began before all that are not placed yet have ended.
    fn candidates(&self, placed: &Placed) -> Vec<usize> {
        let open = || self.operations.iter().enumerate().filter(|(i, _)| !is_placed(placed, *i));
        let first_end = open().map(|(_, op)| end(op)).min().unwrap_or(u64::MAX);
        open().take_while(|(_, op)| op.began <= first_end).map(|(i, _)| i).collect()
    }

    fn violation(&self) -> Violation<V> {
        let mut placed: Placed = vec![0; self.operations.len().div_ceil(64)];
        self.longest.iter().for_each(|i| placed[i / 64] |= 1 << (i % 64));
        let of = |indexes: &[usize]| indexes.iter().map(|i| self.operations[*i].clone()).collect();
        Violation { explained: of(&self.longest), stuck: of(&self.candidates(&placed)) }
    }
}

/// The register's value after an operation, if the operation can have seen what it saw at this value.
fn place<V: Clone + Eq>(seen: &Seen<V>, value: &Option<V>) -> Option<Option<V>> {
    match seen {
        Seen::Read(read) => (read == value).then(|| value.clone()),
        Seen::Wrote(new) => Some(new.clone()),
        Seen::CompareAndSwap { expected, new, swapped } => {
            let matches = expected == value;
            if swapped.is_some_and(|swapped| swapped != matches) {
                return None;
            }
            Some(if matches { new.clone() } else { value.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn op(began: u64, ended: u64, seen: Seen<u8>) -> Operation<u8> {
        Operation { client: began, began, ended: Outcome::Answered(ended), seen }
    }

    fn unknown(began: u64, seen: Seen<u8>) -> Operation<u8> {
        Operation { client: began, began, ended: Outcome::Unknown, seen }
    }

    fn accepts(history: &[Operation<u8>]) -> bool {
        match linearizable(history, 1 << 20) {
            Verdict::Linearizable => true,
            Verdict::Violated(_) => false,
            Verdict::Undecided => panic!("a small history used up its budget"),
        }
    }

    #[test]
    fn a_stale_read_is_rejected_and_named() {
        let history = [op(0, 1, Seen::Wrote(Some(1))), op(2, 3, Seen::Wrote(Some(2))), op(4, 5, Seen::Read(Some(1)))];
        let Verdict::Violated(violation) = linearizable(&history, 1000) else { panic!("accepted") };
        assert_eq!(violation.explained.len(), 2);
        assert_eq!(violation.stuck, [history[2].clone()]);
        assert!(violation.to_string().contains("[4, 5] client 4: Read(Some(1))"));
    }

    #[test]
    fn a_lost_write_is_rejected() {
        assert!(!accepts(&[op(0, 1, Seen::Wrote(Some(1))), op(2, 3, Seen::Read(None))]));
    }

    #[test]
    fn a_value_nobody_wrote_is_rejected() {
        assert!(!accepts(&[op(0, 1, Seen::Wrote(Some(1))), op(0, 3, Seen::Read(Some(9)))]));
    }

    #[test]
    fn a_swap_that_happened_twice_is_rejected() {
        let swap = |began, ended| {
            op(began, ended, Seen::CompareAndSwap { expected: Some(1), new: Some(2), swapped: Some(true) })
        };
        assert!(accepts(&[op(0, 1, Seen::Wrote(Some(1))), swap(2, 3)]));
        assert!(!accepts(&[op(0, 1, Seen::Wrote(Some(1))), swap(2, 3), swap(4, 5)]));
    }

    #[test]
    fn concurrent_operations_may_take_either_order_but_all_must_agree() {
        let writes = [op(0, 10, Seen::Wrote(Some(1))), op(0, 10, Seen::Wrote(Some(2)))];
        let then = |reads: &[(u64, u8)]| {
            let reads = reads.iter().map(|(at, value)| op(*at, *at + 1, Seen::Read(Some(*value))));
            accepts(&writes.iter().cloned().chain(reads).collect::<Vec<_>>())
        };
        assert!(then(&[(11, 1), (13, 1)]) && then(&[(11, 2), (13, 2)]));
        assert!(!then(&[(11, 1), (13, 2)]), "both wrote before both reads");
    }

    #[test]
    fn a_write_of_unknown_outcome_may_have_happened_late_or_never_but_only_once() {
        let history = |reads: &[Option<u8>]| {
            let mut history = vec![unknown(0, Seen::Wrote(Some(1)))];
            history.extend((0..).zip(reads).map(|(n, value)| op(10 * n + 5, 10 * n + 6, Seen::Read(*value))));
            accepts(&history)
        };
        assert!(history(&[None, None]) && history(&[None, Some(1)]) && history(&[Some(1), Some(1)]));
        assert!(!history(&[Some(1), None]), "once seen, it cannot go away");
    }

    #[test]
    fn a_budget_that_is_used_up_is_said() {
        let history: Vec<_> =
            (0..20).map(|n| op(0, 100, Seen::Wrote(Some(n)))).chain([op(200, 201, Seen::Read(Some(99)))]).collect();
        assert_eq!(linearizable(&history, 100), Verdict::Undecided);
    }

    /// A register that really is one: operations take effect at a point between begin and end.
    fn real_history() -> impl Strategy<Value = Vec<Operation<u8>>> {
        let shape = (0u64..60, 1u64..12, 0u8..4, 0u8..3, 0u8..3, any::<u8>());
        prop::collection::vec(shape, 1..40).prop_map(|shapes| {
            let mut points: Vec<_> = shapes
                .into_iter()
                .map(|(began, length, kind, a, b, luck)| {
                    (began + u64::from(luck) % length, began, began + length, kind, a, b, luck)
                })
                .collect();
            points.sort();
            let mut value = None;
            let mut history = Vec::new();
            for (_, began, ended, kind, a, b, luck) in points {
                let (a, b) = (Some(a).filter(|a| *a > 0), Some(b).filter(|b| *b > 0));
                let lost = luck < 20;
                let seen = match kind {
                    0 => Seen::Read(value),
                    1 => Seen::CompareAndSwap { expected: a, new: b, swapped: (!lost).then_some(a == value) },
                    _ => Seen::Wrote(a),
                };
                // Of the lost ones some happened and some did not.
                if !lost || luck % 2 == 0 {
                    match &seen {
                        Seen::Read(_) => {}
                        Seen::Wrote(new) => value = *new,
                        Seen::CompareAndSwap { expected, new, .. } if *expected == value => value = *new,
                        Seen::CompareAndSwap { .. } => {}
                    }
                }
                let ended = if lost { Outcome::Unknown } else { Outcome::Answered(ended) };
                history.push(Operation { client: began, began, ended, seen });
            }
            history
        })
    }

    /// The dumb twin: tries every subset of unknown operations and every order.
    fn explained(history: &[Operation<u8>], placed: u32, value: Option<u8>) -> bool {
        let open = || (0..history.len()).filter(|i| placed >> i & 1 == 0);
        if open().all(|i| history[i].ended == Outcome::Unknown) {
            return true;
        }
        open().any(|i| {
            let in_time = open().all(|other| history[i].began <= end(&history[other]));
            in_time && place(&history[i].seen, &value).is_some_and(|value| explained(history, placed | 1 << i, value))
        })
    }

    fn any_small_history() -> impl Strategy<Value = Vec<Operation<u8>>> {
        let seen = (0u8..3, prop::option::of(0u8..2), prop::option::of(0u8..2), prop::option::of(any::<bool>()));
        let one = (0u64..12, 0u64..6, seen, 0u8..6).prop_map(|(began, length, (kind, a, b, told), fate)| {
            let unknown = fate == 0;
            let seen = match kind {
                0 => Seen::Read(a),
                1 => Seen::Wrote(a),
                _ => Seen::CompareAndSwap { expected: a, new: b, swapped: told.filter(|_| !unknown) },
            };
            let ended = if unknown { Outcome::Unknown } else { Outcome::Answered(began + length) };
            Operation { client: began, began, ended, seen }
        });
        prop::collection::vec(one, 0..7)
    }

    proptest! {
        #[test]
        fn what_a_real_register_did_is_accepted(history in real_history()) {
            prop_assert_eq!(linearizable(&history, 1 << 20), Verdict::Linearizable);
        }

        #[test]
        fn small_histories_are_judged_as_by_trying_every_order(history in any_small_history()) {
            let judged: Vec<_> = history.iter().filter(|op| op.ended != Outcome::Unknown || !matches!(op.seen, Seen::Read(_))).cloned().collect();
            prop_assert_eq!(accepts(&history), explained(&judged, 0, None));
        }
    }
}
