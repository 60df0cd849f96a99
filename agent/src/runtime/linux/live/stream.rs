//! The agent's ends of a program's streams: pipes, and the master of a terminal.

use std::{io, os::fd::OwnedFd};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd,
};
use roster_runtime::sys;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(super) struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    /// Must be called within a runtime. The descriptor must share its flags with nobody else who cares.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: an OwnedFd has one descriptor for as long as it lives, and cannot be changed through a shared reference.
        let registered = unsafe { AsyncFd::register(fd) };
        registered.map(Self).map_err(|error| io::Error::other(error.to_string()))
    }

    /// Zero at the end. Safe to cancel.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_with(|fd| read(fd, buffer)).await
    }

    /// One read of another kind.
    pub(super) async fn read_with<T>(&self, mut read: impl FnMut(&OwnedFd) -> io::Result<T>) -> io::Result<T> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(read) = ready.try_io(|fd| read(fd.get_ref())) {
                return read;
            }
        }
    }

    /// `None`: there is nothing now.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match read(self.0.get_ref(), buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes what there is room for. Safe to cancel.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|_| self.write_now(bytes)) {
                return written;
            }
        }
    }

    /// [`io::ErrorKind::WouldBlock`]: there is no room now.
    pub(super) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(unistd::write(self.0.get_ref(), bytes)?)
    }

    /// Of a terminal.
    pub(super) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = nix::libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        sys::set_window_size(self.0.get_ref(), &size)
    }
}

/// A terminal that nobody has open at its other end any more is at its end: EIO. So is a socket whose other end closed
/// with something unread.
fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    match unistd::read(fd, buffer) {
        Err(Errno::EIO | Errno::ECONNRESET) => Ok(0),
        read => Ok(read?),
    }
}
