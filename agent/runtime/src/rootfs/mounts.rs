//! One entry of the spec's `mounts`: from words to a mount on its place.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::{
        stat::fstat,
        statfs::{PROC_SUPER_MAGIC, fstatfs},
    },
};
use oci_spec::runtime::{Mount, Spec};

use super::{
    Options, cgroup, copy_up,
    options::MountOptions,
    root::{Root, is_directory, without_dots},
    sources::{binds, options, restrict, set_attributes},
};
use crate::{
    error::{StartError, Step},
    sys::{self, FsContext},
};

/// File systems of the kernel's own, of which many mounts may show the same instance: only the mount is ever made
/// read-only, not what others may be writing to.
const ONE_INSTANCE: [&str; 8] = ["cgroup", "cgroup2", "devpts", "mqueue", "proc", "sysfs", "tmpfs", "overlay"];
/// These cannot be labelled.
const UNLABELLED: [&str; 5] = ["cgroup", "cgroup2", "mqueue", "proc", "sysfs"];
/// What may be mounted on in a procfs: files that lxcfs and its like show in the kernel's stead.
const PROC_FILES: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// The SELinux label for new file systems, which only a host with SELinux can give.
pub(super) fn label(spec: &Spec) -> Result<Option<&str>, StartError> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref()).filter(|text| !text.is_empty());
    if label.is_some() && !Path::new("/sys/fs/selinux/enforce").exists() {
        return Err(StartError::impossible("linux.mountLabel", "this node does not run SELinux"));
    }
    Ok(label)
}

/// What all mounts are made with.
pub(super) struct Maker<'a> {
    pub(super) options: &'a Options,
    pub(super) label: Option<&'a str>,
}

impl Maker<'_> {
    /// `source` is a bind mount's tree.
    pub(super) fn mount(&self, root: &mut Root, mount: &Mount, source: Option<OwnedFd>) -> Result<(), StartError> {
        let mut options = options(mount);
        let place = without_dots(mount.destination());
        let kind = mount.typ().as_deref().unwrap_or_default();
        if place == Path::new("/") {
            let reason = "only the first mount may be on the container's root, and only an overlay";
            return Err(StartError::impossible(format!("a mount of {kind:?} on /"), reason));
        }
        let step = || describe(mount);
        if options.remount {
            return remount(root, &place, &options).step(step);
        }
        if let Some(tree) = source {
            return bind(root, mount, tree, &options);
        }
        debug_assert!(binds(mount, &options).is_none(), "a bind mount has a source");
        match kind {
            "" => Err(StartError::impossible(step(), "the mount has neither a type nor the option bind")),
            "proc" | "sysfs" => self.kernels_own(root, &place, mount, &options),
            "cgroup" | "cgroup2" => cgroup::mount(self, root, mount, options),
            "tmpfs" => self.tmpfs(root, &place, mount, options),
            _ => {
                // Nodes and directories are still to be made in it.
                let sealed = place == Path::new("/dev") && options.take_read_only();
                let target = root.directory(&place).step(step)?;
                let made = self.file_system(kind, mount, &options).step(step)?;
                put(root, mount, &target, made, sealed)
            }
        }
    }

    /// A new file system, mounted nowhere yet.
    pub(super) fn file_system(&self, kind: &str, mount: &Mount, options: &MountOptions<'_>) -> io::Result<OwnedFd> {
        let context = FsContext::open(kind)?;
        self.create(&context, kind, mount, options).map_err(|error| {
            let said = context.messages();
            if said.is_empty() { error } else { io::Error::new(error.kind(), format!("{error}: {said}")) }
        })
    }

    fn create(
        &self,
        context: &FsContext,
        kind: &str,
        mount: &Mount,
        options: &MountOptions<'_>,
    ) -> io::Result<OwnedFd> {
        if let Some(source) = mount.source() {
            context.set("source", source.to_str().ok_or(Errno::EINVAL)?)?;
        }
        for word in &options.words {
            match word.split_once('=') {
                Some((key, value)) => context.set(key, value)?,
                None => context.set_flag(word)?,
            }
        }
        if let Some(label) = self.label.filter(|_| !UNLABELLED.contains(&kind)) {
            context.set("context", label)?;
        }
        let attributes = options.of_new_mount();
        if attributes & sys::MOUNT_ATTR_RDONLY != 0 && !ONE_INSTANCE.contains(&kind) {
            // So that nothing is written to its device, not even by mounting it.
            context.set_flag("ro")?;
        }
        let made = context.mount(attributes)?;
        if let Some(wanted) = options.propagation {
            let change = sys::MountChange { propagation: wanted.kind.bits(), ..sys::MountChange::default() };
            sys::change_mount(&made, change, false)?;
        }
        Ok(made)
    }

    /// A procfs or sysfs. Its place must be what it seems: the container's programs trust in these names.
    fn kernels_own(
        &self,
        root: &mut Root,
        place: &Path,
        mount: &Mount,
        options: &MountOptions<'_>,
    ) -> Result<(), StartError> {
        let step = || describe(mount);
        let kind = mount.typ().as_deref().unwrap_or_default();
        let target = root.ordinary_directory(place)?;
        let made = match self.file_system(kind, mount, options) {
            // A user namespace without power over its network namespace, whose devices a sysfs shows.
            Err(error) if kind == "sysfs" && error.kind() == io::ErrorKind::PermissionDenied => hosts_sysfs(options),
            made => made,
        };
        put(root, mount, &target, made.step(step)?, false)
    }

    fn tmpfs(&self, root: &mut Root, place: &Path, mount: &Mount, options: MountOptions<'_>) -> Result<(), StartError> {
        let step = || describe(mount);
        let covered = root.existing(place).step(step)?;
        // A private directory of the image does not become everybody's by being covered.
        let mode = match &covered {
            Some(covered) if options.value("mode").is_none() => Some(mode_of(covered).step(step)?),
            _ => None,
        };
        let mut options = options;
        options.words.extend(mode.as_deref());
        let sealed = options.take_read_only();
        let target = match covered {
            Some(covered) => covered,
            None => root.directory(place).step(step)?,
        };
        let made = self.file_system("tmpfs", mount, &options).step(step)?;
        if options.copy_up {
            copy_up::copy(&target, &made).step(|| format!("copy {} into its tmpfs", place.display()))?;
        }
        put(root, mount, &target, made, sealed)
    }
}

pub(super) fn describe(mount: &Mount) -> String {
    format!("mount {} on {}", mount.typ().as_deref().unwrap_or("?"), mount.destination().display())
}

fn mode_of(directory: &OwnedFd) -> io::Result<String> {
    Ok(format!("mode={:o}", fstat(directory)?.st_mode & 0o7777))
}

fn bind(root: &mut Root, mount: &Mount, tree: OwnedFd, options: &MountOptions<'_>) -> Result<(), StartError> {
    let step = || describe(mount);
    // Words for a file system have none to go to: it is there already, as for mount(2).
    set_attributes(&tree, options).step(step)?;
    let directory = is_directory(&tree).step(step)?;
    let place = mount.destination();
    let target = if directory { root.directory(place) } else { root.file(place) }.step(step)?;
    put(root, mount, &target, tree, false)
}

/// Attaches what was made for `mount`, unless that would hide the kernel's own files from those who trust in them.
pub(super) fn put(
    root: &mut Root,
    mount: &Mount,
    target: &OwnedFd,
    made: OwnedFd,
    sealed: bool,
) -> Result<(), StartError> {
    let step = || describe(mount);
    let place = without_dots(mount.destination());
    let forbidden = if place == Path::new("/proc") {
        !is_proc(&made).step(step)?
    } else if place.starts_with("/proc") {
        !PROC_FILES.iter().any(|file| place == Path::new(file))
    } else {
        // By a link of the image.
        is_proc(target).step(step)?
    };
    if forbidden {
        let reason = "nothing but a procfs may be on /proc, and nothing in it but the files that lxcfs shows";
        return Err(StartError::impossible(step(), reason));
    }
    let (directory, covered) = (is_directory(&made).step(step)?, is_directory(target).step(step)?);
    if directory != covered {
        let kind = |directory| if directory { "a directory" } else { "a file" };
        let reason = format!("it is {}, and what it is to cover is {}", kind(directory), kind(covered));
        return Err(StartError::impossible(step(), reason));
    }
    root.attach(&made, target).step(step)?;
    if sealed {
        root.sealed_at_last.push((place.clone(), made.try_clone().step(step)?));
    }
    if ["/proc", "/sys"].iter().any(|own| place == Path::new(own)) {
        root.kernels_own.push((place, made));
    }
    Ok(())
}

fn is_proc(file: impl AsFd) -> io::Result<bool> {
    Ok(fstatfs(file)?.filesystem_type() == PROC_SUPER_MAGIC)
}

/// Changes the attributes of the mount that is on `place` already.
fn remount(root: &Root, place: &Path, options: &MountOptions<'_>) -> io::Result<()> {
    if !options.words.is_empty() {
        return Err(io::Error::other("the file system's own options cannot be changed by remounting it"));
    }
    let mount = root.existing(place)?.ok_or(io::ErrorKind::NotFound)?;
    set_attributes(&mount, options)
}

/// The host's `/sys` with all that is mounted there, read-only.
fn hosts_sysfs(options: &MountOptions<'_>) -> io::Result<OwnedFd> {
    let tree = sys::clone_mount(Path::new("/sys"), true)?;
    restrict(&tree, options.of_new_mount() | sys::MOUNT_ATTR_RDONLY, true)?;
    Ok(tree)
}
