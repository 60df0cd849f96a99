//! `roster-shim run`: makes the container, then stays with it until it has ended.

use std::{
    borrow::Cow,
    fs,
    io::{self, Read},
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use roster_proto::report::LogStream;
use roster_runtime::{
    cgroup::CgroupDirs,
    channel::{Channel, Word, killed},
    container::{self, Birth, Stdio},
    error::{StartError, Step},
    identity::Identity,
    sys,
};

use super::{
    attach::{Last, Watchers},
    foreign, hold,
    lease::{Guard, Terms},
    log_file::LogFile,
    partner::{Partner, Shared},
    report,
};
use crate::runtime::{
    Ended, Exit,
    linux::{
        record::{self, BundleDir, Running},
        report::StartReport,
    },
};

/// Bytes read from the container at a time, and the most of one line that is kept in one piece, as in CRI's logs.
const READ_SIZE: usize = 16 * 1024;

/// The ends of the pipes that stay with the shim.
pub(super) struct Streams {
    /// What the container writes: its terminal, or a pipe for each of its two outputs.
    pub(super) outputs: Vec<(LogStream, OwnedFd)>,
    /// Of a standard input that stays open; a terminal has none beside itself.
    pub(super) input: Option<OwnedFd>,
    /// An init's word on how the program ended.
    pub(super) ended: OwnedFd,
}

/// The container's first process, its streams and its log.
pub(super) type Begun = (u32, OwnedFd, Streams, LogFile);

/// What the agent says of a container beside its bundle.
pub(super) struct Making<'a> {
    pub(super) bundle: &'a BundleDir,
    pub(super) logs: &'a Path,
    pub(super) cgroup: &'a CgroupDirs,
    pub(super) stdin: bool,
    pub(super) host_pid: bool,
    pub(super) partner: Option<Partner>,
    pub(super) foreign: bool,
    pub(super) attended: bool,
}

impl Making<'_> {
    /// Its first process is the first of a pid namespace, with whose end all others end.
    pub(super) fn has_own_pids(&self) -> bool {
        !self.host_pid && self.partner.is_none_or(|partner| !partner.pid)
    }
}

pub(super) fn run(making: &Making<'_>, address: Option<Ipv4Addr>, lease: Option<Terms>) -> Result<(), StartError> {
    let Making { bundle, cgroup, .. } = making;
    super::stand_alone()?;
    let mut guard = lease.map(Guard::begin).transpose()?;
    let mut watchers = Watchers::listen(bundle).step(|| "listen for those who attach".to_owned())?;
    let (child, pidfd, mut streams, mut log) =
        if making.foreign { foreign::start(making)? } else { fork_container(making)? };
    let init = Identity::of(child).step(|| "look at the container's first process".to_owned())?;
    let shim = Identity::of(std::process::id()).step(|| "look at the shim's own process".to_owned())?;
    let running = Running { shim, init, address, at: record::now() };
    bundle.write_running(&running).step(|| "record that the container runs".to_owned())?;
    report(&StartReport::Running(running));
    close_report().step(|| "open /dev/null".to_owned())?;

    // From here on nobody listens; what fails ends the shim and with it the container, which the agent then calls lost.
    let unbegun = match making.attended {
        true => hold::until_watched(making, &pidfd, &mut streams, &mut watchers, &mut log)?,
        false => None,
    };
    let begun = (log, watchers);
    let status = supervise(begun, &pidfd, &streams, making, guard.as_mut());
    let (status, mut watchers) = status.step(|| "watch the container".to_owned())?;
    let told = read_to_end(streams.ended).step(|| "read how the program ended".to_owned())?;
    let (unbegun, words) = unbegun.unzip();
    let how = match (guard, unbegun) {
        (_, Some(how)) => how,
        (Some(guard), _) if guard.is_lost() => Exit::LeaseLost,
        _ if making.partner.is_some_and(|partner| partner.is_gone()) => Exit::Severed,
        _ => verdict(sys::WaitStatus::from_bytes(&told).unwrap_or(status), cgroup),
    };
    if making.foreign {
        foreign::delete(bundle)?;
    }
    // The agent waits for this process to end, so nothing comes after it: the cgroup is the agent's to remove.
    let last = Last { ended: Ended { how, at: record::now() }, words: words.unwrap_or_default() };
    bundle.write_ended(&last.ended).step(|| "record that the container ended".to_owned())?;
    watchers.tell_end(&last);
    Ok(())
}

/// Returns once the image's program is executing, or waits to.
fn fork_container(making: &Making<'_>) -> Result<Begun, StartError> {
    let Making { bundle, logs, cgroup, .. } = *making;
    let pipe = || super::pipe().step(|| "make a pipe".to_owned());
    let (out, out_write) = pipe()?;
    let (err, err_write) = pipe()?;
    let (ended, ended_write) = pipe()?;
    let (input, input_write) = match making.stdin {
        true => pipe().map(|(read, write)| (read, Some(write)))?,
        false => (sys::open_null().step(|| "open /dev/null".to_owned())?.into(), None),
    };
    let (channel, process) = Channel::pair().step(|| "make a pair of sockets".to_owned())?;
    let start = match making.attended {
        true => Some(hold::door(bundle).step(|| "let the container wait".to_owned())?),
        false => None,
    };
    let door = cgroup.door().step(|| "open the container's cgroup".to_owned())?;
    let shared = making.partner.map(|partner| Shared::with(partner, bundle)).transpose()?;
    let namespaces = if making.has_own_pids() { nix::libc::CLONE_NEWPID } else { 0 };
    // SAFETY: the shim never starts a thread.
    match unsafe { container::fork(namespaces, &door) }? {
        sys::Forked::Child => {
            // Not to keep open what only the shim reads: its death must be noticed.
            drop((out, err, channel, ended, input_write));
            // The namespaces stay open until they are entered.
            let (spec, mounts, _namespaces) = match shared {
                Some(Shared { spec, mounts, namespaces }) => (Some(spec), Some(mounts), namespaces),
                None => (None, None, Vec::new()),
            };
            let birth = Birth {
                id: bundle.id(),
                bundle: &bundle.0,
                mapped: mounts,
                door,
                cgroup,
                stdio: Stdio::Given { input, out: out_write, err: err_write },
                channel: process,
                dies_with_maker: true,
                start,
                ended: Some(ended_write),
                preserved: 0,
                no_pivot: false,
                keep_keyring: false,
                hears_filter: false,
                toolbox: None,
            };
            container::become_container(birth, || spec.map_or_else(|| bundle.spec(), Ok).map(Cow::Owned))
        }
        sys::Forked::Parent { child, pidfd } => {
            drop((out_write, err_write, ended_write, process, input, door, start));
            // Beside the child's work. When it fails this process ends, and the child with it.
            let log = LogFile::open(logs).step(|| format!("open the log in {}", logs.display()))?;
            match converse(&channel) {
                Ok(terminal) => {
                    let outputs = match terminal {
                        Some(terminal) => vec![(LogStream::Stdout, terminal)],
                        None => vec![(LogStream::Stdout, out), (LogStream::Stderr, err)],
                    };
                    Ok((child, pidfd, Streams { outputs, input: input_write, ended }, log))
                }
                Err(error) => {
                    sys::wait(&pidfd).step(|| "wait for the container's first process".to_owned())?;
                    Err(error)
                }
            }
        }
    }
}

/// The maker's side of the conversation, up to the program's execution or its waiting for that: returns the terminal,
/// where there is one.
fn converse(channel: &Channel) -> Result<Option<OwnedFd>, StartError> {
    let step = || "hear from the container's process".to_owned();
    let (mut terminal, mut executing) = (None, false);
    loop {
        match channel.hear().step(step)? {
            Some(Word::Terminal(master)) => terminal = Some(master),
            Some(Word::Executing) => executing = true,
            Some(Word::Waiting) => return Ok(terminal),
            // There is nobody to tell of what this host cannot give; the container goes on without it, as with Docker.
            Some(Word::Warning(_)) => {}
            Some(Word::Failed(error)) => return Err(error),
            Some(other) => return Err(io::Error::other(format!("it says {other:?}"))).step(step),
            None if executing => return Ok(terminal),
            None => return Err(killed()),
        }
    }
}

/// Ends the report: the agent reads up to the end of the pipe.
fn close_report() -> io::Result<()> {
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    sys::place_at(null, nix::libc::STDERR_FILENO)
}

/// Writes the log until the container's first process has ended and all it wrote is read. Those who watch are kept until
/// its end is on record, which is what their connection's end tells.
fn supervise(
    (mut log, mut watchers): (LogFile, Watchers),
    pidfd: &OwnedFd,
    streams: &Streams,
    making: &Making<'_>,
    mut guard: Option<&mut Guard>,
) -> io::Result<(sys::WaitStatus, Watchers)> {
    let mut open = vec![true; streams.outputs.len()];
    let mut buffer = vec![0; READ_SIZE];
    for (_, fd) in &streams.outputs {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let status = loop {
        // Who watches slows the container down, as a terminal does, but not for long.
        let held_up = watchers.patience();
        let mut polled = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        polled.extend(
            streams
                .outputs
                .iter()
                .zip(&open)
                .filter(|(_, open)| **open && held_up.is_none())
                .map(|((_, fd), _)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        polled.extend(watchers.polled());
        polled.extend(guard.iter().map(|guard| PollFd::new(guard.timer(), PollFlags::POLLIN)));
        let timeout = held_up.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = polled[0].any().unwrap_or(false);
        let due = guard.is_some() && polled.last().is_some_and(|timer| timer.any().unwrap_or(false));
        drop(polled);
        watchers.serve(streams)?;
        for (index, (stream, fd)) in streams.outputs.iter().enumerate() {
            if open[index] && watchers.patience().is_none() {
                open[index] = copy(&mut log, &mut watchers, *stream, fd, &mut buffer)? != Copied::End;
            }
        }
        if ended {
            // Its pid namespace is empty before it can be waited for: nothing more will be written. In another's
            // the rest lives on until it is killed.
            let status = sys::wait(pidfd)?;
            if !making.has_own_pids() {
                making.cgroup.kill()?;
            }
            break status;
        }
        if let Some(guard) = guard.as_deref_mut().filter(|_| due) {
            guard.act(pidfd)?;
        }
    };
    watchers.hurry();
    // Whoever has not read the last piece yet: the next one would take its place.
    watchers.settle()?;
    for (stream, fd) in &streams.outputs {
        while copy(&mut log, &mut watchers, *stream, fd, &mut buffer)? == Copied::Some {
            watchers.settle()?;
        }
        log.finish(*stream);
    }
    watchers.settle()?;
    Ok((status, watchers))
}

#[derive(PartialEq, Eq)]
enum Copied {
    Some,
    Nothing,
    End,
}

/// Takes what one read gives.
fn copy(
    log: &mut LogFile,
    watchers: &mut Watchers,
    stream: LogStream,
    fd: &OwnedFd,
    buffer: &mut [u8],
) -> io::Result<Copied> {
    match nix::unistd::read(fd, buffer) {
        // Of a terminal that nobody in the container has open any more: EIO.
        Ok(0) | Err(nix::Error::EIO) => Ok(Copied::End),
        Ok(length) => {
            log.write(stream, &buffer[..length], clock());
            watchers.show(stream, &buffer[..length]);
            Ok(Copied::Some)
        }
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(Copied::Nothing),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn clock() -> u64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

/// An exit by SIGKILL, or what a shell makes of one in a child, after the kernel killed for memory.
fn verdict(status: sys::WaitStatus, cgroup: &CgroupDirs) -> Exit {
    const KILLED: i32 = nix::libc::SIGKILL;
    let memory = cgroup.out_of_memory();
    match status {
        sys::WaitStatus::Signal(KILLED) | sys::WaitStatus::Code(137) if memory.kills > 0 => {
            Exit::OutOfMemory { limit: memory.limit }
        }
        sys::WaitStatus::Code(code) => Exit::Code(code),
        sys::WaitStatus::Signal(signal) => Exit::Signal(signal),
    }
}

/// Reads a short pipe to its end.
fn read_to_end(pipe: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::from(pipe).read_to_end(&mut bytes)?;
    Ok(bytes)
}
