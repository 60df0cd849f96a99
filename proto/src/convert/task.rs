//! Tasks and their statuses.

use super::{ConvertError, address, enumeration, name, optional, required, twin_enum};
use crate::{
    id::{Slot, Version},
    task::{Desired, Health, StopReason, Task, TaskReport, TaskState, TaskStatus},
    time::Timestamp,
    wire,
};

twin_enum!(wire::StopReason, StopReason, "reason", {
    ScaledDown <=> ScaledDown, Updated <=> Updated, Removed <=> Removed, Moved <=> Moved,
    Restarted <=> Restarted, Severed <=> Severed,
});
twin_enum!(wire::TaskState, TaskState, "state", {
    New <=> New, Pending <=> Pending, Assigned <=> Assigned, Preparing <=> Preparing, Starting <=> Starting,
    Running <=> Running, Complete <=> Complete, Failed <=> Failed, Rejected <=> Rejected, Shutdown <=> Shutdown,
    Orphaned <=> Orphaned,
});
twin_enum!(wire::Health, Health, "health", {
    None <=> None, Starting <=> Starting, Healthy <=> Healthy, Unhealthy <=> Unhealthy,
});

impl From<Slot> for wire::Slot {
    fn from(slot: Slot) -> Self {
        use wire::slot::Kind;
        Self {
            kind: Some(match slot {
                Slot::Replica(number) => Kind::Replica(number),
                Slot::Node(node) => Kind::Node(node.into()),
            }),
        }
    }
}

impl TryFrom<wire::Slot> for Slot {
    type Error = ConvertError;
    fn try_from(slot: wire::Slot) -> Result<Self, ConvertError> {
        use wire::slot::Kind;
        match slot.kind.ok_or_else(|| ConvertError::missing("kind"))? {
            Kind::Replica(0) => Err(ConvertError::new("replica", "slots are counted from 1")),
            Kind::Replica(number) => Ok(Slot::Replica(number)),
            Kind::Node(node) => Ok(Slot::Node(name("node", &node)?)),
        }
    }
}

impl From<Desired> for wire::Desired {
    fn from(desired: Desired) -> Self {
        Self {
            stop: match desired {
                Desired::Run => None,
                Desired::Stop(reason) => Some(wire::StopReason::from(reason).into()),
            },
        }
    }
}

impl TryFrom<wire::Desired> for Desired {
    type Error = ConvertError;
    fn try_from(desired: wire::Desired) -> Result<Self, ConvertError> {
        match desired.stop {
            None => Ok(Desired::Run),
            Some(reason) => enumeration::<wire::StopReason, _>("stop", reason).map(Desired::Stop),
        }
    }
}

impl From<Task> for wire::Task {
    fn from(task: Task) -> Self {
        Self {
            id: task.id.into(),
            service: task.service.into(),
            slot: Some(task.slot.into()),
            spec_version: task.spec_version.into(),
            node: task.node.map(Into::into),
            desired: Some(task.desired.into()),
            status: Some(task.status.into()),
            created: task.created.into(),
            not_before: task.not_before.map(Into::into),
            attempt: task.attempt,
            replaces: task.replaces.map(Into::into),
            paused: task.paused,
            shares_with: task.shares_with.map(Into::into),
        }
    }
}

impl TryFrom<wire::Task> for Task {
    type Error = ConvertError;
    fn try_from(task: wire::Task) -> Result<Self, ConvertError> {
        Ok(Self {
            id: name("id", &task.id)?,
            service: name("service", &task.service)?,
            slot: required("slot", task.slot)?,
            spec_version: Version(task.spec_version),
            node: task.node.map(|node| name("node", &node)).transpose()?,
            desired: required("desired", task.desired)?,
            status: required("status", task.status)?,
            created: Timestamp(task.created),
            not_before: task.not_before.map(Timestamp),
            attempt: task.attempt,
            replaces: task.replaces.map(|id| name("replaces", &id)).transpose()?,
            paused: task.paused,
            shares_with: task.shares_with.map(|id| name("shares_with", &id)).transpose()?,
        })
    }
}

impl From<TaskStatus> for wire::TaskStatus {
    fn from(status: TaskStatus) -> Self {
        Self {
            state: wire::TaskState::from(status.state).into(),
            since: status.since.into(),
            cause: status.cause.map(Into::into),
            health: wire::Health::from(status.health).into(),
            pid: status.pid,
            address: status.address.map(|ip| ip.to_string()),
            started: status.started.map(Into::into),
            finished: status.finished.map(Into::into),
            paused: status.paused,
        }
    }
}

impl TryFrom<wire::TaskStatus> for TaskStatus {
    type Error = ConvertError;
    fn try_from(status: wire::TaskStatus) -> Result<Self, ConvertError> {
        Ok(Self {
            state: enumeration::<wire::TaskState, _>("state", status.state)?,
            since: Timestamp(status.since),
            cause: optional("cause", status.cause)?,
            health: enumeration::<wire::Health, _>("health", status.health)?,
            pid: status.pid,
            address: status.address.map(|ip| address("address", &ip)).transpose()?,
            started: status.started.map(Timestamp),
            finished: status.finished.map(Timestamp),
            paused: status.paused,
        })
    }
}

impl From<TaskReport> for wire::TaskReport {
    fn from(report: TaskReport) -> Self {
        Self { task: report.task.into(), status: Some(report.status.into()) }
    }
}

impl TryFrom<wire::TaskReport> for TaskReport {
    type Error = ConvertError;
    fn try_from(report: wire::TaskReport) -> Result<Self, ConvertError> {
        Ok(Self { task: name("task", &report.task)?, status: required("status", report.status)? })
    }
}
