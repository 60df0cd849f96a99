//! Takes what the journal holds over into sled, behind the driver's back: many batches in one, flushed, then attested.
//!
//! Guarantees: batches reach sled in order and whole; the witness never says more than sled has; after a failure
//! nothing more is written and the next who asks is told. The queue is bounded by the journal, which waits for
//! [`Checkpointer::wait_for`] before it writes over what sled does not have.

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
    witness::Witness,
};

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

#[derive(Debug, Default)]
struct Progress {
    queue: Vec<Batch>,
    /// Of the last batch in the queue.
    witness: Witness,
    /// The sequence up to which sled has everything.
    done: u64,
    /// Somebody waits, or the disk is being closed.
    hurry: bool,
    closing: bool,
    failed: bool,
    /// Until somebody was told.
    error: Option<DiskError>,
}

impl Checkpointer {
    /// A checkpoint follows the first batch after `pace`, or earlier when one is waited for. `done` is sled's sequence.
    pub(super) fn start(target: Target, pace: Duration, done: u64) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared::default());
        let witness = Witness { sequence: done, ..Witness::default() };
        *shared.lock() = Progress { witness, done, ..Progress::default() };
        let theirs = shared.clone();
        let body = move || theirs.run(&target, pace);
        let thread =
            thread::Builder::new().name("raft-checkpoint".to_owned()).spawn(body).map_err(OpenError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn push(&self, batch: Batch, witness: Witness) {
        let mut progress = self.shared.lock();
        let was_idle = progress.queue.is_empty();
        progress.queue.push(batch);
        progress.witness = witness;
        drop(progress);
        // Otherwise it is on its way already.
        if was_idle {
            self.shared.changed.notify_all();
        }
    }

    /// Returns once sled has everything up to `sequence`.
    pub(super) fn wait_for(&self, sequence: u64) -> Result<(), DiskError> {
        let mut progress = self.shared.lock();
        while progress.done < sequence && !progress.failed {
            progress.hurry = true;
            self.shared.changed.notify_all();
            progress = self.shared.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        Self::verdict(&mut progress)
    }

    /// Returns once sled has everything.
    pub(super) fn catch_up(&self) -> Result<(), DiskError> {
        let queued = self.shared.lock().witness.sequence;
        self.wait_for(queued)
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

    fn run(&self, target: &Target, pace: Duration) {
        while let Some((batches, witness)) = self.next(pace) {
            let written = target.write(merge(batches.into_iter()), &witness);
            let mut progress = self.lock();
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
    fn next(&self, pace: Duration) -> Option<(Vec<Batch>, Witness)> {
        let mut progress = self.lock();
        while progress.queue.is_empty() {
            if progress.closing {
                return None;
            }
            progress.hurry = false;
            progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        let due = Instant::now() + pace;
        while !progress.hurry && !progress.closing {
            let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else { break };
            progress = self.changed.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some((std::mem::take(&mut progress.queue), progress.witness.clone()))
    }
}

/// One batch that does what all do, one after the other.
pub(super) fn merge(batches: impl Iterator<Item = Batch>) -> sled::Batch {
    let mut last = BTreeMap::new();
    for batch in batches {
        last.extend(batch.removals.into_iter().map(|key| (key, None)));
        last.extend(batch.puts.into_iter().map(|(key, record)| (key, Some(record))));
    }
    let mut merged = sled::Batch::default();
    for (key, record) in last {
        match record {
            Some(record) => merged.insert(key, record),
            None => merged.remove(key),
        }
    }
    merged
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
