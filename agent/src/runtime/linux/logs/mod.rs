//! A container's log as files: how they are named and bounded, and which of removed containers are kept.
//!
//! The shim writes them; [`read_logs`] reads them while it does.

mod format;
mod read;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use format::Entry;
pub use read::{LogError, LogQuery, LogSource, read_logs};

/// Files of one container's log, the one being written included.
pub const LOG_FILES: u32 = 3;
/// Bytes of one file.
pub const LOG_FILE_SIZE: u64 = 10 << 20;
/// Logs of removed containers that are kept, ...
pub const RETAINED_LOGS: usize = 256;
/// ... and how many bytes they may take together.
pub const RETAINED_BYTES: u64 = 512 << 20;

/// `0.log` is the newest.
pub(crate) fn file_name(number: u32) -> String {
    format!("{number}.log")
}

/// Deletes the oldest logs of containers that are gone, beyond what is to be kept.
pub(super) fn prune(logs: &Path, exists: impl Fn(&Path) -> bool) -> io::Result<()> {
    prune_beyond(logs, exists, RETAINED_LOGS, RETAINED_BYTES)
}

fn prune_beyond(logs: &Path, exists: impl Fn(&Path) -> bool, count: usize, bytes: u64) -> io::Result<()> {
    let mut gone = Vec::new();
    for entry in fs::read_dir(logs)? {
        let entry = entry?;
        if exists(Path::new(&entry.file_name())) {
            continue;
        }
        if let Some((written, size)) = absent_is_fine(measure(&entry.path()))? {
            gone.push((written, size, entry.path()));
        }
    }
    gone.sort_by(|a: &(SystemTime, u64, PathBuf), b| b.cmp(a));
    let mut total = 0;
    for (index, (_, size, path)) in gone.iter().enumerate() {
        total += size;
        if index >= count || total > bytes {
            absent_is_fine(fs::remove_dir_all(path))?;
        }
    }
    Ok(())
}

/// Several containers may be removed at the same time, and each then looks for old logs: another was faster.
fn absent_is_fine<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// When it was last written to, and its bytes.
fn measure(dir: &Path) -> io::Result<(SystemTime, u64)> {
    let mut newest = fs::metadata(dir)?.modified()?;
    let mut size = 0;
    for entry in fs::read_dir(dir)? {
        let metadata = entry?.metadata()?;
        newest = newest.max(metadata.modified()?);
        size += metadata.len();
    }
    Ok((newest, size))
}

#[cfg(test)]
mod tests;
