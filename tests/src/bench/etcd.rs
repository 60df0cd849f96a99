//! The other peer: Debian's etcd, one member on each host of a lab.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{run, wait_for};
use crate::lab::{Host, trial::Trial};

const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;

#[derive(Debug)]
pub struct Etcd<'a> {
    trial: &'a Trial,
    members: Vec<Option<Child>>,
}

pub fn is_installed() -> bool {
    ["etcd", "etcdctl"].iter().all(|program| Command::new(program).arg("--version").output().is_ok())
}

fn url(host: &Host, port: u16) -> String {
    format!("http://{}:{port}", host.address)
}

impl<'a> Etcd<'a> {
    pub fn start(trial: &'a Trial) -> Result<Self, String> {
        let mut etcd = Self { trial, members: trial.lab.hosts.iter().map(|_| None).collect() };
        for number in 0..etcd.members.len() {
            etcd.start_member(number)?;
        }
        wait_for(|| etcd.put(None, "first").then_some(())).ok_or("etcd takes no write")?;
        Ok(etcd)
    }

    pub fn start_member(&mut self, number: usize) -> Result<(), String> {
        let hosts = &self.trial.lab.hosts;
        let host = &hosts[number];
        let cluster: Vec<String> = hosts.iter().map(|host| format!("{}={}", host.name, url(host, PEERS))).collect();
        let mut command = host.command("etcd").map_err(|error| error.to_string())?;
        command
            .args(["--name", &host.name, "--data-dir"])
            .arg(host.data.join("etcd"))
            .args(["--listen-client-urls", &url(host, CLIENTS), "--advertise-client-urls", &url(host, CLIENTS)])
            .args(["--listen-peer-urls", &url(host, PEERS), "--initial-advertise-peer-urls", &url(host, PEERS)])
            .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new", "--log-level", "error"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.members[number] = Some(child.map_err(|error| format!("cannot start etcd: {error}"))?);
        Ok(())
    }

    /// `HOST:PORT` of every member.
    pub fn endpoints(&self) -> Vec<String> {
        self.trial.lab.hosts.iter().map(|host| format!("{}:{CLIENTS}", host.address)).collect()
    }

    /// A member without a leader keeps a write waiting for seconds; a client that is in a hurry asks again sooner.
    fn etcdctl(&self, endpoints: &[String], arguments: &[&str]) -> Result<String, String> {
        let operator = self.trial.lab.operator().map_err(|error| error.to_string())?;
        let endpoints = format!("--endpoints={}", endpoints.join(","));
        run(operator
            .command("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([&endpoints, "--dial-timeout=250ms", "--command-timeout=250ms"])
            .args(arguments))
    }

    /// By any member but this one.
    pub fn put(&self, not_by: Option<usize>, value: &str) -> bool {
        let mut endpoints = self.endpoints();
        if let Some(number) = not_by {
            endpoints.remove(number);
        }
        self.etcdctl(&endpoints, &["put", "key", value]).is_ok()
    }

    /// Which member leads.
    pub fn leader(&self) -> Result<usize, String> {
        let found = wait_for(|| {
            let text = self.etcdctl(&self.endpoints(), &["endpoint", "status", "-w", "json"]).ok()?;
            let members: Vec<Value> = serde_json::from_str(&text).ok()?;
            let leads = |member: &&Value| member["Status"]["leader"] == member["Status"]["header"]["member_id"];
            let endpoint = members.iter().find(leads)?["Endpoint"].as_str()?.to_owned();
            self.endpoints().iter().position(|other| *other == endpoint)
        });
        found.ok_or_else(|| "etcd has no leader".to_owned())
    }

    pub fn all_answer(&self) -> bool {
        self.etcdctl(&self.endpoints(), &["endpoint", "health"]).is_ok()
    }

    pub fn kill(&mut self, number: usize) -> Result<(), String> {
        let Some(mut child) = self.members[number].take() else { return Ok(()) };
        child.kill().map_err(|error| format!("kill etcd: {error}"))?;
        child.wait().map(drop).map_err(|error| format!("wait for etcd: {error}"))
    }
}

impl Drop for Etcd<'_> {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            if let Err(error) = self.kill(number) {
                eprintln!("{error}");
            }
        }
    }
}
