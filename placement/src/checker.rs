//! The checker: looks at every range and says what it needs most.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use flotilla_types::{ConfTarget, Generation, Locality, RangeDescriptor, RangeId, ReplicaDescriptor, StoreId};

/// What a store is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreState {
    /// Takes replicas.
    Up,
    /// Not heard of for a moment: keeps its replicas, gets none.
    Suspect,
    /// About to leave: its replicas move away.
    Draining,
    /// Not heard of for so long that its replicas are replaced.
    Dead,
}

/// A store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreView {
    /// Its id.
    pub store: StoreId,
    /// Where it stands.
    pub locality: Locality,
    /// What it is good for.
    pub state: StoreState,
}

/// A range, as its leader reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeView {
    /// Its descriptor.
    pub descriptor: RangeDescriptor,
    /// An operator for it is under way: nothing is decided until that is confirmed or has timed out.
    pub pending: Option<ConfTarget>,
}

/// The cluster, at one time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// All stores that ever joined and have not left for good.
    pub stores: Vec<StoreView>,
    /// All ranges.
    pub ranges: Vec<RangeView>,
}

/// What the checker aims at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckerConfig {
    /// Voters per range. Odd: an even number tolerates no more failures than one less.
    pub voters: usize,
    /// Replicas that may be under way to one store at a time: each is a snapshot.
    pub incoming_max: usize,
    /// Breaks ties, so that not every range chooses the same store.
    pub seed: u64,
}

impl Default for CheckerConfig {
    fn default() -> Self {
        Self { voters: 3, incoming_max: 2, seed: 0 }
    }
}

/// Why an operator is wanted; the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A membership change is half done.
    FinishJoint,
    /// One more failure takes the range's quorum.
    OneFromLoss,
    /// A replica is on a dead or leaving store.
    Replace,
    /// Voters are missing.
    Add,
    /// There are more voters than wanted.
    Remove,
    /// A learner is left on a dead store: whoever wanted it gone ended before that was done.
    Tidy,
}

/// What should become of a range. The range itself goes there step by step, moving its leader off a replica before
/// removing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// Which range.
    pub range: RangeId,
    /// The generation that the decision rests on.
    pub generation: Generation,
    /// Why.
    pub urgency: Urgency,
    /// Where to go.
    pub target: ConfTarget,
}

/// What every range needs most, as far as the budgets allow; most urgent first.
#[must_use]
pub fn check(view: &View, config: &CheckerConfig) -> Vec<Operator> {
    let mut room = Room::new(view, config);
    let wanted = view.ranges.iter().filter(|range| range.pending.is_none());
    let mut wanted: Vec<_> =
        wanted.filter_map(|range| Some((need(&range.descriptor, &room)?, &range.descriptor))).collect();
    wanted.sort_by_key(|(urgency, descriptor)| (*urgency, descriptor.range));
    wanted.into_iter().filter_map(|(urgency, descriptor)| operator(descriptor, urgency, &mut room)).collect()
}

/// The stores, and how much they can still take.
struct Room<'a> {
    stores: BTreeMap<StoreId, &'a StoreView>,
    replicas: BTreeMap<StoreId, usize>,
    incoming: BTreeMap<StoreId, usize>,
    config: &'a CheckerConfig,
}

impl<'a> Room<'a> {
    fn new(view: &'a View, config: &'a CheckerConfig) -> Self {
        let stores = view.stores.iter().map(|store| (store.store, store)).collect();
        let mut room = Self { stores, replicas: BTreeMap::new(), incoming: BTreeMap::new(), config };
        for range in &view.ranges {
            let held: BTreeSet<_> = range.descriptor.replicas.iter().map(|replica| replica.store).collect();
            held.iter().for_each(|store| *room.replicas.entry(*store).or_default() += 1);
            let coming = range.pending.iter().flat_map(|target| &target.voters).filter(|store| !held.contains(store));
            coming.for_each(|store| room.take(*store));
        }
        room
    }

    /// Counts a replica that is under way.
    fn take(&mut self, store: StoreId) {
        *self.replicas.entry(store).or_default() += 1;
        *self.incoming.entry(store).or_default() += 1;
    }

    /// A store that nobody knows is as good as dead.
    fn state(&self, store: StoreId) -> StoreState {
        self.stores.get(&store).map_or(StoreState::Dead, |store| store.state)
    }

    fn lives(&self, store: StoreId) -> bool {
        self.state(store) != StoreState::Dead
    }

    fn stays(&self, store: StoreId) -> bool {
        matches!(self.state(store), StoreState::Up | StoreState::Suspect)
    }

    fn locality(&self, store: StoreId) -> Locality {
        self.stores.get(&store).map(|store| store.locality.clone()).unwrap_or_default()
    }

    /// The domain in which a store differs from the others, summed: larger domains count more.
    fn diversity(&self, store: StoreId, others: &[StoreId]) -> usize {
        let here = self.locality(store);
        others.iter().filter(|other| **other != store).map(|other| here.diversity(&self.locality(*other))).sum()
    }

    /// The best store that holds nothing of the range yet.
    fn candidate(&self, range: RangeId, beside: &[StoreId], holders: &BTreeSet<StoreId>) -> Option<StoreId> {
        let free = self.stores.values().filter(|store| {
            let incoming = self.incoming.get(&store.store).copied().unwrap_or(0);
            let fresh = !holders.contains(&store.store) && !beside.contains(&store.store);
            store.state == StoreState::Up && fresh && incoming < self.config.incoming_max
        });
        let rank = |store: &&&StoreView| {
            let store = store.store;
            let held = self.replicas.get(&store).copied().unwrap_or(0);
            (Reverse(self.diversity(store, beside)), held, self.luck(range, store), store)
        };
        free.min_by_key(rank).map(|store| store.store)
    }

    fn luck(&self, range: RangeId, store: StoreId) -> u64 {
        // Fixed keys: the same on every node and in every run.
        let mut hasher = DefaultHasher::new();
        (self.config.seed, range, store).hash(&mut hasher);
        hasher.finish()
    }
}

/// What a range needs most, if anything can be done for it.
fn need(descriptor: &RangeDescriptor, room: &Room<'_>) -> Option<Urgency> {
    // Without a quorum no membership change commits: a person must decide, or the stores come back.
    if !descriptor.is_quorum(|replica| room.lives(replica.store)) {
        return None;
    }
    if descriptor.is_joint() {
        return Some(Urgency::FinishJoint);
    }
    let voters: Vec<_> = descriptor.voters_incoming().collect();
    let lost = voters.iter().filter(|replica| !room.lives(replica.store)).count();
    if lost > 0 {
        let survives = (voters.len() - lost - 1) * 2 > voters.len();
        return Some(if survives { Urgency::Replace } else { Urgency::OneFromLoss });
    }
    if voters.iter().any(|replica| !room.stays(replica.store)) {
        return Some(Urgency::Replace);
    }
    match voters.len() {
        few if few < room.config.voters => Some(Urgency::Add),
        many if many > room.config.voters => Some(Urgency::Remove),
        _ => descriptor.replicas.iter().any(|replica| !room.lives(replica.store)).then_some(Urgency::Tidy),
    }
}

/// The operator for a need, if there is a store for it.
fn operator(descriptor: &RangeDescriptor, urgency: Urgency, room: &mut Room<'_>) -> Option<Operator> {
    let voters: Vec<StoreId> = descriptor.voters_incoming().map(|replica| replica.store).collect();
    let target = match urgency {
        Urgency::FinishJoint | Urgency::Tidy => voters.clone(),
        Urgency::Remove => without_the_least_diverse(&voters, room),
        Urgency::OneFromLoss | Urgency::Replace | Urgency::Add => filled_up(descriptor, &voters, room)?,
    };
    let held: BTreeSet<_> = descriptor.replicas.iter().map(|replica| replica.store).collect();
    target.iter().filter(|store| !held.contains(store)).for_each(|store| room.take(*store));
    let target = ConfTarget { voters: target.into_iter().collect(), learners: Default::default() };
    Some(Operator { range: descriptor.range, generation: descriptor.generation, urgency, target })
}

/// The voters that stay, and new ones up to the number wanted. `None` if that would not be better than now: never fewer
/// voters than before or than wanted, and never an even number of them.
fn filled_up(descriptor: &RangeDescriptor, voters: &[StoreId], room: &Room<'_>) -> Option<Vec<StoreId>> {
    let mut target: Vec<_> = voters.iter().copied().filter(|store| room.stays(*store)).collect();
    let kept = target.len();
    // A learner that is there already is nearer to being a voter than a store that holds nothing.
    let learners = descriptor.replicas.iter().filter(|replica| !replica.kind.votes_incoming());
    let learners =
        learners.map(|replica: &ReplicaDescriptor| replica.store).filter(|store| room.state(*store) == StoreState::Up);
    target.extend(learners.take(room.config.voters.saturating_sub(kept)));
    let holders: BTreeSet<_> = descriptor.replicas.iter().map(|replica| replica.store).collect();
    while target.len() < room.config.voters {
        let Some(best) = room.candidate(descriptor.range, &target, &holders) else { break };
        target.push(best);
    }
    while target.len() > room.config.voters {
        target = without_the_least_diverse(&target, room);
    }
    // Short of stores: replace one for one what must go, and add only in pairs.
    if target.len().is_multiple_of(2) && target.len() > kept {
        target.pop();
    }
    let enough = target.len() >= voters.len().min(room.config.voters);
    let better = enough && target.len() % 2 == 1 && target != voters;
    better.then_some(target)
}

fn without_the_least_diverse(voters: &[StoreId], room: &Room<'_>) -> Vec<StoreId> {
    let worth =
        |store: &StoreId| (room.state(*store) == StoreState::Up, room.diversity(*store, voters), Reverse(*store));
    let least = voters.iter().copied().min_by_key(|store| worth(store));
    voters.iter().copied().filter(|store| Some(*store) != least).collect()
}
