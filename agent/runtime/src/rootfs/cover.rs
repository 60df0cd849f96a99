//! `maskedPaths` and `readonlyPaths`: what the container shall not see, and what it shall not change.
//!
//! Nothing is there to be covered is no error; anything else that hinders it is. Paths below `/proc` and `/sys` are
//! looked up on the mounts there themselves, so what is covered lies on them (see [`super::root`]). What covers is
//! the host's `/dev/null`, by its number, never the container's.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::sys::stat::{SFlag, fstat, makedev};
use oci_spec::runtime::Spec;

use super::root::{Root, file_type, is_directory};
use crate::{
    error::{StartError, Step},
    sys,
};

impl Root {
    /// Read-only paths first: a masked path may lie on one.
    pub(super) fn cover(&self, spec: &Spec) -> Result<(), StartError> {
        let Some(linux) = spec.linux() else { return Ok(()) };
        for path in linux.readonly_paths().iter().flatten() {
            self.make_read_only(path).step(|| format!("make {path} read-only"))?;
        }
        let mut covers = Covers::default();
        for path in linux.masked_paths().iter().flatten() {
            self.mask(path, &mut covers).step(|| format!("mask {path}"))?;
        }
        Ok(())
    }

    /// With what is mounted below it, which stays as it is.
    fn make_read_only(&self, path: &str) -> io::Result<()> {
        let Some(target) = self.existing(Path::new(path))? else { return Ok(()) };
        let tree = sys::clone_tree_of(target.as_fd())?;
        sys::set_mount_attributes(&tree, sys::MOUNT_ATTR_RDONLY, 0, false)?;
        self.attach(&tree, &target)
    }

    fn mask(&self, path: &str, covers: &mut Covers) -> io::Result<()> {
        let Some(target) = self.existing(Path::new(path))? else { return Ok(()) };
        let (known, new): (_, fn() -> io::Result<OwnedFd>) =
            if is_directory(&target)? { (&mut covers.directory, empty_directory) } else { (&mut covers.file, null) };
        let cover = match known {
            Some(first) => sys::clone_mount_of(OwnedFd::as_fd(first))?,
            None => new()?,
        };
        self.attach(&cover, &target)?;
        // Copied from where it is attached: before Linux 6.15 a detached mount cannot be.
        known.get_or_insert(cover);
        Ok(())
    }
}

/// The first of each kind, of which the others are copies.
#[derive(Default)]
struct Covers {
    directory: Option<OwnedFd>,
    file: Option<OwnedFd>,
}

fn empty_directory() -> io::Result<OwnedFd> {
    let attributes = sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NOEXEC;
    sys::FsContext::open("tmpfs")?.mount(attributes)
}

fn null() -> io::Result<OwnedFd> {
    let null = sys::clone_device(Path::new("/dev/null"))?;
    if file_type(&null)? != SFlag::S_IFCHR || fstat(&null)?.st_rdev != makedev(1, 3) {
        return Err(io::Error::other("/dev/null of this node is not that device"));
    }
    Ok(null)
}
