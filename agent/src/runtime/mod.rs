//! Whole-container verbs: all that the agent's own logic knows of containers.
//!
//! Every verb may be called again after a crash at any point: `start` on something half made begins anew, `remove` on
//! something half gone goes on. What there is is asked of the kernel each time (`list`), never remembered.

pub mod linux;
#[cfg(any(test, feature = "test-support"))]
pub mod memory;

use std::{future::Future, net::Ipv4Addr, time::Duration};

use roster_proto::{
    assignment::Assignment,
    cause::Cause,
    id::TaskId,
    spec::{Healthcheck, Protocol, TaskSpec},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::clock::BootTime;

/// In which somebody must attach to a container that waits for that.
pub const ATTACH_DEADLINE: Duration = Duration::from_secs(30);

pub trait Runtime: Send + Sync + 'static {
    /// Everything of this agent's that exists: running, ended, or a leftover of something half made or half removed.
    fn list(&self) -> impl Future<Output = Result<Vec<Observed>, RuntimeError>> + Send;

    /// Makes the image present and unpacked, pulling it where it is not; returns what the image itself says.
    fn prepare(&self, spec: &TaskSpec) -> impl Future<Output = Result<Prepared, RuntimeError>> + Send;

    /// Makes the network and the container and runs it; returns once its first process is executing the image's program,
    /// or waits to, for somebody to attach.
    fn start(&self, assignment: &Assignment) -> impl Future<Output = Result<Started, RuntimeError>> + Send;

    /// Resolves when a container that waits for somebody to attach waits no longer, at once if it does not.
    fn begun(&self, task: &TaskId) -> impl Future<Output = ()> + Send;

    /// Resolves when the container has ended, at once if it already has.
    fn ended(&self, task: &TaskId) -> impl Future<Output = Result<Ended, RuntimeError>> + Send;

    /// Makes every process of it stand still until it is thawed, stopped or killed. One that has ended stays so.
    fn freeze(&self, task: &TaskId) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    fn thaw(&self, task: &TaskId) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Sends the task's stop signal (the spec's, else the image's, else SIGTERM) to its first process, and thaws it.
    fn stop(&self, task: &TaskId) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// SIGKILL to everything in the container's cgroup; returns when nothing of it runs.
    fn kill(&self, task: &TaskId) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Runs a command in the container, with its environment and limits; a timeout kills it.
    fn probe(
        &self,
        task: &TaskId,
        command: &[String],
        timeout: Duration,
    ) -> impl Future<Output = Result<Probed, RuntimeError>> + Send;

    /// As `remove`, but its files, its log and its last figures stay for inspection. False: there was nothing to keep, or
    /// no room for it, and it is removed.
    fn keep(&self, task: &TaskId) -> impl Future<Output = Result<bool, RuntimeError>> + Send;

    /// Kills what still runs and removes every trace but the log. Goes on past errors and returns all of them.
    fn remove(&self, task: &TaskId) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Singletons may run until then. Each ends by itself when no later moment was named in time, whatever became of this
    /// agent meanwhile. Blocks for moments only.
    fn extend_lease(&self, until: BootTime) -> Result<(), RuntimeError>;

    /// Makes exactly these ports answer on the host, each shared in turn by its backends.
    fn publish(&self, ports: &[Publication]) -> impl Future<Output = Result<(), RuntimeError>> + Send;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub task: TaskId,
    pub phase: Phase,
    /// Runs, but stands still.
    pub frozen: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Running(Started),
    Ended(Ended),
    /// Neither: to be removed.
    Broken,
    /// It failed, and only what can be looked at is left.
    Kept,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// The image's own healthcheck, if it has one.
    pub healthcheck: Option<Healthcheck>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    pub pid: u32,
    pub address: Option<Ipv4Addr>,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub how: Exit,
    pub at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    Code(i32),
    Signal(i32),
    OutOfMemory {
        limit: Option<u64>,
    },
    /// The shim died without leaving an exit record.
    ShimLost,
    /// A singleton, ended by its shim.
    LeaseLost,
    /// The container whose namespaces it shares has ended.
    Severed,
    /// Nobody attached in time, and only then its program would have begun.
    Unattended,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// `None`: the timeout killed it.
    pub code: Option<i32>,
    /// The end of what it wrote to stdout and stderr, bounded.
    pub output: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Publication {
    pub host_ip: Option<Ipv4Addr>,
    pub port: u16,
    pub protocol: Protocol,
    /// Address and port of each container that may answer, sorted.
    pub backends: Vec<(Ipv4Addr, u16)>,
}

/// A verb that failed. `cause` is what goes on the task when the failure ends it.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct RuntimeError {
    pub cause: Cause,
    /// Trying the same again may succeed (a registry that does not answer, a busy mount).
    pub transient: bool,
}
