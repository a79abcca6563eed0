//! What a one-shot does at once: all reads in one round, and then all writes in one round, with the record beside them if the
//! commit is to be parallel.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flotilla_types::{
    Claim, Command, EndKind, EndTxn, Increment, Key, KeySpan, Outcome, RangeDescriptor, RangeReply, RecordOp, Reply,
    Row, Seq, SeqRange, Staged, Timestamp, TxnAnswer, TxnHeader, TxnMeta, TxnOp, TxnRefusal, Wait,
};
use futures::future::{OptionFuture, join, join_all};

use super::heartbeat::spans;
use super::operate::MENDED_MAX;
use super::{Phase, Txn, aborted};
use crate::send::{Cut, Failed, Place};
use crate::{KvError, RetryReason, Router};

/// Writes that a record may name as under way, and bytes of their keys. Beyond, the record is written after them.
pub(super) const IN_FLIGHT_MAX: usize = 512;
pub(super) const IN_FLIGHT_BYTES: usize = 64 << 10;

/// Writes that one request brings to a range: it holds up the range's thread for so long.
const GROUP_MAX: usize = 1024;

/// Writes of different keys.
#[derive(Debug, Default)]
pub(super) struct Writes {
    pub(super) blind: Vec<(Key, Option<Bytes>)>,
    pub(super) increments: Vec<Increment>,
}

/// What came of them.
#[derive(Debug, Default)]
pub(super) struct Laid {
    /// What counters hold now.
    pub(super) numbers: BTreeMap<Key, i64>,
    /// The record was written beside them, all of them are there at or below this: it is committed.
    pub(super) committed: Option<Timestamp>,
}

impl Writes {
    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.blind.iter().map(|(key, _)| key).chain(self.increments.iter().map(|increment| &increment.key))
    }

    fn weight(&self) -> usize {
        let values = self.blind.iter().map(|(_, value)| value.as_ref().map_or(0, Bytes::len));
        values.sum::<usize>() + self.keys().map(|key| key.as_bytes().len()).sum::<usize>()
    }

    /// Whether a record may name all of them.
    pub(super) fn may_stage(&self) -> bool {
        self.keys().count() <= IN_FLIGHT_MAX
            && self.keys().map(|key| key.as_bytes().len()).sum::<usize>() <= IN_FLIGHT_BYTES
    }
}

impl Txn {
    /// Reads several keys, which differ.
    pub(super) async fn read_at_once(
        &mut self,
        keys: Vec<Key>,
        deadline: Duration,
    ) -> Result<BTreeMap<Key, Option<Row>>, KvError> {
        let mut found = BTreeMap::new();
        let Some(first) = keys.first().cloned() else { return Ok(found) };
        self.stamps()?;
        self.seq = self.seq.next();
        let (router, mut wanted) = (self.router.clone(), keys);
        for _ in 0..MENDED_MAX {
            let mut header = self.header(&first, self.seq, Wait::Block)?;
            header.can_forward &= wanted.len() == 1;
            let asked = wanted.iter().map(|key| {
                let op = TxnOp::Get { key: key.clone(), lock: None };
                ask(&router, &header, key, op, deadline)
            });
            let answers = join_all(asked).await;
            let (mut again, mut newer) = (Vec::new(), Timestamp::ZERO);
            for (key, answer) in wanted.into_iter().zip(answers) {
                match answer {
                    Ok(reply) => {
                        let (TxnAnswer::Row(row), _) = self.took(reply)? else { return Err(self.strange()) };
                        self.reads.insert(KeySpan::point(key.clone()));
                        found.insert(key, row);
                    }
                    Err(Failed::Uncertain(existing)) => {
                        newer = newer.max(existing);
                        again.push(key);
                    }
                    Err(failed) => return Err(failed.into()),
                }
            }
            if again.is_empty() {
                return Ok(found);
            }
            let now = router.shared.clock.now()?;
            self.refresh_to(newer.max(now), deadline).await?;
            wanted = again;
        }
        Err(again_and_again(&first))
    }

    /// Writes, all at once. `stage`: with the record beside them. After an error nothing may be told before the record was
    /// asked, if it was written.
    pub(super) async fn write_at_once(
        &mut self,
        writes: Writes,
        stage: bool,
        deadline: Duration,
    ) -> Result<Laid, KvError> {
        let Some(first) = writes.keys().min().cloned() else { return Ok(Laid::default()) };
        self.stamps()?;
        self.seq = self.seq.next();
        let mut header = self.header(&first, self.seq, Wait::Block)?;
        header.can_forward &= !stage && writes.blind.len() + writes.increments.len() == 1;
        self.anchor(header.meta.clone());
        // Counted as locked from now on: what is not answered may be there.
        let weight = writes.weight();
        self.hold(writes.keys().cloned().collect(), weight, None)?;
        let (router, at) = (self.router.clone(), header.write);
        let record = stage.then(|| {
            let in_flight = writes.keys().map(|key| Claim { key: key.clone(), seq: header.seq }).collect();
            let lock_spans = spans(&self.beating.locks());
            self::stage(&router, &header.meta, at, in_flight, Vec::new(), lock_spans, deadline)
        });
        self.staged = stage;
        let lays = lay_all(&router, &header, writes.blind, deadline);
        let adds = writes
            .increments
            .iter()
            .map(|increment| ask(&router, &header, &increment.key, TxnOp::Increment(increment.clone()), deadline));
        let (locked, (added, record)) = join(lays, join(join_all(adds), OptionFuture::from(record))).await;

        let mut staged = self.judge_record(record)?;
        if let Some(clock) = &mut self.clock {
            clock.write = clock.write.max(locked?);
        }
        let (mut laid, mut again, mut newer) = (Laid::default(), Vec::new(), Timestamp::ZERO);
        for (increment, answer) in writes.increments.into_iter().zip(added) {
            match answer {
                Ok(reply) => self.added(increment.key, reply, &mut laid)?,
                Err(Failed::Uncertain(existing) | Failed::Refused(TxnRefusal::WriteTooOld { existing, .. })) => {
                    newer = newer.max(existing);
                    again.push(increment);
                }
                Err(failed) => return Err(failed.into()),
            }
        }
        if !again.is_empty() {
            staged = false;
            let now = router.shared.clock.now()?;
            self.refresh_to(newer.max(now), deadline).await?;
            for increment in again {
                self.add_again(increment, header.seq, deadline, &mut laid).await?;
            }
        }
        laid.committed = self.clock.filter(|clock| staged && clock.write == at).map(|_| at);
        Ok(laid)
    }

    /// What the record said to being staged: whether it is.
    pub(super) fn judge_record(&mut self, record: Option<Result<Reply, Failed>>) -> Result<bool, KvError> {
        match record {
            None => Ok(false),
            Some(Ok(Reply::Staged)) => Ok(true),
            Some(Ok(Reply::Ended(Outcome::Aborted))) => Err(aborted()),
            Some(Ok(_)) => Err(self.strange()),
            Some(Err(Failed::Refused(TxnRefusal::Pushed { above }))) => {
                if let Some(clock) = &mut self.clock {
                    clock.write = clock.write.max(above.next());
                }
                Ok(false)
            }
            Some(Err(failed)) => Err(failed.into()),
        }
    }

    fn added(&mut self, key: Key, reply: RangeReply, laid: &mut Laid) -> Result<(), KvError> {
        let (TxnAnswer::Number(value), locked) = self.took(reply)? else { return Err(self.strange()) };
        if let (Some(clock), Some(locked)) = (&mut self.clock, locked) {
            clock.write = clock.write.max(locked);
        }
        self.reads.insert(KeySpan::point(key.clone()));
        laid.numbers.insert(key, value);
        Ok(())
    }

    /// A counter that had changed since the snapshot.
    async fn add_again(
        &mut self,
        increment: Increment,
        seq: Seq,
        deadline: Duration,
        laid: &mut Laid,
    ) -> Result<(), KvError> {
        for _ in 0..MENDED_MAX {
            let header = self.header(&increment.key, seq, Wait::Block)?;
            let op = TxnOp::Increment(increment.clone());
            match ask(&self.router, &header, &increment.key, op, deadline).await {
                Ok(reply) => return self.added(increment.key, reply, laid),
                Err(Failed::Uncertain(existing) | Failed::Refused(TxnRefusal::WriteTooOld { existing, .. })) => {
                    let now = self.router.shared.clock.now()?;
                    self.refresh_to(existing.max(now), deadline).await?;
                }
                Err(failed) => return Err(failed.into()),
            }
        }
        Err(again_and_again(&increment.key))
    }

    /// Everything that makes it committed is there, and nobody else was told so: the record is made to say it behind the
    /// caller's back.
    pub(super) fn committed_by_stage(&mut self, at: Timestamp) {
        self.phase = Phase::Ended;
        self.beating.stop();
        if let Some(meta) = &self.meta {
            let locks = self.beating.locks().iter().cloned().collect();
            self.router.finish_staged(meta.clone(), at, self.ignored.clone(), locks);
        }
    }

    /// It failed after its record may have been staged: only the record knows whether somebody has found it committed.
    pub(super) async fn give_up_staged(&mut self, error: KvError, deadline: Duration) -> Result<Timestamp, KvError> {
        let Some(meta) = self.meta.clone().filter(|_| self.staged) else { return Err(error) };
        // What failed may have failed because the time was over.
        let until = deadline.max(self.router.shared.clock.mono() + GRACE);
        let ended = self.end(&meta, EndKind::Abort, until).await;
        self.phase = Phase::Ended;
        match ended {
            Ok(Outcome::Aborted) => {
                self.fails_by(&error);
                self.give_up("error");
                Err(error)
            }
            Ok(Outcome::Committed { at }) => {
                self.beating.stop();
                self.await_clock(at, until).await?;
                Ok(at)
            }
            Err(_) => Err(self.settle(&meta, format!("its record did not answer after: {error}"))),
        }
    }
}

/// How long the record of a failed transaction is waited for.
const GRACE: Duration = Duration::from_secs(2);

fn again_and_again(key: &Key) -> KvError {
    let why = format!("others wrote {key}, which it reads, again and again");
    KvError::RetryTxn { reason: RetryReason::WriteTooOld, why, key: Some(key.clone()), other: None }
}

async fn ask(
    router: &Router,
    header: &TxnHeader,
    key: &Key,
    op: TxnOp,
    deadline: Duration,
) -> Result<RangeReply, Failed> {
    let cut = |_: &RangeDescriptor| Cut::Ask(Command::Txn { header: Box::new(header.clone()), op: op.clone() });
    Ok(router.send(&Place::Of(key.clone()), deadline, cut).await?.0)
}

/// Writes the record of a transaction that is committed if these writes are there.
pub(super) async fn stage(
    router: &Router,
    meta: &TxnMeta,
    at: Timestamp,
    in_flight: Vec<Claim>,
    ignored: Vec<SeqRange>,
    lock_spans: Vec<KeySpan>,
    deadline: Duration,
) -> Result<Reply, Failed> {
    let (meta, kind) = (meta.clone(), EndKind::Stage(Staged { at, in_flight }));
    let (local, proofs) = (Vec::new(), Vec::new());
    let op = RecordOp::End(EndTxn { meta, kind, lock_spans, ignored, local, proofs, held: None });
    let cut = |_: &RangeDescriptor| Cut::Ask(Command::Record(Box::new(op.clone())));
    Ok(router.send(&Place::Of(op.meta().anchor.clone()), deadline, cut).await?.0.reply)
}

/// Lays intents, each range's in one request. Returns the highest timestamp that one of them got.
async fn lay_all(
    router: &Router,
    header: &TxnHeader,
    mut writes: Vec<(Key, Option<Bytes>)>,
    deadline: Duration,
) -> Result<Timestamp, Failed> {
    writes.sort_by(|a, b| a.0.cmp(&b.0));
    let mut groups: Vec<Vec<(Key, Option<Bytes>)>> = Vec::new();
    let mut owner: Option<std::sync::Arc<RangeDescriptor>> = None;
    for write in writes {
        match (&owner, groups.last_mut()) {
            (Some(owner), Some(group)) if group.len() < GROUP_MAX && owner.span.contains(&write.0) => group.push(write),
            _ => {
                owner = Some(router.find(&Place::Of(write.0.clone()), deadline).await?);
                groups.push(vec![write]);
            }
        }
    }
    let locked = join_all(groups.into_iter().map(|group| lay(router, header, group, deadline))).await;
    locked.into_iter().try_fold(Timestamp::ZERO, |highest, locked| Ok(highest.max(locked?)))
}

/// Lays the intents of what was one range when it was looked up.
async fn lay(
    router: &Router,
    header: &TxnHeader,
    group: Vec<(Key, Option<Bytes>)>,
    deadline: Duration,
) -> Result<Timestamp, Failed> {
    let (mut rest, mut highest) = (&group[..], Timestamp::ZERO);
    while let Some((first, _)) = rest.first() {
        let mut done = 1;
        let cut = |owner: &RangeDescriptor| {
            done = rest.iter().take_while(|(key, _)| owner.span.contains(key)).count().max(1);
            let op = TxnOp::Batch { writes: rest[..done].to_vec() };
            Cut::Ask(Command::Txn { header: Box::new(header.clone()), op })
        };
        let (reply, _) = router.send(&Place::Of(first.clone()), deadline, cut).await?;
        if let Reply::Txn { locked: Some(locked), .. } = reply.reply {
            highest = highest.max(locked);
        }
        rest = &rest[done..];
    }
    Ok(highest)
}
