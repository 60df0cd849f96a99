//! A host of its own for each test: directories, a cgroup parent, and an image of one busybox layer.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use oci_spec::image::{ConfigBuilder, ImageConfiguration, ImageConfigurationBuilder, RootFsBuilder};
use roster_agent::runtime::{
    Ended, Exit, Phase, RuntimeError, Started,
    linux::{
        bundle::Network,
        containers::{Containers, ContainersConfig, RootImage},
        logs::{LogQuery, LogSource, read_logs},
    },
};
use roster_proto::{
    assignment::Assignment,
    id::{NodeId, ServiceId, ServiceName, Slot, StackName, TaskId},
    spec::{NetworkMode, TaskSpec},
    task::Desired,
};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const APPLETS: [&str; 28] = [
    "sh", "cat", "df", "echo", "id", "rm", "sync", "hostname", "sleep", "ls", "env", "pwd", "mount", "touch", "mkdir",
    "true", "false", "kill", "dd", "mknod", "grep", "ps", "readlink", "yes", "stat", "tail", "ip", "tr",
];

pub(crate) struct Host {
    pub(crate) containers: Arc<Containers>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: ContainersConfig,
    pub(crate) image: ImageConfiguration,
    pub(crate) layers: Vec<PathBuf>,
}

impl Host {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("roster-containers-").tempdir().expect("tempdir");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let config = config(dir.path(), format!("roster-test-{}-{number}", std::process::id()));
        let layer = dir.path().join("layer");
        make_layer(&layer);
        let containers = Arc::new(Containers::open(config.clone()).expect("runtime opens as root"));
        Self { containers, dir, config, image: image(), layers: vec![layer] }
    }

    /// As a new agent on the same host would.
    pub(crate) fn restart(&mut self) {
        self.containers = Arc::new(Containers::open(self.config.clone()).expect("runtime opens again"));
    }

    pub(crate) fn layer(&self) -> &Path {
        &self.layers[0]
    }

    pub(crate) async fn start(&self, name: &str, spec: TaskSpec) -> Result<Started, RuntimeError> {
        let image = RootImage { config: &self.image, layers: &self.layers };
        let network = if spec.network == NetworkMode::Host { Network::Host } else { Network::None };
        self.containers.start(&assignment(name, spec), image, network).await
    }

    /// It shares the namespaces of another container, as its spec says.
    pub(crate) async fn start_beside(
        &self,
        partner: &str,
        name: &str,
        spec: TaskSpec,
    ) -> Result<Started, RuntimeError> {
        let image = RootImage { config: &self.image, layers: &self.layers };
        let assignment = Assignment { shares_with: Some(task(partner)), ..assignment(name, spec) };
        self.containers.start(&assignment, image, Network::None).await
    }

    pub(crate) async fn ended(&self, name: &str) -> Ended {
        let ended = tokio::time::timeout(DEADLINE, self.containers.ended(&task(name))).await;
        ended.unwrap_or_else(|_| panic!("{name} did not end: {:?}", self.containers.list())).expect("ended")
    }

    /// Runs a shell script to its end; how it ended and what it said.
    pub(crate) async fn script(&self, name: &str, spec: TaskSpec) -> (Exit, String) {
        self.start(name, spec).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let ended = self.ended(name).await;
        (ended.how, self.log(name).await)
    }

    pub(crate) async fn log(&self, name: &str) -> String {
        let source = LogSource { dir: self.containers.log_dir(&task(name)), task: task(name), name: name.to_owned() };
        let stream = std::pin::pin!(read_logs(source, LogQuery::default(), CancellationToken::new()));
        let batches: Vec<_> = stream.collect().await;
        let lines = batches.into_iter().flat_map(|batch| batch.expect("readable log"));
        lines.map(|line| String::from_utf8_lossy(&line.line).into_owned() + "\n").collect()
    }

    /// Waits until the log holds `text`.
    pub(crate) async fn said(&self, name: &str, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let log = self.log(name).await;
            if log.contains(text) {
                return log;
            }
            let phase = self.phase(name);
            assert!(Instant::now() < deadline, "{name} did not say {text:?} in {DEADLINE:?}: {log:?}, {phase:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn phase(&self, name: &str) -> Option<Phase> {
        let all = self.containers.list().expect("list");
        all.into_iter().find(|observed| observed.task == task(name)).map(|observed| observed.phase)
    }

    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).expect("cgroups").map(|entry| entry.expect("cgroups").path());
        // Links, as of cpu to cpu,cpuacct, would be there twice.
        let hierarchies = hierarchies.filter(|path| path.is_dir() && !path.is_symlink());
        std::iter::once(root.to_owned())
            .chain(hierarchies)
            .map(|hierarchy| hierarchy.join(&self.config.cgroup_parent))
            .filter(|dir| dir.exists())
            .collect()
    }

    /// What is not deleted yet.
    pub(crate) fn trash(&self) -> Vec<PathBuf> {
        let dirs = [self.config.data_dir.join("trash"), self.config.run_dir.join("trash")];
        let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).expect("trash"));
        entries.map(|entry| entry.expect("trash").path()).collect()
    }

    /// Everything of a task's that is still there.
    pub(crate) fn leftovers(&self, name: &str) -> Vec<PathBuf> {
        let mut paths = self.cgroups();
        paths.push(self.config.run_dir.join("tasks"));
        paths.extend(["containers", "disks"].map(|dir| self.config.data_dir.join(dir)));
        paths.into_iter().map(|dir| dir.join(name)).filter(|path| path.exists()).collect()
    }
}

impl Drop for Host {
    /// Also after a test has failed: processes, cgroups and directories go.
    fn drop(&mut self) {
        for cgroup in self.cgroups() {
            let groups: Vec<_> = fs::read_dir(&cgroup).into_iter().flatten().flatten().map(|e| e.path()).collect();
            for group in groups.into_iter().filter(|path| path.is_dir()) {
                let dirs = roster_runtime::cgroup::CgroupDirs(vec![group]);
                if let Err(error) = dirs.remove() {
                    eprintln!("left over: {dirs:?}: {error}");
                }
            }
            if let Err(error) = fs::remove_dir(&cgroup) {
                eprintln!("left over: {}: {error}", cgroup.display());
            }
        }
        for parent in ["containers", "kept"] {
            for container in fs::read_dir(self.config.data_dir.join(parent)).into_iter().flatten().flatten() {
                // Most are no mount points.
                for place in [container.path(), container.path().join("files")] {
                    _ = nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH);
                }
            }
        }
    }
}

pub(crate) fn config(dir: &Path, cgroup_parent: String) -> ContainersConfig {
    ContainersConfig {
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        cgroup_parent,
        node: NodeId::new("vm1").expect("id"),
        shim: PathBuf::from(env!("CARGO_BIN_EXE_roster-shim")),
        runtimes: Default::default(),
        disk: None,
        keep_failed: 2,
    }
}

pub(crate) fn task(name: &str) -> TaskId {
    TaskId::new(name).expect("id")
}

pub(crate) fn assignment(name: &str, spec: TaskSpec) -> Assignment {
    Assignment {
        task: task(name),
        service: ServiceId::new(StackName::new("shop").expect("id"), ServiceName::new("web").expect("id")),
        slot: Slot::Replica(2),
        desired: Desired::Run,
        spec: Arc::new(spec),
        ports: Vec::new(),
        paused: false,
        shares_with: None,
    }
}

/// A task without network that runs a shell script.
pub(crate) fn sh(script: &str) -> TaskSpec {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    TaskSpec { command: Some(command), network: NetworkMode::None, ..TaskSpec::of_image("busybox") }
}

pub(crate) fn image() -> ImageConfiguration {
    ImageConfigurationBuilder::default()
        .architecture("amd64")
        .os("linux")
        .config(ConfigBuilder::default().env(vec!["FROM_IMAGE=yes".to_owned()]).build().expect("config"))
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids(Vec::new()).build().expect("rootfs"))
        .build()
        .expect("image configuration")
}

fn make_layer(dir: &Path) {
    for sub in ["bin", "etc", "tmp", "home/app"] {
        fs::create_dir_all(dir.join(sub)).expect("directory");
        fs::set_permissions(dir.join(sub), fs::Permissions::from_mode(0o755)).expect("mode");
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).expect("busybox-static is installed");
    fs::set_permissions(dir.join("bin/busybox"), fs::Permissions::from_mode(0o755)).expect("mode");
    for applet in APPLETS {
        symlink("busybox", dir.join("bin").join(applet)).expect("applet");
    }
    fs::write(dir.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
        .expect("passwd");
    fs::write(dir.join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").expect("group");
    for file in ["etc/passwd", "etc/group"] {
        fs::set_permissions(dir.join(file), fs::Permissions::from_mode(0o644)).expect("mode");
    }
    fs::write(dir.join("plain"), "no program\n").expect("file");
    fs::set_permissions(dir.join("plain"), fs::Permissions::from_mode(0o644)).expect("mode");
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("mode");
}

/// Waits until `look` says yes; tells what it last saw otherwise.
pub(crate) async fn eventually<T: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> (bool, T)) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (done, seen) = look();
        if done {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: not so after {DEADLINE:?}, last seen: {seen:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
