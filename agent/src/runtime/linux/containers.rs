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

mod inside;
pub mod kept;
mod life;
mod making;
mod removal;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use oci_spec::image::ImageConfiguration;
use roster_proto::{
    cause::Cause,
    id::{NodeId, TaskId},
};
use roster_runtime::{
    cgroup::{CgroupDirs, Hierarchies},
    identity::Identity,
    signal,
};
use tokio::sync::{Semaphore, watch};

use super::{
    bundle::ANNOTATION_STOP_SIGNAL,
    disk::{self, Disks},
    etc,
    foreign::ForeignRuntime,
    record::{self, BundleDir},
    report::cause,
    shim_binary::ShimBinary,
    trash::Trash,
};
use crate::runtime::{Ended, Exit, Observed, Phase, RuntimeError};

/// Containers made at the same time; more would only wait for the processors and the kernel's locks.
const START_CONCURRENCY: usize = 8;
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

    fn lock(&self, task: &TaskId) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks that nobody holds or waits for say nothing.
        busy.retain(|_, lock| Arc::strong_count(lock) > 1);
        busy.entry(task.clone()).or_default().clone()
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
