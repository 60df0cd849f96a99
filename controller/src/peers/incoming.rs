//! A snapshot that is being received: a file that grows, and is there after the connection, or this controller, was cut
//! off.
//!
//! It is named after what it is to become, checksum included, so that another leader's transfer of the same bytes
//! goes on with it. There is one: the beginning of another removes it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use roster_proto::wire;

/// The largest snapshot that is received: far more than the limits of a cluster's state add up to.
pub(super) const MAX_SNAPSHOT: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub(crate) enum IncomingError {
    #[error("cannot {verb} {path}")]
    File { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("a snapshot of {length} bytes is larger than {MAX_SNAPSHOT}")]
    TooLarge { length: u64 },
    #[error("the piece begins at {offset}, but {have} bytes are there")]
    Gap { offset: u64, have: u64 },
    #[error("more bytes than the snapshot's {length} came")]
    TooMuch { length: u64 },
    #[error("the snapshot does not match its checksum: it is received anew")]
    Damaged,
}

/// One transfer at a time.
#[derive(Debug)]
pub(super) struct Incoming {
    dir: PathBuf,
    pub(super) busy: tokio::sync::Mutex<()>,
}

impl Incoming {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, busy: tokio::sync::Mutex::default() }
    }

    fn path(&self, id: &wire::SnapshotId) -> PathBuf {
        self.dir.join(format!("snapshot-{}-{}-{}-{:08x}", id.index, id.term, id.length, id.crc))
    }

    /// How much of it is there.
    pub(super) fn progress(&self, id: &wire::SnapshotId) -> Result<u64, IncomingError> {
        let path = self.path(id);
        match fs::metadata(&path) {
            Ok(found) => Ok(found.len().min(id.length)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(failed_to("look at", &path)(error)),
        }
    }

    /// Goes on with what is there, and removes what is of other snapshots.
    pub(super) fn open(&self, id: &wire::SnapshotId) -> Result<Partial, IncomingError> {
        if id.length > MAX_SNAPSHOT {
            return Err(IncomingError::TooLarge { length: id.length });
        }
        let path = self.path(id);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed_to("make", &self.dir))?;
        for entry in fs::read_dir(&self.dir).map_err(failed_to("read", &self.dir))? {
            let other = entry.map_err(failed_to("read", &self.dir))?.path();
            if other != path {
                fs::remove_file(&other).map_err(failed_to("remove", &other))?;
            }
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let file = file.map_err(failed_to("open", &path))?;
        let have = file.metadata().map_err(failed_to("look at", &path))?.len();
        Ok(Partial { path, file, have, length: id.length, crc: id.crc })
    }
}

pub(super) struct Partial {
    path: PathBuf,
    file: fs::File,
    have: u64,
    length: u64,
    crc: u32,
}

impl Partial {
    pub(super) fn append(&mut self, offset: u64, data: &[u8]) -> Result<(), IncomingError> {
        if offset != self.have {
            return Err(IncomingError::Gap { offset, have: self.have });
        }
        if self.have + data.len() as u64 > self.length {
            return Err(IncomingError::TooMuch { length: self.length });
        }
        self.file.write_all(data).map_err(failed_to("write", &self.path))?;
        self.have += data.len() as u64;
        Ok(())
    }

    pub(super) fn is_whole(&self) -> bool {
        self.have == self.length
    }

    /// All of it, when it is what its sender meant.
    pub(super) fn finish(self) -> Result<Bytes, IncomingError> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.length).unwrap_or_default());
        let mut file = fs::File::open(&self.path).map_err(failed_to("open", &self.path))?;
        file.read_to_end(&mut bytes).map_err(failed_to("read", &self.path))?;
        // From here on it is in memory, or worthless.
        fs::remove_file(&self.path).map_err(failed_to("remove", &self.path))?;
        if bytes.len() as u64 != self.length || crc32fast::hash(&bytes) != self.crc {
            return Err(IncomingError::Damaged);
        }
        Ok(bytes.into())
    }
}

fn failed_to(verb: &'static str, path: &Path) -> impl Fn(io::Error) -> IncomingError + use<> {
    let path = path.to_owned();
    move |source| IncomingError::File { verb, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(bytes: &[u8]) -> wire::SnapshotId {
        let crc = crc32fast::hash(bytes);
        wire::SnapshotId { from: 1, index: 7, term: 2, length: bytes.len() as u64, crc }
    }

    #[test]
    fn what_was_received_is_there_for_the_next_transfer() {
        let dir = tempfile::tempdir().expect("a directory");
        let id = id(b"abcdef");
        let incoming = Incoming::new(dir.path().join("incoming"));
        assert_eq!(incoming.progress(&id).expect("nothing yet"), 0);
        incoming.open(&id).expect("open").append(0, b"abc").expect("appended");

        // Another leader, after this controller began anew.
        let id = wire::SnapshotId { from: 9, ..id };
        let incoming = Incoming::new(dir.path().join("incoming"));
        assert_eq!(incoming.progress(&id).expect("some"), 3);
        let mut partial = incoming.open(&id).expect("open");
        let gap = partial.append(2, b"x").expect_err("it does not go on from there");
        assert_eq!(gap.to_string(), "the piece begins at 2, but 3 bytes are there");
        partial.append(3, b"def").expect("appended");
        assert!(partial.is_whole());
        assert!(partial.append(6, b"g").is_err(), "no more than it said");
        assert_eq!(partial.finish().expect("whole"), "abcdef");
        assert_eq!(incoming.progress(&id).expect("gone"), 0);
    }

    #[test]
    fn what_was_damaged_is_received_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let incoming = Incoming::new(dir.path().to_owned());
        let mut partial = incoming.open(&id(b"abc")).expect("open");
        partial.append(0, b"abX").expect("appended");
        assert!(matches!(partial.finish(), Err(IncomingError::Damaged)));
        assert_eq!(incoming.progress(&id(b"abc")).expect("gone"), 0);
    }

    #[test]
    fn one_snapshot_is_kept_and_none_too_large_begun() {
        let dir = tempfile::tempdir().expect("a directory");
        let incoming = Incoming::new(dir.path().to_owned());
        incoming.open(&id(b"abc")).expect("open").append(0, b"ab").expect("appended");
        incoming.open(&id(b"other")).expect("open").append(0, b"o").expect("appended");
        assert_eq!(incoming.progress(&id(b"abc")).expect("gone"), 0);
        let huge = wire::SnapshotId { length: MAX_SNAPSHOT + 1, ..id(b"") };
        assert!(matches!(incoming.open(&huge), Err(IncomingError::TooLarge { .. })));
    }
}
