//! T12: the filter table, line by line, on real groups.

use raft::eraftpb::{Message, MessageType};

use super::*;
use crate::raft::wire;

/// A message of the library in an envelope, as a peer would send it.
fn post(net: &mut Net, from: u64, to: u64, kind: MessageType, term: u64, set: impl FnOnce(&mut Message)) {
    let mut message = Message::default();
    message.set_msg_type(kind);
    (message.from, message.to, message.term) = (from, to, term);
    set(&mut message);
    let message = wire::write(&message);
    let envelope = Envelope { range: RANGE, from: ReplicaId(from), to: ReplicaId(to), promised: 0, message };
    net.with(to, |group, ctx| group.receive(ctx, StoreId(from), &envelope));
}

/// Three voters, 1 leads in term 6 with a lease; 2 and 3 have promised.
fn led() -> Net {
    let mut net = Net::voters(3);
    net.lead(1);
    net.pass(Duration::from_millis(600), |_| false);
    assert_eq!(net.group(2).promise().unwrap().term, Term(6));
    net
}

/// Did `to` grant the vote that `set` describes?
fn votes(net: &mut Net, from: u64, to: u64, term: u64, set: impl FnOnce(&mut Message)) -> bool {
    let last = net.group(to).last();
    post(net, from, to, MessageType::MsgRequestVote, term, |m| {
        (m.index, m.log_term) = (last.index.0, last.term.0);
        set(m);
    });
    net.group(to).role().term == Term(term)
}

#[test]
fn f1_a_promise_refuses_votes_of_any_term() {
    let mut net = led();
    assert!(!votes(&mut net, 3, 2, 7, |_| ()));
    assert!(!votes(&mut net, 3, 2, 99, |_| ()));
}

#[test]
fn f1_without_a_promise_the_leader_is_forgotten_and_the_vote_given() {
    let mut net = led();
    net.leave(2, 1);
    assert!(votes(&mut net, 3, 2, 7, |_| ()));
    assert_eq!(net.group(2).promise(), None, "a granted vote clears the promise");
}

#[test]
fn f1_an_uninitialised_replica_votes_only_for_who_holds_entries() {
    let mut net = led();
    let disk = SharedDisk::default();
    disk.born(ReplicaId(4), LogPos::default());
    let d = net.nodes[&1].descriptor.clone();
    net.boot(4, &d, disk, LogPos::default(), LeaseState::default());
    assert!(!votes(&mut net, 3, 4, 7, |_| ()), "it knows no more than we do");
    let holds = |m: &mut Message| (m.index, m.log_term) = (11, 6);
    assert!(votes(&mut net, 3, 4, 8, holds));
    assert_eq!(net.group(4).hard().vote, ReplicaId(3));
    // Once in a term, as everybody.
    let _ = votes(&mut net, 2, 4, 8, holds);
    assert_eq!(net.group(4).hard().vote, ReplicaId(3));
    assert_eq!(net.group(4).promise(), None);
}

#[test]
fn f1_a_hold_refuses_votes_below_u_and_grants_them_above() {
    let mut net = led();
    let until = net.until(1);
    assert!(until > net.nodes[&1].clock);
    // A leader of a higher term deposes it without EndLease.
    post(&mut net, 2, 1, MessageType::MsgHeartbeat, 8, |_| ());
    assert_eq!(net.group(1).hold(), Some((Term(6), Timestamp::from_wall(until))));
    net.world.borrow_mut().given.insert((1, 2), (2 << 32, false, 0));
    assert!(!votes(&mut net, 3, 1, 9, |_| ()));
    net.nodes.get_mut(&1).unwrap().clock = until;
    assert!(votes(&mut net, 3, 1, 9, |_| ()));
}

#[test]
fn f1_a_leader_keeps_its_own_lease() {
    let mut net = led();
    assert!(net.until(1) > net.nodes[&1].clock);
    assert!(!votes(&mut net, 3, 1, 7, |m| m.context = Bytes::from_static(raft::CAMPAIGN_TRANSFER)));
    assert!(net.group(1).usable());
}

#[test]
fn x1_the_promised_leader_itself_may_ask() {
    let mut net = led();
    assert!(!votes(&mut net, 1, 2, 6, |_| ()) || net.group(2).promise().is_some());
    assert!(votes(&mut net, 1, 2, 7, |_| ()));
}

#[test]
fn x2_a_transfer_lifts_for_the_next_term_only() {
    let transfer = |m: &mut Message| m.context = Bytes::from_static(raft::CAMPAIGN_TRANSFER);
    let mut net = led();
    assert!(!votes(&mut net, 3, 2, 8, transfer));
    assert!(votes(&mut net, 3, 2, 7, transfer));
}

#[test]
fn x3_an_entry_of_a_later_term_lifts_an_equal_one_does_not() {
    let mut net = led();
    assert!(!votes(&mut net, 3, 2, 9, |m| m.log_term = 6));
    assert!(votes(&mut net, 3, 2, 9, |m| m.log_term = 7));
}

#[test]
fn f2_only_the_leader_of_this_term_makes_a_follower_campaign() {
    let mut net = led();
    post(&mut net, 3, 2, MessageType::MsgTimeoutNow, 6, |_| ());
    assert_eq!(net.group(2).role().term, Term(6));
    post(&mut net, 1, 2, MessageType::MsgTimeoutNow, 5, |_| ());
    assert_eq!(net.group(2).role().term, Term(6));
    post(&mut net, 1, 2, MessageType::MsgTimeoutNow, 6, |_| ());
    assert_eq!(net.group(2).role().term, Term(7));
}

#[test]
fn f3_a_higher_term_in_a_response_moves_neither_a_blocked_follower_nor_a_leased_leader() {
    let mut net = led();
    post(&mut net, 3, 2, MessageType::MsgAppendResponse, 9, |_| ());
    assert_eq!(net.group(2).role().term, Term(6));
    post(&mut net, 3, 1, MessageType::MsgAppendResponse, 9, |_| ());
    assert!(net.group(1).usable());
    let ready = net.with(1, |group, ctx| group.ready(ctx)).unwrap();
    assert!(ready.wants_catch_up, "T15: the stranded peer is noticed");
}

#[test]
fn f4_requests_from_remote_are_dropped() {
    use MessageType::{MsgBeat, MsgHup, MsgPropose, MsgReadIndex, MsgReadIndexResp, MsgTransferLeader};
    let mut net = led();
    for kind in [MsgHup, MsgBeat, MsgPropose, MsgReadIndex, MsgReadIndexResp, MsgTransferLeader] {
        for term in [0, 6] {
            post(&mut net, 2, 1, kind, term, |_| ());
            assert!(net.with(1, |group, ctx| group.ready(ctx)).is_none(), "{kind:?}");
        }
    }
}

#[test]
fn f5_a_heartbeat_beyond_the_log_loses_the_replica_and_not_the_node() {
    let mut net = led();
    post(&mut net, 1, 2, MessageType::MsgHeartbeat, 6, |m| m.commit = 999);
    let lost = net.group(2).lost().cloned();
    assert!(matches!(lost, Some(LossReason::LostTail { commit: LogIndex(999), .. })), "{lost:?}");
    assert!(!votes(&mut net, 3, 2, 7, |_| ()), "a lost replica helps nobody");
}

#[test]
fn a_panic_of_the_library_loses_the_replica() {
    let mut net = led();
    net.with(2, |group, ctx| group.guard(ctx, |_| -> () { panic!("as the library does when it cannot go on") }));
    assert!(matches!(net.group(2).lost(), Some(LossReason::Panic(_))));
    assert!(net.with(2, |group, ctx| group.ready(ctx)).is_none());
}

#[test]
fn another_incarnation_is_not_meant() {
    let mut net = led();
    let before = net.group(2).role();
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgHeartbeat);
    (message.from, message.to, message.term) = (1, 9, 40);
    let message = wire::write(&message);
    let envelope = Envelope { range: RANGE, from: ReplicaId(1), to: ReplicaId(9), promised: 0, message };
    net.with(2, |group, ctx| group.receive(ctx, StoreId(1), &envelope));
    assert_eq!(net.group(2).role(), before);
}
