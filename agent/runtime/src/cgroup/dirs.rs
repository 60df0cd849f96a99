//! A container's control groups as directories: joined, watched, emptied and removed.
//!
//! Works alike on v1, hybrid and v2, with plain file operations, for those who know a group's directories only, not
//! where the hierarchies are. Making groups and setting limits is up to [`super::Hierarchies`].
//!
//! On v1 a process joins by writing `0` to `tasks` while it has one thread: moving it from outside through
//! `cgroup.procs` waits for a grace period of the kernel (milliseconds). On v2 it is cloned into its group.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{sys::signal, unistd::Pid};

use crate::rootfs::Hierarchy;

/// How long processes that were sent SIGKILL may take to be gone.
const EMPTYING_DEADLINE: Duration = Duration::from_secs(20);
/// The longest pause between two looks at a group that is not empty yet.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// Above this a v1 memory limit is the kernel's "none", which is rounded down to pages.
const NO_LIMIT: u64 = i64::MAX as u64 - 65536;

/// The directories of one container, one for each hierarchy; a single one on v2.
///
/// The first is the one that kills go by: it is joined before any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupDirs(pub Vec<PathBuf>);

/// What the kernel counted of running out of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Processes killed.
    pub kills: u64,
    /// Bytes; `None`: the group has no limit of its own.
    pub limit: Option<u64>,
}

/// Open descriptors through which one process joins, even after its view of the file system has changed.
#[derive(Debug)]
pub enum Door {
    /// Written to by the process itself.
    Tasks(Vec<(PathBuf, File)>),
    /// Given to clone3.
    Directory(OwnedFd),
}

impl CgroupDirs {
    pub fn is_v2(&self) -> bool {
        self.0.first().is_some_and(|dir| dir.join("cgroup.controllers").exists())
    }

    pub fn door(&self) -> io::Result<Door> {
        if self.is_v2() {
            return Ok(Door::Directory(File::open(&self.0[0]).map_err(|e| at(&self.0[0], e))?.into()));
        }
        let open = |dir: &PathBuf| {
            let tasks = dir.join("tasks");
            let file = OpenOptions::new().write(true).open(&tasks).map_err(|e| at(&tasks, e))?;
            Ok((tasks, file))
        };
        self.0.iter().map(open).collect::<io::Result<_>>().map(Door::Tasks)
    }

    /// For showing the container its groups.
    pub(crate) fn hierarchies(&self) -> Vec<Hierarchy> {
        let is_v2 = self.is_v2();
        let of = |group: &PathBuf| {
            // Above its root a hierarchy has no such file.
            let mount_point = group.ancestors().take_while(|dir| dir.join("cgroup.procs").exists()).last()?;
            let name = if is_v2 { String::new() } else { mount_point.file_name()?.to_string_lossy().into_owned() };
            Some(Hierarchy { name, mount_point: mount_point.to_owned(), group: group.clone() })
        };
        self.0.iter().filter_map(of).collect()
    }

    /// A group below the first one, so that what joins it can be killed apart from the rest.
    pub fn child(&self, name: &str) -> io::Result<Self> {
        let dir = self.0[0].join(name);
        fs::create_dir(&dir).map_err(|e| at(&dir, e))?;
        let rest = self.0.iter().skip(1).cloned();
        Ok(Self(std::iter::once(dir).chain(rest).collect()))
    }

    /// Every process in it, also in groups below.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let mut found = Vec::new();
        for dir in &self.0 {
            processes_below(dir, &mut found)?;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Those that a group of another hierarchy, `dir`, does not have.
    pub(super) fn missing_from(&self, dir: &Path) -> io::Result<Vec<i32>> {
        let mut there = Vec::new();
        processes_below(dir, &mut there)?;
        Ok(self.processes()?.into_iter().filter(|pid| !there.contains(pid)).collect())
    }

    /// Moves all processes into a group of another hierarchy, until none is missing: a process that is not moved yet
    /// may have made another.
    pub(super) fn gather_into(&self, dir: &Path, deadline: Instant) -> io::Result<()> {
        let path = dir.join("cgroup.procs");
        loop {
            let missing = self.missing_from(dir)?;
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let text = format!("processes {missing:?} could not be moved in time");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            for pid in missing {
                match fs::write(&path, pid.to_string()) {
                    Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                    result => result.map_err(|e| at(&path, e))?,
                }
            }
        }
    }

    /// SIGKILL to everything in it, until nothing is left, also where it is frozen.
    ///
    /// Ends even against a fork bomb: the pids limit holds, and a container's processes all die with its first one.
    pub fn kill(&self) -> io::Result<()> {
        let deadline = Instant::now() + EMPTYING_DEADLINE;
        let mut pause = Duration::from_micros(100);
        loop {
            let processes = self.processes()?;
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let text = format!("processes {processes:?} did not end {EMPTYING_DEADLINE:?} after SIGKILL");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            self.kill_once(&processes)?;
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn kill_once(&self, processes: &[i32]) -> io::Result<()> {
        let at_once = self.0[0].join("cgroup.kill");
        if at_once.exists() {
            return fs::write(&at_once, "1").map_err(|e| at(&at_once, e));
        }
        for pid in processes {
            match signal::kill(Pid::from_raw(*pid), signal::SIGKILL) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.thaw()
    }

    /// On v1 a frozen process dies only once it is not; every group there but the root has a state.
    fn thaw(&self) -> io::Result<()> {
        for state in self.0.iter().map(|dir| dir.join("freezer.state")).filter(|state| state.exists()) {
            if_present(fs::write(&state, "THAWED")).map_err(|e| at(&state, e))?;
        }
        Ok(())
    }

    /// Kills what is in it and removes its directories. One that is gone already is fine.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + EMPTYING_DEADLINE;
        let mut pause = Duration::from_micros(50);
        loop {
            let busy = match self.0.iter().try_for_each(|dir| remove_below(dir)) {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => error,
                Err(error) => return Err(error),
            };
            if Instant::now() > deadline {
                return Err(busy);
            }
            // A process that is exiting keeps its group busy a little after it has left the list.
            self.kill()?;
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// What `memory.oom_control` (v1) or `memory.events` (v2) says; zero where there is no memory controller.
    pub fn out_of_memory(&self) -> OutOfMemory {
        let read = |name: &str| self.0.iter().find_map(|dir| fs::read_to_string(dir.join(name)).ok());
        let counter = |text: &str| {
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok())
        };
        let kills = ["memory.events", "memory.oom_control"].iter().find_map(|name| counter(&read(name)?)).unwrap_or(0);
        let limit = ["memory.max", "memory.limit_in_bytes"]
            .iter()
            .find_map(|name| read(name)?.trim().parse::<u64>().ok())
            .filter(|limit| *limit < NO_LIMIT);
        OutOfMemory { kills, limit }
    }
}

impl Door {
    /// Moves the calling process in; it must have one thread. Nothing to do for one that was cloned into its group.
    pub fn enter(self) -> io::Result<()> {
        match self {
            Door::Directory(_) => Ok(()),
            Door::Tasks(files) => {
                files.into_iter().try_for_each(|(path, mut file)| file.write_all(b"0").map_err(|e| at(&path, e)))
            }
        }
    }
}

fn processes_below(dir: &Path, found: &mut Vec<i32>) -> io::Result<()> {
    let Some(text) = if_present(fs::read_to_string(dir.join("cgroup.procs")))? else { return Ok(()) };
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    for child in subdirectories(dir)? {
        processes_below(&child, found)?;
    }
    Ok(())
}

fn remove_below(dir: &Path) -> io::Result<()> {
    // The common case, a group without children, is one system call.
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {}
        Err(error) => return Err(at(dir, error)),
    }
    for child in subdirectories(dir)? {
        remove_below(&child)?;
    }
    if_present(fs::remove_dir(dir)).map(drop)
}

fn subdirectories(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(entries) = if_present(fs::read_dir(dir))? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A group may be removed between being listed and being read: ENOENT, or ENODEV for a file opened in time.
pub(super) fn if_present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), PathError { path: path.to_owned(), error })
}

#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
struct PathError {
    path: PathBuf,
    error: io::Error,
}
