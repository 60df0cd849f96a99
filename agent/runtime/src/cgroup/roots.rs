//! Where the controllers of cgroup v1 are mounted.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cgroups_rs::fs::hierarchies::{Mountinfo, UNIFIED_MOUNTPOINT, mountinfo_self};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, statfs};

use crate::error::StartError;

/// Every container has these: kills go by pids, so it is first; lack of memory is counted by memory.
pub(super) const ALWAYS: [&str; 3] = ["pids", "memory", "cpu"];
/// Those in which a container may have a group as well.
pub(super) const MAYBE: [&str; 9] =
    [CPU_TIME, CPU_SET, BLOCKS, "devices", "hugetlb", "net_cls", "net_prio", "rdma", FREEZER];
/// Mounted together with cpu on most hosts.
pub(super) const CPU_TIME: &str = "cpuacct";
pub(super) const CPU_SET: &str = "cpuset";
pub(super) const BLOCKS: &str = "blkio";
pub(super) const FREEZER: &str = "freezer";

/// By controller. Several may share a root.
#[derive(Debug)]
pub(super) struct Roots(Vec<(&'static str, PathBuf)>);

impl Roots {
    /// All mounts are read only where the controllers are not where systemd and other inits put them: there may be
    /// hundreds, on a host of containers, and this is done for each container.
    pub(super) fn find() -> Result<Self, StartError> {
        let usual = Self::of(usual);
        if ALWAYS.iter().all(|controller| usual.get(controller).is_some()) {
            return Ok(usual);
        }
        let mounts = mountinfo_self();
        let mounted = Self::of(|controller| mounted(&mounts, controller));
        ALWAYS.iter().try_for_each(|controller| mounted.need(controller).map(drop))?;
        Ok(mounted)
    }

    fn of(root: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let all = ALWAYS.into_iter().chain(MAYBE);
        Self(all.filter_map(|controller| Some((controller, root(controller)?))).collect())
    }

    pub(super) fn get(&self, controller: &str) -> Option<&Path> {
        self.0.iter().find(|(name, _)| *name == controller).map(|(_, root)| root.as_path())
    }

    pub(super) fn need(&self, controller: &str) -> Result<&Path, StartError> {
        self.get(controller).ok_or_else(|| {
            let reason = format!(
                "it is not mounted: mount it (mount -t cgroup -o {controller} cgroup {UNIFIED_MOUNTPOINT}/{controller}), \
                 or leave out what needs it"
            );
            StartError::impossible(format!("using the cgroup controller {controller}"), reason)
        })
    }
}

/// A directory of the controller's name, or, where several share a mount, a link of that name to it.
fn usual(controller: &str) -> Option<PathBuf> {
    let path = Path::new(UNIFIED_MOUNTPOINT).join(controller);
    let is_root = statfs(&path).is_ok_and(|there| there.filesystem_type() == CGROUP_SUPER_MAGIC);
    is_root.then(|| match fs::read_link(&path) {
        Ok(target) => Path::new(UNIFIED_MOUNTPOINT).join(target),
        Err(_) => path,
    })
}

fn mounted(mounts: &[Mountinfo], controller: &str) -> Option<PathBuf> {
    let mount = mounts.iter().find(|mount| mount.super_opts.iter().any(|option| option == controller))?;
    Some(mount.mount_point.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_place_is_where_the_mount_is() {
        let mounts = mountinfo_self();
        for controller in ALWAYS.into_iter().chain(MAYBE) {
            if let Some(usual) = usual(controller) {
                assert_eq!(Some(usual), mounted(&mounts, controller), "{controller}");
            }
        }
    }
}
