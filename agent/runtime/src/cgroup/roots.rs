//! Where the controllers of cgroup v1 are mounted.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
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

/// By controller, each looked for when it is asked for: most containers have groups in a few. Several may share a root.
#[derive(Debug)]
pub(super) struct Roots {
    known: [(&'static str, OnceLock<Option<PathBuf>>); ALWAYS.len() + MAYBE.len()],
    /// All mounts, where the controllers are not where systemd and other inits put them. There may be hundreds, on a host
    /// of containers, and this is done for each container.
    mounts: Option<Vec<Mountinfo>>,
}

impl Roots {
    pub(super) fn find() -> Result<Self, StartError> {
        let usual = Self::among(None);
        if ALWAYS.iter().all(|controller| usual.get(controller).is_some()) {
            return Ok(usual);
        }
        let mounted = Self::among(Some(mountinfo_self()));
        ALWAYS.iter().try_for_each(|controller| mounted.need(controller).map(drop))?;
        Ok(mounted)
    }

    fn among(mounts: Option<Vec<Mountinfo>>) -> Self {
        let mut all = ALWAYS.into_iter().chain(MAYBE);
        let known = std::array::from_fn(|_| (all.next().expect("as many as there are"), OnceLock::new()));
        Self { known, mounts }
    }

    pub(super) fn get(&self, controller: &str) -> Option<&Path> {
        let (_, root) = self.known.iter().find(|(name, _)| *name == controller)?;
        let find = || match &self.mounts {
            None => usual(controller),
            Some(mounts) => mounted(mounts, controller),
        };
        root.get_or_init(find).as_deref()
    }

    /// A group's directory, if there is one.
    pub(super) fn group(&self, controller: &str, path: &Path) -> Option<PathBuf> {
        // Most groups are not there, which takes one look to see where the root itself takes more.
        let usual = || Path::new(UNIFIED_MOUNTPOINT).join(controller).join(path);
        if self.mounts.is_none() && !usual().exists() {
            return None;
        }
        Some(self.get(controller)?.join(path)).filter(|group| group.exists())
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
