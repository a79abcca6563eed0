//! The judge of transactions, judged: it must find each phenomenon that is put into a history, and agree with a dumb twin.

#![allow(clippy::unwrap_used)]

use flotilla_check::transactions::{Act, Ended, Level, Malformed, Phenomenon, Transaction, phenomena, violation};
use proptest::prelude::*;

fn append(key: u64, element: u64) -> Act {
    Act::Append { key, element }
}

fn read(key: u64, list: &[u64]) -> Act {
    Act::Read { key, list: list.to_vec(), by_predicate: false }
}

fn scanned(key: u64, list: &[u64]) -> Act {
    Act::Read { key, list: list.to_vec(), by_predicate: true }
}

/// All at the same time: real time says nothing.
fn together(transactions: &[&[Act]]) -> Vec<Transaction> {
    (0..)
        .zip(transactions)
        .map(|(client, acts)| Transaction { client, began: 0, ended: Ended::Committed(100), acts: acts.to_vec() })
        .collect()
}

fn shown(history: &[Transaction]) -> Vec<Phenomenon> {
    let mut shown: Vec<_> = phenomena(history).unwrap().into_iter().map(|finding| finding.phenomenon).collect();
    shown.dedup();
    shown
}

const X: u64 = 1;
const Y: u64 = 2;

#[test]
fn a_serial_history_shows_nothing() {
    let history = together(&[
        &[append(X, 1), append(Y, 2)],
        &[read(X, &[1]), append(X, 3), read(X, &[1, 3])],
        &[read(X, &[1, 3]), read(Y, &[2])],
    ]);
    assert_eq!(shown(&history), []);
}

#[test]
fn values_from_nowhere_and_effects_that_come_twice() {
    assert_eq!(shown(&together(&[&[read(X, &[9])]])), [Phenomenon::Phantom]);
    assert_eq!(shown(&together(&[&[append(X, 1)], &[read(Y, &[1])]])), [Phenomenon::Phantom], "another key's");
    assert!(shown(&together(&[&[append(X, 1)], &[read(X, &[1, 1])]])).contains(&Phenomenon::Twice));
}

#[test]
fn orders_that_contradict_each_other() {
    let history = together(&[&[append(X, 1)], &[append(X, 2)], &[read(X, &[1, 2])], &[read(X, &[2, 1])]]);
    assert_eq!(shown(&history), [Phenomenon::TwoOrders]);
}

#[test]
fn a_transaction_sees_its_own_writes_at_the_end() {
    assert!(shown(&together(&[&[append(X, 1), read(X, &[])]])).contains(&Phenomenon::Internal));
    let before_foreign = together(&[&[append(X, 2)], &[append(X, 1), read(X, &[1, 2])]]);
    assert!(shown(&before_foreign).contains(&Phenomenon::Internal));
}

#[test]
fn aborted_and_intermediate_reads() {
    let mut aborted = together(&[&[append(X, 1)], &[read(X, &[1])]]);
    aborted[0].ended = Ended::Aborted;
    assert_eq!(shown(&aborted), [Phenomenon::AbortedRead]);
    let intermediate = together(&[&[append(X, 1), append(X, 2)], &[read(X, &[1])], &[read(X, &[1, 2])]]);
    assert!(shown(&intermediate).contains(&Phenomenon::IntermediateRead));
}

#[test]
fn dirty_writes() {
    let history = together(&[
        &[append(X, 1), append(Y, 1_1)],
        &[append(X, 2), append(Y, 2_1)],
        &[read(X, &[1, 2]), read(Y, &[2_1, 1_1])],
    ]);
    let found = phenomena(&history).unwrap();
    assert_eq!(found[0].phenomenon, Phenomenon::DirtyWrite);
    assert_eq!(found[0].because, "T0 was overwritten by T1, T1 was overwritten by T0");
}

#[test]
fn circular_information_flow() {
    let history = together(&[&[append(X, 1), read(Y, &[2])], &[append(Y, 2), read(X, &[1])]]);
    assert_eq!(shown(&history), [Phenomenon::Circular]);
}

#[test]
fn lost_updates() {
    let history = together(&[
        &[append(X, 1)],
        &[read(X, &[1]), append(X, 2)],
        &[read(X, &[1]), append(X, 3)],
        &[read(X, &[1, 2, 3])],
    ]);
    assert!(shown(&history).contains(&Phenomenon::LostUpdate));
    assert_eq!(violation(&history, Level::ReadCommitted).unwrap(), None);
    assert!(violation(&history, Level::Snapshot).unwrap().is_some());
}

#[test]
fn read_skew() {
    let history = together(&[&[append(X, 1), append(Y, 2)], &[read(X, &[]), read(Y, &[2])]]);
    assert_eq!(shown(&history), [Phenomenon::ReadSkew]);
    assert_eq!(violation(&history, Level::ReadCommitted).unwrap(), None);
}

#[test]
fn long_forks() {
    let history =
        together(&[&[append(X, 1)], &[append(Y, 2)], &[read(X, &[1]), read(Y, &[])], &[read(X, &[]), read(Y, &[2])]]);
    assert_eq!(shown(&history)[0], Phenomenon::LongFork);
    assert!(violation(&history, Level::Snapshot).unwrap().is_some());
}

#[test]
fn write_skew_is_a_snapshots_and_not_a_serial_orders() {
    let history =
        together(&[&[read(X, &[]), append(Y, 1)], &[read(Y, &[]), append(X, 2)], &[read(X, &[2]), read(Y, &[1])]]);
    assert_eq!(shown(&history), [Phenomenon::WriteSkew]);
    assert_eq!(violation(&history, Level::Snapshot).unwrap(), None);
    assert!(violation(&history, Level::Serializable).unwrap().is_some());
}

#[test]
fn write_skew_over_a_predicate() {
    let history = together(&[
        &[scanned(X, &[]), scanned(Y, &[]), append(Y, 1)],
        &[scanned(X, &[]), scanned(Y, &[]), append(X, 2)],
        &[read(X, &[2]), read(Y, &[1])],
    ]);
    assert_eq!(shown(&history), [Phenomenon::PredicateSkew]);
    assert_eq!(violation(&history, Level::Snapshot).unwrap(), None);
}

#[test]
fn a_write_that_was_acknowledged_and_is_gone_shows_in_real_time() {
    let mut history = together(&[&[append(X, 1)], &[read(X, &[])]]);
    history[1].began = 101;
    history[1].ended = Ended::Committed(102);
    assert_eq!(shown(&history), [Phenomenon::RealTime]);
    assert_eq!(violation(&history, Level::Serializable).unwrap(), None);
    assert!(violation(&history, Level::Strict).unwrap().is_some());
}

#[test]
fn causal_reverse_shows_in_real_time_alone() {
    let mut history = together(&[&[append(X, 1)], &[append(Y, 2)], &[read(X, &[]), read(Y, &[2])]]);
    (history[0].began, history[0].ended) = (0, Ended::Committed(1));
    (history[1].began, history[1].ended) = (2, Ended::Committed(3));
    assert_eq!(shown(&history), [Phenomenon::RealTime]);
}

#[test]
fn an_unknown_outcome_counts_once_it_was_seen() {
    let lost = |reads: &[&[u64]]| {
        let mut history = together(&[&[append(X, 1), append(Y, 2)]]);
        history[0].ended = Ended::Unknown;
        history.extend(together(&[&[read(X, reads[0]), read(Y, reads[1])]]));
        shown(&history)
    };
    assert_eq!(lost(&[&[], &[]]), []);
    assert_eq!(lost(&[&[1], &[2]]), []);
    assert_eq!(lost(&[&[1], &[]]), [Phenomenon::ReadSkew], "half of it");
}

#[test]
fn what_an_unknown_one_saw_of_itself_is_no_proof_that_it_committed() {
    let mut history = together(&[&[append(X, 1), read(X, &[1])], &[append(X, 2)], &[read(X, &[2])]]);
    history[0].ended = Ended::Unknown;
    assert_eq!(shown(&history), []);
}

#[test]
fn histories_that_are_none_are_refused() {
    let twice = together(&[&[append(X, 1)], &[append(Y, 1)]]);
    assert_eq!(phenomena(&twice), Err(Malformed::ElementUsedTwice(1)));
    let mut backwards = together(&[&[append(X, 1)]]);
    backwards[0].began = 200;
    assert_eq!(phenomena(&backwards), Err(Malformed::EndsBeforeItBegins(0)));
}

/// Runs committed transactions one after the other in an order, and says whether each read is explained.
fn explains(history: &[Transaction], order: &[usize]) -> bool {
    let mut lists = std::collections::BTreeMap::<u64, Vec<u64>>::new();
    order.iter().all(|index| {
        history[*index].acts.iter().all(|act| match act {
            Act::Append { key, element } => {
                lists.entry(*key).or_default().push(*element);
                true
            }
            Act::Read { key, list, .. } => lists.get(key).map_or(&[][..], Vec::as_slice) == list,
        })
    })
}

fn end(transaction: &Transaction) -> u64 {
    match transaction.ended {
        Ended::Committed(at) => at,
        Ended::Aborted | Ended::Unknown => u64::MAX,
    }
}

/// The dumb twin: tries every order.
fn some_order(history: &[Transaction], strict: bool, order: &mut Vec<usize>) -> bool {
    if order.len() == history.len() {
        return explains(history, order);
    }
    (0..history.len()).any(|next| {
        let placed = order.contains(&next);
        let waits = strict
            && (0..history.len()).any(|other| !order.contains(&other) && end(&history[other]) < history[next].began);
        if placed || waits {
            return false;
        }
        order.push(next);
        let found = some_order(history, strict, order);
        order.pop();
        found
    })
}

/// Transactions over two keys whose reads saw some beginning of the final lists, and one that reads all in the end.
fn histories() -> impl Strategy<Value = Vec<Transaction>> {
    let act = (0u64..2, any::<bool>(), 0usize..6);
    let transaction = (0u64..6, 1u64..6, prop::collection::vec(act, 1..4));
    (prop::collection::vec(transaction, 1..6), any::<u64>()).prop_map(|(shapes, luck)| {
        let mut elements: Vec<(u64, u64)> = Vec::new();
        let mut next = 0;
        for (_, _, acts) in &shapes {
            for (key, _, _) in acts.iter().filter(|(_, appends, _)| *appends) {
                next += 1;
                elements.push((*key, next));
            }
        }
        // Mostly in order, so that not every history is broken.
        if luck % 3 == 0 && elements.len() > 1 {
            let at = usize::try_from(luck / 3).unwrap_or(0) % (elements.len() - 1);
            elements.swap(at, at + 1);
        }
        let list = |key| elements.iter().filter(|(of, _)| *of == key).map(|(_, element)| *element).collect::<Vec<_>>();
        let lists = [list(0), list(1)];
        let mut next = 0;
        let mut history: Vec<_> = (0..)
            .zip(shapes)
            .map(|(client, (began, length, acts))| {
                let acts = acts.into_iter().map(|(key, appends, seen)| {
                    if appends {
                        next += 1;
                        return append(key, next);
                    }
                    let all = &lists[usize::try_from(key).unwrap()];
                    read(key, &all[..seen.min(all.len())])
                });
                let acts = acts.collect();
                Transaction { client, began, ended: Ended::Committed(began + length), acts }
            })
            .collect();
        let acts = vec![read(0, &lists[0]), read(1, &lists[1])];
        history.push(Transaction { client: 99, began: 100, ended: Ended::Committed(101), acts });
        history
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_judge_agrees_with_the_twin(history in histories()) {
        for (level, strict) in [(Level::Serializable, false), (Level::Strict, true)] {
            let judged = violation(&history, level).unwrap();
            let explained = some_order(&history, strict, &mut Vec::new());
            prop_assert_eq!(judged.is_none(), explained, "{:?}: {:?}", level, judged);
        }
    }

    #[test]
    fn what_a_level_forbids_a_stronger_one_forbids(history in histories()) {
        let forbidden = |level| violation(&history, level).unwrap().is_some();
        let levels = [Level::ReadCommitted, Level::Snapshot, Level::Serializable, Level::Strict];
        for pair in levels.windows(2) {
            prop_assert!(!forbidden(pair[0]) || forbidden(pair[1]));
        }
    }
}
