//! Small files of a store's directory, and what the file system under it must be.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock, statfs};

use super::dir::DirError;

/// File systems of other machines, by the numbers of statfs(2): their locks, syncs and renames do not promise what a
/// store relies on.
const NETWORKS: [(u64, &str); 7] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
];

/// An error of the system, with what was being done.
pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirError {
    let path = path.to_owned();
    move |source| DirError::Io { action, path, source }
}

/// Takes the directory for this process; the lock goes with the file, also when the process is killed.
pub(super) fn lock(dir: &Path) -> Result<File, DirError> {
    let path = dir.join("LOCK");
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DirError::Locked { dir: dir.to_owned() }),
        Err(error) => Err(failed("lock", &path)(error.into())),
    }
}

/// Refuses what is not a disk of this machine.
pub(super) fn refuse_network(dir: &Path) -> Result<(), DirError> {
    let found = statfs(dir).map_err(|error| failed("ask the file system of", dir)(error.into()))?;
    // The kernel gives 32 bits; the field's width and sign differ between machines.
    let number = u64::from_ne_bytes((found.f_type as i64).to_ne_bytes()) & 0xffff_ffff;
    match NETWORKS.iter().find(|(known, _)| *known == number) {
        Some((_, kind)) => Err(DirError::Network { dir: dir.to_owned(), kind }),
        None => Ok(()),
    }
}

/// The names in a directory.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, DirError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("read the directory", dir))? {
        let entry = entry.map_err(failed("read the directory", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Writes a small file so that a crash leaves the old content or the new one, never a part.
pub(super) fn write_synced(dir: &Path, name: &str, content: &[u8]) -> Result<(), DirError> {
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}.tmp")));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(failed("write", &path))?;
    sync_dir(dir)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), DirError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync the directory", dir))
}

/// Removes a file, if it is there.
pub(super) fn remove_file(path: &Path) -> Result<(), DirError> {
    there(fs::remove_file(path)).map_err(failed("remove", path))
}

/// Removes a directory with all in it, if it is there.
pub(super) fn remove_dir(path: &Path) -> Result<(), DirError> {
    there(fs::remove_dir_all(path)).map_err(failed("remove", path))
}

fn there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
