//! The disk's room: a reserve for hard times, and a watch over what is left (docs/durability.md, "A full disk").
//!
//! ```text
//!  free ≥ watermark                 everything is allowed
//!  free < watermark                 user writes are refused; deletes, leases and membership changes pass
//!  free < a quarter of the reserve  the reserve is given back, so that the log can go on while a person makes room
//!  and again, without a reserve     the process stops (exit code 5) before a write of the log can fail
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use flotilla_storage::reserve::Reserve;
use metrics::gauge;
use rustix::fs::statvfs;

use super::fatal::{Failure, OnFailure};
use super::inbox::Inbox;

const GIB: u64 = 1 << 30;
/// Short enough that a fast disk cannot fill the last part unseen.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The room of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can be written.
    pub free: u64,
    /// All its bytes.
    pub total: u64,
}

/// Asks for the room of the disk under a directory; tests tell of any room they like.
pub trait SpaceProbe: Send + Sync + 'static {
    /// The room now.
    ///
    /// # Errors
    /// The disk cannot be asked.
    fn space(&self, dir: &Path) -> io::Result<Space>;
}

/// The real disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealSpace;

impl SpaceProbe for RealSpace {
    fn space(&self, dir: &Path) -> io::Result<Space> {
        let disk = statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok(Space { free: bytes(disk.f_bavail), total: bytes(disk.f_blocks) })
    }
}

/// The reserve that suits a disk, if nobody says otherwise.
#[must_use]
pub fn default_reserve(total: u64) -> u64 {
    (total / 100).clamp(GIB, 8 * GIB)
}

/// Below this much free room, user writes are refused: 4 %, at most 8 GiB. What is acknowledged already has to fit into the
/// rest, memtables and a compaction; whoever chooses a small reserve has a small store in mind.
fn watermark(total: u64, reserve: u64) -> u64 {
    (total / 25).min(8 * GIB).clamp(reserve.saturating_mul(3), reserve.saturating_mul(8))
}

/// Watches one disk.
pub(super) struct DiskWatch {
    pub(super) dir: PathBuf,
    pub(super) reserve: Reserve,
    pub(super) reserve_bytes: u64,
    pub(super) probe: Arc<dyn SpaceProbe>,
}

/// What one look says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Roomy,
    Tight,
    Out,
}

impl DiskWatch {
    /// Before anything is opened: gives the reserve back if there is hardly any room, since the log cannot even be
    /// opened on a full disk.
    pub(super) fn before_boot(&self) -> io::Result<Verdict> {
        let space = self.probe.space(&self.dir)?;
        if space.free >= self.reserve_bytes / 2 {
            return Ok(Verdict::Roomy);
        }
        self.reserve.release()?;
        let free = self.probe.space(&self.dir)?.free;
        Ok(if free < self.reserve_bytes / 4 { Verdict::Out } else { Verdict::Tight })
    }

    /// One look; `tight` is what the last one said.
    pub(super) fn look(&self, tight: bool) -> io::Result<Verdict> {
        let space = self.probe.space(&self.dir)?;
        gauge!("flotilla_disk_free_bytes").set(space.free as f64);
        let line = watermark(space.total, self.reserve_bytes);
        if space.free < self.reserve_bytes / 4 {
            if !self.reserve.is_held() {
                return Ok(Verdict::Out);
            }
            tracing::warn!(free = space.free, "the disk is nearly full: the reserve is given back; make room");
            self.reserve.release()?;
            return Ok(Verdict::Tight);
        }
        // A little more room than the line is wanted to go back: else every file that comes and goes turns it.
        let enough = if tight { line + line / 8 } else { line };
        if space.free < enough {
            return Ok(Verdict::Tight);
        }
        self.reserve.hold()?;
        Ok(Verdict::Roomy)
    }

    /// Runs until `stop` is dropped.
    pub(super) fn run(self, stop: &Receiver<()>, inbox: &Inbox, shown: &AtomicBool, on_failure: &OnFailure) {
        let mut tight = false;
        loop {
            match self.look(tight) {
                Ok(Verdict::Out) => return on_failure.meet(Failure::DiskFull),
                Ok(verdict) => {
                    let now = verdict == Verdict::Tight;
                    if now != tight {
                        tight = now;
                        if tight {
                            tracing::error!("the disk is nearly full: writes are refused until there is room");
                        } else {
                            tracing::info!("the disk has room again");
                        }
                        shown.store(tight, Ordering::Relaxed);
                        inbox.disk_full(tight);
                    }
                }
                Err(error) => tracing::warn!(%error, "the disk's room cannot be asked for"),
            }
            if !matches!(stop.recv_timeout(LOOK_EVERY), Err(RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const MIB: u64 = 1 << 20;

    struct Told(AtomicU64);

    impl SpaceProbe for Told {
        fn space(&self, _: &Path) -> io::Result<Space> {
            Ok(Space { free: self.0.load(Ordering::Relaxed), total: 100 * GIB })
        }
    }

    #[test]
    fn writes_stop_then_the_reserve_goes_then_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let told = Arc::new(Told(AtomicU64::new(50 * GIB)));
        let reserve_bytes = MIB;
        let reserve = Reserve::new(dir.path().join("reserve"), reserve_bytes);
        let watch = DiskWatch { dir: dir.path().to_owned(), reserve, reserve_bytes, probe: Arc::clone(&told) as _ };
        let look = |free: u64, tight: bool| {
            told.0.store(free, Ordering::Relaxed);
            watch.look(tight).unwrap()
        };
        assert_eq!(look(50 * GIB, false), Verdict::Roomy);
        assert!(watch.reserve.is_held());
        assert_eq!(look(7 * MIB, false), Verdict::Tight);
        assert_eq!(look(8 * MIB + MIB / 2, true), Verdict::Tight, "a little more than the line is wanted to go back");
        assert_eq!(look(50 * GIB, true), Verdict::Roomy);
        assert_eq!(look(100 << 10, true), Verdict::Tight);
        assert!(!watch.reserve.is_held(), "given back");
        assert_eq!(look(100 << 10, true), Verdict::Out);
        assert_eq!(watch.before_boot().unwrap(), Verdict::Out);
        assert_eq!(look(5 * GIB, true), Verdict::Roomy);
        assert!(watch.reserve.is_held(), "and held again");
    }
}
