//! The thread that writes the journal: a flush takes a while, in which whoever waits for it does other things.
//!
//! Guarantees: batches are written one by one, in the order they came; after a failure nothing more is written.

use std::{
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use tokio::sync::oneshot;

use super::{
    checkpoint::Checkpointer,
    disk::Batch,
    error::{DiskError, OpenError},
    journal::Journal,
    witness::Witness,
};

#[derive(Debug)]
pub(super) struct Writer {
    /// Until it is dropped.
    jobs: Option<mpsc::SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Job {
    batch: Batch,
    witness: Witness,
    done: oneshot::Sender<Result<(), DiskError>>,
}

/// What the thread has.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) journal: Journal,
    pub(super) checkpointer: Arc<Checkpointer>,
    /// sled is given what is left of one of the journal's files when so much of the other is used.
    pub(super) hand_over_at: u64,
}

impl Writer {
    pub(super) fn start(mut desk: Desk) -> Result<Self, OpenError> {
        let (jobs, inbox) = mpsc::sync_channel::<Job>(1);
        let body = move || {
            while let Ok(Job { batch, witness, done }) = inbox.recv() {
                let written = desk.write(batch, witness);
                let failed = written.is_err();
                // Whoever asked may have gone.
                drop(done.send(written));
                if failed {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("raft-journal".to_owned()).spawn(body).map_err(OpenError::Thread)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// The batch is on its way on return, and on the disk for good once the future is done.
    pub(super) fn write(
        &mut self,
        batch: Batch,
        witness: Witness,
    ) -> impl Future<Output = Result<(), DiskError>> + Send + use<> {
        let (done, written) = oneshot::channel();
        let jobs = self.jobs.as_ref().expect("it is there until it is dropped");
        // A thread that has ended drops what it is to tell.
        drop(jobs.send(Job { batch, witness, done }));
        async move {
            written.await.unwrap_or_else(|_| {
                let source = "an earlier write failed".into();
                Err(DiskError { action: "go on writing to", path: PathBuf::from("journal"), source })
            })
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes the journal panicked");
        }
    }
}

impl Desk {
    fn write(&mut self, batch: Batch, witness: Witness) -> Result<(), DiskError> {
        match self.journal.needs_checkpoint() {
            Some(sequence) => {
                self.checkpointer.wait_for(sequence)?;
                self.checkpointer.seal();
            }
            None => self.checkpointer.check()?,
        }
        self.journal.append(witness.sequence, &batch)?;
        self.checkpointer.push(batch, witness, self.journal.used() >= self.hand_over_at);
        Ok(())
    }
}
