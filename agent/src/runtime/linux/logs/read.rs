//! Reading a container's log while it is written and rotated.
//!
//! Files are held open, so that rotation moves nothing away under the reader. Waiting is done by inotify(7), of which a
//! host has few; more readers than that look by the clock.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::PathBuf,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use roster_proto::{id::TaskId, report::LogLine, time::Timestamp};
use tokio::{
    io::unix::AsyncFd,
    sync::{Semaphore, SemaphorePermit, mpsc},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use super::{Entry, LOG_FILES, file_name};
use crate::runtime::linux::readiness::register;

/// Batches read ahead of whoever takes them.
const BATCHES_AHEAD: usize = 1;
/// Bytes read at a time, and so about the most of one batch.
const BLOCK: usize = 32 * 1024;
/// A user has 128 inotify instances unless told otherwise, inotify(7), and root's are not for the agent alone.
const INSTANCES: usize = 32;
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Bytes after which what has no line end is given up as no line of ours.
const LONGEST_ENTRY: usize = 1 << 20;

/// Which log, and what its lines are to be called.
#[derive(Clone, Debug)]
pub struct LogSource {
    pub dir: PathBuf,
    pub task: TaskId,
    /// `web.2`.
    pub name: String,
}

/// Which lines of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only lines written at or after this moment.
    pub since: Option<Timestamp>,
    /// Only lines written at or before this moment. Whoever follows stops the stream when it has come.
    pub until: Option<Timestamp>,
    /// Only the last so many of these lines, before following begins.
    pub tail: Option<u64>,
    /// Go on with new lines until stopped.
    pub follow: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("task {task} has no log on this node: it never ran here, or its log was deleted to make room")]
    NotFound { task: TaskId },
    #[error("cannot read the log in {}: {source}", dir.display())]
    Read { dir: PathBuf, source: io::Error },
}

/// Batches of lines, oldest first.
///
/// A stream that follows ends after `stop` fires, with everything that was written until then: fire it when the
/// container has ended. Must be called within a tokio runtime; dropping the stream ends the reading.
pub fn read_logs(
    source: LogSource,
    query: LogQuery,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Vec<LogLine>, LogError>> + Send + use<> {
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
    tokio::spawn(async move {
        let failed = |source_error: io::Error| match source_error.kind() {
            io::ErrorKind::NotFound => LogError::NotFound { task: source.task.clone() },
            _ => LogError::Read { dir: source.dir.clone(), source: source_error },
        };
        if let Err(error) = send_all(&source, query, stop, &sender).await {
            // Whoever dropped the stream wants no error either.
            let _ = sender.send(Err(failed(error))).await;
        }
    });
    ReceiverStream::new(receiver)
}

type Sender = mpsc::Sender<Result<Vec<LogLine>, LogError>>;

async fn send_all(source: &LogSource, query: LogQuery, stop: CancellationToken, to: &Sender) -> io::Result<()> {
    // Watched before the first read: what is written in between wakes the first wait.
    let watch = if query.follow { Some(Watch::on(source)?) } else { None };
    let mut reader = Reader::open(source.clone(), query)?;
    loop {
        let stopped = stop.is_cancelled();
        loop {
            let (back, batch) = tokio::task::spawn_blocking(move || {
                let batch = reader.next_batch();
                (reader, batch)
            })
            .await
            .map_err(io::Error::other)?;
            reader = back;
            match batch? {
                None => break,
                Some(lines) if lines.is_empty() => {}
                Some(lines) => {
                    if to.send(Ok(lines)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        let over = stopped || reader.past_until;
        let Some(watch) = watch.as_ref().filter(|_| !over) else { return Ok(()) };
        tokio::select! {
            changed = watch.changed() => changed?,
            () = stop.cancelled() => {}
            () = to.closed() => return Ok(()),
        }
    }
}

/// What tells that a log may have grown.
enum Watch {
    Inotify {
        events: AsyncFd<OwnedFd>,
        _permit: SemaphorePermit<'static>,
    },
    /// For those who follow beyond [`INSTANCES`], and where the host has no instance left.
    Clock,
}

impl Watch {
    fn on(source: &LogSource) -> io::Result<Self> {
        static PERMITS: Semaphore = Semaphore::const_new(INSTANCES);
        let Ok(permit) = PERMITS.try_acquire() else { return Ok(Watch::Clock) };
        let inotify = match Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC) {
            Err(Errno::EMFILE) => return Ok(Watch::Clock),
            inotify => inotify?,
        };
        inotify.add_watch(&source.dir, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE)?;
        Ok(Watch::Inotify { events: register(inotify.into())?, _permit: permit })
    }

    async fn changed(&self) -> io::Result<()> {
        let Watch::Inotify { events, .. } = self else {
            tokio::time::sleep(LOOK_AGAIN).await;
            return Ok(());
        };
        // What changed does not matter: only that something did.
        let mut told = [0; 4096];
        let mut ready = events.readable().await?;
        match ready.try_io(|inotify| Ok(nix::unistd::read(inotify.get_ref(), &mut told)?)) {
            Ok(length) => length.map(drop),
            Err(_would_block) => Ok(()),
        }
    }
}

struct Reader {
    source: LogSource,
    since: u64,
    until: u64,
    /// A later line was seen: nothing more is wanted.
    past_until: bool,
    /// Oldest first; the last one may still grow.
    files: VecDeque<File>,
    /// The beginning of an entry whose end is not written yet.
    unfinished: Vec<u8>,
}

impl Reader {
    fn open(source: LogSource, query: LogQuery) -> io::Result<Self> {
        let mut files = open_files(&source)?;
        let since = query.since.map_or(0, |since| since.0.saturating_mul(1000));
        // To the end of the microsecond that was named.
        let until = query.until.map_or(u64::MAX, |until| until.0.saturating_mul(1000).saturating_add(999));
        if let Some(tail) = query.tail {
            keep_last(&mut files, tail, until)?;
        }
        Ok(Self { source, since, until, past_until: false, files, unfinished: Vec::new() })
    }

    /// `None` at the end of what is written.
    fn next_batch(&mut self) -> io::Result<Option<Vec<LogLine>>> {
        let mut block = vec![0; BLOCK];
        loop {
            if self.past_until {
                return Ok(None);
            }
            let Some(file) = self.files.front_mut() else {
                self.files = open_files(&self.source)?;
                if self.files.is_empty() {
                    return Ok(None);
                }
                continue;
            };
            let length = file.read(&mut block)?;
            if length > 0 {
                self.unfinished.extend_from_slice(&block[..length]);
                return Ok(Some(self.take_lines()));
            }
            if self.files.len() == 1 {
                self.take_up_newer()?;
            }
            if self.files.len() == 1 {
                return Ok(None);
            }
            // A file that has a successor grows no more, but may have grown between the read and the look.
            let length = self.files[0].read(&mut block)?;
            self.unfinished.extend_from_slice(&block[..length]);
            if length == 0 {
                self.files.pop_front();
                self.unfinished.clear();
            }
            return Ok(Some(self.take_lines()));
        }
    }

    /// Opens what was begun after the file at hand.
    fn take_up_newer(&mut self) -> io::Result<()> {
        let Some(current) = self.files.back() else { return Ok(()) };
        let current = identity(current)?;
        let mut found = open_files(&self.source)?;
        let identities = found.iter().map(identity).collect::<io::Result<Vec<_>>>()?;
        // Not among them: it was rotated away, and all there is now is newer.
        let newer = identities.iter().position(|found| *found == current).map_or(0, |at| at + 1);
        self.files.extend(found.drain(newer..));
        Ok(())
    }

    fn take_lines(&mut self) -> Vec<LogLine> {
        let end = self.unfinished.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = self.unfinished.split_off(end);
        let whole = std::mem::replace(&mut self.unfinished, rest);
        if self.unfinished.len() > LONGEST_ENTRY {
            self.unfinished.clear();
        }
        let line = |entry: Entry<'_>| LogLine {
            task: self.source.task.clone(),
            name: self.source.name.clone(),
            nanos: entry.nanos,
            stream: entry.stream,
            line: entry.line.to_vec(),
            partial: entry.partial,
        };
        // What is no entry is not told: only a damaged disk could have written it.
        let mut entries = whole.split(|byte| *byte == b'\n').filter_map(Entry::parse).peekable();
        let until = self.until;
        let lines = std::iter::from_fn(|| entries.next_if(|entry| entry.nanos <= until));
        let lines = lines.filter(|entry| entry.nanos >= self.since).map(line).collect();
        self.past_until = entries.peek().is_some();
        lines
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// All files of a log, oldest first.
///
/// Opened newest first: a rotation in between then shows a file twice, which is seen, and never hides one.
fn open_files(source: &LogSource) -> io::Result<VecDeque<File>> {
    // Told apart from a log whose first file is not there yet.
    source.dir.metadata()?;
    let mut files: VecDeque<File> = VecDeque::new();
    let mut seen = Vec::new();
    for number in 0..LOG_FILES {
        match File::open(source.dir.join(file_name(number))) {
            Ok(file) => {
                let identity = identity(&file)?;
                if !seen.contains(&identity) {
                    seen.push(identity);
                    files.push_front(file);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// Positions the files at the last `lines` lines up to `until`, read backwards block by block, and drops those before.
fn keep_last(files: &mut VecDeque<File>, lines: u64, until: u64) -> io::Result<()> {
    let mut wanted = lines;
    for index in (0..files.len()).rev() {
        let file = &files[index];
        let end = if until == u64::MAX { file.metadata()?.len() } else { first_after(file, until)? };
        match start_of_last(file, end, &mut wanted)? {
            None => {}
            Some(start) => {
                files[index].seek(SeekFrom::Start(start))?;
                files.drain(..index);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Where the first line that was written after `until` begins, by halves; the file's end if there is none.
fn first_after(file: &File, until: u64) -> io::Result<u64> {
    // Lines that begin before `low` are not after it, those that begin at `high` or later are.
    let (mut low, mut high) = (0, file.metadata()?.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let start = if middle == 0 { Some(0) } else { behind_line_end(file, middle - 1)? };
        let Some(start) = start.filter(|start| *start < high) else {
            high = middle;
            continue;
        };
        let end = behind_line_end(file, start)?.unwrap_or(high);
        let mut line = vec![0; usize::try_from(end - start).unwrap_or(LONGEST_ENTRY).min(LONGEST_ENTRY)];
        let length = file.read_at(&mut line, start)?;
        // What is no entry is nobody's: it is passed over.
        if Entry::parse(&line[..length]).is_some_and(|entry| entry.nanos > until) {
            high = middle;
        } else {
            low = end;
        }
    }
    Ok(low)
}

/// The place after the first line end at or behind `from`.
fn behind_line_end(file: &File, mut from: u64) -> io::Result<Option<u64>> {
    let mut block = [0; 4096];
    loop {
        let length = file.read_at(&mut block, from)?;
        match block[..length].iter().position(|byte| *byte == b'\n') {
            Some(at) => return Ok(Some(from + at as u64 + 1)),
            None if length == 0 => return Ok(None),
            None => from += length as u64,
        }
    }
}

/// Where the last `wanted` lines before `end` begin; `None` if there are no more than so many, which are then taken off.
fn start_of_last(file: &File, mut end: u64, wanted: &mut u64) -> io::Result<Option<u64>> {
    let mut block = vec![0; BLOCK];
    // The line end before the first wanted line.
    let mut ends_to_pass = *wanted;
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let block = &mut block[..(end - start) as usize];
        file.read_exact_at(block, start)?;
        for at in (0..block.len()).rev().filter(|at| block[*at] == b'\n') {
            if ends_to_pass == 0 {
                return Ok(Some(start + at as u64 + 1));
            }
            ends_to_pass -= 1;
        }
        end = start;
    }
    *wanted = ends_to_pass;
    Ok(None)
}

#[cfg(test)]
mod tests;
