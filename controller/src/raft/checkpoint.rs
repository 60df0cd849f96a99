//! Takes what the journal holds over into sled, behind the driver's back: many batches in one, flushed, then attested.
//!
//! Most of what is logged is removed again soon, when a snapshot has it. Therefore sled is given nothing before it has
//! to be: when the journal's current file is half full, what is left of its other file, which is to be written over
//! next; when nothing has come for a while, everything. Under load nearly all of it is gone by then.
//!
//! Guarantees: sled and the journal together hold every batch, in order and whole; the witness never says more than
//! sled has; after a failure nothing more is written and the next who asks is told. What waits is bounded by the
//! journal, which waits for [`Checkpointer::wait_for`] before it writes over what sled does not have.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    disk::Batch,
    error::{DiskError, OpenError},
    record::Key,
    witness::Witness,
};

/// By key, the last that is to be done with it: to put a record, or to remove it.
pub(super) type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Where the checkpoints go.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) db: sled::Db,
    /// sled's file, opened once more to flush it.
    pub(super) db_file: File,
    pub(super) db_path: PathBuf,
    /// Whether sled's every write is on the disk when it returns.
    pub(super) synchronous: bool,
    pub(super) witness_file: File,
    pub(super) witness_path: PathBuf,
}

#[derive(Debug)]
pub(super) struct Checkpointer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

/// What one of the journal's files holds, as far as nothing later undid it.
#[derive(Debug, Default)]
struct Generation {
    writes: Writes,
    /// Of its last batch.
    witness: Witness,
}

#[derive(Debug, Default)]
struct Progress {
    /// Of the file that is to be written over next, until sled has it.
    sealed: Generation,
    /// Of the file that is being written.
    current: Generation,
    pushed_at: Option<Instant>,
    /// The sequence up to which sled has everything.
    done: u64,
    /// The sequence that somebody waits for.
    wanted: u64,
    /// The file that is being written will be full before long.
    hand_over: bool,
    /// What was taken out of the generations is on its way to sled.
    writing: bool,
    closing: bool,
    failed: bool,
    /// Until somebody was told.
    error: Option<DiskError>,
}

impl Progress {
    fn last(&self) -> u64 {
        self.current.witness.sequence
    }

    fn take_sealed(&mut self) -> Generation {
        let writes = std::mem::take(&mut self.sealed.writes);
        Generation { writes, witness: self.sealed.witness.clone() }
    }

    fn take_all(&mut self) -> Generation {
        let mut all = self.take_sealed();
        all.writes.append(&mut self.current.writes);
        self.sealed.witness = self.current.witness.clone();
        Generation { witness: self.current.witness.clone(), ..all }
    }

    /// What is due now; otherwise when to look again, if ever.
    fn due(&mut self, idle: Duration) -> Result<Generation, Option<Duration>> {
        let sealed = self.sealed.witness.sequence;
        if self.last() == self.done {
            return Err(None);
        }
        if self.closing || self.wanted > sealed.max(self.done) {
            return Ok(self.take_all());
        }
        if sealed > self.done && (self.hand_over || self.wanted > self.done) {
            return Ok(self.take_sealed());
        }
        let rested = self.pushed_at.map_or(idle, |pushed| pushed.elapsed());
        match idle.checked_sub(rested).filter(|left| !left.is_zero()) {
            Some(left) => Err(Some(left)),
            None => Ok(self.take_all()),
        }
    }
}

impl Checkpointer {
    /// Everything is written once nothing was pushed for as long as `idle`. `done` is sled's sequence.
    pub(super) fn start(target: Target, idle: Duration, done: u64) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared::default());
        let generation =
            || Generation { witness: Witness { sequence: done, ..Witness::default() }, ..Default::default() };
        *shared.lock() = Progress { sealed: generation(), current: generation(), done, ..Progress::default() };
        let theirs = shared.clone();
        let body = move || theirs.run(&target, idle);
        let thread =
            thread::Builder::new().name("raft-checkpoint".to_owned()).spawn(body).map_err(OpenError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The journal begins to write over the file that [`Self::wait_for`] was asked for.
    pub(super) fn seal(&self) {
        let mut progress = self.shared.lock();
        let progress = &mut *progress;
        // sled has what was sealed before. Unless it had everything, which leaves nothing to seal.
        if progress.last() > progress.done {
            let witness = progress.current.witness.clone();
            progress.sealed = Generation { writes: std::mem::take(&mut progress.current.writes), witness };
        }
        progress.hand_over = false;
    }

    /// The batch is in the journal. With `hand_over` it is time to give sled what is sealed.
    pub(super) fn push(&self, batch: Batch, witness: Witness, hand_over: bool) {
        let mut progress = self.shared.lock();
        let was_idle = progress.last() == progress.done;
        let Progress { sealed, current, .. } = &mut *progress;
        if !sealed.writes.is_empty() {
            // The head says of what time the rest is: each generation has one.
            let head = Key::Head.to_bytes();
            let keys = batch.removals.iter().chain(batch.puts.iter().map(|(key, _)| key));
            keys.filter(|key| **key != head).for_each(|key| drop(sealed.writes.remove(key)));
        }
        overlay(&mut current.writes, batch);
        current.witness = witness;
        progress.pushed_at = Some(Instant::now());
        let is_due = hand_over && !progress.hand_over;
        progress.hand_over = hand_over;
        drop(progress);
        // Otherwise it looks by itself.
        if was_idle || is_due {
            self.shared.changed.notify_all();
        }
    }

    /// What sled does not have yet of the key: the record, or that it is removed.
    pub(super) fn pending(&self, key: &[u8]) -> Result<Option<Option<Vec<u8>>>, DiskError> {
        let mut progress = self.shared.lock();
        loop {
            Self::verdict(&mut progress)?;
            let found = progress.current.writes.get(key).or_else(|| progress.sealed.writes.get(key));
            if found.is_some() || !progress.writing {
                return Ok(found.cloned());
            }
            progress = self.shared.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns once sled has everything up to `sequence`.
    pub(super) fn wait_for(&self, sequence: u64) -> Result<(), DiskError> {
        let mut progress = self.shared.lock();
        while progress.done < sequence && !progress.failed {
            progress.wanted = progress.wanted.max(sequence);
            self.shared.changed.notify_all();
            progress = self.shared.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        Self::verdict(&mut progress)
    }

    /// Returns once sled has everything.
    pub(super) fn catch_up(&self) -> Result<(), DiskError> {
        let last = self.shared.lock().last();
        self.wait_for(last)
    }

    /// Returns once nothing is on its way to sled, nor about to be: up to which sequence sled has everything.
    #[cfg(test)]
    pub(super) fn rest(&self) -> u64 {
        let mut progress = self.shared.lock();
        while progress.writing || progress.hand_over && progress.sealed.witness.sequence > progress.done {
            progress = self.shared.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        progress.done
    }

    /// Whether it still works.
    pub(super) fn check(&self) -> Result<(), DiskError> {
        Self::verdict(&mut self.shared.lock())
    }

    fn verdict(progress: &mut Progress) -> Result<(), DiskError> {
        match (progress.failed, progress.error.take()) {
            (false, _) => Ok(()),
            (true, Some(error)) => Err(error),
            (true, None) => Err(DiskError {
                action: "go on writing to",
                path: PathBuf::from("log"),
                source: "an earlier write failed".into(),
            }),
        }
    }
}

impl Drop for Checkpointer {
    /// What the journal holds is in sled afterwards, and the directory free.
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes checkpoints panicked; the journal keeps what it had not written");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, target: &Target, idle: Duration) {
        while let Some(Generation { writes, witness }) = self.next(idle) {
            let written = target.write(batch(writes), &witness);
            let mut progress = self.lock();
            progress.writing = false;
            match written {
                Ok(()) => progress.done = witness.sequence,
                Err(error) => {
                    progress.failed = true;
                    progress.error = Some(error);
                }
            }
            let failed = progress.failed;
            drop(progress);
            self.changed.notify_all();
            if failed {
                // Its own drop flushes once more and panics when that fails.
                std::mem::forget(target.db.clone());
                return;
            }
        }
    }

    /// What is to be written next; `None` when all is written and the disk is being closed.
    fn next(&self, idle: Duration) -> Option<Generation> {
        let mut progress = self.lock();
        loop {
            progress = match progress.due(idle) {
                Ok(generation) => {
                    progress.writing = true;
                    return Some(generation);
                }
                Err(None) if progress.closing => return None,
                Err(None) => self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner),
                Err(Some(left)) => self.changed.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }
}

/// Adds what comes after it.
pub(super) fn overlay(writes: &mut Writes, batch: Batch) {
    writes.extend(batch.removals.into_iter().map(|key| (key, None)));
    writes.extend(batch.puts.into_iter().map(|(key, record)| (key, Some(record))));
}

/// All of it in one piece.
pub(super) fn batch(writes: Writes) -> sled::Batch {
    let mut batch = sled::Batch::default();
    for (key, record) in writes {
        match record {
            Some(record) => batch.insert(key, record),
            None => batch.remove(key),
        }
    }
    batch
}

impl Target {
    fn write(&self, batch: sled::Batch, witness: &Witness) -> Result<(), DiskError> {
        self.write_db(batch)?;
        self.witness_file
            .write_all_at(&witness.to_bytes(), witness.offset())
            .and_then(|()| self.witness_file.sync_data())
            .map_err(DiskError::failed_to("write", &self.witness_path))
    }

    /// Flushed when it returns.
    pub(super) fn write_db(&self, batch: sled::Batch) -> Result<(), DiskError> {
        self.db.apply_batch(batch).map_err(DiskError::failed_to("write to", &self.db_path))?;
        self.db.flush().map_err(DiskError::failed_to("flush", &self.db_path))?;
        if self.synchronous {
            return Ok(());
        }
        self.db_file.sync_data().map_err(DiskError::failed_to("flush", &self.db_path))
    }
}
