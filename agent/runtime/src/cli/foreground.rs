//! Staying with a program: signals are passed on, and between its terminal and the caller's all that is written.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
    },
    unistd,
};

use super::{Doing, Error, Outcome, make::has_terminal};
use crate::sys;

/// Read at a time; nothing more is read from the caller until the program has taken it. Not of the stack, of which all
/// pages would be touched where there is no terminal as well.
const BUFFER: usize = 32 * 1024;

/// By default these end nothing.
const HARMLESS: [libc::c_int; 7] =
    [libc::SIGCHLD, libc::SIGCONT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGURG, libc::SIGWINCH];

/// The caller's signals, from before the program exists: none is lost.
#[derive(Debug)]
pub(super) struct Signals(SignalFd);

impl Signals {
    pub(super) fn block() -> Result<Self, Error> {
        let mut set = SigSet::all();
        // Of a fault of this program's own, or of a write to somebody who is gone.
        for own in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGPIPE] {
            set.remove(own);
        }
        let doing = || "block signals".to_owned();
        set.thread_block().doing(doing)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self).doing(doing)
    }

    /// Returns once `awaited` is ready for these events, or hung up. What would end a program ends the waiting: there is
    /// none yet to pass it on to.
    pub(super) fn await_ready(&self, awaited: BorrowedFd<'_>, events: PollFlags) -> Result<(), Error> {
        let doing = || "wait for the container's process".to_owned();
        loop {
            let mut polled = [PollFd::new(awaited, events), PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).doing(doing),
            }
            if polled[0].any() == Some(true) {
                return Ok(());
            }
            while let Some(info) = self.0.read_signal().doing(doing)? {
                let number = info.ssi_signo as i32;
                if !HARMLESS.contains(&number) {
                    let name =
                        Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.to_string());
                    return Err(Error::Refused(format!("ended by the signal {name} before the program ran")));
                }
            }
        }
    }
}

/// Returns the program's exit code, as a shell counts, once it has ended.
pub(super) fn stay(program: &OwnedFd, terminal: Option<OwnedFd>, signals: Signals) -> Outcome {
    let relay = terminal.map(Relay::begin).transpose().doing(|| "use the terminal".to_owned())?;
    let status = watch(program, relay.as_ref(), &signals).doing(|| "watch the program".to_owned())?;
    Ok(u8::try_from(status.shell_code()).unwrap_or(u8::MAX))
}

fn watch(program: &OwnedFd, mut relay: Option<&Relay>, signals: &Signals) -> io::Result<sys::WaitStatus> {
    let mut reads = relay.is_some();
    let mut to_program = Vec::new();
    loop {
        let mut polled =
            vec![PollFd::new(program.as_fd(), PollFlags::POLLIN), PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)];
        if let Some(relay) = relay {
            let mut wanted = PollFlags::POLLIN;
            wanted.set(PollFlags::POLLOUT, !to_program.is_empty());
            polled.push(PollFd::new(relay.master.as_fd(), wanted));
            if reads && to_program.is_empty() {
                polled.push(PollFd::new(STDIN, PollFlags::POLLIN));
            }
        }
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| polled.get(index).and_then(PollFd::any).unwrap_or(false);
        let (ended, signalled, shows, typed) = (ready(0), ready(1), ready(2), ready(3));
        drop(polled);
        if signalled {
            pass_on(signals, program, relay)?;
        }
        if let Some(terminal) = relay.filter(|_| shows || typed) {
            if typed {
                reads = terminal.read(&mut to_program)?;
            }
            terminal.feed(&mut to_program)?;
            // Nobody has it open any more: nor will what is typed be read.
            if shows && terminal.show()? == Shown::End {
                relay = None;
            }
        }
        if ended {
            while relay.map(Relay::show).transpose()? == Some(Shown::Some) {}
            return sys::wait(program);
        }
    }
}

fn pass_on(signals: &Signals, program: &OwnedFd, relay: Option<&Relay>) -> io::Result<()> {
    while let Some(info) = signals.0.read_signal()? {
        match (info.ssi_signo as i32, relay) {
            (libc::SIGCHLD, _) => {}
            (libc::SIGWINCH, Some(relay)) => relay.resize()?,
            (signal, _) => match sys::pidfd_send_signal(program, signal) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                sent => sent?,
            },
        }
    }
    Ok(())
}

// SAFETY: the standard streams are open as long as the process is.
const STDIN: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) };
// SAFETY: as above.
const STDOUT: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) };

#[derive(PartialEq, Eq)]
enum Shown {
    Some,
    Nothing,
    End,
}

/// Between the caller's standard streams and the program's terminal.
struct Relay {
    master: OwnedFd,
    /// The caller's terminal as it was.
    before: Option<Termios>,
}

impl Relay {
    fn begin(master: OwnedFd) -> io::Result<Self> {
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
        let before = if has_terminal() { Some(tcgetattr(STDIN)?) } else { None };
        let relay = Self { master, before };
        if let Some(before) = &relay.before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            tcsetattr(STDIN, SetArg::TCSANOW, &raw)?;
            relay.resize()?;
        }
        Ok(relay)
    }

    fn resize(&self) -> io::Result<()> {
        match has_terminal() {
            true => sys::set_window_size(&self.master, &sys::window_size(STDIN)?),
            false => Ok(()),
        }
    }

    /// What one read gives. The other end hanging up is an error of reading, EIO.
    fn show(&self) -> io::Result<Shown> {
        let mut bytes = vec![0; BUFFER];
        match unistd::read(&self.master, &mut bytes) {
            Ok(0) | Err(Errno::EIO) => Ok(Shown::End),
            Ok(length) => write_all(STDOUT, &bytes[..length]).map(|()| Shown::Some),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Shown::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there may be more.
    fn read(&self, into: &mut Vec<u8>) -> io::Result<bool> {
        let mut bytes = vec![0; BUFFER];
        match unistd::read(STDIN, &mut bytes) {
            Ok(0) => {
                // What a terminal says for the end of the input.
                into.push(END_OF_TRANSMISSION);
                Ok(false)
            }
            Ok(length) => {
                into.extend_from_slice(&bytes[..length]);
                Ok(true)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn feed(&self, bytes: &mut Vec<u8>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match unistd::write(&self.master, bytes) {
            Ok(length) => {
                bytes.drain(..length);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(Errno::EIO) => {
                bytes.clear();
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

const END_OF_TRANSMISSION: u8 = 4;

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Nothing is left to be done about a terminal that is gone.
            let _ = tcsetattr(STDIN, SetArg::TCSANOW, before);
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match unistd::write(to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut polled = [PollFd::new(to, PollFlags::POLLOUT)];
                poll(&mut polled, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
