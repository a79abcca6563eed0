//! The log's mark: which batch was synced last, kept beside the log (docs/durability.md, "Log").
//!
//! Two slots of 512 bytes are written in turn after every sync, before anybody is told of it; the mark itself is synced
//! once a second. A log that recovers to less than its mark has lost a synced tail. A crash of the process loses
//! nothing of the mark; a crash of the machine may lose its last second, which only makes it less strict.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use flotilla_types::StoreUuid;

use crate::log::LogSeq;

const SLOT: u64 = 512;
const USED: usize = 28;
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The open mark.
pub(crate) struct SyncMark {
    file: File,
    store: StoreUuid,
    synced_at: Instant,
}

impl SyncMark {
    /// Opens the mark, or makes one, and says which batch it remembers. Slots of another store are nobody's.
    pub(crate) fn open(path: &Path, store: StoreUuid) -> io::Result<(Self, LogSeq)> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let newest = (0..2).filter_map(|slot| read_slot(&file, slot, store)).max().unwrap_or_default();
        Ok((Self { file, store, synced_at: Instant::now() }, newest))
    }

    /// Remembers a batch that was synced.
    pub(crate) fn note(&mut self, seq: LogSeq) -> io::Result<()> {
        let mut bytes = [0; USED];
        bytes[..16].copy_from_slice(&self.store.0);
        bytes[16..24].copy_from_slice(&seq.0.to_be_bytes());
        let crc = crc32c::crc32c(&bytes[..24]);
        bytes[24..].copy_from_slice(&crc.to_be_bytes());
        self.file.write_all_at(&bytes, (seq.0 % 2) * SLOT)?;
        if self.synced_at.elapsed() >= SYNC_EVERY {
            self.file.sync_data()?;
            self.synced_at = Instant::now();
        }
        Ok(())
    }
}

/// A slot that was torn, never written, or written by another store says nothing.
fn read_slot(file: &File, slot: u64, store: StoreUuid) -> Option<LogSeq> {
    let mut bytes = [0; USED];
    file.read_exact_at(&mut bytes, slot * SLOT).ok()?;
    let (body, crc) = bytes.split_at(24);
    let good = crc32c::crc32c(body).to_be_bytes() == crc && body[..16] == store.0;
    good.then(|| LogSeq(body[16..].iter().fold(0, |seq, byte| seq << 8 | u64::from(*byte))))
}
