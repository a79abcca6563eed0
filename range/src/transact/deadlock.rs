//! Deadlocks: transactions that wait for each other in a circle. Who waits for whom is known where the awaited one's record
//! lies; a pusher brings along who waits for it, so that the circle closes at every anchor on it after some rounds.
//!
//! The search is a hint: a lost edge costs time, a stale one costs a restart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use flotilla_types::{Edge, TxnId, Waiter};

/// How long an edge is believed in after its pusher was last heard of. Longer than the longest pause between two pushes.
const EDGE_LIVES: Duration = Duration::from_millis(800);
/// Edges that travel with a push.
pub(crate) const EDGES_MAX: usize = 256;
/// Edges that an anchor's range remembers.
const KEPT_MAX: usize = 16 << 10;

/// Who waits for transactions whose records lie in a range. Memory of its leader.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    /// By awaited and waiting transaction: until when it is believed, who waits, and who waits for that one.
    known: BTreeMap<(TxnId, TxnId), (Duration, Waiter, Vec<Edge>)>,
}

impl Edges {
    /// A pusher waits for `holder`.
    pub(crate) fn insert(&mut self, holder: TxnId, waiter: &Waiter, behind: Vec<Edge>, mono: Duration) {
        if self.known.len() >= KEPT_MAX {
            self.known.retain(|_, (until, _, _)| *until > mono);
        }
        if self.known.len() < KEPT_MAX {
            self.known.insert((holder, waiter.id), (mono + EDGE_LIVES, waiter.clone(), behind));
        }
    }

    /// A transaction has ended, or its waiter has.
    pub(crate) fn forget(&mut self, txn: TxnId) {
        self.known.retain(|(holder, waiter), _| *holder != txn && *waiter != txn);
    }

    /// Who waits for a transaction, and who waits for those.
    pub(crate) fn towards(&self, holder: TxnId, mono: Duration) -> Vec<Edge> {
        let mut edges = BTreeSet::new();
        let mine = self.known.range((holder, TxnId([0; 16]))..=(holder, TxnId([0xff; 16])));
        for ((holder, _), (until, waiter, behind)) in mine {
            if *until > mono {
                edges.insert(Edge { waiter: waiter.clone(), holder: *holder });
                edges.extend(behind.iter().cloned());
            }
        }
        edges.into_iter().take(EDGES_MAX).collect()
    }
}

/// Whom to abort if `waiter`, for whom those in `edges` wait, waits for `holder` and so closes a circle: the lowest priority,
/// then the youngest, then the largest id. All members of a circle come to the same answer.
pub(crate) fn victim(waiter: &Waiter, holder: &Waiter, edges: &[Edge]) -> Option<TxnId> {
    // The way from the holder along what it waits for, back to the waiter.
    let mut came_from: BTreeMap<TxnId, (TxnId, &Waiter)> = BTreeMap::new();
    let mut next = VecDeque::from([holder.id]);
    while let Some(at) = next.pop_front() {
        if at == waiter.id {
            let mut members = vec![waiter, holder];
            let mut step = at;
            while step != holder.id
                && let Some((before, who)) = came_from.get(&step)
            {
                members.push(who);
                step = *before;
            }
            let weakest = |who: &&Waiter| (std::cmp::Reverse(who.priority), who.min_ts, who.id);
            return members.into_iter().max_by_key(weakest).map(|who| who.id);
        }
        for edge in edges.iter().filter(|edge| edge.waiter.id == at) {
            if edge.holder != holder.id && !came_from.contains_key(&edge.holder) {
                came_from.insert(edge.holder, (at, &edge.waiter));
                next.push_back(edge.holder);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use flotilla_types::{Priority, Timestamp, keys};

    use super::*;

    fn waiter(n: u8, born: u64) -> Waiter {
        let anchor = keys::user(&[n]);
        Waiter { id: TxnId([n; 16]), anchor, priority: Priority::Normal, min_ts: Timestamp::from_wall(born) }
    }

    fn edge(waiter: &Waiter, holder: &Waiter) -> Edge {
        Edge { waiter: waiter.clone(), holder: holder.id }
    }

    #[test]
    fn all_members_of_a_circle_name_the_same_victim_and_bystanders_are_spared() {
        let w: Vec<_> = [50, 10, 40, 90, 20, 99].into_iter().zip(1..).map(|(born, n)| waiter(n, born)).collect();
        // 1 → 2 → 3 → 4 → 5 → 1; number 6, the youngest, only waits for 3.
        let edges =
            [edge(&w[0], &w[1]), edge(&w[1], &w[2]), edge(&w[2], &w[3]), edge(&w[3], &w[4]), edge(&w[4], &w[0])];
        let with_bystander: Vec<_> = edges.iter().cloned().chain([edge(&w[5], &w[2])]).collect();
        for (at, edge) in edges.iter().enumerate() {
            let holder = &w[(at + 1) % 5];
            assert_eq!(victim(&edge.waiter, holder, &with_bystander), Some(w[3].id));
        }
        assert_eq!(victim(&w[5], &w[2], &with_bystander), None);
        assert_eq!(victim(&w[0], &w[1], &edges[..4]), None, "an open chain is no circle");
    }

    #[test]
    fn a_circle_of_two_is_found_and_edges_are_forgotten_in_time() {
        let (a, b) = (waiter(1, 10), waiter(2, 20));
        assert_eq!(victim(&a, &b, &[edge(&b, &a)]), Some(b.id));
        let mut known = Edges::default();
        known.insert(a.id, &b, vec![edge(&waiter(3, 30), &b)], Duration::ZERO);
        assert_eq!(known.towards(a.id, Duration::ZERO).len(), 2);
        assert_eq!(known.towards(b.id, Duration::ZERO), []);
        assert_eq!(known.towards(a.id, EDGE_LIVES), []);
    }
}
