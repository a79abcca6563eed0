//! The placement driver: on the node that leads the system range, and nowhere else, it looks at the ranges, asks the
//! checker what they need, and has it done. Never on the path of data.
//!
//! A look costs a scan of the addressing records, so it happens when something moved (a descriptor, a store's state),
//! and else only now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_kv::{KvError, Router};
use flotilla_placement::{CheckerConfig, Operator, RangeView, StoreState, StoreView, View, check};
use flotilla_range::raft::Support as _;
use flotilla_types::{ConfTarget, Key, KeySpan, RangeDescriptor, RangeId, StoreId};
use tokio::task::JoinSet;

use super::keeper::RangeKeeper;
use crate::peer::Peers;
use crate::store::StoreHandle;

/// The range of the system keyspace: where it is led, the driver runs.
const SYSTEM: RangeId = RangeId(3);
/// How often the states of stores are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How often all ranges are looked at although nothing is known to have moved.
const FULL_EVERY: Duration = Duration::from_secs(60);
/// Operators at once; each moves at most one replica.
const OPERATORS_MAX: usize = 16;
/// An operator that is not done by then is given up; the next look decides anew.
const OPERATOR_TIME: Duration = Duration::from_secs(60);
const LOOK_TIME: Duration = Duration::from_secs(20);
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
        let view = self.view(memory, ranges);
        for operator in check(&view, &self.config) {
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
