//! Programs that the configuration names to be run at stages of a container's life.
//!
//! A hook is handed the container's state on its standard input and exactly its own arguments and environment: no
//! descriptor, ignored signal or signal mask of ours. What it prints goes nowhere but, the end of it, into the error.
//! It runs wherever the calling process is: the caller sees to the namespaces and the root that the stage wants.
//!
//! Sources: config.md of the runtime specification, "POSIX-platform Hooks"; pipe(7); pidfd_open(2).

use std::{
    convert::Infallible,
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{execve, pipe2},
};
use oci_spec::runtime::{Hook, State};

use crate::{
    error::{StartError, Step},
    signal, sys,
};

/// Bytes of what a failing hook said last that its error repeats.
const TAIL: usize = 2048;
/// What a pipe holds unless told otherwise, pipe(7): one read takes all that is in it.
const PIPE: usize = 64 << 10;
/// As a shell says for a program that cannot be run.
const EXIT_NOT_RUN: i32 = 127;

/// Runs the hooks of a stage one after the other, up to the first that fails.
///
/// The process must have one thread.
pub fn run(hooks: &[Hook], stage: &str, state: &State) -> Result<(), StartError> {
    let text = serialize(hooks, stage, state)?;
    hooks.iter().try_for_each(|hook| run_one(hook, stage, &text))
}

/// As [`run`], but goes on after a failure: for the stages at which it is too late for one to matter. The errors are
/// for the log.
pub fn run_all(hooks: &[Hook], stage: &str, state: &State) -> Vec<StartError> {
    match serialize(hooks, stage, state) {
        Ok(text) => hooks.iter().filter_map(|hook| run_one(hook, stage, &text).err()).collect(),
        Err(error) => vec![error],
    }
}

fn serialize(hooks: &[Hook], stage: &str, state: &State) -> Result<Vec<u8>, StartError> {
    if hooks.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::to_vec(state).step(|| format!("write the state for the {stage} hooks"))
}

fn run_one(hook: &Hook, stage: &str, state: &[u8]) -> Result<(), StartError> {
    let what = || format!("run the {stage} hook {}", hook.path().display());
    let command = Command::of(hook).map_err(|reason| StartError::impossible(what(), reason))?;
    let stdin = filled_pipe(state).step(what)?;
    let (mut output, end) = Output::new().step(what)?;
    let pidfd = spawn(&command, stdin, end).step(what)?;
    let watched = watch(&pidfd, &mut output, command.timeout);
    // Whatever went wrong, no hook is left behind.
    if !matches!(watched, Ok(true)) {
        sys::pidfd_send_signal(&pidfd, libc::SIGKILL).step(what)?;
    }
    let how = sys::wait(&pidfd).step(what)?;
    let reason = match (watched.step(what)?, how) {
        (true, sys::WaitStatus::Code(0)) => return Ok(()),
        (true, sys::WaitStatus::Code(code)) => format!("it ended with exit code {code}"),
        (true, sys::WaitStatus::Signal(signal)) => format!("it was killed by signal {signal}"),
        (false, _) => {
            let timeout = command.timeout.unwrap_or_default();
            format!("it was killed, for it took longer than its timeout of {timeout:?}")
        }
    };
    output.take_in().step(what)?;
    Err(StartError::Step { step: what(), error: reason + &output.last_words() })
}

/// A hook that can be run, in the words of execve(2).
struct Command {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    timeout: Option<Duration>,
}

impl Command {
    fn of(hook: &Hook) -> Result<Self, &'static str> {
        if !hook.path().is_absolute() {
            return Err("its path must be absolute");
        }
        let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| "it contains a NUL character");
        let c_strings = |texts: &Option<Vec<String>>| {
            texts.iter().flatten().map(|text| c_string(text.as_bytes())).collect::<Result<Vec<_>, _>>()
        };
        let path = c_string(hook.path().as_os_str().as_bytes())?;
        let mut args = c_strings(hook.args())?;
        if args.is_empty() {
            args.push(path.clone());
        }
        let timeout = match hook.timeout() {
            None => None,
            Some(seconds) if seconds > 0 => Some(Duration::from_secs(seconds.unsigned_abs())),
            Some(_) => return Err("its timeout must be more than zero seconds"),
        };
        Ok(Self { path, args, env: c_strings(hook.env())?, timeout })
    }
}

/// The reading end of a pipe that holds all of `bytes` and then ends: nobody needs to go on writing, so that it cannot
/// matter whether a hook reads.
fn filled_pipe(bytes: &[u8]) -> io::Result<OwnedFd> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let capacity = fcntl(&writer, FcntlArg::F_GETPIPE_SZ)?;
    if usize::try_from(capacity).is_ok_and(|capacity| capacity < bytes.len()) {
        let wanted = i32::try_from(bytes.len()).map_err(io::Error::other)?;
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(wanted))?;
    }
    File::from(writer).write_all(bytes)?;
    Ok(reader)
}

/// The pipe that takes what a hook prints, and the end of what came through it.
struct Output {
    /// `None` once everybody has closed the other end.
    pipe: Option<File>,
    tail: Vec<u8>,
    buffer: Vec<u8>,
}

impl Output {
    fn new() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        // What the hook leaves running may hold the pipe open for ever.
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Self { pipe: Some(reader.into()), tail: Vec::new(), buffer: vec![0; PIPE] }, writer))
    }

    /// What is there by now.
    fn take_in(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        match pipe.read(&mut self.buffer) {
            Ok(0) => self.pipe = None,
            Ok(length) => {
                self.tail.extend_from_slice(&self.buffer[..length]);
                self.tail.drain(..self.tail.len().saturating_sub(TAIL));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        match String::from_utf8_lossy(&self.tail).trim() {
            "" => String::new(),
            words => format!("; it said: {words}"),
        }
    }
}

/// Takes in output until the process has ended; `false` at the timeout.
fn watch(pidfd: &OwnedFd, output: &mut Output, timeout: Option<Duration>) -> io::Result<bool> {
    // One too far for a clock is none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            Some(Duration::ZERO) => return Ok(false),
            Some(left) => PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        };
        let mut polled = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        polled.extend(output.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        match poll(&mut polled, left) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|polled| polled.any() == Some(true)).collect();
        if ready.get(1) == Some(&true) {
            output.take_in()?;
        }
        if ready[0] {
            return Ok(true);
        }
    }
}

fn spawn(command: &Command, stdin: OwnedFd, output: OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: the caller's process has one thread.
    match unsafe { sys::fork_into(0, None) }? {
        sys::Forked::Parent { pidfd, .. } => Ok(pidfd),
        sys::Forked::Child => {
            let Err(error) = exec(command, stdin, output);
            // To where the parent looks for what the hook says. There is nobody else to tell if that fails.
            let _ = writeln!(io::stderr(), "it cannot be executed: {error}");
            // SAFETY: ends the process without what the parent wants run at its own end.
            unsafe { libc::_exit(EXIT_NOT_RUN) }
        }
    }
}

/// The standard three were open in the parent, as its main sees to: the pipes have other numbers.
fn exec(command: &Command, stdin: OwnedFd, output: OwnedFd) -> io::Result<Infallible> {
    sys::place_at(&stdin, libc::STDIN_FILENO)?;
    sys::place_at(&output, libc::STDOUT_FILENO)?;
    sys::place_at(&output, libc::STDERR_FILENO)?;
    sys::close_on_exec_from(libc::STDERR_FILENO as libc::c_uint + 1)?;
    signal::reset()?;
    Ok(execve(&command.path, &command.args, &command.env)?)
}

#[cfg(test)]
mod tests;
