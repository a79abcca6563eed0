//! The loop that every request goes through: find the range, choose a replica, ask, and go on from its answer.
//!
//! One retry loop for all, so that what is kept and dropped is said in one place:
//!
//! | met | kept | then |
//! |---|---|---|
//! | another leader, no replica here | request id | the next replica at once; all asked: look the range up again, pause |
//! | keys belong to another range | request id | the answer's descriptors go into the cache, cut again |
//! | not sent | request id | breaker, next replica |
//! | no answer, `Ambiguous` | request id, and that it may have been done | breaker, next replica |
//! | overloaded | request id, replica | the pause it asks for |
//!
//! A command that may have been done once ends as `Ambiguous` unless a retry with the same id is answered.

use std::sync::Arc;
use std::time::Duration;

use flotilla_types::{
    Command, Key, OneShot, RangeDescriptor, RangeError, RangeReply, RangeRequest, Reply, StoreId, TxnRefusal, Write,
    WriteResult,
};
use futures::future::{Either, select};
use smallvec::SmallVec;

use crate::backoff::Backoff;
use crate::{KvError, RetryReason, Router, SendError};

/// What a replica gets for its answer to travel, beyond the time in which it may work.
const TRAVEL: Duration = Duration::from_millis(250);
/// How long a store may take to answer that let another request go without an answer, and answered none since.
const SILENT_TIMEOUT: Duration = Duration::from_millis(250);
/// Silence lengthens the next attempt up to so many times the configured one.
const PATIENCE_FACTOR: u32 = 4;
/// How often a full queue is asked again before the caller is told.
const OVERLOADED_MAX: u32 = 5;

/// Where a request goes.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// To the owner of a key.
    Of(Key),
    /// To the owner of the keys right below one.
    Below(Key),
}

/// Why a command was not answered, before the layer above has judged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The caller learns this.
    Kv(KvError),
    /// The read met a version above its timestamp.
    Uncertain(flotilla_types::Timestamp),
    /// A transaction cannot do it as it stands.
    Refused(TxnRefusal),
}

impl From<KvError> for Failed {
    fn from(error: KvError) -> Self {
        Self::Kv(error)
    }
}

impl From<Failed> for KvError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Kv(error) => error,
            // Only reads at a gateway's timestamp are answered so, and their layer restarts them.
            Failed::Uncertain(at) => Self::FutureTimestamp { timestamp: at },
            Failed::Refused(TxnRefusal::LockHeld(by) | TxnRefusal::LockTimeout(by)) => Self::Locked(by),
            Failed::Refused(TxnRefusal::AlreadyCommitted { at, held }) => Self::AlreadyCommitted { at, held },
            Failed::Refused(TxnRefusal::Aborted) => Self::TxnAborted { why: TxnRefusal::Aborted.to_string() },
            Failed::Refused(refusal) => Self::RetryTxn {
                reason: match &refusal {
                    TxnRefusal::RefreshFailed { .. } => RetryReason::RefreshFailed,
                    TxnRefusal::Pushed { .. } => RetryReason::Pushed,
                    TxnRefusal::IntentMissing { .. } => RetryReason::WriteLost,
                    _ => RetryReason::WriteTooOld,
                },
                why: refusal.to_string(),
                key: refusal.key().cloned(),
                other: refusal.other(),
            },
        }
    }
}

/// What to do with the range that was found.
pub(crate) enum Cut {
    /// Ask it this.
    Ask(Command),
    /// Nothing to ask: the caller is told this. If it rests on a cached descriptor, the descriptor is read afresh first.
    Refuse(KvError),
}

/// What an attempt's outcome means for the loop.
enum Next {
    Replica,
    Route,
    Pause(Duration),
    Fail(Failed),
}

/// The state of one request's loop.
struct Attempts {
    /// Stores asked since the last pause.
    asked: SmallVec<[StoreId; 4]>,
    backoff: Backoff,
    /// An earlier attempt may have been done.
    maybe_done: Option<String>,
    /// What the last attempt met, for the error at the end.
    last: Option<KvError>,
    /// Since when the range answers that it is unavailable.
    unavailable_since: Option<Duration>,
    silences: u32,
    overloads: u32,
}

impl Attempts {
    /// The deadline passed.
    fn ended(self) -> KvError {
        match (self.maybe_done, self.last) {
            (Some(why), _) => KvError::Ambiguous { why },
            (None, Some(last)) => last,
            (None, None) => KvError::DeadlineExceeded { why: "it was not sent yet".to_owned() },
        }
    }

    /// A definite refusal: only of this attempt, if an earlier one may have been done.
    fn refused(&self, error: KvError) -> Next {
        Next::Fail(Failed::Kv(match &self.maybe_done {
            Some(why) => KvError::Ambiguous { why: format!("{why}; a retry was refused: {error}") },
            None => error,
        }))
    }
}

/// Whether a write changed nothing because of what it met, so that a later copy of it may change something.
fn leaves_no_trace(command: &Command, result: &WriteResult) -> bool {
    match (command, result) {
        (_, WriteResult::ConditionFailed { .. }) => true,
        (Command::Write { write: Write::Whole(whole), .. }, WriteResult::Whole { held: Some(held), rows: Some(_) }) => {
            !whole.branch(*held).iter().any(OneShot::writes)
        }
        _ => false,
    }
}

/// Whether a command changes nothing, so that it does not matter whether it was done.
fn only_reads(command: &Command) -> bool {
    match command {
        Command::Read { .. } => true,
        Command::Txn { op, .. } => !op.locks(),
        _ => false,
    }
}

impl Router {
    /// Sends what `cut` makes of the range at `place`, until it is answered or `deadline` passes. Also names the range
    /// that answered.
    pub(crate) async fn send(
        &self,
        place: &Place,
        deadline: Duration,
        mut cut: impl FnMut(&RangeDescriptor) -> Cut,
    ) -> Result<(RangeReply, Arc<RangeDescriptor>), Failed> {
        let shared = &self.shared;
        let mut attempts = Attempts {
            asked: SmallVec::new(),
            backoff: Backoff::new(shared.config.backoff_min, shared.config.backoff_max),
            maybe_done: None,
            last: None,
            unavailable_since: None,
            silences: 0,
            overloads: 0,
        };
        let mut doubted = false;
        loop {
            if shared.clock.mono() >= deadline {
                return Err(attempts.ended().into());
            }
            let descriptor = match self.find(place, deadline).await {
                Ok(found) => found,
                Err(error) => {
                    attempts.last.get_or_insert(error);
                    self.pause(attempts.backoff.pause(&shared.dice), deadline).await;
                    continue;
                }
            };
            let command = match cut(&descriptor) {
                Cut::Ask(command) => command,
                Cut::Refuse(error) if doubted => match attempts.refused(error) {
                    Next::Fail(failed) => return Err(failed),
                    _ => continue,
                },
                Cut::Refuse(_) => {
                    doubted = true;
                    shared.cache.evict(&descriptor);
                    continue;
                }
            };
            let Some(store) = shared.replicas.choose(&descriptor, &attempts.asked, shared.clock.mono()) else {
                // All were asked or do not answer: perhaps these are not its replicas any more.
                shared.cache.evict(&descriptor);
                attempts.asked.clear();
                attempts.last.get_or_insert_with(|| KvError::Unavailable {
                    range: Some(descriptor.range),
                    why: "none of its replicas answers".to_owned(),
                });
                self.pause(attempts.backoff.pause(&shared.dice), deadline).await;
                continue;
            };
            let next = match self.attempt(store, &descriptor, command.clone(), deadline, attempts.silences).await {
                Ok(reply) => {
                    shared.replicas.answered(descriptor.range, store);
                    shared.replicas.leads(descriptor.range, store);
                    match (&reply.reply, &attempts.maybe_done) {
                        // The attempt without an answer may still be on its way and find the value that it expects.
                        (Reply::Write(result), Some(why)) if leaves_no_trace(&command, result) => {
                            return Err(KvError::Ambiguous { why: why.clone() }.into());
                        }
                        _ => return Ok((reply, descriptor)),
                    }
                }
                Err(error) => self.digest(error, store, &descriptor, &command, &mut attempts),
            };
            match next {
                Next::Replica => attempts.asked.push(store),
                Next::Route => attempts.asked.clear(),
                Next::Pause(time) => self.pause(shared.dice.jitter(time * 2), deadline).await,
                Next::Fail(failed) => return Err(failed),
            }
        }
    }

    async fn attempt(
        &self,
        store: StoreId,
        descriptor: &RangeDescriptor,
        command: Command,
        deadline: Duration,
        silences: u32,
    ) -> Result<RangeReply, SendError> {
        let shared = &self.shared;
        let longest = match command {
            Command::Admin(_) => shared.config.admin_timeout,
            _ => shared.config.attempt_timeout * (1 << silences.min(2)).min(PATIENCE_FACTOR),
        };
        let longest = if shared.replicas.is_silent(store) { longest.min(SILENT_TIMEOUT) } else { longest };
        let left = deadline.saturating_sub(shared.clock.mono());
        let timeout = left.min(longest);
        let request = RangeRequest { range: descriptor.range, timeout, command };
        let sent = shared.transport.send(store, request);
        let silence = shared.clock.sleep((timeout + TRAVEL).min(left));
        match select(sent, silence).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => {
                shared.replicas.fell_silent(store);
                Err(SendError::Lost(format!("{store} did not answer within {timeout:?}")))
            }
        }
    }

    /// What an attempt's failure means.
    fn digest(
        &self,
        error: SendError,
        store: StoreId,
        descriptor: &RangeDescriptor,
        command: &Command,
        attempts: &mut Attempts,
    ) -> Next {
        let shared = &self.shared;
        let (range, mono) = (descriptor.range, shared.clock.mono());
        let error = match error {
            SendError::Range(error) => error,
            SendError::NotSent(why) => {
                shared.replicas.silent(range, store, mono);
                attempts.last = Some(KvError::Unavailable { range: Some(range), why });
                return Next::Replica;
            }
            SendError::Lost(why) => {
                shared.replicas.silent(range, store, mono);
                attempts.silences += 1;
                attempts.last = Some(KvError::Unavailable { range: Some(range), why: why.clone() });
                if !only_reads(command) {
                    attempts.maybe_done = Some(why);
                }
                return Next::Replica;
            }
        };
        shared.replicas.answered(range, store);
        let unavailable = KvError::Unavailable { range: Some(range), why: error.to_string() };
        if !matches!(error, RangeError::RangeUnavailable { .. }) {
            attempts.unavailable_since = None;
        }
        match error {
            RangeError::NotLeaseholder { leader, term, .. } => {
                shared.replicas.hinted(range, store, leader, term);
                attempts.last = Some(unavailable);
                Next::Replica
            }
            RangeError::RangeNotFound { .. } => {
                shared.cache.evict(descriptor);
                attempts.last = Some(unavailable);
                Next::Replica
            }
            RangeError::StoreNotServing { .. } => {
                attempts.last = Some(unavailable);
                Next::Replica
            }
            RangeError::RangeUnavailable { .. } => {
                let since = *attempts.unavailable_since.get_or_insert(mono);
                if mono.saturating_sub(since) >= shared.config.patience {
                    return attempts.refused(unavailable);
                }
                attempts.last = Some(unavailable);
                Next::Replica
            }
            RangeError::RangeMismatch { known, .. } => {
                known.into_iter().for_each(|known| drop(shared.cache.insert(known)));
                let learnt = shared.cache.knows_newer(&descriptor.span.start, descriptor.generation);
                shared.cache.evict(descriptor);
                attempts.last = Some(unavailable);
                if learnt { Next::Route } else { Next::Replica }
            }
            RangeError::Overloaded { queue, retry_after } => {
                attempts.overloads += 1;
                let overloaded = KvError::Overloaded { queue, retry_after };
                if attempts.overloads >= OVERLOADED_MAX {
                    return attempts.refused(overloaded);
                }
                attempts.last = Some(overloaded);
                Next::Pause(retry_after)
            }
            RangeError::Ambiguous { why } => {
                attempts.last = Some(unavailable);
                if matches!(command, Command::Read { .. }) {
                    return Next::Replica;
                }
                attempts.maybe_done = Some(why);
                Next::Replica
            }
            RangeError::DeadlineExceeded { .. } => {
                let why = format!("{range} could not begin it in time");
                attempts.last = Some(KvError::DeadlineExceeded { why });
                Next::Route
            }
            error @ RangeError::TooOld { .. } => Next::Fail(KvError::Ambiguous { why: error.to_string() }.into()),
            RangeError::Uncertain { existing, .. } => Next::Fail(Failed::Uncertain(existing)),
            RangeError::GenerationMismatch { current } => {
                shared.cache.evict(descriptor);
                shared.cache.insert((*current).clone());
                // The admin layer looks at the present descriptor itself, and knows what a repeat leaves behind.
                Next::Fail(KvError::GenerationMismatch { current }.into())
            }
            RangeError::Txn(TxnRefusal::LockTimeout(by)) => {
                // It ends with the attempt's time, which is shorter than the caller's.
                attempts.last = Some(KvError::Locked(by));
                Next::Route
            }
            RangeError::Txn(refusal) => Next::Fail(Failed::Refused(refusal)),
            RangeError::DiskFull { store } => attempts.refused(KvError::DiskFull { store }),
            RangeError::FutureTimestamp { timestamp } => attempts.refused(KvError::FutureTimestamp { timestamp }),
            RangeError::BelowGcThreshold { timestamp, threshold } => {
                attempts.refused(KvError::BelowGcThreshold { timestamp, threshold })
            }
            RangeError::Diverged { range } => attempts.refused(KvError::Diverged { range }),
            RangeError::Invalid { what } => attempts.refused(KvError::Invalid { what }),
        }
    }

    /// Waits, not beyond the deadline.
    pub(crate) async fn pause(&self, time: Duration, deadline: Duration) {
        let left = deadline.saturating_sub(self.shared.clock.mono());
        self.shared.clock.sleep(time.min(left)).await;
    }
}
