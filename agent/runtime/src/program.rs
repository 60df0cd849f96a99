//! What is executed, as whom, where and with which privileges; looked up in the container, which must already be the
//! root.

use std::{
    convert::Infallible,
    ffi::CString,
    os::{
        fd::{BorrowedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    libc,
    sys::stat::{SFlag, fstat},
    unistd::{Uid, fchown},
};
use oci_spec::runtime::{LinuxPersonality, Process};

use crate::{
    channel::{Channel, Word},
    error::{NOT_EXECUTABLE, NOT_FOUND, StartError, Step},
    process::{privileges, rlimits, scheduling, user::Ids},
    seccomp::Filter,
    sys,
};

/// What is not of the process alone.
#[derive(Debug, Default)]
pub(crate) struct Confinement {
    pub(crate) seccomp: Option<Filter>,
    pub(crate) personality: Option<LinuxPersonality>,
    /// The program gets SIGKILL when its parent dies.
    pub(crate) dies_with_parent: bool,
}

#[derive(Debug)]
pub(crate) struct Program {
    args: Vec<String>,
    env: Vec<String>,
    ids: Ids,
    process: Process,
    confinement: Confinement,
}

impl Program {
    pub(crate) fn of(process: &Process, confinement: Confinement) -> Result<Self, StartError> {
        let args =
            process.args().clone().filter(|args| !args.is_empty()).ok_or_else(|| {
                StartError::impossible("config.json, process.args", "there is no program to run in it")
            })?;
        let ids = Ids::of(process.user())?;
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|variable| variable.starts_with("HOME=")) {
            env.push(format!("HOME={}", ids.home()));
        }
        Ok(Self { args, env, ids, process: process.clone(), confinement })
    }

    /// Becomes the program. Every descriptor but its own and the channel must be closed.
    pub(crate) fn exec(&self, maker: &Channel) -> Result<Infallible, StartError> {
        self.take_on(|left_out| maker.say(&Word::Warning(left_out)).step(|| "tell the container's maker".to_owned()))?;
        let args = c_strings(&self.args)?;
        let env = c_strings(&self.env)?;
        maker.say(&Word::Executing).step(|| "tell the container's maker".to_owned())?;
        // The last, for it may refuse whatever comes after it but execve(2).
        if let Some(filter) = self.confinement.seccomp.as_ref().filter(|_| self.is_confined_late()) {
            filter.load()?;
        }
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

    /// Whether there is something to execute, for root: said as early as it can be.
    pub(crate) fn locate(&self) -> Result<(), StartError> {
        // A relative one is looked for from the working directory, which is entered later.
        let is_here = |path: &PathBuf| path.is_relative() || path.exists();
        if self.candidates().iter().any(is_here) { Ok(()) } else { Err(self.not_found()) }
    }

    /// Working directory, limits, identity, privileges. What of these cannot be had, and need not, is warned of.
    pub(crate) fn take_on(&self, mut warn: impl FnMut(String) -> Result<(), StartError>) -> Result<(), StartError> {
        enter_directory(self.process.cwd())?;
        self.schedule()?;
        // Without no_new_privs only CAP_SYS_ADMIN may load it, which the program may not have.
        if let Some(filter) = self.confinement.seccomp.as_ref().filter(|_| !self.is_confined_late()) {
            filter.load()?;
        }
        if self.ids.uid != 0 {
            self.own_streams()?;
        }
        for left_out in privileges::take_on(&self.ids, &self.process)? {
            warn(left_out.to_string())?;
        }
        if self.process.no_new_privileges() == Some(true) {
            privileges::forbid_new_privileges()?;
        }
        // Changing identity forgot it.
        if self.confinement.dies_with_parent {
            sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
                .step(|| "ask to die with the parent".to_owned())?;
        }
        Ok(())
    }

    /// See [`own_pipes`]. The terminal is made for it alone as well.
    fn own_streams(&self) -> Result<(), StartError> {
        match self.process.terminal() {
            Some(true) => STREAMS.into_iter().try_for_each(|stream| own(stream, self.ids.uid)),
            _ => own_pipes(self.ids.uid),
        }
    }

    /// A deadline comes last: a task that has one cannot fork, and needs all its rights to get it.
    fn schedule(&self) -> Result<(), StartError> {
        if let Some(limits) = self.process.rlimits() {
            rlimits::set(limits)?;
        }
        if let Some(personality) = &self.confinement.personality {
            scheduling::set_personality(personality)?;
        }
        if let Some(priority) = self.process.io_priority() {
            scheduling::set_io_priority(priority)?;
        }
        self.process.scheduler().as_ref().map_or(Ok(()), scheduling::set_scheduler)
    }

    fn is_confined_late(&self) -> bool {
        self.process.no_new_privileges() == Some(true)
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
        let reason =
            format!("executable file not found{place}: no such program there (a shell calls this exit code 127)");
        StartError::NotRun { what: format!("running {name:?}"), reason, code: NOT_FOUND }
    }
}

/// A program that is not the host's root must be able to open `/dev/stdout` again: pipes are made for it alone. What else
/// a stream may be, a file or a device of the caller's, stays as it is.
pub(crate) fn own_pipes(uid: u32) -> Result<(), StartError> {
    for stream in STREAMS {
        let kind = fstat(stream).step(|| "look at the standard streams".to_owned())?.st_mode;
        if SFlag::from_bits_truncate(kind) & SFlag::S_IFMT == SFlag::S_IFIFO {
            own(stream, uid)?;
        }
    }
    Ok(())
}

// SAFETY: the standard streams are open for as long as the process lives.
const STREAMS: [BorrowedFd<'static>; 3] = unsafe {
    [
        BorrowedFd::borrow_raw(libc::STDIN_FILENO),
        BorrowedFd::borrow_raw(libc::STDOUT_FILENO),
        BorrowedFd::borrow_raw(libc::STDERR_FILENO),
    ]
};

fn own(stream: BorrowedFd<'_>, uid: u32) -> Result<(), StartError> {
    match fchown(stream, Some(Uid::from_raw(uid)), None) {
        // Somebody's whom the user namespace does not know: it stays theirs.
        Ok(()) | Err(Errno::EPERM | Errno::EINVAL) => Ok(()),
        Err(error) => Err(error).step(|| "give the standard streams away".to_owned()),
    }
}

fn enter_directory(cwd: &Path) -> Result<(), StartError> {
    let step = || format!("enter the working directory {}", cwd.display());
    std::env::set_current_dir(cwd).step(step)?;
    // Fails for a directory that does not lie below the container's root.
    std::env::current_dir().map(drop).step(step)
}

/// The first descriptor that is not the program's, when it is to have so many beyond the standard ones.
pub(crate) fn first_foreign(preserved: u32) -> Result<RawFd, StartError> {
    let first = i64::from(libc::STDERR_FILENO) + 1;
    let end = RawFd::try_from(first + i64::from(preserved))
        .map_err(|_| StartError::impossible("preserving descriptors", "there are not so many"))?;
    for fd in libc::STDERR_FILENO + 1..end {
        // SAFETY: looks at a number.
        let flags = Errno::result(unsafe { libc::fcntl(fd, libc::F_GETFD) });
        let flags = flags.map_err(|_| {
            StartError::impossible(format!("preserving {preserved} descriptors"), format!("{fd} is not open"))
        })?;
        // SAFETY: the descriptor is the caller's gift to the program; no value here owns it.
        Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, flags & !libc::FD_CLOEXEC) })
            .step(|| format!("preserve descriptor {fd}"))?;
    }
    Ok(end)
}

fn cannot_run(path: &Path, error: Errno) -> StartError {
    let reason = match error {
        Errno::EACCES => {
            "permission denied: it is not executable, or its directory may not be entered (a shell calls this exit code 126)"
        }
        Errno::ENOENT => "the file is there, but the interpreter or dynamic linker it names is not",
        Errno::ENOEXEC => "it is no program for this machine: exec format error (a shell calls this exit code 126)",
        _ => error.desc(),
    };
    let what = format!("running {:?}", path.display().to_string());
    StartError::NotRun { what, reason: reason.to_owned(), code: NOT_EXECUTABLE }
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
