//! The peer on many hosts: one dockerd on each host of a lab, all in one Swarm.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    process::{Child, Command, Stdio},
};

use super::{run, sleepers, wait_for, wait_for_count};
use crate::{
    cluster::repository,
    lab::{Host, trial::Trial},
};

const PORT: u16 = 2377;
/// A manager without a leader may take long to say so; whoever has others to ask does not wait for it.
const ANSWER: &str = "2";

#[derive(Debug)]
pub struct Swarms<'a> {
    trial: &'a Trial,
    daemons: Vec<Option<Child>>,
    image: String,
}

impl<'a> Swarms<'a> {
    /// The hosts that have a controller in the lab are managers.
    pub fn start(trial: &'a Trial) -> Result<Self, String> {
        let mut swarms = Self { trial, daemons: trial.lab.hosts.iter().map(|_| None).collect(), image: String::new() };
        let archive = trial.lab.place.data.join("hello.tar").display().to_string();
        run(Command::new(repository().join("deploy/hello/build")).arg(&archive))?;
        for number in 0..swarms.daemons.len() {
            swarms.start_daemon(number)?;
            swarms.docker(number, &["load", "--input", &archive])?;
        }
        let first = &trial.lab.hosts[0];
        swarms.docker(0, &["swarm", "init", &advertise(first), &listen(first)])?;
        for (number, host) in trial.lab.hosts.iter().enumerate().skip(1) {
            let role = if host.has_controller { "manager" } else { "worker" };
            let token = swarms.docker(0, &["swarm", "join-token", "--quiet", role])?;
            let to = format!("{}:{PORT}", first.address);
            swarms.docker(number, &["swarm", "join", "--token", token.trim(), &advertise(host), &listen(host), &to])?;
        }
        let id = swarms.docker(0, &["image", "inspect", "--format={{.Id}}", "roster-hello"])?;
        id.trim().clone_into(&mut swarms.image);
        Ok(swarms)
    }

    pub fn start_daemon(&mut self, number: usize) -> Result<(), String> {
        let host = &self.trial.lab.hosts[number];
        let path = |name: &str| host.data.join("docker").join(name).display().to_string();
        fs::create_dir_all(path("")).map_err(|error| format!("a folder: {error}"))?;
        let log = File::options().create(true).append(true).open(path("log")).map_err(|error| error.to_string())?;
        let mut command = host.command("dockerd").map_err(|error| error.to_string())?;
        command
            .args(["--bridge=none", "--iptables=false", "--storage-driver=overlay2"])
            .arg(format!("--data-root={}", path("data")))
            .arg(format!("--exec-root={}", host.run.join("docker").display()))
            .arg(format!("--pidfile={}", host.run.join("docker.pid").display()))
            .arg(format!("--cgroup-parent=/{}", host.cgroup_parent))
            .arg(format!("--host=unix://{}", host.run.join("docker.sock").display()));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.daemons[number] = Some(child.map_err(|error| format!("cannot start dockerd: {error}"))?);
        let answers = wait_for(|| self.docker(number, &["version"]).ok());
        answers.map(drop).ok_or_else(|| format!("dockerd on {} does not answer", host.name))
    }

    fn docker(&self, number: usize, arguments: &[&str]) -> Result<String, String> {
        run(self.docker_command("120", number).args(arguments))
    }

    fn docker_command(&self, seconds: &str, number: usize) -> Command {
        let socket = self.trial.lab.hosts[number].run.join("docker.sock");
        let mut command = Command::new("timeout");
        command.args([seconds, "docker"]).env("DOCKER_HOST", format!("unix://{}", socket.display()));
        command
    }

    pub fn leader(&self) -> Result<usize, String> {
        let found = wait_for(|| {
            let managers = (0..self.daemons.len()).filter(|number| self.trial.lab.hosts[*number].has_controller);
            managers.into_iter().find_map(|number| {
                let text = self.docker(number, &["node", "ls", "--format={{.Hostname}} {{.ManagerStatus}}"]).ok()?;
                let name = text.lines().find_map(|line| line.strip_suffix(" Leader"))?.to_owned();
                self.trial.lab.hosts.iter().position(|host| host.name == name)
            })
        });
        found.ok_or_else(|| "Swarm has no leader".to_owned())
    }

    /// Whether every node is Ready and every manager takes part.
    pub fn is_whole(&self) -> bool {
        let format = "--format={{.Status}} {{.ManagerStatus}}";
        let text = self.docker(0, &["node", "ls", format]).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.len() == self.daemons.len()
            && lines.iter().all(|line| line.starts_with("Ready") && !line.contains("Unreachable"))
    }

    /// dockerd and the containerd it started.
    pub fn kill(&mut self, number: usize) -> Result<(), String> {
        let Some(mut child) = self.daemons[number].take() else { return Ok(()) };
        child.kill().map_err(|error| format!("kill dockerd: {error}"))?;
        child.wait().map_err(|error| format!("wait for dockerd: {error}"))?;
        let host: &Host = &self.trial.lab.hosts[number];
        for process in host.processes().map_err(|error| error.to_string())? {
            if process.comm == "containerd" {
                run(Command::new("kill").args(["-KILL", &process.pid.to_string()]))?;
            }
        }
        Ok(())
    }

    /// A change by any manager but this one.
    pub fn write(&self, not_by: usize, value: &str) -> bool {
        let label = format!("--label-add=n={value}");
        let managers = (0..self.daemons.len()).filter(|number| self.trial.lab.hosts[*number].has_controller);
        managers.filter(|number| *number != not_by).any(|number| {
            let mut command = self.docker_command(ANSWER, number);
            run(command.args(["service", "update", "--detach", &label, "s"])).is_ok()
        })
    }

    pub fn create(&self, marker: &str, replicas: usize) -> Result<BTreeSet<u32>, String> {
        let replicas_word = format!("--replicas={replicas}");
        let fixed = ["service", "create", "--detach", "--name=s", "--network=host", "--no-resolve-image"];
        let more = ["--restart-delay=0s", "--stop-grace-period=0s", &replicas_word, &self.image, "sleep", marker];
        self.docker(0, &[&fixed[..], &more].concat())?;
        wait_for_count(marker, replicas)
    }

    pub fn remove(&self, marker: &str) -> Result<(), String> {
        self.docker(0, &["service", "rm", "s"])?;
        wait_for(|| sleepers(marker).is_empty().then_some(())).ok_or_else(|| "containers are left over".to_owned())
    }
}

fn advertise(host: &Host) -> String {
    format!("--advertise-addr={}", host.address)
}

fn listen(host: &Host) -> String {
    format!("--listen-addr={}:{PORT}", host.address)
}

impl Drop for Swarms<'_> {
    /// What the daemons leave behind goes when the lab's hosts lose their power.
    fn drop(&mut self) {
        for number in 0..self.daemons.len() {
            if let Err(error) = self.kill(number) {
                eprintln!("{error}");
            }
        }
    }
}
