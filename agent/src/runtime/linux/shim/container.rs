//! From a forked copy of the shim to the image's program: the order of steps, each named in what it reports.
//!
//! The order matters. The parent's death is watched for first. The cgroup is joined before the cgroup namespace, so
//! that its root is the container's own group, and before anything that takes memory. Everything that needs the
//! host's files is opened before the root changes; every descriptor is closed before the working directory, which
//! the user names, is entered: `/proc/self/fd/N` must not lead out. Identity and privileges come last.

use std::{
    cell::Cell,
    convert::Infallible,
    ffi::CString,
    fs, io,
    os::{
        fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
};
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::{
    init, privileges, rootfs,
    run::read_to_end,
    sys,
    user::{self, Ids},
};
use crate::runtime::linux::{
    bundle::{ANNOTATION_CREATE, ANNOTATION_INIT},
    cgroup::Door,
    record::BundleDir,
    report::{StartError, Step},
};

/// Written to the status pipe just before exec: an end of the pipe without it means that the process was killed.
const ABOUT_TO_EXEC: u8 = b'+';
/// Where the status pipe stays until exec closes it.
const STATUS_FD: libc::c_int = 3;
/// Where the init keeps the pipe by which it tells how the program ended.
const ENDED_FD: libc::c_int = 4;
/// As a shell says for a program that cannot be run.
pub(super) const EXIT_NOT_RUN: i32 = 127;

/// What the container's program will write to.
pub(super) struct Stdio {
    pub(super) out: OwnedFd,
    pub(super) err: OwnedFd,
}

/// The writing end of the pipe that exec closes: what is read from the other end says how far it came.
pub(super) struct StatusPipe(Cell<RawFd>);

impl StatusPipe {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self(Cell::new(pipe.into_raw_fd()))
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is owned by `self`, which never closes it.
        unsafe { BorrowedFd::borrow_raw(self.0.get()) }
    }

    fn announce(&self) -> io::Result<()> {
        nix::unistd::write(self.as_fd(), &[ABOUT_TO_EXEC]).map(drop).map_err(io::Error::from)
    }

    /// Says why there will be no exec, and exits. The message is far smaller than a pipe.
    pub(super) fn fail(&self, error: &StartError) -> ! {
        let text = serde_json::to_vec(error).unwrap_or_default();
        let written = nix::unistd::write(self.as_fd(), &text).is_ok_and(|length| length == text.len());
        std::process::exit(if written { EXIT_NOT_RUN } else { EXIT_NOT_RUN - 1 })
    }

    /// For a process that lives on beside the one that will exec.
    pub(super) fn close(&self) {
        // SAFETY: owned by `self`; set to an invalid number so that it cannot be used again.
        drop(unsafe { OwnedFd::from_raw_fd(self.0.replace(-1)) });
    }

    /// Closes every descriptor but this and the standard three.
    pub(super) fn keep_alone(&self) -> Result<(), StartError> {
        self.move_down()?;
        // SAFETY: the callers are about to exec or exit and touch no other descriptor.
        unsafe { sys::close_from(STATUS_FD as libc::c_uint + 1) }.step(|| "close descriptors".to_owned())
    }

    /// As [`Self::keep_alone`], but keeps another one as well.
    fn keep_with(&self, other: OwnedFd) -> Result<OwnedFd, StartError> {
        let step = || "close descriptors".to_owned();
        // Out of the way of the two numbers first.
        let high = fcntl(&other, FcntlArg::F_DUPFD_CLOEXEC(ENDED_FD + 1)).step(step)?;
        let _closed_below = other.into_raw_fd();
        self.move_down()?;
        // SAFETY: as in `move_down`.
        Errno::result(unsafe { libc::dup3(high, ENDED_FD, libc::O_CLOEXEC) }).step(step)?;
        // SAFETY: the callers are about to exec or exit and touch no other descriptor.
        unsafe { sys::close_from(ENDED_FD as libc::c_uint + 1) }.step(step)?;
        // SAFETY: just made, and owned by nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(ENDED_FD) })
    }

    fn move_down(&self) -> Result<(), StartError> {
        let step = || "close descriptors".to_owned();
        if self.0.get() != STATUS_FD {
            // SAFETY: whatever has this number is about to be closed anyway, and is not used again.
            Errno::result(unsafe { libc::dup3(self.0.get(), STATUS_FD, libc::O_CLOEXEC) }).step(step)?;
            self.0.set(STATUS_FD);
        }
        Ok(())
    }
}

/// Makes the container around the calling process and executes its program. Reports failure and exits.
pub(super) fn become_container(bundle: &BundleDir, door: Door, stdio: Stdio, status: OwnedFd, ended: OwnedFd) -> ! {
    let status = StatusPipe::new(status);
    let Err(error) = set_up(bundle, door, stdio, &status).and_then(|prepared| run_program(&prepared, &status, ended));
    status.fail(&error)
}

/// The other end of the status pipe: waits until the program is executing.
pub(super) fn await_exec(status: OwnedFd) -> Result<(), StartError> {
    let bytes = read_to_end(status).step(|| "read the container's status".to_owned())?;
    let report = bytes.strip_prefix(&[ABOUT_TO_EXEC]).unwrap_or(&bytes);
    if !report.is_empty() {
        return Err(serde_json::from_slice(report).step(|| "read the container's status".to_owned())?);
    }
    if bytes.is_empty() {
        let error = "its first process was killed before it could run the program".to_owned();
        return Err(StartError::Step { step: "make the container".to_owned(), error });
    }
    Ok(())
}

struct Prepared {
    process: Process,
    init: bool,
}

fn set_up(bundle: &BundleDir, door: Door, stdio: Stdio, status: &StatusPipe) -> Result<Prepared, StartError> {
    die_with_parent(status.as_fd())?;
    reset_signals().step(|| "reset signals".to_owned())?;
    set_umask();
    let config = bundle.config();
    let text = fs::read(&config).step(|| format!("read {}", config.display()))?;
    let spec: Spec = serde_json::from_slice(&text).step(|| format!("read {}", config.display()))?;
    let process = spec.process().clone().ok_or_else(|| missing("process"))?;
    let init = spec.annotations().as_ref().is_some_and(|annotations| annotations.contains_key(ANNOTATION_INIT));
    if init {
        init::disguise()?;
    }
    create_sources(&spec)?;
    enter_namespaces(&spec, door)?;
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string()).step(|| "set oom_score_adj".to_owned())?;
    }
    if let Some(hostname) = spec.hostname() {
        nix::unistd::sethostname(hostname).step(|| format!("set the hostname {hostname}"))?;
    }
    place_stdio(stdio).step(|| "connect standard input and output".to_owned())?;
    rootfs::enter(bundle, &spec)?;
    sys::new_session_keyring().step(|| "make a session keyring".to_owned())?;
    Ok(Prepared { process, init })
}

fn missing(field: &str) -> StartError {
    StartError::Step { step: "read the bundle".to_owned(), error: format!("config.json has no `{field}`") }
}

/// Asks for SIGKILL at the shim's death, and notices one that came before the asking.
fn die_with_parent(status: BorrowedFd<'_>) -> Result<(), StartError> {
    let step = || "ask to die with the shim".to_owned();
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).step(step)?;
    // The shim holds the only reading end.
    let mut polled = [PollFd::new(status, PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).step(step)?;
    match polled[0].revents() {
        Some(events) if events.contains(PollFlags::POLLERR) => Err(io::Error::other("the shim is dead")).step(step),
        _ => Ok(()),
    }
}

/// An ignored signal and a blocked one would stay so in the program, whoever along the way to us ignored it.
pub(super) fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        sys::set_default_disposition(signal)?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// The usual one, whatever the agent was started with.
fn set_umask() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
}

fn place_stdio(stdio: Stdio) -> io::Result<()> {
    sys::place_at(sys::open_null()?, libc::STDIN_FILENO)?;
    sys::place_at(stdio.out, libc::STDOUT_FILENO)?;
    sys::place_at(stdio.err, libc::STDERR_FILENO)
}

fn create_sources(spec: &Spec) -> Result<(), StartError> {
    let Some(sources) = spec.annotations().as_ref().and_then(|annotations| annotations.get(ANNOTATION_CREATE)) else {
        return Ok(());
    };
    for source in sources.lines().filter(|source| !Path::new(source).exists()) {
        fs::create_dir_all(source).step(|| format!("make the bind mount's source {source}"))?;
    }
    Ok(())
}

fn enter_namespaces(spec: &Spec, door: Door) -> Result<(), StartError> {
    let namespaces =
        spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref()).ok_or_else(|| missing("linux"))?;
    let mut new = CloneFlags::empty();
    let mut new_cgroup = false;
    for namespace in namespaces {
        let flag = match namespace.typ() {
            // Cloned into.
            LinuxNamespaceType::Pid => continue,
            LinuxNamespaceType::Cgroup => {
                new_cgroup = true;
                continue;
            }
            LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
            LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
            LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
            LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
            other => return Err(StartError::impossible(format!("a namespace of type {other:?}"), "not supported")),
        };
        match namespace.path() {
            None => new |= flag,
            Some(path) => {
                let step = || format!("enter the namespace {}", path.display());
                let file = fs::File::open(path).step(step)?;
                nix::sched::setns(file, flag).step(step)?;
            }
        }
    }
    door.enter().step(|| "join the cgroup".to_owned())?;
    unshare(new).step(|| "make namespaces".to_owned())?;
    if new_cgroup {
        unshare(CloneFlags::CLONE_NEWCGROUP).step(|| "make a cgroup namespace".to_owned())?;
    }
    if new.contains(CloneFlags::CLONE_NEWNET) {
        sys::raise_loopback().step(|| "bring loopback up".to_owned())?;
    }
    Ok(())
}

fn run_program(prepared: &Prepared, status: &StatusPipe, ended: OwnedFd) -> Result<Infallible, StartError> {
    let args = prepared.process.args().clone().ok_or_else(|| missing("process.args"))?;
    let program = Program::of(&prepared.process, args)?;
    if prepared.init {
        let ended = status.keep_with(ended)?;
        return init::run(&program, status, ended);
    }
    drop(ended);
    status.keep_alone()?;
    program.exec(status)
}

/// What is executed, as whom and where; looked up in the container, which must already be the root.
pub(super) struct Program {
    args: Vec<String>,
    env: Vec<String>,
    cwd: PathBuf,
    ids: Ids,
    process: Process,
}

impl Program {
    pub(super) fn of(process: &Process, args: Vec<String>) -> Result<Self, StartError> {
        let ids = user::look_up(process.user().username().as_deref())?;
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|variable| variable.starts_with("HOME=")) {
            env.push(format!("HOME={}", ids.home));
        }
        Ok(Self { args, env, cwd: process.cwd().clone(), ids, process: process.clone() })
    }

    /// Becomes the program. Every descriptor but the standard three and the status pipe must be closed.
    pub(super) fn exec(&self, status: &StatusPipe) -> Result<Infallible, StartError> {
        self.take_on()?;
        let args = c_strings(&self.args)?;
        let env = c_strings(&self.env)?;
        status.announce().step(|| "write to the status pipe".to_owned())?;
        let mut denied = None;
        for candidate in self.candidates() {
            let path = c_string(candidate.as_os_str().as_bytes())?;
            let Err(error) = nix::unistd::execve(&path, &args, &env);
            match error {
                Errno::ENOENT | Errno::ENOTDIR if !candidate.exists() => {}
                Errno::EACCES => denied = Some((candidate, error)),
                _ => return Err(cannot_run(&candidate, error)),
            }
        }
        Err(denied.map_or_else(|| self.not_found(), |(path, error)| cannot_run(&path, error)))
    }

    /// Working directory, identity, privileges.
    pub(super) fn take_on(&self) -> Result<(), StartError> {
        let cwd = &self.cwd;
        let step = || format!("enter the working directory {}", cwd.display());
        std::env::set_current_dir(cwd).step(step)?;
        // Fails for a directory that does not lie below the container's root.
        std::env::current_dir().step(step)?;
        set_umask();
        privileges::take_on(&self.ids, &self.process)?;
        // Changing identity forgot it.
        sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
            .step(|| "ask to die with the shim".to_owned())
    }

    fn path_variable(&self) -> &str {
        self.env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default()
    }

    fn candidates(&self) -> Vec<PathBuf> {
        let name = &self.args[0];
        if name.contains('/') {
            return vec![PathBuf::from(name)];
        }
        self.path_variable()
            .split(':')
            .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
            .collect()
    }

    fn not_found(&self) -> StartError {
        let name = &self.args[0];
        let place = if name.contains('/') { String::new() } else { format!(" in PATH={}", self.path_variable()) };
        let reason = format!("the image has no such program{place} (a shell calls this exit code 127)");
        StartError::impossible(format!("running {name:?}"), reason)
    }
}

fn cannot_run(path: &Path, error: Errno) -> StartError {
    let reason = match error {
        Errno::EACCES => "it is not executable, or its directory may not be entered (a shell calls this exit code 126)",
        Errno::ENOENT => "the file is there, but the interpreter or dynamic linker it names is not",
        Errno::ENOEXEC => "it is no program for this machine: exec format error (a shell calls this exit code 126)",
        _ => error.desc(),
    };
    StartError::impossible(format!("running {:?}", path.display().to_string()), reason)
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>, StartError> {
    strings.iter().map(|text| c_string(text.as_bytes())).collect()
}

fn c_string(bytes: &[u8]) -> Result<CString, StartError> {
    CString::new(bytes).map_err(|_| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        StartError::impossible(format!("passing {text:?} to a program"), "it contains a NUL character")
    })
}
