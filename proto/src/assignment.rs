//! Everything one node should run, versioned.
//!
//! A session begins with a whole set; later changes travel as chained increments, each naming the generation it
//! builds on. The agent's own code only ever sees whole sets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{ServiceId, Slot, TaskId, Version},
    spec::{Protocol, TaskSpec},
    task::Desired,
};

/// One task as its node must run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub task: TaskId,
    pub service: ServiceId,
    pub slot: Slot,
    pub desired: Desired,
    pub spec: Arc<TaskSpec>,
    /// The spec's ports with every host port decided.
    pub ports: Vec<PublishedPort>,
    /// Its processes are to stand still.
    #[serde(default)]
    pub paused: bool,
    /// The task of this node whose namespaces it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares_with: Option<TaskId>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    pub published: u16,
    pub target: u16,
    pub protocol: Protocol,
    pub host_ip: Option<std::net::Ipv4Addr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentSet {
    pub generation: Version,
    pub tasks: BTreeMap<TaskId, Assignment>,
    /// Failed tasks whose containers are kept for inspection: of each slot the last.
    #[serde(default)]
    pub kept: BTreeSet<TaskId>,
}

/// Turns the set of generation `base` into the one of `generation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignmentDiff {
    pub base: Version,
    pub generation: Version,
    pub put: Vec<Assignment>,
    pub remove: Vec<TaskId>,
    pub keep: Vec<TaskId>,
    pub drop: Vec<TaskId>,
}

/// An increment that does not fit the set it was applied to; the session asks for a whole set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the increment builds on generation {base}, this set is at {have}")]
pub struct DiffMismatch {
    pub base: Version,
    pub have: Version,
}

impl Assignment {
    /// `web.2`: the replica's name within its stack.
    pub fn name(&self) -> String {
        format!("{}.{}", self.service.name, self.slot)
    }
}

impl AssignmentSet {
    pub fn diff_to(&self, next: &AssignmentSet) -> AssignmentDiff {
        AssignmentDiff {
            base: self.generation,
            generation: next.generation,
            put: next
                .tasks
                .iter()
                .filter(|(id, assignment)| self.tasks.get(*id) != Some(*assignment))
                .map(|(_, assignment)| assignment.clone())
                .collect(),
            remove: self.tasks.keys().filter(|id| !next.tasks.contains_key(*id)).cloned().collect(),
            keep: next.kept.difference(&self.kept).cloned().collect(),
            drop: self.kept.difference(&next.kept).cloned().collect(),
        }
    }

    pub fn apply(&mut self, diff: AssignmentDiff) -> Result<(), DiffMismatch> {
        if diff.base != self.generation {
            return Err(DiffMismatch { base: diff.base, have: self.generation });
        }
        for id in &diff.remove {
            self.tasks.remove(id);
        }
        for assignment in diff.put {
            self.tasks.insert(assignment.task.clone(), assignment);
        }
        self.kept.retain(|id| !diff.drop.contains(id));
        self.kept.extend(diff.keep);
        self.generation = diff.generation;
        Ok(())
    }
}
