//! The group: its state, its start, and what it shows. `receive`, `ready`, `propose`, `tick` and `lease` hold its deeds.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use flotilla_storage::log::{HardState, LogOp, LogPos, Promise};
use flotilla_storage::state::LeaseState;
use flotilla_types::{LogIndex, RangeDescriptor, RangeId, ReplicaId, ReplicaKind, StoreId, Term, Timestamp};
use raft::eraftpb::{ConfState, Message};
use raft::{ProgressState, RawNode, StateRole};

use super::elections::{Chance, Elections};
use super::log::LogView;
use super::support::Ctx;
use super::types::{AfterEnd, GroupBoot, GroupConfig, LossReason, Peer, Reader, Role, RoleState, SnapshotIn};

/// Ticks of H/2: check-quorum deposes a leader after 2.5 to 5 s.
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 2;

/// What a leader keeps for one term.
#[derive(Debug, Default)]
pub(super) struct Tenure {
    pub(super) term: Term,
    /// U (leases 3.4). Invariant: never decreases within the term.
    pub(super) until: Timestamp,
    /// U stands still: the term is ending, or stuck.
    pub(super) frozen: bool,
    /// EndLease was appended: this term serves nothing more (leases I11).
    pub(super) ending: bool,
    pub(super) start_proposed: bool,
    /// The epoch that each replica durably promised in this term.
    pub(super) fortified: BTreeMap<ReplicaId, u64>,
    pub(super) after_end: Option<AfterEnd>,
    /// When the target of a transfer has had its chance.
    pub(super) take_over_at: Option<Duration>,
    pub(super) tick_at: Duration,
    /// The oldest entry seen uncommitted, and since when.
    pub(super) oldest: Option<(u64, Duration)>,
    /// Commits nothing: it waits for U and steps down (leases 5.8).
    pub(super) stuck: bool,
}

/// A ready that is not durable yet.
pub(super) struct Pending {
    pub(super) number: u64,
    /// It has log ops of its own; else it waits for those before it.
    pub(super) writes: bool,
    pub(super) messages: Vec<Message>,
    pub(super) promise: Option<Promise>,
    /// It restores a snapshot: the library may know it as applied once it is durable, and not before.
    pub(super) restores: Option<u64>,
}

/// A snapshot between `ready` and `restored`.
pub(super) struct Restoring {
    pub(super) number: u64,
    pub(super) ops: Vec<LogOp>,
    pub(super) snapshot: SnapshotIn,
}

/// One replica's Raft group.
pub struct Group {
    pub(super) range: RangeId,
    pub(super) me: ReplicaId,
    pub(super) store: StoreId,
    pub(super) config: GroupConfig,
    pub(super) node: RawNode<LogView>,
    pub(super) lost: Option<LossReason>,
    pub(super) initialised: bool,
    /// Where replicas live: from the descriptor, and for an uninitialised replica from whoever wrote to it.
    pub(super) stores: BTreeMap<ReplicaId, StoreId>,
    pub(super) promise: Option<Promise>,
    pub(super) promise_dirty: bool,
    /// Invariant: what the log holds durably, or `None` if that was superseded in memory.
    pub(super) promise_durable: Option<Promise>,
    pub(super) lease: LeaseState,
    pub(super) tenure: Tenure,
    /// A former leader's waiting time (leases 3.7).
    pub(super) hold: Option<(Term, Timestamp)>,
    /// A former leadership that may have to be released, and when next.
    pub(super) release: Option<(Term, Timestamp, Duration)>,
    pub(super) releases: Vec<(StoreId, Term)>,
    pub(super) elections: Elections,
    /// The promise whose support was left, until a new leader speaks.
    pub(super) suspect: Option<Promise>,
    /// The leader of a term, also after it was forgotten.
    pub(super) term_leader: (u64, u64),
    /// Term and vote as last given to the log.
    pub(super) written: HardState,
    pub(super) pending: VecDeque<Pending>,
    pub(super) restoring: Option<Restoring>,
    /// Role, term, leader and vote as last observed.
    pub(super) seen: (StateRole, u64, u64, u64),
    pub(super) reported: RoleState,
    pub(super) wants_catch_up: bool,
    pub(super) last_stuck: Option<Duration>,
    pub(super) mono: Duration,
}

/// The library's configuration of a descriptor.
fn conf_of(descriptor: Option<&RangeDescriptor>) -> ConfState {
    let mut conf = ConfState::default();
    let Some(descriptor) = descriptor else { return conf };
    let joint = descriptor.is_joint();
    for replica in &descriptor.replicas {
        let id = replica.replica.0;
        if replica.kind.votes_incoming() {
            conf.voters.push(id);
        }
        if joint && replica.kind.votes_outgoing() {
            conf.voters_outgoing.push(id);
        }
        match replica.kind {
            ReplicaKind::Learner => conf.learners.push(id),
            ReplicaKind::VoterDemoting => conf.learners_next.push(id),
            _ => {}
        }
    }
    conf
}

fn library_config(config: &GroupConfig, me: ReplicaId, applied: LogIndex) -> raft::Config {
    raft::Config {
        id: me.0,
        election_tick: ELECTION_TICKS,
        heartbeat_tick: HEARTBEAT_TICKS,
        applied: applied.0,
        max_size_per_msg: config.append_bytes_max,
        max_inflight_msgs: config.inflight_max,
        check_quorum: true,
        pre_vote: true,
        skip_bcast_commit: true,
        // Never on: the library (0.7.0, `try_batching`) puts entries into a waiting append that holds none without looking
        // at where that one begins, and a follower then acknowledges one entry more than it has.
        batch_append: false,
        max_uncommitted_size: config.uncommitted_bytes_max,
        max_committed_size_per_ready: config.committed_bytes_max,
        ..Default::default()
    }
}

pub(super) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

fn check_boot(boot: &GroupBoot<'_>) -> Result<(), LossReason> {
    let head = &boot.head;
    let fail = |why: String| Err(LossReason::Boot(why));
    if head.replica != boot.me {
        return fail(format!("the log is of {}, the state of {}", head.replica, boot.me));
    }
    if head.trunc.index > boot.applied.index {
        return fail(format!("log begins at {:?}, state ends at {:?}", head.trunc, boot.applied));
    }
    if boot.applied.index > head.last.index {
        return fail(format!("state is at {:?}, log ends at {:?}", boot.applied, head.last));
    }
    let commit = head.hard.commit.max(boot.commit_at_least);
    if commit > head.last.index || head.last.index < head.hard_last.index {
        return fail(format!("commit {commit}, written with {:?}, log ends at {:?}", head.hard_last, head.last));
    }
    if head.hard.term < head.last.term && head.last != head.trunc {
        return fail(format!("term {} is below the last entry's {}", head.hard.term, head.last.term));
    }
    Ok(())
}

impl Group {
    /// Starts the group from durable state (durability section 2, start of a RawNode).
    ///
    /// # Errors
    /// Log and state contradict each other: the replica is lost.
    pub fn start(boot: &GroupBoot<'_>, config: &GroupConfig, reader: Reader) -> Result<Self, LossReason> {
        check_boot(boot)?;
        let head = &boot.head;
        // The library panics if applied lies above commit, and commit need not have been written.
        let commit = head.hard.commit.max(boot.applied.index).max(boot.commit_at_least);
        // A child's log starts at INIT without any HardState: its term is that of INIT (durability section 4).
        let mut hard = HardState { commit, ..head.hard };
        if hard.term < head.last.term {
            hard = HardState { term: head.last.term, vote: ReplicaId(0), commit };
        }
        let conf = conf_of(boot.descriptor);
        let view = LogView::new(boot.range, reader, hard, conf, head.trunc, head.last, boot.applied);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let library = library_config(config, boot.me, boot.applied.index);
        let started = catch_unwind(AssertUnwindSafe(|| {
            if boot.applied.index > head.trunc.index {
                let found = boot.applied.term.0;
                let logged = view.logged_term(boot.applied.index.0).map_err(|e| e.to_string())?;
                if logged != found {
                    return Err(format!("entry {} has term {logged}, applied was {found}", boot.applied.index));
                }
            }
            RawNode::new(&library, view, &logger).map_err(|e| e.to_string())
        }));
        let node = match started {
            Ok(Ok(node)) => node,
            Ok(Err(why)) => return Err(LossReason::Boot(why)),
            Err(payload) => return Err(LossReason::Panic(panic_text(payload.as_ref()))),
        };
        let chance = Chance::new(config.seed, boot.range.0, boot.me.0);
        let mut group = Self {
            range: boot.range,
            me: boot.me,
            store: boot.store,
            config: config.clone(),
            node,
            lost: None,
            initialised: boot.descriptor.is_some(),
            stores: BTreeMap::new(),
            promise: head.promise,
            promise_dirty: false,
            promise_durable: head.promise,
            lease: boot.lease,
            tenure: Tenure::default(),
            hold: None,
            release: None,
            releases: Vec::new(),
            elections: Elections::new(chance, boot.mono),
            suspect: None,
            term_leader: (0, 0),
            written: head.hard,
            pending: VecDeque::new(),
            restoring: None,
            seen: (StateRole::Follower, hard.term.0, 0, hard.vote.0),
            reported: RoleState { term: hard.term, ..RoleState::default() },
            wants_catch_up: false,
            last_stuck: None,
            mono: boot.mono,
        };
        group.node.raft.set_randomized_election_timeout(Self::fixed_timeout());
        if let Some(descriptor) = boot.descriptor {
            group.set_descriptor(descriptor);
        }
        group.plan_first_election();
        Ok(group)
    }

    /// Runs `f`; a panic inside loses the replica and not the node (lessons rule 16).
    pub(super) fn guard<R: Default>(&mut self, ctx: &Ctx<'_>, f: impl FnOnce(&mut Self) -> R) -> R {
        if self.lost.is_some() {
            return R::default();
        }
        self.mono = ctx.mono;
        match catch_unwind(AssertUnwindSafe(|| f(self))) {
            Ok(result) => result,
            Err(payload) => {
                let why = LossReason::Panic(panic_text(payload.as_ref()));
                self.lose(ctx, why);
                R::default()
            }
        }
    }

    /// Declares the replica lost. If it may have led, it counts as a former leader with U at the store's bound
    /// (leases 5.11), since its memory is not trusted.
    pub fn lose(&mut self, ctx: &Ctx<'_>, why: LossReason) {
        if self.lost.is_some() {
            return;
        }
        let led =
            if self.seen.0 == StateRole::Leader { Some(self.tenure.term) } else { self.hold.map(|(term, _)| term) };
        if let Some(term) = led {
            let until = ctx.support.own_bound();
            self.hold = Some((term, until));
            self.release = Some((term, until, ctx.mono));
        }
        self.reported = RoleState { role: Role::Follower, leader: None, ..self.reported };
        self.pending.clear();
        self.restoring = None;
        self.lost = Some(why);
    }

    /// Why it is lost, if it is. A lost group answers nothing and proposes nothing; it only sends `Release`.
    #[must_use]
    pub const fn lost(&self) -> Option<&LossReason> {
        self.lost.as_ref()
    }

    /// The applied descriptor is new: who lives where.
    pub fn set_descriptor(&mut self, descriptor: &RangeDescriptor) {
        self.initialised = true;
        self.stores.clear();
        self.stores.extend(descriptor.replicas.iter().map(|replica| (replica.replica, replica.store)));
    }

    pub(super) fn is_leader(&self) -> bool {
        self.lost.is_none() && self.node.raft.state == StateRole::Leader
    }

    pub(super) fn term_now(&self) -> Term {
        Term(self.node.raft.term)
    }

    /// Term and vote, durable or not.
    #[must_use]
    pub fn hard(&self) -> HardState {
        let raft = &self.node.raft;
        HardState { term: Term(raft.term), vote: ReplicaId(raft.vote), commit: self.committed() }
    }

    pub(super) fn view(&self) -> &LogView {
        &self.node.raft.raft_log.store
    }

    /// This store.
    #[must_use]
    pub const fn store(&self) -> StoreId {
        self.store
    }

    /// Role, term, leader.
    #[must_use]
    pub fn role(&self) -> RoleState {
        if self.lost.is_some() {
            return self.reported;
        }
        let raft = &self.node.raft;
        let role = match raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        };
        let leader = (raft.leader_id != 0).then_some(ReplicaId(raft.leader_id));
        RoleState { role, term: Term(raft.term), leader }
    }

    /// Last entry, durable or not.
    #[must_use]
    pub fn last(&self) -> LogPos {
        let log = &self.node.raft.raft_log;
        match log.unstable_entries().last() {
            Some(entry) => super::log::position(entry),
            None => self.view().last,
        }
    }

    /// Committed index.
    #[must_use]
    pub fn committed(&self) -> LogIndex {
        LogIndex(self.node.raft.raft_log.committed)
    }

    /// Durable index.
    #[must_use]
    pub fn persisted_index(&self) -> LogIndex {
        LogIndex(self.node.raft.raft_log.persisted)
    }

    /// Applied position.
    #[must_use]
    pub fn applied(&self) -> LogPos {
        self.view().applied
    }

    /// Truncated position.
    #[must_use]
    pub fn truncated(&self) -> LogPos {
        self.view().trunc
    }

    /// The applied configuration.
    #[must_use]
    pub fn conf(&self) -> &ConfState {
        &self.view().conf
    }

    /// ε.
    pub(crate) const fn max_offset(&self) -> Duration {
        self.config.max_offset
    }

    /// H.
    pub(crate) const fn heartbeat_interval(&self) -> Duration {
        self.config.heartbeat_interval
    }

    /// Bytes of entries in memory.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.view().cached_bytes()
    }

    /// When it last heard its leader, in monotonic time; `None` if it leads.
    #[must_use]
    pub(crate) fn heard_leader(&self) -> Option<Duration> {
        (!self.is_leader()).then_some(self.elections.heard)
    }

    /// Whether the applied configuration is the one that a descriptor stands for.
    #[must_use]
    pub(crate) fn conf_matches(&self, descriptor: &RangeDescriptor) -> bool {
        let sorted = |conf: &ConfState| {
            let mut parts = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next].map(Vec::clone);
            parts.iter_mut().for_each(|ids| ids.sort_unstable());
            parts
        };
        sorted(&conf_of(Some(descriptor))) == sorted(self.conf())
    }

    /// Gives up entries at or below `through`, or as many as are applied. Only as an after-flush act.
    pub fn truncate(&mut self, through: LogIndex) -> Option<LogOp> {
        if self.lost.is_some() || self.restoring.is_some() {
            return None;
        }
        let range = self.range;
        let through = self.node.raft.raft_log.store.truncate(through)?;
        Some(LogOp::Truncate { range, through })
    }

    /// It has state, votes, and may lead: not a learner, not uninitialised, not lost.
    #[must_use]
    pub fn promotable(&self) -> bool {
        self.lost.is_none() && self.initialised && self.node.raft.promotable()
    }

    /// A configuration change is appended and not applied.
    #[must_use]
    pub fn has_pending_conf(&self) -> bool {
        self.node.raft.has_pending_conf()
    }

    /// What the leader knows of the others, by replica. Empty if it does not lead.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        if !self.is_leader() {
            return Vec::new();
        }
        let others = self.node.raft.prs().iter().filter(|(id, _)| **id != self.me.0);
        let mut peers: Vec<Peer> = others
            .map(|(id, progress)| Peer {
                replica: ReplicaId(*id),
                matched: LogIndex(progress.matched),
                replicating: progress.state == ProgressState::Replicate,
                in_snapshot: progress.state == ProgressState::Snapshot,
            })
            .collect();
        peers.sort_by_key(|peer| peer.replica);
        peers
    }

    /// Nothing is under way in the library or the log: last = persisted = committed = applied, no pending change, no
    /// ready waiting (leases 7.2).
    #[must_use]
    pub fn at_rest(&self) -> bool {
        let last = self.last().index;
        self.lost.is_none()
            && self.pending.is_empty()
            && self.restoring.is_none()
            && !self.promise_dirty
            && !self.node.has_ready()
            && self.persisted_index() == last
            && self.committed() == last
            && self.applied().index == last
            && self.view().conf.voters_outgoing.is_empty()
            && !self.node.raft.has_pending_conf()
            && self.node.raft.pending_read_count() == 0
    }

    pub(super) const fn fixed_timeout() -> usize {
        2 * ELECTION_TICKS - 1
    }
}
