//! A container that is made, and begins only when somebody watches: nothing it writes is missed, and what it reads comes
//! from whoever watches first, whose its input is from then on.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use roster_proto::report::LogStream;
use roster_runtime::{
    channel::{Channel, Listener, await_exec, killed},
    error::{NOT_EXECUTABLE, StartError, Step},
    sys,
};

use super::{
    attach::Watchers,
    foreign,
    log_file::LogFile,
    run::{Making, Streams, clock},
};
use crate::runtime::{ATTACH_DEADLINE, Exit, linux::record::BundleDir};

/// In the bundle: where the container's first process waits to be started.
const SOCKET: &str = "begin.sock";

/// For a container's first process.
pub(super) fn door(bundle: &BundleDir) -> io::Result<Listener> {
    Listener::bind(&bundle.0, SOCKET)
}

/// How it ended, where it ended without its program's having run, and why, in words.
pub(super) type Unbegun = Option<(Exit, String)>;

/// Begins it once somebody watches. One that nobody does, or that cannot begin, is ending when this returns.
pub(super) fn until_watched(
    making: &Making<'_>,
    pidfd: &OwnedFd,
    streams: &mut Streams,
    watchers: &mut Watchers,
    log: &mut LogFile,
) -> Result<Unbegun, StartError> {
    let step = || "wait for somebody to attach".to_owned();
    let deadline = Instant::now() + ATTACH_DEADLINE;
    while !watchers.has_any() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            kill(pidfd).step(step)?;
            return Ok(Some((Exit::Unattended, String::new())));
        }
        let mut polled = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        polled.extend(watchers.polled());
        match poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).step(step),
        }
        if polled[0].any().unwrap_or(false) {
            // It was killed.
            return Ok(None);
        }
        drop(polled);
        watchers.serve(streams).step(step)?;
    }
    // The first one's copy is the last, whose closing is the input's end.
    streams.input = None;
    let begun = begin(making);
    fs::remove_file(making.bundle.held()).step(|| "note that the container has begun".to_owned())?;
    let Err(error) = begun else { return Ok(None) };
    let words = error.to_string();
    let code = if let StartError::NotRun { code, .. } = error { code } else { NOT_EXECUTABLE };
    // Its first process has ended by itself, unless another runtime's is left.
    kill(pidfd).step(step)?;
    let stream = streams.outputs.last().map_or(LogStream::Stderr, |(stream, _)| *stream);
    log.write(stream, format!("{words}\n").as_bytes(), clock());
    Ok(Some((Exit::Code(code), words)))
}

fn begin(making: &Making<'_>) -> Result<(), StartError> {
    if making.foreign {
        return foreign::begin_program(making.bundle);
    }
    let channel = Channel::to(&making.bundle.0, SOCKET).step(|| "start the container's program".to_owned())?;
    // There is nobody to tell of what this host cannot give; the container goes on without it, as with Docker.
    await_exec(&channel.ok_or_else(killed)?, |_| {})
}

fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    match sys::pidfd_send_signal(pidfd, libc::SIGKILL) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        sent => sent,
    }
}
