//! The replicated state and the commands that change it. Pure and deterministic: every peer that applies the same
//! log holds the same state, and a command that was logged never panics here.
//!
//! Owns: what users want (services), what is known (tasks, nodes), the cluster itself (controllers, settings, whom it
//! trusts), the recent events and requests, and the indexes over them. Guarantees: a refused command leaves no trace but
//! [`ClusterState::version`] and its request's id; a request that comes again is answered as before and does nothing; task states only move forward; a
//! node's generation grows exactly when its assignment set changes; equal states encode to equal bytes.
//! Absent: clocks, randomness, files, and any decision about what to do next, which is [`crate::plan`]'s.

mod apply;
mod brake;
mod codec;
pub mod command;
pub mod controllers;
mod index;
mod limits;
mod ports;
mod requests;
mod security;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use imbl::{OrdMap, Vector};
use roster_proto::{
    assignment::{Assignment, AssignmentSet, PublishedPort},
    id::{NodeId, PeerId, ServiceId, ServiceName, Slot, TaskId, Version},
    node::{Node, NodeState},
    report::Event,
    spec::{ServiceSpec, TaskSpec},
    task::Task,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

pub use self::{
    apply::Applied,
    brake::{Brake, WINDOW as BRAKE_WINDOW},
    codec::CodecError,
    limits::{
        EVENTS_KEPT, MAX_AUTHORITIES, MAX_CONTROLLERS, MAX_LABEL_NAME, MAX_LABEL_VALUE, MAX_NODE_LABELS, MAX_NODES,
        MAX_REPLICAS, MAX_REVOKED, MAX_SERVICES, MAX_TOKENS, MAX_USERS, MAX_WANTED,
    },
    ports::AUTOMATIC_PORTS,
    requests::{MAX_REQUEST_ID, REQUESTS_KEPT},
    security::{AuthorityRecord, Grant, Holder, Secret, Security, TokenRecord, TokenRole, UserRecord, UserRole},
};
use self::{
    brake::Departed,
    controllers::{ControllerInfo, Settings},
    index::Index,
    requests::Requests,
};
pub(crate) use self::{brake::too_many, ports::overlap};

/// Clones are cheap: a reader keeps a whole version while the log moves on.
///
/// The maps are public to be read; only [`ClusterState::apply`] keeps the indexes in step with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterState {
    /// The log position of the last command, whatever its outcome was.
    pub version: Version,
    /// Of the last command that a plan's safety rests on: everything but the agents' reports.
    pub plan_base: Version,
    pub services: OrdMap<ServiceId, Arc<Service>>,
    pub tasks: OrdMap<TaskId, Arc<Task>>,
    pub nodes: OrdMap<NodeId, Arc<Node>>,
    /// Who is wanted as a member, and how.
    pub controllers: OrdMap<PeerId, Arc<ControllerInfo>>,
    pub settings: Settings,
    pub security: Arc<Security>,
    pub brake: Option<Brake>,
    departed: Departed,
    requests: Requests,
    /// Of the last change to specs or nodes: what a user's plan rests on.
    intent_base: Version,
    events: Vector<Arc<Event>>,
    index: Index,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub spec: ServiceSpec,
    /// Of the last change to the spec.
    pub version: Version,
    /// Of the last change to its task spec: a task of another spec version is outdated.
    pub spec_version: Version,
    /// Every task spec that some task still runs, and the latest.
    pub specs: BTreeMap<Version, Arc<TaskSpec>>,
    /// The latest spec's ports with every host port decided.
    pub ports: Vec<PublishedPort>,
    /// The same for every spec in `specs`: what an outdated task goes on publishing.
    pub published: BTreeMap<Version, Vec<PublishedPort>>,
    /// Being taken down: it goes when its last task has gone.
    pub removing: bool,
    pub created: Timestamp,
    pub updated_at: Timestamp,
    /// Set of what people run once: it has one slot, whose task is never followed by another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_off: Option<OneOff>,
}

/// A task of a service's spec that runs once, beside the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneOff {
    /// Of the same stack.
    pub of: ServiceName,
    /// It is forgotten once its task has ended.
    pub remove_when_ended: bool,
}

impl Service {
    /// The task spec that new tasks run.
    pub fn task_spec(&self) -> &TaskSpec {
        &self.spec.task
    }
}

impl ClusterState {
    /// Every task of the service that is kept, slot by slot, oldest first in each.
    pub fn tasks_of<'a>(&'a self, service: &ServiceId) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        self.index.slots(service).flat_map(|(_, tasks)| tasks)
    }

    /// The slots of the service that have tasks, in order.
    pub fn slots_of<'a>(&'a self, service: &ServiceId) -> impl Iterator<Item = &'a Slot> + use<'a> {
        self.index.slots(service).map(|(slot, _)| slot)
    }

    /// The tasks of one slot, oldest first.
    pub fn tasks_in<'a>(
        &'a self,
        service: &ServiceId,
        slot: &Slot,
    ) -> impl DoubleEndedIterator<Item = &'a Arc<Task>> + use<'a> {
        self.index.slot(service, slot).iter()
    }

    /// The task that stands for a slot: the newest that has not ended, else the newest.
    pub fn current_task(&self, service: &ServiceId, slot: &Slot) -> Option<&Arc<Task>> {
        let live = self.tasks_in(service, slot).rfind(|task| !task.status.state.is_terminal());
        live.or_else(|| self.newest_task(service, slot))
    }

    /// The task of the slot that was made last.
    pub fn newest_task(&self, service: &ServiceId, slot: &Slot) -> Option<&Arc<Task>> {
        self.tasks_in(service, slot).next_back()
    }

    /// The tasks bound to the node that have not ended.
    pub fn tasks_on<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        self.index.node(node)
    }

    /// The last task of the slot that ran and failed: its container is kept for inspection.
    pub fn kept_task(&self, service: &ServiceId, slot: &Slot) -> Option<&Arc<Task>> {
        self.index.kept(service, slot)
    }

    /// What the task runs; `None` only for a task that is not of this state.
    pub fn task_spec(&self, task: &Task) -> Option<&Arc<TaskSpec>> {
        self.services.get(&task.service)?.specs.get(&task.spec_version)
    }

    /// The host ports the task publishes.
    pub fn task_ports(&self, task: &Task) -> &[PublishedPort] {
        self.services.get(&task.service).and_then(|s| s.published.get(&task.spec_version)).map_or(&[], Vec::as_slice)
    }

    /// Whether a request of this id was applied before.
    pub fn has_answered(&self, request: &str) -> bool {
        self.requests.get(request).is_some()
    }

    pub fn node_is_ready(&self, node: &NodeId) -> bool {
        self.nodes.get(node).is_some_and(|node| node.state == NodeState::Ready)
    }

    /// Runs, is well as far as is known, and its node answers.
    pub fn is_up(&self, task: &Task) -> bool {
        task.is_up() && task.node.as_ref().is_some_and(|node| self.node_is_ready(node))
    }

    /// The last [`EVENTS_KEPT`] events, oldest first.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> + ExactSizeIterator {
        self.events.iter()
    }

    /// Everything the node should run or is still to stop. Empty, of generation 0, for a node that never registered.
    pub fn assignment_set(&self, node: &NodeId) -> AssignmentSet {
        let generation = self.nodes.get(node).map_or(Version(0), |node| node.generation);
        let assignment = |task: &Arc<Task>| {
            let assignment = Assignment {
                task: task.id.clone(),
                service: task.service.clone(),
                slot: task.slot.clone(),
                desired: task.desired.clone(),
                spec: Arc::clone(self.task_spec(task)?),
                ports: self.task_ports(task).to_vec(),
                paused: task.paused,
                shares_with: task.shares_with.clone(),
            };
            Some((task.id.clone(), assignment))
        };
        let tasks = self.tasks_on(node).filter_map(assignment).collect();
        AssignmentSet { generation, tasks, kept: self.index.kept_on(node).cloned().collect() }
    }
}
