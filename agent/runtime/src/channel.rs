//! What a container's first process and its maker say to each other, as packets over a pair of sockets.
//!
//! The process's end is closed by exec. So an end of the conversation after [`Word::Executing`] means that the program
//! runs, and one before it that the process was killed.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::{
    cmsg_space,
    fcntl::{FcntlArg, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4,
        bind, connect, listen, recv, recvmsg, sendmsg, socket, socketpair,
    },
};

use crate::{
    error::{StartError, Step},
    seccomp::Filter,
    sys,
};

/// An error's words are far fewer.
const LARGEST: usize = 64 * 1024;
/// The longest packet that is not words: a tag, and a filter's flags and instructions.
const _: () = assert!(1 + size_of::<libc::c_ulong>() + libc::BPF_MAXINSNS as usize * 8 <= LARGEST);

/// As a shell says for a program that cannot be run.
pub const EXIT_NOT_RUN: i32 = 127;

#[derive(Debug)]
pub enum Word {
    /// The process is in its namespaces and waits for [`Word::Go`], for there are hooks to run before it goes on.
    Namespaces,
    /// It may go on.
    Go,
    /// What the maker has compiled for it meanwhile.
    Filter(Filter),
    /// The master of its terminal.
    Terminal(OwnedFd),
    /// All is made; it waits to be started.
    Waiting,
    /// It goes on, but not quite as it was asked to.
    Warning(String),
    /// It executes the program next.
    Executing,
    Failed(StartError),
}

impl Word {
    /// What a packet says, with the descriptor that came with it; `None` for an empty one, by which the end is known.
    pub fn parse(packet: &[u8], descriptor: Option<OwnedFd>) -> io::Result<Option<Self>> {
        let misheard = || io::Error::new(io::ErrorKind::InvalidData, "an unknown word from the container's process");
        let Some((tag, text)) = packet.split_first() else { return Ok(None) };
        Ok(Some(match tag {
            b'n' => Word::Namespaces,
            b'g' => Word::Go,
            b'f' => Word::Filter(Filter::from_bytes(text).ok_or_else(misheard)?),
            b't' => Word::Terminal(descriptor.ok_or_else(misheard)?),
            b'w' => Word::Waiting,
            b'?' => Word::Warning(String::from_utf8_lossy(text).into_owned()),
            b'+' => Word::Executing,
            b'!' => Word::Failed(serde_json::from_slice(text)?),
            _ => return Err(misheard()),
        }))
    }
}

#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// The maker's end and the process's.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (maker, process) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(maker), Self(process)))
    }

    /// To the process that listens there; `None` when none does.
    pub fn to(dir: &Path, name: &str) -> io::Result<Option<Self>> {
        let folder = File::open(dir)?;
        let socket = seqpacket()?;
        match connect(socket.as_raw_fd(), &address_in(&folder, name)?) {
            Ok(()) => Ok(Some(Self(socket))),
            Err(nix::Error::ENOENT | nix::Error::ECONNREFUSED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Of a process that lives on beside the one that will exec: it must not keep the conversation open.
    ///
    /// # Safety
    /// The value must never be used or dropped again.
    pub(crate) unsafe fn close_copy(&self) {
        // SAFETY: promised by the caller. That it was open is all that can be wrong.
        unsafe { libc::close(self.0.as_raw_fd()) };
    }

    pub fn say(&self, word: &Word) -> io::Result<()> {
        let (tag, text, descriptor) = match word {
            Word::Namespaces => (b'n', Vec::new(), None),
            Word::Go => (b'g', Vec::new(), None),
            Word::Filter(filter) => (b'f', filter.to_bytes(), None),
            Word::Terminal(master) => (b't', Vec::new(), Some(master.as_raw_fd())),
            Word::Waiting => (b'w', Vec::new(), None),
            Word::Warning(words) => (b'?', words.clone().into_bytes(), None),
            Word::Executing => (b'+', Vec::new(), None),
            Word::Failed(error) => (b'!', serde_json::to_vec(error)?, None),
        };
        let descriptors: Vec<RawFd> = descriptor.into_iter().collect();
        let control = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &control[..] };
        let tag = [tag];
        let parts = [IoSlice::new(&tag), IoSlice::new(&text)];
        sendmsg::<()>(self.0.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// `None`: the other end is closed.
    pub fn hear(&self) -> io::Result<Option<Word>> {
        let socket = self.0.as_raw_fd();
        let mut bytes = Vec::new();
        let mut space = cmsg_space!(RawFd);
        let (length, descriptor) = loop {
            // No more room than it takes: who stays with a container keeps what memory it ever used.
            let heard = recv(socket, &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC).and_then(|length| {
                bytes.resize(length.min(LARGEST), 0);
                let mut parts = [IoSliceMut::new(&mut bytes)];
                let message = recvmsg::<()>(socket, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
                Ok((message.bytes, received(message.cmsgs()?)))
            });
            match heard {
                Ok(heard) => break heard,
                // The other end was closed with something unread, which is told before what it said: that comes next.
                Err(nix::Error::EINTR | nix::Error::ECONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        };
        Word::parse(&bytes[..length], descriptor)
    }

    /// Returns once the other end is closed; what was said before can be heard then. Waking the maker for a word takes the
    /// process longer than saying it does.
    pub(crate) fn await_end(&self) -> io::Result<()> {
        loop {
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::empty())], PollTimeout::NONE) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Says why there will be no program, and exits.
    pub fn fail(&self, error: StartError) -> ! {
        let told = self.say(&Word::Failed(error));
        std::process::exit(if told.is_ok() { EXIT_NOT_RUN } else { EXIT_NOT_RUN - 1 })
    }

    /// Asks the maker to go ahead with its part, and waits until it has.
    pub fn ask(&self, word: &Word) -> Result<(), StartError> {
        let step = || "wait for the container's maker".to_owned();
        self.say(word).step(step)?;
        match self.hear().step(step)? {
            Some(Word::Go) => Ok(()),
            _ => Err(io::Error::other("it is gone")).step(step),
        }
    }

    pub(crate) fn hear_filter(&self) -> Result<Filter, StartError> {
        let step = || "be given the seccomp filter by the container's maker".to_owned();
        match self.hear().step(step)? {
            Some(Word::Filter(filter)) => Ok(filter),
            _ => Err(io::Error::other("it is gone")).step(step),
        }
    }

    /// Closes every descriptor but this one, the given ones, and those below `first`.
    pub(crate) fn keep_alone<'a>(
        &mut self,
        first: RawFd,
        others: impl IntoIterator<Item = &'a mut OwnedFd>,
    ) -> Result<(), StartError> {
        let step = || "close descriptors".to_owned();
        let keep = |fd: &mut OwnedFd| -> Result<RawFd, StartError> {
            if fd.as_raw_fd() < first {
                let higher = fcntl(&*fd, FcntlArg::F_DUPFD_CLOEXEC(first)).step(step)?;
                // SAFETY: just made, and owned by nobody else.
                *fd = unsafe { OwnedFd::from_raw_fd(higher) };
            }
            Ok(fd.as_raw_fd())
        };
        let mut kept = vec![keep(&mut self.0)?];
        for other in others {
            kept.push(keep(other)?);
        }
        kept.sort_unstable();
        let mut from = first;
        for fd in kept {
            if fd > from {
                // SAFETY: the caller is about to exec or exit and touches no other descriptor.
                unsafe { sys::close_range(from, fd - 1) }.step(step)?;
            }
            from = fd + 1;
        }
        // SAFETY: as above.
        unsafe { sys::close_range(from, RawFd::MAX) }.step(step)
    }
}

/// Where a process that was created waits for whoever starts it: the other end of its next channel.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    pub fn bind(dir: &Path, name: &str) -> io::Result<Self> {
        let folder = File::open(dir)?;
        let socket = seqpacket()?;
        bind(socket.as_raw_fd(), &address_in(&folder, name)?)?;
        listen(&socket, Backlog::new(1)?)?;
        Ok(Self(socket))
    }

    pub(crate) fn accept(self) -> io::Result<Channel> {
        let accepted = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: just made, and owned by nobody else.
        Ok(Channel(unsafe { OwnedFd::from_raw_fd(accepted) }))
    }
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}

/// However long the folder's path is: an address has room for 107 bytes, unix(7).
fn address_in(folder: &File, name: &str) -> io::Result<UnixAddr> {
    Ok(UnixAddr::new(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()).as_str())?)
}

fn received(messages: impl Iterator<Item = ControlMessageOwned>) -> Option<OwnedFd> {
    let mut all = messages.flat_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => descriptors,
        _ => Vec::new(),
    });
    // SAFETY: the kernel just made it for us; there is room for one.
    all.next().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The maker's side: whether the program is executing, once the process says nothing more.
pub fn await_exec(channel: &Channel, mut warn: impl FnMut(String)) -> Result<(), StartError> {
    let step = || "hear from the container's process".to_owned();
    let mut executing = false;
    loop {
        match channel.hear().step(step)? {
            Some(Word::Executing) => executing = true,
            Some(Word::Warning(words)) => warn(words),
            Some(Word::Failed(error)) => return Err(error),
            Some(other) => return Err(io::Error::other(format!("it says {other:?}"))).step(step),
            None if executing => return Ok(()),
            None => return Err(killed()),
        }
    }
}

pub fn killed() -> StartError {
    let error = "its first process was killed before it could run the program".to_owned();
    StartError::Step { step: "make the container".to_owned(), error }
}

/// Asks for SIGKILL at the maker's death, and notices one that came before the asking.
pub fn die_with(maker: &Channel) -> Result<(), StartError> {
    let step = || "ask to die with the container's maker".to_owned();
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).step(step)?;
    let mut polled = [PollFd::new(maker.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).step(step)?;
    match polled[0].revents() {
        Some(events) if events.contains(PollFlags::POLLHUP) => Err(io::Error::other("it is dead")).step(step),
        _ => Ok(()),
    }
}
