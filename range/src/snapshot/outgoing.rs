//! Snapshots on their way out: which are wanted, which are open, and what they hold back.
//!
//! Every want of the library ends in a report (lessons section 3): a replica that waits for a snapshot hears nothing
//! else. A transfer that failed is not begun again at once.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_types::{LogIndex, RangeId, ReplicaId, StoreId};

use crate::message::SnapshotId;

/// Transfers that a store sends at once.
const OPEN_MAX: usize = 4;
/// How long a replica rests after a transfer before it gets another.
const REST: Duration = Duration::from_secs(1);

/// A transfer under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) range: RangeId,
    pub(crate) to: ReplicaId,
    /// The applied index that it shows: the log keeps what follows.
    pub(crate) at: LogIndex,
}

/// All of a store.
#[derive(Debug)]
pub(crate) struct Outgoing {
    store: StoreId,
    next: u64,
    open: BTreeMap<SnapshotId, Open>,
    /// Wanted, and from when on.
    wanted: BTreeMap<(RangeId, ReplicaId), Duration>,
    /// Ended lately.
    rests: BTreeMap<(RangeId, ReplicaId), Duration>,
}

impl Outgoing {
    pub(crate) fn new(store: StoreId, boot: u32) -> Self {
        let next = u64::from(boot) << 32;
        Self { store, next, open: BTreeMap::new(), wanted: BTreeMap::new(), rests: BTreeMap::new() }
    }

    /// A replica waits for a snapshot.
    pub(crate) fn want(&mut self, range: RangeId, to: ReplicaId, mono: Duration) {
        let from = self.rests.get(&(range, to)).copied().unwrap_or_default().max(mono);
        self.wanted.entry((range, to)).or_insert(from);
    }

    /// What may be begun now, one transfer of a range at a time.
    pub(crate) fn due(&mut self, mono: Duration) -> Vec<(RangeId, ReplicaId)> {
        let mut due: Vec<(RangeId, ReplicaId)> = Vec::new();
        for (key, from) in &self.wanted {
            let busy = self.open.values().any(|open| open.range == key.0) || due.iter().any(|other| other.0 == key.0);
            if self.open.len() + due.len() < OPEN_MAX && *from <= mono && !busy {
                due.push(*key);
            }
        }
        for key in &due {
            self.wanted.remove(key);
        }
        due
    }

    /// When something wanted has rested enough.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        if self.open.len() >= OPEN_MAX {
            return None;
        }
        let free = self.wanted.iter().filter(|((range, _), _)| !self.open.values().any(|open| open.range == *range));
        free.map(|(_, from)| *from).min()
    }

    /// A transfer begins.
    pub(crate) fn begin(&mut self, open: Open) -> SnapshotId {
        self.next += 1;
        let id = SnapshotId { from: self.store, number: self.next };
        self.open.insert(id, open);
        id
    }

    /// A transfer is over, one way or the other.
    pub(crate) fn ended(&mut self, id: SnapshotId, mono: Duration) -> Option<Open> {
        let open = self.open.remove(&id)?;
        self.rests.retain(|_, until| *until > mono);
        self.rests.insert((open.range, open.to), mono + REST);
        Some(open)
    }

    /// The lowest index that an open transfer of the range shows.
    pub(crate) fn held(&self, range: RangeId) -> Option<LogIndex> {
        self.open.values().filter(|open| open.range == range).map(|open| open.at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_at_once_one_a_range_and_a_rest_between_two_to_the_same_replica() {
        let (start, second) = (Duration::from_secs(9), Duration::from_secs(1));
        let mut outgoing = Outgoing::new(StoreId(1), 3);
        for range in 1..=6 {
            outgoing.want(RangeId(range), ReplicaId(4), start);
        }
        outgoing.want(RangeId(1), ReplicaId(5), start);
        let due = outgoing.due(start);
        assert_eq!(due, (1..=4).map(|range| (RangeId(range), ReplicaId(4))).collect::<Vec<_>>());
        let begin = |(range, to)| Open { range, to, at: LogIndex(range.0 * 10) };
        let ids: Vec<_> = due.into_iter().map(|due| outgoing.begin(begin(due))).collect();
        assert_eq!((outgoing.due(start), outgoing.next_wake()), (vec![], None), "all places are taken");
        assert_eq!(outgoing.held(RangeId(1)), Some(LogIndex(10)));
        assert_eq!(outgoing.ended(ids[0], start).map(|open| open.range), Some(RangeId(1)));
        assert_eq!((outgoing.held(RangeId(1)), outgoing.ended(ids[0], start)), (None, None));
        outgoing.want(RangeId(1), ReplicaId(4), start);
        assert_eq!(outgoing.due(start), [(RangeId(1), ReplicaId(5))], "another replica need not rest");
        let other = outgoing.begin(begin((RangeId(1), ReplicaId(5))));
        outgoing.ended(ids[1], start);
        assert_eq!(outgoing.due(start), [(RangeId(5), ReplicaId(4))]);
        assert_eq!(outgoing.next_wake(), Some(start), "the sixth");
        outgoing.ended(other, start);
        assert_eq!(outgoing.due(start + second), [(RangeId(1), ReplicaId(4)), (RangeId(6), ReplicaId(4))]);
    }
}
