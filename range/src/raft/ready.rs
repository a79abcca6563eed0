//! From the library's Ready to what the fleet carries out, and back when it is durable (durability section 2).

use flotilla_storage::log::{HardState, LogOp, LogPos};
use flotilla_storage::state::LeaseState;
use flotilla_types::{LogIndex, RangeDescriptor, ReplicaId, Term};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{Ready, StateRole};

use super::group::{Group, Pending, Restoring};
use super::log::to_log;
use super::support::Ctx;
use super::types::{GroupReady, Sends, SnapshotIn};
use super::wire;
use crate::message::{Beat, BeatReply, Envelope};

impl Group {
    /// What is to be done now; `None` if nothing. Carry it out before the next call, and ask again until `None`.
    pub fn ready(&mut self, ctx: &Ctx<'_>) -> Option<GroupReady> {
        let mut out = self.guard(ctx, |group| {
            if group.restoring.is_none() && (group.node.has_ready() || group.promise_dirty) {
                group.take_ready()
            } else {
                GroupReady::default()
            }
        });
        out.releases = std::mem::take(&mut self.releases);
        out.wants_catch_up = std::mem::take(&mut self.wants_catch_up);
        let role = self.role();
        if role != self.reported {
            self.reported = role;
            out.role = Some(role);
        }
        (!out.is_empty()).then_some(out)
    }

    fn take_ready(&mut self) -> GroupReady {
        let mut ready = self.node.ready();
        let entries = ready.take_entries();
        let raft_hard = self.node.raft.hard_state();
        let mut hard = HardState {
            term: Term(raft_hard.term),
            vote: ReplicaId(raft_hard.vote),
            commit: LogIndex(raft_hard.commit),
        };
        let elected = hard.term != self.written.term || hard.vote != self.written.vote;
        let committed = ready.committed_entries().iter().map(to_log).collect();
        let mut out = GroupReady { reads: reads(&mut ready), committed, ..GroupReady::default() };
        let mut waiting = ready.take_persisted_messages();
        let at_once = ready.take_messages();
        if elected && self.node.raft.state == StateRole::Leader {
            // A single voter leads in the very ready that holds its vote. The library would let its appends to learners
            // go first; after a crash the same term could then be led again with other entries.
            waiting.extend(at_once);
        } else {
            out.sends = self.sends(at_once);
        }
        let range = self.range;
        let snapshot = Some(ready.snapshot()).filter(|snapshot| snapshot.get_metadata().index > 0).map(|snapshot| {
            let metadata = snapshot.get_metadata();
            let pos = LogPos { index: LogIndex(metadata.index), term: Term(metadata.term) };
            SnapshotIn { pos, conf: metadata.get_conf_state().clone(), data: snapshot.data.clone() }
        });
        let mut after = Vec::new();
        if let Some(snapshot) = &snapshot {
            after.push(LogOp::Reset { range, at: snapshot.pos, hard });
            self.node.raft.raft_log.store.reset(snapshot.pos, snapshot.conf.clone());
            // Until the ingest is durable the log must not know a commit index above its end (durability section 5).
            hard.commit = self.written.commit;
        }
        if self.hard_is_due(&entries, elected, snapshot.is_some()) {
            out.log_ops.push(LogOp::Hard { range, hard });
        }
        if !entries.is_empty() {
            self.node.raft.raft_log.store.append(&entries);
            let append = LogOp::Append { range, entries: entries.iter().map(to_log).collect() };
            if snapshot.is_some() { after.push(append) } else { out.log_ops.insert(0, append) }
        }
        if !out.log_ops.is_empty() {
            self.written = hard;
        }
        if std::mem::take(&mut self.promise_dirty) {
            out.log_ops.push(LogOp::Promise { range, promise: self.promise });
        }
        let number = ready.number();
        self.node.advance_append_async(ready);
        let writes = !out.log_ops.is_empty() || snapshot.is_some();
        let restores = snapshot.as_ref().map(|snapshot| snapshot.pos.index.0);
        let promise = self.promise;
        self.pending.push_back(Pending { number, writes, messages: waiting, promise, restores });
        if let Some(snapshot) = snapshot {
            out.snapshot = Some(snapshot.clone());
            self.restoring = Some(Restoring { number, ops: after, snapshot });
        } else if writes {
            out.number = Some(number);
        } else if self.pending.len() == 1 {
            out.sends.append(self.release_pending(number));
        }
        out
    }

    /// Durability section 2, "When HardState is written".
    fn hard_is_due(&self, entries: &[Entry], elected: bool, snapshot: bool) -> bool {
        let conf = entries.iter().any(|entry| entry.get_entry_type() != EntryType::EntryNormal);
        let rewrites = entries.first().is_some_and(|first| first.index <= self.view().last.index.0);
        elected || (!snapshot && (conf || rewrites))
    }

    /// The log ops of this ready, and of all before, are durable. Returns what waited for it; then ask `ready` again.
    pub fn persisted(&mut self, ctx: &Ctx<'_>, number: u64) -> Sends {
        self.guard(ctx, |group| {
            let sends = group.release_pending(number);
            group.observe(ctx);
            sends
        })
    }

    fn release_pending(&mut self, number: u64) -> Sends {
        let mut sends = Sends::default();
        let (mut reached, mut restored) = (None, None);
        while let Some(front) = self.pending.front() {
            if front.writes && front.number > number {
                break;
            }
            let Some(done) = self.pending.pop_front() else { break };
            reached = Some(done.number);
            restored = done.restores.or(restored);
            if !self.promise_dirty && done.promise == self.promise {
                self.promise_durable = self.promise;
            }
            sends.append(self.sends(done.messages));
        }
        if let Some(number) = reached {
            self.node.on_persist_ready(number);
            if let Some(index) = restored {
                self.node.advance_apply_to(index);
            }
            self.evict();
        }
        sends
    }

    /// The snapshot of the last ready was ingested, with this descriptor and lease in it. Returns the log ops that
    /// follow; tell them durable by `persisted`.
    pub fn restored(&mut self, ctx: &Ctx<'_>, descriptor: &RangeDescriptor, lease: &LeaseState) -> GroupReady {
        let out = self.guard(ctx, |group| {
            let Some(restoring) = group.restoring.take() else { return GroupReady::default() };
            group.set_descriptor(descriptor);
            let at = restoring.snapshot.pos;
            group.node.raft.raft_log.store.applied = at;
            for op in &restoring.ops {
                if let LogOp::Reset { hard, .. } = op {
                    group.written = *hard;
                }
            }
            GroupReady { number: Some(restoring.number), log_ops: restoring.ops, ..GroupReady::default() }
        });
        self.note_applied_lease(ctx, lease);
        out
    }

    /// Entries up to here are in the engine's memory.
    pub fn advance_applied(&mut self, ctx: &Ctx<'_>, to: LogPos) {
        self.guard(ctx, |group| {
            if to.index <= group.applied().index {
                return;
            }
            group.node.raft.raft_log.store.applied = to;
            group.node.advance_apply_to(to.index.0);
            group.evict();
            group.observe(ctx);
        });
    }

    /// Frees memory: what is durable, applied, and needed by no follower; a leader keeps the rest within its budget.
    fn evict(&mut self) {
        let raft = &mut self.node.raft;
        let settled = raft.raft_log.persisted.min(raft.raft_log.store.applied.index.0);
        let needed_above = match raft.state {
            StateRole::Leader => raft.prs().iter().map(|(_, progress)| progress.matched).min().unwrap_or(settled),
            _ => settled,
        };
        let budget = self.config.cache_bytes_max;
        raft.raft_log.store.evict(needed_above.min(settled), settled, budget);
    }

    /// Frees all that is durable and applied: followers that lack it are served from the log. Returns what is left.
    pub(crate) fn shed(&mut self) -> usize {
        let log = &mut self.node.raft.raft_log;
        let settled = log.persisted.min(log.store.applied.index.0);
        log.store.evict(settled, settled, 0);
        log.store.cached_bytes()
    }

    /// Puts the library's messages into envelopes, beats and snapshot requests.
    fn sends(&self, messages: Vec<Message>) -> Sends {
        let mut sends = Sends::default();
        for message in messages {
            let to = ReplicaId(message.to);
            let Some(store) = self.stores.get(&to).copied() else { continue };
            let plain = message.context.is_empty();
            match message.get_msg_type() {
                // The library forwards what a follower was asked; we never ask a follower (lessons section 3).
                MessageType::MsgPropose | MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {}
                MessageType::MsgHeartbeat if plain => sends.beats.push((store, self.beat(&message))),
                MessageType::MsgHeartbeatResponse if plain => {
                    sends.beat_replies.push((store, self.beat_reply(&message)));
                }
                MessageType::MsgSnapshot => sends.wants_snapshot.push((to, store)),
                kind => {
                    let responds = matches!(kind, MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse);
                    let promised = if responds { self.promised_to(to, message.term) } else { 0 };
                    let message = wire::write(&message);
                    sends.messages.push((store, Envelope { range: self.range, from: self.me, to, promised, message }));
                }
            }
        }
        sends
    }

    fn beat(&self, message: &Message) -> Beat {
        Beat {
            range: self.range,
            from: self.me,
            to: ReplicaId(message.to),
            term: Term(message.term),
            commit: LogIndex(message.commit),
            sleep_at: LogIndex(0),
            keep_from: LogIndex(0),
        }
    }

    fn beat_reply(&self, message: &Message) -> BeatReply {
        BeatReply {
            range: self.range,
            from: self.me,
            to: ReplicaId(message.to),
            term: Term(message.term),
            commit: LogIndex(message.commit),
            applied: self.applied().index,
            sum: 0,
            promised: self.promised_to(ReplicaId(message.to), message.term),
            asleep: false,
        }
    }
}

fn reads(ready: &mut Ready) -> Vec<(u64, LogIndex)> {
    let states = ready.take_read_states().into_iter();
    let id = |ctx: &[u8]| ctx.try_into().map(u64::from_be_bytes).ok();
    states.filter_map(|state| Some((id(&state.request_ctx)?, LogIndex(state.index)))).collect()
}
