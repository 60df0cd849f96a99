//! The invariants, as a function: what is wrong with a state, and what a plan would make wrong.

use std::{collections::BTreeSet, fmt};

use roster_proto::{
    id::{NodeId, ServiceId, Slot, TaskId},
    node::Node,
    task::{Desired, Task, TaskState},
    time::Timestamp,
};

use super::Plan;
use crate::state::{ClusterState, command::Change, overlap};

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// More than one task of the slot is meant to run, and it is not a hand-over from one spec to the next.
    SlotTakenTwice {
        service: ServiceId,
        slot: Slot,
    },
    CpuOverpromised {
        node: NodeId,
    },
    MemoryOverpromised {
        node: NodeId,
    },
    PortTakenTwice {
        node: NodeId,
        port: u16,
    },
    /// Pending or ended badly, and nothing says why.
    NoCause {
        task: TaskId,
    },
    /// Two tasks may run in the slot of a singleton.
    SingletonTwice {
        service: ServiceId,
        slot: Slot,
    },
    /// The plan gives up a singleton that may still run.
    SingletonNotFenced {
        task: TaskId,
    },
    /// The plan gives up a task that the brake holds where it is.
    Braked {
        task: TaskId,
    },
    /// Bound but Pending, or free but further.
    HalfBound {
        task: TaskId,
    },
    /// It shares the namespaces of a container on another node.
    ApartFromPartner {
        task: TaskId,
    },
    UnknownSpec {
        task: TaskId,
    },
    UnknownNode {
        task: TaskId,
    },
    /// One plan binds a task twice, or one that was bound before.
    AssignedTwice {
        task: TaskId,
    },
    /// A change of the plan does nothing when it is applied.
    NoEffect {
        change: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::SlotTakenTwice { service, slot } => write!(f, "two tasks are to run in slot {service}.{slot}"),
            Violation::CpuOverpromised { node } => write!(f, "more cpu of node {node} is reserved than it has"),
            Violation::MemoryOverpromised { node } => write!(f, "more memory of node {node} is reserved than it has"),
            Violation::PortTakenTwice { node, port } => write!(f, "two services publish port {port} of node {node}"),
            Violation::NoCause { task } => write!(f, "nothing says why task {task} does not run"),
            Violation::SingletonTwice { service, slot } => {
                write!(f, "two tasks may run in slot {service}.{slot} of a singleton")
            }
            Violation::SingletonNotFenced { task } => write!(f, "singleton {task} is given up, but may still run"),
            Violation::Braked { task } => write!(f, "task {task} is moved in spite of the brake"),
            Violation::HalfBound { task } => write!(f, "task {task} is half bound to a node"),
            Violation::ApartFromPartner { task } => {
                write!(f, "task {task} is not where the one is whose namespaces it shares")
            }
            Violation::UnknownSpec { task } => write!(f, "the spec of task {task} is unknown"),
            Violation::UnknownNode { task } => write!(f, "the node of task {task} is unknown"),
            Violation::AssignedTwice { task } => write!(f, "task {task} is bound twice"),
            Violation::NoEffect { change } => write!(f, "a change has no effect: {change}"),
        }
    }
}

/// Everything that is wrong with the state.
pub fn check(state: &ClusterState) -> Vec<Violation> {
    let mut violations = Vec::new();
    state.tasks.values().for_each(|task| check_task(state, task, &mut violations));
    state.services.keys().for_each(|service| check_slots(state, service, &mut violations));
    state.nodes.values().for_each(|node| check_node(state, node, &mut violations));
    violations
}

/// What applying the plan would make wrong that was not so before.
pub fn check_plan(state: &ClusterState, plan: &Plan, now: Timestamp) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut after = state.clone();
    let mut assigned = BTreeSet::new();
    for change in &plan.changes {
        if let Change::AssignTask { task, .. } = change {
            let bound = state.tasks.get(task).is_some_and(|task| task.node.is_some());
            if bound || !assigned.insert(task) {
                violations.push(Violation::AssignedTwice { task: task.clone() });
            }
        }
        if let Change::OrphanTask { task, .. } = change {
            violations.extend(check_orphan(&after, task, now));
        }
        let before = after.clone();
        after.rehearse(now, change);
        let same =
            before.tasks.ptr_eq(&after.tasks) && before.services.ptr_eq(&after.services) && before.brake == after.brake;
        if same {
            violations.push(Violation::NoEffect { change: format!("{change:?}") });
        }
    }
    let known: BTreeSet<Violation> = check(state).into_iter().collect();
    violations.extend(check(&after).into_iter().filter(|violation| !known.contains(violation)));
    violations
}

fn check_orphan(state: &ClusterState, id: &TaskId, now: Timestamp) -> Option<Violation> {
    let task = state.tasks.get(id)?;
    let node = task.node.as_ref().and_then(|node| state.nodes.get(node))?;
    let singleton = state.task_spec(task).is_some_and(|spec| spec.singleton);
    if singleton && !node.fenced {
        return Some(Violation::SingletonNotFenced { task: id.clone() });
    }
    let braked = state.brake.as_ref().is_some_and(|brake| brake.holds(&node.id, now));
    (braked && task.desired == Desired::Run).then(|| Violation::Braked { task: id.clone() })
}

fn check_task(state: &ClusterState, task: &Task, violations: &mut Vec<Violation>) {
    let id = || task.id.clone();
    let badly = matches!(
        task.status.state,
        TaskState::Pending | TaskState::Failed | TaskState::Rejected | TaskState::Shutdown | TaskState::Orphaned
    );
    if badly && task.status.cause.is_none() {
        violations.push(Violation::NoCause { task: id() });
    }
    let ended = task.status.state.is_terminal();
    if !ended && task.node.is_some() != (task.status.state >= TaskState::Assigned) {
        violations.push(Violation::HalfBound { task: id() });
    }
    let partner = task.shares_with.as_ref().and_then(|partner| state.tasks.get(partner));
    if !ended && partner.is_some_and(|partner| partner.node != task.node) {
        violations.push(Violation::ApartFromPartner { task: id() });
    }
    if state.task_spec(task).is_none() {
        violations.push(Violation::UnknownSpec { task: id() });
    }
    // A node that was removed lives on in the history of its tasks.
    if !ended && task.node.as_ref().is_some_and(|node| !state.nodes.contains_key(node)) {
        violations.push(Violation::UnknownNode { task: id() });
    }
}

fn check_slots(state: &ClusterState, service: &ServiceId, violations: &mut Vec<Violation>) {
    for slot in state.slots_of(service) {
        let may_run = |task: &&std::sync::Arc<Task>| !task.status.state.is_terminal() && task.node.is_some();
        let singleton = |task: &std::sync::Arc<Task>| state.task_spec(task).is_some_and(|spec| spec.singleton);
        if state.tasks_in(service, slot).filter(may_run).count() > 1
            && state.tasks_in(service, slot).filter(may_run).any(singleton)
        {
            violations.push(Violation::SingletonTwice { service: service.clone(), slot: slot.clone() });
        }
        let wanted = |task: &&std::sync::Arc<Task>| !task.status.state.is_terminal() && task.desired == Desired::Run;
        let running: Vec<_> = state.tasks_in(service, slot).filter(wanted).collect();
        // To a newer spec, or off a node that is or was being drained.
        let handed_over = matches!(running.as_slice(), [old, new] if old.spec_version <= new.spec_version
            && new.replaces.is_some() && old.node.is_some() && old.node != new.node
            || old.spec_version < new.spec_version);
        if running.len() > 1 && !handed_over {
            violations.push(Violation::SlotTakenTwice { service: service.clone(), slot: slot.clone() });
        }
    }
}

fn check_node(state: &ClusterState, node: &Node, violations: &mut Vec<Violation>) {
    let (mut cpus, mut memory) = (0_u64, 0_u64);
    let mut ports: Vec<(&ServiceId, &roster_proto::assignment::PublishedPort)> = Vec::new();
    for task in state.tasks_on(&node.id) {
        let Some(spec) = state.task_spec(task) else { continue };
        cpus = cpus.saturating_add(spec.resources.reservations.nano_cpus.unwrap_or(0));
        memory = memory.saturating_add(spec.resources.reservations.memory.unwrap_or(0));
        ports.extend(state.task_ports(task).iter().map(|port| (&task.service, port)));
    }
    if cpus > node.description.capacity.nano_cpus {
        violations.push(Violation::CpuOverpromised { node: node.id.clone() });
    }
    if memory > node.description.capacity.memory {
        violations.push(Violation::MemoryOverpromised { node: node.id.clone() });
    }
    ports.sort_by_key(|(_, port)| (port.protocol, port.published));
    ports.dedup();
    for same in ports.chunk_by(|(_, a), (_, b)| (a.protocol, a.published) == (b.protocol, b.published)) {
        let twice = same.iter().enumerate().any(|(i, (service, port))| {
            same[..i].iter().any(|(other, held)| other != service && overlap(held.host_ip, port.host_ip))
        });
        if let (true, Some((_, port))) = (twice, same.first()) {
            violations.push(Violation::PortTakenTwice { node: node.id.clone(), port: port.published });
        }
    }
}
