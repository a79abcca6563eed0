//! Snapshots between fleets: see `snapshot` for the parts.

use std::time::Duration;

use flotilla_storage::engine::Reader;
use flotilla_types::{RangeDescriptor, RangeId};

use super::Fleet;
use crate::boot;
use crate::event::{Effect, Ticket};
use crate::message::{SnapshotHeader, SnapshotId};
use crate::raft::{Ctx, GroupReady, LossReason};
use crate::replica::Replica;
use crate::snapshot::intake::cleared;
use crate::snapshot::{Open, Stage};
use crate::turn::Turn;

/// For so long a child that a split made here takes no snapshot: longer than a leader takes to try its log again.
const CHILDHOOD: Duration = Duration::from_secs(5);

impl Fleet {
    /// Begins what is due. Called when everything of the turn was applied: the effect shows exactly that.
    pub(super) fn send_snapshots(&mut self, ctx: &Ctx<'_>, turn: &mut Turn) {
        for (range, to) in self.outgoing.due(ctx.mono) {
            let Some(replica) = self.replicas.get(&range) else { continue };
            // Not wanted any more: the library has said so to itself.
            let Some((at, envelope)) = replica.group.snapshot_envelope(to) else { continue };
            let descriptor = replica.state.descriptor.clone();
            let Some(store) = descriptor.replica(to).map(|replica| replica.store) else { continue };
            let id = self.outgoing.begin(Open { range, to, at: at.index });
            turn.look(Effect::SendSnapshot { to: store, header: SnapshotHeader { id, descriptor, envelope } });
        }
    }

    /// A transfer ended; the library must hear of it, whatever happened.
    pub(super) fn snapshot_sent(&mut self, ctx: &Ctx<'_>, id: SnapshotId, delivered: bool) {
        let Some(open) = self.outgoing.ended(id, ctx.mono) else { return };
        if let Some(group) = self.group(open.range) {
            group.report_snapshot(ctx, open.to, delivered);
        }
    }

    /// The frames of a snapshot are here, in files.
    pub(super) fn snapshot_received(
        &mut self,
        ctx: &Ctx<'_>,
        header: SnapshotHeader,
        files: Vec<String>,
        turn: &mut Turn,
    ) {
        let range = header.descriptor.range;
        if let Err(why) = self.may_install(ctx, &header) {
            tracing::info!(%range, why, "a snapshot is refused");
            self.ask_who_overlaps(ctx, &header, turn);
            return turn.effects.push(Effect::Discard { files });
        }
        let (from, envelope) = (header.id.from, header.envelope.clone());
        self.incoming.begin(header, files);
        if let Some(group) = self.group(range) {
            group.receive_snapshot(ctx, from, &envelope);
        }
    }

    /// Another replica here stands in the way of a snapshot: it may have been removed while it slept. It asks at once.
    fn ask_who_overlaps(&mut self, ctx: &Ctx<'_>, header: &SnapshotHeader, turn: &mut Turn) {
        let Some(range) = self.overlapping(&header.descriptor) else { return };
        self.wake(ctx, range, false);
        if let Some(replica) = self.replicas.get_mut(&range) {
            replica.asked = ctx.mono;
            let key = replica.state.descriptor.span.start.clone();
            turn.effects.push(Effect::Confirm { range, key });
        } else if let Some(lost) = self.lost.get(&range) {
            let key = lost.descriptor.span.start.clone();
            turn.effects.push(Effect::Confirm { range, key });
        }
    }

    /// Spans of live replicas never overlap (durability D9).
    fn may_install(&self, ctx: &Ctx<'_>, header: &SnapshotHeader) -> Result<(), &'static str> {
        let (range, to) = (header.descriptor.range, header.envelope.to);
        let here = match (self.replicas.get(&range), self.uninit.get(&range)) {
            (Some(replica), _) => replica.id(),
            (None, Some(uninit)) => uninit.me,
            (None, None) => return Err("its replica is not here"),
        };
        if here != to || header.envelope.range != range {
            return Err("it is for another replica");
        }
        let own = header.descriptor.replica(to).is_some_and(|replica| replica.store == self.config.store);
        if !own || header.descriptor.validate().is_err() {
            return Err("its descriptor does not name this replica");
        }
        if self.incoming.is_arriving(range) {
            return Err("another one is being installed");
        }
        // It was sent to the replica that had no state yet. What comes by the log also makes the children of later splits
        // here; a snapshot would leap over these, and who has no state does not vote.
        let young = self.replicas.get(&range).and_then(|replica| replica.born);
        if young.is_some_and(|born| ctx.mono.saturating_sub(born) < CHILDHOOD) {
            return Err("it was born a moment ago, and may catch up by its log");
        }
        if self.incoming.overlapping(&header.descriptor).is_some() || self.overlapping(&header.descriptor).is_some() {
            return Err("another replica here holds some of its keys");
        }
        Ok(())
    }

    /// Another live range here that holds keys of this descriptor.
    pub(super) fn overlapping(&self, descriptor: &RangeDescriptor) -> Option<RangeId> {
        let holds = |(range, replica): &(&RangeId, &Replica)| {
            **range != descriptor.range && replica.state.descriptor.span.overlaps(&descriptor.span)
        };
        let lost = self.lost.iter().find(|(_, lost)| lost.descriptor.span.overlaps(&descriptor.span));
        self.replicas.iter().find(holds).map(|(range, _)| *range).or_else(|| lost.map(|(range, _)| *range))
    }

    /// The library took the snapshot: term and vote go to the log first, with the old commit index.
    pub(super) fn snapshot_ready(&mut self, range: RangeId, ready: &GroupReady, turn: &mut Turn) {
        if ready.snapshot.is_none() {
            return;
        }
        // What was given to the log before counts too: a replica whose `Create` is not durable yet must not be in the engine.
        let nothing_new = ready.log_ops.is_empty() && turn.log_ops.is_empty();
        let awaited = if nothing_new { self.writing.keys().next_back().copied() } else { Some(self.next_ticket) };
        match awaited {
            Some(ticket) => {
                if let Some(arrival) = self.incoming.get_mut(range) {
                    arrival.stage = Stage::Logging(ticket);
                }
            }
            None => self.install(range, turn),
        }
    }

    /// The log is durable up to here.
    pub(super) fn snapshots_logged(&mut self, through: Ticket, turn: &mut Turn) {
        for range in self.incoming.logged(through) {
            self.install(range, turn);
        }
    }

    fn install(&mut self, range: RangeId, turn: &mut Turn) {
        let old = self.replicas.get(&range).map(|replica| &replica.state.descriptor);
        let Some(arrival) = self.incoming.get_mut(range) else { return };
        arrival.stage = Stage::Ingesting;
        let cleared = old.map(|old| cleared(range, old, &arrival.header.descriptor)).unwrap_or_default();
        let files = std::mem::take(&mut arrival.files);
        turn.effects.push(Effect::Ingest { id: arrival.header.id, files, cleared });
    }

    /// The library did not take what was stepped: it has it already, or follows another leader.
    pub(super) fn discard_refused(&mut self, range: RangeId, turn: &mut Turn) {
        if let Some(refused) = self.incoming.take_refused(range) {
            turn.effects.push(Effect::Discard { files: refused.files });
        }
    }

    /// The files are part of the engine: the replica is what they say, and its log begins anew.
    pub(super) fn ingested(&mut self, ctx: &Ctx<'_>, id: SnapshotId, engine: &dyn Reader, turn: &mut Turn) {
        let Some(arrival) = self.incoming.ingested(id) else { return };
        let range = arrival.header.descriptor.range;
        let state = boot::load_state(engine, range).map_err(|why| why.to_string());
        let before = self.replicas.get(&range).map(|replica| replica.state.descriptor.clone());
        let state = match state {
            Ok(state) => state,
            Err(why) => {
                if let Some(group) = self.group(range) {
                    group.lose(ctx, LossReason::Boot(why));
                }
                return;
            }
        };
        let (descriptor, lease) = (state.descriptor.clone(), state.lease);
        if let Some(replica) = self.replicas.get_mut(&range) {
            replica.replace_state(state);
        } else if let Some(uninit) = self.uninit.remove(&range) {
            self.replicas.insert(range, Replica::new(uninit.me, self.config.store, uninit.group, state));
        }
        if self.peers.count(before.as_ref(), Some(&descriptor)) {
            turn.effects.push(Effect::Peers(self.peers.stores()));
        }
        let Some(group) = self.group(range) else { return };
        let ready = group.restored(ctx, &descriptor, &lease);
        turn.log_ops.extend(ready.log_ops);
        turn.numbers.extend(ready.number.map(|number| (range, number)));
    }
}
