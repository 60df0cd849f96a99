//! The log's records in sled, with the journal in front of it and the witness beside it:
//!
//! ```text
//! lock      held while a controller uses the directory
//! journal/  the last writes, see `journal`
//! log/      sled's
//! witness   see `witness`
//! ```
//!
//! A batch is durable once it is in the journal; sled has what is left of it a while later (`checkpoint`), and at the
//! latest when the journal needs the room. Opening takes what sled does not have yet over from the journal.
//!
//! sled must not flush by itself. On Linux sled 0.34 flushes with sync_file_range(2), which neither empties the disk's
//! own cache nor records a file's new length, and it reuses a segment once what replaces it is flushed like that: a
//! power cut may then keep the new use and lose the replacement, and with it everything. What it moves to files of
//! their own (`blobs`) it does not flush at all. Therefore
//! - its directory has the attribute S of chattr(1), which the files in it inherit: each of sled's writes is on the
//!   disk before the next begins, which is the order it was designed for;
//! - on file systems without that attribute each batch ends with fdatasync(2), the best there is;
//! - records are too small for sled to ever move them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    checkpoint::{Checkpointer, Target, Writes, batch, overlay},
    disk::{Batch, Disk, ReadError},
    error::{Damage, DiskError, OpenError},
    journal::{Found, Journal},
    record::{FORMAT, Head, Key, unseal},
    witness::{self, Witness},
    writer::{Desk, Writer},
};

/// The log is read once, when it is opened; later it is only written.
const CACHE_BYTES: u64 = 2 << 20;
/// How long sled may take to let go of a file whose handle was dropped.
const LET_GO: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How the journal is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// sled is given everything when nothing was written for so long.
    pub(super) idle: Duration,
    /// Of each of the journal's two files: enough for what is logged between two snapshots, and half as much again.
    pub(super) segment_bytes: u64,
    /// sled is given what is left of one when so much of the other is used.
    pub(super) hand_over_at: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle: Duration::from_secs(1), segment_bytes: 12 << 20, hand_over_at: 6 << 20 }
    }
}

#[derive(Debug)]
pub(super) struct SledDisk {
    // Dropped in this order: the directory is free only once the last checkpoint is written.
    writer: Writer,
    checkpointer: Arc<Checkpointer>,
    db: sled::Db,
    db_path: PathBuf,
    witness: Witness,
    _lock: Flock<File>,
}

impl SledDisk {
    /// Opens the store in `dir`, or makes an empty one; `store` is the identity of a new one.
    pub(super) fn open(dir: &Path, store: u64, pace: Pace) -> Result<Self, OpenError> {
        let disk_error = |source| OpenError::Disk { dir: dir.to_owned(), source };
        let damaged = |damage| OpenError::Damaged { dir: dir.to_owned(), damage };
        let unreadable = |error| match error {
            ReadError::Disk(source) => disk_error(source),
            ReadError::Damage(damage) => damaged(damage),
            ReadError::Format { found } => OpenError::Format { dir: dir.to_owned(), found, known: FORMAT },
        };
        // Specs may hold what is not for everyone's eyes.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(DiskError::failed_to("create", dir)).map_err(disk_error)?;
        let lock = lock(dir)?;
        let (log, journal) = (dir.join("log"), dir.join("journal"));
        let witness_path = dir.join("witness");
        // Before the log: a log without a witness has lost it.
        if !witness_path.exists() {
            if log.exists() {
                return Err(damaged(Damage::WitnessMissing));
            }
            create_journal(dir, &journal, pace.segment_bytes).map_err(disk_error)?;
            create_witness(dir, &witness_path, store).map_err(disk_error)?;
        }
        let (witness_file, bytes) = read_witness(&witness_path).map_err(disk_error)?;
        let witness = Witness::from_file(&bytes).map_err(damaged)?;
        if witness.sequence > 0 && !log.join("db").exists() {
            return Err(damaged(Damage::Emptied { sequence: witness.sequence, last_index: witness.last_index }));
        }
        if !log.exists() {
            create_log(dir, &log)?;
        }
        let synchronous = make_synchronous(&log).map_err(disk_error)?;
        if !synchronous {
            tracing::warn!(
                dir = %log.display(),
                "this file system has no synchronous files (attribute S): a power cut while the log is written may damage it"
            );
        }
        let (mut journal, found) = Journal::open(&journal, pace.segment_bytes, witness.store).map_err(unreadable)?;
        let db_path = log.join("db");
        let db = open_sled(&log, dir)?;
        let db_file = OpenOptions::new().write(true).open(&db_path);
        let db_file = db_file.map_err(DiskError::failed_to("open", &db_path)).map_err(disk_error)?;
        let target =
            Target { db: db.clone(), db_file, db_path: db_path.clone(), synchronous, witness_file, witness_path };
        let done = take_over(&target, found).map_err(unreadable)?;
        journal.restart();
        let checkpointer = Arc::new(Checkpointer::start(target, pace.idle, done)?);
        let desk = Desk { journal, checkpointer: checkpointer.clone(), hand_over_at: pace.hand_over_at };
        Ok(Self { writer: Writer::start(desk)?, checkpointer, db, db_path, witness, _lock: lock })
    }

    #[cfg(test)]
    pub(super) fn rest(&self) -> u64 {
        self.checkpointer.rest()
    }

    /// Returns once sled has everything.
    #[cfg(test)]
    pub(super) fn catch_up(&self) -> Result<(), DiskError> {
        self.checkpointer.catch_up()
    }
}

/// Gives sled what the journal has and it does not; returns sled's sequence.
fn take_over(target: &Target, Found { mut entries, beyond }: Found) -> Result<u64, ReadError> {
    let key = Key::Head.to_bytes();
    let record = target.db.get(&key).map_err(DiskError::failed_to("read", &target.db_path))?;
    let head = record.as_ref().and_then(|record| Head::from_bytes(unseal(&key, record)?));
    let done = match (record, head) {
        (None, _) => 0,
        (Some(_), Some(head)) => head.sequence,
        // Whoever reads the log next says what is wrong with it.
        (Some(_), None) => return Ok(0),
    };
    let last = entries.last().map_or(done, |entry| entry.sequence.max(done));
    if beyond > last {
        return Err(Damage::Journal { sequence: last + 1 }.into());
    }
    entries.retain(|entry| entry.sequence > done);
    let Some((first, last)) = entries.first().zip(entries.last()) else { return Ok(done) };
    let (first, last) = (first.sequence, last.sequence);
    if first != done + 1 {
        return Err(Damage::JournalGap { log: done, journal: first }.into());
    }
    let mut writes = Writes::new();
    entries.into_iter().for_each(|entry| overlay(&mut writes, entry.batch));
    target.write_db(batch(writes))?;
    Ok(last)
}

impl Disk for SledDisk {
    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, DiskError> {
        let key = key.to_bytes();
        if let Some(pending) = self.checkpointer.pending(&key)? {
            return Ok(pending);
        }
        let record = self.db.get(key).map_err(DiskError::failed_to("read", &self.db_path))?;
        Ok(record.map(|record| record.to_vec()))
    }

    fn keys(&self) -> Result<Vec<Vec<u8>>, DiskError> {
        self.checkpointer.catch_up()?;
        let keys = self.db.iter().keys().map(|key| key.map(|key| key.to_vec()));
        keys.collect::<Result<_, _>>().map_err(DiskError::failed_to("read", &self.db_path))
    }

    fn write(&mut self, batch: Batch, witness: Witness) -> impl Future<Output = Result<(), DiskError>> + Send {
        self.writer.write(batch, witness)
    }

    fn witness(&self) -> &Witness {
        &self.witness
    }
}

fn lock(dir: &Path) -> Result<Flock<File>, OpenError> {
    let path = dir.join("lock");
    let disk_error = |source| OpenError::Disk { dir: dir.to_owned(), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(DiskError::failed_to("open", &path))
        .map_err(disk_error)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::Error::EWOULDBLOCK => OpenError::InUse { dir: dir.to_owned() },
        errno => disk_error(DiskError::failed_to("lock", &path)(errno)),
    })
}

/// The journal appears whole or not at all; without a witness none was ever used.
fn create_journal(dir: &Path, journal: &Path, segment_bytes: u64) -> Result<(), DiskError> {
    let new = dir.join("journal.new");
    for old in [&new, journal] {
        if old.exists() {
            fs::remove_dir_all(old).map_err(DiskError::failed_to("remove", old))?;
        }
    }
    Journal::create(&new, segment_bytes)?;
    fs::rename(&new, journal).map_err(DiskError::failed_to("create", journal))?;
    flush_path(dir)
}

/// The file appears whole or not at all.
fn create_witness(dir: &Path, path: &Path, store: u64) -> Result<(), DiskError> {
    let new = dir.join("witness.new");
    let first = Witness { store, ..Witness::default() };
    let mut bytes = vec![0; witness::FILE_BYTES];
    bytes.splice(..first.to_bytes().len(), first.to_bytes());
    let written = (|| {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()
    })();
    written.map_err(DiskError::failed_to("write", &new))?;
    fs::rename(&new, path).map_err(DiskError::failed_to("create", path))?;
    flush_path(dir)
}

/// sled's empty files, which appear whole or not at all: half of them it would take for damage.
fn create_log(dir: &Path, log: &Path) -> Result<(), OpenError> {
    let disk_error = |source| OpenError::Disk { dir: dir.to_owned(), source };
    let new = dir.join("log.new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(DiskError::failed_to("remove", &new)).map_err(disk_error)?;
    }
    drop(open_sled(&new, dir)?);
    for path in [new.join("conf"), new.join("db"), new.join("blobs"), new.clone()] {
        flush_path(&path).map_err(disk_error)?;
    }
    fs::rename(&new, log).map_err(DiskError::failed_to("create", log)).map_err(disk_error)?;
    flush_path(dir).map_err(disk_error)
}

fn read_witness(path: &Path) -> Result<(File, Vec<u8>), DiskError> {
    let read = || -> io::Result<_> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut bytes = vec![0; witness::FILE_BYTES.min(file.metadata()?.len() as usize)];
        file.read_exact_at(&mut bytes, 0)?;
        Ok((file, bytes))
    };
    read().map_err(DiskError::failed_to("read", path))
}

/// A file's or directory's bytes and names.
fn flush_path(path: &Path) -> Result<(), DiskError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(DiskError::failed_to("flush", path))
}

// Numbered as if they took a long, they take an int: ioctl_iflags(2).
nix::ioctl_read_bad!(
    read_attributes,
    nix::request_code_read!(b'f', 1, size_of::<nix::libc::c_long>()),
    nix::libc::c_int
);
nix::ioctl_write_ptr_bad!(
    write_attributes,
    nix::request_code_write!(b'f', 2, size_of::<nix::libc::c_long>()),
    nix::libc::c_int
);

/// Gives sled's directory and what is in it the attribute S: ioctl_iflags(2). Says whether the file system has it.
fn make_synchronous(log: &Path) -> Result<bool, DiskError> {
    let mut paths = vec![log.to_owned()];
    for entry in fs::read_dir(log).map_err(DiskError::failed_to("read", log))? {
        paths.push(entry.map_err(DiskError::failed_to("read", log))?.path());
    }
    for path in paths {
        let file = File::open(&path).map_err(DiskError::failed_to("open", &path))?;
        match add_attribute(&file, FS_SYNC_FL) {
            Ok(()) => {}
            Err(nix::Error::ENOTTY | nix::Error::EOPNOTSUPP) => return Ok(false),
            Err(errno) => return Err(DiskError::failed_to("set the attribute S of", &path)(errno)),
        }
    }
    Ok(true)
}

/// From linux/fs.h.
pub(super) const FS_SYNC_FL: nix::libc::c_int = 0x8;

fn add_attribute(file: &File, attribute: nix::libc::c_int) -> nix::Result<()> {
    let before = attributes(file)?;
    let wanted = before | attribute;
    if wanted != before {
        // SAFETY: the descriptor is open, and the kernel only reads the int it is given.
        unsafe { write_attributes(file.as_raw_fd(), &wanted) }?;
    }
    Ok(())
}

pub(super) fn attributes(file: &File) -> nix::Result<nix::libc::c_int> {
    let mut attributes = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int to the place it is given, which is one.
    unsafe { read_attributes(file.as_raw_fd(), &mut attributes) }?;
    Ok(attributes)
}

/// Where sled could not finish one of its snapshots, because the disk was full or it was killed, it takes what there is
/// of it for one that is damaged, and refuses. The one before is still there, or everything is read from the log.
fn remove_unfinished_snapshots(log: &Path) -> Result<(), DiskError> {
    if !log.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(log).map_err(DiskError::failed_to("read", log))? {
        let path = entry.map_err(DiskError::failed_to("read", log))?.path();
        if path.extension().is_some_and(|extension| extension == "generating") {
            fs::remove_file(&path).map_err(DiskError::failed_to("remove", &path))?;
        }
    }
    Ok(())
}

fn open_sled(log: &Path, dir: &Path) -> Result<sled::Db, OpenError> {
    let unfinished = remove_unfinished_snapshots(log);
    unfinished.map_err(|source| OpenError::Disk { dir: dir.to_owned(), source })?;
    let config = sled::Config::new().path(log).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let damaged = |reason| OpenError::Damaged { dir: dir.to_owned(), damage: Damage::Sled(reason) };
    let deadline = Instant::now() + LET_GO;
    // sled asserts what a damaged file breaks.
    match catch_unwind(AssertUnwindSafe(|| open_once_free(&config, deadline))) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(error))) => {
            Err(OpenError::Disk { dir: dir.to_owned(), source: DiskError::failed_to("open", log)(error) })
        }
        Ok(Err(error)) => Err(damaged(error.to_string())),
        Err(panic) => Err(damaged(words(&*panic))),
    }
}

/// A handle that was dropped may keep the file for a moment, on a thread of sled's; nobody else can have it, for the
/// directory is locked.
fn open_once_free(config: &sled::Config, deadline: Instant) -> sled::Result<sled::Db> {
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if is_still_held(&error) && Instant::now() < deadline => {
                std::thread::sleep(LOOK_AGAIN);
            }
            result => return result,
        }
    }
}

/// sled tells of its lock in words only.
fn is_still_held(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it panicked without a word")
        .to_owned()
}
