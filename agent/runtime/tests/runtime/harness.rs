//! A bundle of its own for each test, with its own state folder and cgroup parent, all gone at the end.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
static NEXT: AtomicU32 = AtomicU32::new(1);

pub(crate) struct Bundle {
    folder: TempDir,
    /// The runtime.
    pub(crate) program: PathBuf,
    pub(crate) config: Value,
    cgroup: String,
}

/// What a call said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Bundle {
    /// With a busybox that has all its names, and a config.json that does little.
    pub(crate) fn new(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let bin = folder.path().join("bundle/rootfs/bin");
        fs::create_dir_all(&bin).expect("made");
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        for name in ["sh", "cat", "echo", "sleep", "true", "id", "tty", "stty", "ls", "mount", "ps", "dd", "test"] {
            symlink("busybox", bin.join(name)).expect("linked");
        }
        fs::create_dir_all(folder.path().join("bundle/rootfs/etc")).expect("made");
        fs::write(folder.path().join("bundle/rootfs/etc/passwd"), "root:x:0:0::/root:/bin/sh\n").expect("written");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/roster-runtime-test-{}-{number}", std::process::id());
        let all = json!([
            "CAP_AUDIT_WRITE",
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_KILL",
            "CAP_MKNOD",
            "CAP_NET_BIND_SERVICE",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SYS_CHROOT"
        ]);
        let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
        let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
                "capabilities": { "bounding": all, "effective": all, "permitted": all },
                "noNewPrivileges": true
            },
            "root": { "path": "rootfs" },
            "hostname": "box",
            "mounts": [
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            ],
            "linux": {
                "cgroupsPath": format!("{cgroup}/one"),
                "resources": { "pids": { "limit": 64 }, "memory": { "limit": 67_108_864 } },
                "namespaces": namespaces
            }
        });
        Self { folder, program: env!("CARGO_BIN_EXE_roster-runtime").into(), config, cgroup }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn set(&mut self, pointer: &str, value: Value) {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        self.config
            .pointer_mut(parent)
            .expect("there")
            .as_object_mut()
            .expect("an object")
            .insert(key.to_owned(), value);
    }

    pub(crate) fn shell(&mut self, script: &str) {
        self.set("/process/args", json!(["/bin/sh", "-c", script]));
    }

    /// With the host's perl, which makes any system call.
    pub(crate) fn perl(&mut self, script: &str) {
        let root = self.path().join("rootfs");
        if !root.join("lib").is_symlink() {
            for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64")] {
                symlink(target, root.join(link)).expect("linked");
            }
            let mounts = self.config["mounts"].as_array_mut().expect("mounts");
            for place in ["/usr/lib", "/usr/lib64", "/usr/bin/perl"] {
                let options = ["rbind", "ro"];
                mounts.push(json!({ "destination": place, "type": "bind", "source": place, "options": options }));
            }
        }
        self.set("/process/args", json!(["/usr/bin/perl", "-e", script]));
    }

    /// For a container beside others of this bundle.
    pub(crate) fn cgroup(&mut self, name: &str) {
        let path = format!("{}/{name}", self.cgroup);
        self.set("/linux/cgroupsPath", json!(path));
    }

    /// In the hierarchy of the limit on processes.
    pub(crate) fn processes(&self, name: &str) -> usize {
        let below = |root: &str| PathBuf::from(format!("{root}{}/{name}/cgroup.procs", self.cgroup));
        let text = fs::read_to_string(below("/sys/fs/cgroup/pids"));
        let text = text.or_else(|_| fs::read_to_string(below("/sys/fs/cgroup")));
        text.map_or(0, |text| text.lines().count())
    }

    pub(crate) fn capabilities(&mut self, names: &[&str]) {
        self.set("/process/capabilities", json!({ "bounding": names, "effective": names, "permitted": names }));
    }

    pub(crate) fn mount(&mut self, mount: Value) {
        self.config["mounts"].as_array_mut().expect("mounts").push(mount);
    }

    pub(crate) fn pid(&self, id: &str) -> u64 {
        let state: Value = serde_json::from_str(&self.ok(&["state", id])).expect("JSON");
        state["pid"].as_u64().expect("a pid")
    }

    pub(crate) fn image(&self, path: &str) -> PathBuf {
        self.path().join("rootfs").join(path)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        fs::write(self.path().join("config.json"), self.config.to_string()).expect("written");
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.file("state")).args(args).current_dir(self.path());
        command
    }

    /// With pipes for its standard streams, which a container that goes on keeps open: those get /dev/null instead.
    pub(crate) fn call(&self, args: &[&str]) -> Said {
        said(self.command(args).stdin(Stdio::null()).output().expect("it runs"))
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let said = self.call(args);
        assert_eq!(said.code, 0, "{args:?}: {said:?}");
        said.out
    }

    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let said = self.call(args);
        assert_eq!(said.code, 1, "{args:?}: {said:?}");
        said.err
    }

    /// Of a container that outlives the call: what it writes goes to a file.
    pub(crate) fn detached(&self, args: &[&str]) -> Said {
        let (out, err) = (self.file("out"), self.file("err"));
        let create = |path: &Path| fs::File::create(path).expect("a file");
        let mut call = self.command(args);
        let status = call.stdin(Stdio::null()).stdout(create(&out)).stderr(create(&err)).status().expect("it runs");
        let read = |path: &Path| fs::read_to_string(path).expect("a file");
        Said { code: status.code().unwrap_or(-1), out: read(&out), err: read(&err) }
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs")
    }

    pub(crate) fn status(&self, id: &str) -> String {
        let state: Value = serde_json::from_str(&self.ok(&["state", id])).expect("JSON");
        state["status"].as_str().expect("a status").to_owned()
    }

    pub(crate) fn until(&self, id: &str, status: &str) {
        until(&format!("container {id} to be {status}"), || self.status(id) == status);
    }

    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name);
        let mut file = fs::File::create(&path).expect("a file");
        writeln!(file, "#!/bin/sh\n{text}").expect("written");
        file.set_permissions(fs::Permissions::from_mode(0o755)).expect("made executable");
        path
    }
}

pub(crate) fn said(output: Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.program = env!("CARGO_BIN_EXE_roster-runtime").into();
        let ids = said(self.command(&["list", "-q"]).output().expect("it runs")).out;
        for id in ids.lines() {
            let deleted = self.call(&["delete", "--force", id]);
            if deleted.code != 0 {
                eprintln!("cannot delete {id}: {deleted:?}");
            }
        }
        let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for root in roots.map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]) {
            // Absent where there was nothing to make.
            let _ = fs::remove_dir(root.join(self.cgroup.trim_start_matches('/')));
        }
    }
}
