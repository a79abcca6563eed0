//! Plays a script at a level, step by step, in a cluster of three stores whose keys lie in four ranges, and says whether the
//! anomaly happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_kv::{KvError, TxnOptions};
use flotilla_sim::Cluster;
use flotilla_types::{Isolation, Timestamp, Write, WriteResult};

use crate::script::{Condition, Deed, Event, Script, Step};
use crate::session::{Asked, Said, Session, Told, encoded, key};

/// A step that was not answered for so long waits for somebody.
const WAITS: Duration = Duration::from_secs(3);
/// What waited is answered within this time after the other has ended.
const RESUMES: Duration = Duration::from_millis(500);
/// When the script is over, what still waits may go on for so long: others expire meanwhile, and deadlocks are broken.
const LAST_WAIT: Duration = Duration::from_secs(30);
/// The seed of the traces that are written down.
pub(crate) const FIRST_SEED: u64 = 1;
/// Longer than clocks may differ: what was written before a pause is never uncertain after it.
const PAUSE: Duration = Duration::from_secs(1);

/// What a transaction may see of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) name: &'static str,
    isolation: Isolation,
    strict: bool,
    /// Each step is a transaction of its own.
    alone: bool,
}

const fn level(name: &'static str, isolation: Isolation, strict: bool) -> Level {
    Level { name, isolation, strict, alone: false }
}

/// The columns of the table.
pub(crate) const LEVELS: [Level; 4] = [
    level("READ COMMITTED", Isolation::ReadCommitted, false),
    level("SNAPSHOT", Isolation::Snapshot, false),
    SERIALIZABLE,
    STRICT,
];
pub(crate) const SERIALIZABLE: Level = level("SERIALIZABLE", Isolation::Serializable, false);
pub(crate) const STRICT: Level = level("strict", Isolation::Serializable, true);
/// Nothing isolates: here a script must show what it looks for.
pub(crate) const ALONE: Level = Level { alone: true, ..level("each step alone", Isolation::Serializable, false) };

/// How fast the steps follow each other. At once, what others wrote before is uncertain and snapshots move up to it; with
/// pauses, they stay where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    AtOnce,
    WithPauses,
}

/// What came of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Played {
    /// The anomaly happened.
    pub(crate) possible: bool,
    /// How the store kept it away, in single words.
    pub(crate) means: BTreeSet<&'static str>,
    /// The steps with their answers.
    pub(crate) trace: String,
}

struct Play<'a> {
    script: &'a Script,
    level: Level,
    pace: Pace,
    cluster: Cluster,
    sessions: BTreeMap<usize, Session>,
    /// Whose step is known to wait.
    waiting: BTreeSet<usize>,
    /// By how many stores the gateways are moved on: other seeds try other ways.
    shift: u64,
    /// Who read what where, in this order.
    reads: Vec<(usize, String, String)>,
    /// Who committed, in the order in which they were told, and at what timestamp.
    committed: Vec<(usize, Timestamp)>,
    means: BTreeSet<&'static str>,
    trace: String,
}

/// Plays a script.
pub(crate) fn play(script: &Script, level: Level, pace: Pace, seed: u64) -> Played {
    let mut play = Play {
        script,
        level,
        pace,
        cluster: prepared(seed, &script.given),
        sessions: BTreeMap::new(),
        waiting: BTreeSet::new(),
        // Where clocks and links of single stores matter, it also matters who is where.
        shift: if script.only_at_once { 0 } else { seed - FIRST_SEED },
        reads: Vec::new(),
        committed: Vec::new(),
        means: BTreeSet::new(),
        trace: String::new(),
    };
    play.run();
    let rows = play.rows();
    play.note("finally", &rows);
    let possible = script.anomaly.iter().any(|all| all.iter().all(|condition| play.holds(condition, &rows)));
    assert_eq!(play.cluster.failures(), Vec::<String>::new(), "{} at {}:\n{}", script.name, level.name, play.trace);
    Played { possible, means: play.means, trace: play.trace }
}

/// Three stores; the keys below `b`, from `b`, from `p` and from `p5` on lie in ranges of their own, led by different stores.
fn prepared(seed: u64, given: &[(String, i64)]) -> Cluster {
    let mut cluster = Cluster::new(seed, 3);
    for cut in ["b", "p", "p5"] {
        assert!(cluster.split(&key(cut)), "the range is not cut at {cut}");
    }
    for (of, store) in [("a", 1), ("b", 2), ("p", 3), ("p5", 1)] {
        lead(&mut cluster, of, store);
    }
    for (name, number) in given {
        let write = Write::Put { key: key(name), value: encoded(*number) };
        let written = call(&mut cluster, move |router, deadline| async move {
            let id = router.request_id()?;
            router.write(id, write, deadline).await.map(|(result, _)| result)
        });
        assert_eq!(written, WriteResult::Done);
    }
    // Every gateway knows where the ranges are, so that a cut between two stores costs a script nothing else.
    for gateway in 1..=3 {
        for name in ["a", "b", "p", "p5"] {
            let read = cluster.get(gateway, &key(name), WAITS);
            assert!(read.is_some_and(|answer| answer.result.is_ok()), "{name} is not read through {gateway}");
        }
    }
    cluster.run_for(PAUSE);
    cluster
}

/// Makes a store the leader of a key's range.
fn lead(cluster: &mut Cluster, name: &str, store: u64) {
    // Who has led for a moment only may not hand over yet.
    for _ in 0..5 {
        if cluster.leader(&key(name)) != Some(store) {
            cluster.transfer(&key(name), store);
            cluster.run_for(Duration::from_millis(500));
        }
    }
    assert_eq!(cluster.leader(&key(name)), Some(store), "{name} is not led there");
}

/// A call of the test itself, which must succeed.
fn call<T: Send + 'static, F>(cluster: &mut Cluster, ask: impl FnOnce(flotilla_kv::Router, Duration) -> F) -> T
where
    F: Future<Output = Result<T, KvError>> + Send + 'static,
{
    let patience = Duration::from_secs(20);
    let pending = cluster.start(1, patience, ask).expect("the gateway is up");
    let limit = cluster.now() + patience;
    cluster.run_until(limit, || pending.is_answered());
    pending.take().expect("an answer").result.expect("a success")
}

impl Play<'_> {
    fn run(&mut self) {
        for step in &self.script.steps {
            match step {
                Step::Txn { who, deed, text } => self.ask(*who, Asked { deed: deed.clone(), text: text.clone() }),
                Step::World(event, text) => {
                    self.note(text, "");
                    self.happens(event);
                }
            }
            if self.pace == Pace::WithPauses {
                self.cluster.run_for(PAUSE);
            }
            self.resume(RESUMES);
        }
        self.resume(LAST_WAIT);
        assert!(
            self.sessions.values().all(|session| !session.is_busy()),
            "{} at {}: a step waits for ever\n{}",
            self.script.name,
            self.level.name,
            self.trace
        );
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Cut(from, to) => self.cluster.cut(*from, *to),
            Event::Mend(from, to) => self.cluster.mend(*from, *to),
            Event::Clock(store, by_ms) => self.cluster.step_clock(*store, *by_ms),
            Event::Lead(name, store) => lead(&mut self.cluster, name, *store),
            Event::Split(name) => assert!(self.cluster.split(&key(name)), "the range is not cut at {name}"),
            Event::Pause(ms) => self.cluster.run_for(Duration::from_millis(*ms)),
        }
    }

    /// Sends a step on its way, and waits for its answer or until it is clear that it waits.
    fn ask(&mut self, who: usize, asked: Asked) {
        let options = self.options(who);
        let (alone, gateway) = (self.level.alone, (who as u64 - 1 + self.shift) % 3 + 1);
        let session = self.sessions.entry(who).or_insert_with(|| Session::new(gateway, options, alone));
        if session.has_ended() {
            return self.note(&asked.text, "not done, the transaction has ended");
        }
        if session.is_busy() {
            session.behind.push_back(asked);
            return;
        }
        let text = asked.text.clone();
        session.begin(&mut self.cluster, asked);
        let limit = self.cluster.now() + WAITS;
        self.cluster.run_until(limit, || session.is_answered());
        if !session.is_answered() {
            self.waiting.insert(who);
            self.means.insert("wait");
            self.note(&text, "waits");
        }
        self.take_answers();
    }

    fn options(&self, who: usize) -> TxnOptions {
        let giver = self.script.tokens.get(&who);
        let token = giver.and_then(|giver| self.committed.iter().find(|(of, _)| of == giver)).map(|(_, at)| *at);
        TxnOptions { isolation: self.level.isolation, strict: self.level.strict, token, ..TxnOptions::default() }
    }

    /// Steps that waited may be answered now.
    fn resume(&mut self, within: Duration) {
        let limit = self.cluster.now() + within;
        while self.sessions.values().any(Session::is_busy) && self.cluster.now() < limit {
            let sessions = &self.sessions;
            self.cluster.run_until(limit, || sessions.values().any(Session::is_answered));
            self.take_answers();
        }
    }

    /// Takes what answers there are, in the order in which they came, and sends what stood behind these steps.
    fn take_answers(&mut self) {
        let told = self.sessions.iter_mut().filter_map(|(who, session)| session.take().map(|told| (*who, told)));
        let mut told: Vec<_> = told.collect();
        told.sort_by_key(|(_, told)| told.at);
        for (who, told) in told {
            self.heard(who, &told);
            let behind = self.sessions.get_mut(&who).map(|session| std::mem::take(&mut session.behind));
            for asked in behind.unwrap_or_default() {
                self.ask(who, asked);
            }
        }
    }

    fn heard(&mut self, who: usize, told: &Told) {
        let mut answer = match &told.said {
            Ok(said) => said.shown(),
            Err(error) => self.refused(error),
        };
        match &told.said {
            Ok(Said::Saw(name, value)) => self.reads.push((who, name.clone(), value.clone())),
            Ok(Said::Committed(at)) => self.committed.push((who, *at)),
            _ => {}
        }
        if self.waiting.remove(&who) {
            answer.push_str(", after the wait");
        }
        self.note(&told.asked.text, &answer);
    }

    fn refused(&mut self, error: &KvError) -> String {
        let (word, shown) = match error {
            KvError::RetryTxn { why, .. } => ("restart", format!("RESTART: {why}")),
            KvError::TxnAborted { .. } => ("abort", "ABORTED by others".to_owned()),
            other => ("error", format!("ERROR: {other}")),
        };
        self.means.insert(word);
        shown
    }

    fn note(&mut self, step: &str, answer: &str) {
        let line = format!("  {step:<22} {answer}");
        self.trace.push_str(line.trim_end());
        self.trace.push('\n');
    }

    /// All that is there in the end.
    fn rows(&mut self) -> String {
        let mut last = Session::new(1, TxnOptions::default(), true);
        let deed = Deed::Scan("a".to_owned(), "z".to_owned());
        last.begin(&mut self.cluster, Asked { deed, text: "the last scan".to_owned() });
        let limit = self.cluster.now() + LAST_WAIT;
        self.cluster.run_until(limit, || last.is_answered());
        match last.take().map(|told| told.said) {
            Some(Ok(Said::Saw(_, rows))) => rows,
            other => panic!("{}: the last scan failed: {other:?}", self.script.name),
        }
    }

    fn holds(&self, condition: &Condition, rows: &str) -> bool {
        let place = |who: &usize| self.committed.iter().position(|(committed, _)| committed == who);
        match condition {
            Condition::Committed(who) => place(who).is_some(),
            Condition::CommittedBefore(who, other) => {
                place(who).is_some_and(|first| place(other).is_some_and(|second| first < second))
            }
            Condition::Read(who, wanted) => {
                let mut seen = self.reads.iter().filter(|(of, _, _)| of == who);
                wanted.iter().all(|(name, value)| seen.any(|(_, at, saw)| (at, saw) == (name, value)))
            }
            Condition::Finally(name, value) => {
                let row = |row: &&str| row.split_once('=').is_some_and(|(at, _)| at == name);
                let found = rows.trim_matches(['{', '}']).split(' ').find(row).and_then(|row| row.split_once('='));
                found.map_or("none", |(_, found)| found) == value
            }
        }
    }
}
