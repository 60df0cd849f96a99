//! The container of another service whose namespaces a container shares.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::MsFlags,
    sched::{CloneFlags, setns},
    unistd::{chroot, fchdir},
};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use roster_runtime::{
    error::{StartError, Step},
    identity::Identity,
    rootfs::Sources,
    sys,
};

use crate::runtime::linux::record::BundleDir;

/// What is shared, and with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partner {
    /// Its first process.
    pub(crate) init: Identity,
    pub(crate) ipc: bool,
    pub(crate) pid: bool,
}

/// Where POSIX shared memory is: files, which no namespace of System V's separates.
const SHARED_MEMORY: &str = "/dev/shm";

/// What the container is to be, with its partner's namespaces and memory in the place of new ones.
pub(super) struct Shared {
    pub(super) spec: Spec,
    /// For each mount of the spec, what is opened already.
    pub(super) mounts: Vec<Option<OwnedFd>>,
    /// Which the spec names by these descriptors.
    pub(super) namespaces: Vec<File>,
}

impl Partner {
    /// Also while its first process is ending, which waits for those of others in its pid namespace.
    pub(crate) fn is_gone(self) -> bool {
        !self.init.is_running() || self.init.is_exiting()
    }

    /// Looked at after it was opened: had the pid passed to another process, the start would differ.
    fn open(self, typ: LinuxNamespaceType) -> Result<File, StartError> {
        let path = format!("/proc/{}/ns/{typ}", self.init.pid);
        let file = File::open(&path).step(|| format!("open the shared {typ} namespace {path}"))?;
        if self.is_gone() {
            let error = io::Error::from_raw_os_error(nix::libc::ESRCH);
            return Err(error).step(|| format!("share the {typ} namespace of a container that has ended"));
        }
        Ok(file)
    }

    /// What it has mounted there. Only from within its mount namespace can that be copied.
    fn memory(self) -> Result<OwnedFd, StartError> {
        let step = || format!("share {SHARED_MEMORY} with the other container");
        let open = |path| File::open(path).step(step);
        let (ours, root, cwd) = (open("/proc/self/ns/mnt")?, open("/")?, open(".")?);
        let theirs = self.open(LinuxNamespaceType::Mount)?;
        setns(&theirs, CloneFlags::CLONE_NEWNS).step(step)?;
        let copy = copy_of_memory();
        // It has put this process at the root of each namespace.
        let back = setns(&ours, CloneFlags::CLONE_NEWNS).and_then(|()| fchdir(&root)).and_then(|()| chroot("."));
        back.and_then(|()| fchdir(&cwd)).step(|| "leave the other container's mount namespace".to_owned())?;
        copy.step(step)
    }
}

/// Nothing that is in the way there leads out of the root that it has.
fn copy_of_memory() -> io::Result<OwnedFd> {
    let root = File::open("/")?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let memory = sys::clone_mount_of(openat2(&root, SHARED_MEMORY, how)?.as_fd())?;
    // What is mounted below it later stays where it was mounted.
    sys::set_mount_attributes(&memory, 0, MsFlags::MS_PRIVATE.bits(), false)?;
    Ok(memory)
}

impl Shared {
    /// What is forked after it is in the shared pid namespace; the others are for the container to enter.
    pub(super) fn with(partner: Partner, bundle: &BundleDir) -> Result<Self, StartError> {
        let mut spec = bundle.spec()?;
        let mut mounts = Sources::mapped(&spec, &bundle.0)?;
        let mut namespaces = Vec::new();
        let mut join = |typ| {
            let file = partner.open(typ)?;
            let known = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
            for namespace in known.into_iter().flatten().filter(|namespace| namespace.typ() == typ) {
                namespace.set_path(Some(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))));
            }
            namespaces.push(file);
            Ok(())
        };
        if partner.ipc {
            join(LinuxNamespaceType::Ipc)?;
        }
        if partner.pid {
            join(LinuxNamespaceType::Pid)?;
        }
        if partner.ipc {
            let mut wanted = spec.mounts_mut().iter_mut().flatten().zip(&mut mounts);
            if let Some((mount, opened)) = wanted.find(|(mount, _)| mount.destination() == Path::new(SHARED_MEMORY)) {
                let options = ["bind", "nosuid", "noexec", "nodev", "rprivate"].map(str::to_owned).to_vec();
                mount
                    .set_typ(Some("bind".to_owned()))
                    .set_source(Some(SHARED_MEMORY.into()))
                    .set_options(Some(options));
                *opened = Some(partner.memory()?);
            }
        }
        if let Some(pids) = namespaces.last().filter(|_| partner.pid) {
            setns(pids, CloneFlags::CLONE_NEWPID).step(|| "enter the shared pid namespace".to_owned())?;
        }
        Ok(Self { spec, mounts, namespaces })
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
