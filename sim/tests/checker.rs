//! The judge is put to the test: histories of simulated clusters are accepted as they are, and rejected once they are
//! tampered with as a broken store would.

#![allow(clippy::unwrap_used, missing_docs)]

use bytes::Bytes;
use flotilla_check::{Operation, Outcome, Seen};
use flotilla_sim::{History, Options, run};
use flotilla_types::Key;

type Op = Operation<Bytes>;

fn history(seed: u64) -> History {
    let report = run(seed, Options { seconds: 60, trace: false });
    assert!(report.failures.is_empty(), "seed {seed}: {:#?}", report.failures);
    report.history
}

fn is_answered(operation: &Op) -> bool {
    operation.ended != Outcome::Unknown
}

fn ended(operation: &Op) -> u64 {
    match operation.ended {
        Outcome::Answered(at) => at,
        Outcome::Unknown => u64::MAX,
    }
}

/// A key's value for which there is a write that ended before another began which ended before a read began.
fn tampered(history: &History, tamper: impl Fn(&mut Vec<Op>) -> bool) -> (History, Key) {
    for key in history.keys() {
        let mut other = history.clone();
        if tamper(other.of_mut(&key)) {
            return (other, key);
        }
    }
    panic!("no key of this history serves the test");
}

fn rejected(history: &History, tamper: impl Fn(&mut Vec<Op>) -> bool) {
    let (mut other, key) = tampered(history, tamper);
    let violations = other.judge();
    assert_eq!(violations.len(), 1, "{key} was not rejected, or others were: {violations:#?}");
    assert!(violations[0].starts_with(&key.to_string()), "{violations:#?}");
}

/// The index of a read that saw a value, and of an answered write of another value that lies wholly between the write of
/// that value and the read... so that what was there before is stale.
fn read_after_two_writes(operations: &[Op]) -> Option<(usize, Option<Bytes>)> {
    operations.iter().enumerate().find_map(|(at, read)| {
        let Seen::Read(Some(seen)) = &read.seen else { return None };
        let wrote = operations.iter().find(|op| matches!(&op.seen, Seen::Wrote(Some(value)) if value == seen))?;
        // Something else that was there and acknowledged before this write began.
        let older = operations.iter().find(|op| {
            is_answered(op) && ended(op) < wrote.began && matches!(&op.seen, Seen::Wrote(Some(value)) if value != seen)
        })?;
        let Seen::Wrote(stale) = &older.seen else { return None };
        let sound = is_answered(read) && is_answered(wrote) && ended(wrote) < read.began;
        sound.then(|| (at, stale.clone()))
    })
}

#[test]
fn histories_as_they_are_are_accepted() {
    for seed in 20_000..20_004 {
        let mut history = history(seed);
        assert_eq!(history.judge(), Vec::<String>::new());
        assert_eq!(history.undecided, 0);
    }
}

#[test]
fn a_stale_read_is_rejected() {
    rejected(&history(20_000), |operations| match read_after_two_writes(operations) {
        Some((at, stale)) => {
            operations[at].seen = Seen::Read(stale);
            true
        }
        None => false,
    });
}

#[test]
fn a_lost_write_is_rejected() {
    rejected(&history(20_001), |operations| {
        // Where a removal of unknown outcome may still come, nothing that is missing proves anything.
        let removes = |op: &Op| matches!(op.seen, Seen::Wrote(None) | Seen::CompareAndSwap { new: None, .. });
        if operations.iter().any(|op| removes(op) && !is_answered(op)) {
            return false;
        }
        let last = operations.iter().filter(|op| is_answered(op)).map(ended).max().unwrap_or(0);
        let op = |began, seen| Operation { client: 99, began, ended: Outcome::Answered(began + 1), seen };
        operations.push(op(last + 1, Seen::Wrote(Some(Bytes::from_static(b"acknowledged")))));
        operations.push(op(last + 3, Seen::Read(None)));
        true
    });
}

#[test]
fn an_effect_that_comes_twice_is_rejected() {
    // A value is read, then another one that was written later, then the first again: its write took effect twice.
    rejected(&history(20_002), |operations| {
        let Some((_, stale)) = read_after_two_writes(operations) else { return false };
        let last = operations.iter().filter(|op| is_answered(op)).map(ended).max().unwrap_or(0);
        let began = last + 1;
        operations.push(Operation { client: 99, began, ended: Outcome::Answered(began + 1), seen: Seen::Read(stale) });
        true
    });
}

#[test]
fn a_value_that_nobody_wrote_is_rejected() {
    rejected(&history(20_003), |operations| {
        let Some(read) = operations.iter_mut().find(|op| matches!(op.seen, Seen::Read(Some(_)))) else { return false };
        read.seen = Seen::Read(Some(Bytes::from_static(b"phantom")));
        true
    });
}

#[test]
fn a_swap_that_happened_twice_is_rejected() {
    rejected(&history(20_000), |operations| {
        let swapped =
            |op: &&Op| matches!(&op.seen, Seen::CompareAndSwap { expected: None, swapped: Some(true), new: Some(_) });
        let Some(swap) = operations.iter().find(swapped).cloned() else { return false };
        // Right behind the first, before anybody can have removed the value.
        let (began, client) = (ended(&swap), 99);
        let quiet = operations.iter().all(|op| op.began > began + 2 || ended(op) < began || *op == swap);
        operations.push(Operation { client, began: began + 1, ended: Outcome::Answered(began + 2), ..swap });
        quiet
    });
}
