//! The auditor: on the node that leads the system range, and nowhere else, it has every range hashed by all its replicas now
//! and then, compares, and says what follows (docs/durability.md, "Checking that replicas agree").
//!
//! One range after the other, so that the load does not depend on how many there are. A range that was never checked, or
//! has another descriptor than at its last check (a split, a new replica), or has a replica on a store that came back, comes
//! soon; all others once in the interval.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_kv::{KvError, Router};
use flotilla_range::check::{Finding, Survey, compare, first_difference};
use flotilla_storage::keys;
use flotilla_types::{CheckId, Generation, Key, KeySpan, RangeDescriptor, RangeId, ReplicaHash, ReplicaId, StoreId};
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;

use super::Cluster;
use super::driver::SYSTEM;
use super::keeper::RangeKeeper;
use crate::store::StoreHandle;

/// How long one range's check may take: some hundred MiB at the rate at which stores hash.
const CHECK_TIME: Duration = Duration::from_secs(120);
/// How often the ranges are listed.
const LIST_EVERY: Duration = Duration::from_secs(300);
const LIST_TIME: Duration = Duration::from_secs(20);
/// What changed comes after so long, at most.
const SOON: Duration = Duration::from_secs(600);
/// Between two checks, at least: so many ranges cost as little as few.
const GAP: Duration = Duration::from_secs(2);
/// A replica may take so much longer than another.
const LAGGARD: Duration = Duration::from_secs(3);
/// How often a range that differs without a majority is looked at again.
const AGAIN: Duration = Duration::from_secs(30);

/// See the module's page.
pub(super) struct Auditor {
    pub(super) cluster: Arc<Cluster>,
    pub(super) router: Router,
    pub(super) store: StoreHandle,
    /// Tells the placement driver, which runs where this does.
    pub(super) keeper: Arc<RangeKeeper>,
    /// How often each range is checked.
    pub(super) every: Duration,
}

/// What is known of a range.
struct Known {
    start: Key,
    generation: Generation,
    due: Duration,
}

/// What the auditor remembers. It begins anew where the system range is led next.
#[derive(Default)]
struct Memory {
    ranges: BTreeMap<RangeId, Known>,
    reached: BTreeSet<StoreId>,
    listed: Option<Duration>,
}

impl Auditor {
    /// Checks, until it is dropped.
    pub(super) async fn run(self) {
        let mut memory = Memory::default();
        // Tests ask for short intervals.
        let gap = GAP.min(self.every / 4);
        let mut ticks = tokio::time::interval(gap);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.store.inspect_range(SYSTEM).await.is_some_and(|status| status.leads) {
                memory = Memory::default();
                continue;
            }
            let mono = self.store.clock().mono();
            if memory.listed.is_none_or(|at| mono.saturating_sub(at) >= LIST_EVERY.min(self.every)) {
                memory.listed = Some(mono);
                if let Err(error) = self.list(&mut memory).await {
                    tracing::debug!(%error, "the ranges could not be listed");
                    continue;
                }
            }
            let due = memory.ranges.iter().filter(|(_, known)| known.due <= mono).min_by_key(|(_, known)| known.due);
            let Some((range, start)) = due.map(|(range, known)| (*range, known.start.clone())) else { continue };
            tracing::debug!(%range, "a check begins");
            let pause = match self.check(&start).await {
                Ok(Finding::Same | Finding::Wrong(_)) => self.every,
                Ok(Finding::NoMajority) => AGAIN.min(self.every),
                Ok(Finding::Nothing) => SOON.min(self.every),
                Err(error) => {
                    tracing::debug!(%range, %error, "the range could not be checked");
                    SOON.min(self.every)
                }
            };
            if let Some(known) = memory.ranges.get_mut(&range) {
                known.due = self.store.clock().mono() + pause;
            }
        }
    }

    async fn list(&self, memory: &mut Memory) -> Result<(), KvError> {
        let mono = self.store.clock().mono();
        let reached: BTreeSet<StoreId> =
            self.cluster.nodes().into_iter().filter(|(_, live)| *live).map(|(member, _)| member.store).collect();
        let back: Vec<_> = reached.difference(&memory.reached).copied().collect();
        memory.reached = reached;
        let ranges = self.router.ranges(&KeySpan::ALL, mono + LIST_TIME).await?;
        let soon = mono + SOON.min(self.every / 10);
        let mut known = std::mem::take(&mut memory.ranges);
        for descriptor in ranges {
            let before = known.remove(&descriptor.range);
            let returned = back.iter().any(|store| descriptor.on_store(*store).is_some());
            let due = match before {
                Some(before) if before.generation == descriptor.generation && !returned => before.due,
                Some(before) => before.due.min(soon),
                None => soon,
            };
            let now = Known { start: descriptor.span.start.clone(), generation: descriptor.generation, due };
            memory.ranges.insert(descriptor.range, now);
        }
        Ok(())
    }

    /// One range: has it hashed, compares, and has done what follows.
    async fn check(&self, start: &Key) -> Result<Finding, KvError> {
        let check = CheckId(rand::random());
        let deadline = self.store.clock().mono() + CHECK_TIME;
        let range = self.router.check(start, check, deadline).await?;
        tracing::debug!(range = %range.range, %start, "a check is in the log");
        let surveys = self.surveys(&range, check, deadline).await;
        let hashes: Vec<ReplicaHash> = surveys.iter().map(|survey| survey.hash).collect();
        let finding = compare(&range, &hashes);
        metrics::counter!("flotilla_range_checks_total", "found" => label(&finding)).increment(1);
        match &finding {
            Finding::Nothing => {}
            // As long as one is silent, the others are not all.
            Finding::Same if hashes.len() == range.replicas.len() => self.tell_diverged(&range, false).await,
            Finding::Same => {}
            Finding::Wrong(wrong) => self.replace(&range, wrong, &surveys).await,
            Finding::NoMajority => {
                let other = surveys.iter().find(|survey| survey.hash.hash != surveys[0].hash.hash);
                let differs = other.and_then(|other| first_difference(&surveys[0].chunks, &other.chunks));
                let differs = differs.map_or_else(String::new, |key| at(&key));
                tracing::error!(
                    range = %range.range, ?hashes, differs,
                    "the replicas of a range differ and no majority says which is right: it serves nobody until a person \
                     decides (docs/operations.md)"
                );
                self.tell_diverged(&range, true).await;
            }
        }
        Ok(finding)
    }

    /// What the replicas hashed. Once one has answered, the others have as long again: a store that was away, and got its
    /// replica by a snapshot, will not answer at all.
    async fn surveys(&self, range: &RangeDescriptor, check: CheckId, deadline: Duration) -> Vec<Survey> {
        let asked = range.replicas.iter().map(|replica| async move {
            let survey = self.cluster.survey(replica.store, range.range, check, deadline).await;
            survey.inspect_err(|why| tracing::debug!(store = %replica.store, why, "no hash")).ok()
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut surveys = Vec::new();
        let began = Instant::now();
        let mut until = began + CHECK_TIME;
        while let Ok(Some(survey)) = tokio::time::timeout_at(until.into(), asked.next()).await {
            if let Some(survey) = survey {
                surveys.push(survey);
                let now = Instant::now();
                until = now + (now - began).max(LAGGARD);
            }
        }
        surveys
    }

    /// Gives up what most of the range's replicas contradict. The placement driver replaces it.
    async fn replace(&self, range: &RangeDescriptor, wrong: &[ReplicaId], surveys: &[Survey]) {
        let right = surveys.iter().find(|survey| !wrong.contains(&survey.hash.replica));
        let Some(right) = right else { return };
        for survey in surveys.iter().filter(|survey| wrong.contains(&survey.hash.replica)) {
            let Some(replica) = range.replica(survey.hash.replica) else { continue };
            let differs = first_difference(&survey.chunks, &right.chunks).map_or_else(String::new, |key| at(&key));
            let why = format!(
                "a check at {} found {} with {} pairs here (hash {:016x}) and {} pairs elsewhere (hash {:016x}){differs}",
                survey.hash.applied,
                range.range,
                survey.hash.pairs,
                survey.hash.hash,
                right.hash.pairs,
                right.hash.hash
            );
            tracing::error!(store = %replica.store, replica = %replica.replica, why, "a replica is wrong and is given up");
            if let Err(why) = self.cluster.judge(replica.store, range.range, Some((replica.replica, why)), false).await
            {
                tracing::warn!(store = %replica.store, why, "the store could not be told; the next check will try again");
            }
        }
        self.keeper.moved.notify_one();
    }

    async fn tell_diverged(&self, range: &RangeDescriptor, diverged: bool) {
        let told = range.replicas.iter().map(|replica| self.cluster.judge(replica.store, range.range, None, diverged));
        for why in join_all(told).await.into_iter().filter_map(Result::err) {
            tracing::debug!(range = %range.range, why, "a store could not be told");
        }
    }
}

/// Where a difference begins, for people.
fn at(physical: &[u8]) -> String {
    match keys::decode_version(physical) {
        Ok((key, timestamp)) => format!("; they differ at or behind {key} at {timestamp}"),
        Err(_) => "; they differ in the range's own records".to_owned(),
    }
}

const fn label(finding: &Finding) -> &'static str {
    match finding {
        Finding::Nothing => "nothing",
        Finding::Same => "same",
        Finding::Wrong(_) => "wrong",
        Finding::NoMajority => "no_majority",
    }
}
