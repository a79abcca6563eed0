//! Transactions at their gateway (docs/transactions.md, "Ways to commit").
//!
//! ```text
//!   Txn ── get, put, scan, … ──► operate ──► range by range            (operate.rs)
//!    │        met something newer ──► refresh: is what was read still true up there?   (refresh.rs)
//!    │ commit ──► refresh ──► EndTxn ──► the record's word             (commit.rs)
//!    │                                     └──► locks resolved, record collected, behind the caller's back (cleanup.rs)
//!    ├ writes that look at nothing are answered early, and proven later (pipeline.rs)
//!    └ heartbeats from the first lock on                               (heartbeat.rs)
//!
//!   one-shots: made and redone here until they pass, all at once       (one_shot.rs, at_once.rs)
//!   pushes, for requests that wait in a range; recovery of what was staged     (push.rs)
//!   what is open and who waits, for people; what is counted                    (registry.rs, meters.rs)
//! ```
//! Nothing is written when a transaction begins; one that only reads never has a record. The coordinator dies with whoever
//! holds the `Txn`: dropped without a commit it is rolled back, and if the whole node dies, whoever meets its locks finds that
//! nobody sends heartbeats any more.

mod at_once;
mod cleanup;
mod commit;
mod heartbeat;
mod meters;
mod one_shot;
mod operate;
mod pipeline;
mod push;
mod refresh;
pub(crate) mod registry;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_types::{Isolation, Key, KeySpan, Priority, RequestId, Seq, SeqRange, Timestamp, TxnId, TxnMeta, Wait};

use crate::{KvError, Router};
use heartbeat::Beating;
use meters::Cause;

pub use commit::Committed;
pub use one_shot::TxnResult;
pub use registry::{LockWait, OpenTxn};

/// How a transaction wants to be treated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnOptions {
    /// What it may see of others.
    pub isolation: Isolation,
    /// Who gives way.
    pub priority: Priority,
    /// Whoever is told of the commit afterwards, by whatever way, will see it: waits out the bound on clock offsets.
    pub strict: bool,
    /// A reading that some earlier operation returned: the transaction sees what that one saw.
    pub token: Option<Timestamp>,
    /// Reads the past at this timestamp, and locks nothing.
    pub at: Option<Timestamp>,
}

/// How transactions are carried out at this node: bounds on each, and switches of what makes them faster, which tests turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxnConfig {
    /// Keys that one may lock.
    pub locks_max: usize,
    /// Bytes of keys and values that one may write.
    pub bytes_max: usize,
    /// What is known as a whole and lies in one range is one write there.
    pub one_phase: bool,
    /// What is known as a whole writes its record beside its writes.
    pub parallel_commit: bool,
    /// A write that looks at nothing is answered before it is applied, and proven later.
    pub pipelining: bool,
    /// Locks that all lie in the record's range are resolved in the step that commits.
    pub local: bool,
}

impl Default for TxnConfig {
    fn default() -> Self {
        Self {
            locks_max: 262_144,
            bytes_max: 64 << 20,
            one_phase: true,
            parallel_commit: true,
            pipelining: true,
            local: true,
        }
    }
}

/// Counts a commit, by the way it took.
fn count_commit(path: &'static str) {
    metrics::counter!("flotilla_txn_commits_total", "path" => path).increment(1);
}

/// What one asks with what became of a commit whose answer was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnHandle {
    /// Which transaction.
    pub id: TxnId,
    /// Where its record lies.
    pub anchor: Key,
    /// When the anchor was chosen.
    pub anchored: Timestamp,
    /// The intention that it does.
    pub commit_id: RequestId,
}

impl From<&TxnMeta> for TxnHandle {
    fn from(meta: &TxnMeta) -> Self {
        Self { id: meta.id, anchor: meta.anchor.clone(), anchored: meta.anchored, commit_id: meta.commit_id }
    }
}

/// A moment within a transaction that one may go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Savepoint(Seq);

/// Where a transaction is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Active,
    /// A step failed: nothing but a rollback is left.
    Failed,
    Ended,
}

/// One transaction. It is rolled back when it is dropped without a commit.
pub struct Txn {
    router: Router,
    options: TxnOptions,
    id: TxnId,
    commit_id: RequestId,
    phase: Phase,
    /// Why it cannot be committed, to be counted at its end.
    cause: Option<Cause>,
    /// Set at the first operation; from then on it is listed.
    clock: Option<Stamps>,
    /// Set with the first lock.
    meta: Option<TxnMeta>,
    seq: Seq,
    savepoints: Vec<Seq>,
    ignored: Vec<SeqRange>,
    reads: Reads,
    bytes: usize,
    /// Where the record will lie, if that is known before the first lock.
    anchor: Option<Key>,
    beating: Arc<Beating>,
    /// Writes that were answered before they were applied, and not proven since.
    in_flight: BTreeMap<Key, Seq>,
    /// The step under way, and its first key: it may have locked something.
    sending: Option<(TxnMeta, Key)>,
    /// Its record may be staged.
    staged: bool,
    /// Of a conditional one: whether its comparisons held.
    held: Option<bool>,
}

/// The timestamps of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamps {
    born: Timestamp,
    /// What it reads.
    read: Timestamp,
    /// It commits at or above.
    write: Timestamp,
    /// What was acknowledged before it began lies at or below.
    limit: Timestamp,
}

/// What was read, to be looked at again if the commit comes out higher.
#[derive(Debug, Default)]
struct Reads {
    spans: Vec<KeySpan>,
    bytes: usize,
}

/// Bytes of spans that are kept apart; beyond, all become one.
const READS_BYTES: usize = 256 << 10;

/// What a write is likely to have read first lies so far back at most.
const LOOKS_BACK: usize = 64;

impl Reads {
    fn insert(&mut self, span: KeySpan) {
        if self.spans.last() == Some(&span) {
            return;
        }
        self.bytes += span.start.as_bytes().len() + span.end.as_bytes().len();
        self.spans.push(span);
        if self.bytes > READS_BYTES {
            self.condense();
        }
    }

    /// Whether a key is among the last spans that were read.
    fn may_hold(&self, key: &Key) -> bool {
        self.spans.iter().rev().take(LOOKS_BACK).any(|span| span.contains(key))
    }

    /// Joins what overlaps; if that is still too much, everything.
    fn condense(&mut self) {
        self.spans.sort();
        let mut joined: Vec<KeySpan> = Vec::new();
        for span in std::mem::take(&mut self.spans) {
            match joined.last_mut() {
                Some(last) if span.start <= last.end => last.end = span.end.max(last.end.clone()),
                _ => joined.push(span),
            }
        }
        let weigh = |spans: &[KeySpan]| -> usize {
            spans.iter().map(|span| span.start.as_bytes().len() + span.end.as_bytes().len()).sum()
        };
        if weigh(&joined) > READS_BYTES / 2
            && let (Some(first), Some(last)) = (joined.first(), joined.last())
        {
            joined = vec![KeySpan { start: first.start.clone(), end: last.end.clone() }];
        }
        self.bytes = weigh(&joined);
        self.spans = joined;
    }
}

impl Router {
    /// Begins a transaction. Nothing is sent before its first operation.
    ///
    /// # Errors
    /// The clock may not be read, or the causality token lies so far ahead that nobody can have got it from this cluster.
    pub fn begin(&self, options: TxnOptions) -> Result<Txn, KvError> {
        let (id, latest) = (self.request_id()?, self.latest()?);
        if let Some(at) = options.at.filter(|at| *at > latest) {
            return Err(KvError::FutureTimestamp { timestamp: at });
        }
        options.token.map_or(Ok(()), |token| not_ahead(token, latest))?;
        Ok(self.begin_as(id, options, id.into()))
    }

    /// What any node's clock may have reached by now.
    fn latest(&self) -> Result<Timestamp, KvError> {
        let clock = &self.shared.clock;
        Ok(clock.now()?.plus(clock.max_offset()))
    }

    /// Waits until this node's clock has reached a timestamp that some answer had. What is asked of any node from then on comes
    /// after that answer.
    ///
    /// # Errors
    /// It is none of this cluster's, or the deadline came first.
    pub async fn reach(&self, token: Timestamp, deadline: Duration) -> Result<(), KvError> {
        not_ahead(token, self.latest()?)?;
        let clock = &self.shared.clock;
        loop {
            let now = clock.now()?;
            if now >= token {
                return Ok(());
            }
            if clock.mono() >= deadline {
                return Err(KvError::DeadlineExceeded { why: "waiting for the clock to reach the token".to_owned() });
            }
            self.pause(token.since(now).max(Duration::from_millis(1)), deadline).await;
        }
    }

    /// Begins a transaction that does the intention of a client.
    fn begin_as(&self, commit_id: RequestId, options: TxnOptions, id: TxnId) -> Txn {
        Txn {
            router: self.clone(),
            options,
            id,
            commit_id,
            phase: Phase::Active,
            cause: None,
            clock: None,
            meta: None,
            seq: Seq::default(),
            savepoints: Vec::new(),
            ignored: Vec::new(),
            reads: Reads::default(),
            bytes: 0,
            anchor: None,
            beating: Arc::default(),
            in_flight: BTreeMap::new(),
            sending: None,
            staged: false,
            held: None,
        }
    }
}

impl Txn {
    /// Which transaction.
    #[must_use]
    pub const fn id(&self) -> TxnId {
        self.id
    }

    /// What one asks with what became of it; `None` as long as it has locked nothing.
    #[must_use]
    pub fn handle(&self) -> Option<TxnHandle> {
        self.meta.as_ref().map(TxnHandle::from)
    }

    /// What it reads; `None` before its first operation.
    #[must_use]
    pub fn read_timestamp(&self) -> Option<Timestamp> {
        self.clock.map(|clock| clock.read)
    }

    /// Marks a moment to go back to.
    pub fn savepoint(&mut self) -> Savepoint {
        self.savepoints.push(self.seq);
        Savepoint(self.seq)
    }

    /// Takes back all writes since a savepoint, which stays. Locks stay, too. A failed transaction may go on from there.
    ///
    /// # Errors
    /// It is no savepoint of this transaction, or was left behind by a rollback to an earlier one.
    pub fn rollback_to(&mut self, savepoint: Savepoint) -> Result<(), KvError> {
        let known = self.savepoints.iter().rposition(|seq| *seq == savepoint.0);
        let Some(at) = known.filter(|_| self.phase != Phase::Ended) else {
            return Err(KvError::Invalid { what: "the transaction has no such savepoint".to_owned() });
        };
        if self.beating.is_aborted() {
            return Err(aborted());
        }
        self.savepoints.truncate(at + 1);
        // What is taken back need not be there.
        self.in_flight.retain(|_, seq| *seq <= savepoint.0);
        if self.seq > savepoint.0 {
            self.ignore(SeqRange { from: savepoint.0.next(), to: self.seq });
        }
        (self.phase, self.cause) = (Phase::Active, None);
        Ok(())
    }

    /// Takes writes back. What lies within them need not be named any more.
    fn ignore(&mut self, taken: SeqRange) {
        self.ignored.retain(|range| range.from < taken.from);
        match self.ignored.last_mut() {
            Some(last) if last.to.next() >= taken.from => last.to = last.to.max(taken.to),
            _ => self.ignored.push(taken),
        }
    }

    /// Forgets a savepoint, and those after it; what was written since stays.
    pub fn release(&mut self, savepoint: Savepoint) {
        self.savepoints.retain(|seq| *seq < savepoint.0);
    }

    /// The timestamps, taken from the clock at the first operation.
    fn stamps(&mut self) -> Result<Stamps, KvError> {
        if let Some(stamps) = self.clock {
            return Ok(stamps);
        }
        let (now, limit) = (self.router.shared.clock.now()?, self.router.latest()?);
        let floor = self.options.token.map_or(now, |token| now.max(token.next()));
        let stamps = match self.options.at {
            // Nothing of the past is uncertain.
            Some(at) => Stamps { born: at, read: at, write: at, limit: at },
            None => Stamps { born: floor, read: floor, write: floor, limit: limit.max(floor) },
        };
        self.clock = Some(stamps);
        let (shared, options) = (&self.router.shared, &self.options);
        shared.registry.insert(self.id, options.isolation, options.priority, &self.beating, shared.clock.mono());
        Ok(stamps)
    }

    /// The record will lie here, whatever is locked first.
    fn anchor_at(&mut self, key: Key) {
        self.anchor = Some(key);
    }

    fn is_serializable(&self) -> bool {
        self.options.isolation == Isolation::Serializable
    }
}

/// A token that nobody can have got from this cluster is refused.
fn not_ahead(token: Timestamp, latest: Timestamp) -> Result<(), KvError> {
    if token <= latest {
        return Ok(());
    }
    let what = format!("the causality token {token} lies further ahead than clocks may differ: it is not ours");
    Err(KvError::Invalid { what })
}

fn aborted() -> KvError {
    KvError::TxnAborted { why: "another transaction needed its locks, or its heartbeats did not arrive".to_owned() }
}

/// How an operation of a transaction is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    wait: Wait,
    /// In the monotonic time of the router's clock.
    deadline: Duration,
    /// Whether it may lock something.
    locks: bool,
    /// It goes on with what another one began.
    is_piece: bool,
    pipelined: bool,
}

impl Call {
    const fn of(wait: Wait, deadline: Duration) -> Self {
        Self { wait, deadline, locks: false, is_piece: false, pipelined: false }
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            self.give_up("dropped");
        }
        if self.clock.is_some() {
            self.router.shared.registry.remove(self.id);
        }
    }
}
