//! How a lab's hosts become a cluster: as a user does it, with `rctl` on each host.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Daemon, Error, Host, Lab, Result, run};

/// Daemons start, elect and enrol in far less; a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Lab {
    /// Every host on, in one cluster, and Ready. What is so already stays as it is.
    pub fn up(&self, mut say: impl FnMut(&str)) -> Result<()> {
        self.found(&mut say)?;
        self.join_agents(&mut say)
    }

    /// Every host on, and the controllers in one cluster.
    pub fn found(&self, mut say: impl FnMut(&str)) -> Result<()> {
        for host in &self.hosts {
            self.switch_on(host)?;
        }
        for host in self.controllers() {
            self.start_daemon(host, Daemon::Controller)?;
        }
        let first = self.first()?;
        if !self.is_member(first)? {
            say(&format!("{}: rctl cluster init", first.name));
            self.until(&format!("the controller of {} to answer", first.name), || {
                self.rctl(first, &["cluster", "init", "--name", &first.name])
            })?;
        }
        for host in self.controllers().skip(1) {
            if !self.is_member(host)? {
                say(&format!("{}: rctl cluster join TOKEN --controller", host.name));
                let token = self.token(first, "controller")?;
                self.until(&format!("{} to join", host.name), || {
                    self.rctl(host, &["cluster", "join", &token, "--controller", "--name", &host.name])
                })?;
            }
        }
        Ok(())
    }

    fn join_agents(&self, mut say: impl FnMut(&str)) -> Result<()> {
        let first = self.first()?;
        for host in &self.hosts {
            if !host.agent_data().join("identity").exists() {
                say(&format!("{}: rctl cluster join TOKEN --agent", host.name));
                let token = self.token(first, "agent")?;
                self.rctl(host, &["cluster", "join", &token, "--agent"])?;
            }
            self.start_daemon(host, Daemon::Agent)?;
        }
        say("waiting until every host is Ready");
        self.until("every host to be Ready", || self.all_ready(first))
    }

    fn first(&self) -> Result<&Host> {
        self.hosts.first().ok_or(Error::Size)
    }

    /// `rctl` on a host, which must succeed.
    pub fn rctl(&self, host: &Host, arguments: &[&str]) -> Result<String> {
        run(host.command(self.place.bin.join("rctl"))?.args(arguments).env("NO_COLOR", "1"))
    }

    fn token(&self, host: &Host, role: &str) -> Result<String> {
        Ok(self.rctl(host, &["token", "create", "--role", role, "--quiet"])?.trim().to_owned())
    }

    fn is_member(&self, host: &Host) -> Result<bool> {
        Ok(host.data.join("controller/identity").exists())
    }

    fn all_ready(&self, host: &Host) -> Result<()> {
        let text = self.rctl(host, &["node", "ls", "-o", "json"])?;
        let nodes: Vec<Value> = serde_json::from_str(&text).map_err(|error| Error::unreadable("rctl", error))?;
        let ready = nodes.iter().filter(|node| node["state"] == "Ready").count();
        if ready >= self.hosts.len() { Ok(()) } else { Err(Error::Late(format!("all nodes to be Ready:\n{text}"))) }
    }

    /// Tries until it works; the last failure is told.
    fn until<T>(&self, what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(error) if Instant::now() > deadline => return Err(Error::Late(format!("{what}: {error}"))),
                Err(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }
}
