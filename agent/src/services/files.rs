//! What a container changed in its files, and all of them as a tar stream.

use std::{
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use roster_proto::{
    id::TaskId,
    wire::{self, container_answer::Answer, file_change::Kind},
};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    layers::{Change, Layers},
    runtime::linux::LinuxRuntime,
    session::Failure,
};

/// Containers that are walked through at a time; each may have directories of hundreds of megabytes of names.
pub(super) static WALKS: Semaphore = Semaphore::const_new(4);

/// Bytes of one part of an answer.
pub(super) const PART: usize = 64 << 10;

type Answers = mpsc::Sender<wire::ContainerAnswer>;

pub(super) async fn diff(runtime: &LinuxRuntime, task: String, answers: Answers) -> Result<(), Failure> {
    walk(runtime, task, answers, |layers, out| {
        let mut changes = Batch { changes: Vec::new(), bytes: 0, out };
        layers.changes(&mut |change, path| changes.add(change, path))?;
        changes.send()
    })
    .await
}

pub(super) async fn export(runtime: &LinuxRuntime, task: String, answers: Answers) -> Result<(), Failure> {
    walk(runtime, task, answers, |layers, out| layers.export(io::BufWriter::with_capacity(PART, out))).await
}

/// Off the async threads. It ends early when nobody listens any more.
async fn walk(
    runtime: &LinuxRuntime,
    task: String,
    answers: Answers,
    work: impl FnOnce(Layers, Outlet) -> io::Result<()> + Send + 'static,
) -> Result<(), Failure> {
    let id = TaskId::new(task.as_str()).map_err(|error| Failure::Invalid(error.to_string()))?;
    let _permit = WALKS.acquire().await.map_err(|error| Failure::Unavailable(error.to_string()))?;
    let paths = runtime.layers(&id).map_err(|error| Failure::NotFound(error.to_string()))?;
    let done = tokio::task::spawn_blocking(move || {
        let layers = Layers::open(&paths)?;
        work(layers, Outlet { task, answers })
    });
    match done.await {
        Ok(Ok(())) => Ok(()),
        // The asker has gone, and so has whoever would read this.
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Ok(Err(error)) => Err(Failure::Unavailable(format!("cannot read the files of {id}: {error}"))),
        Err(error) => Err(Failure::Unavailable(format!("reading the files of {id} broke: {error}"))),
    }
}

/// To the asker, at the asker's pace.
pub(super) struct Outlet {
    pub(super) task: String,
    pub(super) answers: Answers,
}

impl Outlet {
    fn send(&self, answer: Answer) -> io::Result<()> {
        let answer = wire::ContainerAnswer { task: self.task.clone(), answer: Some(answer) };
        self.answers.blocking_send(answer).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Outlet {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let piece = &data[..data.len().min(PART)];
        self.send(Answer::Data(piece.to_vec().into()))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Batch {
    changes: Vec<wire::FileChange>,
    bytes: usize,
    out: Outlet,
}

impl Batch {
    fn add(&mut self, change: Change, path: &Path) -> io::Result<()> {
        let kind = match change {
            Change::Added => Kind::Added,
            Change::Changed => Kind::Changed,
            Change::Deleted => Kind::Deleted,
        };
        let path = path.as_os_str().as_bytes().to_vec();
        self.bytes += path.len() + size_of::<wire::FileChange>();
        self.changes.push(wire::FileChange { kind: kind.into(), path: path.into() });
        if self.bytes >= PART { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> io::Result<()> {
        self.bytes = 0;
        let changes = std::mem::take(&mut self.changes);
        if changes.is_empty() { Ok(()) } else { self.out.send(Answer::Changes(wire::Changes { changes })) }
    }
}
