//! The known anomalies of isolation, as scripts, at each level: which can happen, and what happens instead. In the manner of
//! Martin Kleppmann's Hermitage (github.com/ept/hermitage), against whole stores in virtual time.
//!
//! Each file of `scripts` is a script with the traces that it left. The table of `docs/isolation.md` is made of them. When
//! behaviour has changed on purpose, `UPDATE=1 cargo test --release -p flotilla-sim --test anomalies` writes both anew; the
//! difference is for review.

#![allow(clippy::unwrap_used)]

mod play;
mod script;
mod session;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use play::{ALONE, FIRST_SEED, LEVELS, Level, Pace, Played, SERIALIZABLE, STRICT, play};
use script::{Script, parse};
use table::{Shown, page_with_table};

/// What only `strict` must prevent.
const CAUSAL_REVERSE: &str = "causal reverse over several keys";

/// All scripts, in the order of the table. Read once: an update writes to their files.
fn scripts() -> &'static [(PathBuf, Script)] {
    static ALL: OnceLock<Vec<(PathBuf, Script)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/anomalies/scripts");
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let read = |file: PathBuf| {
            let script = parse(&fs::read_to_string(&file).unwrap());
            (file, script)
        };
        files.into_iter().map(read).collect()
    })
}

/// A script at a level, at each of its paces.
fn paces(script: &Script, level: Level, seed: u64) -> Vec<(Pace, Played)> {
    let paces: &[Pace] = if script.only_at_once { &[Pace::AtOnce] } else { &[Pace::AtOnce, Pace::WithPauses] };
    paces.iter().map(|pace| (*pace, play(script, level, *pace, seed))).collect()
}

fn is_possible(paces: &[(Pace, Played)]) -> bool {
    paces.iter().any(|(_, played)| played.possible)
}

/// The promise of the strong levels. The others promise less; what they do is in the table.
fn must_prevent(level: Level, script: &Script) -> bool {
    level == STRICT || (level == SERIALIZABLE && script.name != CAUSAL_REVERSE)
}

/// All scripts at all levels, played once for all tests.
fn all() -> &'static [Shown] {
    static ALL: OnceLock<Vec<Shown>> = OnceLock::new();
    ALL.get_or_init(|| {
        let shown = |(file, script): &'static (PathBuf, Script)| Shown {
            levels: LEVELS.iter().map(|level| paces(script, *level, FIRST_SEED)).collect(),
            file,
            script,
        };
        scripts().iter().map(shown).collect()
    })
}

/// Compares a file with what it should hold, or writes that.
fn assert_file(file: &Path, wanted: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(file, wanted).unwrap();
        return;
    }
    let found = fs::read_to_string(file).unwrap();
    let differ = found.lines().zip(wanted.lines()).find(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "{} is not what the scripts say. The first difference is\n  {differ:?}\nIf that is on purpose, run with UPDATE=1 \
         and review the change. It should be:\n{wanted}",
        file.display()
    );
}

#[test]
fn each_script_leaves_the_trace_that_is_written_behind_it() {
    for shown in all() {
        assert_file(shown.file, &shown.text());
    }
}

#[test]
fn the_table_of_the_docs_is_what_the_scripts_show() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/isolation.md");
    let page = fs::read_to_string(&file).unwrap();
    assert_file(&file, &page_with_table(&page, all()));
}

#[test]
fn serializable_and_strict_prevent_everything_but_causal_reverse_without_strict() {
    for shown in all() {
        for (level, paces) in LEVELS.iter().zip(&shown.levels) {
            let wrong = must_prevent(*level, shown.script) && is_possible(paces);
            assert!(!wrong, "{} at {}:\n{}", shown.script.name, level.name, shown.text());
        }
    }
}

#[test]
fn where_nothing_isolates_each_script_shows_what_it_looks_for() {
    for (file, script) in scripts() {
        let paces = paces(script, ALONE, FIRST_SEED);
        let traces: Vec<_> = paces.iter().map(|(_, played)| played.trace.as_str()).collect();
        assert_eq!(is_possible(&paces), !script.prevented_alone, "{}:\n{}", file.display(), traces.join("\n"));
    }
}

/// One more seed, or as many as `ANOMALY_SEEDS` says. They have other delays and other gateways.
#[test]
fn other_seeds_show_nothing_that_serializable_and_strict_must_prevent() {
    let seeds = std::env::var("ANOMALY_SEEDS").map_or(1, |seeds| seeds.parse().unwrap());
    for seed in FIRST_SEED + 1..=FIRST_SEED + seeds {
        for (_, script) in scripts() {
            for level in [SERIALIZABLE, STRICT].into_iter().filter(|level| must_prevent(*level, script)) {
                for (_, played) in paces(script, level, seed) {
                    assert!(!played.possible, "seed {seed}, {} at {}:\n{}", script.name, level.name, played.trace);
                }
            }
        }
    }
}
