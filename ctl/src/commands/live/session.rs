//! One live call: standard streams, signals and the terminal on this side, a container on the other.
//!
//! Guarantees: no more is read from standard input than the other end has room for; signals and the terminal's new sizes
//! get through whatever else is stuck; what the program wrote is written before its end is told.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use bytes::Bytes;
use roster_proto::{
    live::INPUT_WINDOW,
    wire::{
        self, live_client::LiveClient, live_input::Input, live_output::Output, live_request, live_response,
        live_work::Work,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, mpsc},
};
use tonic::Streaming;

use super::detach::DetachKeys;
use crate::{
    client::Transport,
    error::{Ending, Error},
    render::usage::escaped,
    terminal::{self, Raw},
};

/// Read from standard input at a time.
const PIECE: u32 = 32 * 1024;
/// Messages on their way out.
const QUEUE: usize = 4;
/// So many times a user must want to interrupt a program that does not listen until rctl goes away, and ends it so.
const PATIENCE: u32 = 3;
/// In which the other end must answer that what it runs goes on, and took what was typed before.
const LETTING_GO: Duration = Duration::from_secs(10);
/// The same of what goes on anyhow.
const LEAVING: Duration = Duration::from_secs(1);

pub(super) struct Session {
    pub(super) target: String,
    /// The last container of it that failed is meant.
    pub(super) failed: bool,
    pub(super) work: Work,
    /// Standard input is passed on.
    pub(super) input: bool,
    /// The other end has a terminal; `None`: if its own program has one.
    pub(super) terminal: Option<bool>,
    /// Signals are passed on.
    pub(super) signals: bool,
    /// What leaves it, where it may go on without its watcher.
    pub(super) detach: Option<DetachKeys>,
    /// It goes on without its watcher, however he leaves.
    pub(super) lasting: bool,
}

/// How a call ended that did not fail.
pub(super) enum Left {
    /// With the program.
    Ended(Ending),
    /// Not with the program, which goes on; the container's name.
    Detached(String),
    /// By a user who would not wait for the program any longer.
    Insisted(Ending),
}

impl Session {
    pub(super) async fn watch(self, mut client: LiveClient<Transport>) -> Result<Left, Error> {
        // Before anything begins: no signal is missed.
        let signals = Signals::listen().map_err(|error| Error::io("cannot listen for signals", error))?;
        let begun_detached = matches!(&self.work, Work::Program(program) if program.detached);
        let stack = self.target.split_once('/').map(|(stack, _)| format!("{stack}/")).unwrap_or_default();
        let Call { requests, mut replies, mut target } =
            Call::open(&mut client, self.target, self.failed, self.work).await?;
        // As it must be named again.
        target.name.insert_str(0, &stack);
        let terminal = self.terminal.unwrap_or(target.terminal);
        let raw = match self.input && terminal && io::stdin().is_terminal() {
            true => Some(Raw::enter().map_err(|error| Error::io("cannot use this terminal", error))?),
            false => None,
        };
        let detach = self.detach.filter(|_| raw.is_some());
        let credit = Semaphore::new(INPUT_WINDOW as usize);
        let feeding =
            Feeding { requests: requests.clone(), signals, input: self.input, terminal, proxy: self.signals, detach };
        let ended = tokio::select! {
            over = show(&mut replies, &credit) => over,
            left = feeding.feed(&credit) => left.map(|signal| signal.map_or(Over::Keys, Over::Signal)),
        };
        let ended = match ended {
            Ok(Over::Keys) => match let_go(&requests, &mut replies, &credit, self.lasting).await {
                Ok(over) => Ok(over),
                Err(_) if self.lasting => Ok(Over::LetGo),
                Err(error) => Err(unsure(&target.name, &error)),
            },
            Err(error @ Error::BrokenOff(_)) if begun_detached => Err(unsure(&target.name, &error)),
            ended => ended,
        };
        drop(raw);
        let exit = match ended {
            Ok(Over::Exit(exit)) => exit,
            Ok(Over::LetGo | Over::Keys) => return Ok(Left::Detached(target.name)),
            Ok(Over::Signal(number)) => {
                return Ok(Left::Insisted(Ending::Program(u8::try_from(128 + number).unwrap_or(u8::MAX))));
            }
            // What goes on without its watcher has ended for nobody.
            Err(Error::BrokenOff(words)) if self.lasting => {
                return Err(Error::Refused(format!("it broke off: {words}")));
            }
            Err(error) => return Err(error),
        };
        if !exit.message.is_empty() {
            anstream::eprintln!("error: {}", exit.message);
        }
        Ok(Left::Ended(Ending::Program(u8::try_from(exit.code).unwrap_or(u8::MAX))))
    }
}

enum Over {
    Exit(wire::LiveExit),
    /// The other end sees to it that what it runs goes on.
    LetGo,
    /// The user typed what leaves it.
    Keys,
    Signal(i32),
}

/// A call whose container has been found.
pub(super) struct Call {
    pub(super) requests: mpsc::Sender<wire::LiveRequest>,
    pub(super) replies: Streaming<wire::LiveResponse>,
    pub(super) target: wire::LiveTarget,
}

impl Call {
    pub(super) async fn open(
        client: &mut LiveClient<Transport>,
        target: String,
        failed: bool,
        work: Work,
    ) -> Result<Self, Error> {
        let (requests, mut queue) = mpsc::channel(QUEUE);
        let begin = wire::LiveBegin { target, failed, work: Some(wire::LiveWork { work: Some(work) }) };
        // The queue is empty and has room for it.
        let _ = requests.send(wire::LiveRequest { part: Some(live_request::Part::Begin(begin)) }).await;
        let queue = futures::stream::poll_fn(move |context| queue.poll_recv(context));
        let mut replies = client.open(queue).await?.into_inner();
        let Some(live_response::Part::Target(target)) = replies.message().await?.and_then(|reply| reply.part) else {
            return Err(Error::Refused("the controller did not say which container it is".to_owned()));
        };
        if target.others > 0 {
            anstream::eprintln!("using {}, the first of {} replicas", target.name, u64::from(target.others) + 1);
        }
        if !target.failure.is_empty() {
            let (name, node, failure) = (&target.name, &target.node, escaped(target.failure.as_bytes()));
            anstream::eprintln!("in {name} ({}) as it is kept on {node} since it failed: {failure}", target.task);
        }
        Ok(Self { requests, replies, target })
    }
}

/// The next that the other end says.
pub(super) async fn next(replies: &mut Streaming<wire::LiveResponse>) -> Result<Output, Error> {
    let reply = replies.message().await.map_err(broken_off)?;
    let reply = reply.ok_or_else(|| broken_off(tonic::Status::unavailable("it ended without a word")))?;
    match reply.part {
        Some(live_response::Part::Output(wire::LiveOutput { output: Some(output) })) => Ok(output),
        _ => Err(Error::Refused("the controller's answer makes no sense to this rctl".to_owned())),
    }
}

/// What the other end took.
pub(super) fn grant(credit: &Semaphore, taken: &wire::LiveTaken) {
    credit.add_permits(usize::try_from(taken.bytes.min(INPUT_WINDOW)).unwrap_or(0));
    if taken.closed {
        credit.close();
    }
}

/// False: the call has ended, and its last word is on the way.
pub(super) async fn say(requests: &mpsc::Sender<wire::LiveRequest>, input: Input) -> bool {
    let part = live_request::Part::Input(wire::LiveInput { input: Some(input) });
    requests.send(wire::LiveRequest { part: Some(part) }).await.is_ok()
}

/// What the user typed is at the other end when it answers; what does not last goes on only if it hears of this.
async fn let_go(
    requests: &mpsc::Sender<wire::LiveRequest>,
    replies: &mut Streaming<wire::LiveResponse>,
    credit: &Semaphore,
    lasting: bool,
) -> Result<Over, Error> {
    let answered = async {
        say(requests, Input::Detach(wire::LiveDetach {})).await;
        show(replies, credit).await
    };
    let silent = |_| Err(Error::Refused("the container's node does not answer".to_owned()));
    tokio::time::timeout(if lasting { LEAVING } else { LETTING_GO }, answered).await.unwrap_or_else(silent)
}

/// It was asked to let the program go on, and did or did not.
fn unsure(name: &str, error: &Error) -> Error {
    let words = match error {
        Error::BrokenOff(words) => format!("it broke off: {words}"),
        error => error.to_string(),
    };
    Error::Refused(format!("{words}\nthe program may go on in {name}: `rctl top {name}` shows it"))
}

/// Writes what the other end says, up to its last word.
async fn show(replies: &mut Streaming<wire::LiveResponse>, credit: &Semaphore) -> Result<Over, Error> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        let written = match next(replies).await? {
            Output::Stdout(data) => write(&mut stdout, &data).await,
            Output::Stderr(data) => write(&mut stderr, &data).await,
            Output::Taken(taken) => {
                grant(credit, &taken);
                Ok(())
            }
            Output::Exit(exit) => return Ok(Over::Exit(exit)),
            Output::Detached(_) => return Ok(Over::LetGo),
        };
        written.map_err(|error| Error::io("cannot print", error))?;
    }
}

async fn write(to: &mut (impl AsyncWriteExt + Unpin), data: &Bytes) -> io::Result<()> {
    to.write_all(data).await?;
    to.flush().await
}

/// An agent that refuses what was asked says why; what went away takes the program with it.
fn broken_off(status: tonic::Status) -> Error {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown | tonic::Code::Internal => {
            Error::BrokenOff(status.message().to_owned())
        }
        _ => status.into(),
    }
}

struct Feeding {
    requests: mpsc::Sender<wire::LiveRequest>,
    signals: Signals,
    input: bool,
    terminal: bool,
    proxy: bool,
    detach: Option<DetachKeys>,
}

impl Feeding {
    /// Ends only when the user insists, by a signal, or, with `None`, detaches.
    async fn feed(mut self, credit: &Semaphore) -> Result<Option<i32>, Error> {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; PIECE as usize];
        let mut impatience = 0;
        loop {
            tokio::select! {
                signal = self.signals.next() => {
                    let number = match signal {
                        Received::Resized if self.terminal => {
                            self.say(Input::Resize(terminal::size())).await;
                            continue;
                        }
                        Received::Resized => continue,
                        // Nobody is left to see it, or to say when it should end.
                        Received::Signal(number @ nix::libc::SIGHUP) => return Ok(Some(number)),
                        Received::Signal(number) if !self.proxy => return Ok(Some(number)),
                        Received::Signal(number) => number,
                    };
                    if matches!(number, nix::libc::SIGINT | nix::libc::SIGTERM | nix::libc::SIGQUIT) {
                        impatience += 1;
                    }
                    if impatience >= PATIENCE {
                        return Ok(Some(number));
                    }
                    self.say(Input::Signal(number.unsigned_abs())).await;
                }
                read = next_piece(&mut stdin, &mut buffer, credit), if self.input => match read {
                    Ok(Some(0)) => {
                        self.input = false;
                        self.say(Input::End(wire::LiveEnd {})).await;
                    }
                    Ok(Some(length)) => {
                        let typed = Bytes::copy_from_slice(&buffer[..length]);
                        let (typed, detached) = match &mut self.detach {
                            Some(keys) => keys.filter(&typed),
                            None => (typed, false),
                        };
                        if !typed.is_empty() {
                            self.say(Input::Data(typed)).await;
                        }
                        if detached {
                            return Ok(None);
                        }
                    }
                    Ok(None) => self.input = false,
                    Err(error) => return Err(Error::io("cannot read standard input", error)),
                }
            }
        }
    }

    async fn say(&self, input: Input) {
        say(&self.requests, input).await;
    }
}

/// `None`: nobody reads at the other end any more. Safe to cancel: what was read stays with `stdin`.
async fn next_piece(stdin: &mut tokio::io::Stdin, buffer: &mut [u8], credit: &Semaphore) -> io::Result<Option<usize>> {
    let Ok(mut room) = credit.acquire_many(PIECE).await else { return Ok(None) };
    let read = stdin.read(buffer).await?;
    if let Some(used) = room.split(read) {
        used.forget();
    }
    Ok(Some(read))
}

enum Received {
    Resized,
    Signal(i32),
}

/// The signals that are passed on, and that of a terminal's new size.
struct Signals(Vec<(i32, Signal)>);

impl Signals {
    fn listen() -> io::Result<Self> {
        use nix::libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
        let all = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH];
        let listen = |number| Ok((number, signal(SignalKind::from_raw(number))?));
        Ok(Self(all.into_iter().map(listen).collect::<io::Result<_>>()?))
    }

    async fn next(&mut self) -> Received {
        let any = self.0.iter_mut().map(|(number, signal)| {
            let number = *number;
            Box::pin(async move {
                if signal.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
                number
            })
        });
        match futures::future::select_all(any).await.0 {
            nix::libc::SIGWINCH => Received::Resized,
            number => Received::Signal(number),
        }
    }
}
