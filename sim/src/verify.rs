//! What must be true once everything is healed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_range::check::hash;
use flotilla_storage::engine::Engine;
use flotilla_storage::locks;
use flotilla_types::{Key, KeySpan, LogIndex, RangeDescriptor, RangeId, ReplicaDescriptor, StoreId};

use crate::node::TIMES;
use crate::run::Run;
use crate::time::lock;
use crate::world::World;

/// Leases, section 10: every range is led again so soon after healing.
const LEASED_WITHIN: Duration = TIMES.support.saturating_mul(3).saturating_add(Duration::from_secs(5));

/// An abandoned transaction is taken for dead after five seconds; it is looked for every five, when it is ten seconds old.
const LOCKS_GONE_WITHIN: Duration = Duration::from_secs(60);

/// The newest descriptor of every range that lives somewhere.
fn ranges(world: &World) -> BTreeMap<RangeId, RangeDescriptor> {
    let mut newest: BTreeMap<RangeId, RangeDescriptor> = BTreeMap::new();
    for status in world.hosts.values().filter_map(|host| host.node.as_ref()).flat_map(|node| node.fleet.status()) {
        let descriptor = status.descriptor;
        let known = newest.entry(descriptor.range).or_insert_with(|| descriptor.clone());
        if descriptor.generation > known.generation {
            *known = descriptor;
        }
    }
    newest
}

fn led(world: &World) -> BTreeMap<RangeId, StoreId> {
    let nodes = world.hosts.iter().filter_map(|(store, host)| Some((store, host.node.as_ref()?)));
    let leading = nodes.flat_map(|(store, node)| node.fleet.status().into_iter().map(|status| (*store, status)));
    leading.filter(|(_, status)| status.leads).map(|(store, status)| (status.descriptor.range, store)).collect()
}

/// Goes on until it holds, or the time is over.
fn within(run: &mut Run, time: Duration, mut holds: impl FnMut(&World) -> bool) -> bool {
    let limit = run.world.now() + time;
    loop {
        if holds(&run.world) {
            return true;
        }
        if run.world.now() >= limit || !run.world.failures.is_empty() {
            return false;
        }
        let until = (run.world.now() + Duration::from_millis(100)).min(limit);
        run.go_until(until);
    }
}

/// Every range has a leader again, in time.
pub(crate) fn leased_in_time(run: &mut Run) {
    let all_led = |world: &World| {
        let led = led(world);
        ranges(world).keys().all(|range| led.contains_key(range))
    };
    let began = run.world.now();
    let in_time = within(run, LEASED_WITHIN, all_led);
    let world = &mut run.world;
    if in_time {
        let took = world.now() - began;
        world.note(&format!("all led after {:.1} s", took.as_secs_f64()));
    } else if world.failures.is_empty() {
        let led = led(world);
        let missing: Vec<_> = ranges(world).into_values().filter(|range| !led.contains_key(&range.range)).collect();
        world.fail(format!("not led {LEASED_WITHIN:?} after healing: {missing:?}"));
    }
}

/// Applied index and hash of a range's replicas, by store; `None` where there is none.
fn hashes(world: &World, range: &RangeDescriptor) -> BTreeMap<StoreId, Option<(LogIndex, u64)>> {
    let of = |replica: &ReplicaDescriptor| {
        let host = world.hosts.get(&replica.store)?;
        let status = host.node.as_ref()?.fleet.status();
        let status = status.into_iter().find(|status| status.descriptor.range == range.range)?;
        let view = host.disk.engine.snapshot();
        let hash = hash(view.as_ref(), &status.descriptor, replica.replica, status.applied).ok()?;
        Some((status.applied, hash.hash))
    };
    range.replicas.iter().map(|replica| (replica.store, of(replica))).collect()
}

/// All replicas of each range hold the same.
pub(crate) fn replicas_equal(run: &mut Run) {
    let mut last = Vec::new();
    let equal = within(run, Duration::from_secs(40), |world| {
        last.clear();
        for range in ranges(world).values() {
            let hashes = hashes(world, range);
            let first = hashes.values().next().copied().flatten();
            if first.is_none() || hashes.values().any(|hash| *hash != first) {
                last.push(format!("{range:?}: {hashes:?}"));
            }
        }
        last.is_empty()
    });
    if !equal && run.world.failures.is_empty() {
        run.world.fail(format!("replicas are not equal after 40 quiet seconds: {last:?}"));
    }
}

/// What dead coordinators left is found and cleared, although nobody asks for it.
pub(crate) fn no_lock_left(run: &mut Run) {
    let mut left = Vec::new();
    let clear = within(run, LOCKS_GONE_WITHIN, |world| {
        left.clear();
        for (store, host) in world.hosts.iter().filter(|(_, host)| host.node.is_some()) {
            let view = host.disk.engine.snapshot();
            let looked = locks::each(view.as_ref(), &KeySpan::ALL, |key, lock| {
                left.push(format!("{key} by {} on {store}", lock.txn.id));
                left.len() < 5
            });
            left.extend(looked.err().map(|error| error.to_string()));
        }
        left.is_empty()
    });
    if !clear && run.world.failures.is_empty() {
        run.world.fail(format!("{LOCKS_GONE_WITHIN:?} after healing there are locks: {left:?}"));
    }
}

/// The addressing records name an owner for every key, and no key twice.
pub(crate) fn records_cover_all(run: &mut Run) {
    for _ in 0..20 {
        let Some(answer) = read_records(run) else { continue };
        let wrong = judge(&answer, &ranges(&run.world));
        if wrong.is_none() || !run.world.failures.is_empty() {
            return;
        }
        run.world.note(&format!("records: {}", wrong.unwrap_or_default()));
        let until = run.world.now() + Duration::from_secs(1);
        run.go_until(until);
    }
    if run.world.failures.is_empty() {
        let (answer, truth) = (read_records(run), ranges(&run.world));
        run.world.fail(format!("the addressing records do not become true: {answer:?}, but {truth:?}"));
    }
}

fn read_records(run: &mut Run) -> Option<Vec<RangeDescriptor>> {
    let gateway = run.world.up().first().copied()?;
    let router = run.world.node(gateway)?.router.clone();
    let (deadline, told) = (run.world.now() + Duration::from_secs(10), Arc::new(Mutex::new(None)));
    let tell = Arc::clone(&told);
    run.world.executor.spawn(gateway, async move {
        let found = router.ranges(&KeySpan::ALL, deadline).await;
        *lock(&tell) = Some(found);
    });
    within(run, Duration::from_secs(11), |_| lock(&told).is_some());
    let answer = lock(&told).take();
    answer.and_then(Result::ok)
}

fn judge(records: &[RangeDescriptor], truth: &BTreeMap<RangeId, RangeDescriptor>) -> Option<String> {
    let mut at = Key::MIN;
    for record in records {
        if record.span.start != at {
            return Some(format!("{} begins at {}, not at {at}", record.range, record.span.start));
        }
        at = record.span.end.clone();
        if truth.get(&record.range) != Some(record) {
            return Some(format!("the record {record:?} is not {:?}", truth.get(&record.range)));
        }
    }
    (at != Key::MAX || records.len() != truth.len())
        .then(|| format!("{} records up to {at} for {} ranges", records.len(), truth.len()))
}
