//! `create` and `run`: from a bundle to a process.

use std::{
    borrow::Cow,
    fs,
    io::{self, IsTerminal},
    mem,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use jiff::Timestamp;
use nix::{libc, poll::PollFlags, sched::CloneFlags};
use oci_spec::runtime::{ContainerState, LinuxNamespaceType, Spec};

use super::{Context, Doing, Error, Outcome, foreground, life, warn};
use crate::{
    cgroup::{CgroupDirs, OWN_PARENT},
    channel::{Channel, Listener, Word, killed},
    config,
    container::{self, Birth, Stdio, asks_maker, stage_of},
    error::{StartError, Step},
    hooks,
    identity::Identity,
    namespaces::{Namespaces, map_ids},
    program::{first_foreign, own_pipes},
    rootfs::{HostMount, Sources},
    seccomp,
    store::{Container, Record, START},
    sys, terminal,
};

/// How long a process may take to die.
const ENDING: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Making {
    /// The container's name, unique below --root
    #[arg(value_name = "ID")]
    id: String,
    /// Folder with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Write the first process's id to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Send the terminal's master to this unix socket
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Hand the program this many descriptors beyond standard error
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    preserve_fds: u32,
    /// Change the root without pivot_root(2), for a host whose root is an initramfs; safer not
    #[arg(long)]
    no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    no_new_keyring: bool,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    making: Making,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    making: Making,
    /// Return when the program runs
    #[arg(short, long)]
    detach: bool,
    /// Do not remove the container when it has ended
    #[arg(long)]
    keep: bool,
    /// Accepted for other runtimes' callers
    #[arg(long, hide = true)]
    no_subreaper: bool,
}

pub(super) fn create(context: &Context, create: Create) -> Outcome {
    let making = create.making;
    first_foreign(making.preserve_fds)?;
    let bundle = Bundle::open(&making.bundle)?;
    check_terminal(&bundle.spec, making.console_socket.as_deref(), true)?;
    make(context, &making, &bundle, true, None)?;
    Ok(0)
}

pub(super) fn run(context: &Context, run: Run) -> Outcome {
    let making = run.making;
    // Before anything is opened here: none of ours may be taken for one of the caller's.
    first_foreign(making.preserve_fds)?;
    let bundle = Bundle::open(&making.bundle)?;
    if bundle.spec.process().is_none() {
        return Err(Error::Refused("config.json, process: it is missing: there would be nothing to run".to_owned()));
    }
    check_terminal(&bundle.spec, making.console_socket.as_deref(), run.detach)?;
    let signals = if run.detach { None } else { Some(foreground::Signals::block()?) };
    let made = make(context, &making, &bundle, false, signals.as_ref())?;
    life::after_start(&made.container, &made.record, &bundle.spec);
    let Some(signals) = signals else { return Ok(0) };
    let code = foreground::stay(&made.init, made.terminal, signals);
    if !run.keep {
        life::remove(context, &made.container, Some((&made.record, Some(&bundle.spec))))?;
    }
    // This process ends: giving memory back, piece by piece, would only take time.
    mem::forget(bundle);
    code
}

/// A terminal needs somebody at its other end, and a socket needs a terminal.
pub(super) fn check_terminal(spec: &Spec, socket: Option<&Path>, detached: bool) -> Result<(), Error> {
    let terminal = spec.process().as_ref().and_then(|process| process.terminal()) == Some(true);
    match (terminal, socket) {
        (true, None) if detached => Err(Error::Refused(
            "cannot make a terminal without --console-socket: nobody would be at its other end".to_owned(),
        )),
        (false, Some(_)) => {
            Err(Error::Refused("--console-socket is of no use: process.terminal in config.json is not true".to_owned()))
        }
        _ => Ok(()),
    }
}

/// A bundle as it is when the container is made.
struct Bundle {
    path: PathBuf,
    config: Vec<u8>,
    spec: Spec,
}

impl Bundle {
    fn open(path: &Path) -> Result<Self, Error> {
        let path = fs::canonicalize(path).doing(|| format!("find the bundle {}", path.display()))?;
        let file = path.join("config.json");
        let config = fs::read(&file).doing(|| format!("read {}", file.display()))?;
        let spec = config::parse_warning(&config, warn)
            .map_err(|error| Error::Refused(format!("{} is not understood: {error}", file.display())))?;
        config::check(&spec)?;
        Ok(Self { path, config, spec })
    }
}

struct Made {
    container: Container,
    record: Record,
    init: OwnedFd,
    /// Its master, when nobody else was given it.
    terminal: Option<OwnedFd>,
}

/// With `signals`, they end it as long as there is no program.
fn make(
    context: &Context,
    making: &Making,
    bundle: &Bundle,
    wait: bool,
    signals: Option<&foreground::Signals>,
) -> Result<Made, Error> {
    let namespaces = Namespaces::of(&bundle.spec)?;
    let cgroup = cgroup_path(&bundle.spec, &making.id)?;
    let container = context.store.reserve(&making.id, &bundle.config)?;
    let result = Maker { context, making, bundle, signals, namespaces, cgroup, container: &container }.make(wait);
    match result {
        Ok((record, init, terminal)) => Ok(Made { container, record, init, terminal }),
        Err(error) => {
            // What cannot be cleaned up is said beside the first error.
            let removed = container.remove();
            match removed {
                Ok(()) => Err(error),
                Err(left) => Err(Error::Several(format!("{error}; {left}"))),
            }
        }
    }
}

/// Below each hierarchy's root.
pub(super) fn cgroup_path(spec: &Spec, id: &str) -> Result<PathBuf, Error> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Path::new(OWN_PARENT).join(id));
    };
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Error::Refused(format!("linux.cgroupsPath: {} leads upwards", path.display())));
    }
    if path.is_relative() && path.to_string_lossy().matches(':').count() == 2 {
        return Err(Error::Refused(format!(
            "linux.cgroupsPath: {} is for systemd, which is not asked to make cgroups: write a path",
            path.display()
        )));
    }
    Ok(if path.is_absolute() { path } else { Path::new(OWN_PARENT).join(path) })
}

struct Maker<'a> {
    context: &'a Context,
    making: &'a Making,
    bundle: &'a Bundle,
    signals: Option<&'a foreground::Signals>,
    namespaces: Namespaces,
    cgroup: PathBuf,
    container: &'a Container,
}

type Born = (Record, OwnedFd, Option<OwnedFd>);

impl Maker<'_> {
    fn make(&self, wait: bool) -> Result<Born, Error> {
        let resources = self.bundle.spec.linux().as_ref().and_then(|linux| linux.resources().clone());
        let hierarchies = &self.context.hierarchies;
        let shown = container::shows_cgroups(&self.bundle.spec);
        let dirs = hierarchies.create(&self.cgroup, &resources.unwrap_or_default(), shown)?;
        let result = self.mount_on_host().and_then(|()| self.fork(&dirs, wait));
        let Err(error) = result else { return result };
        let released = hierarchies.release(&self.cgroup);
        match dirs.remove().step(|| "remove it".to_owned()).and(released) {
            Ok(()) => Err(error),
            Err(left) => Err(Error::Several(format!("{error}; its cgroup is left behind: {left}"))),
        }
    }

    /// Where the container has no mounts of its own.
    fn mount_on_host(&self) -> Result<(), Error> {
        if self.namespaces.has(LinuxNamespaceType::Mount) {
            return Ok(());
        }
        let prepared = HostMount::prepare(&self.bundle.spec, &self.bundle.path)?;
        self.container.write_mount(&prepared.mount)?;
        Ok(prepared.attach()?)
    }

    fn fork(&self, dirs: &CgroupDirs, wait: bool) -> Result<Born, Error> {
        let (channel, process) = Channel::pair().step(|| "make a pair of sockets".to_owned())?;
        let listener = match wait {
            true => Some(Listener::bind(&self.container.dir, START).step(|| "make the start socket".to_owned())?),
            false => None,
        };
        let door = dirs.door().doing(|| "open the container's cgroup".to_owned())?;
        let mapped = Sources::mapped(&self.bundle.spec, &self.bundle.path)?;
        if let Some(root) = self.namespaces.host_root(&self.bundle.spec) {
            own_pipes(root)?;
        }
        let joined = self.namespaces.path(LinuxNamespaceType::Pid);
        if let Some(path) = joined {
            join_pid_namespace(path)?;
        }
        // SAFETY: this program never starts a thread.
        match unsafe { container::fork(self.namespaces.clone_flags(), &door) }? {
            sys::Forked::Child => {
                drop(channel);
                let birth = Birth {
                    id: &self.making.id,
                    bundle: &self.bundle.path,
                    mapped: Some(mapped),
                    door,
                    cgroup: dirs,
                    stdio: Stdio::Inherited,
                    channel: process,
                    dies_with_maker: false,
                    start: listener,
                    ended: None,
                    preserved: self.making.preserve_fds,
                    no_pivot: self.making.no_pivot,
                    keep_keyring: self.making.no_new_keyring,
                    hears_filter: true,
                    toolbox: None,
                };
                container::become_container(birth, || Ok(Cow::Borrowed(&self.bundle.spec)))
            }
            sys::Forked::Parent { child, pidfd } => {
                drop((process, listener, door, mapped));
                if joined.is_some() {
                    join_pid_namespace(Path::new("/proc/self/ns/pid"))?;
                }
                match self.raise(child, &channel, wait) {
                    Ok((record, terminal)) => Ok((record, pidfd, terminal)),
                    Err(error) => {
                        let error = end(&pidfd, error);
                        Err(if dirs.out_of_memory().kills == 0 {
                            error
                        } else {
                            out_of_memory(&error, &self.bundle.spec)
                        })
                    }
                }
            }
        }
    }

    fn raise(&self, child: u32, channel: &Channel, wait: bool) -> Result<(Record, Option<OwnedFd>), Error> {
        let init = Identity::of(child).step(|| "look at the container's first process".to_owned())?;
        let root = self.bundle.spec.root().as_ref().map_or(Path::new("rootfs"), |root| root.path());
        let record = Record {
            bundle: self.bundle.path.clone(),
            rootfs: self.bundle.path.join(root),
            created: Timestamp::now().to_string(),
            cgroup: self.cgroup.clone(),
            init,
        };
        self.container.write(&record)?;
        if let Some(file) = &self.making.pid_file {
            write_pid(file, child)?;
        }
        let terminal = self.converse(child, channel, wait)?;
        let terminal = match (terminal, &self.making.console_socket) {
            (Some(master), Some(socket)) => {
                terminal::hand_over(&master, socket).doing(|| format!("send the terminal to {}", socket.display()))?;
                None
            }
            (terminal, _) => terminal,
        };
        Ok((record, terminal))
    }

    /// Does the maker's part, until the process waits or executes the program.
    fn converse(&self, child: u32, channel: &Channel, wait: bool) -> Result<Option<OwnedFd>, Error> {
        let spec = &self.bundle.spec;
        let step = || "talk to the container's process".to_owned();
        let mut unmapped = self.namespaces.is_new(LinuxNamespaceType::User);
        let mut terminal = None;
        let mut executing = false;
        let mut has_ended = false;
        let mut asks = usize::from(unmapped) + usize::from(asks_maker(spec));
        if asks == 0 {
            self.say_filter(channel)?;
            if !wait {
                // Nothing that is said wants an answer.
                self.attend(channel, PollFlags::empty())?;
                has_ended = true;
            }
        }
        loop {
            if !has_ended {
                self.attend(channel, PollFlags::POLLIN)?;
            }
            match channel.hear().step(step)? {
                Some(Word::Namespaces) if unmapped => {
                    map_ids(child, spec)?;
                    unmapped = false;
                    channel.say(&Word::Go).step(step)?;
                    asks -= 1;
                    if asks == 0 {
                        self.say_filter(channel)?;
                    }
                }
                Some(Word::Namespaces) if asks_maker(spec) => {
                    // By the standard's first version prestart hooks come when the container is made, and what waits
                    // for them is told so still.
                    let stages = [("prestart", ContainerState::Created), ("createRuntime", ContainerState::Creating)];
                    for (stage, status) in stages {
                        let state = container::state(spec, &self.making.id, &self.bundle.path, status, child);
                        hooks::run(stage_of(spec, stage), stage, &state)?;
                    }
                    channel.say(&Word::Go).step(step)?;
                    self.say_filter(channel)?;
                }
                Some(Word::Terminal(master)) => terminal = Some(master),
                Some(Word::Waiting) if wait => return Ok(terminal),
                Some(Word::Warning(words)) => warn(&words),
                Some(Word::Executing) => executing = true,
                Some(Word::Failed(error)) => return Err(error.into()),
                Some(other) => return Ok(Err(io::Error::other(format!("it says {other:?}"))).step(step)?),
                None if executing => return Ok(terminal),
                None => return Err(killed().into()),
            }
        }
    }

    /// Until a word can be heard, or, without events, all of them can.
    fn attend(&self, channel: &Channel, events: PollFlags) -> Result<(), Error> {
        match self.signals {
            Some(signals) => signals.await_ready(channel.as_fd(), events),
            None if events.is_empty() => {
                Ok(channel.await_end().step(|| "hear from the container's process".to_owned())?)
            }
            None => Ok(()),
        }
    }

    /// Beside the making of the namespaces.
    fn say_filter(&self, channel: &Channel) -> Result<(), StartError> {
        let Some(profile) = self.bundle.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
            return Ok(());
        };
        match channel.say(&Word::Filter(seccomp::compile(profile)?)) {
            // It has ended, and said why, or was killed.
            Err(error) if is_gone(&error) => Ok(()),
            said => said.step(|| "give the container's process its seccomp filter".to_owned()),
        }
    }
}

/// Ends a process that will run no program. It may be waiting for us, or for nobody any more.
pub(super) fn end(process: &OwnedFd, error: Error) -> Error {
    let ended =
        sys::pidfd_send_signal(process, libc::SIGKILL).and_then(|()| match sys::wait_readable(process, ENDING)? {
            true => sys::wait(process).map(drop),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "SIGKILL waits until the container is resumed")),
        });
    match ended {
        Ok(()) => error,
        Err(left) => Error::Several(format!("{error}; its process may still be there: {left}")),
    }
}

fn out_of_memory(error: &Error, spec: &Spec) -> Error {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let limit = resources.and_then(|resources| resources.memory().as_ref()?.limit());
    let limit = limit.map_or_else(String::new, |limit| format!(": linux.resources.memory.limit is {limit} bytes"));
    Error::Refused(format!("{error}: it ran out of memory{limit}"))
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset)
}

/// For the children born from now on.
fn join_pid_namespace(path: &Path) -> Result<(), Error> {
    let step = || format!("enter the pid namespace {}", path.display());
    let file = fs::File::open(path).step(step)?;
    Ok(nix::sched::setns(file, CloneFlags::CLONE_NEWPID).step(step)?)
}

/// Whole or not at all: whoever waits for the file reads it at once.
pub(super) fn write_pid(file: &Path, pid: u32) -> Result<(), Error> {
    let doing = || format!("write the process id to {}", file.display());
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput).map_err(io::Error::from).doing(doing)?;
    let temporary = file.with_file_name(format!(".{}", name.to_string_lossy()));
    fs::write(&temporary, pid.to_string()).and_then(|()| fs::rename(&temporary, file)).doing(doing)
}

/// Whether the caller's own terminal can be handed through.
pub(super) fn has_terminal() -> bool {
    io::stdin().is_terminal()
}
