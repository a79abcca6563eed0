//! Which ranges sleep here, by whom they rest on, and how those that have to wake are paced (docs/leases.md, section 7).
//!
//! Ranges of a store share few sets of stores, so what happens to a store costs as much as there are such sets, and not
//! as there are ranges: the sets of a dead leader doze until an election can be won, and then wake in turn; the sets of a
//! leader whose quorum still stands sleep on.
//!
//! ```text
//!  following[leader, voters] ─ support left ─► dozing[leader, voters] ─ an election can be won ─► quick
//!  leading[crew] ─ the quorum is gone, or one that was behind is back ─► quick ; a member is back ─► slow
//!  after a start, without a promise ─► starting
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_types::{RangeId, StoreId, Timestamp};

use crate::raft::{Support, majority_value};

/// Ranges woken in a second, per fleet.
const QUICK_PER_SECOND: u32 = 4000;
/// Ranges whose leader only lacks the promise of a store that is back: one heartbeat each.
const SLOW_PER_SECOND: u32 = 500;
/// After a start the wakes spread over so long, unless there are few.
const START_SPREAD_SECONDS: usize = 5;
const START_PER_SECOND_MIN: usize = 200;
/// How much of a second's wakes may come at once.
const BURST: Duration = Duration::from_millis(50);

/// One replica of a sleeping range, as its leader saw it when it fell asleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    pub(crate) store: StoreId,
    /// Counts in the quorum.
    pub(crate) votes: bool,
    /// The support epoch that its promise names; 0 without one.
    pub(crate) epoch: u64,
    /// The boot of its store.
    pub(crate) boot: u64,
    /// It lacks entries: its store was not alive.
    pub(crate) behind: bool,
}

/// The stores of a range, ascending.
type Crew = Arc<[Member]>;

/// The leader's store, and the stores of all voters, ascending.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Followed(StoreId, Arc<[StoreId]>);

#[derive(Debug, Clone)]
enum Place {
    Following(Followed),
    Leading(Crew),
    /// Since the start, without a promise.
    Starting,
}

#[derive(Debug, Default)]
struct Led {
    ranges: BTreeSet<RangeId>,
    /// They stand in the slow queue already.
    called: bool,
}

/// Ranges that wake one after the other: those of the system first, then by id.
#[derive(Debug)]
struct Queue {
    each: Duration,
    /// When the next one may wake.
    next: Duration,
    waiting: BTreeSet<(bool, RangeId)>,
}

impl Queue {
    fn new(per_second: u32) -> Self {
        Self { each: Duration::from_secs(1) / per_second, next: Duration::ZERO, waiting: BTreeSet::new() }
    }

    fn take(&mut self, mono: Duration) -> Option<RangeId> {
        if self.next > mono {
            return None;
        }
        let (_, range) = self.waiting.pop_first()?;
        self.next = self.next.max(mono.saturating_sub(BURST)) + self.each;
        Some(range)
    }

    fn next_wake(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(self.next)
    }
}

/// All sleeping ranges of a fleet. See the module's page.
#[derive(Debug)]
pub(super) struct Sleepers {
    own: StoreId,
    /// Where each range is noted, and whether it is one of the users'.
    places: BTreeMap<RangeId, (Place, bool)>,
    following: BTreeMap<Followed, BTreeSet<RangeId>>,
    /// Their leader's support was left in this epoch, and no election can be won yet.
    dozing: BTreeMap<Followed, (u64, BTreeSet<RangeId>)>,
    leading: BTreeMap<Crew, Led>,
    quick: Queue,
    slow: Queue,
    starting: Queue,
}

impl Sleepers {
    pub(super) fn new(own: StoreId) -> Self {
        Self {
            own,
            places: BTreeMap::new(),
            following: BTreeMap::new(),
            dozing: BTreeMap::new(),
            leading: BTreeMap::new(),
            quick: Queue::new(QUICK_PER_SECOND),
            slow: Queue::new(SLOW_PER_SECOND),
            starting: Queue::new(QUICK_PER_SECOND),
        }
    }

    /// A follower sleeps under its promise to a store.
    pub(super) fn follows(&mut self, range: RangeId, leader: StoreId, voters: Vec<StoreId>, users: bool) {
        let wanted = Followed(leader, voters.into());
        let key = self.following.get_key_value(&wanted).map_or(wanted, |(known, _)| known.clone());
        self.following.entry(key.clone()).or_default().insert(range);
        self.places.insert(range, (Place::Following(key), users));
    }

    /// A leader sleeps on the promises of its crew.
    pub(super) fn leads(&mut self, range: RangeId, crew: Vec<Member>, users: bool) {
        let wanted: Crew = crew.into();
        let key = self.leading.get_key_value(&wanted).map_or(wanted, |(known, _)| Arc::clone(known));
        let led = self.leading.entry(Arc::clone(&key)).or_default();
        led.ranges.insert(range);
        led.called = false;
        self.places.insert(range, (Place::Leading(key), users));
    }

    /// Found by a start, and promised to nobody who is supported: it wakes in its turn.
    pub(super) fn starts(&mut self, range: RangeId, users: bool) {
        self.places.insert(range, (Place::Starting, users));
        self.starting.waiting.insert((users, range));
        let per_second = (self.starting.waiting.len() / START_SPREAD_SECONDS).max(START_PER_SECOND_MIN);
        let per_second = u32::try_from(per_second).unwrap_or(QUICK_PER_SECOND).min(QUICK_PER_SECOND);
        self.starting.each = Duration::from_secs(1) / per_second;
    }

    /// The range is awake, or gone. Says whether it slept.
    pub(super) fn woke(&mut self, range: RangeId) -> bool {
        let Some((place, users)) = self.places.remove(&range) else { return false };
        for queue in [&mut self.quick, &mut self.slow, &mut self.starting] {
            queue.waiting.remove(&(users, range));
        }
        match place {
            Place::Starting => {}
            Place::Following(key) => {
                if let Some(ranges) = self.following.get_mut(&key) {
                    ranges.remove(&range);
                    if ranges.is_empty() {
                        self.following.remove(&key);
                    }
                }
                if let Some((_, ranges)) = self.dozing.get_mut(&key) {
                    ranges.remove(&range);
                    if ranges.is_empty() {
                        self.dozing.remove(&key);
                    }
                }
            }
            Place::Leading(key) => {
                if let Some(led) = self.leading.get_mut(&key) {
                    led.ranges.remove(&range);
                    if led.ranges.is_empty() {
                        self.leading.remove(&key);
                    }
                }
            }
        }
        true
    }

    /// Whether the range sleeps without a leader that it could name, or waits to be woken: a request wakes it at once.
    pub(super) fn is_restless(&self, range: RangeId) -> bool {
        match self.places.get(&range) {
            Some((Place::Following(key), _)) => !self.following.get(key).is_some_and(|ranges| ranges.contains(&range)),
            Some((Place::Starting, _)) => true,
            Some((Place::Leading(_), _)) | None => false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// This store left its support of `peer` in `epoch`: what followed it dozes.
    pub(super) fn support_left(&mut self, peer: StoreId, epoch: u64) {
        let from = Followed(peer, Arc::from([]));
        let of_peer = self.following.range(from..).take_while(|(key, _)| key.0 == peer);
        for key in of_peer.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            let Some(ranges) = self.following.remove(&key) else { continue };
            let (left, dozing) = self.dozing.entry(key).or_default();
            *left = epoch.max(*left);
            if dozing.is_empty() {
                *dozing = ranges;
            } else {
                dozing.extend(ranges);
            }
        }
    }

    /// Support or hints changed: which sets cannot sleep on.
    pub(super) fn look(&mut self, now: Timestamp, support: &dyn Support) {
        let own = self.own;
        let winnable = |Followed(leader, voters): &Followed, epoch| {
            let free = |store: &&StoreId| **store == own || support.hinted_free(**store, *leader, epoch);
            voters.iter().filter(free).count() * 2 > voters.len()
        };
        let ready = self.dozing.iter().filter(|(key, (epoch, _))| winnable(key, *epoch));
        for key in ready.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            let (_, ranges) = self.dozing.remove(&key).unwrap_or_default();
            enqueue(&mut self.quick, &self.places, &ranges);
        }
        for (crew, led) in &mut self.leading {
            let back = |member: &&Member| member.store != own && is_back(member, now, support);
            if quorum_until(crew, own, support) <= now || crew.iter().filter(back).any(|member| member.behind) {
                enqueue(&mut self.quick, &self.places, &led.ranges);
            } else if !led.called && crew.iter().any(|member| back(&member)) {
                led.called = true;
                enqueue(&mut self.slow, &self.places, &led.ranges);
            }
        }
    }

    /// Every leader wakes: its store hands over.
    pub(super) fn wake_leaders(&mut self) {
        for led in self.leading.values() {
            enqueue(&mut self.quick, &self.places, &led.ranges);
        }
    }

    /// The next range whose turn it is to wake.
    pub(super) fn next_due(&mut self, mono: Duration) -> Option<RangeId> {
        [&mut self.quick, &mut self.starting, &mut self.slow].into_iter().find_map(|queue| queue.take(mono))
    }

    pub(super) fn next_wake(&self) -> Option<Duration> {
        [&self.quick, &self.slow, &self.starting].into_iter().filter_map(Queue::next_wake).min()
    }
}

fn enqueue(queue: &mut Queue, places: &BTreeMap<RangeId, (Place, bool)>, ranges: &BTreeSet<RangeId>) {
    let users = |range| places.get(range).is_some_and(|(_, users)| *users);
    queue.waiting.extend(ranges.iter().map(|range| (users(range), *range)));
}

/// Leases 3.4, of all ranges with this crew.
fn quorum_until(crew: &[Member], own: StoreId, support: &dyn Support) -> Timestamp {
    let value = |member: &Member| {
        if member.store == own { support.own_bound() } else { support.received_until(member.store, member.epoch) }
    };
    let voters = crew.iter().filter(|member| member.votes).map(value).collect();
    majority_value(voters).min(support.own_bound())
}

/// Alive now, in another epoch of its support or another boot than when the range fell asleep: it lacks the range's
/// promise, or does not know its leader.
fn is_back(member: &Member, now: Timestamp, support: &dyn Support) -> bool {
    let given = support.given(member.store).filter(|given| given.active);
    let started = given.is_some_and(|given| given.epoch >> 32 != member.boot);
    support.is_supported_by(member.store) && (started || support.received_until(member.store, member.epoch) <= now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Given;

    /// Store 1's view: whom it supports, who supports it, and who is hinted free of whom.
    #[derive(Default)]
    struct Stub {
        given: BTreeMap<StoreId, u64>,
        received: BTreeMap<StoreId, u64>,
        free: BTreeSet<(StoreId, StoreId)>,
    }

    const LATER: Timestamp = Timestamp::from_wall(1000);
    const NOW: Timestamp = Timestamp::from_wall(10);

    impl Support for Stub {
        fn given(&self, peer: StoreId) -> Option<Given> {
            self.given.get(&peer).map(|epoch| Given { epoch: *epoch, active: true, until: LATER })
        }

        fn received_until(&self, peer: StoreId, epoch: u64) -> Timestamp {
            if self.received.get(&peer) == Some(&epoch) { LATER } else { Timestamp::ZERO }
        }

        fn is_supported_by(&self, peer: StoreId) -> bool {
            self.received.contains_key(&peer)
        }

        fn own_bound(&self) -> Timestamp {
            LATER
        }

        fn hinted_free(&self, witness: StoreId, of: StoreId, _: u64) -> bool {
            self.free.contains(&(witness, of))
        }
    }

    fn drain(sleepers: &mut Sleepers, mono: Duration) -> Vec<u64> {
        let woken: Vec<_> = std::iter::from_fn(|| sleepers.next_due(mono)).collect();
        woken.iter().for_each(|range| assert!(sleepers.woke(*range)));
        woken.iter().map(|range| range.0).collect()
    }

    fn stores(ids: &[u64]) -> Vec<StoreId> {
        ids.iter().map(|id| StoreId(*id)).collect()
    }

    fn crew(third_behind: bool) -> Vec<Member> {
        let member = |store, epoch, behind| Member { store: StoreId(store), votes: true, epoch, boot: 0, behind };
        vec![member(1, 0, false), member(2, 7, false), member(3, if third_behind { 0 } else { 7 }, third_behind)]
    }

    fn all_well() -> Stub {
        let two = || [(StoreId(2), 7), (StoreId(3), 7)].into();
        Stub { given: two(), received: two(), free: BTreeSet::new() }
    }

    #[test]
    fn only_ranges_led_on_the_dead_store_wake_and_only_once_an_election_can_be_won() {
        let mut sleepers = Sleepers::new(StoreId(1));
        for range in 0..1000 {
            sleepers.follows(RangeId(range), StoreId(2 + range % 2), stores(&[1, 2, 3]), range != 500);
        }
        let mut support = all_well();
        let mono = Duration::from_secs(1);
        sleepers.support_left(StoreId(2), 7);
        support.given.remove(&StoreId(2));
        sleepers.look(NOW, &support);
        assert_eq!(drain(&mut sleepers, mono), Vec::<u64>::new(), "store 3 has not left store 2 yet: they doze");
        assert!(sleepers.is_restless(RangeId(0)) && !sleepers.is_restless(RangeId(1)));
        support.free.insert((StoreId(3), StoreId(2)));
        sleepers.look(NOW, &support);
        let first = drain(&mut sleepers, mono);
        assert_eq!(first.first(), Some(&500), "the system's range goes first");
        assert!((150..=250).contains(&first.len()), "a burst is bounded: {}", first.len());
        let rest = drain(&mut sleepers, mono + Duration::from_secs(1)).len()
            + drain(&mut sleepers, mono + Duration::from_secs(2)).len();
        assert!(first.len() + rest <= 500 && sleepers.len() >= 500);
        let mut later = mono + Duration::from_secs(2);
        while sleepers.next_wake().is_some() {
            later += Duration::from_millis(10);
            drain(&mut sleepers, later);
        }
        assert_eq!(sleepers.len(), 500, "those that store 3 leads sleep on");
    }

    #[test]
    fn a_leader_sleeps_on_while_its_quorum_stands_and_wakes_when_it_falls() {
        let mut sleepers = Sleepers::new(StoreId(1));
        (0..10).for_each(|range| sleepers.leads(RangeId(range), crew(false), true));
        let mut support = all_well();
        support.received.remove(&StoreId(3));
        support.given.remove(&StoreId(3));
        sleepers.look(NOW, &support);
        assert_eq!(sleepers.next_wake(), None, "two of three are enough");
        support.received.remove(&StoreId(2));
        sleepers.look(NOW, &support);
        assert_eq!(drain(&mut sleepers, Duration::from_secs(1)).len(), 10);
    }

    #[test]
    fn a_store_that_is_back_gets_one_heartbeat_a_range_slowly_and_at_once_what_it_missed() {
        let mut sleepers = Sleepers::new(StoreId(1));
        (0..10).for_each(|range| sleepers.leads(RangeId(range), crew(false), true));
        (10..20).for_each(|range| sleepers.leads(RangeId(range), crew(true), true));
        let mut support = all_well();
        (support.given, support.received) = ([(StoreId(2), 7)].into(), [(StoreId(2), 7)].into());
        sleepers.look(NOW, &support);
        assert_eq!(sleepers.next_wake(), None);
        support.given.insert(StoreId(3), 8);
        support.received.insert(StoreId(3), 8);
        sleepers.look(NOW, &support);
        sleepers.look(NOW, &support);
        let woken = drain(&mut sleepers, Duration::from_secs(1));
        assert_eq!(woken[..10], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
        assert_eq!(woken.len(), 20);
    }

    #[test]
    fn after_a_start_ten_thousand_ranges_wake_over_five_seconds() {
        let mut sleepers = Sleepers::new(StoreId(1));
        (0..10_000).for_each(|range| sleepers.starts(RangeId(range), true));
        let mut woken = 0;
        for tick in 0..400u64 {
            woken += drain(&mut sleepers, Duration::from_millis(tick * 10)).len();
        }
        assert!((7_500..9_000).contains(&woken), "{woken} in four seconds");
    }
}
