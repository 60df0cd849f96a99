//! The root of a container that has no mount namespace of its own: a copy of its directory's mount, put on that directory
//! on the host. All that the container mounts lies below it and goes with it.
//!
//! It is known by its number, which is to be written down before it is there: what is taken off later must be it, not
//! what somebody else has mounted in the same place.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::{change::mount_point, sources};
use crate::{
    error::{StartError, Step},
    sys,
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMount {
    path: PathBuf,
    /// The first field in mountinfo.
    id: u64,
}

/// One that is mounted nowhere yet.
#[derive(Debug)]
pub struct Prepared {
    pub mount: HostMount,
    tree: OwnedFd,
}

impl HostMount {
    pub fn prepare(spec: &Spec, bundle: &Path) -> Result<Prepared, StartError> {
        if sources::root_mount(spec).is_some() {
            let reason = "it needs a mount namespace of the container's own";
            return Err(StartError::impossible("the mount on /", reason));
        }
        let tree = sources::root_tree(spec, bundle)?;
        let id = mount_id(&tree).step(|| "look at the copy of the root file system's mount".to_owned())?;
        Ok(Prepared { mount: Self { path: sources::root_path(spec, bundle)?, id }, tree })
    }

    /// Takes it off with all that is mounted below; fine when it is gone, or never was there.
    pub fn remove(&self) -> io::Result<()> {
        let text = fs::read("/proc/self/mountinfo")?;
        let id = format!("{} ", self.id);
        let is_it = |line: &[u8]| line.starts_with(id.as_bytes()) && mount_point(line).as_deref() == Some(&*self.path);
        if !text.split(|byte| *byte == b'\n').any(is_it) {
            return Ok(());
        }
        let top = sources::root_directory(&self.path).map_err(io::Error::other)?;
        if mount_id(&top)? != self.id {
            return Err(io::Error::other("something else is mounted over the container's root"));
        }
        let flags = MntFlags::MNT_DETACH;
        Ok(umount2(&*format!("/proc/self/fd/{}", top.as_raw_fd()), flags)?)
    }
}

impl Prepared {
    pub fn attach(self) -> Result<(), StartError> {
        let path = &self.mount.path;
        let step = || format!("mount the root file system {}", path.display());
        sys::attach_mount(&self.tree, sources::root_directory(path)?).step(step)
    }
}

/// proc_pid_fdinfo(5).
fn mount_id(fd: impl AsFd) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "fdinfo is not understood"))
}
