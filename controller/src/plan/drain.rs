//! Moving tasks off nodes that are being drained: each is stopped once another node has room for it, and its slot is
//! refilled there when it has ended.

use std::sync::Arc;

use roster_proto::{
    id::{NodeId, Slot},
    node::{Availability, NodeState},
    task::{Desired, StopReason, Task},
};

use super::{
    draft::Draft,
    schedule::{Ask, Hosts},
    wanted::Wanted,
};
use crate::state::{ClusterState, command::Change};

pub(super) fn tend(draft: &mut Draft) {
    let draining = draft.state.nodes.values().filter(|node| node.availability == Availability::Drain);
    let nodes: Vec<NodeId> = draining.map(|node| node.id.clone()).collect();
    if nodes.is_empty() {
        return;
    }
    // Room is set aside for what is on its way already, without taking it from what this pass placed for good.
    let mut room = draft.hosts.clone();
    let moving = StopReason::Moved;
    for task in on(&draft.state, &nodes).filter(|task| task.desired == Desired::Stop(moving.clone())) {
        set_aside(&draft.state, &mut room, task);
    }
    let staying: Vec<Arc<Task>> = on(&draft.state, &nodes)
        .filter(|task| task.desired == Desired::Run && answers(&draft.state, task) && alone(&draft.state, task))
        .cloned()
        .collect();
    for task in staying {
        if draft.full() {
            return;
        }
        if set_aside(&draft.state, &mut room, &task) {
            draft.push(Change::StopTask { task: task.id.clone(), reason: StopReason::Moved });
        }
    }
}

fn on<'a>(state: &'a ClusterState, nodes: &'a [NodeId]) -> impl Iterator<Item = &'a Arc<Task>> {
    nodes.iter().flat_map(|node| state.tasks_on(node))
}

fn answers(state: &ClusterState, task: &Task) -> bool {
    let node = task.node.as_ref().and_then(|node| state.nodes.get(node));
    node.is_some_and(|node| node.state == NodeState::Ready)
}

/// Not in the middle of a hand-over.
fn alone(state: &ClusterState, task: &Task) -> bool {
    state.tasks_in(&task.service, &task.slot).filter(|other| !other.status.state.is_terminal()).count() == 1
}

fn set_aside(state: &ClusterState, room: &mut Hosts, task: &Task) -> bool {
    let Some(service) = state.services.get(&task.service) else { return false };
    let movable = matches!(task.slot, Slot::Replica(_)) && Wanted::of(state, service).contains(&task.slot);
    movable && Ask::of(service, &task.slot, service.spec_version).is_some_and(|ask| room.take(&ask).is_some())
}
