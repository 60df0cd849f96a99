//! One host of a lab: its folders, its environment, its processes.
//!
//! A host is a network namespace of this machine, or a [virtual machine](super::machine). One that is on has a pinned
//! namespace, or a process of qemu; one that is off has none, no run folder and no process. What runs on it is asked of
//! the kernel: whatever is in its network namespace, or in a cgroup below its parent.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::{Pid, sethostname, setsid},
};

use super::{
    Error, Result,
    machine::Machine,
    processes::{self, PRINT, Process, Seen},
    run,
};
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
    /// All of these paths are then inside.
    pub machine: Option<Machine>,
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

    /// Of a host that is on and a namespace.
    pub fn netns(&self) -> Result<Option<Netns>> {
        if self.machine.is_some() {
            return Ok(None);
        }
        Netns::open(&self.netns_file()).map_err(Error::io("open", &self.netns_file()))
    }

    pub fn is_on(&self) -> Result<bool> {
        match &self.machine {
            Some(machine) => Ok(machine.pid().is_some()),
            None => Ok(self.netns()?.is_some()),
        }
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
        let path = self.log_file(daemon);
        let log = match &self.machine {
            Some(_) => self.command("cat").and_then(|mut cat| run(cat.arg(&path))),
            None => fs::read_to_string(&path).map_err(Error::io("read", &path)),
        };
        log.unwrap_or_else(|error| error.to_string())
    }

    /// Whether one of its files is there.
    pub fn has(&self, path: &std::path::Path) -> Result<bool> {
        if self.machine.is_none() {
            return Ok(path.exists());
        }
        let there = r#"if [ -e "$0" ]; then echo yes; fi"#;
        Ok(!run(self.command("sh")?.args(["-c", there]).arg(path))?.is_empty())
    }

    pub fn peer_address(&self) -> String {
        format!("{}:{PORT}", self.address)
    }

    /// A machine is also spoken to where no fault of the lab's network reaches.
    fn listen_address(&self) -> String {
        if self.machine.is_some() { format!("0.0.0.0:{PORT}") } else { self.peer_address() }
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
                ("ROSTER_CONTROLLER_LISTEN", self.listen_address().into()),
                ("ROSTER_CONTROLLER_ADVERTISE", self.peer_address().into()),
                ("ROSTER_ENDPOINT", format!("unix://{}", self.socket().display()).into()),
            ]);
        }
        pairs
    }

    /// A command that will run on this host, under its name.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        if let Some(machine) = &self.machine {
            return machine.command(&self.environment(), program.as_ref());
        }
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
    pub fn start(&self, daemon: Daemon, arguments: &[&str]) -> Result<()> {
        if self.machine.is_some() {
            let start = r#"log=$1; shift; mkdir -p "${log%/*}"; setsid "$@" >> "$log" 2>&1 < /dev/null &"#;
            let mut command = self.command("sh")?;
            command.args(["-c", start, "start"]).arg(self.log_file(daemon)).arg(self.bin.join(daemon.program()));
            return run(command.args(arguments)).map(drop);
        }
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
        // So that one that ends while this process lives is not taken for one that still runs.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    pub fn pid(&self, daemon: Daemon) -> Result<Option<u32>> {
        let found = self.processes()?.into_iter().find(|process| daemon.is(process));
        Ok(found.map(|process| process.pid))
    }

    /// Sends a daemon a signal, and waits for its end where that is what the signal asks for.
    pub fn signal(&self, daemon: Daemon, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid(daemon)? else { return Ok(()) };
        self.send(pid, signal)?;
        if matches!(signal, Signal::SIGKILL | Signal::SIGTERM) {
            let what = || format!("{} (process {pid}) on {} to end on {signal}", daemon.program(), self.name);
            wait_until(what, || Ok(self.pid(daemon)? != Some(pid)))?;
        }
        Ok(())
    }

    /// One that has gone already is fine.
    fn send(&self, pid: u32, signal: Signal) -> Result<()> {
        if self.machine.is_none() {
            return send(pid, signal);
        }
        let send = r#"kill "-$0" "$1" 2> /dev/null || [ ! -e "/proc/$1" ]"#;
        run(self.command("sh")?.args(["-c", send, &(signal as i32).to_string(), &pid.to_string()])).map(drop)
    }

    /// Daemons, shims, containers, shells; on a machine everything.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let netns = self.netns()?;
        let here = |seen: &Seen| {
            self.machine.is_some()
                || netns.as_ref().is_some_and(|netns| netns.holds(seen.process.pid))
                || seen.task(&self.cgroup_parent).is_some()
        };
        Ok(self.seen()?.into_iter().filter(here).map(|seen| seen.process).collect())
    }

    /// Processes of containers.
    pub fn contained(&self) -> Result<Vec<Process>> {
        let contained = |seen: &Seen| seen.task(&self.cgroup_parent).is_some();
        Ok(self.seen()?.into_iter().filter(contained).map(|seen| seen.process).collect())
    }

    /// The tasks of which a process runs.
    pub fn running(&self) -> Result<BTreeSet<String>> {
        Ok(self.seen()?.iter().filter_map(|seen| seen.task(&self.cgroup_parent)).collect())
    }

    /// More than this host's own, where hosts are namespaces.
    fn seen(&self) -> Result<Vec<Seen>> {
        match &self.machine {
            None => Ok(processes::of_this_machine()),
            Some(machine) if machine.pid().is_none() => Ok(Vec::new()),
            Some(_) => Ok(processes::printed(&run(self.command("sh")?.args(["-c", PRINT]))?)),
        }
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
        for process in self.contained()? {
            self.send(process.pid, Signal::SIGTERM)?;
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline && !self.contained()?.is_empty() {
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

pub(super) fn wait_until(what: impl Fn() -> String, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + ENDING;
    while !done()? {
        if Instant::now() > deadline {
            return Err(Error::Late(what()));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
