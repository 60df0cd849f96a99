//! Terminals: ioctl_tty(2).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::libc;

use super::{check, descriptor};

/// The other end of a terminal, without a path that somebody could have replaced: ioctl_tty(2).
pub fn open_peer(master: impl AsFd) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int, which outlives the call.
    check(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags of open(2).
    descriptor(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())
}

/// Makes the terminal the calling session's own.
pub fn take_terminal(terminal: impl AsFd) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

pub fn set_window_size(terminal: impl AsFd, size: &libc::winsize) -> io::Result<()> {
    // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const *size) }.into()).map(drop)
}

pub fn window_size(terminal: impl AsFd) -> io::Result<libc::winsize> {
    // SAFETY: winsize is a C struct of integers, for which zero is a value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ fills a winsize, which outlives the call.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }.into())?;
    Ok(size)
}
