//! What a user wants, as `rctl` read it from a Compose file. The system never edits it.
//!
//! Whatever lies outside [`TaskSpec`] can change without replacing a running task.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::id::{ServiceName, StackName};

mod kernel;
mod rights;
pub mod rules;
pub mod sharing;

pub use self::{
    kernel::{BlockIo, Controls, KernelSettings, MemorySwap, Ulimit},
    rights::{Device, IpcMode, PidMode, Rights, Seccomp},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackSpec {
    pub name: StackName,
    pub services: BTreeMap<ServiceName, ServiceSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub mode: Mode,
    pub restart: RestartPolicy,
    pub update: UpdatePolicy,
    /// `deploy.labels`: of the service, not of its containers.
    pub labels: BTreeMap<String, String>,
    /// `x-*` keys of the service, each value as JSON text.
    pub extensions: BTreeMap<String, String>,
    pub task: TaskSpec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    Replicated {
        replicas: u32,
    },
    /// One task on every node.
    Global,
}

/// Everything an agent must know to make a container. A difference here replaces tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// As the user wrote it: a name with tag or digest, or an image id.
    pub image: String,
    /// Replaces the image's entrypoint; an image's command then no longer applies. `Some(vec![])` clears it.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    pub environment: BTreeMap<String, String>,
    pub working_dir: Option<String>,
    /// `user[:group]`, names or numbers, looked up in the container's own passwd and group files.
    pub user: Option<String>,
    pub hostname: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub network: NetworkMode,
    pub ports: Vec<Port>,
    pub mounts: Vec<Mount>,
    pub read_only: bool,
    /// Run a small init as process 1 that reaps zombies and passes signals on.
    pub init: bool,
    /// A terminal as standard input and output.
    #[serde(default)]
    pub tty: bool,
    /// Standard input stays open and can be written to from outside; else it is empty.
    #[serde(default)]
    pub stdin_open: bool,
    /// A name (`SIGTERM`, `TERM`) or number; `None`: the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    pub stop_grace_period: Duration,
    pub healthcheck: Option<Healthcheck>,
    pub resources: Resources,
    /// `x-singleton`: never two at once. It ends when its node's lease does.
    #[serde(default)]
    pub singleton: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub rights: Rights,
    #[serde(default, skip_serializing_if = "is_default")]
    pub kernel: KernelSettings,
    /// Another OCI runtime, by the name that the node's agent knows it by.
    #[serde(default, skip_serializing_if = "is_default")]
    pub runtime: Option<String>,
    /// Its program begins only when somebody attaches, whose its standard input is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attended: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    Bridge,
    Host,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The port in the container.
    pub target: u16,
    /// The port on the host; `None`: the controller picks a free one and keeps it for the service.
    pub published: Option<u16>,
    /// Only on this address of the host; `None`: on all.
    pub host_ip: Option<Ipv4Addr>,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mount {
    Bind {
        /// Absolute, on the node.
        source: PathBuf,
        target: PathBuf,
        read_only: bool,
        /// Make an empty directory at `source` where there is nothing (Compose's short form does).
        create_source: bool,
        propagation: Propagation,
    },
    Tmpfs {
        target: PathBuf,
        /// Bytes.
        size: Option<u64>,
        /// Permission bits.
        mode: Option<u32>,
        read_only: bool,
        #[serde(default, skip_serializing_if = "is_default")]
        options: TmpfsOptions,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TmpfsOptions {
    /// Whom its top belongs to; `None`: root.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub inodes: Option<u64>,
    /// Programs on it may be executed.
    pub exec: bool,
    /// Set-user-id bits count.
    pub suid: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Rprivate,
    Private,
    Rshared,
    Shared,
    Rslave,
    Slave,
}

/// A field that is `None` takes the image's value, then the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    pub test: HealthTest,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub retries: Option<u32>,
    pub start_period: Option<Duration>,
    pub start_interval: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthTest {
    /// The image's test.
    #[default]
    Inherit,
    /// No test, even if the image has one.
    Disabled,
    Command(Vec<String>),
    /// Run by `/bin/sh -c` in the container.
    Shell(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub limits: Limits,
    pub reservations: Reservations,
    #[serde(default, skip_serializing_if = "is_default")]
    pub controls: Controls,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// In thousand-millionths of a core.
    pub nano_cpus: Option<u64>,
    /// Bytes.
    pub memory: Option<u64>,
    pub pids: Option<u64>,
    /// Bytes on the node's disk of all that the container writes to its own files. `None`: the node's default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub disk: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservations {
    pub nano_cpus: Option<u64>,
    pub memory: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    /// The base of the exponential backoff. `None`: the first restart after a healthy window is immediate and the
    /// base is one second. `Some(0)`: always immediate.
    pub delay: Option<Duration>,
    /// Give the slot up after so many restarts without a healthy window between them. `None`: never.
    pub max_attempts: Option<u32>,
    /// A task that ran this long was healthy: counting starts anew. `None`: ten seconds.
    pub window: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    Never,
    OnFailure,
    Always,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatePolicy {
    /// Slots replaced at a time; 0: all at once.
    pub parallelism: u32,
    /// Between one batch being up and the next.
    pub delay: Duration,
    pub order: UpdateOrder,
    /// A replaced slot whose new task fails within this time holds the rollout.
    pub monitor: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOrder {
    StopFirst,
    StartFirst,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { condition: RestartCondition::Always, delay: None, max_attempts: None, window: None }
    }
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self { parallelism: 1, delay: Duration::ZERO, order: UpdateOrder::StopFirst, monitor: Duration::from_secs(5) }
    }
}

/// Docker's default.
pub const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);

impl TaskSpec {
    /// A task of `image` with every other field at its default.
    pub fn of_image(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            entrypoint: None,
            command: None,
            environment: BTreeMap::new(),
            working_dir: None,
            user: None,
            hostname: None,
            labels: BTreeMap::new(),
            network: NetworkMode::Bridge,
            ports: Vec::new(),
            mounts: Vec::new(),
            read_only: false,
            init: false,
            tty: false,
            stdin_open: false,
            stop_signal: None,
            stop_grace_period: STOP_GRACE_PERIOD,
            healthcheck: None,
            resources: Resources::default(),
            singleton: false,
            rights: Rights::default(),
            kernel: KernelSettings::default(),
            runtime: None,
            attended: false,
        }
    }
}

impl ServiceSpec {
    pub fn of_image(image: impl Into<String>, replicas: u32) -> Self {
        Self {
            mode: Mode::Replicated { replicas },
            restart: RestartPolicy::default(),
            update: UpdatePolicy::default(),
            labels: BTreeMap::new(),
            extensions: BTreeMap::new(),
            task: TaskSpec::of_image(image),
        }
    }
}
