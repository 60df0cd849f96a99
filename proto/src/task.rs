//! One attempt to run a slot, and what is known of it.

use std::{fmt, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::{
    cause::Cause,
    id::{NodeId, ServiceId, Slot, TaskId, Version},
    time::Timestamp,
};

/// Bound to a node once, never restarted, only replaced; the replacement keeps the slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub service: ServiceId,
    pub slot: Slot,
    /// Which of the service's task specs it runs.
    pub spec_version: Version,
    pub node: Option<NodeId>,
    pub desired: Desired,
    pub status: TaskStatus,
    pub created: Timestamp,
    /// Not to be placed before this moment: the backoff after a failure.
    pub not_before: Option<Timestamp>,
    /// Restarts of the slot since its last healthy window.
    pub attempt: u32,
    /// The task of the same slot that this one follows.
    pub replaces: Option<TaskId>,
    /// People want its processes to stand still.
    #[serde(default)]
    pub paused: bool,
    /// The task of another service, on the same node, whose namespaces it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares_with: Option<TaskId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Desired {
    Run,
    Stop(StopReason),
}

/// Why the controller wants a task stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    ScaledDown,
    /// A newer spec takes its place.
    Updated,
    /// Its service or stack was removed.
    Removed,
    /// Its node is drained, down or gone and another took the slot.
    Moved,
    /// Somebody wanted it restarted.
    Restarted,
    /// The container whose namespaces it shares has ended, or is to end.
    Severed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    pub state: TaskState,
    /// When `state` began, by the clock of whoever reported it.
    pub since: Timestamp,
    /// Why the task is not running; `None` only while it runs or makes plain progress.
    pub cause: Option<Cause>,
    pub health: Health,
    /// The container's first process, in the host's pid namespace.
    pub pid: Option<u32>,
    pub address: Option<Ipv4Addr>,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    /// Its processes stand still.
    #[serde(default)]
    pub paused: bool,
}

/// Only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskState {
    New,
    /// Waits for a node or for a moment; its cause says which.
    Pending,
    /// Bound to a node, whose agent has not taken it up yet.
    Assigned,
    /// The agent fetches the image.
    Preparing,
    Starting,
    Running,
    /// Ended by itself with exit code 0.
    Complete,
    /// Ended by itself otherwise, or became unhealthy and was stopped.
    Failed,
    /// Could not be made: the image, the spec or the host forbids it.
    Rejected,
    /// Ended because it was told to.
    Shutdown,
    /// Its node is lost; whether it still runs is not known.
    Orphaned,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// It has no healthcheck.
    #[default]
    None,
    /// No probe has decided yet.
    Starting,
    Healthy,
    Unhealthy,
}

/// What an agent tells of one of its tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    pub task: TaskId,
    pub status: TaskStatus,
}

impl TaskState {
    pub fn is_terminal(self) -> bool {
        self >= TaskState::Complete
    }
}

impl Task {
    /// `web.2`: the replica's name within its stack.
    pub fn name(&self) -> String {
        format!("{}.{}", self.service.name, self.slot)
    }

    /// Serves: running, and not known to be unwell.
    pub fn is_up(&self) -> bool {
        self.status.is_up()
    }
}

impl TaskStatus {
    pub fn new(state: TaskState, since: Timestamp) -> Self {
        Self {
            state,
            since,
            cause: None,
            health: Health::None,
            pid: None,
            address: None,
            started: None,
            finished: None,
            paused: false,
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == TaskState::Running && matches!(self.health, Health::None | Health::Healthy)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TaskState::New => "New",
            TaskState::Pending => "Pending",
            TaskState::Assigned => "Assigned",
            TaskState::Preparing => "Preparing",
            TaskState::Starting => "Starting",
            TaskState::Running => "Running",
            TaskState::Complete => "Complete",
            TaskState::Failed => "Failed",
            TaskState::Rejected => "Rejected",
            TaskState::Shutdown => "Shutdown",
            TaskState::Orphaned => "Orphaned",
        })
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::None => "-",
            Health::Starting => "starting",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        })
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            StopReason::ScaledDown => "the service was scaled down",
            StopReason::Updated => "a newer spec takes its place",
            StopReason::Removed => "the service was removed",
            StopReason::Moved => "the slot moved to another node",
            StopReason::Restarted => "it was to be restarted",
            StopReason::Severed => "the container whose namespaces it shares ended",
        })
    }
}
