//! What the mounts are made of and lies on the host: the image's files, and the sources of bind mounts.
//!
//! Each is a detached copy of the host's mounts. One that is to be `shared` is made before this process's own mounts are
//! cut off from the host's, whose peer it is to stay. Others are copied when their turn comes: mountinfo lists mounts in
//! the order they were made in, and those who look there for the spec's order find it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, open},
    mount::MsFlags,
    sys::stat::Mode,
};
use oci_spec::runtime::{Mount, Spec};

use super::{
    id_map::IdMaps,
    options::{Attributes, MountOptions, Propagation, Reach},
    root::without_dots,
};
use crate::{
    error::{StartError, Step},
    sys,
};

/// What must be opened before the mounts' propagation changes.
///
#[derive(Debug)]
pub struct Sources {
    /// None where the first mount is the root.
    pub(super) root: Option<OwnedFd>,
    /// For each mount of the spec; None for what is made when its turn comes.
    pub(super) mounts: Vec<Option<OwnedFd>>,
}

impl Sources {
    /// For each mount of the spec, one whose owners are mapped (`idmap`). That only who has power over its source's file
    /// system can do, so with a user namespace these are to be opened outside of it and inherited: detached mounts may be
    /// attached in another mount namespace.
    pub fn mapped(spec: &Spec, bundle: &Path) -> Result<Vec<Option<OwnedFd>>, StartError> {
        let mut id_maps = IdMaps::default();
        let source = |mount| match is_mapped(mount, &options(mount)) {
            true => bind_source(mount, bundle, spec, &mut id_maps),
            false => Ok(None),
        };
        mounts(spec).iter().map(source).collect()
    }

    pub fn open(spec: &Spec, bundle: &Path, mapped: Vec<Option<OwnedFd>>) -> Result<Self, StartError> {
        let mut sources = mapped;
        for (mount, source) in mounts(spec).iter().zip(&mut sources) {
            let is_shared = options(mount).propagation.is_some_and(|wanted| wanted.kind == MsFlags::MS_SHARED);
            if is_shared && source.is_none() {
                *source = bind_source(mount, bundle, spec, &mut IdMaps::default())?;
            }
        }
        let root = if root_mount(spec).is_some() { None } else { Some(root_tree(spec, bundle)?) };
        Ok(Self { root, mounts: sources })
    }
}

/// A mount's own source, as it was opened or opened now.
pub(super) fn source(
    mount: &Mount,
    opened: Option<OwnedFd>,
    bundle: &Path,
    spec: &Spec,
) -> Result<Option<OwnedFd>, StartError> {
    match opened {
        // Before Linux 6.15 what is mounted nowhere cannot be copied.
        Some(tree) => Ok(Some(sys::clone_tree_of(tree.as_fd()).unwrap_or(tree))),
        None => bind_source(mount, bundle, spec, &mut IdMaps::default()),
    }
}

fn is_mapped(mount: &Mount, options: &MountOptions<'_>) -> bool {
    options.id_map.is_some() || mount.uid_mappings().is_some() || mount.gid_mappings().is_some()
}

pub(super) fn mounts(spec: &Spec) -> &[Mount] {
    spec.mounts().as_deref().unwrap_or_default()
}

/// The mount that is the root file system itself.
pub(super) fn root_mount(spec: &Spec) -> Option<&Mount> {
    mounts(spec).first().filter(|first| without_dots(first.destination()) == Path::new("/"))
}

pub(super) fn options(mount: &Mount) -> MountOptions<'_> {
    MountOptions::of(mount.options().iter().flatten().map(String::as_str))
}

/// How far a bind mount reaches, if it is one.
pub(super) fn binds(mount: &Mount, options: &MountOptions<'_>) -> Option<Reach> {
    options.bind.or_else(|| (mount.typ().as_deref() == Some("bind")).then_some(Reach::Top))
}

pub(super) fn rootfs_propagation(spec: &Spec) -> Result<Option<Propagation>, StartError> {
    let name = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref()).unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    let unknown = || StartError::impossible(format!("the rootfsPropagation {name:?}"), "there is no such propagation");
    Propagation::named(name).map(Some).ok_or_else(unknown)
}

/// The root directory's path on the host.
pub(super) fn root_path(spec: &Spec, bundle: &Path) -> Result<PathBuf, StartError> {
    let root = spec.root().as_ref().ok_or_else(|| StartError::impossible("a bundle without root", "set root.path"))?;
    Ok(bundle.join(root.path()))
}

/// Opens the root directory, which must not be a link.
pub(super) fn root_directory(path: &Path) -> Result<OwnedFd, StartError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(io::Error::from).map_err(|error| {
        let what = format!("the root file system {}", path.display());
        match error.kind() {
            io::ErrorKind::NotFound => StartError::impossible(what, "it does not exist on this node"),
            io::ErrorKind::NotADirectory => StartError::impossible(what, "it is no directory, or a symbolic link"),
            _ => StartError::Step { step: format!("open {what}"), error: error.to_string() },
        }
    })
}

pub(super) fn root_tree(spec: &Spec, bundle: &Path) -> Result<OwnedFd, StartError> {
    let path = root_path(spec, bundle)?;
    let directory = root_directory(&path)?;
    let step = || format!("copy the mount of the root file system {}", path.display());
    // Not by its path: a link could be there by now.
    let tree = sys::clone_tree_of(directory.as_fd()).step(step)?;
    // The host's peer it must not stay: all that is mounted in the container would be mounted there too.
    let follows = rootfs_propagation(spec)?.filter(|wanted| wanted.kind == MsFlags::MS_SLAVE);
    let kind = follows.map_or(MsFlags::MS_PRIVATE, |wanted| wanted.kind);
    let change = sys::MountChange { propagation: kind.bits(), ..sys::MountChange::default() };
    sys::change_mount(&tree, change, true).step(step)?;
    Ok(tree)
}

fn bind_source(mount: &Mount, bundle: &Path, spec: &Spec, id_maps: &mut IdMaps) -> Result<Option<OwnedFd>, StartError> {
    let what = || format!("the bind mount on {}", mount.destination().display());
    let options = options(mount);
    let mapped = is_mapped(mount, &options);
    let Some(reach) = binds(mount, &options).filter(|_| !options.remount) else {
        if mapped {
            let what = format!("the mount on {}", mount.destination().display());
            return Err(StartError::impossible(what, "owners can be mapped for bind mounts only"));
        }
        return Ok(None);
    };
    let source = mount.source().as_deref().ok_or_else(|| StartError::impossible(what(), "it has no source"))?;
    let source = bundle.join(source);
    let tree = match sys::clone_mount(&source, reach == Reach::Tree) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = format!("its source {} does not exist on this node", source.display());
            return Err(StartError::impossible(what(), reason));
        }
        tree => tree.step(|| format!("open the bind mount's source {}", source.display()))?,
    };
    if mapped {
        let reach = options.id_map.unwrap_or(Reach::Top);
        id_maps.apply(&tree, reach, mount, spec)?;
    }
    set_propagation(&tree, options.propagation).step(|| format!("set the propagation of {}", what()))?;
    Ok(Some(tree))
}

/// Nothing that is mounted in the container may appear on the host unless that is asked for. So what lies below a
/// mount that is to be private, slave or unbindable becomes no less cut off than itself.
fn set_propagation(tree: &OwnedFd, wanted: Option<Propagation>) -> io::Result<()> {
    let set = |kind: MsFlags, recursive| {
        let change = sys::MountChange { propagation: kind.bits(), ..sys::MountChange::default() };
        sys::change_mount(tree, change, recursive)
    };
    match wanted {
        None => set(MsFlags::MS_PRIVATE, true),
        Some(Propagation { kind: MsFlags::MS_SHARED, reach }) => set(MsFlags::MS_SHARED, reach == Reach::Tree),
        Some(Propagation { kind: MsFlags::MS_UNBINDABLE, reach: Reach::Top }) => {
            set(MsFlags::MS_PRIVATE, true)?;
            set(MsFlags::MS_UNBINDABLE, false)
        }
        Some(Propagation { kind, .. }) => set(kind, true),
    }
}

/// Puts the attributes that the options ask for on a copy of existing mounts.
pub(super) fn set_attributes(tree: &OwnedFd, options: &MountOptions<'_>) -> io::Result<()> {
    let set = |attributes: Attributes, recursive| {
        if attributes.is_empty() {
            return Ok(());
        }
        let (set, clear) = (attributes.to_set(), attributes.to_clear());
        sys::change_mount(tree, sys::MountChange { set, clear, ..sys::MountChange::default() }, recursive)
    };
    set(options.top, false)?;
    set(options.tree, true)
}

/// Puts the attributes of a new mount on a private copy of the host's.
pub(super) fn restrict(tree: &OwnedFd, attributes: u64, recursive: bool) -> io::Result<()> {
    let change = sys::MountChange {
        set: attributes,
        // One way of keeping access times replaces another.
        clear: if attributes & sys::MOUNT_ATTR_ATIME == 0 { 0 } else { sys::MOUNT_ATTR_ATIME },
        propagation: MsFlags::MS_PRIVATE.bits(),
        ..sys::MountChange::default()
    };
    sys::change_mount(tree, change, recursive)
}
