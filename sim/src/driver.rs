//! The placement driver, as the node runs it: where the system range is led, `placement`'s checker looks at the records and
//! has done what ranges need. The world adds a fresh machine for one that must not start any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_kv::Router;
use flotilla_placement::{CheckerConfig, RangeView, StoreState, StoreView, View, check};
use flotilla_types::{ConfTarget, KeySpan, Locality, RangeDescriptor, RangeId, StoreId};

use crate::time::lock;
use crate::world::{Changes, World};

const SYSTEM: RangeId = RangeId(3);
const SUSPECT_AFTER: Duration = Duration::from_secs(3);
/// Short, so that replacement happens within a run, and longer than most faults.
const DEAD_AFTER: Duration = Duration::from_secs(10);
const OPERATOR_TIME: Duration = Duration::from_secs(30);

/// Replicas that are out of order.
type Lost = Arc<Mutex<BTreeSet<(StoreId, RangeId)>>>;
type Pending = Arc<Mutex<BTreeMap<RangeId, ConfTarget>>>;

/// See the module's page.
#[derive(Default)]
pub(crate) struct Driver {
    /// Where it runs, and the operators under way there.
    runs: Option<(StoreId, u32, Pending)>,
    /// Machines that have a successor.
    replaced: BTreeSet<StoreId>,
}

impl Driver {
    /// Once a second.
    pub(crate) fn look(&mut self, world: &mut World) {
        self.replace_machines(world);
        let leads = |store: &StoreId| {
            world.node(*store).is_some_and(|node| {
                node.fleet.status().iter().any(|status| status.descriptor.range == SYSTEM && status.leads)
            })
        };
        let Some(here) = world.up().into_iter().find(leads) else { return };
        let boot = world.hosts.get(&here).map_or(0, |host| host.disk.boot);
        if self.runs.as_ref().is_none_or(|(store, of, _)| (*store, *of) != (here, boot)) {
            self.runs = Some((here, boot, Pending::default()));
        }
        let Some((_, _, pending)) = &self.runs else { return };
        let Some(node) = world.node(here) else { return };
        let (router, stores, lost) = (node.router.clone(), states(world), Arc::clone(&world.lost));
        world
            .executor
            .spawn(here, operate(router, stores, lost, Arc::clone(pending), Arc::clone(&world.changes), world.seed));
    }

    /// A machine whose disk lost something comes back under another name only.
    fn replace_machines(&mut self, world: &mut World) {
        let fenced: Vec<_> = world.hosts.values().filter(|host| host.fenced.is_some()).map(|host| host.store).collect();
        for store in fenced {
            if self.replaced.insert(store) {
                let next = world.hosts.keys().next_back().map_or(StoreId(1), |last| StoreId(last.0 + 1));
                world.note(&format!("{next} is bought for {store}"));
                world.add_store(next, &[]);
            }
        }
    }
}

fn states(world: &World) -> Vec<StoreView> {
    let state = |host: &crate::node::Host| match &host.node {
        Some(_) => StoreState::Up,
        None if host.fenced.is_some() => StoreState::Dead,
        None => match world.now().saturating_sub(host.down_since) {
            silent if silent < SUSPECT_AFTER => StoreState::Up,
            silent if silent < DEAD_AFTER => StoreState::Suspect,
            _ => StoreState::Dead,
        },
    };
    let view =
        |host| StoreView { store: crate::node::Host::id(host), locality: Locality::default(), state: state(host) };
    world.hosts.values().map(view).collect()
}

/// One look: reads the records, and begins what the checker wants.
async fn operate(router: Router, stores: Vec<StoreView>, lost: Lost, pending: Pending, changes: Changes, seed: u64) {
    let deadline = router.clock().mono() + Duration::from_secs(5);
    let Ok(ranges) = router.ranges(&KeySpan::ALL, deadline).await else { return };
    let mut seen = BTreeSet::new();
    let ranges: Vec<_> = ranges.into_iter().filter(|range| seen.insert(range.range)).collect();
    let mut wanted: Vec<(RangeDescriptor, ConfTarget)> = Vec::new();
    {
        let under_way = lock(&pending);
        let pending = |range: &RangeDescriptor| under_way.get(&range.range).cloned();
        let views = ranges.iter().map(|range| RangeView { descriptor: range.clone(), pending: pending(range) });
        let view = View { stores, ranges: views.collect() };
        let config = CheckerConfig { seed, ..CheckerConfig::default() };
        // Who has no replica any more, of whatever incarnation, has none that is out of order.
        let mut lost = lock(&lost);
        let gone = |(store, id): &(StoreId, RangeId)| {
            ranges.iter().any(|range| range.range == *id && range.on_store(*store).is_none())
        };
        lost.retain(|entry| !gone(entry));
        // Replicas that are out of order go first; the checker then finds too few.
        for range in ranges.iter().filter(|range| pending(range).is_none()) {
            let good = |votes: bool| {
                let some = range.replicas.iter().filter(move |replica| replica.kind.votes_incoming() == votes);
                let stores = some.map(|replica| replica.store);
                stores.filter(|store| !lost.contains(&(*store, range.range))).collect::<Vec<_>>()
            };
            let (voters, learners) = (good(true), good(false));
            if voters.len() + learners.len() < range.replicas.len() && voters.len() >= 2 {
                let target =
                    ConfTarget { voters: voters.into_iter().collect(), learners: learners.into_iter().collect() };
                wanted.push((range.clone(), target));
            }
        }
        for operator in check(&view, &config) {
            let planned = wanted.iter().any(|(other, _)| other.range == operator.range);
            if let Some(range) = ranges.iter().find(|range| range.range == operator.range && !planned) {
                wanted.push((range.clone(), operator.target));
            }
        }
    }
    for (range, target) in wanted {
        lock(&pending).insert(range.range, target.clone());
        let deadline = router.clock().mono() + OPERATOR_TIME;
        // What was not reached is decided anew at the next look.
        let what = format!("{} to {:?}", range.range, target.voters);
        let done = router.change_replicas(&range.span.start, target, deadline).await;
        lock(&changes).push(("operators", what, done.map(drop)));
        lock(&pending).remove(&range.range);
    }
}
