//! Stopping all of a container's processes at once, and letting them go on.
//!
//! v2 can freeze every group. v1 has a hierarchy of its own for it, in which a container gets its group when it is
//! first frozen, as most never are. The group stays until the container's are removed: [`Hierarchies::dirs`] names it
//! from then on, also to those who join.
//!
//! SIGKILL ends frozen processes at once on v2; on v1 when they are thawed, which [`CgroupDirs::kill`] does.
//!
//! Sources: the kernel's Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst and cgroup-v2.rst.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    CgroupDirs, Hierarchies,
    dirs::if_present,
    hierarchies::{Layout, below_root, make},
    roots::FREEZER,
};
use crate::error::{StartError, Step};

const LONGEST_PAUSE: Duration = Duration::from_millis(10);

impl Hierarchies {
    /// Returns when every process stands still. When some cannot within `patience`, all go on.
    pub fn freeze(&self, path: &Path, patience: Duration) -> Result<(), StartError> {
        let home = CgroupDirs(vec![self.home(path)?]);
        let freezer = self.freezer(path)?;
        if let Freezer::V1(dir) = &freezer {
            make(dir, &mut Vec::new())?;
        }
        let frozen = freezer.freeze(&home, patience);
        if frozen.is_err() {
            freezer.thaw().step(|| format!("thaw {}", freezer.dir().display()))?;
        }
        frozen.step(|| format!("freeze {}", freezer.dir().display()))
    }

    /// Nothing to do for a container that is not frozen, or gone.
    pub fn thaw(&self, path: &Path) -> Result<(), StartError> {
        let freezer = self.freezer(path)?;
        freezer.thaw().step(|| format!("thaw {}", freezer.dir().display()))
    }

    pub fn is_frozen(&self, path: &Path) -> Result<bool, StartError> {
        let freezer = self.freezer(path)?;
        freezer.is_frozen().step(|| format!("see whether {} is frozen", freezer.dir().display()))
    }

    fn freezer(&self, path: &Path) -> Result<Freezer, StartError> {
        let path = below_root(path)?;
        Ok(match &self.layout {
            Layout::V2(root) => Freezer::V2(root.join(path)),
            Layout::V1(roots) => Freezer::V1(roots.need(FREEZER)?.join(path)),
        })
    }
}

/// The directory by which a container is frozen.
enum Freezer {
    V1(PathBuf),
    V2(PathBuf),
}

impl Freezer {
    fn dir(&self) -> &Path {
        match self {
            Freezer::V1(dir) | Freezer::V2(dir) => dir,
        }
    }

    fn freeze(&self, home: &CgroupDirs, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(50);
        loop {
            match self {
                Freezer::V1(dir) => {
                    // Each time: a process may have joined by a door that was opened before there was a freezer.
                    home.gather_into(dir, deadline)?;
                    fs::write(dir.join("freezer.state"), "FROZEN")?;
                }
                Freezer::V2(dir) => fs::write(dir.join("cgroup.freeze"), "1")?,
            }
            if self.is_frozen()? && self.has_all(home)? {
                return Ok(());
            }
            if Instant::now() > deadline {
                let text = format!("some processes would not stand still within {patience:?}; all go on");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn has_all(&self, home: &CgroupDirs) -> io::Result<bool> {
        match self {
            Freezer::V1(dir) => Ok(home.missing_from(dir)?.is_empty()),
            Freezer::V2(_) => Ok(true),
        }
    }

    fn thaw(&self) -> io::Result<()> {
        let (file, value) = match self {
            Freezer::V1(dir) => (dir.join("freezer.state"), "THAWED"),
            Freezer::V2(dir) => (dir.join("cgroup.freeze"), "0"),
        };
        // Not made where it is missing, as the kernel would refuse that less clearly.
        if_present(
            fs::OpenOptions::new().write(true).open(file).and_then(|mut file| file.write_all(value.as_bytes())),
        )?;
        Ok(())
    }

    fn is_frozen(&self) -> io::Result<bool> {
        // Between being told to and standing still, v1 says FREEZING and v2 still `frozen 0`.
        let (file, line) = match self {
            Freezer::V1(dir) => (dir.join("freezer.state"), "FROZEN"),
            Freezer::V2(dir) => (dir.join("cgroup.events"), "frozen 1"),
        };
        let text = if_present(fs::read_to_string(file))?.unwrap_or_default();
        Ok(text.lines().any(|there| there == line))
    }
}
