//! Who asks for votes, and when.

use super::*;

#[test]
fn t10_after_a_crash_of_the_leader_the_next_one_starts_above_u() {
    let mut net = Net::voters(3);
    net.lead(1);
    net.pass(Duration::from_millis(600), |_| false);
    let until = net.until(1);
    net.cut = [1].into();
    assert!(!net.pass(Duration::from_secs(6), |net| net.usable().is_some()), "promises stand");
    net.leave(2, 1);
    assert!(!net.pass(Duration::from_secs(1), |net| net.usable().is_some()), "one free store is no quorum");
    net.leave(3, 1);
    assert!(net.pass(Duration::from_secs(1), |net| net.usable().is_some()));
    let leader = net.usable().unwrap();
    assert!(net.nodes[&leader].lease.start.wall >= until);
}

#[test]
fn the_first_ranked_follower_goes_first() {
    let mut net = Net::voters(3);
    net.lead(1);
    net.pass(Duration::from_millis(600), |_| false);
    net.cut = [1].into();
    net.leave(2, 1);
    net.leave(3, 1);
    let (two, three) = (net.group(2).next_wake().unwrap(), net.group(3).next_wake().unwrap());
    assert!(two < net.mono + Duration::from_millis(50));
    assert!(three >= net.mono + Duration::from_millis(100));
}

#[test]
fn the_same_seed_gives_the_same_delays() {
    let wakes = || {
        let net = Net::voters(3);
        [1, 2, 3].map(|store| net.group(store).next_wake())
    };
    assert_eq!(wakes(), wakes());
    assert_ne!(wakes()[0], wakes()[1]);
}

#[test]
fn a_learner_and_an_unsupported_store_do_not_campaign() {
    let mut net = Net::new(&[ReplicaKind::Voter, ReplicaKind::Voter, ReplicaKind::Learner]);
    assert_eq!(net.group(3).next_wake(), None);
    net.world.borrow_mut().given.clear();
    net.with(1, |group, ctx| group.campaign_soon(ctx));
    net.with(1, |group, ctx| group.tick(ctx));
    assert_eq!(net.group(1).role().role, Role::Follower);
    assert!(net.group(1).next_wake().is_some(), "it tries again");
}

#[test]
fn waking_forgets_a_leader_that_nothing_promises_to() {
    let mut net = Net::voters(3);
    net.lead(1);
    net.pass(Duration::from_millis(600), |_| false);
    net.with(2, |group, ctx| group.wake(ctx));
    assert_eq!(net.group(2).role().leader, Some(ReplicaId(1)), "a promise stands");
    net.world.borrow_mut().given.insert((2, 1), (2 << 32, false, 0));
    net.with(2, |group, ctx| group.wake(ctx));
    assert_eq!(net.group(2).role().leader, None);
}
