//! What travels between a node and the controller.

use std::sync::Arc;

use super::{ConvertError, list, name, required};
use crate::{
    assignment::{Assignment, AssignmentDiff, AssignmentSet},
    id::Version,
    spec::TaskSpec,
    wire,
};

impl From<Assignment> for wire::Assignment {
    fn from(assignment: Assignment) -> Self {
        Self {
            task: assignment.task.into(),
            service: assignment.service.into(),
            slot: Some(assignment.slot.into()),
            desired: Some(assignment.desired.into()),
            spec: Some(TaskSpec::clone(&assignment.spec).into()),
            ports: assignment.ports.into_iter().map(Into::into).collect(),
            paused: assignment.paused,
            shares_with: assignment.shares_with.map(Into::into),
        }
    }
}

impl TryFrom<wire::Assignment> for Assignment {
    type Error = ConvertError;
    fn try_from(assignment: wire::Assignment) -> Result<Self, ConvertError> {
        Ok(Self {
            task: name("task", &assignment.task)?,
            service: name("service", &assignment.service)?,
            slot: required("slot", assignment.slot)?,
            desired: required("desired", assignment.desired)?,
            spec: Arc::new(required("spec", assignment.spec)?),
            ports: list("ports", assignment.ports)?,
            paused: assignment.paused,
            shares_with: assignment.shares_with.map(|id| name("shares_with", &id)).transpose()?,
        })
    }
}

impl From<AssignmentSet> for wire::AssignmentSet {
    fn from(set: AssignmentSet) -> Self {
        Self {
            generation: set.generation.into(),
            tasks: set.tasks.into_values().map(Into::into).collect(),
            kept: set.kept.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::AssignmentSet> for AssignmentSet {
    type Error = ConvertError;
    fn try_from(set: wire::AssignmentSet) -> Result<Self, ConvertError> {
        let tasks: Vec<Assignment> = list("tasks", set.tasks)?;
        Ok(Self {
            generation: Version(set.generation),
            tasks: tasks.into_iter().map(|assignment| (assignment.task.clone(), assignment)).collect(),
            kept: set.kept.iter().map(|id| name("kept", id)).collect::<Result<_, _>>()?,
        })
    }
}

impl From<AssignmentDiff> for wire::AssignmentDiff {
    fn from(diff: AssignmentDiff) -> Self {
        Self {
            base: diff.base.into(),
            generation: diff.generation.into(),
            put: diff.put.into_iter().map(Into::into).collect(),
            remove: diff.remove.into_iter().map(Into::into).collect(),
            keep: diff.keep.into_iter().map(Into::into).collect(),
            drop: diff.drop.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::AssignmentDiff> for AssignmentDiff {
    type Error = ConvertError;
    fn try_from(diff: wire::AssignmentDiff) -> Result<Self, ConvertError> {
        Ok(Self {
            base: Version(diff.base),
            generation: Version(diff.generation),
            put: list("put", diff.put)?,
            remove: diff.remove.iter().map(|id| name("remove", id)).collect::<Result<_, _>>()?,
            keep: diff.keep.iter().map(|id| name("keep", id)).collect::<Result<_, _>>()?,
            drop: diff.drop.iter().map(|id| name("drop", id)).collect::<Result<_, _>>()?,
        })
    }
}
