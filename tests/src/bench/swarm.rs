//! The peer: Docker Swarm on a dockerd of its own, in a network namespace and folders of its own.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{Census, kill_to_replacement, median, roster::sick_to_replaced, run, wait_for, wait_for_count};
use crate::{cluster::repository, leftovers, netns::Netns};

#[derive(Debug)]
pub struct Swarm {
    netns: Netns,
    /// Taken when it is removed.
    root: Option<TempDir>,
    /// Below which all its containers' cgroups are.
    cgroup_parent: String,
    dockerd: Child,
    /// By tag Swarm asks a registry for every task.
    image: String,
}

pub fn is_installed() -> bool {
    Command::new("dockerd").arg("--version").output().is_ok_and(|output| output.status.success())
}

impl Swarm {
    pub fn start() -> Result<Self, String> {
        let root = TempDir::with_prefix("roster-bench-docker-").map_err(|error| format!("a folder: {error}"))?;
        let netns = Netns::new().map_err(|error| format!("a network namespace: {error}"))?;
        let cgroup_parent = format!("roster-bench-docker-{}", std::process::id());
        let path = |name: &str| root.path().join(name).display().to_string();
        let log = File::create(root.path().join("dockerd.log")).map_err(|error| format!("a log: {error}"))?;
        let dockerd = netns
            .command("dockerd")
            .args(["--bridge=none", "--iptables=false", "--storage-driver=overlay2"])
            .arg(format!("--data-root={}", path("data")))
            .arg(format!("--exec-root={}", path("exec")))
            .arg(format!("--pidfile={}", path("pid")))
            .arg(format!("--cgroup-parent=/{cgroup_parent}"))
            .arg(format!("--host=unix://{}", path("docker.sock")))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start dockerd: {error}"))?;
        let mut swarm = Self { netns, root: Some(root), cgroup_parent, dockerd, image: String::new() };
        wait_for(|| swarm.docker(&["version"]).ok()).ok_or("dockerd does not answer")?;
        swarm.docker(&["swarm", "init", "--advertise-addr=127.0.0.1", "--listen-addr=127.0.0.1:2377"])?;
        let archive = swarm.path().join("hello.tar").display().to_string();
        run(Command::new(repository().join("deploy/hello/build")).arg(&archive))?;
        swarm.docker(&["load", "--input", &archive])?;
        let id = swarm.docker(&["image", "inspect", "--format={{.Id}}", "roster-hello"])?;
        swarm.image = id.trim().to_owned();
        Ok(swarm)
    }

    fn path(&self) -> &Path {
        self.root.as_ref().map_or(Path::new(""), TempDir::path)
    }

    fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        let host = format!("unix://{}", self.path().join("docker.sock").display());
        run(self.netns.command("docker").env("DOCKER_HOST", host).args(arguments))
    }

    fn create(&self, marker: &str, replicas: usize, extra: &[&str]) -> Result<(), String> {
        let replicas = format!("--replicas={replicas}");
        let fixed = [
            "service",
            "create",
            "--detach",
            "--name=s",
            "--network=host",
            "--no-resolve-image",
            "--restart-delay=0s",
            "--stop-grace-period=0s",
            &replicas,
        ];
        self.docker(&[&fixed, extra, &[self.image.as_str(), "sleep", marker]].concat()).map(drop)
    }

    fn remove(&self, marker: &str) -> Result<(), String> {
        self.docker(&["service", "rm", "s"])?;
        wait_for_count(marker, 0)?;
        wait_for(|| self.docker(&["ps", "--all", "--quiet"]).ok().filter(|ids| ids.trim().is_empty()))
            .map(drop)
            .ok_or_else(|| "containers are left over".to_owned())
    }

    pub fn create_to_running(&self, marker: &str, replicas: usize, rounds: usize) -> Result<f64, String> {
        let mut times = Vec::new();
        for _ in 0..rounds {
            let census = Census::new(marker);
            let began = Instant::now();
            self.create(marker, replicas, &[])?;
            census.wait_for(replicas)?;
            times.push(began.elapsed().as_secs_f64());
            self.remove(marker)?;
        }
        median(times).ok_or_else(|| "no rounds".to_owned())
    }

    pub fn scale(&self, marker: &str, from: usize, to: usize, rounds: usize) -> Result<f64, String> {
        let mut times = Vec::new();
        self.create(marker, from, &[])?;
        for _ in 0..rounds {
            wait_for_count(marker, from)?;
            let census = Census::new(marker);
            let began = Instant::now();
            self.docker(&["service", "scale", "--detach", &format!("s={to}")])?;
            census.wait_for(to)?;
            times.push(began.elapsed().as_secs_f64());
            self.docker(&["service", "scale", "--detach", &format!("s={from}")])?;
        }
        wait_for_count(marker, from)?;
        self.remove(marker)?;
        median(times).ok_or_else(|| "no rounds".to_owned())
    }

    pub fn restart(&self, marker: &str, rounds: usize) -> Result<f64, String> {
        self.create(marker, 3, &[])?;
        wait_for_count(marker, 3)?;
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.push(kill_to_replacement(marker)?.as_secs_f64());
        }
        self.remove(marker)?;
        median(times).ok_or_else(|| "no rounds".to_owned())
    }

    pub fn health(&self, marker: &str, flag: &std::path::Path, rounds: usize) -> Result<f64, String> {
        let folder = flag.parent().ok_or("the flag lies in a folder")?;
        let mount = format!("--mount=type=bind,source={},target=/flags,readonly", folder.display());
        let check = [&mount, "--health-cmd=test ! -e /flags/sick", "--health-interval=1s", "--health-retries=1"];
        self.create(marker, 1, &check)?;
        let took = sick_to_replaced(marker, flag, rounds, || {
            self.docker(&["ps"]).is_ok_and(|text| text.contains("(healthy)"))
        });
        self.remove(marker)?;
        took
    }

    /// dockerd and the containerd it started.
    pub fn daemons(&self) -> Vec<u32> {
        let mut pids = vec![self.dockerd.id()];
        pids.extend(super::weight::named("containerd"));
        pids
    }

    pub fn with_running<T>(
        &self,
        marker: &str,
        replicas: usize,
        measure: impl FnOnce(&Self) -> T,
    ) -> Result<T, String> {
        self.create(marker, replicas, &[])?;
        wait_for_count(marker, replicas)?;
        let measured = measure(self);
        self.remove(marker)?;
        Ok(measured)
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        // What cannot be removed politely goes with dockerd.
        let _ = self.docker(&["swarm", "leave", "--force"]);
        if let Err(error) = kill(Pid::from_raw(self.dockerd.id().cast_signed()), Signal::SIGTERM) {
            eprintln!("cannot stop dockerd: {error}");
        }
        if let Err(error) = self.dockerd.wait() {
            eprintln!("cannot wait for dockerd: {error}");
        }
        // The namespaces and layers it keeps mounted outlive it.
        for mount in leftovers::mount_points(self.path()).iter().rev() {
            if let Err(error) = umount2(mount, MntFlags::MNT_DETACH) {
                eprintln!("cannot unmount {}: {error}", mount.display());
            }
        }
        if let Some(Err(error)) = self.root.take().map(TempDir::close) {
            eprintln!("cannot remove dockerd's folder: {error}");
        }
        for group in leftovers::cgroup_dirs(&self.cgroup_parent) {
            // A controller may have two names.
            if group.exists()
                && let Err(error) = fs::remove_dir(&group)
            {
                eprintln!("cannot remove {}: {error}", group.display());
            }
        }
    }
}
