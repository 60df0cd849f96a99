//! The container's devices and the usual links in `/dev`.
//!
//! A device is made with mknod(2) where its node may be opened. Where it may not, on a `nodev` mount or in a user
//! namespace, the host's node of the same number is bound, read-only: the container's root could otherwise chmod(2) the
//! host's. Reading and writing a device are not affected by that. A container whose `/dev` is `nodev` and that may make
//! nodes (Docker's default capabilities let it) still cannot open one that it made.
//!
//! Deliberately absent: `/dev/console`, which belongs to the terminal.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{FileStat, Mode, SFlag, fstat, makedev, mknodat},
        statvfs::{FsFlags, fstatvfs},
    },
    unistd::{Gid, Uid, fchownat, symlinkat},
};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

use super::root::{Root, file_type, without_dots};
use crate::{
    error::{StartError, Step},
    sys,
};

/// Supplied to every container: config-linux.md, "Default Devices".
const DEFAULTS: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Its pseudo-terminals are the container's own, never those of the host's node: one of [`LINKS`].
const PTMX: &str = "/dev/ptmx";

/// A device as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    /// In the container, and where the host's is looked for.
    path: PathBuf,
    kind: SFlag,
    number: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// All the devices of a container. Pure.
pub(super) struct Devices {
    defaults: Vec<Device>,
    wanted: Vec<Device>,
    /// Nodes made in a user namespace cannot be opened, and mostly not be made.
    bound: bool,
}

impl Devices {
    pub(super) fn of(spec: &Spec, bound: bool) -> Result<Self, StartError> {
        let wanted = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
        // Engines name all of the host's for a privileged container.
        let wanted = wanted.iter().filter(|device| device.path() != Path::new(PTMX));
        let wanted = wanted.map(device).collect::<Result<Vec<_>, _>>()?;
        let defaults = DEFAULTS
            .iter()
            .map(|&(name, major, minor)| Device {
                path: Path::new("/dev").join(name),
                kind: SFlag::S_IFCHR,
                number: makedev(major, minor),
                mode: 0o666,
                uid: 0,
                gid: 0,
            })
            .filter(|default| wanted.iter().all(|device| device.path != default.path))
            .collect();
        Ok(Self { defaults, wanted, bound })
    }

    /// Fills a `/dev`. It must be attached: before Linux 6.15 nothing can be mounted on a detached mount.
    pub(super) fn fill(&self, dev: &OwnedFd) -> Result<(), StartError> {
        let bound = self.bound || is_nodev(dev).step(|| "look at /dev".to_owned())?;
        for device in &self.defaults {
            device.supply(dev, bound)?;
        }
        let core = Path::new("/proc/kcore").exists().then_some(("/proc/kcore", "core"));
        for (to, name) in LINKS.into_iter().chain(core) {
            match symlinkat(to, dev, name) {
                // What the image has there is as good.
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error).step(|| format!("make the link /dev/{name}")),
            }
        }
        Ok(())
    }

    /// Makes those that the spec names.
    pub(super) fn make(&self, root: &Root) -> Result<(), StartError> {
        for device in &self.wanted {
            let parent = device.path.parent().unwrap_or(Path::new("/"));
            let parent = root.directory(parent).step(|| device.describe())?;
            let bound = self.bound || is_nodev(&parent).step(|| device.describe())?;
            device.supply(&parent, bound)?;
        }
        Ok(())
    }
}

fn device(device: &LinuxDevice) -> Result<Device, StartError> {
    let path = without_dots(device.path());
    let wrong = |reason| StartError::impossible(format!("the device {}", device.path().display()), reason);
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => return Err(wrong("its type must be one of b, c, u and p")),
    };
    if path.file_name().is_none() {
        return Err(wrong("its path has no name"));
    }
    let number = |number: i64| u64::try_from(number).map_err(|_| wrong("its numbers must not be negative"));
    let number = if kind == SFlag::S_IFIFO { 0 } else { makedev(number(device.major())?, number(device.minor())?) };
    Ok(Device {
        path,
        kind,
        number,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn is_nodev(directory: &OwnedFd) -> io::Result<bool> {
    Ok(fstatvfs(directory)?.flags().contains(FsFlags::ST_NODEV))
}

impl Device {
    fn describe(&self) -> String {
        format!("make the device {}", self.path.display())
    }

    fn name(&self) -> &Path {
        self.path.file_name().map_or(Path::new(""), Path::new)
    }

    fn is(&self, stat: &FileStat) -> bool {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        kind == self.kind && (kind == SFlag::S_IFIFO || stat.st_rdev == self.number)
    }

    fn supply(&self, parent: &OwnedFd, bound: bool) -> Result<(), StartError> {
        // A FIFO is no device: it works everywhere.
        if bound && self.kind != SFlag::S_IFIFO { self.bind(parent) } else { self.node(parent) }
    }

    /// An open place beside which nothing is followed.
    fn place(&self, parent: &OwnedFd) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(parent, self.name(), flags, Mode::empty())?)
    }

    fn taken(&self) -> StartError {
        StartError::impossible(self.describe(), "there is something else of that name already")
    }

    /// The umask must be 0.
    fn node(&self, parent: &OwnedFd) -> Result<(), StartError> {
        let step = || self.describe();
        match mknodat(parent, self.name(), self.kind, Mode::from_bits_truncate(self.mode), self.number) {
            Err(Errno::EEXIST) => {
                let there = self.place(parent).and_then(|place| Ok(fstat(place)?)).step(step)?;
                return if self.is(&there) { Ok(()) } else { Err(self.taken()) };
            }
            made => made.step(step)?,
        }
        if (self.uid, self.gid) == (0, 0) {
            return Ok(());
        }
        let made = self.place(parent).step(step)?;
        if !self.is(&fstat(&made).step(step)?) {
            return Err(self.taken());
        }
        let (uid, gid) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        fchownat(&made, "", uid, gid, AtFlags::AT_EMPTY_PATH).step(step)
    }

    /// Binds the host's node on an empty file.
    fn bind(&self, parent: &OwnedFd) -> Result<(), StartError> {
        let step = || self.describe();
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let target = match openat(parent, self.name(), flags, Mode::from_bits_truncate(0o666)) {
            Err(Errno::EEXIST) => {
                let place = self.place(parent).step(step)?;
                let there = fstat(&place).step(step)?;
                // A file that an earlier container with the same root was given its device on.
                let earlier = file_type(&place).step(step)? == SFlag::S_IFREG && there.st_size == 0;
                if !earlier && !self.is(&there) {
                    return Err(self.taken());
                }
                place
            }
            made => made.step(step)?,
        };
        sys::attach_mount(self.hosts()?, target).step(step)
    }

    /// The host's node, at the same path or by its number where udev has put that.
    fn hosts(&self) -> Result<OwnedFd, StartError> {
        let (major, minor) = (nix::libc::major(self.number), nix::libc::minor(self.number));
        let kind = if self.kind == SFlag::S_IFBLK { "block" } else { "char" };
        let by_number = PathBuf::from(format!("/dev/{kind}/{major}:{minor}"));
        for path in [&self.path, &by_number] {
            match sys::clone_device(path) {
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                node => {
                    let node = node.step(|| self.describe())?;
                    if self.is(&fstat(node.as_fd()).step(|| self.describe())?) {
                        return Ok(node);
                    }
                }
            }
        }
        let reason = format!("this node has no {kind} device {major}:{minor} there that could be bound");
        Err(StartError::impossible(self.describe(), reason))
    }
}
