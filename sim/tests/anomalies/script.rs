//! The language of the scripts. Each file is one anomaly:
//!
//! ```text
//! # What happens here, and why it would be wrong.
//! name: lost update (P4)
//! given: a=10 b=20
//!
//! T1 get a
//! T2 put a 11
//! T2 commit
//! T1 put a =a+1
//! T1 commit
//!
//! anomaly if T1 committed, T2 committed, finally a = 11
//! ```
//! All values are numbers, so that each key can be counted up; `=a+1` is one more than what the transaction read last at `a`.
//! The transactions begin with their first step; T1 works through store 1, T2 through store 2 and so on, modulo 3
//! (other seeds begin elsewhere).
//!
//! Steps: `get K`, `lock K` (get for update), `share K` (get for share), `put K V`, `delete K`, `increment K N`, `cas K OLD NEW`,
//! `scan K..K`, `delete-range K..K`, `savepoint`, `rollback-to` (the last savepoint), `commit`, `rollback`. Beside them the world moves: `cut S S` and `mend S S` (messages from
//! one store to another), `clock S MS` (a store's wall clock steps), `pause MS`,
//! `lead K S` (a store becomes the leader of a key's range), `split K`.
//!
//! The heads `pace: at once` (only without pauses between the steps), `token: T2 of T1` (a transaction begins with another's
//! causality token) are for the scripts about real time, and `alone: prevented` says that steps which are transactions of their
//! own cannot show the anomaly either.
//!
//! Conditions, all of which must hold; several lines are alternatives: `T1 committed`, `T1 committed before T2`,
//! `T1 read a = 10 then b = none` (answers in this order, others between them), `finally a = 11`.

use std::collections::BTreeMap;

/// What separates the script from the traces it left.
pub(crate) const TRACES: &str = "==== traces ====";

/// One anomaly.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) name: String,
    pub(crate) given: Vec<(String, i64)>,
    pub(crate) steps: Vec<Step>,
    /// It happened if all conditions of one of these hold.
    pub(crate) anomaly: Vec<Vec<Condition>>,
    /// Pauses between the steps would spoil it.
    pub(crate) only_at_once: bool,
    /// Who begins with whose token.
    pub(crate) tokens: BTreeMap<usize, usize>,
    /// Even steps that are transactions of their own do not show it.
    pub(crate) prevented_alone: bool,
    /// The text itself, without the traces behind it.
    pub(crate) head: String,
}

/// One line.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Txn { who: usize, deed: Deed, text: String },
    World(Event, String),
}

/// What happens beside the transactions.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Cut(u64, u64),
    Mend(u64, u64),
    Clock(u64, i64),
    Lead(String, u64),
    Split(String),
    Pause(u64),
}

/// What a transaction does.
#[derive(Debug, Clone)]
pub(crate) enum Deed {
    Get(String),
    Lock {
        key: String,
        exclusive: bool,
    },
    Put(String, Value),
    Delete(String),
    Increment(String, i64),
    CompareAndSet {
        key: String,
        expected: i64,
        new: i64,
    },
    Scan(String, String),
    DeleteRange(String, String),
    Savepoint,
    /// To the last savepoint.
    RollbackTo,
    Commit,
    Rollback,
}

/// What is written.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Number(i64),
    /// What the transaction read last at a key, and so much more.
    Read(String, i64),
}

/// Something to be seen when all is over.
#[derive(Debug, Clone)]
pub(crate) enum Condition {
    Committed(usize),
    CommittedBefore(usize, usize),
    Read(usize, Vec<(String, String)>),
    Finally(String, String),
}

/// Reads a script. Panics with the line that makes no sense: scripts are part of the test.
pub(crate) fn parse(text: &str) -> Script {
    let head = text.split_once(TRACES).map_or(text, |(head, _)| head);
    let mut script = Script {
        name: String::new(),
        given: Vec::new(),
        steps: Vec::new(),
        anomaly: Vec::new(),
        only_at_once: false,
        tokens: BTreeMap::new(),
        prevented_alone: false,
        head: head.trim_end().to_owned(),
    };
    for line in head.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if take_line(&mut script, line).is_none() {
            panic!("this line makes no sense: {line}");
        }
    }
    assert!(!script.name.is_empty() && !script.anomaly.is_empty(), "a script needs a name and a condition:\n{head}");
    script
}

fn take_line(script: &mut Script, line: &str) -> Option<()> {
    if let Some(name) = line.strip_prefix("name: ") {
        script.name = name.to_owned();
    } else if let Some(given) = line.strip_prefix("given: ") {
        for pair in given.split(' ') {
            let (key, value) = pair.split_once('=')?;
            script.given.push((key.to_owned(), value.parse().ok()?));
        }
    } else if let Some(conditions) = line.strip_prefix("anomaly if ") {
        script.anomaly.push(conditions.split(", ").map(condition).collect::<Option<_>>()?);
    } else if let Some(token) = line.strip_prefix("token: ") {
        let (to, of) = token.split_once(" of ")?;
        script.tokens.insert(who(to)?, who(of)?);
    } else if line == "pace: at once" {
        script.only_at_once = true;
    } else if line == "alone: prevented" {
        script.prevented_alone = true;
    } else {
        script.steps.push(step(line)?);
    }
    Some(())
}

/// `T1` is 1.
fn who(word: &str) -> Option<usize> {
    word.strip_prefix('T')?.parse().ok()
}

fn step(line: &str) -> Option<Step> {
    let words: Vec<_> = line.split(' ').collect();
    let text = line.to_owned();
    if let Some(event) = event(&words) {
        return Some(Step::World(event, text));
    }
    let (txn, rest) = words.split_first()?;
    Some(Step::Txn { who: who(txn)?, deed: deed(rest)?, text })
}

fn event(words: &[&str]) -> Option<Event> {
    Some(match *words {
        ["cut", from, to] => Event::Cut(from.parse().ok()?, to.parse().ok()?),
        ["mend", from, to] => Event::Mend(from.parse().ok()?, to.parse().ok()?),
        ["clock", store, by] => Event::Clock(store.parse().ok()?, by.parse().ok()?),
        ["lead", key, store] => Event::Lead(key.to_owned(), store.parse().ok()?),
        ["split", key] => Event::Split(key.to_owned()),
        ["pause", ms] => Event::Pause(ms.parse().ok()?),
        _ => return None,
    })
}

fn deed(words: &[&str]) -> Option<Deed> {
    let span = |word: &str| word.split_once("..").map(|(from, to)| (from.to_owned(), to.to_owned()));
    Some(match *words {
        ["get", key] => Deed::Get(key.to_owned()),
        ["lock", key] => Deed::Lock { key: key.to_owned(), exclusive: true },
        ["share", key] => Deed::Lock { key: key.to_owned(), exclusive: false },
        ["put", key, value] => Deed::Put(key.to_owned(), self::value(value)?),
        ["delete", key] => Deed::Delete(key.to_owned()),
        ["increment", key, by] => Deed::Increment(key.to_owned(), by.parse().ok()?),
        ["cas", key, expected, new] => {
            let (expected, new) = (expected.parse().ok()?, new.parse().ok()?);
            Deed::CompareAndSet { key: key.to_owned(), expected, new }
        }
        ["scan", spanned] => span(spanned).map(|(from, to)| Deed::Scan(from, to))?,
        ["delete-range", spanned] => span(spanned).map(|(from, to)| Deed::DeleteRange(from, to))?,
        ["savepoint"] => Deed::Savepoint,
        ["rollback-to"] => Deed::RollbackTo,
        ["commit"] => Deed::Commit,
        ["rollback"] => Deed::Rollback,
        _ => return None,
    })
}

fn value(word: &str) -> Option<Value> {
    let Some(read) = word.strip_prefix('=') else { return word.parse().ok().map(Value::Number) };
    let sign = read.find(['+', '-'])?;
    let (key, more) = read.split_at(sign);
    Some(Value::Read(key.to_owned(), more.parse().ok()?))
}

fn condition(text: &str) -> Option<Condition> {
    let pair = |pair: &str| pair.split_once(" = ").map(|(key, value)| (key.to_owned(), value.to_owned()));
    if let Some(of) = text.strip_prefix("finally ") {
        return pair(of).map(|(key, value)| Condition::Finally(key, value));
    }
    let (txn, rest) = text.split_once(' ')?;
    let txn = who(txn)?;
    if let Some(read) = rest.strip_prefix("read ") {
        return read.split(" then ").map(pair).collect::<Option<_>>().map(|reads| Condition::Read(txn, reads));
    }
    if let Some(other) = rest.strip_prefix("committed before ") {
        return Some(Condition::CommittedBefore(txn, who(other)?));
    }
    (rest == "committed").then_some(Condition::Committed(txn))
}
