//! A lab of a test's own: in folders of its own, gone when it is dropped, also when the test failed.
//!
//! What runs is asked of the kernel ([`Trial::running`]), what should run of `rctl`. Every verb panics when it fails,
//! with the daemons' logs when the test ends so.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{Cut, Daemon, Error, Host, Lab, Place, Size};
use crate::{
    cluster::{bin, repository},
    drive::Drive,
    leftovers, wait,
};

/// A tmpfs wherever Linux runs, also where a container or an image has none on /run.
const SHARED_MEMORY: &str = "/dev/shm";
/// The end of each log is what explains a failure; whole ones of many hosts nobody reads.
const LOG_LINES: usize = 60;

static TRIALS: AtomicU32 = AtomicU32::new(0);
static TURN: Mutex<()> = Mutex::new(());

#[derive(Debug)]
pub struct Trial {
    pub lab: Lab,
    /// Removed when they are dropped, after the lab.
    folders: [TempDir; 2],
    is_down: bool,
    /// Dropped last, when nothing runs any more.
    turn: Option<MutexGuard<'static, ()>>,
}

/// One host's own view: `rctl` there, by the controller of that host alone.
#[derive(Clone, Copy, Debug)]
pub struct Seat<'a> {
    trial: &'a Trial,
    host: &'a Host,
}

impl Trial {
    #[track_caller]
    fn make(size: Size) -> Self {
        let number = TRIALS.fetch_add(1, Ordering::Relaxed);
        let folders = [
            TempDir::with_prefix("roster-lab-").expect("a temporary folder"),
            TempDir::with_prefix_in("roster-lab-", SHARED_MEMORY).expect("a temporary folder in memory"),
        ];
        let place = Place {
            name: format!("t{}x{number}", std::process::id()),
            data: folders[0].path().join("lab"),
            run: folders[1].path().join("lab"),
            bin: bin("rctl").parent().expect("programs lie in a folder").to_owned(),
        };
        let lab = Lab::create(place, size).unwrap_or_else(|error| panic!("{error}"));
        Self { lab, folders, is_down: false, turn: None }
    }

    /// Hosts that are on, with no daemon yet.
    #[track_caller]
    pub fn hosts(hosts: u8, controllers: u8) -> Self {
        let trial = Self::make(Size::new(hosts, controllers).unwrap_or_else(|error| panic!("{error}")));
        for host in &trial.lab.hosts {
            trial.done(trial.lab.switch_on(host));
        }
        trial
    }

    /// The same as [`up`](Self::up) of virtual machines, or why there can be none here.
    #[track_caller]
    pub fn machines(hosts: u8, controllers: u8) -> Result<Self, String> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let size = Size::new(hosts, controllers).unwrap_or_else(|error| panic!("{error}"));
        let mut trial = Self::make(size.of_machines());
        trial.turn = Some(turn);
        match trial.lab.up(|what| eprintln!("lab: {what}")) {
            Err(Error::NoMachines(why)) => return Err(why),
            up => trial.done(up),
        }
        trial.load_image();
        Ok(trial)
    }

    /// A cluster of Ready hosts that all have the example image. One at a time in a process: two would take each
    /// other's processor time, and hosts count as dead after seconds.
    #[track_caller]
    pub fn up(hosts: u8, controllers: u8) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut trial = Self::hosts(hosts, controllers);
        trial.turn = Some(turn);
        trial.found();
        trial
    }

    /// A cluster of controllers alone.
    #[track_caller]
    pub fn without_agents(hosts: u8, controllers: u8) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut trial = Self::hosts(hosts, controllers);
        trial.turn = Some(turn);
        trial.done(trial.lab.found(|what| eprintln!("lab: {what}")));
        trial
    }

    /// More hosts, or more of them with a controller.
    #[track_caller]
    pub fn grow(&mut self, hosts: u8, controllers: u8) {
        let size = self.done(Size::new(hosts, controllers));
        self.lab = self.done(Lab::create(self.lab.place.clone(), size));
        self.found();
    }

    #[track_caller]
    fn found(&self) {
        self.done(self.lab.up(|what| eprintln!("lab: {what}")));
        self.load_image();
    }

    #[track_caller]
    pub fn load_image(&self) {
        let archive = self.folders[0].path().join("hello.tar");
        let built = Command::new(repository().join("deploy/hello/build")).arg(&archive).status().expect("a shell");
        assert!(built.success(), "deploy/hello/build failed: {built}");
        self.ok(&["image", "load", &archive.to_string_lossy()]);
    }

    #[track_caller]
    pub fn done<T>(&self, result: super::Result<T>) -> T {
        result.unwrap_or_else(|error| panic!("{error}"))
    }

    #[track_caller]
    pub fn host(&self, name: &str) -> &Host {
        self.done(self.lab.host(name))
    }

    #[track_caller]
    pub fn on(&self, name: &str) -> Seat<'_> {
        Seat { trial: self, host: self.host(name) }
    }

    #[track_caller]
    pub fn kill(&self, name: &str) {
        self.done(self.lab.kill(self.host(name)));
    }

    #[track_caller]
    pub fn start(&self, name: &str) {
        self.done(self.lab.start(self.host(name)));
    }

    #[track_caller]
    pub fn signal(&self, name: &str, daemon: Daemon, signal: Signal) {
        self.done(self.host(name).signal(daemon, signal));
    }

    #[track_caller]
    pub fn start_daemon(&self, name: &str, daemon: Daemon) {
        self.done(self.lab.start_daemon(self.host(name), daemon));
    }

    #[track_caller]
    pub fn cut(&self, name: &str) {
        self.done(self.lab.cut(&Cut::FromAll(name.to_owned())));
    }

    #[track_caller]
    pub fn cut_between(&self, one: &str, other: &str) {
        self.done(self.lab.cut(&Cut::Between(one.to_owned(), other.to_owned())));
    }

    #[track_caller]
    pub fn heal(&self) {
        self.done(self.lab.heal());
    }

    /// `rctl cluster status -o json`.
    pub fn status(&self) -> Option<Value> {
        let output = self.rctl(&["cluster", "status", "-o", "json"]);
        if output.code == 0 { serde_json::from_str(&output.stdout).ok() } else { None }
    }

    /// The host whose controller leads, as somebody who answers believes.
    #[track_caller]
    pub fn leader(&self) -> String {
        wait::until("a leader", || {
            let status = self.status().ok_or("no answer")?;
            status["leader"].as_str().map(str::to_owned).ok_or("nobody leads")
        })
    }

    /// Names of the hosts whose node is in this state.
    #[track_caller]
    pub fn nodes(&self, state: &str) -> BTreeSet<String> {
        let nodes = self.json(&["node", "ls", "-o", "json"]);
        let wanted = nodes.iter().filter(|node| node["state"] == state);
        wanted.filter_map(|node| node["name"].as_str().map(str::to_owned)).collect()
    }

    #[track_caller]
    pub fn until_nodes(&self, state: &str, names: &[&str]) {
        let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        wait::until(&format!("{names:?} to be {state}"), || {
            let found = self.nodes(state);
            if found == wanted { Ok(()) } else { Err(found) }
        });
    }

    /// Tasks whose processes run, with the host of each, as the kernel has it.
    pub fn running(&self) -> BTreeMap<String, Vec<String>> {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for host in &self.lab.hosts {
            for task in self.done(host.running()) {
                found.entry(task).or_default().push(host.name.clone());
            }
        }
        found
    }

    /// Waits until no container that is gone has left anything on any host that is on.
    #[track_caller]
    pub fn until_no_traces(&self) {
        wait::until("no trace of a container on any host", || {
            let found: Vec<String> = self.lab.hosts.iter().flat_map(|host| self.traces(host)).collect();
            if found.is_empty() { Ok(()) } else { Err(found) }
        });
    }

    #[track_caller]
    fn traces(&self, host: &Host) -> Vec<String> {
        let Some(netns) = self.done(host.netns()) else { return Vec::new() };
        let found = leftovers::of_containers(&host.cgroup_parent, &host.agent_data(), &host.agent_run(), &netns);
        found.into_iter().map(|trace| format!("{}: {trace}", host.name)).collect()
    }

    /// Everything goes; panics on what is left.
    #[track_caller]
    pub fn down(mut self) {
        self.is_down = true;
        self.done(self.lab.down());
        let mut left = Vec::new();
        for host in self.lab.hosts.iter().filter(|host| host.machine.is_none()) {
            left.extend(leftovers::processes(&host.cgroup_parent, &host.data));
            left.extend(leftovers::cgroups(&host.cgroup_parent));
        }
        for folder in &self.folders {
            left.extend(leftovers::processes(&self.lab.place.name, folder.path()));
            left.extend(leftovers::mounts(folder.path()));
        }
        assert!(left.is_empty(), "left over: {left:#?}");
        for folder in [&self.lab.place.data, &self.lab.place.run] {
            assert!(!folder.exists(), "{} is left over", folder.display());
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if !self.is_down
            && let Err(error) = self.lab.down()
        {
            eprintln!("{error}");
        }
    }
}

impl Drive for Trial {
    /// By whichever controller answers.
    fn rctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.done(self.lab.rctl_command());
        command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    fn spec_file(&self) -> PathBuf {
        self.folders[0].path().join("spec.yaml")
    }

    fn logs(&self) -> String {
        let of = |host: &Host| {
            let daemons = if host.has_controller { &[Daemon::Controller, Daemon::Agent][..] } else { &[Daemon::Agent] };
            let log = |daemon: &Daemon| {
                let text = host.log(*daemon);
                let lines: Vec<&str> = text.lines().collect();
                let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                format!("--- {} of {}\n{end}\n", daemon.program(), host.name)
            };
            daemons.iter().map(log).collect::<String>()
        };
        self.lab.hosts.iter().map(of).collect()
    }
}

impl Drive for Seat<'_> {
    fn rctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.trial.done(self.host.command(self.host.bin.join("rctl")));
        command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    fn spec_file(&self) -> PathBuf {
        self.trial.spec_file()
    }

    fn logs(&self) -> String {
        self.trial.logs()
    }
}
