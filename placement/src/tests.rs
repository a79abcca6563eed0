//! Scenarios, and random clusters that must come to rest with every range well placed.

use flotilla_types::{
    Generation, Key, KeySpan, RangeDescriptor, RangeId, ReplicaDescriptor, ReplicaId, ReplicaKind, StoreId,
};
use proptest::prelude::*;

use super::*;

fn store(n: u64, locality: &str, state: StoreState) -> StoreView {
    StoreView { store: StoreId(n), locality: locality.parse().unwrap(), state }
}

fn range(n: u64, stores: &[u64]) -> RangeView {
    let replicas = stores.iter().zip(1..).map(|(store, replica)| ReplicaDescriptor {
        replica: ReplicaId(replica),
        store: StoreId(*store),
        kind: ReplicaKind::Voter,
    });
    let span = KeySpan::new(Key::new(n.to_be_bytes().to_vec()), Key::MAX).unwrap();
    let next_replica = ReplicaId(stores.len() as u64 + 1);
    let descriptor = RangeDescriptor {
        range: RangeId(n),
        span,
        generation: Generation(1),
        replicas: replicas.collect(),
        next_replica,
    };
    RangeView { descriptor, pending: None }
}

fn targets(view: &View) -> Vec<(u64, Urgency, Vec<u64>)> {
    let operators = check(view, &CheckerConfig::default());
    let of = |op: &Operator| op.target.voters.iter().map(|store| store.0).collect();
    operators.iter().map(|op| (op.range.0, op.urgency, of(op))).collect()
}

use StoreState::{Dead, Draining, Suspect, Up};

#[test]
fn a_replica_out_of_order_goes_while_the_others_are_a_quorum() {
    let RangeView { descriptor, .. } = range(7, &[1, 2, 3]);
    let lost = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect();
    let without = |ids: &[u64], dead: u64| without_lost(&descriptor, &lost(ids), |store| store != StoreId(dead));
    let target = without(&[2], 0).unwrap();
    assert_eq!(target.voters, [StoreId(1), StoreId(3)].into());
    assert!(target.learners.is_empty());
    assert_eq!(without(&[], 0), None, "nothing is wrong");
    assert_eq!(without(&[9], 0), None, "a replica that is gone already");
    assert_eq!(without(&[2, 3], 0), None, "no quorum is in order");
    assert_eq!(without(&[2], 3), None, "no quorum is in order and alive");
}

#[test]
fn a_new_cluster_goes_from_one_replica_to_three_in_different_datacenters() {
    let stores = vec![store(1, "dc=a", Up), store(2, "dc=a", Up), store(3, "dc=b", Up), store(4, "dc=c", Up)];
    let view = View { stores, ranges: vec![range(1, &[1])] };
    let mut found = targets(&view);
    found[0].2.sort_unstable();
    assert_eq!(found, [(1, Urgency::Add, vec![1, 3, 4])]);
}

#[test]
fn two_stores_hold_one_voter_because_two_tolerate_no_more() {
    let view = View { stores: vec![store(1, "", Up), store(2, "", Up)], ranges: vec![range(1, &[1])] };
    assert_eq!(targets(&view), []);
}

#[test]
fn a_learner_left_on_a_dead_store_is_removed() {
    let mut view = View {
        stores: vec![store(1, "", Up), store(2, "", Up), store(3, "", Up), store(4, "", Up)],
        ranges: vec![range(1, &[1, 2, 3, 4])],
    };
    view.ranges[0].descriptor.replicas[3].kind = ReplicaKind::Learner;
    assert_eq!(targets(&view), [], "on a store that lives it may be on its way to become a voter");
    view.stores[3].state = Dead;
    assert_eq!(targets(&view), [(1, Urgency::Tidy, vec![1, 2, 3])]);
}

#[test]
fn a_dead_replica_is_replaced_when_there_is_a_spare_store_and_kept_when_there_is_none() {
    let mut view = View {
        stores: vec![store(1, "", Up), store(2, "", Dead), store(3, "", Up)],
        ranges: vec![range(1, &[1, 2, 3])],
    };
    assert_eq!(targets(&view), []);
    view.stores.push(store(4, "", Up));
    assert_eq!(targets(&view), [(1, Urgency::OneFromLoss, vec![1, 3, 4])]);
}

#[test]
fn a_suspect_store_keeps_what_it_has_and_gets_nothing() {
    let stores = vec![store(1, "", Up), store(2, "", Suspect), store(3, "", Up), store(4, "", Suspect)];
    let view = View { stores, ranges: vec![range(1, &[1, 2, 3]), range(2, &[1])] };
    assert_eq!(targets(&view), []);
}

#[test]
fn a_draining_store_is_emptied() {
    let stores = vec![store(1, "", Up), store(2, "", Draining), store(3, "", Up), store(4, "", Up)];
    let view = View { stores, ranges: vec![range(1, &[1, 2, 3])] };
    assert_eq!(targets(&view), [(1, Urgency::Replace, vec![1, 3, 4])]);
}

#[test]
fn a_range_without_quorum_is_left_alone() {
    let stores = vec![store(1, "", Up), store(2, "", Dead), store(3, "", Dead), store(4, "", Up), store(5, "", Up)];
    let view = View { stores, ranges: vec![range(1, &[1, 2, 3])] };
    assert_eq!(targets(&view), []);
}

#[test]
fn a_joint_configuration_is_finished_first() {
    let stores = (1..=4).map(|n| store(n, "", Up)).collect();
    let mut joint = range(2, &[1, 2, 3, 4]);
    joint.descriptor.replicas[2].kind = ReplicaKind::VoterOutgoing;
    joint.descriptor.replicas[3].kind = ReplicaKind::VoterIncoming;
    let view = View { stores, ranges: vec![range(1, &[1]), joint] };
    assert_eq!(targets(&view)[0], (2, Urgency::FinishJoint, vec![1, 2, 4]));
}

#[test]
fn no_store_gets_more_at_a_time_than_its_budget() {
    let stores = vec![store(1, "", Up), store(2, "", Up), store(3, "", Up)];
    let view = View { stores, ranges: (1..=10).map(|n| range(n, &[1])).collect() };
    assert_eq!(targets(&view).len(), 2);
}

/// What a range does with an operator, all at once.
fn carry_out(view: &mut View, operator: &Operator) {
    let range = view.ranges.iter_mut().find(|range| range.descriptor.range == operator.range).unwrap();
    let descriptor = &mut range.descriptor;
    descriptor.replicas.retain(|replica| operator.target.voters.contains(&replica.store));
    for wanted in &operator.target.voters {
        if descriptor.on_store(*wanted).is_none() {
            let replica =
                ReplicaDescriptor { replica: descriptor.next_replica, store: *wanted, kind: ReplicaKind::Voter };
            descriptor.replicas.push(replica);
            descriptor.next_replica = descriptor.next_replica.next();
        }
    }
    descriptor.replicas.iter_mut().for_each(|replica| replica.kind = ReplicaKind::Voter);
    descriptor.generation = descriptor.generation.next();
    descriptor.validate().unwrap();
}

fn any_view() -> impl Strategy<Value = View> {
    let states = prop::sample::select(vec![Up, Up, Up, Up, Suspect, Draining, Dead]);
    let stores = prop::collection::vec((0u8..3, states), 1..8);
    let placed = prop::collection::vec(prop::collection::btree_set(1u64..8, 1..5), 1..12);
    (stores, placed).prop_map(|(stores, placed)| {
        let stores: Vec<_> =
            stores.into_iter().zip(1..).map(|((dc, state), n)| store(n, &format!("dc={dc}"), state)).collect();
        let on: Vec<Vec<u64>> = placed.into_iter().map(|set| set.into_iter().collect()).collect();
        View { ranges: on.iter().zip(1..).map(|(stores, n)| range(n, stores)).collect(), stores }
    })
}

proptest! {
    #[test]
    fn every_cluster_comes_to_rest_and_no_operator_lowers_what_a_range_tolerates(mut view in any_view()) {
        let config = CheckerConfig::default();
        let lives = |view: &View, store: StoreId| view.stores.iter().any(|s| s.store == store && s.state != Dead);
        for _ in 0..200 {
            let operators = check(&view, &config);
            prop_assert_eq!(&operators, &check(&view, &config), "the same view, the same operators");
            for operator in &operators {
                let before = view.ranges.iter().find(|r| r.descriptor.range == operator.range).unwrap().descriptor.clone();
                let living = |stores: &[StoreId]| stores.iter().filter(|s| lives(&view, **s)).count();
                let voters: Vec<_> = before.voters_incoming().map(|replica| replica.store).collect();
                if operator.urgency != Urgency::Remove {
                    prop_assert!(living(&operator.target.voters) >= living(&voters).min(config.voters));
                    prop_assert_eq!(operator.target.voters.len() % 2, 1);
                }
                prop_assert!(before.is_quorum(|replica| lives(&view, replica.store)));
            }
            if operators.is_empty() {
                break;
            }
            operators.iter().for_each(|operator| carry_out(&mut view, operator));
        }
        prop_assert!(check(&view, &config).is_empty(), "it never rests: {view:?}");
        let up = view.stores.iter().filter(|store| store.state == Up).count();
        for range in &view.ranges {
            let quorum = range.descriptor.is_quorum(|replica| lives(&view, replica.store));
            prop_assert!(!quorum || up < 3 || range.descriptor.replicas.len() == 3);
        }
    }
}
