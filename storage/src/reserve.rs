//! A file that only takes up room: deleted when the disk is nearly full, so that the log can still be written while
//! writes are refused and a person makes room (docs/durability.md, "A full disk").

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// The reserve of one disk.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Names the reserve; `hold` makes it.
    #[must_use]
    pub const fn new(path: PathBuf, bytes: u64) -> Self {
        Self { path, bytes }
    }

    /// Free bytes on the disk beside the reserve.
    ///
    /// # Errors
    /// The disk cannot be asked.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let disk = statvfs(self.path.parent().unwrap_or(Path::new(".")))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Whether it is held in full.
    #[must_use]
    pub fn is_held(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|file| file.len() >= self.bytes)
    }

    /// Takes the room, if as much again stays free. Says whether it is held now.
    ///
    /// # Errors
    /// The disk failed.
    pub fn hold(&self) -> io::Result<bool> {
        if self.is_held() {
            return Ok(true);
        }
        if self.bytes == 0 || self.free_bytes()? < self.bytes.saturating_mul(2) {
            return Ok(false);
        }
        let file = File::options().write(true).create(true).truncate(false).open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOSPC) => self.release().map(|()| false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// The disk failed.
    pub fn release(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_takes_room_and_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(dir.path().join("reserve"), 1 << 20);
        assert!(reserve.hold().unwrap() && reserve.is_held());
        assert!(reserve.hold().unwrap(), "again");
        reserve.release().unwrap();
        reserve.release().unwrap();
        assert!(!reserve.is_held());
        let absurd = Reserve::new(dir.path().join("absurd"), u64::MAX / 4);
        assert!(!absurd.hold().unwrap(), "it never takes the last room");
    }
}
