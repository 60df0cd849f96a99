//! How a lab's hosts become a cluster: as a user does it, with `rctl` on each host.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Daemon, Error, Host, Lab, Result, run};

/// Daemons start, elect and enrol in far less; a busy machine takes its time, and an emulated one five times as long.
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
        if self.size.machines {
            self.place.images().ensure(&self.place.bin, &mut say)?;
        }
        // All at once, for a machine takes its time.
        for host in &self.hosts {
            self.power(host)?;
        }
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
        if self.size.machines && !self.credentials().exists() {
            self.make_administrator(first)?;
        }
        for host in self.controllers().skip(1) {
            if !self.is_member(host)? {
                say(&format!("{}: rctl cluster join TOKEN --controller", host.name));
                let token = self.token(first, "controller")?;
                self.until(&format!("{} to join", host.name), || {
                    // A join whose answer was lost is one all the same.
                    if self.is_member(host)? {
                        return Ok(String::new());
                    }
                    self.rctl(host, &["cluster", "join", &token, "--controller", "--name", &host.name])
                })?;
            }
        }
        Ok(())
    }

    /// As a person gets in who has no shell on any host.
    fn make_administrator(&self, first: &Host) -> Result<()> {
        let inside = "/run/admin.json";
        self.until("the lab's administrator to be known", || {
            self.rctl(first, &["user", "add", "lab", "--role", "admin", "--out", inside])
        })?;
        let text = run(first.command("cat")?.arg(inside))?;
        run(first.command("rm")?.arg(inside))?;
        let path = self.credentials();
        let file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path);
        let mut file = file.map_err(Error::io("make", &path))?;
        file.write_all(text.as_bytes()).map_err(Error::io("write", &path))
    }

    fn join_agents(&self, mut say: impl FnMut(&str)) -> Result<()> {
        let first = self.first()?;
        for host in &self.hosts {
            if !host.has(&host.agent_data().join("identity"))? {
                say(&format!("{}: rctl cluster join TOKEN --agent", host.name));
                let token = self.token(first, "agent")?;
                self.until(&format!("the agent of {} to join", host.name), || {
                    self.rctl(host, &["cluster", "join", &token, "--agent"])
                })?;
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
        run(host.command(host.bin.join("rctl"))?.args(arguments).env("NO_COLOR", "1"))
    }

    fn token(&self, host: &Host, role: &str) -> Result<String> {
        let create = ["token", "create", "--role", role, "--quiet"];
        let token = self.until("a token", || self.rctl(host, &create))?;
        Ok(token.trim().to_owned())
    }

    fn is_member(&self, host: &Host) -> Result<bool> {
        host.has(&host.data.join("controller/identity"))
    }

    fn all_ready(&self, host: &Host) -> Result<()> {
        let text = self.rctl(host, &["node", "ls", "-o", "json"])?;
        let nodes: Vec<Value> = serde_json::from_str(&text).map_err(|error| Error::unreadable("rctl", error))?;
        let ready = nodes.iter().filter(|node| node["state"] == "Ready").count();
        if ready >= self.hosts.len() { Ok(()) } else { Err(Error::Late(format!("all nodes to be Ready:\n{text}"))) }
    }

    /// Tries until it works. The first failure is told, for the last may be only what it led to.
    fn until<T>(&self, what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let patience = if self.size.machines { PATIENCE * 5 } else { PATIENCE };
        let deadline = Instant::now() + patience;
        let mut first = None;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(last) if Instant::now() > deadline => {
                    let first = first.map(|first| format!("{first}, then ")).unwrap_or_default();
                    return Err(Error::Late(format!("{what}: {first}{last}")));
                }
                Err(error) => drop(first.get_or_insert_with(|| error.to_string())),
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
