//! A cluster without a cluster: the log, the moment, and agents that do what they are told.

use std::{sync::Arc, time::Duration};

use roster_proto::{
    cause::Cause,
    id::{NodeId, ServiceId, Version},
    node::{Availability, Capacity, NodeDescription, NodeState},
    spec::{RestartCondition, ServiceSpec, StackSpec},
    task::{Desired, Task, TaskReport, TaskState, TaskStatus},
    time::Timestamp,
};

use crate::{
    plan::{self, Plan},
    state::{
        ClusterState, OneOff,
        command::{Change, Command, Entry, Outcome},
    },
};

#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) state: ClusterState,
    pub(crate) now: Timestamp,
    pub(crate) log: Vec<(Version, Entry)>,
    seed: u64,
}

pub(crate) fn node_id(name: &str) -> NodeId {
    name.parse().expect("a node name")
}

pub(crate) fn service_id(name: &str) -> ServiceId {
    ServiceId::new("s".parse().expect("a stack name"), name.parse().expect("a service name"))
}

impl World {
    pub(crate) fn apply(&mut self, command: Command) -> Outcome {
        let version = Version(self.state.version.0 + 1);
        let entry = Entry::new(self.now, command);
        let applied = self.state.apply(version, &entry);
        self.log.push((version, entry));
        applied.outcome
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now.plus(by);
    }

    pub(crate) fn register(&mut self, node: &str, capacity: Capacity) -> Outcome {
        self.describe(node, NodeDescription { capacity, ..NodeDescription::default() })
    }

    pub(crate) fn describe(&mut self, node: &str, description: NodeDescription) -> Outcome {
        let description = NodeDescription { hostname: node.to_owned(), ..description };
        let registered = self.apply(Command::RegisterNode { node: node_id(node), description: description.into() });
        let settled = self.set_node(node, NodeState::Ready);
        if settled == Outcome::Unchanged { registered } else { settled }
    }

    pub(crate) fn set_node(&mut self, node: &str, state: NodeState) -> Outcome {
        let id = node_id(node);
        match state {
            NodeState::Down => self.apply(Command::SetNodesDown { nodes: vec![id] }),
            NodeState::Ready => {
                let generation = self.state.nodes.get(&id).map_or(Version(0), |node| node.generation);
                self.apply(Command::SettleNode { node: id, generation })
            }
        }
    }

    pub(crate) fn set_availability(&mut self, node: &str, availability: Availability) -> Outcome {
        self.apply(Command::SetAvailability { node: node_id(node), availability })
    }

    pub(crate) fn put(&mut self, services: &[(&str, ServiceSpec)], prune: bool) -> Outcome {
        let stack = stack_of(services);
        self.apply(Command::PutStack { stack, prune, base: None })
    }

    /// One task of a service's spec, as `rctl run` makes it.
    pub(crate) fn once(&mut self, name: &str, of: &str, remove_when_ended: bool) -> Outcome {
        let Some(service) = self.state.services.get(&service_id(of)) else { return Outcome::Unchanged };
        let mut spec = ServiceSpec::of_image(service.spec.task.image.clone(), 1);
        spec.task.resources = service.spec.task.resources.clone();
        spec.restart.condition = RestartCondition::Never;
        let one_off = OneOff { of: service_id(of).name, remove_when_ended };
        self.apply(Command::RunOnce { service: service_id(name), one_off, spec: Box::new(spec) })
    }

    /// One plan, without applying it.
    pub(crate) fn think(&mut self) -> Plan {
        self.seed += 1;
        plan::plan(&self.state, self.now, self.seed)
    }

    /// One plan, applied; and planned again, which must yield nothing.
    pub(crate) fn plan(&mut self) -> Vec<Change> {
        let plan = self.think();
        if plan.changes.is_empty() {
            return plan.changes;
        }
        let outcome = self.apply(Command::ApplyPlan { base: plan.base, changes: plan.changes.clone() });
        assert_eq!(outcome, Outcome::Applied);
        let again = self.think();
        assert_eq!(again.changes, [], "planned again right after, after {:#?}", plan.changes);
        plan.changes
    }

    /// Every agent that answers does at once what it is told; true when something moved.
    pub(crate) fn obey(&mut self) -> bool {
        let nodes: Vec<NodeId> =
            self.state.nodes.values().filter(|n| n.state == NodeState::Ready).map(|n| n.id.clone()).collect();
        let mut moved = false;
        for node in nodes {
            let told = |task: &Arc<Task>| {
                let state = match task.desired {
                    Desired::Stop(_) => TaskState::Shutdown,
                    Desired::Run if task.status.state < TaskState::Running => TaskState::Running,
                    Desired::Run => return None,
                };
                Some(TaskReport { task: task.id.clone(), status: TaskStatus::new(state, self.now) })
            };
            let reports: Vec<TaskReport> = self.state.tasks_on(&node).filter_map(told).collect();
            moved |= self.apply(Command::Report { node, reports }) == Outcome::Applied;
        }
        moved
    }

    /// The agent of the task's node reports this of it.
    pub(crate) fn report(&mut self, task: &Task, state: TaskState, cause: Option<Cause>) -> Outcome {
        let mut status = TaskStatus::new(state, self.now);
        status.cause = cause;
        self.report_status(task, status)
    }

    pub(crate) fn report_status(&mut self, task: &Task, status: TaskStatus) -> Outcome {
        let Some(node) = task.node.clone() else { return Outcome::Unchanged };
        self.apply(Command::Report { node, reports: vec![TaskReport { task: task.id.clone(), status }] })
    }
}

pub(crate) fn stack_of(services: &[(&str, ServiceSpec)]) -> StackSpec {
    let services = services.iter().map(|(name, spec)| (service_id(name).name, spec.clone())).collect();
    StackSpec { name: service_id("x").stack, services }
}
