//! How a process is told from a later one of the same pid.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
};

use serde::{Deserialize, Serialize};

use crate::sys;

/// Of `include/linux/sched.h`, in field 9 of `/proc/PID/stat`.
const PF_EXITING: u32 = 4;

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

    /// On its way out, or gone: a pid namespace's first process stays so until every other process of it has ended.
    pub fn is_exiting(self) -> bool {
        !Stat::read(self.pid).is_ok_and(|stat| stat.start == self.start && stat.flags & PF_EXITING == 0)
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
    flags: u32,
    start: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        // Room for any line, or it is read in many small pieces.
        let mut text = String::with_capacity(1024);
        File::open(format!("/proc/{pid}/stat"))?.read_to_string(&mut text)?;
        Self::parse(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not understood")))
    }

    /// The name in parentheses may itself hold spaces and parentheses; the last one closes it.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let flags = fields.nth(5)?.parse().ok()?;
        let start = fields.nth(12)?.parse().ok()?;
        Some(Self { state, flags, start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_hostile_process_name() {
        let text = "12 (a) R 1 (b) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 0 0";
        let stat = Stat::parse(text).expect("a whole line");
        assert_eq!((stat.state, stat.flags, stat.start), ('S', 4_194_560, 98765));
    }

    #[test]
    fn another_process_of_the_same_pid_is_not_it() {
        let me = Identity::of(std::process::id()).expect("own stat");
        assert!(me.is_running() && !me.is_exiting() && me.pidfd().expect("pidfd").is_some());
        let other = Identity { start: me.start + 1, ..me };
        assert!(!other.is_running() && other.is_exiting() && other.pidfd().expect("pidfd").is_none());
    }
}
