//! One host of a lab: its folders, its environment, its processes.
//!
//! A host that is on has a pinned network namespace; one that is off has none, no run folder and no process. What runs
//! on it is asked of the kernel: whatever is in its network namespace, or in a cgroup below its parent.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::{Pid, sethostname, setsid},
};

use super::{Error, Result};
use crate::netns::Netns;

/// What processes that were sent SIGKILL may take, and daemons that were asked to stop.
const ENDING: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(2);
pub const PORT: u16 = 7640;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Daemon {
    Controller,
    Agent,
}

#[derive(Clone, Debug)]
pub struct Host {
    pub name: String,
    pub address: Ipv4Addr,
    /// Whether a controller belongs on it beside the agent.
    pub has_controller: bool,
    /// What a reboot keeps.
    pub data: PathBuf,
    /// What a reboot loses.
    pub run: PathBuf,
    pub cgroup_parent: String,
    pub bin: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// The first 15 bytes of its program's name.
    pub comm: String,
}

impl Daemon {
    pub fn program(self) -> &'static str {
        match self {
            Self::Controller => "roster-controller",
            Self::Agent => "roster-agent",
        }
    }

    fn is(self, process: &Process) -> bool {
        process.comm == self.program()[..self.program().len().min(15)]
    }
}

impl Host {
    pub fn netns_file(&self) -> PathBuf {
        self.run.join("netns")
    }

    pub fn netns(&self) -> Result<Option<Netns>> {
        Netns::open(&self.netns_file()).map_err(Error::io("open", &self.netns_file()))
    }

    pub fn is_on(&self) -> Result<bool> {
        Ok(self.netns()?.is_some())
    }

    pub fn here(&self) -> Result<Netns> {
        self.netns()?.ok_or_else(|| Error::Off(self.name.clone()))
    }

    pub fn socket(&self) -> PathBuf {
        self.run.join("controller.sock")
    }

    pub fn agent_data(&self) -> PathBuf {
        self.data.join("agent")
    }

    pub fn agent_run(&self) -> PathBuf {
        self.run.join("agent")
    }

    pub fn log_file(&self, daemon: Daemon) -> PathBuf {
        self.data.join(daemon.program()).with_extension("log")
    }

    pub fn log(&self, daemon: Daemon) -> String {
        fs::read_to_string(self.log_file(daemon)).unwrap_or_default()
    }

    pub fn peer_address(&self) -> String {
        format!("{}:{PORT}", self.address)
    }

    /// What makes the programs of Roster this host's, as /etc/roster does on a real one.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut pairs = vec![
            ("ROSTER_NODE", self.name.clone().into()),
            ("ROSTER_DATA_DIR", self.agent_data().into()),
            ("ROSTER_RUN_DIR", self.agent_run().into()),
            ("ROSTER_CGROUP_PARENT", self.cgroup_parent.clone().into()),
            ("XDG_CONFIG_HOME", self.data.join("config").into()),
        ];
        if self.has_controller {
            pairs.extend([
                ("ROSTER_CONTROLLER_DATA_DIR", self.data.join("controller").into()),
                ("ROSTER_CONTROLLER_SOCKET", self.socket().into()),
                ("ROSTER_CONTROLLER_LISTEN", self.peer_address().into()),
                ("ROSTER_CONTROLLER_ADVERTISE", self.peer_address().into()),
                ("ROSTER_ENDPOINT", format!("unix://{}", self.socket().display()).into()),
            ]);
        }
        pairs
    }

    /// A command that will run on this host, under its name.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = self.here()?.command(program);
        command.envs(self.environment());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.bin.clone()).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
        let name = OsString::from(&self.name);
        // SAFETY: between fork and exec only unshare(2) and sethostname(2) are called, which are async-signal-safe and
        // allocate nothing.
        unsafe {
            command.pre_exec(move || {
                unshare(CloneFlags::CLONE_NEWUTS)?;
                sethostname(&name).map_err(io::Error::from)
            });
        }
        Ok(command)
    }

    /// Starts a daemon that outlives this process.
    pub fn start(&self, daemon: Daemon, arguments: &[&str]) -> Result<u32> {
        let path = self.log_file(daemon);
        let opened = File::options().create(true).append(true).open(&path);
        let log = opened.map_err(Error::io("open", &path))?;
        let program = self.bin.join(daemon.program());
        let mut command = self.command(&program)?;
        command.args(arguments).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(Error::io("open", &path))?).stderr(log);
        // SAFETY: setsid(2) is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| setsid().map(drop).map_err(io::Error::from));
        }
        let started = command.spawn();
        let mut child = started.map_err(|source| Error::Start { command: program.display().to_string(), source })?;
        let pid = child.id();
        // So that one that ends while this process lives is not taken for one that still runs.
        std::thread::spawn(move || child.wait());
        Ok(pid)
    }

    pub fn pid(&self, daemon: Daemon) -> Result<Option<u32>> {
        let Some(netns) = self.netns()? else { return Ok(None) };
        let found = all_processes().into_iter().find(|process| daemon.is(process) && netns.holds(process.pid));
        Ok(found.map(|process| process.pid))
    }

    /// Sends a daemon a signal, and waits for its end where that is what the signal asks for.
    pub fn signal(&self, daemon: Daemon, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid(daemon)? else { return Ok(()) };
        send(pid, signal)?;
        if matches!(signal, Signal::SIGKILL | Signal::SIGTERM) {
            let what = || format!("{} (process {pid}) on {} to end on {signal}", daemon.program(), self.name);
            wait_until(what, || !is_alive(pid))?;
        }
        Ok(())
    }

    /// Daemons, shims, containers, shells.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let netns = self.netns()?;
        let here = |pid: u32| netns.as_ref().is_some_and(|netns| netns.holds(pid)) || self.in_cgroup(pid);
        Ok(all_processes().into_iter().filter(|process| here(process.pid)).collect())
    }

    /// Processes of containers.
    pub fn contained(&self) -> Vec<Process> {
        all_processes().into_iter().filter(|process| self.in_cgroup(process.pid)).collect()
    }

    fn in_cgroup(&self, pid: u32) -> bool {
        self.task_of(pid).is_some()
    }

    /// The task in whose cgroup the process is.
    fn task_of(&self, pid: u32) -> Option<String> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let (_, below) = groups.split_once(&format!("/{}/", self.cgroup_parent))?;
        below.split(['/', '\n']).next().map(str::to_owned)
    }

    /// The tasks of which a process runs.
    pub fn running(&self) -> BTreeSet<String> {
        all_processes().into_iter().filter_map(|process| self.task_of(process.pid)).collect()
    }

    /// As when the power goes: daemons first, so that none of them sees a container end and writes it down.
    pub fn kill_all(&self) -> Result<()> {
        let first = |process: &Process| {
            [Daemon::Agent, Daemon::Controller].iter().any(|daemon| daemon.is(process)) || process.comm == "roster-shim"
        };
        let sweep = |wanted: &dyn Fn(&Process) -> bool| -> Result<bool> {
            let found: Vec<_> = self.processes()?.into_iter().filter(wanted).collect();
            for process in &found {
                send(process.pid, Signal::SIGKILL)?;
            }
            Ok(found.is_empty())
        };
        for wanted in [&first as &dyn Fn(&Process) -> bool, &|_| true] {
            let deadline = Instant::now() + ENDING;
            while !sweep(wanted)? {
                if Instant::now() > deadline {
                    let left = format!("{:?}", self.processes()?);
                    return Err(Error::Late(format!("all processes of {} to end: {left}", self.name)));
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Ok(())
    }

    /// What a shutdown does to what still runs: asks it, waits a little, and says no more.
    pub fn ask_containers_to_stop(&self, patience: Duration) -> Result<()> {
        for process in self.contained() {
            send(process.pid, Signal::SIGTERM)?;
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline && !self.contained().is_empty() {
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

/// One that has gone already is fine.
fn send(pid: u32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid.cast_signed()), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(Error::Io { what: "signal process", path: pid.to_string().into(), source: error.into() }),
    }
}

pub(super) fn wait_until(what: impl Fn() -> String, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + ENDING;
    while !done() {
        if Instant::now() > deadline {
            return Err(Error::Late(what()));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// A zombie is not: it has ended and only its parent has not asked yet.
pub fn is_alive(pid: u32) -> bool {
    state_and_comm(Path::new(&format!("/proc/{pid}"))).is_some()
}

fn state_and_comm(folder: &Path) -> Option<String> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let (head, rest) = stat.rsplit_once(") ")?;
    let comm = head.split_once(" (")?.1.to_owned();
    (!rest.starts_with(['Z', 'X'])).then_some(comm)
}

fn all_processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    // One that ended meanwhile is nobody's.
    pids.filter_map(|(pid, folder)| Some(Process { pid, comm: state_and_comm(&folder)? })).collect()
}
