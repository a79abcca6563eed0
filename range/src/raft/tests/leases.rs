//! Promises, U, hold, transfers.

use super::*;

fn led() -> Net {
    let mut net = Net::voters(3);
    net.lead(1);
    net.pass(Duration::from_millis(600), |_| false);
    net
}

#[test]
fn promises_of_a_quorum_make_the_lease_usable_until_their_support_ends() {
    let mut net = led();
    assert!(net.group(1).usable());
    assert_eq!(net.until(1), 10_000 * MS);
    assert!(net.group(1).is_fortified(ReplicaId(2)));
    net.world.borrow_mut().given.insert((2, 1), (1 << 32, true, 12_000 * MS));
    assert_eq!(net.until(1), 12_000 * MS, "one supporter and the leader are a quorum");
    net.world.borrow_mut().given.insert((2, 1), (1 << 32, true, 99_000 * MS));
    assert_eq!(net.until(1), 60_000 * MS, "never above the own bound");
    net.world.borrow_mut().given.insert((2, 1), (2 << 32, true, 0));
    assert_eq!(net.until(1), 60_000 * MS, "never decreases");
}

#[test]
fn a_promise_is_not_told_before_it_is_durable() {
    let mut net = Net::voters(3);
    net.stalled = [2, 3].into();
    net.with(1, |group, ctx| group.campaign_soon(ctx));
    net.with(1, |group, ctx| group.tick(ctx));
    net.settle();
    assert!(!net.group(1).is_fortified(ReplicaId(2)));
    assert_eq!(net.until(1), 0);
}

#[test]
fn t16_a_durable_promise_outlives_a_crash() {
    let mut net = led();
    let before = net.group(2).promise();
    net.restart(2);
    assert_eq!(net.group(2).promise(), before);
    let blocked = net.pass(Duration::from_secs(8), |net| net.group(2).role().role != Role::Follower);
    assert!(!blocked, "it does not campaign against its promise");
}

#[test]
fn t18_a_grant_of_an_older_term_does_not_count() {
    let mut net = led();
    let term = net.group(1).role().term;
    let reply = BeatReply {
        range: RANGE,
        from: ReplicaId(2),
        to: ReplicaId(1),
        term,
        commit: LogIndex(0),
        applied: LogIndex(0),
        sum: 0,
        promised: 1 << 32,
        asleep: false,
    };
    net.end(1, AfterEnd::SelfTransfer).unwrap();
    net.cut = [2, 3].into();
    net.settle();
    net.cut.clear();
    net.pass(Duration::from_secs(5), |net| net.usable() == Some(1));
    net.nodes.get_mut(&1).unwrap().group.tenure.fortified.clear();
    net.with(1, |group, ctx| group.receive_beat_reply(ctx, StoreId(2), &reply));
    assert!(!net.group(1).is_fortified(ReplicaId(2)));
}

#[test]
fn t11_t14_a_deposed_leader_holds_until_u() {
    let mut net = led();
    let until = net.until(1);
    net.cut = [2, 3].into();
    assert!(net.pass(Duration::from_secs(6), |net| !net.group(1).usable()), "check-quorum");
    assert_eq!(net.group(1).hold().unwrap().1.wall, until);
    assert!(net.nodes[&1].clock < until);
    net.cut.clear();
    let early = net.pass(Duration::from_millis(500), |net| net.group(1).role().role == Role::Candidate);
    assert!(!early && net.nodes[&1].clock < until);
    // Its own hold ends, X1 opens its followers.
    assert!(net.pass(Duration::from_secs(15), |net| net.usable() == Some(1)));
    assert!(net.nodes[&1].lease.start.wall >= until);
}

#[test]
fn t13_a_transfer_hands_over_by_the_log() {
    let mut net = led();
    let floor = net.until(1);
    net.end(1, AfterEnd::Transfer(ReplicaId(2))).unwrap();
    assert!(!net.group(1).usable(), "nothing is served after EndLease was appended");
    assert_eq!(net.put(1, "late"), Err(Refused::NotUsable));
    net.settle();
    assert_eq!(net.usable(), Some(2));
    assert!(net.nodes[&2].lease.start > Timestamp::from_wall(floor), "the successor starts above all that was served");
    assert_eq!(net.group(1).hold(), None, "an applied end leaves no hold");
}

#[test]
fn t13_a_dead_target_and_the_old_leader_takes_the_next_term() {
    let mut net = led();
    net.end(1, AfterEnd::Transfer(ReplicaId(2))).unwrap();
    net.cut = [2].into();
    assert!(net.pass(Duration::from_secs(3), |net| net.usable() == Some(1)));
    assert_eq!(net.group(1).role().term, Term(7));
}

#[test]
fn t13_a_timeout_now_delayed_past_the_next_term_does_nothing() {
    use raft::eraftpb::{Message, MessageType};
    let mut net = led();
    net.end(1, AfterEnd::SelfTransfer).unwrap();
    assert!(net.pass(Duration::from_secs(2), |net| net.usable() == Some(1) && net.group(1).term() == Term(7)));
    net.pass(Duration::from_millis(600), |_| false);
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgTimeoutNow);
    (message.from, message.to, message.term) = (1, 2, 6);
    let message = wire::write(&message);
    let late = Envelope { range: RANGE, from: ReplicaId(1), to: ReplicaId(2), promised: 0, message };
    net.with(2, |group, ctx| group.receive(ctx, StoreId(1), &late));
    assert_eq!(net.group(2).role().role, Role::Follower);
    assert_eq!(net.group(2).role().term, Term(7));
}

#[test]
fn t13_an_unfit_target_is_refused_and_the_term_goes_on() {
    let mut net = led();
    let gone = ReplicaId(9);
    assert_eq!(net.end(1, AfterEnd::Transfer(gone)), Err(Refused::UnfitTarget));
    net.world.borrow_mut().given.insert((1, 2), (2 << 32, false, 0));
    assert_eq!(net.end(1, AfterEnd::Transfer(ReplicaId(2))), Err(Refused::UnfitTarget));
    assert!(net.group(1).usable());
}

#[test]
fn a_stuck_leader_gives_up_after_its_lease_ran_out() {
    let mut net = Net::voters(2);
    net.lead(1);
    // Heartbeats flow, the leader's own log does not: with two voters nothing commits.
    net.stalled = [1].into();
    net.put(1, "x").unwrap();
    let until = net.until(1);
    assert!(net.pass(Duration::from_secs(20), |net| net.group(1).role().role == Role::Follower));
    assert!(net.nodes[&1].clock >= until);
}

#[test]
fn a_lost_leader_releases_its_followers() {
    let mut net = led();
    net.with(1, |group, ctx| group.lose(ctx, LossReason::Boot("test".to_owned())));
    assert_eq!(net.group(1).hold().unwrap().1.wall, 60_000 * MS, "U is the bound of the store at that moment");
    net.nodes.get_mut(&1).unwrap().clock = 60_000 * MS;
    assert!(net.pass(Duration::from_secs(8), |net| net.usable().is_some_and(|leader| leader != 1)));
}
