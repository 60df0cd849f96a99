//! A whole cluster on one machine: every host is a network namespace with an address, folders and a cgroup parent of
//! its own, on one bridge, or a small [virtual machine](machine). `deploy/lab` is this for people; [`trial`] is this for
//! tests and benchmarks.
//!
//! Nothing is remembered that can be asked: `lab.json` says only which hosts there are; whether one is on, what runs on
//! it and who is cut off is asked of the kernel. A host is started as a user starts one: by the daemons' environment
//! variables and `rctl cluster init` and `join`.
//!
//! What a power cut of a namespace does not do: lose what was written and not synced, for this machine's page cache lives
//! on. That of a virtual machine does.

mod founding;
mod host;
mod machine;
mod processes;
mod switch;
pub mod trial;

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};
use serde::{Deserialize, Serialize};

pub use self::{
    host::{Daemon, Host, PORT},
    processes::{Process, is_alive},
    switch::{Cut, LINK, OPERATOR, Slowness},
};
use self::{
    machine::{Images, Machine},
    switch::Switch,
};
use crate::{
    leftovers,
    netns::{Netns, unpin},
};

pub const DEFAULT_HOSTS: u8 = 5;
/// A bridge has room for more ports; the addresses end here.
pub const MOST_HOSTS: u8 = 200;
pub const DEFAULT_CONTROLLERS: u8 = 3;
/// What containers get between SIGTERM and the end of a host that is shut down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot run {command}: {source}")]
    Start { command: String, source: io::Error },
    #[error("{command} failed: {stderr}")]
    Command { command: String, stderr: String },
    #[error("{program} prints what cannot be read: {source}")]
    Unreadable { program: &'static str, source: serde_json::Error },
    #[error("there is no lab {0:?}: deploy/lab up")]
    NoLab(String),
    #[error("{}: {source}; deploy/lab down removes it", path.display())]
    Description { path: PathBuf, source: serde_json::Error },
    #[error("the lab has no host {name:?}, only {}", hosts.join(" "))]
    NoHost { name: String, hosts: Vec<String> },
    #[error("{0} is off: deploy/lab start {0}")]
    Off(String),
    #[error("a lab has 1 to {MOST_HOSTS} hosts, and 1 to 7 of them, an odd number, have a controller")]
    Size,
    #[error("lab {name:?} has {hosts} hosts, {controllers} of them with a controller: it can grow, but not shrink")]
    Smaller { name: String, hosts: u8, controllers: u8 },
    #[error("no machines can be made here: {0}")]
    NoMachines(String),
    #[error("lab {name:?} has hosts of the other kind: deploy/lab down removes it")]
    OtherKind { name: String },
    #[error("the name of a lab is 1 to 16 small letters, digits and '-', beginning with a letter; {0:?} is not")]
    Name(String),
    #[error("{0} cannot be cut off from itself: name another host, or none for all of them")]
    FromItself(String),
    #[error("waited too long for {0}")]
    Late(String),
    #[error("this kernel has no netem (sch_netem), so packets cannot be delayed: give a --rate or a --loss")]
    NoNetem,
    #[error("could not be removed:\n  {}", .0.join("\n  "))]
    Leftovers(Vec<String>),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    fn failed(command: &Command, output: &Output) -> Self {
        let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
        Self::Command { command: describe(command), stderr: said.join("\n").trim().to_owned() }
    }

    fn unreadable(program: &'static str, source: serde_json::Error) -> Self {
        Self::Unreadable { program, source }
    }
}

/// The command line, without the environment that Debug shows too, and that a machine is told by words.
fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy());
    let is_variable = |word: &str| {
        let name = word.split_once('=').map_or("", |(name, _)| name);
        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    let told = words.filter(|word| *word != machine::BY_SSH && !is_variable(word));
    told.collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end and returns what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|source| Error::Start { command: describe(command), source })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(Error::failed(command, &output))
    }
}

/// Where a lab is and what it is made of.
#[derive(Clone, Debug)]
pub struct Place {
    /// Becomes part of the cgroup parents' names.
    pub name: String,
    pub data: PathBuf,
    pub run: PathBuf,
    /// The folder of the programs.
    pub bin: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub hosts: u8,
    pub controllers: u8,
    /// The hosts are virtual machines.
    #[serde(default)]
    pub machines: bool,
}

#[derive(Debug)]
pub struct Lab {
    pub place: Place,
    pub size: Size,
    pub hosts: Vec<Host>,
}

impl Size {
    pub fn new(hosts: u8, controllers: u8) -> Result<Self> {
        let right = (1..=MOST_HOSTS).contains(&hosts) && controllers <= hosts && controllers <= 7;
        let size = Self { hosts, controllers, machines: false };
        if right && controllers % 2 == 1 { Ok(size) } else { Err(Error::Size) }
    }

    #[must_use]
    pub fn of_machines(self) -> Self {
        Self { machines: true, ..self }
    }
}

impl Place {
    pub fn named(name: &str, bin: PathBuf) -> Result<Self> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let right = (1..=16).contains(&name.len()) && name.chars().all(letters);
        if !right || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(Error::Name(name.to_owned()));
        }
        let data = Path::new("/var/lib/roster-lab").join(name);
        Ok(Self { name: name.to_owned(), data, run: Path::new("/run/roster-lab").join(name), bin })
    }

    fn description(&self) -> PathBuf {
        self.data.join("lab.json")
    }

    fn switch_file(&self) -> PathBuf {
        self.run.join("switch")
    }

    fn images(&self) -> Images {
        Images(self.data.join("machine"))
    }
}

impl Lab {
    /// The hosts, switched off; those of a lab that is there already stay as they are.
    pub fn create(place: Place, size: Size) -> Result<Self> {
        match Self::open(place.clone()) {
            Ok(Self { size: Size { machines, .. }, .. }) if machines != size.machines => {
                return Err(Error::OtherKind { name: place.name });
            }
            Ok(Self { size: Size { hosts, controllers, .. }, .. })
                if hosts > size.hosts || controllers > size.controllers =>
            {
                return Err(Error::Smaller { name: place.name, hosts, controllers });
            }
            Ok(_) | Err(Error::NoLab(_)) => {}
            Err(error) => return Err(error),
        }
        fs::create_dir_all(&place.data).map_err(Error::io("make", &place.data))?;
        let path = place.description();
        let text = serde_json::to_string(&size).map_err(|source| Error::unreadable("this", source))?;
        fs::write(&path, text).map_err(Error::io("write", &path))?;
        Ok(Self::of(place, size))
    }

    pub fn open(place: Place) -> Result<Self> {
        let path = place.description();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NoLab(place.name)),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let size = serde_json::from_str(&text).map_err(|source| Error::Description { path, source })?;
        Ok(Self::of(place, size))
    }

    fn of(place: Place, size: Size) -> Self {
        let namespace = |number: u8| Host {
            name: format!("h{number}"),
            address: Ipv4Addr::new(10, 77, 0, number),
            has_controller: number <= size.controllers,
            data: place.data.join(format!("h{number}")),
            run: place.run.join(format!("h{number}")),
            cgroup_parent: format!("roster-{}-h{number}", place.name),
            bin: place.bin.clone(),
            machine: None,
        };
        let machine = |host: Host, number: u8| Host {
            data: machine::DATA.into(),
            run: machine::RUN.into(),
            cgroup_parent: "roster".to_owned(),
            bin: machine::BIN.into(),
            machine: Some(Machine {
                name: host.name.clone(),
                number,
                folder: host.data,
                run: host.run,
                images: place.images(),
                switch_file: place.switch_file(),
            }),
            ..host
        };
        let host = |number| if size.machines { machine(namespace(number), number) } else { namespace(number) };
        let hosts = (1..=size.hosts).map(host).collect();
        Self { place, size, hosts }
    }

    pub fn host(&self, name: &str) -> Result<&Host> {
        let hosts = || self.hosts.iter().map(|host| host.name.clone()).collect();
        let found = self.hosts.iter().find(|host| host.name == name);
        found.ok_or_else(|| Error::NoHost { name: name.to_owned(), hosts: hosts() })
    }

    pub fn controllers(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| host.has_controller)
    }

    /// Where no fault of the lab's network reaches: sockets, or the machines' way in.
    pub fn endpoints(&self) -> String {
        let endpoint = |host: &Host| match &host.machine {
            Some(machine) => format!("{}:{PORT}", machine.back_address()),
            None => format!("unix://{}", host.socket().display()),
        };
        self.controllers().map(endpoint).collect::<Vec<_>>().join(",")
    }

    /// `rctl` as the lab's administrator, against whichever controller answers.
    pub fn rctl_command(&self) -> Result<Command> {
        let program = self.place.bin.join("rctl");
        let mut command = if self.size.machines { self.operator()?.command(program) } else { Command::new(program) };
        command.envs(self.environment());
        Ok(command)
    }

    /// What makes an rctl on the lab's network its administrator's.
    pub fn environment(&self) -> Vec<(&'static str, std::ffi::OsString)> {
        let mut pairs = vec![("ROSTER_ENDPOINT", self.endpoints().into())];
        if self.size.machines {
            pairs.push(("ROSTER_CREDENTIALS", self.credentials().into()));
        }
        pairs
    }

    /// An administrator's, for machines have no socket that others could open.
    fn credentials(&self) -> PathBuf {
        self.place.data.join("admin.json")
    }

    /// The network namespace of whoever runs the lab.
    pub fn operator(&self) -> Result<Netns> {
        Ok(self.switch()?.netns)
    }

    fn switch(&self) -> Result<Switch> {
        Switch::open(&self.place.switch_file())?.ok_or_else(|| Error::NoLab(self.place.name.clone()))
    }

    /// Power and cable, no daemon yet.
    pub fn switch_on(&self, host: &Host) -> Result<()> {
        self.power(host)?;
        host.machine.as_ref().map_or(Ok(()), Machine::until_it_answers)
    }

    /// The same, without waiting for a machine.
    fn power(&self, host: &Host) -> Result<()> {
        if host.is_on()? {
            return Ok(());
        }
        fs::create_dir_all(&self.place.run).map_err(Error::io("make", &self.place.run))?;
        let switch = Switch::ensure(&self.place.switch_file())?;
        if let Some(machine) = &host.machine {
            return machine.boot(&switch, host.address);
        }
        for folder in [&host.run, &host.data] {
            fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
        }
        let file = host.netns_file();
        let netns = Netns::pin(&file).map_err(Error::io("make the network namespace", &file))?;
        switch.plug(&host.name, host.address, &netns, &file)
    }

    /// Boots a host, or starts what is missing on one that is on.
    pub fn start(&self, host: &Host) -> Result<()> {
        self.switch_on(host)?;
        if host.has_controller {
            self.start_daemon(host, Daemon::Controller)?;
        }
        self.start_daemon(host, Daemon::Agent)
    }

    pub fn start_daemon(&self, host: &Host, daemon: Daemon) -> Result<()> {
        if host.pid(daemon)?.is_some() {
            return Ok(());
        }
        let arguments: &[&str] = match daemon {
            Daemon::Controller => &["--wait"],
            Daemon::Agent => &[],
        };
        host.start(daemon, arguments).map(drop)
    }

    /// As when the plug is pulled: nothing gets out any more, every process ends at once, and what is in memory is gone.
    pub fn kill(&self, host: &Host) -> Result<()> {
        let switch = Switch::open(&self.place.switch_file())?;
        if let Some(machine) = &host.machine {
            return machine.kill(switch.as_ref());
        }
        if let Some(switch) = switch {
            switch.unplug(&host.name)?;
        }
        host.kill_all()?;
        for folder in [&host.run, &host.data] {
            unmount_below(folder)?;
        }
        remove_cgroups(&host.cgroup_parent)?;
        unpin(&host.netns_file()).map_err(Error::io("remove", &host.netns_file()))?;
        remove_tree(&host.run)
    }

    /// An orderly shutdown.
    pub fn stop(&self, host: &Host) -> Result<()> {
        for daemon in [Daemon::Agent, Daemon::Controller] {
            host.signal(daemon, Signal::SIGTERM)?;
        }
        host.ask_containers_to_stop(SHUTDOWN_GRACE)?;
        if let Some(machine) = &host.machine {
            machine.power_off()?;
        }
        self.kill(host)
    }

    pub fn cut(&self, cut: &Cut) -> Result<()> {
        if let Cut::Between(a, b) = cut
            && a == b
        {
            return Err(Error::FromItself(a.clone()));
        }
        self.switch()?.cut(cut)
    }

    pub fn cuts(&self) -> Result<Vec<Cut>> {
        self.switch()?.cuts()
    }

    pub fn heal(&self) -> Result<()> {
        let switch = self.switch()?;
        switch.heal()?;
        for host in &self.hosts {
            if host.is_on()? {
                switch.hasten(host)?;
            }
        }
        Ok(())
    }

    pub fn slow(&self, host: &Host, slowness: &Slowness) -> Result<Vec<String>> {
        if !host.is_on()? {
            return Err(Error::Off(host.name.clone()));
        }
        self.switch()?.slow(host, slowness)
    }

    pub fn is_slow(&self, host: &Host) -> Result<bool> {
        Ok(host.is_on()? && self.switch()?.is_slow(&host.name)?)
    }

    /// Everything goes. Goes on past what cannot be removed and tells all of it.
    pub fn down(&self) -> Result<()> {
        let mut left: Vec<String> =
            self.hosts.iter().filter_map(|host| self.kill(host).err()).map(|error| error.to_string()).collect();
        let mut note = |result: Result<()>| left.extend(result.err().map(|error| error.to_string()));
        match Switch::open(&self.place.switch_file()) {
            Ok(Some(switch)) => note(switch.remove()),
            Ok(None) => {}
            Err(error) => note(Err(error)),
        }
        note(remove_tree(&self.place.run));
        // Last, for without it a second attempt would not know what to remove.
        if left.is_empty() {
            left.extend(remove_tree(&self.place.data).err().map(|error| error.to_string()));
            for labs in [self.place.run.parent(), self.place.data.parent()].into_iter().flatten() {
                // The last lab's to remove: not empty while there are others.
                let _others = fs::remove_dir(labs);
            }
        }
        if left.is_empty() { Ok(()) } else { Err(Error::Leftovers(left)) }
    }
}

fn unmount_below(folder: &Path) -> Result<()> {
    // The last one first: mounts may lie on each other.
    for point in leftovers::mount_points(folder).iter().rev() {
        umount2(point, MntFlags::MNT_DETACH).map_err(|error| Error::io("unmount", point)(error.into()))?;
    }
    Ok(())
}

fn remove_cgroups(parent: &str) -> Result<()> {
    for folder in leftovers::cgroup_dirs(parent) {
        let mut last = None;
        let what = || format!("the cgroup {} to be empty", folder.display());
        host::wait_until(what, || {
            last = remove_cgroup(&folder).err();
            // The kernel may still be taking the last processes out.
            Ok(last.as_ref().is_none_or(|error| error.kind() != io::ErrorKind::ResourceBusy))
        })?;
        if let Some(error) = last {
            return Err(Error::io("remove", &folder)(error));
        }
    }
    Ok(())
}

fn remove_cgroup(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// By rm(1): containers make trees deeper than std can follow. Whatever is still mounted stays.
fn remove_tree(folder: &Path) -> Result<()> {
    run(Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(folder)).map(drop)
}
