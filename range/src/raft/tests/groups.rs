//! Groups that replicate, restart, and change their members.

use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType};

use super::*;

fn change(changes: &[(ConfChangeType, u64)]) -> ConfChangeV2 {
    let mut out = ConfChangeV2::default();
    out.set_transition(if changes.len() > 1 { ConfChangeTransition::Explicit } else { ConfChangeTransition::Auto });
    for (kind, id) in changes {
        let mut one = ConfChangeSingle::default();
        one.set_change_type(*kind);
        one.node_id = *id;
        out.mut_changes().push(one);
    }
    out
}

#[test]
fn a_single_voter_elects_itself_and_commits() {
    let mut net = Net::voters(1);
    assert!(net.pass(Duration::from_secs(1), |net| net.usable() == Some(1)));
    net.put(1, "x").unwrap();
    net.settle();
    assert_eq!(net.nodes[&1].done, ["x"]);
    assert!(net.group(1).at_rest());
    assert_eq!(net.until(1), 60_000 * MS, "its own bound is its lease");
}

#[test]
fn three_groups_elect_replicate_and_apply_everywhere() {
    let mut net = Net::voters(3);
    assert!(net.pass(Duration::from_secs(10), |net| net.usable().is_some()));
    let leader = net.usable().unwrap();
    for text in ["a", "b", "c"] {
        net.put(leader, text).unwrap();
    }
    net.pass(Duration::from_secs(1), |_| false);
    for node in net.nodes.values() {
        assert_eq!(node.done, ["a", "b", "c"]);
    }
    let follower = net.nodes.keys().copied().find(|store| *store != leader).unwrap();
    assert_eq!(net.put(follower, "d"), Err(Refused::NotLeader));
    assert_eq!(net.nodes[&follower].lease, net.nodes[&leader].lease);
}

#[test]
fn nothing_leaves_a_follower_before_it_is_durable() {
    let mut net = Net::voters(3);
    net.lead(1);
    net.stalled = [2, 3].into();
    net.put(1, "x").unwrap();
    net.settle();
    assert!(net.nodes[&1].done.is_empty(), "no quorum is durable");
    net.stalled = [3].into();
    net.sync(2);
    net.settle();
    assert_eq!(net.nodes[&1].done, ["x"]);
}

#[test]
fn a_restarted_follower_catches_up_from_its_log() {
    let mut net = Net::voters(3);
    net.lead(1);
    net.put(1, "x").unwrap();
    net.settle();
    net.restart(2);
    net.put(1, "y").unwrap();
    net.pass(Duration::from_secs(1), |_| false);
    assert_eq!(net.nodes[&2].applied, net.nodes[&1].applied);
    assert_eq!(net.group(2).last(), net.group(1).last());
}

#[test]
fn log_and_state_that_contradict_each_other_are_a_loss() {
    let disk = SharedDisk::default();
    disk.born(ReplicaId(1), INIT);
    let good = disk.0.lock().unwrap().head.unwrap();
    let d = descriptor(&[ReplicaKind::Voter]);
    let start = |head: LogHead, applied: LogPos, commit: u64| {
        let boot = GroupBoot {
            range: RANGE,
            me: ReplicaId(1),
            store: StoreId(1),
            descriptor: Some(&d),
            head,
            applied,
            lease: LeaseState::default(),
            commit_at_least: LogIndex(commit),
            mono: Duration::ZERO,
        };
        Group::start(&boot, &GroupConfig::default(), Arc::new(disk.clone())).map(|_| ())
    };
    let at = |index| LogPos { index: LogIndex(index), term: Term(5) };
    assert_eq!(start(good, INIT, 0), Ok(()));
    assert!(start(LogHead { replica: ReplicaId(2), ..good }, INIT, 0).is_err(), "another incarnation");
    assert!(start(LogHead { trunc: at(12), last: at(12), ..good }, INIT, 0).is_err(), "a gap");
    assert!(start(good, at(11), 0).is_err(), "state ahead of the log");
    assert!(start(good, INIT, 12).is_err(), "a birth beyond the log");
    assert!(start(LogHead { hard_last: at(14), ..good }, INIT, 0).is_err(), "a tail is gone");
    let unborn = HardState::default();
    assert_eq!(start(LogHead { hard: unborn, ..good }, INIT, 0), Ok(()), "a child has no HardState yet");
}

#[test]
fn a_learner_gets_a_snapshot_and_is_promoted() {
    let mut net = Net::voters(3);
    net.lead(1);
    net.put(1, "x").unwrap();
    net.settle();
    let through = net.nodes[&1].applied.index;
    net.with(1, |group, _| group.truncate(through)).unwrap();
    let mut d = net.nodes[&1].descriptor.clone();
    d.replicas.push(ReplicaDescriptor { replica: ReplicaId(4), store: StoreId(4), kind: ReplicaKind::Learner });
    net.world.borrow_mut().bound.insert(4, 60_000 * MS);
    let disk = SharedDisk::default();
    disk.born(ReplicaId(4), LogPos::default());
    net.boot(4, &d, disk, LogPos::default(), LeaseState::default());
    for store in 1..=3 {
        net.with(store, |group, _| group.set_descriptor(&d));
    }
    let add = change(&[(ConfChangeType::AddLearnerNode, 4)]);
    net.with(1, |group, ctx| group.propose_conf_change(ctx, &add, Bytes::new())).unwrap();
    assert!(net.pass(Duration::from_secs(5), |net| !net.nodes[&1].snapshots_wanted.is_empty()));
    let (at, envelope) = net.with(1, |group, _| group.snapshot_envelope(ReplicaId(4))).unwrap();
    let lease = net.nodes[&1].lease;
    net.nodes.get_mut(&4).unwrap().lease = lease;
    net.post.push_back((1, 4, Post::Raft(envelope)));
    net.settle();
    net.with(1, |group, ctx| group.report_snapshot(ctx, ReplicaId(4), true));
    net.pass(Duration::from_secs(1), |_| false);
    assert!(net.nodes[&4].applied >= at);
    net.put(1, "y").unwrap();
    net.pass(Duration::from_secs(1), |_| false);
    assert_eq!(net.nodes[&4].done, ["y"]);
    let promote = change(&[(ConfChangeType::AddNode, 4)]);
    net.with(1, |group, ctx| group.propose_conf_change(ctx, &promote, Bytes::new())).unwrap();
    net.pass(Duration::from_secs(1), |_| false);
    assert!(net.group(4).promotable());
}

#[test]
fn membership_changes_are_checked_before_they_are_proposed() {
    let mut net = Net::voters(3);
    net.lead(1);
    let ask =
        |net: &mut Net, cc: &ConfChangeV2| net.with(1, |group, ctx| group.propose_conf_change(ctx, cc, Bytes::new()));
    let remove_self = change(&[(ConfChangeType::RemoveNode, 1)]);
    assert_eq!(ask(&mut net, &remove_self), Err(Refused::BadConf));
    assert_eq!(ask(&mut net, &change(&[])), Err(Refused::BadConf), "not joint: nothing to leave");
    let swap = change(&[(ConfChangeType::AddNode, 4), (ConfChangeType::RemoveNode, 3)]);
    ask(&mut net, &swap).unwrap();
    assert_eq!(ask(&mut net, &swap), Err(Refused::PendingConf));
    net.settle();
    assert_eq!(net.group(1).conf().voters_outgoing.len(), 3);
    assert_eq!(ask(&mut net, &swap), Err(Refused::BadConf), "leave first");
    ask(&mut net, &change(&[])).unwrap();
    net.settle();
    assert!(net.group(1).conf().voters_outgoing.is_empty());
    assert!(!net.group(1).conf().voters.contains(&3));
}

#[test]
fn t19_a_change_needs_support_that_covers_the_lease() {
    let mut net = Net::voters(3);
    net.lead(1);
    net.pass(Duration::from_millis(600), |_| false);
    assert!(net.until(1) > 0);
    for giver in [2, 3] {
        net.world.borrow_mut().given.insert((giver, 1), (2 << 32, false, 0));
    }
    let remove = change(&[(ConfChangeType::RemoveNode, 3)]);
    let asked = net.with(1, |group, ctx| group.propose_conf_change(ctx, &remove, Bytes::new()));
    assert_eq!(asked, Err(Refused::Unsupported));
}

#[test]
fn a_removed_leader_steps_down() {
    let mut net = Net::voters(3);
    net.lead(1);
    let remove = change(&[(ConfChangeType::RemoveNode, 1)]);
    net.with(1, |group, ctx| group.apply_conf_change(ctx, &remove)).unwrap();
    assert_eq!(net.group(1).role().role, Role::Follower);
    assert!(net.group(1).hold().is_some() || net.until(1) == 0);
}

#[test]
fn reads_by_index_are_confirmed_by_a_quorum() {
    let mut net = Net::voters(3);
    net.lead(1);
    net.with(1, |group, ctx| group.read_index(ctx, 42)).unwrap();
    net.settle();
    assert_eq!(net.nodes[&1].reads, [(42, net.group(1).committed())]);
}

#[test]
fn a_proposal_that_lost_its_place_is_told_by_the_entry_that_took_it() {
    let mut net = Net::voters(3);
    net.lead(1);
    net.pass(Duration::from_millis(600), |_| false);
    net.cut = [2, 3].into();
    let lost = net.put(1, "x").unwrap();
    net.settle();
    net.cut = [1].into();
    net.leave(2, 1);
    net.leave(3, 1);
    assert!(net.pass(Duration::from_secs(2), |net| net.usable().is_some()));
    net.cut.clear();
    net.pass(Duration::from_secs(1), |_| false);
    assert_eq!(net.nodes[&1].rejected, [lost.index]);
    assert!(net.nodes.values().all(|node| node.done.is_empty() && node.applied == net.nodes[&1].applied));
}

#[test]
fn t17_a_snapshot_leaves_the_promise_alone() {
    use raft::eraftpb::{Message, MessageType};
    let mut net = Net::voters(3);
    net.lead(1);
    net.pass(Duration::from_millis(600), |_| false);
    let promise = net.group(2).promise();
    assert!(promise.is_some());
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgSnapshot);
    (message.from, message.to, message.term) = (1, 2, 6);
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (40, 6);
    metadata.set_conf_state(net.group(1).conf().clone());
    let message = wire::write(&message);
    let envelope = Envelope { range: RANGE, from: ReplicaId(1), to: ReplicaId(2), promised: 0, message };
    net.post.push_back((1, 2, Post::Raft(envelope)));
    net.cut = [3].into();
    let post = net.post.pop_front().unwrap();
    net.deliver(post.0, post.1, &post.2);
    net.turn(2);
    assert_eq!(net.group(2).applied().index, LogIndex(40));
    net.restart(2);
    assert_eq!(net.group(2).promise(), promise, "durable, and not part of the snapshot");
}
