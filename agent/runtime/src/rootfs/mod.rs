//! The container's file system: made in its own mount namespace, every place in it reached by descriptor.
//!
//! [`Sources::open`] takes from the host what is bound, [`Root::make`] mounts everything the spec wants beneath the new
//! root, and [`Root::enter`] closes what shall be closed and changes to it. Between the last two, hooks may run and the
//! terminal be bound: the host's root is still the process's.
//!
//! The overlay of layers that a first mount on `/` describes is always `nodev`. Other mounts are as the spec says.
//!
//! * [`options`]: what the words of a mount mean, pure
//! * [`sources`], [`id_map`]: what is copied from the host's mounts
//! * [`overlay`], [`mounts`], [`cgroup`], [`copy_up`], [`dev`]: what is made beneath the root
//! * [`root`]: how it is reached
//! * [`cover`], [`change`]: the last steps
//! * [`host_mount`]: where the host's mounts have to do
//! * [`toolbox`]: the host's programs, for whoever looks into a container
//!
//! Deliberately absent: sysctls, `/dev/console`, hooks, and labels on files that exist already.

mod cgroup;
mod change;
mod copy_up;
mod cover;
mod dev;
mod host_mount;
mod id_map;
mod mounts;
mod options;
mod overlay;
mod root;
mod sources;
#[cfg(test)]
pub(crate) mod tests;
pub mod toolbox;

use std::path::Path;

use nix::{
    mount::MsFlags,
    sys::stat::{Mode, umask},
};
use oci_spec::runtime::{Mount, Spec};

pub(crate) use self::change::chroot_into;
pub use self::{
    cgroup::Hierarchy,
    host_mount::{HostMount, Prepared},
    options::MOUNT_OPTIONS,
    root::Root,
    sources::Sources,
};
use self::{
    dev::Devices,
    mounts::Maker,
    options::{Propagation, Reach},
    root::without_dots,
    sources::{binds, root_mount, rootfs_propagation},
};
use crate::{
    error::{StartError, Step},
    sys,
};

/// What the spec alone does not tell.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// In a user namespace: devices are bound from the host, not made.
    pub rootless_devices: bool,
    /// The host's cgroup hierarchies, for mounts of the type `cgroup`; those of v1 make it a directory of all.
    pub cgroups: Vec<Hierarchy>,
    pub has_cgroup_namespace: bool,
    /// Without a mount namespace of its own: everything is mounted below the host's mount of the root.
    pub on_host: bool,
}

/// How the root is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Pivot,
    /// For a host whose own root cannot be left.
    MoveOver,
    /// Without a mount namespace of its own, which leaves no other.
    Chroot,
}

/// Modes as they are asked for, as long as this lives.
struct NoUmask(Mode);

impl NoUmask {
    fn new() -> Self {
        Self(umask(Mode::empty()))
    }
}

impl Drop for NoUmask {
    fn drop(&mut self) {
        umask(self.0);
    }
}

/// Mounts the spec's layers on `target`, a directory of the host, for a runtime that does not know such a mount.
pub fn mount_layers(spec: &Spec, target: &Path) -> Result<(), StartError> {
    match root_mount(spec) {
        Some(mount) => overlay::mount(mount, target, mounts::label(spec)?).map(drop),
        None => Err(StartError::impossible("the container's root", "config.json has no layers for it")),
    }
}

impl Root {
    /// Mounts everything and enters nothing. The calling process must have a mount namespace of its own, unless the root
    /// is mounted already ([`HostMount`]).
    ///
    /// Its mounts become slaves of the host's: nothing made here appears there, and what the host unmounts meanwhile is
    /// not kept busy.
    pub fn make(bundle: &Path, spec: &Spec, sources: Sources, options: &Options) -> Result<Self, StartError> {
        let _modes = NoUmask::new();
        let devices = Devices::of(spec, options.rootless_devices)?;
        let maker = Maker { options, label: mounts::label(spec)? };
        if !options.on_host {
            nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
                .step(|| "cut the mounts off from the host's".to_owned())?;
        }
        let path = sources::root_path(spec, bundle)?;
        let overlay = root_mount(spec);
        let top = match (sources.root, overlay) {
            _ if options.on_host => sources::root_directory(&path)?,
            (Some(tree), _) => {
                let step = || format!("mount the root file system {}", path.display());
                sys::attach_mount(&tree, sources::root_directory(&path)?).step(step)?;
                tree
            }
            (None, Some(mount)) => overlay::mount(mount, &path, maker.label)?,
            (None, None) => return Err(StartError::impossible("the container's root", "its source was not opened")),
        };
        let mut root = Self::new(top);
        let skipped = usize::from(overlay.is_some());
        let mut whose_dev = WhoseDev::Image;
        for (mount, source) in sources::mounts(spec).iter().zip(sources.mounts).skip(skipped) {
            let source = sources::source(mount, source, bundle, spec)?;
            maker.mount(&mut root, mount, source)?;
            if whose_dev.changes_by(mount) && whose_dev == WhoseDev::New {
                root.fill_dev(&devices)?;
            }
        }
        if whose_dev == WhoseDev::Image {
            root.fill_dev(&devices)?;
        }
        devices.make(&root)?;
        if let Some(process) = spec.process() {
            let cwd = process.cwd();
            root.directory(cwd).step(|| format!("make the working directory {}", cwd.display()))?;
        }
        Ok(root)
    }

    fn fill_dev(&self, devices: &Devices) -> Result<(), StartError> {
        let dev = self.directory(Path::new("/dev")).step(|| "open /dev".to_owned())?;
        devices.fill(&dev)
    }

    /// Closes what shall be closed and makes this the process's root and working directory.
    ///
    /// Paths are covered before the root changes, while `/dev/null` and `/proc` still are the host's and cannot be
    /// anything else.
    pub fn enter(self, spec: &Spec, way: Way) -> Result<(), StartError> {
        let propagation = rootfs_propagation(spec)?;
        self.cover(spec)?;
        for (place, mount) in &self.sealed_at_last {
            sys::set_mount_attributes(mount, sys::MOUNT_ATTR_RDONLY, 0, false)
                .step(|| format!("make {} read-only", place.display()))?;
        }
        if spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true) {
            sys::set_mount_attributes(&self.top, sys::MOUNT_ATTR_RDONLY, 0, false)
                .step(|| "make the root read-only".to_owned())?;
        }
        match way {
            Way::Pivot => change::pivot(&self.top),
            Way::MoveOver => change::move_over(&self.top),
            Way::Chroot => chroot_into(&self.top),
        }?;
        match propagation {
            // Last, because such a root can neither be left nor copied from.
            Some(Propagation { kind: kind @ (MsFlags::MS_SHARED | MsFlags::MS_UNBINDABLE), reach }) => {
                let reach = if reach == Reach::Tree { MsFlags::MS_REC } else { MsFlags::empty() };
                nix::mount::mount(None::<&str>, "/", None::<&str>, kind | reach, None::<&str>)
                    .step(|| "set the root's propagation".to_owned())
            }
            // Private and slave it has been from the beginning.
            _ => Ok(()),
        }
    }
}

/// Whose the files in `/dev` are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WhoseDev {
    Image,
    /// A new file system's, which is to be filled.
    New,
    /// Whoever binds a `/dev` has it as he wants it, and it may be the host's own.
    Bound,
}

impl WhoseDev {
    /// Whether `mount` is on `/dev`.
    fn changes_by(&mut self, mount: &Mount) -> bool {
        let options = sources::options(mount);
        if options.remount || without_dots(mount.destination()) != Path::new("/dev") {
            return false;
        }
        *self = if binds(mount, &options).is_some() { Self::Bound } else { Self::New };
        true
    }
}
