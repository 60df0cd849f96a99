//! Waiting in tokio for descriptors that tokio has no type for: pidfds, inotify.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Hands a descriptor to tokio's reactor. Must be called within a runtime.
pub(super) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd has one descriptor for as long as it lives, and cannot be changed through a shared reference.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(|error| io::Error::other(error.to_string()))
}

/// Waits for a pidfd's process to end.
pub(super) async fn process_end(pidfd: OwnedFd) -> io::Result<()> {
    register(pidfd)?.readable().await.map(drop)
}
