//! What is looked at before the log is opened, because raft-engine would pass over it in silence: a missing file, and
//! pages that a failed fsync left in memory only.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use crate::log::LogFatal;

/// Examines the files of a log.
///
/// # Errors
/// A file is missing between others, or the disk failed.
pub(crate) fn examine(dir: &Path) -> Result<(), LogFatal> {
    let io = |error: std::io::Error| LogFatal::Io(format!("examine the log: {error}"));
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let name = name.to_string_lossy();
        numbers.extend(name.strip_suffix(".raftlog").and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    if let Some(gap) = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        let what = format!("the file after {:016}.raftlog is missing; what lies in older files would be lost", gap[0]);
        return Err(LogFatal::Damaged(what));
    }
    for number in &numbers {
        let file = File::open(dir.join(format!("{number:016}.raftlog"))).map_err(io)?;
        if Some(number) == numbers.last() {
            file.sync_data().map_err(io)?;
        }
        // From here on reads come from the disk: a page that survived a failed fsync must not pass as durable.
        fadvise(&file, 0, None, Advice::DontNeed).map_err(|error| io(error.into()))?;
    }
    Ok(())
}
