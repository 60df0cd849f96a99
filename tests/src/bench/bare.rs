//! The floor beneath all runtimes: the system calls that the benchmark's bundle asks for, on cgroup v1, made by a process
//! that is there already. No program is loaded for it, nothing is read, checked, written down or hidden.

use std::{
    fs, io,
    os::{fd::AsFd, unix::fs::symlink},
    path::{Path, PathBuf},
};

use nix::{
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, makedev, mknod, umask},
};
use roster_runtime::{
    seccomp::Filter,
    sys::{self, CapabilitySets},
};

/// Per controller, as [`super::runtimes`] has them in config.json.
const LIMITS: [(&str, &[(&str, &str)]); 3] = [
    ("pids", &[("pids.max", "100")]),
    ("memory", &[("memory.limit_in_bytes", "268435456")]),
    ("cpu", &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")]),
];
/// Those that config-linux.md of the standard has in every container.
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

#[derive(Debug)]
pub struct Bare {
    pub root: PathBuf,
    /// A set of them, bit N for capability number N.
    pub capabilities: u64,
    pub filter: Filter,
}

impl Bare {
    pub fn run(&self) -> Result<(), String> {
        let failed = |error: io::Error| format!("cannot make the bare container: {error}");
        let group = |controller: &str| {
            Path::new("/sys/fs/cgroup").join(controller).join(format!("roster-bare-{}", std::process::id()))
        };
        for (controller, limits) in LIMITS {
            let group = group(controller);
            if !group.parent().is_some_and(Path::exists) {
                return Err(format!("the floor is measured on cgroup v1, and {controller} is not there"));
            }
            fs::create_dir(&group).map_err(failed)?;
            limits.iter().try_for_each(|(file, limit)| fs::write(group.join(file), limit)).map_err(failed)?;
        }
        let groups = LIMITS.map(|(controller, _)| group(controller));
        let flags =
            libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;
        // SAFETY: the child allocates, which is sound while no other thread of this process does: there is none here.
        let ended = match unsafe { sys::fork_into(flags, None) }.map_err(failed)? {
            sys::Forked::Child => {
                let error = self.become_container(&groups);
                eprintln!("bench: {error}");
                std::process::exit(1)
            }
            sys::Forked::Parent { pidfd, .. } => sys::wait(pidfd.as_fd()).map_err(failed)?,
        };
        groups.iter().try_for_each(fs::remove_dir).map_err(failed)?;
        if ended == sys::WaitStatus::Code(0) { Ok(()) } else { Err(format!("the bare container ended with {ended:?}")) }
    }

    fn become_container(&self, groups: &[PathBuf]) -> io::Error {
        if let Err(error) = groups.iter().try_for_each(|group| fs::write(group.join("tasks"), "0")) {
            return error;
        }
        if let Err(error) = self.mount().and_then(|()| self.confine()) {
            return error;
        }
        let Err(error) = nix::unistd::execve(c"/bin/true", &[c"true"], &[c"PATH=/bin"]);
        error.into()
    }

    fn mount(&self) -> io::Result<()> {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        mount(Some(&self.root), &self.root, none, MsFlags::MS_BIND, none)?;
        std::env::set_current_dir(&self.root)?;
        let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "proc", Some("proc"), plain, none)?;
        mount(Some("tmpfs"), "dev", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755,size=65536k"))?;
        let before = umask(Mode::empty());
        for (name, major, minor) in DEVICES {
            mknod(&*format!("dev/{name}"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))?;
        }
        umask(before);
        LINKS.iter().try_for_each(|(name, target)| symlink(target, format!("dev/{name}")))?;
        mount(Some("sysfs"), "sys", Some("sysfs"), plain | MsFlags::MS_RDONLY, none)?;
        nix::unistd::pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        nix::unistd::sethostname("bench")?;
        Ok(())
    }

    fn confine(&self) -> io::Result<()> {
        let gone = (0..u64::from(u64::BITS)).filter(|number| self.capabilities & 1 << number == 0);
        for number in gone.take_while(|number| *number <= LAST_CAPABILITY) {
            sys::prctl(libc::PR_CAPBSET_DROP, number)?;
        }
        let held = self.capabilities;
        sys::set_capabilities(CapabilitySets { effective: held, permitted: held, inheritable: 0 })?;
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
        self.filter.load().map_err(io::Error::other)
    }
}

/// CAP_CHECKPOINT_RESTORE, since Linux 5.9.
const LAST_CAPABILITY: u64 = 40;
