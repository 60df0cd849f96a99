//! What a cluster that is gone must not have left: processes, mounts, cgroups, links, directories.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::netns::Netns;

/// Everything that still bears the cluster's name or lies in its folder. Empty is right.
pub fn of(name: &str, root: &Path, netns: &Netns) -> Vec<String> {
    let mut found = processes(name, root);
    found.extend(mounts(root));
    found.extend(cgroups(name));
    found.extend(links(netns));
    found
}

/// What containers that are gone left behind while the agent still runs; its own folders and bridge may stay.
pub fn of_containers(name: &str, agent_data: &Path, agent_run: &Path, netns: &Netns) -> Vec<String> {
    let mut found: Vec<String> =
        processes(name, agent_run).into_iter().filter(|process| !process.contains("roster-agent ")).collect();
    found.extend(mounts(agent_run));
    found.extend(links(netns).into_iter().filter(|link| link.contains("veth")));
    found.extend(mounts(&agent_data.join("containers")));
    let folders = ["containers", "disks", "trash"].map(|name| agent_data.join(name));
    let folders = folders.into_iter().chain(["tasks", "netns", "trash"].map(|name| agent_run.join(name)));
    for folder in folders.chain(hierarchies().map(|hierarchy| hierarchy.join(name))) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // In a cgroup's folder only folders are somebody's.
            if path.is_dir() || !path.starts_with("/sys") {
                found.push(format!("entry {}", path.display()));
            }
        }
    }
    found
}

/// Processes whose command line mentions the cluster's folder, or that are in one of its cgroups.
pub fn processes(name: &str, root: &Path) -> Vec<String> {
    let needle = root.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process that ended meanwhile is not left over.
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if command.contains(&needle) || groups.contains(&format!("/{name}/")) {
            found.push(format!("process {pid}: {command}"));
        }
    }
    found
}

pub fn mounts(root: &Path) -> Vec<String> {
    let needle = root.to_string_lossy().into_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter(|line| line.contains(&needle)).map(|line| format!("mount {line}")).collect()
}

/// The mount points below a folder, in the order they were mounted.
pub fn mount_points(root: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The fifth field: proc_pid_mountinfo(5).
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(root)).collect()
}

/// Cgroups below the cluster's parent, in every hierarchy; also the processes in them.
pub fn cgroups(name: &str) -> Vec<String> {
    let groups = cgroup_dirs(name).into_iter();
    groups
        .map(|group| {
            let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            format!("cgroup {} (processes: {})", group.display(), procs.replace('\n', " "))
        })
        .collect()
}

/// The cgroup of this name in every hierarchy that has one.
pub fn cgroup_dirs(name: &str) -> Vec<PathBuf> {
    hierarchies().map(|hierarchy| hierarchy.join(name)).filter(|group| group.is_dir()).collect()
}

/// Of cgroup v1 and hybrid, and the one of v2.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path()).chain([base.to_owned()])
}

/// Links of the cluster's network namespace but for loopback.
pub fn links(netns: &Netns) -> Vec<String> {
    let output = netns.command("ip").args(["-o", "link", "show"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines()
        .filter(|line| !line.contains(": lo:"))
        .map(|line| format!("link {}", line.split('\\').next().unwrap_or(line)))
        .collect()
}
