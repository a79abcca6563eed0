//! Holds the arrows of docs/architecture.md: which crate may name which.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// For each crate, the crates of ours that it may name. What is not listed may not be named.
const ARROWS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("proto", &["types"]),
    ("storage", &["types"]),
    ("range", &["storage", "types", "proto"]),
    ("placement", &["types"]),
    ("kv", &["types"]),
    ("sql-lite", &["kv", "types"]),
    ("client", &["proto", "types"]),
    ("node", &["client", "kv", "placement", "proto", "range", "sql-lite", "storage", "types", "check"]),
    ("check", &[]),
    ("sim", &["sql-lite", "kv", "range", "placement", "storage", "check", "types"]),
    ("bench", &["client", "check", "types"]),
    ("xtask", &[]),
];

/// Crates that would bring IO or a runtime into rooms that promise to do without.
const BANNED: &[(&str, &[&str])] = &[
    ("types", &["tokio", "tonic", "rocksdb"]),
    ("range", &["tokio", "tonic", "rocksdb", "raft-engine"]),
    ("placement", &["tokio", "tonic", "rocksdb"]),
    ("kv", &["tokio", "tonic", "rocksdb"]),
    ("check", &["tokio", "tonic", "rocksdb"]),
    ("storage", &["tokio", "tonic"]),
];

fn normal_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata answers");
    let named = |package: &cargo_metadata::Package| {
        let normal = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
        normal.map(|d| d.name.clone()).collect()
    };
    metadata.packages.iter().map(|p| (p.name.to_string(), named(p))).collect()
}

#[test]
fn crates_name_only_what_the_arrows_allow() {
    let packages = normal_dependencies();
    let allowed: BTreeMap<_, _> = ARROWS.iter().map(|(from, to)| (format!("flotilla-{from}"), *to)).collect();
    for (package, dependencies) in &packages {
        let arrows =
            allowed.get(package).unwrap_or_else(|| panic!("{package} has no place in the house: add its arrows"));
        for dependency in dependencies.iter().filter_map(|d| d.strip_prefix("flotilla-")) {
            assert!(arrows.contains(&dependency), "{package} may not name flotilla-{dependency}");
        }
    }
}

#[test]
fn pure_rooms_do_without_io() {
    let packages = normal_dependencies();
    for (package, banned) in BANNED {
        let dependencies = packages.get(&format!("flotilla-{package}"));
        let dependencies = dependencies.unwrap_or_else(|| panic!("{package} is gone: take its ban along"));
        for name in *banned {
            assert!(!dependencies.contains(*name), "{package} may not name {name}");
        }
    }
}
