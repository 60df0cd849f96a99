//! Docker itself, with this runtime under it: dockerd, containerd and its shim as Debian ships them.
//!
//! The daemon has folders, a socket and a cgroup parent of its own and makes no network: it can run beside another one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);
const RUNTIME: &str = env!("CARGO_BIN_EXE_roster-runtime");

struct Docker {
    folder: TempDir,
    daemon: Child,
    cgroup: String,
}

impl Docker {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let cgroup = format!("roster-dockerd-test-{}", std::process::id());
        let log = fs::File::create(path("log")).expect("a file");
        // It tells apart what is its own by its exec-root's name; everything else has a flag.
        let daemon = Command::new("dockerd")
            .arg(format!("--host=unix://{}", path("socket").display()))
            .arg(format!("--data-root={}", path("data").display()))
            .arg(format!("--exec-root={}", path("exec").display()))
            .arg(format!("--pidfile={}", path("pid").display()))
            .arg(format!("--add-runtime=roster={RUNTIME}"))
            .arg(format!("--cgroup-parent=/{cgroup}"))
            .args(["--default-runtime=roster", "--bridge=none", "--iptables=false", "--ip-forward=false"])
            .args(["--storage-driver=vfs", "--exec-opt=native.cgroupdriver=cgroupfs"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a copy"))
            .stderr(log)
            .spawn()
            .expect("dockerd is installed");
        let docker = Self { folder, daemon, cgroup };
        docker.until("the daemon to answer", || docker.call(&["version"]).status.success());
        docker.import();
        docker
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An image with nothing but busybox.
    fn import(&self) {
        let bin = self.path("image/bin");
        fs::create_dir_all(&bin).expect("made");
        fs::create_dir_all(self.path("image/etc")).expect("made");
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        for name in ["sh", "cat", "sleep", "tty", "id", "true", "ls"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).expect("linked");
        }
        let tar = self.path("image.tar");
        let made = Command::new("tar").arg("-C").arg(self.path("image")).arg("-cf").arg(&tar).arg(".").status();
        assert!(made.expect("tar").success());
        self.ok(&["import", &tar.display().to_string(), "box"]);
    }

    fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.path("socket").display())).stdin(Stdio::null());
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        self.command().args(args).output().expect("docker is installed")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(output.status.success(), "docker {args:?}: {output:?}\n{}", self.log());
        String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n").trim().to_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds() {
            assert!(Instant::now() < deadline, "still waiting for {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn state(&self, name: &str) -> String {
        self.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name])
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let all = self.call(&["ps", "-aq"]);
        for id in String::from_utf8_lossy(&all.stdout).lines() {
            let removed = self.call(&["rm", "-f", id]);
            if !removed.status.success() {
                eprintln!("cannot remove {id}: {removed:?}");
            }
        }
        // SAFETY: plain integers; the daemon is not reaped yet.
        unsafe { nix::libc::kill(self.daemon.id() as i32, nix::libc::SIGTERM) };
        let ended = self.daemon.wait();
        if std::thread::panicking() {
            eprintln!("dockerd ended: {ended:?}\n{}", self.log());
        }
        let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for root in roots.map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]) {
            // Absent where there was nothing to make.
            let _ = fs::remove_dir(root.join(&self.cgroup));
        }
    }
}

#[test]
fn docker_runs_on_it() {
    let docker = Docker::start();
    assert_eq!(docker.ok(&["run", "--rm", "box", "sh", "-c", "echo hello; id -u"]), "hello\n0");
    assert_eq!(docker.ok(&["run", "--rm", "--user", "7:8", "--read-only", "box", "id", "-g"]), "8");
    let failed = docker.call(&["run", "--rm", "box", "sh", "-c", "exit 42"]);
    assert_eq!(failed.status.code(), Some(42), "{failed:?}");
    let missing = docker.call(&["run", "--rm", "box", "nothing"]);
    assert_eq!(missing.status.code(), Some(127), "{missing:?}");
    let words = String::from_utf8_lossy(&missing.stderr);
    assert!(words.contains("executable file not found"), "{words}");

    // All devices of the host are named then, and its pseudo-terminals are not the container's all the same.
    let privileged = docker.ok(&["run", "--rm", "--privileged", "box", "ls", "-l", "/dev/ptmx"]);
    assert!(privileged.contains("/dev/ptmx -> pts/ptmx"), "{privileged}");

    let script = "trap 'exit 5' TERM; echo started; while :; do sleep 0.05; done";
    docker.ok(&["run", "-d", "--name", "web", "--memory=64m", "--pids-limit=50", "box", "sh", "-c", script]);
    docker.until("its output", || docker.ok(&["logs", "web"]) == "started");
    assert!(docker.ok(&["exec", "web", "sh", "-c", "cat /proc/1/cmdline"]).contains("trap"));
    let code = docker.call(&["exec", "web", "sh", "-c", "exit 9"]).status.code();
    assert_eq!(code, Some(9));
    with_a_terminal(&docker);
    assert!(docker.ok(&["top", "web"]).contains("sleep 0.05") || docker.ok(&["top", "web"]).contains("trap"));

    docker.ok(&["pause", "web"]);
    assert_eq!(docker.state("web"), "paused 0");
    docker.ok(&["unpause", "web"]);
    docker.ok(&["update", "--memory=32m", "--memory-swap=32m", "--pids-limit=40", "web"]);
    let figures = docker.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "web"]);
    assert!(figures.contains("/ 32MiB"), "{figures}");
    // Docker counts in whichever group a container is in, be it the host's own.
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", docker.ok(&["inspect", "-f", "{{.State.Pid}}", "web"])));
    for group in groups.expect("its groups").lines() {
        let is_counted = ["memory", "cpuacct", "blkio", "pids"].iter().any(|controller| group.contains(controller));
        assert!(!(is_counted && group.ends_with(":/")), "{group}");
    }
    docker.ok(&["stop", "web"]);
    assert_eq!(docker.state("web"), "exited 5");
    docker.ok(&["start", "web"]);
    docker.ok(&["kill", "web"]);
    docker.until("its end", || docker.state("web") == "exited 137");
    docker.ok(&["rm", "web"]);
}

/// `script` gives docker the terminal that `-it` wants.
fn with_a_terminal(docker: &Docker) {
    let exec = format!("docker --host unix://{} exec -it web sh -c 'tty; exit 3'", docker.path("socket").display());
    let mut script = Command::new("script");
    let output = script.args(["-qec", &exec]).arg(Path::new("/dev/null")).stdin(Stdio::null()).output();
    let output = output.expect("script of bsdutils");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("/dev/pts/"), "{output:?}");
}
