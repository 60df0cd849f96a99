//! The container of another service whose namespaces a container shares.

use std::{fmt, fs::File, io, os::fd::AsRawFd, path::PathBuf, str::FromStr};

use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use roster_runtime::{
    error::{StartError, Step},
    identity::Identity,
};

/// What is shared, and with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partner {
    /// Its first process.
    pub(crate) init: Identity,
    pub(crate) ipc: bool,
    pub(crate) pid: bool,
}

/// Its namespaces, held open.
pub(super) struct Joined(Vec<(LinuxNamespaceType, File)>);

impl Partner {
    /// Also while its first process is ending, which waits for those of others in its pid namespace.
    pub(crate) fn is_gone(self) -> bool {
        !self.init.is_running() || self.init.is_exiting()
    }

    /// Looked at after it was opened: had the pid passed to another process, the start would differ.
    fn open(self, typ: LinuxNamespaceType) -> Result<(LinuxNamespaceType, File), StartError> {
        let path = format!("/proc/{}/ns/{typ}", self.init.pid);
        let file = File::open(&path).step(|| format!("open the shared {typ} namespace {path}"))?;
        if self.is_gone() {
            let error = io::Error::from_raw_os_error(nix::libc::ESRCH);
            return Err(error).step(|| format!("share the {typ} namespace of a container that has ended"));
        }
        Ok((typ, file))
    }
}

impl Joined {
    /// What is forked after it is in the shared pid namespace; the others are for the container to enter.
    pub(super) fn enter(partner: Partner) -> Result<Self, StartError> {
        let mut joined = Vec::new();
        if partner.ipc {
            joined.push(partner.open(LinuxNamespaceType::Ipc)?);
        }
        if partner.pid {
            let (typ, file) = partner.open(LinuxNamespaceType::Pid)?;
            setns(&file, CloneFlags::CLONE_NEWPID).step(|| "enter the shared pid namespace".to_owned())?;
            joined.push((typ, file));
        }
        Ok(Self(joined))
    }

    /// In the place of new ones. Called by a process that has inherited the descriptors.
    pub(super) fn put_into(&self, spec: &mut Spec) {
        let Some(linux) = spec.linux_mut() else { return };
        for namespace in linux.namespaces_mut().iter_mut().flatten() {
            if let Some((_, file)) = self.0.iter().find(|(typ, _)| *typ == namespace.typ()) {
                namespace.set_path(Some(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))));
            }
        }
    }
}

/// As the agent writes it for the shim: `PID:START:ipc,pid`.
impl fmt::Display for Partner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = match (self.ipc, self.pid) {
            (true, true) => "ipc,pid",
            (true, false) => "ipc",
            (false, _) => "pid",
        };
        write!(f, "{}:{}:{shared}", self.init.pid, self.init.start)
    }
}

impl FromStr for Partner {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or(());
        let (pid, start) = (part()?.parse().map_err(drop)?, part()?.parse().map_err(drop)?);
        let (ipc, pid_shared) = match part()? {
            "ipc,pid" => (true, true),
            "ipc" => (true, false),
            "pid" => (false, true),
            _ => return Err(()),
        };
        Ok(Self { init: Identity { pid, start }, ipc, pid: pid_shared })
    }
}
