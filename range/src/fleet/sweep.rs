//! Delete markers of keys that nobody writes again (docs/durability.md, "Old versions").
//!
//! A compaction lets such a marker go only if it takes in everything, which on a large store hardly one does. So after a
//! threshold for which the leader counted enough markers, each store walks over the range once, a page now and then, and
//! deletes each marker at or below the threshold *together with* all older versions that are still there: one batch, so
//! that a crash leaves both or neither. What is not there any more does not come back. The walk needs neither log nor
//! lease, wakes nobody, and changes nothing that may be read or that a check hashes.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_storage::engine::{EngineError, Reader};
use flotilla_storage::{keys, mvcc};
use flotilla_types::{KeySpan, RangeId, Timestamp};

use super::Fleet;
use crate::event::Effect;
use crate::raft::Ctx;
use crate::turn::Turn;

/// Versions that one page takes in, and the time between two. They may come from the disk, and the fleet waits for it.
const PAGE: usize = 256;
const PAGE_EVERY: Duration = Duration::from_millis(20);
/// A key with more old versions below its marker is left to compactions, which take most of them first.
const OLDER_MAX: usize = 4096;

/// Ranges to walk over, one after the other. At most one walk for each range of the store.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    waiting: BTreeMap<RangeId, Sweep>,
    look_at: Duration,
}

#[derive(Debug)]
struct Sweep {
    threshold: Timestamp,
    /// Where it goes on; nothing: at the start.
    cursor: Option<Vec<u8>>,
}

impl Sweeps {
    /// Walks over a range below a threshold that is in force; a walk under way goes on below it.
    pub(super) fn add(&mut self, range: RangeId, threshold: Timestamp) {
        let sweep = self.waiting.entry(range).or_insert(Sweep { threshold, cursor: None });
        sweep.threshold = sweep.threshold.max(threshold);
    }

    pub(super) fn next_wake(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(self.look_at)
    }
}

impl Sweep {
    /// What may go of a page, in order. The cursor is where the next page begins, if there is one.
    fn page(&mut self, engine: &dyn Reader, span: &KeySpan) -> Result<Vec<Vec<u8>>, EngineError> {
        let (start, end) = keys::version_span(span);
        let mut cursor = engine.cursor(&start, &end);
        let from = self.cursor.take().filter(|from| *from > start).unwrap_or(start);
        let mut there = cursor.seek(&from)?;
        let (mut goes, mut current) = (Vec::new(), Vec::new());
        // Where the key at hand began to go, if it does; whether its newest at or below the threshold was met.
        let (mut since, mut settled) = (None, false);
        let mut seen = 0;
        while there {
            let Some((prefix, at)) = keys::split_version(cursor.key()) else { break };
            if prefix != current {
                if seen >= PAGE {
                    self.cursor = Some(cursor.key().to_vec());
                    break;
                }
                (current, since, settled) = (prefix.to_vec(), None, false);
            } else if seen >= PAGE && since.is_none() {
                // What is left of the key is hidden, or above: a marker that the next page takes for the newest may go, too.
                self.cursor = Some(cursor.key().to_vec());
                break;
            }
            if at <= self.threshold {
                if !settled && mvcc::is_deletion(cursor.value())? {
                    since = Some(goes.len());
                }
                settled = true;
                if let Some(begin) = since {
                    goes.push(cursor.key().to_vec());
                    if goes.len() - begin > OLDER_MAX {
                        goes.truncate(begin);
                        since = None;
                    }
                }
            }
            seen += 1;
            there = cursor.next()?;
        }
        Ok(goes)
    }
}

impl Fleet {
    /// Looked at once a turn.
    pub(super) fn sweep(&mut self, ctx: &Ctx<'_>, engine: &dyn Reader, turn: &mut Turn) {
        if self.sweeps.next_wake().is_none_or(|at| at > ctx.mono) {
            return;
        }
        self.sweeps.look_at = ctx.mono + PAGE_EVERY;
        let Some((range, mut sweep)) = self.sweeps.waiting.pop_first() else { return };
        // A snapshot may enter the engine between this look and the write, and bring what the look did not see.
        let whole = |replica: &&crate::replica::Replica| replica.group.lost().is_none();
        let Some(replica) = self.replicas.get(&range).filter(whole) else { return };
        if self.incoming.is_arriving(range) {
            return;
        }
        let goes = match sweep.page(engine, &replica.state.descriptor.span) {
            Ok(goes) => goes,
            // Whoever reads it next for a caller or a check finds out more.
            Err(error) => return tracing::warn!(%range, %error, "delete markers could not be read"),
        };
        if !goes.is_empty() {
            turn.effects.push(Effect::Count("flotilla_gc_versions_swept_total", goes.len() as u64));
        }
        goes.into_iter().for_each(|key| turn.batch.delete(key));
        if sweep.cursor.is_some() {
            self.sweeps.waiting.insert(range, sweep);
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_storage::engine::{Engine, WriteBatch};
    use flotilla_storage::memory::MemoryEngine;
    use flotilla_types::Key;
    use proptest::prelude::*;

    use super::*;

    const KEYS: u16 = 40;

    fn key(n: u16) -> Key {
        flotilla_types::keys::user(&n.to_be_bytes())
    }

    fn get(engine: &dyn Reader, n: u16, wall: u64) -> Option<Timestamp> {
        let window = mvcc::ReadWindow::exactly(Timestamp::from_wall(wall));
        mvcc::get(engine, &key(n), window).unwrap().map(|row| row.timestamp)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn nothing_that_may_be_read_changes_and_no_marker_is_left_below(
            writes in prop::collection::vec((0..KEYS, prop::bool::weighted(0.4)), 0..1500),
            threshold in 0u64..1600,
        ) {
            let engine = MemoryEngine::new();
            let mut batch = WriteBatch::default();
            for ((n, deletes), wall) in writes.iter().zip(1u64..) {
                let value = (!deletes).then_some(&b"v"[..]);
                mvcc::write(&mut batch, &key(*n), Timestamp::from_wall(wall), value, None);
            }
            engine.write(&batch).unwrap();
            let walls = [threshold + 1, threshold + 2, threshold + 40, u64::MAX];
            let reads = || (0..KEYS).flat_map(|n| walls.map(|wall| get(&engine, n, wall))).collect::<Vec<_>>();
            let before = reads();
            let mut sweep = Sweep { threshold: Timestamp::from_wall(threshold), cursor: None };
            loop {
                let mut batch = WriteBatch::default();
                let goes = sweep.page(&engine, &KeySpan::ALL).unwrap();
                goes.into_iter().for_each(|key| batch.delete(key));
                engine.write(&batch).unwrap();
                prop_assert_eq!(reads(), before.clone(), "after every page");
                if sweep.cursor.is_none() {
                    break;
                }
            }
            for n in 0..KEYS {
                let newest = mvcc::newest_at(&engine, &key(n), Timestamp::from_wall(threshold)).unwrap();
                prop_assert!(newest.is_none_or(|version| version.value.is_some()), "a marker is left");
            }
        }
    }
}
