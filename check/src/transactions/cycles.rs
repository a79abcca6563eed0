//! Cycles, named by the kinds of their edges.
//!
//! A transaction that lies on a cycle lies in a strongly connected component with more than one member, so only those are
//! searched. Of each kind the shortest cycle through some edge is given: people read them.

use std::collections::{HashMap, HashSet, VecDeque};

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use super::graph::{Graph, Why};
use super::{Finding, Phenomenon};

/// What a search may walk on, beyond its first edge.
struct Search {
    phenomenon: Phenomenon,
    /// The cycle's first edge, which gives it its name.
    first: fn(Why) -> bool,
    /// All others.
    rest: fn(Why) -> bool,
    /// No anti-dependency may follow another.
    apart: bool,
}

const fn writes_or_reads(why: Why) -> bool {
    matches!(why, Why::Overwritten | Why::Read)
}

const fn misses(why: Why) -> bool {
    matches!(why, Why::Missed | Why::MissedByPredicate)
}

/// From the narrowest to the widest. A cycle that a narrower search would have found gets no wider name.
const SEARCHES: [Search; 7] = [
    Search {
        phenomenon: Phenomenon::DirtyWrite,
        first: |why| matches!(why, Why::Overwritten),
        rest: |why| matches!(why, Why::Overwritten),
        apart: false,
    },
    Search {
        phenomenon: Phenomenon::Circular,
        first: |why| matches!(why, Why::Read),
        rest: writes_or_reads,
        apart: false,
    },
    Search { phenomenon: Phenomenon::ReadSkew, first: misses, rest: writes_or_reads, apart: false },
    Search { phenomenon: Phenomenon::LongFork, first: misses, rest: |why| !matches!(why, Why::Earlier), apart: true },
    Search {
        phenomenon: Phenomenon::WriteSkew,
        first: |why| matches!(why, Why::Missed),
        rest: |why| !matches!(why, Why::Earlier | Why::MissedByPredicate),
        apart: false,
    },
    Search {
        phenomenon: Phenomenon::PredicateSkew,
        first: |why| matches!(why, Why::MissedByPredicate),
        rest: |why| !matches!(why, Why::Earlier),
        apart: false,
    },
    Search { phenomenon: Phenomenon::RealTime, first: |why| matches!(why, Why::Earlier), rest: |_| true, apart: false },
];

/// Of each kind of cycle that there is, the shortest that was found; of the wider kinds only what is not explained by a
/// narrower one between the same transactions.
pub(super) fn cycles(graph: &Graph) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for component in components(graph) {
        let members: HashSet<usize> = component.iter().copied().collect();
        let mut told: Vec<HashSet<usize>> = Vec::new();
        for search in &SEARCHES {
            let Some(cycle) = shortest(graph, &component, &members, search, &told) else { continue };
            told.push(cycle.iter().map(|(index, _)| *index).collect());
            findings.push(Finding {
                phenomenon: search.phenomenon,
                transactions: cycle.iter().map(|(index, _)| *index).collect(),
                because: graph.tell(&cycle),
            });
        }
    }
    findings
}

fn components(graph: &Graph) -> Vec<Vec<usize>> {
    let mut edges = DiGraphMap::<usize, ()>::new();
    for (from, after) in graph.after.iter().enumerate() {
        for to in after.keys() {
            edges.add_edge(from, *to, ());
        }
    }
    let mut components: Vec<Vec<usize>> = tarjan_scc(&edges).into_iter().filter(|members| members.len() > 1).collect();
    components.iter_mut().for_each(|members| members.sort_unstable());
    components.sort_unstable();
    components
}

/// The shortest cycle that begins with an edge of the search's kind and has not been told under a narrower name.
fn shortest(
    graph: &Graph,
    component: &[usize],
    members: &HashSet<usize>,
    search: &Search,
    told: &[HashSet<usize>],
) -> Option<Vec<(usize, Why)>> {
    let mut best: Option<Vec<(usize, Why)>> = None;
    for from in component {
        for (to, whys) in &graph.after[*from] {
            let Some(why) = whys.iter().copied().find(|why| members.contains(to) && (search.first)(*why)) else {
                continue;
            };
            let Some(back) = path(graph, members, *to, *from, search, misses(why)) else { continue };
            let cycle: Vec<_> = [(*from, why)].into_iter().chain(back).collect();
            let same = |names: &HashSet<usize>| {
                names.len() == cycle.len() && cycle.iter().all(|(index, _)| names.contains(index))
            };
            if !told.iter().any(same) && best.as_ref().is_none_or(|best| cycle.len() < best.len()) {
                best = Some(cycle);
            }
        }
    }
    best
}

/// A transaction, and whether it was reached by an anti-dependency.
type State = (usize, bool);

/// The shortest way, breadth first.
fn path(
    graph: &Graph,
    members: &HashSet<usize>,
    from: usize,
    to: usize,
    search: &Search,
    after_miss: bool,
) -> Option<Vec<(usize, Why)>> {
    let mut came: HashMap<State, (State, Why)> = HashMap::new();
    let start = (from, search.apart && after_miss);
    let mut queue = VecDeque::from([start]);
    let mut visited = HashSet::from([start]);
    while let Some(state) = queue.pop_front() {
        for (next, whys) in &graph.after[state.0] {
            for why in whys.iter().copied().filter(|why| members.contains(next) && (search.rest)(*why)) {
                let missed = search.apart && misses(why);
                // The cycle closes into its first edge: that one may be an anti-dependency, too.
                if missed && (state.1 || (*next == to && after_miss)) {
                    continue;
                }
                let reached = (*next, missed);
                if !visited.insert(reached) {
                    continue;
                }
                came.insert(reached, (state, why));
                if *next == to {
                    return Some(walk_back(&came, start, reached));
                }
                queue.push_back(reached);
            }
        }
    }
    None
}

fn walk_back(came: &HashMap<State, (State, Why)>, start: State, end: State) -> Vec<(usize, Why)> {
    let mut steps = Vec::new();
    let mut state = end;
    while state != start {
        let Some((before, why)) = came.get(&state) else { break };
        steps.push((before.0, *why));
        state = *before;
    }
    steps.reverse();
    steps
}
