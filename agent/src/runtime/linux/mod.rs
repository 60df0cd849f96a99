//! The real runtime: the image store, the network and [`containers`] behind the whole-container verbs.
//!
//! A container needs no more of the other two than its unpacked layers and, in bridge mode, a network namespace; each
//! can be used and tested without the others.

pub mod bundle;
pub mod containers;
pub mod devices;
mod disk;
mod etc;
pub mod foreign;
pub mod lease;
pub mod live;
pub mod logs;
mod readiness;
pub mod record;
pub mod report;
pub mod shim;
mod shim_binary;
pub(crate) mod trash;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use roster_proto::{
    assignment::Assignment,
    cause::Cause,
    id::{NodeId, TaskId},
    spec::{NetworkMode, Protocol, TaskSpec},
    wire::live_work::Work,
};

pub use self::containers::Seen;
use self::{
    containers::{Containers, ContainersConfig, OpenError, RootImage, kept::KeptRecord},
    foreign::ForeignRuntime,
    live::{LiveError, LiveInput, LiveOutput},
    logs::LogSource,
};
use super::{Ended, Observed, Phase, Prepared, Probed, Publication, Runtime, RuntimeError, Started};
use crate::{
    clock::BootTime,
    image::{Image, ImageError, ImageStore},
    network::{self, Attachment, Network, NetworkError},
    telemetry::Chain,
};

#[derive(Clone, Debug)]
pub struct LinuxConfig {
    /// Writable layers, logs: `/var/lib/roster`.
    pub data_dir: PathBuf,
    /// Bundles and records, on tmpfs: `/run/roster`.
    pub run_dir: PathBuf,
    /// `roster`: containers' cgroups are `/roster/TASK` in each hierarchy.
    pub cgroup_parent: String,
    pub node: NodeId,
    /// See [`shim_beside`].
    pub shim: PathBuf,
    /// Other OCI runtimes that services may ask for, by name.
    pub runtimes: BTreeMap<String, ForeignRuntime>,
    /// Bytes of disk for a container whose spec says nothing; `None`: no limit.
    pub disk: Option<u64>,
    /// Failed containers kept for inspection at the most; 0: none.
    pub keep_failed: usize,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct LinuxRuntime {
    containers: Arc<Containers>,
    images: Arc<ImageStore>,
    network: Arc<Network>,
}

/// `roster-shim` beside the running program, where it is installed.
pub fn shim_beside() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new("/")).join("roster-shim"))
}

impl LinuxRuntime {
    /// Takes over what an earlier agent with the same configuration left running. Blocks on the disk.
    pub fn open(config: LinuxConfig, images: Arc<ImageStore>, network: Arc<Network>) -> Result<Self, OpenError> {
        let LinuxConfig { data_dir, run_dir, cgroup_parent, node, shim, runtimes, disk, keep_failed } = config;
        let config = ContainersConfig { data_dir, run_dir, cgroup_parent, node, shim, runtimes, disk, keep_failed };
        let containers = Containers::open(config)?;
        Ok(Self { containers: Arc::new(containers), images, network })
    }

    /// Where the task's log is, also after its removal; `name` is what its lines are to be called (`web.2`).
    pub fn log_source(&self, task: &TaskId, name: String) -> LogSource {
        LogSource { dir: self.containers.log_dir(task), task: task.clone(), name }
    }

    /// What there is to look at of a container that runs.
    pub fn see(&self, task: &TaskId) -> Result<Option<Seen>, RuntimeError> {
        self.containers.see(task)
    }

    /// What is known of a failed container that is kept, if it is.
    pub fn kept(&self, task: &TaskId) -> io::Result<Option<KeptRecord>> {
        self.containers.kept_record(task)
    }

    /// The layers of its root file system, the one it writes to first.
    pub fn layers(&self, task: &TaskId) -> Result<Vec<PathBuf>, RuntimeError> {
        self.containers.layers(task)
    }

    /// Its processes stand still.
    pub fn is_frozen(&self, task: &TaskId) -> bool {
        self.containers.is_frozen(task)
    }

    /// Which other runtime made it, if one did.
    pub fn foreign(&self, task: &TaskId) -> Result<Option<String>, RuntimeError> {
        self.containers.made_by_other(task)
    }

    /// False: the container has ended.
    pub async fn signal(&self, task: &TaskId, signal: i32) -> Result<bool, RuntimeError> {
        let (containers, task) = (self.containers.clone(), task.clone());
        containers::blocking(move || containers.signal(&task, signal)).await
    }

    /// What people do in a running container, to its end.
    pub async fn live(&self, task: &TaskId, work: Work, input: LiveInput, output: LiveOutput) -> Result<(), LiveError> {
        match work {
            Work::Program(program) => self.containers.run_program(task, &program, input, output).await,
            Work::Attach(wanted) => {
                let bundle = self.containers.running_bundle(task)?;
                live::attach(self.containers.clone(), task, &bundle.0, wanted, input, output).await
            }
            Work::CopyOut(wanted) => live::copy_out(self.containers.root(task)?, wanted, output).await,
            Work::CopyIn(_) if self.containers.is_kept(task) => Err(LiveError::OnlyKept(task.to_string())),
            Work::CopyIn(wanted) => live::copy_in(self.containers.root(task)?, wanted, input, output).await,
        }
    }

    async fn image(&self, spec: &TaskSpec) -> Result<Image, RuntimeError> {
        self.images.ensure(&spec.image).await.map_err(|error| no_image(&spec.image, &error))
    }

    /// Processes first: a namespace is gone only when nothing is in it.
    async fn detach_after<T>(&self, task: &TaskId, ended: Result<T, RuntimeError>) -> Result<T, RuntimeError> {
        let detached = self.network.detach(task).await.map_err(|error| no_network("remove its network", &error));
        match (ended, detached) {
            (Err(ended), Err(detached)) => {
                Err(containers::failed(format!("remove task {task}"), format_args!("{ended}; {detached}")))
            }
            (ended, detached) => ended.and_then(|ended| detached.map(|()| ended)),
        }
    }

    async fn attach(&self, assignment: &Assignment) -> Result<Option<Attachment>, RuntimeError> {
        match assignment.spec.network {
            NetworkMode::Host | NetworkMode::None => Ok(None),
            NetworkMode::Bridge => {
                let attached = self.network.attach(&assignment.task).await;
                attached.map(Some).map_err(|error| no_network("connect it to the network", &error))
            }
        }
    }
}

impl Runtime for LinuxRuntime {
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        let containers = self.containers.clone();
        let mut all = containers::blocking(move || containers.list()).await?;
        let attached = self.network.attached().await.map_err(|error| no_network("list networks", &error))?;
        let known: BTreeSet<TaskId> = all.iter().map(|observed| observed.task.clone()).collect();
        let alone = attached.into_iter().filter(|task| !known.contains(task));
        all.extend(alone.map(|task| Observed { task, phase: Phase::Broken, frozen: false }));
        Ok(all)
    }

    async fn prepare(&self, spec: &TaskSpec) -> Result<Prepared, RuntimeError> {
        Ok(Prepared { healthcheck: self.image(spec).await?.healthcheck })
    }

    async fn start(&self, assignment: &Assignment) -> Result<Started, RuntimeError> {
        let image = self.image(&assignment.spec).await?;
        ports_are_free(assignment)?;
        let attachment = self.attach(assignment).await?;
        let network = match (&attachment, assignment.spec.network) {
            (Some(attachment), _) => bundle::Network::Path { netns: &attachment.netns, address: attachment.address },
            (None, NetworkMode::Host) => bundle::Network::Host,
            (None, NetworkMode::None | NetworkMode::Bridge) => bundle::Network::None,
        };
        let image = RootImage { config: &image.config, layers: &image.layers };
        self.containers.start(assignment, image, network).await
    }

    async fn begun(&self, task: &TaskId) {
        self.containers.begun(task).await;
    }

    async fn ended(&self, task: &TaskId) -> Result<Ended, RuntimeError> {
        self.containers.ended(task).await
    }

    async fn freeze(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let (containers, task) = (self.containers.clone(), task.clone());
        containers::blocking(move || containers.freeze(&task)).await
    }

    async fn thaw(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.containers.thaw(task)
    }

    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.containers.stop(task).await
    }

    async fn kill(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.containers.kill(task).await
    }

    async fn probe(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<Probed, RuntimeError> {
        self.containers.probe(task, command, timeout).await
    }

    async fn keep(&self, task: &TaskId) -> Result<bool, RuntimeError> {
        let kept = self.containers.keep(task).await;
        self.detach_after(task, kept).await
    }

    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let removed = self.containers.remove(task).await;
        self.detach_after(task, removed).await
    }

    fn extend_lease(&self, until: BootTime) -> Result<(), RuntimeError> {
        self.containers.extend_lease(until)
    }

    async fn publish(&self, ports: &[Publication]) -> Result<(), RuntimeError> {
        self.network.publish(ports).await.map_err(|error| no_network("publish ports", &error))
    }
}

/// A published port goes before whatever of the host listens on it, which would be cut off without a word.
fn ports_are_free(assignment: &Assignment) -> Result<(), RuntimeError> {
    for port in &assignment.ports {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let taken = network::listening(port.published, port.protocol);
        if taken.map_err(|error| containers::failed("look at the host's ports".to_owned(), error))? {
            let cause = Cause::Impossible {
                what: format!("publishing port {}/{protocol}", port.published),
                reason: "a process of this host listens on it: stop that one, or publish another port".to_owned(),
            };
            // A UDP port may be a client's, for a moment only.
            return Err(RuntimeError { cause, transient: true });
        }
    }
    Ok(())
}

fn no_image(image: &str, error: &ImageError) -> RuntimeError {
    let cause = Cause::ImageUnavailable { image: image.to_owned(), reason: error.describe() };
    RuntimeError { cause, transient: error.is_transient() }
}

fn no_network(step: &str, error: &NetworkError) -> RuntimeError {
    containers::failed(step.to_owned(), Chain(error).to_string())
}
