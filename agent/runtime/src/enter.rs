//! One more process in a running container, with its namespaces, limits, identity and confinement.
//!
//! ```text
//! maker ─ stays on the host
//!   └ bridge ─ enters the container's namespaces, for only its children are born into the pid namespace; ends
//!   └ process ─ the maker's child too: joins the cgroup, takes on the identity, executes
//! ```

use std::{
    convert::Infallible,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{
    fcntl::{OFlag, open},
    libc,
    sys::stat::Mode,
    unistd::pipe2,
};
use oci_spec::runtime::{LinuxPersonality, LinuxSeccomp, Process};

use crate::{
    cgroup::Door,
    channel::{Channel, Word, die_with, killed},
    container::Stdio,
    error::{StartError, Step},
    namespaces::become_root,
    process::{labels, scheduling},
    program::{Confinement, Program, first_foreign},
    rootfs::{self, toolbox::Toolbox},
    seccomp, signal, sys, terminal,
};

/// What the process is given.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The container's first process.
    pub container: &'a OwnedFd,
    /// See [`crate::namespaces::Namespaces::flags`].
    pub namespaces: libc::c_int,
    pub door: Door,
    pub stdio: Stdio,
    pub process: &'a Process,
    pub seccomp: Option<&'a LinuxSeccomp>,
    pub personality: Option<LinuxPersonality>,
    pub dies_with_maker: bool,
    pub preserved: u32,
    /// It is to have the host's programs.
    pub toolbox: Option<Toolbox>,
}

/// The process is a child of the caller's; whether its program runs is heard by the channel.
#[derive(Debug)]
pub struct Entered {
    pub pid: u32,
    pub pidfd: OwnedFd,
    pub channel: Channel,
}

/// # Safety
/// The calling process must have one thread only.
pub unsafe fn enter(entry: Entry<'_>) -> Result<Entered, StartError> {
    let (maker, mut process) = Channel::pair().step(|| "make a pair of sockets".to_owned())?;
    // Not by the channel, on which the process may have spoken before its bridge comes to it.
    let (born, bore) = pipe2(OFlag::O_CLOEXEC).step(|| "make a pipe".to_owned())?;
    // SAFETY: promised by the caller.
    match unsafe { sys::fork_into(0, None) }.step(|| "fork".to_owned())? {
        sys::Forked::Child => {
            drop((maker, born));
            let Err(error) = bridge(entry, &mut process, bore);
            process.fail(error)
        }
        sys::Forked::Parent { pidfd, .. } => {
            drop((process, entry, bore));
            let mut pid = [0; size_of::<u32>()];
            let told = File::from(born).read_exact(&mut pid);
            sys::wait(&pidfd).step(|| "wait for the bridge".to_owned())?;
            if told.is_err() {
                return Err(match maker.hear().step(|| "hear from the bridge".to_owned())? {
                    Some(Word::Failed(error)) => error,
                    _ => killed(),
                });
            }
            // Its own child, which nobody else can have reaped.
            let pid = u32::from_ne_bytes(pid);
            let pidfd = sys::pidfd_open(pid).step(|| "open the container's new process".to_owned())?;
            Ok(Entered { pid, pidfd, channel: maker })
        }
    }
}

fn bridge(mut entry: Entry<'_>, channel: &mut Channel, bore: OwnedFd) -> Result<Infallible, StartError> {
    // A process on its way into a container must not be open to the ones already there.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).step(|| "hide the process".to_owned())?;
    let confinement = Confinement {
        seccomp: entry.seccomp.map(seccomp::compile).transpose()?,
        personality: entry.personality.clone(),
        dies_with_parent: entry.dies_with_maker,
    };
    if let Some(score) = entry.process.oom_score_adj() {
        scheduling::set_oom_score_adj(score)?;
    }
    // Of the process that is forked below: the kernel keeps the wish over fork.
    labels::take_on_exec(entry.process)?;
    let directory = match &entry.door {
        Door::Directory(fd) => Some(fd.try_clone().step(|| "keep the cgroup".to_owned())?),
        Door::Tasks(_) => None,
    };
    // On v2 the kernel lets nobody clone into a group across a cgroup namespace's border: that one comes later.
    let first = entry.namespaces & !libc::CLONE_NEWCGROUP;
    // Otherwise it comes with the mount namespace.
    let root = if first & libc::CLONE_NEWNS == 0 { Some(root_of(entry.container)?) } else { None };
    if first != 0 {
        sys::enter_namespaces(entry.container, first).step(|| "enter the container's namespaces".to_owned())?;
    }
    if let Some(root) = root {
        rootfs::chroot_into(&root)?;
    }
    if entry.namespaces & libc::CLONE_NEWUSER != 0 {
        become_root()?;
    }
    if let Some(toolbox) = entry.toolbox.take() {
        toolbox.enter()?;
    }
    // SAFETY: this process is a copy of one thread.
    let forked = unsafe { sys::fork_into(libc::CLONE_PARENT, directory.as_ref().map(AsFd::as_fd)) };
    match forked.step(|| "fork into the container".to_owned())? {
        sys::Forked::Child => {
            // Not at this function's end: every descriptor is closed by then, and perhaps opened anew.
            drop((bore, directory));
            process(entry, confinement, channel)
        }
        sys::Forked::Parent { child, .. } => {
            File::from(bore).write_all(&child.to_ne_bytes()).step(|| "tell the maker".to_owned())?;
            std::process::exit(0)
        }
    }
}

/// Of a process that is still there once it is opened: what has its pid is the same one.
fn root_of(pidfd: &OwnedFd) -> Result<OwnedFd, StartError> {
    let step = || "open the container's root".to_owned();
    let pid = sys::pid_of(pidfd).step(step)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(&*format!("/proc/{pid}/root"), flags, Mode::empty()).step(step)?;
    sys::pidfd_send_signal(pidfd, 0).step(step)?;
    Ok(root)
}

fn process(entry: Entry<'_>, confinement: Confinement, channel: &mut Channel) -> Result<Infallible, StartError> {
    if entry.dies_with_maker {
        die_with(channel)?;
    }
    let affinity = entry.process.exec_cpu_affinity();
    let set = |cpus: Option<&String>| cpus.map_or(Ok(()), |cpus| scheduling::set_cpu_affinity(cpus));
    set(affinity.as_ref().and_then(|affinity| affinity.initial().as_ref()))?;
    entry.door.enter().step(|| "join the cgroup".to_owned())?;
    set(affinity.as_ref().and_then(|affinity| affinity.cpu_affinity_final().as_ref()))?;
    if entry.namespaces & libc::CLONE_NEWCGROUP != 0 {
        sys::enter_namespaces(entry.container, libc::CLONE_NEWCGROUP)
            .step(|| "enter the cgroup namespace".to_owned())?;
    }
    signal::reset().step(|| "reset signals".to_owned())?;
    if entry.process.terminal() == Some(true) {
        let flags = libc::O_NOCTTY | libc::O_CLOEXEC;
        let ptmx = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/pts/ptmx");
        let ptmx = ptmx.step(|| "open the container's /dev/pts/ptmx".to_owned())?;
        let terminal = terminal::make(ptmx.into(), entry.process, channel)?;
        terminal::take(&terminal).step(|| "take the terminal".to_owned())?;
    } else {
        nix::unistd::setsid().step(|| "begin a session".to_owned())?;
        entry.stdio.place().step(|| "connect standard input and output".to_owned())?;
    }
    sys::new_session_keyring().step(|| "make a session keyring".to_owned())?;
    let first = first_foreign(entry.preserved)?;
    let program = Program::of(entry.process, confinement)?;
    channel.keep_alone(first, None)?;
    program.exec(channel)
}
