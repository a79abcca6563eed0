//! A short set of seeds, judged; and that a seed replays.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use flotilla_sim::{Options, run};

const MINUTE: Options = Options { seconds: 60, trace: false };

#[test]
fn a_short_set_of_seeds_is_clean() {
    let (mut counts, mut operations) = (BTreeMap::<&str, u64>::new(), 0);
    for seed in 10_000..10_020 {
        let report = run(seed, MINUTE);
        assert!(report.failures.is_empty(), "seed {seed}: {:#?}\n{}", report.failures, report.tail.join("\n"));
        assert!(report.operations >= 500, "seed {seed}: only {} operations were answered", report.operations);
        report.counts.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
        operations += report.operations;
    }
    for fault in ["crashes", "partitions", "one-way partitions", "pauses", "stalled disks", "messages doubled"] {
        assert!(counts.get(fault).is_some_and(|count| *count > 0), "no {fault} in {operations} operations: {counts:?}");
    }
    let of_the_past = ["scans of the past: the same", "scans of the past: below the GC threshold"];
    for what in ["old versions collected"].into_iter().chain(of_the_past) {
        assert!(counts.get(what).is_some_and(|count| *count > 0), "no {what} in {operations} operations: {counts:?}");
    }
}

/// Each of these found a bug once (docs/simulation.md). What they do has changed since; they cost nothing.
#[test]
fn seeds_that_failed_once_are_clean() {
    for seed in [50, 73, 77, 79, 848, 1259, 1309, 1313, 2252, 3240, 3259, 3519, 10_618] {
        let report = run(seed, MINUTE);
        assert!(report.failures.is_empty(), "seed {seed}: {:#?}\n{}", report.failures, report.tail.join("\n"));
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    let hash = |seed| run(seed, Options { seconds: 30, ..MINUTE }).trace_hash;
    assert_eq!(hash(7), hash(7));
    assert_eq!(hash(8), hash(8));
    assert_ne!(hash(7), hash(8));
}
