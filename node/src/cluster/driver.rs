//! The placement driver: on the node that leads the system range, and nowhere else, it looks at the ranges, asks the
//! checker what they need, and has it done. Never on the path of data.
//!
//! A look costs a scan of the addressing records, so it happens when something moved (a descriptor, a store's state),
//! and else only now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_kv::{KvError, Router};
use flotilla_placement::{
    CheckerConfig, Operator, RangeView, StoreState, StoreView, Urgency, View, check, without_lost,
};
use flotilla_proto::internal as wire;
use flotilla_range::raft::Support as _;
use flotilla_types::{ConfTarget, Key, KeySpan, RangeDescriptor, RangeId, ReplicaId, StoreId};
use futures::future::join_all;
use tokio::task::JoinSet;

use super::keeper::RangeKeeper;
use crate::peer::Peers;
use crate::store::StoreHandle;

/// The range of the system keyspace: where it is led, the driver runs.
pub(super) const SYSTEM: RangeId = RangeId(3);
/// How often the states of stores are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How often all ranges are looked at although nothing is known to have moved.
const FULL_EVERY: Duration = Duration::from_secs(60);
/// Operators at once; each moves at most one replica.
const OPERATORS_MAX: usize = 16;
/// An operator that is not done by then is given up; the next look decides anew.
const OPERATOR_TIME: Duration = Duration::from_secs(60);
const LOOK_TIME: Duration = Duration::from_secs(20);
/// A store that does not say by then which replicas are out of order is asked at the next look.
const ASK_TIME: Duration = Duration::from_secs(2);
/// A store that was not heard of for this long gets no new replicas.
const SUSPECT_AFTER: Duration = Duration::from_secs(3);

/// See the module's page.
pub(super) struct Driver {
    pub(super) router: Router,
    pub(super) store: StoreHandle,
    pub(super) peers: Arc<Peers>,
    pub(super) keeper: Arc<RangeKeeper>,
    pub(super) config: CheckerConfig,
    /// A store that was not heard of for this long is dead: its replicas are replaced.
    pub(super) dead_after: Duration,
}

/// What the driver remembers between looks.
#[derive(Default)]
struct Memory {
    heard: BTreeMap<StoreId, Duration>,
    states: BTreeMap<StoreId, StoreState>,
    pending: BTreeMap<RangeId, ConfTarget>,
    looked: Option<Duration>,
    /// Something is known to have moved, or the last look found work.
    restless: bool,
}

impl Driver {
    /// Looks and acts, until it is dropped.
    pub(super) async fn run(self) {
        let mut memory = Memory { restless: true, ..Memory::default() };
        let mut operators = JoinSet::new();
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = self.keeper.moved.notified() => memory.restless = true,
                Some(done) = operators.join_next() => {
                    if let Ok(range) = done {
                        memory.pending.remove(&range);
                    }
                    memory.restless = true;
                }
            }
            self.note_stores(&mut memory);
            let leads = self.store.inspect_range(SYSTEM).await.is_some_and(|status| status.leads);
            if !leads {
                // Operators under way are the range's own doing; who leads next sees how far they came.
                memory.looked = None;
                memory.restless = true;
                continue;
            }
            if let Err(error) = self.look(&mut memory, &mut operators).await {
                tracing::debug!(%error, "the ranges could not be looked at");
                memory.restless = true;
            }
        }
    }

    fn note_stores(&self, memory: &mut Memory) {
        let (mono, support) = (self.store.clock().mono(), self.store.support());
        let mut states = BTreeMap::new();
        for member in self.peers.directory.members() {
            let store = member.store;
            let alive = store == self.store.store()
                || self.peers.is_up(store)
                || support.given(store).is_some_and(|given| given.active);
            let heard = memory.heard.entry(store).or_insert(mono);
            if alive {
                *heard = mono;
            }
            let silent = mono.saturating_sub(*heard);
            let state = match silent {
                _ if silent < SUSPECT_AFTER => StoreState::Up,
                _ if silent < self.dead_after => StoreState::Suspect,
                _ => StoreState::Dead,
            };
            states.insert(store, state);
        }
        if states != memory.states {
            memory.states = states;
            memory.restless = true;
        }
    }

    async fn look(&self, memory: &mut Memory, operators: &mut JoinSet<RangeId>) -> Result<(), KvError> {
        let mono = self.store.clock().mono();
        let due = memory.looked.is_none_or(|at| mono.saturating_sub(at) >= FULL_EVERY);
        // A look that follows at once sees what the one before set off, so they are spread a little.
        let rested = memory.looked.is_none_or(|at| mono.saturating_sub(at) >= EVERY / 2);
        if !(due || (memory.restless && rested)) || operators.len() >= OPERATORS_MAX {
            return Ok(());
        }
        memory.looked = Some(mono);
        memory.restless = false;
        let ranges = self.ranges(mono + LOOK_TIME).await?;
        let starts: BTreeMap<RangeId, Key> =
            ranges.iter().map(|range| (range.range, range.span.start.clone())).collect();
        let lost = self.out_of_order(memory).await;
        let replaced: Vec<_> = ranges.iter().filter_map(|range| replacement(range, &lost, memory)).collect();
        let mut view = self.view(memory, ranges);
        // What is out of order goes first; the checker fills up when that is done.
        view.ranges.retain(|range| !replaced.iter().any(|operator| operator.range == range.descriptor.range));
        for operator in replaced.into_iter().chain(check(&view, &self.config)) {
            if operators.len() >= OPERATORS_MAX {
                memory.restless = true;
                break;
            }
            let Some(start) = starts.get(&operator.range) else { continue };
            memory.pending.insert(operator.range, operator.target.clone());
            operators.spawn(carry_out(self.router.clone(), start.clone(), operator));
        }
        Ok(())
    }

    /// The replicas that the stores which are up hold for out of order.
    async fn out_of_order(&self, memory: &Memory) -> BTreeMap<RangeId, BTreeSet<ReplicaId>> {
        let up =
            memory.states.iter().filter(|(store, state)| **state == StoreState::Up && **store != self.store.store());
        let asked = up.map(|(store, _)| {
            self.peers.ask(*store, ASK_TIME, |mut client: wire::peer_client::PeerClient<_>| async move {
                client.out_of_order(wire::OutOfOrderRequest {}).await.map(|answer| answer.into_inner().replicas)
            })
        });
        let mut lost: BTreeMap<RangeId, BTreeSet<ReplicaId>> = BTreeMap::new();
        for replica in join_all(asked).await.into_iter().filter_map(Result::ok).flatten() {
            lost.entry(RangeId(replica.range_id)).or_default().insert(ReplicaId(replica.replica_id));
        }
        for (range, replica) in self.store.out_of_order().await {
            lost.entry(range).or_default().insert(replica);
        }
        lost
    }

    /// All ranges, that of meta1 first, which has no record.
    async fn ranges(&self, deadline: Duration) -> Result<Vec<RangeDescriptor>, KvError> {
        let ranges = self.router.ranges(&KeySpan::ALL, deadline).await?;
        // Told once each, however they were found.
        let mut seen = BTreeSet::new();
        Ok(ranges.into_iter().filter(|range| seen.insert(range.range)).collect())
    }

    fn view(&self, memory: &Memory, ranges: Vec<RangeDescriptor>) -> View {
        let members = self.peers.directory.members();
        let stores = members.into_iter().map(|member| StoreView {
            store: member.store,
            locality: member.contact.locality,
            state: memory.states.get(&member.store).copied().unwrap_or(StoreState::Suspect),
        });
        let ranges = ranges
            .into_iter()
            .map(|descriptor| RangeView { pending: memory.pending.get(&descriptor.range).cloned(), descriptor });
        View { stores: stores.collect(), ranges: ranges.collect() }
    }
}

/// The operator that takes replicas which are out of order out of a range.
fn replacement(
    descriptor: &RangeDescriptor,
    lost: &BTreeMap<RangeId, BTreeSet<ReplicaId>>,
    memory: &Memory,
) -> Option<Operator> {
    let range = descriptor.range;
    if memory.pending.contains_key(&range) {
        return None;
    }
    let lives = |store: StoreId| memory.states.get(&store).is_some_and(|state| *state != StoreState::Dead);
    let target = without_lost(descriptor, lost.get(&range)?, lives)?;
    tracing::info!(%range, ?target, "a replica that is out of order is taken out of its range");
    Some(Operator { range, generation: descriptor.generation, urgency: Urgency::Replace, target })
}

async fn carry_out(router: Router, start: Key, operator: Operator) -> RangeId {
    let Operator { range, urgency, target, .. } = operator;
    tracing::debug!(%range, ?urgency, ?target, "an operator begins");
    let deadline = router.clock().mono() + OPERATOR_TIME;
    match router.change_replicas(&start, target, deadline).await {
        Ok(_) => metrics::counter!("flotilla_operators_done_total").increment(1),
        Err(error) => {
            tracing::info!(%range, ?urgency, %error, "an operator was given up");
            metrics::counter!("flotilla_operators_given_up_total").increment(1);
            // A range that can do nothing at this moment is not asked again at once.
            tokio::time::sleep(EVERY).await;
        }
    }
    range
}
