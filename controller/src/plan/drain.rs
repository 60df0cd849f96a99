//! Moving tasks off nodes that are being drained, in the order and as many at once as their service is updated: either
//! each is stopped once another node has room for it, and its slot is refilled there when it has ended; or another is
//! started first, and takes over when it is up.
//!
//! A task that fits nowhere else stays, and says why. What runs once stays to its end, for it would not begin anew.

use std::{collections::BTreeMap, sync::Arc};

use roster_proto::{
    cause::Cause,
    id::{NodeId, ServiceId, Slot},
    node::{Availability, NodeState},
    spec::UpdateOrder,
    task::{Desired, StopReason, Task, TaskState},
};

use super::{
    draft::{Creation, Draft},
    rollout,
    schedule::{Ask, Hosts, MAX_REJECTIONS},
    slot,
    wanted::Wanted,
};
use crate::state::{ClusterState, Service, command::Change};

pub(super) fn tend(draft: &mut Draft) {
    let draining = draft.state.nodes.values().filter(|node| node.availability == Availability::Drain);
    let nodes: Vec<NodeId> = draining.map(|node| node.id.clone()).collect();
    let mut staying: BTreeMap<ServiceId, Vec<Arc<Task>>> = BTreeMap::new();
    for task in on(&draft.state, &nodes).filter(|task| stays(&draft.state, task)) {
        staying.entry(task.service.clone()).or_default().push(Arc::clone(task));
    }
    if staying.is_empty() {
        return;
    }
    let mut leaving = Leaving::off(draft, &nodes);
    let mut stuck = Vec::new();
    for (id, tasks) in staying {
        let Some(service) = draft.state.services.get(&id).cloned() else { continue };
        let wanted = Wanted::of(&draft.state, &service);
        let movable = |task: &&Arc<Task>| matches!(task.slot, Slot::Replica(_)) && wanted.contains(&task.slot);
        let at_once = match service.spec.update.parallelism {
            0 => usize::MAX,
            most => usize::try_from(most).unwrap_or(usize::MAX),
        };
        let mut moving = in_motion(&draft.state, &service, &wanted);
        for task in tasks.iter().filter(movable) {
            if draft.full() {
                return;
            }
            if has_failed_elsewhere(&draft.state, task) {
                slot::refill(draft, &service, &task.slot);
            } else if moving < at_once {
                match leaving.send(draft, &service, task) {
                    true => moving += 1,
                    false => stuck.push((Arc::clone(&service), Arc::clone(task))),
                }
            }
        }
    }
    explain(draft, &nodes, &stuck);
}

/// With the room that is left after all that this pass sent on its way, as the next pass will find it.
fn explain(draft: &mut Draft, nodes: &[NodeId], stuck: &[(Arc<Service>, Arc<Task>)]) {
    if stuck.is_empty() {
        return;
    }
    let leaving = Leaving::off(draft, nodes);
    for (service, task) in stuck {
        if draft.full() {
            return;
        }
        if let Some(cause) = leaving.why_not(service, task).filter(|cause| task.status.cause.as_ref() != Some(cause)) {
            draft.push(Change::Explain { task: task.id.clone(), cause });
        }
    }
}

/// Tasks that are stopped first take no room before they have ended: it is set aside, without taking it from what this
/// pass placed for good.
struct Leaving(Hosts);

impl Leaving {
    fn off(draft: &Draft, nodes: &[NodeId]) -> Self {
        let mut leaving = Self(draft.hosts.clone());
        let moving = StopReason::Moved;
        for task in on(&draft.state, nodes).filter(|task| task.desired == Desired::Stop(moving.clone())) {
            if let Some(service) = draft.state.services.get(&task.service) {
                leaving.set_aside(service, task);
            }
        }
        leaving
    }

    /// True when the task is on its way.
    fn send(&mut self, draft: &mut Draft, service: &Arc<Service>, task: &Arc<Task>) -> bool {
        match rollout::order(&draft.state, service, task) {
            UpdateOrder::StopFirst => {
                let moves = self.set_aside(service, task);
                if moves {
                    draft.push(Change::StopTask { task: task.id.clone(), reason: StopReason::Moved });
                }
                moves
            }
            UpdateOrder::StartFirst => self.start_beside(draft, service, task),
        }
    }

    fn start_beside(&mut self, draft: &mut Draft, service: &Arc<Service>, task: &Arc<Task>) -> bool {
        if !self.set_aside(service, task) {
            return false;
        }
        let Some(node) = draft.find_node(service, &task.slot, service.spec_version) else { return false };
        let creation = Creation {
            service: Arc::clone(service),
            slot: task.slot.clone(),
            attempt: 0,
            replaces: Some(task.id.clone()),
        };
        draft.create_on(creation, node);
        true
    }

    /// `None` when there is room for it after all.
    fn why_not(&self, service: &Service, task: &Task) -> Option<Cause> {
        let ask = Ask::of(service, &task.slot, service.spec_version)?;
        let rejections = self.0.explain(&ask);
        let all = rejections.len() == self.0.len().min(MAX_REJECTIONS);
        all.then_some(Cause::NoNode { rejections })
    }

    fn set_aside(&mut self, service: &Service, task: &Task) -> bool {
        Ask::of(service, &task.slot, service.spec_version).is_some_and(|ask| self.0.take(&ask).is_some())
    }
}

fn on<'a>(state: &'a ClusterState, nodes: &'a [NodeId]) -> impl Iterator<Item = &'a Arc<Task>> {
    nodes.iter().flat_map(|node| state.tasks_on(node))
}

/// Runs on a node that answers, and not in the middle of a hand-over.
fn stays(state: &ClusterState, task: &Task) -> bool {
    let node = task.node.as_ref().and_then(|node| state.nodes.get(node));
    let once = state.services.get(&task.service).is_some_and(|service| service.one_off.is_some());
    task.desired == Desired::Run
        && !once
        // It goes when the one it shares with does.
        && task.shares_with.is_none()
        && node.is_some_and(|node| node.state == NodeState::Ready)
        && state.tasks_in(&task.service, &task.slot).filter(|other| !other.status.state.is_terminal()).count() == 1
}

/// Another was started beside it, and ended. That one's restart policy says when the next one is.
fn has_failed_elsewhere(state: &ClusterState, task: &Task) -> bool {
    state.newest_task(&task.service, &task.slot).is_some_and(|newest| newest.id != task.id)
}

/// Slots of the service that are leaving their node and are not up again elsewhere. One whose task failed there counts
/// no more: it must not keep its siblings on a node that people want empty.
fn in_motion(state: &ClusterState, service: &Service, wanted: &Wanted) -> usize {
    let moves =
        |task: &Task| task.desired == Desired::Stop(StopReason::Moved) && task.status.state != TaskState::Orphaned;
    let moving = |slot: &&Slot| {
        let Some(task) = state.newest_task(&service.id, slot) else { return false };
        let before = task.replaces.as_ref().and_then(|before| state.tasks.get(before));
        let beside = |before: &Arc<Task>| before.desired == Desired::Run && !before.status.state.is_terminal();
        let starts = !task.status.state.is_terminal() && !task.is_up();
        moves(task) || starts && before.is_some_and(|before| beside(before) || moves(before))
    };
    state.slots_of(&service.id).filter(|slot| wanted.contains(slot)).filter(moving).count()
}
