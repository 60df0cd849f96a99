//! What /proc says of processes, of this machine's own or of a virtual one's.

use std::{collections::BTreeMap, fs, path::Path};

/// Prints what [`printed`] reads. One that ended meanwhile is nobody's.
pub(super) const PRINT: &str = "grep -s '' /proc/[0-9]*/stat /proc/[0-9]*/cgroup; true";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// The first 15 bytes of its program's name.
    pub comm: String,
}

#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub process: Process,
    groups: String,
}

impl Seen {
    /// The task in whose cgroup it is.
    pub(super) fn task(&self, parent: &str) -> Option<String> {
        let (_, below) = self.groups.split_once(&format!("/{parent}/"))?;
        below.split(['/', '\n']).next().map(str::to_owned)
    }
}

pub(super) fn of_this_machine() -> Vec<Seen> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    let seen = |(pid, folder): (u32, std::path::PathBuf)| {
        let comm = comm(&fs::read_to_string(folder.join("stat")).ok()?)?;
        let groups = fs::read_to_string(folder.join("cgroup")).ok()?;
        Some(Seen { process: Process { pid, comm }, groups })
    };
    pids.filter_map(seen).collect()
}

/// Lines are `/proc/PID/FILE:TEXT`.
pub(super) fn printed(text: &str) -> Vec<Seen> {
    let mut stats = BTreeMap::new();
    let mut groups: BTreeMap<u32, String> = BTreeMap::new();
    for (path, line) in text.lines().filter_map(|line| line.split_once(':')) {
        let mut parts = path.trim_start_matches("/proc/").split('/');
        let Some(pid) = parts.next().and_then(|pid| pid.parse().ok()) else { continue };
        match parts.next() {
            Some("stat") => drop(stats.insert(pid, line)),
            _ => *groups.entry(pid).or_default() += &format!("{line}\n"),
        }
    }
    let seen = |(pid, stat): (u32, &str)| {
        let groups = groups.remove(&pid).unwrap_or_default();
        Some(Seen { process: Process { pid, comm: comm(stat)? }, groups })
    };
    stats.into_iter().filter_map(seen).collect()
}

/// A zombie is not: it has ended and only its parent has not asked yet.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).is_ok_and(|stat| comm(&stat).is_some())
}

/// `None` when it has ended.
fn comm(stat: &str) -> Option<String> {
    let (head, rest) = stat.trim_end().rsplit_once(") ")?;
    let comm = head.split_once(" (")?.1.to_owned();
    (!rest.starts_with(['Z', 'X'])).then_some(comm)
}

#[cfg(test)]
mod tests {
    use super::{Process, printed};

    #[test]
    fn what_a_machine_prints_is_read() {
        let text = "/proc/7/stat:7 (a (b) c) S 1 7\n/proc/8/stat:8 (gone) Z 1\n/proc/7/cgroup:0::/roster/k3f9/init\n";
        let seen = printed(text);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].process, Process { pid: 7, comm: "a (b) c".to_owned() });
        assert_eq!(seen[0].task("roster").as_deref(), Some("k3f9"));
        assert_eq!(seen[0].task("other"), None);
    }
}
