//! The agent's half of control groups: finding the hierarchies, making a container's group, setting its limits.
//!
//! Only cpu, memory and pids are used. Devices are kept out by `nodev` mounts instead (see `shim::rootfs`), which
//! costs nothing and is the same on v1 and v2.
//!
//! On v2 a controller works in a group only if every group above hands it down: written in `cgroup.subtree_control`,
//! which the kernel refuses of a group (other than the root) with processes of its own. The parent is therefore ours
//! alone, and where the agent itself runs does not matter: the root group, a service's, or any other.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cgroups_rs::fs::{
    Cgroup, Controllers, Hierarchy, MaxValue,
    cpu::CpuController,
    hierarchies::{self, V1, V2},
    memory::MemController,
    pid::PidController,
};
use roster_proto::spec::Limits;

use super::cgroup::CgroupDirs;

/// Microseconds: the kernel's and Docker's default.
const CPU_PERIOD: u64 = 100_000;
/// Microseconds: the kernel refuses less.
const SMALLEST_QUOTA: u64 = 1_000;
const CONTROLLERS: [&str; 3] = ["pids", "memory", "cpu"];

#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    #[error(
        "the kernel has no cgroup controller {0:?} mounted: mount it, or enable it in the parent's subtree_control"
    )]
    NoController(&'static str),
    #[error("cannot make cgroup {name}: {source}")]
    Create { name: String, source: cgroups_rs::fs::error::Error },
    #[error("cannot make cgroup {}: {source}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error(
        "cannot hand down the controllers {CONTROLLERS:?} in {}: {source} (a cgroup with processes of its own must not \
         hand any down: choose another cgroup parent)",
        path.display()
    )]
    HandDown { path: PathBuf, source: io::Error },
    #[error("cannot set {limit} of cgroup {name}: {source}")]
    Set { limit: &'static str, name: String, source: cgroups_rs::fs::error::Error },
    #[error("cannot list the cgroups under {}: {source}", path.display())]
    List { path: PathBuf, source: io::Error },
}

/// The groups of one agent: `PARENT/TASK` in every hierarchy that counts.
#[derive(Debug)]
pub struct Cgroups {
    parent: String,
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    V1 { hierarchy: V1, roots: Vec<PathBuf> },
    V2 { hierarchy: V2 },
}

impl Cgroups {
    pub fn open(parent: &str) -> Result<Self, LimitError> {
        let parent = parent.trim_matches('/').to_owned();
        if hierarchies::is_cgroup2_unified_mode() {
            return Ok(Self { parent, layout: Layout::V2 { hierarchy: V2::new() } });
        }
        let hierarchy = V1::new();
        let mut roots = Vec::new();
        for (controller, name) in [(Controllers::Pids, "pids"), (Controllers::Mem, "memory"), (Controllers::Cpu, "cpu")]
        {
            let (point, _) = hierarchy.get_mount_point(controller).ok_or(LimitError::NoController(name))?;
            // Controllers may share a mount.
            if !roots.contains(&point) {
                roots.push(point);
            }
        }
        Ok(Self { parent, layout: Layout::V1 { hierarchy, roots } })
    }

    pub fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2 { .. })
    }

    fn roots(&self) -> Vec<PathBuf> {
        match &self.layout {
            Layout::V1 { roots, .. } => roots.clone(),
            Layout::V2 { hierarchy } => vec![hierarchy.root()],
        }
    }

    /// As the bundle's `linux.cgroupsPath` names it.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new("/").join(&self.parent).join(name)
    }

    pub fn dirs(&self, name: &str) -> CgroupDirs {
        CgroupDirs(self.roots().into_iter().map(|root| root.join(&self.parent).join(name)).collect())
    }

    /// Makes the group with its limits; it must not exist yet with processes in it.
    pub fn create(&self, name: &str, limits: &Limits) -> Result<CgroupDirs, LimitError> {
        let path = Path::new(&self.parent).join(name);
        let hierarchy: Box<dyn Hierarchy> = match &self.layout {
            Layout::V1 { hierarchy, .. } => Box::new(hierarchy.clone()),
            Layout::V2 { hierarchy } => Box::new(hierarchy.clone()),
        };
        let controllers = CONTROLLERS.map(str::to_owned).to_vec();
        let group = match &self.layout {
            Layout::V1 { .. } => Cgroup::new_with_specified_controllers(hierarchy, &path, Some(controllers))
                .map_err(|source| LimitError::Create { name: name.to_owned(), source })?,
            Layout::V2 { hierarchy: v2 } => {
                make_v2(&v2.root(), &path)?;
                Cgroup::load_with_specified_controllers(hierarchy, &path, controllers)
            }
        };
        let failed = |limit| move |source| LimitError::Set { limit, name: name.to_owned(), source };
        if let Some(pids) = limits.pids {
            let pids = MaxValue::Value(i64::try_from(pids).unwrap_or(i64::MAX));
            controller::<PidController>(&group, "pids")?.set_pid_max(pids).map_err(failed("pids"))?;
        }
        if let Some(bytes) = limits.memory {
            set_memory(&group, bytes).map_err(|error| error.unwrap_or_else(failed("memory")))?;
        }
        if let Some(nano_cpus) = limits.nano_cpus {
            let (quota, period) = quota(nano_cpus);
            controller::<CpuController>(&group, "cpu")?
                .set_cfs_quota_and_period(Some(quota), Some(period))
                .map_err(failed("cpus"))?;
        }
        Ok(self.dirs(name))
    }

    /// Names of all groups under the parent.
    pub fn list(&self) -> Result<Vec<String>, LimitError> {
        let mut names = Vec::new();
        for root in self.roots() {
            let path = root.join(&self.parent);
            let failed = |source| LimitError::List { path: path.clone(), source };
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_dir() {
                    names.extend(entry.file_name().into_string());
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// Makes a group in which all [`CONTROLLERS`] work, and what is missing above it.
///
/// Handing down waits for groups that are being removed nearby, so it is done only where it is not done yet.
fn make_v2(root: &Path, path: &Path) -> Result<(), LimitError> {
    let group = root.join(path);
    fs::create_dir_all(&group).map_err(|source| LimitError::Make { path: group.clone(), source })?;
    if missing_controller(&group)?.is_none() {
        return Ok(());
    }
    let above: Vec<&Path> = group.ancestors().skip(1).take_while(|dir| dir.starts_with(root)).collect();
    let wanted = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
    for dir in above.into_iter().rev() {
        if let Some(name) = missing_controller(dir)? {
            return Err(LimitError::NoController(name));
        }
        fs::write(dir.join("cgroup.subtree_control"), &wanted)
            .map_err(|source| LimitError::HandDown { path: dir.to_owned(), source })?;
    }
    missing_controller(&group)?.map_or(Ok(()), |name| Err(LimitError::NoController(name)))
}

fn missing_controller(group: &Path) -> Result<Option<&'static str>, LimitError> {
    let path = group.join("cgroup.controllers");
    let text = fs::read_to_string(&path).map_err(|source| LimitError::List { path, source })?;
    Ok(CONTROLLERS.into_iter().find(|name| !text.split_ascii_whitespace().any(|there| there == *name)))
}

/// The limit holds for memory and swap together: a container that is out of memory is killed, not swapped.
fn set_memory(group: &Cgroup, bytes: u64) -> Result<(), MemoryError> {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let memory = controller::<MemController>(group, "memory").map_err(MemoryError::Missing)?;
    memory.set_limit(bytes).map_err(MemoryError::Set)?;
    let swap = if group.v2() { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
    // Absent where the kernel does not count swap.
    if cgroups_rs::fs::Controller::path(memory).join(swap).exists() {
        memory.set_memswap_limit(if group.v2() { 0 } else { bytes }).map_err(MemoryError::Set)?;
    }
    Ok(())
}

enum MemoryError {
    Missing(LimitError),
    Set(cgroups_rs::fs::error::Error),
}

impl MemoryError {
    fn unwrap_or_else(self, set: impl FnOnce(cgroups_rs::fs::error::Error) -> LimitError) -> LimitError {
        match self {
            MemoryError::Missing(error) => error,
            MemoryError::Set(error) => set(error),
        }
    }
}

fn controller<'a, T>(group: &'a Cgroup, name: &'static str) -> Result<&'a T, LimitError>
where
    &'a T: From<&'a cgroups_rs::fs::Subsystem>,
    T: cgroups_rs::fs::Controller + cgroups_rs::fs::ControllIdentifier,
{
    group.controller_of::<T>().ok_or(LimitError::NoController(name))
}

/// Quota and period in microseconds.
fn quota(nano_cpus: u64) -> (i64, u64) {
    let quota = (nano_cpus / (1_000_000_000 / CPU_PERIOD)).max(SMALLEST_QUOTA);
    (i64::try_from(quota).unwrap_or(i64::MAX), CPU_PERIOD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_become_a_quota() {
        assert_eq!(quota(500_000_000), (50_000, 100_000));
        assert_eq!(quota(2_000_000_000), (200_000, 100_000));
        assert_eq!(quota(1), (1_000, 100_000));
    }
}
