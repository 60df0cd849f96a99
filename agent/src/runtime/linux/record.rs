//! What a container's directory says of it, and how a process is told from a later one of the same pid.
//!
//! Records are written to a temporary name and renamed, so that a reader sees a whole one or none.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::SystemTime,
};

use roster_proto::time::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::sys;
use crate::runtime::{Ended, Started};

/// One process, for good: the pid alone is used again once it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    /// Clock ticks from boot to its start: field 22 of `/proc/PID/stat`, proc_pid_stat(5).
    pub start: u64,
}

impl Identity {
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        Ok(Self { pid, start: stat.start })
    }

    /// Runs: exists, is the same process, and is not a zombie.
    pub fn is_running(self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.start == self.start && !matches!(stat.state, 'Z' | 'X'))
    }

    /// A descriptor of exactly this process; `None` when it is gone.
    pub fn pidfd(self) -> io::Result<Option<OwnedFd>> {
        let pidfd = match sys::pidfd_open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Looked at after the descriptor was opened: had the pid passed to another process, the start would differ.
        let same = Stat::read(self.pid).is_ok_and(|stat| stat.start == self.start);
        Ok(same.then_some(pidfd))
    }
}

struct Stat {
    state: char,
    start: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not understood")))
    }

    /// The name in parentheses may itself hold spaces and parentheses; the last one closes it.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let start = fields.nth(18)?.parse().ok()?;
        Some(Self { state, start })
    }
}

/// Written by the shim once the container's program is executing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub shim: Identity,
    /// The container's first process.
    pub init: Identity,
    pub address: Option<Ipv4Addr>,
    pub at: Timestamp,
}

impl From<Running> for Started {
    fn from(running: Running) -> Self {
        Self { pid: running.init.pid, address: running.address, at: running.at }
    }
}

/// The files of one container under the run directory.
#[derive(Clone, Debug)]
pub struct BundleDir(pub PathBuf);

impl BundleDir {
    pub fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// The mount point, in the container's own mount namespace, of its root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn running(&self) -> io::Result<Option<Running>> {
        read(&self.0.join("running.json"))
    }

    pub fn write_running(&self, record: &Running) -> io::Result<()> {
        write(&self.0, "running.json", record)
    }

    pub fn ended(&self) -> io::Result<Option<Ended>> {
        read(&self.0.join("exit.json"))
    }

    pub fn write_ended(&self, record: &Ended) -> io::Result<()> {
        write(&self.0, "exit.json", record)
    }
}

/// The clock, at the edge.
pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// A record that makes no sense, cut short by a loss of power for instance, is as good as none: one container's must
/// not keep the agent from all others.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "ignored a damaged record"))
            .ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(dir: &Path, name: &str, record: &impl Serialize) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}"));
    fs::write(&temporary, serde_json::to_vec(record)?)?;
    fs::rename(temporary, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_hostile_process_name() {
        let text = "12 (a) R 1 (b) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 0 0";
        let stat = Stat::parse(text).expect("a whole line");
        assert_eq!((stat.state, stat.start), ('S', 98765));
    }

    #[test]
    fn another_process_of_the_same_pid_is_not_it() {
        let me = Identity::of(std::process::id()).expect("own stat");
        assert!(me.is_running() && me.pidfd().expect("pidfd").is_some());
        let other = Identity { start: me.start + 1, ..me };
        assert!(!other.is_running() && other.pidfd().expect("pidfd").is_none());
    }

    #[test]
    fn records_come_back_as_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let bundle = BundleDir(dir.path().to_owned());
        assert_eq!(bundle.ended().expect("absent"), None);
        let ended = Ended { how: crate::runtime::Exit::OutOfMemory { limit: Some(5) }, at: Timestamp(7) };
        bundle.write_ended(&ended).expect("written");
        assert_eq!(bundle.ended().expect("read"), Some(ended));
    }
}
