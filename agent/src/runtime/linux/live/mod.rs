//! What people do in a running container, as the agent's part of it.
//!
//! Guarantees: all that a program wrote before it ended is sent before its end is; whoever reads slowly slows the
//! program down and nothing else; no more than [`INPUT_WINDOW`] waits for a program that does not read; when the future
//! is dropped before the caller detaches, the program ends with all that it started. Absent: going on after a break, and
//! coming back to a program that was detached from.

mod attach;
mod control;
mod copy;
mod stream;

use std::{collections::VecDeque, io, os::fd::OwnedFd, sync::Arc};

use bytes::{Buf, Bytes};
use futures::{StreamExt, TryFutureExt, stream::BoxStream};
use nix::libc;
use roster_proto::{
    id::TaskId,
    live::{INPUT_WINDOW, LAST_SIGNAL},
    wire::{self, live_input::Input, live_output::Output},
};
use roster_runtime::error::StartError;
use roster_tree::TreeError;
use tokio::sync::{mpsc, watch};

pub(super) use self::{
    attach::attach,
    copy::{copy_in, copy_out},
};
use self::{
    control::{Control, Signals},
    stream::Stream,
};
use super::{
    containers::{Containers, blocking},
    report::{DETACH, LiveReport, Order},
    shim_binary::LiveShim,
};
use crate::runtime::RuntimeError;

/// Read from a program at a time.
const PIECE: usize = 32 * 1024;
/// Of what a program left unread at its end: more than any pipe holds, so that one that goes on writing in the
/// background does not keep the call from ending.
const LEFT_BEHIND: usize = 2 << 20;
/// What a terminal takes for the end of the input.
const END_OF_TRANSMISSION: &[u8] = &[4];

/// What the caller sends; ends, or fails, when the caller has broken off.
pub type LiveInput = BoxStream<'static, Result<Input, String>>;
pub type LiveOutput = mpsc::Sender<wire::LiveOutput>;

#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error("task {0} has no running container on this node")]
    NotRunning(String),
    #[error(
        "the container of task {0} has failed, and is kept: only `rctl debug`, and what reads its files, goes into it"
    )]
    OnlyKept(String),
    #[error("task {0} neither runs on this node nor is it kept: there was no room, or it made room for others")]
    NotKept(String),
    #[error("somebody looks into this failed container already, which only one can do at a time")]
    Inspected,
    #[error("the container is paused: `rctl unpause` it first")]
    Paused,
    #[error("another runtime made the container ({0}), and only by that one can it be entered, on its node")]
    Foreign(String),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Start(StartError),
    #[error("the caller broke off: {0}")]
    BrokenOff(String),
    #[error("{0}")]
    Wrong(String),
    #[error("cannot {doing}")]
    Io { doing: &'static str, source: io::Error },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("this container was made by an agent of before, and cannot be attached to: `rctl restart` makes it anew")]
    CannotAttach,
    #[error("what the container wrote was read too slowly: it goes on without waiting any longer")]
    TooSlow,
    #[error("the process that watches over the program died")]
    ShimDied,
}

fn cannot(doing: &'static str) -> impl FnOnce(io::Error) -> LiveError {
    move |source| LiveError::Io { doing, source }
}

impl From<&wire::Program> for Order {
    fn from(program: &wire::Program) -> Self {
        Self {
            args: program.args.clone(),
            env: program.env.clone(),
            user: program.user.clone(),
            working_dir: program.working_dir.clone(),
            input: program.input,
            terminal: program.terminal.as_ref().map(cells),
            privileged: program.privileged,
            tools: program.tools,
            detached: program.detached,
        }
    }
}

fn cells(size: &wire::TerminalSize) -> (u16, u16) {
    let cells = |count| u16::try_from(count).unwrap_or(u16::MAX);
    (cells(size.rows), cells(size.columns))
}

/// Runs it to its end, or until its caller detaches.
pub(super) async fn run(
    shim: LiveShim,
    order: &Order,
    may_detach: bool,
    input: LiveInput,
    output: LiveOutput,
) -> Result<(), LiveError> {
    let mut control = Control::new(shim.socket).map_err(cannot("use the shim's socket"))?;
    control.order(order).await.map_err(cannot("order the program"))?;
    match control.report().await.map_err(cannot("hear from the shim"))? {
        Some(LiveReport::Running) => {}
        Some(other) => return end(Some(other), &output).await,
        None => return Err(LiveError::ShimDied),
    }
    if order.detached {
        // When this fails it has ended already; but it ran.
        let _ = control.signals().send(DETACH).await;
        return detached(&output).await;
    }
    let ends = Ends::of(control.received(), order).map_err(cannot("use the program's streams"))?;
    let (ended, is_ended) = watch::channel(false);
    let feeding = Feeding {
        sink: ends.sink,
        terminal: ends.terminal,
        recipient: Recipient::Shim(control.signals()),
        ends: true,
        may_detach,
        waiting: VecDeque::new(),
        queued: 0,
        taken: 0,
        closed: false,
    };
    let last = async {
        let report = tokio::select! {
            report = control.report() => report.map_err(cannot("hear from the shim"))?,
            detached = feeding.feed(input, &output) => {
                detached?;
                if control.signals().send(DETACH).await.is_ok() {
                    return Err(Left::Detached);
                }
                // It has just ended.
                control.report().await.map_err(cannot("hear from the shim"))?
            }
        };
        ended.send_replace(true);
        Ok(report)
    };
    let out = copy(ends.out.as_deref(), Output::Stdout, &output, is_ended.clone()).map_err(Left::from);
    let err = copy(ends.err.as_deref(), Output::Stderr, &output, is_ended).map_err(Left::from);
    match futures::try_join!(last, out, err) {
        Ok((report, (), ())) => end(report, &output).await,
        Err(Left::Detached) => detached(&output).await,
        Err(Left::Failed(error)) => Err(error),
    }
}

/// What keeps the program from being watched to its end.
enum Left {
    /// It goes on; what it wrote and was not sent yet is not waited for, which may take long.
    Detached,
    Failed(LiveError),
}

impl From<LiveError> for Left {
    fn from(error: LiveError) -> Self {
        Self::Failed(error)
    }
}

async fn detached(output: &LiveOutput) -> Result<(), LiveError> {
    // Nobody is left to tell when this fails.
    let _ = output.send(said(Output::Detached(wire::LiveDetached {}))).await;
    Ok(())
}

/// Of what would have to end with its visitor.
pub(super) fn stays() -> LiveError {
    LiveError::Wrong("only what runs in a running container goes on without its caller".to_owned())
}

async fn end(report: Option<LiveReport>, output: &LiveOutput) -> Result<(), LiveError> {
    let exit = match report {
        Some(LiveReport::Exited(code)) => wire::LiveExit { code: code.unsigned_abs(), message: String::new() },
        Some(LiveReport::Failed(StartError::NotRun { what, reason, code })) => {
            wire::LiveExit { code: code.unsigned_abs(), message: format!("{what}: {reason}") }
        }
        Some(LiveReport::Failed(error)) => return Err(LiveError::Start(error)),
        Some(LiveReport::Running) | None => return Err(LiveError::ShimDied),
    };
    // Nobody is left to tell when this fails.
    let _ = output.send(said(Output::Exit(exit))).await;
    Ok(())
}

fn said(output: Output) -> wire::LiveOutput {
    wire::LiveOutput { output: Some(output) }
}

/// The program's streams, as the shim hands them over.
struct Ends {
    out: Option<Arc<Stream>>,
    err: Option<Arc<Stream>>,
    sink: Option<Arc<Stream>>,
    terminal: Option<Arc<Stream>>,
}

impl Ends {
    fn of(descriptors: Vec<OwnedFd>, order: &Order) -> io::Result<Self> {
        let mut streams = descriptors.into_iter().map(|fd| Stream::new(fd).map(Arc::new));
        let mut next = || streams.next().transpose();
        let missing = || io::Error::new(io::ErrorKind::InvalidData, "the shim sent too few descriptors");
        if order.terminal.is_some() {
            let master = next()?.ok_or_else(missing)?;
            let (out, terminal) = (Some(master.clone()), Some(master.clone()));
            return Ok(Self { out, err: None, sink: Some(master).filter(|_| order.input), terminal });
        }
        let (out, err) = (next()?.ok_or_else(missing)?, next()?.ok_or_else(missing)?);
        let sink = if order.input { Some(next()?.ok_or_else(missing)?) } else { None };
        Ok(Self { out: Some(out), err: Some(err), sink, terminal: None })
    }
}

/// What the program writes, until it has ended and all is read.
async fn copy(
    from: Option<&Stream>,
    wrap: fn(Bytes) -> Output,
    output: &LiveOutput,
    mut ended: watch::Receiver<bool>,
) -> Result<(), LiveError> {
    let Some(from) = from else { return Ok(()) };
    let mut buffer = vec![0; PIECE];
    loop {
        // The end first, or one that writes without end in the background would hide it.
        let read = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => break,
            read = from.read(&mut buffer) => read.map_err(cannot("read from the program"))?,
        };
        if read == 0 || output.send(said(wrap(Bytes::copy_from_slice(&buffer[..read])))).await.is_err() {
            return Ok(());
        }
    }
    let mut left = LEFT_BEHIND;
    while let Some(read) = from.read_now(&mut buffer).map_err(cannot("read from the program"))? {
        if read == 0 || left == 0 || output.send(said(wrap(Bytes::copy_from_slice(&buffer[..read])))).await.is_err() {
            break;
        }
        left = left.saturating_sub(read);
    }
    Ok(())
}

/// Who passes signals on to the program.
enum Recipient {
    Shim(Signals),
    /// They are for the container's first process.
    Container(Arc<Containers>, TaskId),
}

impl Recipient {
    async fn signal(&self, signal: u8) {
        match self {
            // Either fails when the program has just ended: its end is told next.
            Recipient::Shim(signals) => _ = signals.send(signal).await,
            Recipient::Container(containers, task) => {
                let (containers, task) = (containers.clone(), task.clone());
                _ = blocking(move || containers.signal(&task, signal.into())).await;
            }
        }
    }
}

enum Taken {
    More,
    /// There will be no more data.
    End,
    Detach,
}

/// What the caller sends, on its way to the program.
struct Feeding {
    sink: Option<Arc<Stream>>,
    terminal: Option<Arc<Stream>>,
    recipient: Recipient,
    /// The end of the input is passed on.
    ends: bool,
    may_detach: bool,
    waiting: VecDeque<Bytes>,
    /// Bytes in `waiting`.
    queued: u64,
    /// By the program, and not told to the caller yet.
    taken: u64,
    /// The program reads no more, which the caller has not been told yet.
    closed: bool,
}

impl Feeding {
    /// Ends when the caller detaches; or with an error: the caller broke off, or said what cannot be.
    async fn feed(mut self, mut input: LiveInput, output: &LiveOutput) -> Result<(), LiveError> {
        let mut ending = false;
        loop {
            if ending && self.waiting.is_empty() {
                // A terminal is read from as well, and stays; the end of a pipe is its being closed.
                self.sink = None;
                ending = false;
            }
            let writing = async {
                match (&self.sink, self.waiting.front()) {
                    (Some(sink), Some(bytes)) => sink.write(bytes).await,
                    _ => std::future::pending().await,
                }
            };
            // Not at every byte: each is a message.
            let told = self.closed || self.taken > 0 && (self.waiting.is_empty() || self.taken >= INPUT_WINDOW / 4);
            tokio::select! {
                next = input.next() => match next {
                    Some(Ok(next)) => match self.take(next).await? {
                        Taken::More => {}
                        Taken::End => ending = true,
                        Taken::Detach => return self.write_what_fits(),
                    },
                    Some(Err(why)) => return Err(LiveError::BrokenOff(why)),
                    None => return Err(LiveError::BrokenOff("it said nothing more".to_owned())),
                },
                written = writing => self.written(written)?,
                room = output.reserve(), if told => {
                    // Nobody is left to tell.
                    let Ok(room) = room else { return std::future::pending().await };
                    let (bytes, closed) = (std::mem::take(&mut self.taken), std::mem::take(&mut self.closed));
                    room.send(said(Output::Taken(wire::LiveTaken { bytes, closed })));
                }
            }
        }
    }

    async fn take(&mut self, input: Input) -> Result<Taken, LiveError> {
        match input {
            Input::Data(data) => self.queue(data)?,
            Input::End(_) => {
                if self.terminal.is_some() && self.ends {
                    self.queue(Bytes::from_static(END_OF_TRANSMISSION))?;
                }
                return Ok(Taken::End);
            }
            Input::Detach(_) if self.may_detach => return Ok(Taken::Detach),
            Input::Detach(_) => return Err(stays()),
            Input::Resize(size) => {
                let (rows, columns) = cells(&size);
                if let Some(terminal) = &self.terminal {
                    terminal.resize(rows, columns).map_err(cannot("resize the terminal"))?;
                }
            }
            Input::Signal(signal @ 1..=LAST_SIGNAL) => {
                self.recipient.signal(signal as u8).await;
            }
            Input::Signal(signal) => return Err(LiveError::Wrong(format!("there is no signal {signal}"))),
        }
        Ok(Taken::More)
    }

    /// What was typed before the caller left, as far as the program has room for it.
    fn write_what_fits(&mut self) -> Result<(), LiveError> {
        while let (Some(sink), Some(front)) = (&self.sink, self.waiting.front()) {
            match sink.write_now(front) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                written => self.written(written)?,
            }
        }
        Ok(())
    }

    fn queue(&mut self, data: Bytes) -> Result<(), LiveError> {
        if self.sink.is_none() {
            self.taken += data.len() as u64;
            self.closed = true;
            return Ok(());
        }
        self.queued += data.len() as u64;
        if self.queued > 2 * INPUT_WINDOW {
            return Err(LiveError::Wrong(format!("more than {INPUT_WINDOW} bytes of input are under way")));
        }
        if !data.is_empty() {
            self.waiting.push_back(data);
        }
        Ok(())
    }

    fn written(&mut self, written: io::Result<usize>) -> Result<(), LiveError> {
        match written {
            Ok(length) => {
                self.queued -= length as u64;
                self.taken += length as u64;
                if let Some(front) = self.waiting.front_mut() {
                    front.advance(length);
                    if front.is_empty() {
                        self.waiting.pop_front();
                    }
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            // It has closed its input, or is ending.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EIO)) => {
                self.sink = None;
                self.closed = true;
                self.taken += std::mem::take(&mut self.queued);
                self.waiting.clear();
                Ok(())
            }
            Err(source) => Err(LiveError::Io { doing: "write to the program", source }),
        }
    }
}
