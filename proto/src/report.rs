//! What the controller tells people: services as they are, plans before they happen, events as they come.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    assignment::PublishedPort,
    cause::Cause,
    id::{ControllerName, NodeId, ServiceId, ServiceName, Slot, StackName, TaskId, Version},
    spec::ServiceSpec,
    time::Timestamp,
};

/// A service with the count of its tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    pub id: ServiceId,
    pub spec: ServiceSpec,
    /// Of the last change to the spec.
    pub version: Version,
    /// Of the last change that replaces tasks.
    pub spec_version: Version,
    pub ports: Vec<PublishedPort>,
    /// Slots wanted.
    pub wanted: u32,
    /// Slots whose current task runs, and is healthy where it has a healthcheck.
    pub up: u32,
    /// Slots whose current task runs the latest task spec.
    pub updated: u32,
    /// Slots that ended for good, as their restart policy says.
    pub finished: u32,
    /// The service is being taken down.
    pub removing: bool,
    /// Nothing is left to do for it.
    pub converged: bool,
    /// What a rollout under way waits for.
    pub waits: Option<String>,
    pub created: Timestamp,
    pub updated_at: Timestamp,
    /// It is a one-off task of this service of its stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_off: Option<ServiceName>,
}

/// What an apply would do, computed against one version of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackPlan {
    pub stack: StackName,
    /// An apply that names this version is refused when the cluster's specs or nodes changed since.
    pub base: Version,
    pub services: Vec<ServicePlan>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    pub service: ServiceId,
    pub action: ServiceAction,
    pub fields: Vec<FieldChange>,
    pub slots: Vec<SlotPlan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceAction {
    Create,
    Update,
    Remove,
    Unchanged,
    /// Runs in the stack but is not in the file; only `--prune` removes it.
    NotInFile,
}

/// One field of a spec that differs. `None`: the field is not set on that side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// As in the Compose file: `deploy.replicas`, `environment.MODE`.
    pub path: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotPlan {
    pub slot: Slot,
    pub action: SlotAction,
    /// Where its task runs, or would be placed.
    pub node: Option<NodeId>,
    /// Why it could not be placed.
    pub cause: Option<Cause>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotAction {
    Keep,
    Start,
    Replace,
    Stop,
}

impl StackPlan {
    pub fn changes_anything(&self) -> bool {
        self.services
            .iter()
            .any(|service| !matches!(service.action, ServiceAction::Unchanged | ServiceAction::NotInFile))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The log position that caused it. Several events may share one.
    pub version: Version,
    pub at: Timestamp,
    pub subject: Subject,
    /// In words: `web.2 is Running on vm1`.
    pub message: String,
    pub cause: Option<Cause>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Subject {
    Stack {
        stack: StackName,
    },
    Service {
        service: ServiceId,
    },
    Task {
        task: TaskId,
        service: ServiceId,
        slot: Slot,
    },
    Node {
        node: NodeId,
    },
    Controller {
        controller: ControllerName,
    },
    /// The cluster as a whole.
    Cluster,
}

/// An image of one node's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    pub node: NodeId,
    /// Digest of the image's configuration, as Docker's image id: `sha256:…`.
    pub id: String,
    /// Names with tag that point to it.
    pub names: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    pub created: Option<String>,
    pub labels: BTreeMap<String, String>,
}

/// One line a container wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub task: TaskId,
    /// `web.2`.
    pub name: String,
    /// Nanoseconds since 1970.
    pub nanos: u64,
    pub stream: LogStream,
    /// Without its line end; bytes, for a container may write anything.
    #[serde(with = "lossy")]
    pub line: Vec<u8>,
    /// The line went on: too long to be kept in one piece.
    pub partial: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    Stdout,
    Stderr,
}

mod lossy {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(line: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(line))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        String::deserialize(deserializer).map(String::into_bytes)
    }
}
