//! Those who watch a container: what it writes goes to them as it goes to the log.
//!
//! Each has a connection to a socket in the bundle. The first packet says what the container reads from, and brings the
//! descriptor; every later one is a piece of what it writes, behind a byte that says which output. The last says how it
//! ended. The connection ends when that is on record.
//!
//! Guarantees: no more than [`MOST`] watch; one who does not read holds the container up for [`PATIENCE`] at most and is
//! sent away then. Absent: what was written before; the log has it.

use std::{
    fs::File,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen, sendmsg,
        socket,
    },
};
use roster_proto::report::LogStream;
use serde::{Deserialize, Serialize};

use super::run::Streams;
use crate::runtime::{Ended, linux::record::BundleDir};

/// In the bundle.
pub(crate) const SOCKET: &str = "attach.sock";
/// What the first packet says.
pub(crate) const TERMINAL: u8 = b't';
pub(crate) const PIPE: u8 = b'p';
pub(crate) const NOTHING: u8 = b'n';
/// What every other one begins with.
pub(crate) const STDOUT: u8 = b'o';
pub(crate) const STDERR: u8 = b'e';
pub(crate) const END: u8 = b'x';

/// What comes behind [`END`], as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Last {
    pub(crate) ended: Ended,
    /// Why its program never ran, if it did not.
    pub(crate) words: String,
}

const MOST: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);
/// At the container's end, which others wait for.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Watchers {
    listener: OwnedFd,
    all: Vec<Watcher>,
    patience: Duration,
}

#[derive(Debug)]
struct Watcher {
    socket: OwnedFd,
    /// A packet there was no room for, and since when.
    waiting: Option<(Vec<u8>, Instant)>,
}

impl Watchers {
    pub(super) fn listen(bundle: &BundleDir) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let folder = File::open(&bundle.0)?;
        bind(listener.as_raw_fd(), &address_in(&folder)?)?;
        listen(&listener, Backlog::new(8)?)?;
        Ok(Self { listener, all: Vec::new(), patience: PATIENCE })
    }

    /// What [`Watchers::serve`] waits for.
    pub(super) fn polled(&self) -> impl Iterator<Item = PollFd<'_>> {
        let wanted =
            |watcher: &Watcher| if watcher.waiting.is_some() { PollFlags::POLLOUT } else { PollFlags::empty() };
        let all = self.all.iter().map(move |watcher| PollFd::new(watcher.socket.as_fd(), wanted(watcher)));
        std::iter::once(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)).chain(all)
    }

    /// How long those who have not read what there is may still take, if anybody has not.
    pub(super) fn patience(&self) -> Option<Duration> {
        let since = self.all.iter().filter_map(|watcher| watcher.waiting.as_ref().map(|(_, since)| *since)).min()?;
        Some(self.patience.saturating_sub(since.elapsed()))
    }

    /// Lets in who knocks, and goes on with those who have room again.
    pub(super) fn serve(&mut self, streams: &Streams) -> io::Result<()> {
        loop {
            match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                Ok(accepted) => {
                    // SAFETY: just made, and owned by nobody else.
                    let socket = unsafe { OwnedFd::from_raw_fd(accepted) };
                    // One that is gone already, or one too many, is let go.
                    if self.all.len() < MOST && greet(&socket, streams).is_ok() {
                        self.all.push(Watcher { socket, waiting: None });
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR | Errno::ECONNABORTED | Errno::EMFILE | Errno::ENFILE) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.go_on();
        Ok(())
    }

    /// A piece of what the container writes.
    pub(super) fn show(&mut self, stream: LogStream, bytes: &[u8]) {
        if self.all.is_empty() {
            return;
        }
        let tag = match stream {
            LogStream::Stdout => STDOUT,
            LogStream::Stderr => STDERR,
        };
        let mut packet = Vec::with_capacity(bytes.len() + 1);
        packet.push(tag);
        packet.extend_from_slice(bytes);
        let now = Instant::now();
        for watcher in &mut self.all {
            watcher.waiting = Some((packet.clone(), now));
        }
        self.go_on();
    }

    pub(super) fn has_any(&self) -> bool {
        !self.all.is_empty()
    }

    /// For those who have everything else; who has no room for it learns of it in another way.
    pub(super) fn tell_end(&mut self, last: &Last) {
        let Ok(text) = serde_json::to_vec(last) else { return };
        let packet = [&[END], &text[..]].concat();
        for watcher in &mut self.all {
            watcher.waiting = Some((packet.clone(), Instant::now()));
            watcher.go_on(Duration::ZERO);
        }
    }

    /// From now on the container's end waits.
    pub(super) fn hurry(&mut self) {
        self.patience = LAST_PATIENCE;
    }

    /// Until everybody has what there is, or has been sent away.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        while let Some(left) = self.patience() {
            let mut polled: Vec<PollFd<'_>> = self.polled().skip(1).collect();
            match poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            drop(polled);
            self.go_on();
        }
        Ok(())
    }

    fn go_on(&mut self) {
        let patience = self.patience;
        self.all.retain_mut(|watcher| watcher.go_on(patience));
    }
}

impl Watcher {
    /// False: it is gone, or too slow.
    fn go_on(&mut self, patience: Duration) -> bool {
        let Some((packet, since)) = &self.waiting else { return !self.is_gone() };
        match sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(packet)], &[], MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => {
                self.waiting = None;
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => since.elapsed() < patience,
            Err(_) => false,
        }
    }

    fn is_gone(&self) -> bool {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO).is_ok() && polled[0].any().unwrap_or(false)
    }
}

fn greet(socket: &OwnedFd, streams: &Streams) -> nix::Result<()> {
    let (tag, input) = match (&streams.outputs[..], &streams.input) {
        // A terminal is both.
        ([(_, terminal)], _) => (TERMINAL, Some(terminal)),
        (_, Some(input)) => (PIPE, Some(input)),
        (_, None) => (NOTHING, None),
    };
    let numbers: Vec<RawFd> = input.iter().map(|fd| fd.as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &control[..] };
    let tag = [tag];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&tag)], control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// However long the folder's path is: an address has room for 107 bytes, unix(7).
pub(crate) fn address_in(folder: &File) -> io::Result<UnixAddr> {
    Ok(UnixAddr::new(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()).as_str())?)
}
