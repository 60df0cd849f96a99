//! The processes of one container, as proc(5) has them.
//!
//! They come and go while they are looked at, and what they say of themselves (names, arguments, the files of their
//! root) is the container's and may be anything: every read is bounded, and a pid is believed only as long as the
//! kernel says that it is in the container's group.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

use crate::runtime::linux::Seen;

/// Processes of one container that are looked at.
pub(super) const MAX_PROCESSES: usize = 2_000;
/// Bytes of a command line that are shown.
const MAX_COMMAND: u64 = 1024;
/// Bytes of a passwd file that are looked at.
const MAX_PASSWD: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// The host's.
    pub(super) pid: u32,
    pub(super) parent: u32,
    /// As its own pid namespace has it.
    pub(super) inside: u32,
    /// The host's.
    pub(super) uid: u32,
    pub(super) stat: Stat,
}

/// proc_pid_stat(5). Times are clock ticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) name: Vec<u8>,
    pub(super) state: char,
    pub(super) own_time: u64,
    /// Of children that have ended and were waited for.
    pub(super) children_time: u64,
    pub(super) threads: u32,
    pub(super) start: u64,
    pub(super) resident_pages: u64,
}

/// Up to [`MAX_PROCESSES`], in the order of their pids, and how many there are.
pub(super) fn all(seen: &Seen) -> io::Result<(Vec<Process>, usize)> {
    let pids = seen.cgroup.processes()?;
    let found = pids.iter().take(MAX_PROCESSES).filter_map(|pid| u32::try_from(*pid).ok());
    Ok((found.filter_map(|pid| one(seen, pid)).collect(), pids.len()))
}

/// `None` for one that has gone.
fn one(seen: &Seen, pid: u32) -> Option<Process> {
    let stat = Stat::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::split_whitespace);
    let number = |key: &str, at: usize| numbers(key)?.nth(at)?.parse().ok();
    // Of each namespace from ours to its own; of those it may have made below the container's, nothing is told.
    let inside = number("NSpid:", 1).or_else(|| number("NSpid:", 0))?;
    let process = Process { pid, parent: number("PPid:", 0)?, inside, uid: number("Uid:", 1)?, stat };
    is_of(seen, pid).then_some(process)
}

/// Whether the pid is still one of the container's, not another process's by now.
pub(super) fn is_of(seen: &Seen, pid: u32) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().any(|line| line.split('/').any(|name| name == seen.task.as_str()))
}

impl Stat {
    fn parse(text: &[u8]) -> Option<Self> {
        // The name is the process's to choose and may hold anything, also parentheses.
        let (open, close) = (text.iter().position(|b| *b == b'(')?, text.iter().rposition(|b| *b == b')')?);
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first of these is field 3.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            name: text.get(open + 1..close)?.to_vec(),
            state: fields.first()?.chars().next()?,
            own_time: number(14)? + number(15)?,
            children_time: number(16)? + number(17)?,
            threads: u32::try_from(number(20)?).unwrap_or(u32::MAX),
            start: number(22)?,
            resident_pages: number(24)?,
        })
    }
}

/// The arguments with spaces between, or the name in brackets.
pub(super) fn command(process: &Process) -> Vec<u8> {
    let mut line = Vec::new();
    let read = File::open(format!("/proc/{}/cmdline", process.pid))
        .and_then(|file| file.take(MAX_COMMAND).read_to_end(&mut line));
    while line.last() == Some(&0) {
        line.pop();
    }
    if read.is_err() || line.is_empty() {
        return [b"[", process.stat.name.as_slice(), b"]"].concat();
    }
    line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
    line
}

/// The host's id as the container has it: user_namespaces(7), uid_map.
pub(super) fn uid_inside(map: &str, outside: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (first, lower, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = outside.checked_sub(lower).filter(|offset| *offset < count)?;
        first.checked_add(offset)
    })
}

/// The container's passwd file, where it has a plain one.
pub(super) fn passwd(seen: &Seen) -> io::Result<String> {
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(Path::new(&format!("/proc/{}/root", seen.init.pid)), directory, Mode::empty())?;
    if !seen.init.is_running() {
        return Ok(String::new());
    }
    // Looked at before it is opened: opening a device or a fifo does things.
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found: OwnedFd = openat2(&root, "etc/passwd", how)?;
    let found = File::from(found);
    if !found.metadata()?.is_file() || found.metadata()?.size() > MAX_PASSWD {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", found.as_raw_fd()))?
        .take(MAX_PASSWD)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(super) fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && name.len() <= 64)?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_call_itself_anything() {
        let text = b"7 (a) R 1 (\n) ) S 3 7 7 0 -1 4194560 100 0 0 0 5 6 7 8 20 0 2 0 900 4096 33 18446744073709551615";
        let stat = Stat::parse(text).expect("a line of stat");
        let expected = Stat {
            name: b"a) R 1 (\n) ".to_vec(),
            state: 'S',
            own_time: 11,
            children_time: 15,
            threads: 2,
            start: 900,
            resident_pages: 33,
        };
        assert_eq!(stat, expected);
        for broken in [&b""[..], b"7", b"7 (a", b"7 )(", b"7 (a) S 1"] {
            assert_eq!(Stat::parse(broken), None, "{}", broken.escape_ascii());
        }
    }

    #[test]
    fn ids_are_told_as_the_container_has_them() {
        assert_eq!(uid_inside("         0          0 4294967295\n", 33), Some(33));
        let mapped = "0 100000 1000\n1000 500 1\n";
        assert_eq!(
            [100_000, 100_999, 500, 101_000, 0].map(|id| uid_inside(mapped, id)),
            [Some(0), Some(999), Some(1000), None, None]
        );
        assert_eq!(uid_inside("nonsense\n", 0), None);
        let passwd = "root:x:0:0::/:/bin/sh\nbroken\n:x:33::\nwww:x:33:33::/www:/bin/sh\n";
        assert_eq!((user_name(passwd, 33), user_name(passwd, 5)), (Some("www"), None));
    }
}
