//! The container's view of its cgroups, for mounts of the types `cgroup` and `cgroup2`.
//!
//! With cgroup v1 it is a tmpfs with a directory for each hierarchy, on which the container's own group is bound:
//! what is above its group it does not see, with or without a cgroup namespace. With cgroup v2 it is a mount of the
//! one hierarchy, of which a cgroup namespace shows the container's own part.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
    unistd::symlinkat,
};
use oci_spec::runtime::Mount;

use super::{
    mounts::{Maker, describe, put},
    options::MountOptions,
    root::Root,
    sources::restrict,
};
use crate::{
    error::{StartError, Step},
    sys,
};

/// One of the host's cgroup hierarchies.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// The controllers of a v1 hierarchy as `/proc/self/cgroup` has them, `cpu,cpuacct` or `name=systemd`; empty for v2.
    pub name: String,
    /// Where the host has it mounted.
    pub mount_point: PathBuf,
    /// The directory of the container's own group.
    pub group: PathBuf,
}

impl Hierarchy {
    fn is_v2(&self) -> bool {
        self.name.is_empty()
    }

    /// The directory's name in the container: the host's, which programs look for.
    fn directory(&self) -> io::Result<&Path> {
        self.mount_point.file_name().map(Path::new).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

pub(super) fn mount(
    maker: &Maker<'_>,
    root: &mut Root,
    mount: &Mount,
    mut options: MountOptions<'_>,
) -> Result<(), StartError> {
    let step = || describe(mount);
    let target = root.directory(mount.destination()).step(step)?;
    let all_v2 = maker.options.cgroups.iter().all(Hierarchy::is_v2);
    if all_v2 || mount.typ().as_deref() == Some("cgroup2") {
        let made = unified(maker, mount, &options).step(step)?;
        return put(root, mount, &target, made, false);
    }
    let sealed = options.take_read_only();
    let directory = MountOptions { words: vec!["mode=755"], ..MountOptions::default() };
    let attributes = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOEXEC;
    let directory = maker.file_system("tmpfs", &tmpfs(mount), &directory).step(step)?;
    let change = sys::MountChange { set: attributes, ..sys::MountChange::default() };
    sys::change_mount(&directory, change, false).step(step)?;
    let inside = directory.try_clone().step(step)?;
    put(root, mount, &target, directory, sealed)?;
    let attributes = options.of_new_mount() | if sealed { sys::MOUNT_ATTR_RDONLY } else { 0 };
    for hierarchy in &maker.options.cgroups {
        bind(&inside, hierarchy, attributes).step(|| format!("{}: bind {}", step(), hierarchy.group.display()))?;
    }
    Ok(())
}

/// What the directory of hierarchies says it is.
fn tmpfs(of: &Mount) -> Mount {
    let mut mount = of.clone();
    mount.set_source(Some("tmpfs".into()));
    mount
}

fn unified(maker: &Maker<'_>, mount: &Mount, options: &MountOptions<'_>) -> io::Result<OwnedFd> {
    let refused = match maker.file_system("cgroup2", mount, options) {
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ResourceBusy) => error,
        made => return made,
    };
    // A user namespace without power over its cgroup namespace.
    let Some(hierarchy) = maker.options.cgroups.iter().find(|hierarchy| hierarchy.is_v2()) else {
        return Err(refused);
    };
    let own = maker.options.has_cgroup_namespace;
    // With what the host has mounted below: a user namespace may not take that away, mount_namespaces(7).
    let tree = sys::clone_mount(if own { &hierarchy.group } else { &hierarchy.mount_point }, true)?;
    restrict(&tree, options.of_new_mount(), true)?;
    Ok(tree)
}

fn bind(directory: &OwnedFd, hierarchy: &Hierarchy, attributes: u64) -> io::Result<()> {
    let name = hierarchy.directory()?;
    mkdirat(directory, name, Mode::from_bits_truncate(0o755))?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let target = openat(directory, name, flags, Mode::empty())?;
    let tree = sys::clone_mount(&hierarchy.group, false)?;
    restrict(&tree, attributes, false)?;
    sys::attach_mount(&tree, &target)?;
    // Controllers that share a hierarchy are each found by their own name.
    for controller in hierarchy.name.split(',').filter(|_| hierarchy.name.contains(',')) {
        if Path::new(controller) != name {
            symlinkat(name, directory, controller)?;
        }
    }
    Ok(())
}
