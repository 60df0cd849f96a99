//! Containers of one agent: made, found again, stopped and removed, given an unpacked image and a network.
//!
//! ```text
//! RUN/tasks/TASK/        config.json, the shim's records
//! RUN/lease              until when singletons may run
//! DATA/containers/TASK/  upper and work directory of its overlay, generated /etc files: all it can write to
//! DATA/disks/TASK        where its disk is limited: the file system that is mounted there
//! DATA/logs/TASK/        its log; outlives it
//! DATA/kept/TASK/        of one that failed, for inspection: see [`kept`]
//! CGROUP/PARENT/TASK     in each hierarchy
//! ```
//!
//! Nothing about containers is kept in memory: each verb looks at these places and at the processes. The one
//! exception is which tasks are being made or removed right now, so that those two never mix for one task.
//! Everything blocks on the kernel for moments only and therefore runs on tokio's blocking threads.

pub mod kept;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use oci_spec::image::ImageConfiguration;
use roster_proto::{
    assignment::Assignment,
    cause::Cause,
    id::{NodeId, TaskId},
    spec::{IpcMode, PidMode},
    task::StopReason,
    wire,
};
use roster_runtime::{
    cgroup::{CgroupDirs, Hierarchies},
    config,
    identity::Identity,
    signal, sys,
};
use roster_tree::Root;
use tokio::sync::{Semaphore, watch};

use super::{
    bundle::{self, ANNOTATION_STOP_SIGNAL, Contents, Network, Platform},
    devices::HostDevices,
    disk::{self, Disks},
    etc,
    foreign::{ForeignRuntime, Places},
    lease::LeaseFile,
    live::{self, LiveError, LiveInput, LiveOutput},
    logs, readiness,
    record::{self, BundleDir},
    report::cause,
    shim::{Call, lease, partner::Partner},
    shim_binary::ShimBinary,
    trash::Trash,
};
use crate::{
    clock::BootTime,
    runtime::{Ended, Exit, Observed, Phase, Probed, RuntimeError, Started},
};

/// Containers made at the same time; more would only wait for the processors and the kernel's locks.
const START_CONCURRENCY: usize = 8;
/// Looking through all kept logs costs more than removing a container: done once in so many.
const REMOVALS_PER_PRUNE: u64 = 16;
/// How long processes may take to stand still: those that wait for a disk do only when it has answered.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the shim of a container that was killed may take to write its records and go.
const SHIM_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at a container that waits for somebody to attach.
const HELD_LOOK: Duration = Duration::from_millis(100);

/// Where an agent's containers live. Agents with different directories and cgroup parents do not meet.
#[derive(Clone, Debug)]
pub struct ContainersConfig {
    /// For what is big or outlives a reboot; the unpacked images need not be on the same file system.
    pub data_dir: PathBuf,
    /// For what must not outlive a reboot: on tmpfs.
    pub run_dir: PathBuf,
    /// Below the root of every cgroup hierarchy.
    pub cgroup_parent: String,
    pub node: NodeId,
    /// The program `roster-shim`.
    pub shim: PathBuf,
    /// Other OCI runtimes that services may ask for, by name.
    pub runtimes: BTreeMap<String, ForeignRuntime>,
    /// Bytes of disk for a container whose spec says nothing; `None`: no limit.
    pub disk: Option<u64>,
    /// Failed containers kept at the most; 0: none.
    pub keep_failed: usize,
}

/// An image as a container needs it.
#[derive(Clone, Copy, Debug)]
pub struct RootImage<'a> {
    pub config: &'a ImageConfiguration,
    /// Unpacked, lowest first.
    pub layers: &'a [PathBuf],
}

/// A container that runs, by what the kernel knows it as.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its name, and that of its cgroup.
    pub task: TaskId,
    pub init: Identity,
    pub cgroup: CgroupDirs,
    /// The file system for its files alone, where its disk is limited.
    pub disk: Option<PathBuf>,
}

#[derive(Debug)]
pub struct Containers {
    config: ContainersConfig,
    hierarchies: Hierarchies,
    shim: ShimBinary,
    disks: Disks,
    trash: Trash,
    /// A layer below every image with the standard mount points, so that none has to be made in an upper directory.
    base: PathBuf,
    starts: Semaphore,
    removals: AtomicU64,
    /// Held while a task is made or removed.
    busy: Mutex<HashMap<TaskId, Arc<tokio::sync::Mutex<()>>>>,
    /// Kept containers that somebody looks into.
    inspected: watch::Sender<BTreeSet<TaskId>>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {source}")]
pub struct OpenError {
    doing: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl OpenError {
    pub(super) fn new(doing: String, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { doing, source: source.into() }
    }
}

impl Containers {
    /// Makes the directories, deletes what an earlier agent had not finished deleting, and finds the cgroups.
    pub fn open(config: ContainersConfig) -> Result<Self, OpenError> {
        let failed = |doing: String| move |source: io::Error| OpenError::new(doing, source);
        let disks = Disks(config.data_dir.join("disks"));
        let data = ["containers", "logs", "kept"].map(|name| config.data_dir.join(name));
        for dir in data.iter().chain([&config.run_dir.join("tasks"), &disks.0]) {
            private_dir(dir).map_err(failed(format!("make the directory {}", dir.display())))?;
        }
        if let Some(reason) = config.disk.and_then(|_| disk::unable()) {
            return Err(OpenError::new("limit containers' files (--container-disk)".to_owned(), reason));
        }
        let base = config.data_dir.join("base");
        etc::make_base_layer(&base).map_err(failed(format!("make the base layer {}", base.display())))?;
        let hierarchies =
            Hierarchies::open().map_err(|error| OpenError::new("use control groups".to_owned(), error))?;
        let shim = ShimBinary::open(&config.shim).map_err(failed(format!(
            "use {} to make containers (it is installed beside roster-agent)",
            config.shim.display()
        )))?;
        let trash = Trash::open(vec![config.data_dir.join("trash"), config.run_dir.join("trash")])
            .map_err(failed("open the trash directories".to_owned()))?;
        let starts = Semaphore::new(START_CONCURRENCY);
        let containers = Self {
            config,
            hierarchies,
            shim,
            disks,
            trash,
            base,
            starts,
            removals: AtomicU64::new(0),
            busy: Mutex::default(),
            inspected: watch::Sender::default(),
        };
        let readied = containers.ready_kept().and_then(|()| containers.make_room());
        readied.map_err(|error| OpenError::new("ready the kept containers".to_owned(), error))?;
        Ok(containers)
    }

    /// The directory of a task's log, whether or not the task still exists.
    pub fn log_dir(&self, task: &TaskId) -> PathBuf {
        self.config.data_dir.join("logs").join(task.as_str())
    }

    fn bundle(&self, task: &TaskId) -> BundleDir {
        BundleDir(self.config.run_dir.join("tasks").join(task.as_str()))
    }

    /// Below the root of every hierarchy.
    fn parent(&self) -> PathBuf {
        Path::new("/").join(self.config.cgroup_parent.trim_matches('/'))
    }

    fn group(&self, task: &TaskId) -> PathBuf {
        self.parent().join(task.as_str())
    }

    fn cgroup(&self, task: &TaskId) -> Result<CgroupDirs, RuntimeError> {
        let found = self.hierarchies.dirs(&self.group(task));
        found.map_err(|error| RuntimeError { cause: cause(error), transient: true })
    }

    fn layer_dir(&self, task: &TaskId) -> PathBuf {
        self.config.data_dir.join("containers").join(task.as_str())
    }

    /// Everything there is, whoever made it.
    pub fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        let mut tasks = BTreeSet::new();
        for dir in [
            &self.config.run_dir.join("tasks"),
            &self.config.data_dir.join("containers"),
            &self.disks.0,
            &self.kept_dir(),
        ] {
            let entries = fs::read_dir(dir).map_err(|error| failed(format!("list {}", dir.display()), error))?;
            for entry in entries {
                let entry = entry.map_err(|error| failed(format!("list {}", dir.display()), error))?;
                // A name that is no task's is not ours to judge.
                tasks.extend(entry.file_name().into_string().ok().and_then(|name| TaskId::new(name).ok()));
            }
        }
        let groups = self.hierarchies.list(&self.parent()).map_err(|error| failed("list cgroups".to_owned(), error))?;
        tasks.extend(groups.into_iter().filter_map(|name| TaskId::new(name).ok()));
        let observed = |task: TaskId| {
            let phase = self.phase(&task)?;
            Ok(Observed { frozen: matches!(phase, Phase::Running(_)) && self.is_frozen(&task), phase, task })
        };
        tasks.into_iter().map(observed).collect()
    }

    pub(super) fn phase(&self, task: &TaskId) -> Result<Phase, RuntimeError> {
        let bundle = self.bundle(task);
        let unreadable = |error| failed(format!("read the records in {}", bundle.0.display()), error);
        let Some(running) = bundle.running().map_err(unreadable)? else {
            return Ok(if self.kept_bundle(task).is_some() { Phase::Kept } else { Phase::Broken });
        };
        // In this order: a shim that ends between the two has written its record before it went.
        let alive = running.shim.is_running();
        match bundle.ended().map_err(unreadable)? {
            Some(ended) => Ok(Phase::Ended(ended)),
            None if alive => Ok(Phase::Running(running.into())),
            None => Ok(Phase::Ended(Ended { how: Exit::ShimLost, at: record::now() })),
        }
    }

    /// Makes the container and runs it; what was half made before is torn down first, what already runs stays.
    pub async fn start(
        self: &Arc<Self>,
        assignment: &Assignment,
        image: RootImage<'_>,
        network: Network<'_>,
    ) -> Result<Started, RuntimeError> {
        let lock = self.lock(&assignment.task);
        let _guard = lock.lock().await;
        let _permit = self.starts.acquire().await.expect("the semaphore is never closed");
        let spec = self.spec(assignment, image, &network)?;
        let hostname = bundle::hostname(assignment);
        let files = etc::Files::of_host(&hostname, &network).map_err(|error| failed("read /etc".to_owned(), error))?;
        let (this, assignment, address) = (self.clone(), assignment.clone(), network.address());
        blocking(move || {
            if let Phase::Running(started) = this.phase(&assignment.task)? {
                return Ok(started);
            }
            this.tear_down(&assignment.task)?;
            let result = this.make(&assignment, &spec, &files, address);
            if result.is_err() {
                // The failure is told; what this cannot clean up is listed as broken, to be removed again.
                let _ = this.tear_down(&assignment.task);
            }
            result
        })
        .await
    }

    fn spec(
        &self,
        assignment: &Assignment,
        image: RootImage<'_>,
        network: &Network<'_>,
    ) -> Result<oci_spec::runtime::Spec, RuntimeError> {
        let dir = self.layer_dir(&assignment.task);
        let mut lower: Vec<PathBuf> = image.layers.iter().rev().cloned().collect();
        lower.push(self.base.clone());
        let impossible = |error| RuntimeError { cause: cause(error), transient: false };
        let devices = HostDevices::of(&assignment.spec).map_err(impossible)?;
        let spec = bundle::spec(&Contents {
            assignment,
            node: &self.config.node,
            image: image.config,
            lower,
            upper: dir.join("upper"),
            work: dir.join("work"),
            files: &dir,
            network: *network,
            cgroup: self.group(&assignment.task),
            cgroup2: self.hierarchies.is_v2(),
            platform: Platform::of_host(),
            devices: &devices,
        });
        let spec = spec.map_err(impossible)?;
        stop_signal(&spec)?;
        Ok(spec)
    }

    fn make(
        &self,
        assignment: &Assignment,
        spec: &oci_spec::runtime::Spec,
        files: &etc::Files,
        address: Option<std::net::Ipv4Addr>,
    ) -> Result<Started, RuntimeError> {
        let task = &assignment.task;
        let (bundle, dir) = (self.bundle(task), self.layer_dir(task));
        let foreign = self.foreign(assignment)?;
        private_dir(&dir).map_err(|error| failed(format!("make the directory {}", dir.display()), error))?;
        if let Some(size) = assignment.spec.resources.limits.disk.or(self.config.disk) {
            self.disks.make(task, size, &dir)?;
        }
        let made = || -> io::Result<()> {
            // What `/` looks like in the container.
            fs::create_dir(dir.join("upper"))?;
            fs::set_permissions(dir.join("upper"), fs::Permissions::from_mode(etc::ENTERABLE))?;
            fs::create_dir(dir.join("work"))?;
            private_dir(&bundle.rootfs())?;
            files.write(&dir)?;
            fs::write(bundle.config(), serde_json::to_vec(spec)?)?;
            if assignment.spec.attended {
                fs::write(bundle.held(), [])?;
            }
            foreign.map_or(Ok(()), |runtime| bundle.write_foreign(runtime))
        };
        made().map_err(|error| failed("write the bundle".to_owned(), error))?;
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
        let cgroup = self.hierarchies.create(&self.group(task), &resources).map_err(|error| {
            let what = format!("limiting {}", assignment.name());
            RuntimeError { cause: Cause::Impossible { what, reason: error.to_string() }, transient: false }
        })?;
        let lease = match assignment.spec.singleton {
            true => Some(lease::Terms {
                file: LeaseFile::within(&self.config.run_dir),
                signal: stop_signal(spec)?,
                grace: assignment.spec.stop_grace_period,
            }),
            false => None,
        };
        let (logs, foreign) = (self.log_dir(task), foreign.is_some());
        let (stdin, host_pid) = (assignment.spec.stdin_open, assignment.spec.rights.pid == PidMode::Host);
        let partner = self.partner(assignment)?;
        let attended = assignment.spec.attended;
        let (bundle, cgroup) = (bundle.0, cgroup.0);
        let call = Call::Run { bundle, logs, cgroup, address, stdin, host_pid, partner, foreign, attended, lease };
        let begun = self.shim.run(&call).map(Started::from);
        match partner {
            Some(partner) if begun.is_err() && partner.is_gone() => Err(severed()),
            _ => begun,
        }
    }

    /// The container whose namespaces it shares, which must run.
    fn partner(&self, assignment: &Assignment) -> Result<Option<Partner>, RuntimeError> {
        let rights = &assignment.spec.rights;
        let (ipc, pid) = (matches!(rights.ipc, IpcMode::Service(_)), matches!(rights.pid, PidMode::Service(_)));
        if !ipc && !pid {
            return Ok(None);
        }
        let Some(task) = &assignment.shares_with else { return Err(severed()) };
        if let Some(runtime) = self.made_by_other(task)? {
            let reason = format!("the runtime {runtime} made that one, and only it knows what is inside");
            let cause = Cause::Impossible { what: "sharing the namespaces of another container".to_owned(), reason };
            return Err(RuntimeError { cause, transient: false });
        }
        let seen = self.see(task)?.ok_or_else(severed)?;
        Ok(Some(Partner { init: seen.init, ipc, pid }))
    }

    /// The other runtime that the spec asks for.
    fn foreign(&self, assignment: &Assignment) -> Result<Option<&ForeignRuntime>, RuntimeError> {
        let Some(name) = &assignment.spec.runtime else { return Ok(None) };
        let known = self.config.runtimes.get(name).map(Some);
        known.ok_or_else(|| {
            let names: Vec<&str> = self.config.runtimes.keys().map(String::as_str).collect();
            let knows = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let reason = format!(
                "this node's agent was told of no runtime of that name, only of {knows}: start it with --runtime \
                 {name}=PROGRAM, or remove `runtime`"
            );
            let cause = Cause::Impossible { what: format!("running it by the runtime {name}"), reason };
            RuntimeError { cause, transient: false }
        })
    }

    /// Resolves when the container has ended.
    pub async fn ended(self: &Arc<Self>, task: &TaskId) -> Result<Ended, RuntimeError> {
        let bundle = self.bundle(task);
        let unreadable = |error| failed(format!("read the records in {}", bundle.0.display()), error);
        let running = bundle.running().map_err(unreadable)?.ok_or_else(|| unknown(task))?;
        let shim = running.shim.pidfd().map_err(|error| failed("open the shim's process".to_owned(), error))?;
        if let Some(shim) = shim {
            readiness::process_end(shim).await.map_err(|error| failed("wait for the shim".to_owned(), error))?;
        }
        if let Some(ended) = bundle.ended().map_err(unreadable)? {
            return Ok(ended);
        }
        // Whatever of the container outlived its shim must not go on unwatched.
        self.kill(task).await?;
        Ok(Ended { how: Exit::ShimLost, at: record::now() })
    }

    /// Looked at now and again: hardly any waits for longer than a moment.
    pub async fn begun(&self, task: &TaskId) {
        let held = self.bundle(task).held();
        while held.exists() {
            tokio::time::sleep(HELD_LOOK).await;
        }
    }

    pub async fn stop(self: &Arc<Self>, task: &TaskId) -> Result<(), RuntimeError> {
        let bundle = self.bundle(task);
        let unreadable = |error| failed(format!("read the records in {}", bundle.0.display()), error);
        let config = fs::read(bundle.config()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => unknown(task),
            _ => unreadable(error),
        })?;
        let spec = config::parse(&config).map_err(|error| unreadable(error.into()))?;
        // What has not begun cannot be asked to end.
        let signal = if bundle.held().exists() { nix::libc::SIGKILL } else { stop_signal(&spec)? };
        let (this, task) = (self.clone(), task.clone());
        blocking(move || {
            this.signal(&task, signal)?;
            // The signal is what it finds first when it goes on.
            if this.is_frozen(&task) { this.thaw(&task) } else { Ok(()) }
        })
        .await
    }

    /// Returns when every process stands still; when some do not in time, all go on.
    pub fn freeze(&self, task: &TaskId) -> Result<(), RuntimeError> {
        if self.see(task)?.is_none() {
            return Ok(());
        }
        let frozen = self.hierarchies.freeze(&self.group(task), FREEZE_PATIENCE);
        frozen.map_err(|error| RuntimeError { cause: cause(error), transient: true })
    }

    pub fn thaw(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let thawed = self.hierarchies.thaw(&self.group(task));
        thawed.map_err(|error| RuntimeError { cause: cause(error), transient: true })
    }

    /// Where the host has no freezer, nothing was ever frozen.
    pub(super) fn is_frozen(&self, task: &TaskId) -> bool {
        self.hierarchies.is_frozen(&self.group(task)).unwrap_or(false)
    }

    /// To its first process; false: it has ended. One that stands still gets it when it goes on, but for SIGKILL.
    /// Blocks, under another runtime for as long as that takes.
    pub fn signal(&self, task: &TaskId, signal: i32) -> Result<bool, RuntimeError> {
        let bundle = self.bundle(task);
        let unreadable = |error| failed(format!("read the records in {}", bundle.0.display()), error);
        let Some(running) = bundle.running().map_err(unreadable)? else { return Err(unknown(task)) };
        let step = || format!("send signal {signal} to the container");
        if let Some(runtime) = bundle.foreign().map_err(unreadable)? {
            // Its first process may be no process of the container's, but a sandbox around it.
            if !running.init.is_running() {
                return Ok(false);
            }
            let sent = runtime.call(&Places::of(&bundle), "kill", &[], &[&signal.to_string()]);
            return sent.map(|()| true).map_err(|error| RuntimeError { cause: cause(error), transient: true });
        }
        let Some(init) = running.init.pidfd().map_err(|error| failed(step(), error))? else { return Ok(false) };
        match sys::pidfd_send_signal(init, signal) {
            // On cgroup v1 even that waits until it is thawed.
            Ok(()) if signal == nix::libc::SIGKILL && self.is_frozen(task) => self.thaw(task).map(|()| true),
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(false),
            Err(error) => Err(failed(step(), error)),
        }
    }

    pub(super) fn made_by_other(&self, task: &TaskId) -> Result<Option<String>, RuntimeError> {
        let bundle = self.bundle(task);
        let foreign = bundle.foreign().map_err(|error| failed(format!("read {}", bundle.0.display()), error))?;
        Ok(foreign.map(|runtime| runtime.to_string()))
    }

    /// As its configuration has them.
    pub fn layers(&self, task: &TaskId) -> Result<Vec<PathBuf>, RuntimeError> {
        let bundle = self.kept_bundle(task).unwrap_or_else(|| self.bundle(task));
        if !bundle.config().exists() {
            return Err(unknown(task));
        }
        let spec = bundle.spec().map_err(|error| RuntimeError { cause: cause(error), transient: true })?;
        Ok(kept::layers_of(&spec))
    }

    pub fn see(&self, task: &TaskId) -> Result<Option<Seen>, RuntimeError> {
        let bundle = self.bundle(task);
        let unreadable = |error| failed(format!("read the records in {}", bundle.0.display()), error);
        let Some(running) = bundle.running().map_err(unreadable)? else { return Ok(None) };
        if !running.init.is_running() {
            return Ok(None);
        }
        let disk = self.disks.of(task).exists().then(|| self.layer_dir(task));
        Ok(Some(Seen { task: task.clone(), init: running.init, cgroup: self.cgroup(task)?, disk }))
    }

    pub async fn kill(self: &Arc<Self>, task: &TaskId) -> Result<(), RuntimeError> {
        let cgroup = self.cgroup(task)?;
        blocking(move || cgroup.kill().map_err(|error| failed("kill the container".to_owned(), error))).await
    }

    pub fn extend_lease(&self, until: BootTime) -> Result<(), RuntimeError> {
        let file = LeaseFile::within(&self.config.run_dir);
        file.write(until).map_err(|error| failed(format!("write the lease {}", file.0.display()), error))
    }

    pub async fn probe(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<Probed, RuntimeError> {
        let call = Call::Exec {
            bundle: self.bundle(task).0,
            cgroup: self.cgroup(task)?.0,
            timeout,
            command: command.iter().map(Into::into).collect(),
        };
        self.shim.exec(&call, timeout).await
    }

    pub(super) fn running_bundle(&self, task: &TaskId) -> Result<BundleDir, LiveError> {
        match self.phase(task) {
            Ok(Phase::Running(_)) => Ok(self.bundle(task)),
            _ => Err(LiveError::NotRunning(task.to_string())),
        }
    }

    /// What the container has for `/`, with all that is mounted in it.
    pub(super) fn root(&self, task: &TaskId) -> Result<Root, LiveError> {
        if let Some(kept) = self.kept_bundle(task) {
            return self.kept_root(&kept);
        }
        let not_running = || LiveError::NotRunning(task.to_string());
        let cannot = |source| LiveError::Io { doing: "open the container's root", source };
        let bundle = self.bundle(task);
        let running = bundle.running().map_err(cannot)?.ok_or_else(not_running)?;
        is_ours(&bundle)?;
        let init = running.init.pidfd().map_err(cannot)?.ok_or_else(not_running)?;
        let root = fs::File::open(format!("/proc/{}/root", running.init.pid)).map_err(cannot)?;
        // That it still runs now says that it was its root.
        match sys::wait_readable(&init, Duration::ZERO).map_err(cannot)? {
            true => Err(not_running()),
            false => Ok(Root::whole(root)),
        }
    }

    /// Runs one more program in the container, to its end.
    pub(super) async fn run_program(
        self: &Arc<Self>,
        task: &TaskId,
        program: &wire::Program,
        input: LiveInput,
        output: LiveOutput,
    ) -> Result<(), LiveError> {
        if self.kept_bundle(task).is_some() {
            return self.run_in_kept(task, program, input, output).await;
        }
        let running = self.running_bundle(task);
        is_ours(&running.map_err(|error| if program.tools { LiveError::NotKept(task.to_string()) } else { error })?)?;
        if self.hierarchies.is_frozen(&self.group(task)).map_err(LiveError::Start)? {
            return Err(LiveError::Paused);
        }
        let cgroup = self.cgroup(task)?;
        let group = format!("live-{:016x}", rand::random::<u64>());
        let own = CgroupDirs(vec![cgroup.0[0].join(&group)]);
        let shim = self.shim.live(&Call::Live { bundle: self.bundle(task).0, cgroup: cgroup.0, group })?;
        let result = live::run(shim, &program.into(), input, output).await;
        if let Err(LiveError::ShimDied) = result {
            // It would have done so.
            blocking(move || own.remove().map_err(|error| failed("clear the program's cgroup".to_owned(), error)))
                .await?;
        }
        result
    }

    /// Kills what still runs and removes every trace but the log; of a kept one not while somebody looks into it.
    pub async fn remove(self: &Arc<Self>, task: &TaskId) -> Result<(), RuntimeError> {
        let lock = self.lock(task);
        let _guard = lock.lock().await;
        let (this, task) = (self.clone(), task.clone());
        blocking(move || {
            if this.is_inspected(&task) {
                return Err(failed(format!("remove what is kept of task {task}"), "somebody looks into it"));
            }
            let removed = this.tear_down(&task);
            let due = this.removals.fetch_add(1, Ordering::Relaxed).is_multiple_of(REMOVALS_PER_PRUNE);
            removed.and(if due { this.prune_logs() } else { Ok(()) })
        })
        .await
    }

    fn prune_logs(&self) -> Result<(), RuntimeError> {
        let homes = [self.config.run_dir.join("tasks"), self.kept_dir()];
        logs::prune(&self.config.data_dir.join("logs"), |task| homes.iter().any(|home| home.join(task).exists()))
            .map_err(|error| failed("delete the oldest logs".to_owned(), error))
    }

    /// Idempotent; goes on past errors.
    fn tear_down(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.tear_down_all_but(task, Path::new(""))
    }

    fn tear_down_all_but(&self, task: &TaskId, kept: &Path) -> Result<(), RuntimeError> {
        let cgroup = self.cgroup(task)?;
        let mut errors = Vec::new();
        let mut attempt = |step: &str, result: io::Result<()>| {
            errors.extend(result.err().map(|error| format!("{step}: {error}")));
        };
        attempt("kill its processes", cgroup.kill());
        attempt("end its shim", self.end_shim(task));
        attempt("have its runtime remove it", self.delete_foreign(task));
        attempt("remove its cgroup", cgroup.remove());
        attempt("unmount its files", disk::unmount(&self.layer_dir(task)));
        for place in [self.layer_dir(task), self.kept_place(task)].iter().filter(|place| *place != kept) {
            attempt("unmount what is kept of its files", disk::unmount(&place.join(kept::FILES)));
        }
        let places = [
            ("remove its files", self.layer_dir(task)),
            ("remove its disk", self.disks.of(task)),
            ("remove its bundle", self.bundle(task).0),
            ("remove what is kept of it", self.kept_place(task)),
        ];
        for (step, place) in places.into_iter().filter(|(_, place)| place != kept) {
            attempt(step, self.trash.take(&place));
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(failed(format!("remove task {task}"), errors.join("; ")))
    }

    /// What the shim of a container of another runtime's did not come to.
    fn delete_foreign(&self, task: &TaskId) -> io::Result<()> {
        let bundle = self.bundle(task);
        let Some(runtime) = bundle.foreign()? else { return Ok(()) };
        let places = Places::of(&bundle);
        if !places.has_state() {
            return Ok(());
        }
        runtime.call(&places, "delete", &["--force"], &[]).map_err(io::Error::other)
    }

    /// Lets it write its records; a shim that takes too long is killed.
    fn end_shim(&self, task: &TaskId) -> io::Result<()> {
        let Some(running) = self.bundle(task).running()? else { return Ok(()) };
        let Some(shim) = running.shim.pidfd()? else { return Ok(()) };
        if sys::wait_readable(&shim, SHIM_DEADLINE)? {
            return Ok(());
        }
        sys::pidfd_send_signal(&shim, nix::libc::SIGKILL)?;
        match sys::wait_readable(&shim, SHIM_DEADLINE)? {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "the shim does not die")),
        }
    }

    fn lock(&self, task: &TaskId) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks that nobody holds or waits for say nothing.
        busy.retain(|_, lock| Arc::strong_count(lock) > 1);
        busy.entry(task.clone()).or_default().clone()
    }
}

/// What a container of another runtime is like inside, only that runtime knows: its first process may be a whole kernel.
fn is_ours(bundle: &BundleDir) -> Result<(), LiveError> {
    let foreign = bundle.foreign();
    match foreign.map_err(|source| LiveError::Io { doing: "read which runtime made the container", source })? {
        Some(runtime) => Err(LiveError::Foreign(runtime.to_string())),
        None => Ok(()),
    }
}

fn stop_signal(spec: &oci_spec::runtime::Spec) -> Result<i32, RuntimeError> {
    let name = spec.annotations().as_ref().and_then(|annotations| annotations.get(ANNOTATION_STOP_SIGNAL));
    let Some(name) = name else { return Ok(nix::libc::SIGTERM) };
    signal::parse(name).ok_or_else(|| RuntimeError {
        cause: Cause::Impossible {
            what: format!("stopping with signal {name:?}"),
            reason: "there is no such signal: write SIGTERM, TERM or 15".to_owned(),
        },
        transient: false,
    })
}

pub(super) fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

pub(super) fn failed(step: String, error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError { cause: Cause::StartFailed { step, error: error.to_string() }, transient: true }
}

/// The namespaces that were to be shared are gone: no failure of the container's own.
fn severed() -> RuntimeError {
    RuntimeError { cause: Cause::Stopped { reason: StopReason::Severed }, transient: false }
}

fn unknown(task: &TaskId) -> RuntimeError {
    let cause = Cause::Impossible {
        what: format!("finding the container of task {task}"),
        reason: "there is none on this node".to_owned(),
    };
    RuntimeError { cause, transient: false }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(failed("run on a blocking thread".to_owned(), error)),
    }
}
