//! One controller, one agent, and `rctl` to drive them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{drive::Drive, leftovers, netns::Netns, wait};

/// The image that `deploy/hello/build` makes.
pub const IMAGE: &str = "roster-hello";

/// A tmpfs wherever Linux runs, also where a container or an image has none on /run.
const SHARED_MEMORY: &str = "/dev/shm";
const AGENT_RUN: &str = "agent-run";

static CLUSTERS: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub struct Cluster {
    /// Cgroup parent, nft table and the stem of link names.
    pub name: String,
    pub netns: Netns,
    root: TempDir,
    run: TempDir,
    /// A file system of its own for one of the daemons' folders.
    disk: Option<SmallDisk>,
    controller: Option<Child>,
    agent: Option<Child>,
}

/// So that a test can fill it: a tmpfs, gone with this.
#[derive(Debug)]
struct SmallDisk {
    folder: &'static str,
    mounted: TempDir,
}

impl SmallDisk {
    fn new(folder: &'static str, size: &str) -> io::Result<Self> {
        let mounted = TempDir::with_prefix("roster-test-disk-")?;
        let options = format!("size={size},mode=0700");
        mount(Some("tmpfs"), mounted.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self { folder, mounted })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.mounted.path(), MntFlags::MNT_DETACH) {
            eprintln!("left over: {}: {error}", self.mounted.path().display());
        }
    }
}

/// The folder of the binaries under test: the tests' own build profile.
pub fn bin(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    let folder = exe.ancestors().find(|path| path.join("roster-controller").exists()).unwrap_or_else(|| {
        panic!(
            "roster-controller is not built beside {}: run tests/run, or cargo build --workspace --bins",
            exe.display()
        )
    });
    folder.join(name)
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the repository")
}

impl Cluster {
    /// Both daemons up, the agent registered, the example image loaded.
    pub fn start() -> Self {
        Self::empty().up()
    }

    /// With the data of one daemon, `agent` or `controller`, on a file system of that size.
    pub fn start_on_a_small_disk(folder: &'static str, size: &str) -> Self {
        let disk = SmallDisk::new(folder, size).expect("root may mount");
        let mut cluster = Self::empty();
        cluster.disk = Some(disk);
        cluster.up()
    }

    fn up(mut self) -> Self {
        let cluster = &mut self;
        cluster.start_controller();
        cluster.start_agent();
        wait::until("the node to be Ready", || {
            let nodes = cluster.rctl(&["node", "ls"]);
            if nodes.stdout.contains("Ready") { Ok(()) } else { Err(nodes) }
        });
        let archive = cluster.path("hello.tar");
        let built = Command::new(repository().join("deploy/hello/build")).arg(&archive).status().expect("a shell");
        assert!(built.success(), "deploy/hello/build failed: {built}");
        cluster.ok(&["image", "load", &archive.to_string_lossy()]);
        self
    }

    /// Folders and a network namespace, nothing running.
    pub fn empty() -> Self {
        let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("rt{}x{number}", std::process::id()),
            netns: Netns::new().expect("root may make network namespaces"),
            root: TempDir::with_prefix("roster-test-").expect("a temporary folder"),
            run: TempDir::with_prefix_in("roster-test-", SHARED_MEMORY).expect("a temporary folder in memory"),
            disk: None,
            controller: None,
            agent: None,
        }
    }

    /// Of what belongs to the cluster. The agent's run folder is in memory, as /run is.
    pub fn path(&self, name: &str) -> PathBuf {
        let small = self.disk.as_ref().filter(|disk| Path::new(name).starts_with(disk.folder));
        let folder = match small {
            Some(disk) => &disk.mounted,
            None if name == AGENT_RUN => &self.run,
            None => &self.root,
        };
        folder.path().join(name)
    }

    /// Leaves not a byte of the small file system, until the file that is returned is deleted. What was given back
    /// meanwhile goes with the next call.
    pub fn fill(&self) -> PathBuf {
        let disk = self.disk.as_ref().expect("a cluster on a small disk");
        let path = disk.mounted.path().join("filler");
        let filled =
            io::copy(&mut io::repeat(0), &mut File::options().create(true).append(true).open(&path).expect("a file"));
        assert_eq!(filled.expect_err("it is not that big").kind(), io::ErrorKind::StorageFull);
        path
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path("controller.sock").display())
    }

    fn spawn(&self, program: &str, arguments: &[String]) -> Child {
        let log = File::options().create(true).append(true).open(self.path(&format!("{program}.log"))).expect("a log");
        self.netns
            .command(bin(program))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {program}: {error}"))
    }

    fn spawn_controller(&mut self) {
        let arguments = [
            format!("--data-dir={}", self.path("controller").display()),
            format!("--socket={}", self.path("controller.sock").display()),
            "--metrics=127.0.0.1:9640".to_owned(),
        ];
        self.controller = Some(self.spawn("roster-controller", &arguments));
    }

    /// Starts the controller again if it has ended, as its unit does, once a second. Whether it had.
    pub fn keep_controller(&mut self) -> bool {
        let ended = self.controller.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
        if ended {
            self.spawn_controller();
        }
        ended
    }

    pub fn start_controller(&mut self) {
        self.spawn_controller();
        wait::until("the controller to answer", || {
            let version = self.rctl(&["version"]);
            if version.code == 0 { Ok(()) } else { Err((version, self.log("roster-controller"))) }
        });
    }

    fn agent_arguments(&self) -> Vec<String> {
        vec![
            format!("--controller={}", self.endpoint()),
            "--node=vm1".to_owned(),
            format!("--data-dir={}", self.path("agent").display()),
            format!("--run-dir={}", self.path(AGENT_RUN).display()),
            format!("--cgroup-parent={}", self.name),
            "--bridge=roster0".to_owned(),
            format!("--nft-table={}", self.name),
            "--subnet=10.209.0.0/16".to_owned(),
            "--metrics=127.0.0.1:9641".to_owned(),
        ]
    }

    pub fn start_agent(&mut self) {
        self.start_agent_with(&[]);
    }

    pub fn start_agent_with(&mut self, more: &[String]) {
        self.agent = Some(self.spawn("roster-agent", &[&self.agent_arguments(), more].concat()));
    }

    /// SIGKILL: what a daemon may suffer at any instant.
    pub fn kill_controller(&mut self) {
        end(self.controller.take(), Signal::SIGKILL);
    }

    pub fn kill_agent(&mut self) {
        end(self.agent.take(), Signal::SIGKILL);
    }

    pub fn stop_agent(&mut self) {
        end(self.agent.take(), Signal::SIGTERM);
    }

    pub fn stop_controller(&mut self) {
        end(self.controller.take(), Signal::SIGTERM);
    }

    pub fn controller_pid(&self) -> Option<u32> {
        self.controller.as_ref().map(Child::id)
    }

    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    pub fn log(&self, program: &str) -> String {
        fs::read_to_string(self.path(&format!("{program}.log"))).unwrap_or_default()
    }

    /// Waits until containers that are gone have left nothing, while the agent still runs.
    #[track_caller]
    pub fn until_no_traces(&self) {
        wait::until("no trace of a container", || {
            let found = leftovers::of_containers(&self.name, &self.path("agent"), &self.path(AGENT_RUN), &self.netns);
            if found.is_empty() { Ok(()) } else { Err(found) }
        });
    }

    /// Everything goes, as `deploy/quickstart down` does it; panics on what is left.
    #[track_caller]
    pub fn down(mut self) {
        self.remove_everything().expect("clean works");
        let mut left = leftovers::of(&self.name, self.root.path(), &self.netns);
        left.extend(leftovers::mounts(self.run.path()));
        assert!(left.is_empty(), "left over: {left:#?}\nagent log:\n{}", self.log("roster-agent"));
        for folder in ["agent", AGENT_RUN] {
            assert!(!self.path(folder).exists(), "{folder} is left over");
        }
    }

    fn remove_everything(&mut self) -> io::Result<()> {
        end(self.agent.take(), Signal::SIGTERM);
        end(self.controller.take(), Signal::SIGTERM);
        let output =
            self.netns.command(bin("roster-agent")).args(self.agent_arguments()).args(["clean", "--purge"]).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "roster-agent clean: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )))
    }
}

impl Drive for Cluster {
    fn rctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.netns.command(bin("rctl"));
        command.args(arguments).env("ROSTER_ENDPOINT", self.endpoint()).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    fn spec_file(&self) -> PathBuf {
        self.path("spec.yaml")
    }

    fn logs(&self) -> String {
        let log = |program| format!("--- {program}\n{}\n", self.log(program));
        ["roster-controller", "roster-agent"].map(log).concat()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let something = self.path("agent").exists() || self.path(AGENT_RUN).exists();
        if something && let Err(error) = self.remove_everything() {
            eprintln!("{error}");
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

fn end(child: Option<Child>, signal: Signal) {
    const PATIENCE: Duration = Duration::from_secs(20);
    let Some(mut child) = child else { return };
    // An already ended child is still ours until it is waited for, so its pid cannot be another's.
    let sent = kill(Pid::from_raw(child.id().cast_signed()), signal);
    let deadline = std::time::Instant::now() + PATIENCE;
    while sent.is_ok() && matches!(child.try_wait(), Ok(None)) {
        if std::time::Instant::now() > deadline {
            eprintln!("a daemon did not end on {signal}; killing it");
            if let Err(error) = child.kill() {
                eprintln!("cannot kill it: {error}");
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    if let Err(error) = child.wait() {
        eprintln!("cannot wait for a daemon: {error}");
    }
}

/// Sends a signal to a process of a container.
pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap_or_else(|error| panic!("kill {pid}: {error}"));
}
