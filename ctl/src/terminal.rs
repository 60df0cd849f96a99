//! This terminal, while what is typed there goes to a program elsewhere as it is.
//!
//! Guarantees: it is put back as it was however rctl ends, but for SIGKILL: at the guard's end, at a panic (also one that
//! aborts), and at the end by a broken pipe ([`restore`] may be called by a signal's handler). Signals that would end rctl
//! are for whoever holds the guard to take.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{
        Once, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::libc;
use roster_proto::wire::TerminalSize;

/// Where neither standard stream is a terminal that tells.
const USUAL: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// As it was. Set once: rctl has one standard input.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();
static IS_RAW: AtomicBool = AtomicBool::new(false);
static ON_PANIC: Once = Once::new();

/// Standard input passes on every key, also those that would end or stop rctl.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    pub fn enter() -> io::Result<Self> {
        let stdin = libc::STDIN_FILENO;
        // SAFETY: termios is a C struct of integers, for which zero is a value.
        let mut now: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: tcgetattr fills the struct, which outlives the call.
        nix::errno::Errno::result(unsafe { libc::tcgetattr(stdin, &raw mut now) })?;
        let mut raw = *BEFORE.get_or_init(|| now);
        // SAFETY: changes the struct and nothing else.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        ON_PANIC.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                next(panic);
            }));
        });
        IS_RAW.store(true, Ordering::SeqCst);
        // SAFETY: tcsetattr reads the struct, which outlives the call.
        nix::errno::Errno::result(unsafe { libc::tcsetattr(stdin, libc::TCSANOW, &raw const raw) })?;
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes only calls that are async-signal-safe.
pub fn restore() {
    if let (true, Some(before)) = (IS_RAW.swap(false, Ordering::SeqCst), BEFORE.get()) {
        // SAFETY: as above. Of a terminal that is gone nothing is left to be put back.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, before) };
    }
}

/// Of the terminal that rctl prints to, else of the one it reads from.
pub fn size() -> TerminalSize {
    let (stdout, stdin) = (io::stdout(), io::stdin());
    size_of(stdout.as_fd()).or_else(|| size_of(stdin.as_fd())).unwrap_or(USUAL)
}

fn size_of(terminal: BorrowedFd<'_>) -> Option<TerminalSize> {
    // SAFETY: winsize is a C struct of integers, for which zero is a value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ fills a winsize, which outlives the call.
    let told = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    let size = TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() };
    Some(size).filter(|size| told == 0 && size.rows > 0 && size.columns > 0)
}
