//! Containers that share another service's namespaces (`ipc: service:NAME`, `pid: service:NAME`): where they go, and when
//! they must be replaced.
//!
//! A replica goes with the same replica of the named service, a global task with that of the same node: onto its node,
//! once it runs. Who shares with whom is fixed when the task is bound; it is replaced when the other one ends.

use std::sync::Arc;

use roster_proto::{
    cause::Cause,
    id::{NodeId, ServiceId, Slot, Version},
    task::{Desired, StopReason, Task, TaskState},
};

use super::{draft::Draft, wanted::Wanted};
use crate::state::{ClusterState, Service, command::Change};

/// Whom a task of a slot is to share with.
pub(super) enum Partner {
    /// Nobody: its spec does not ask for it.
    None,
    Runs {
        task: Arc<Task>,
        node: NodeId,
    },
    Missing(Cause),
}

impl Partner {
    pub(super) fn of(state: &ClusterState, service: &Service, slot: &Slot, version: Version) -> Self {
        let Some(name) = service.specs.get(&version).and_then(|spec| spec.rights.shares_with()) else {
            return Partner::None;
        };
        let id = ServiceId { stack: service.id.stack.clone(), name: name.clone() };
        // One whose end was noticed here first, and is still to be told.
        let ends = |partner: &Task| state.tasks_in(&service.id, slot).any(|task| was_severed_from(task, partner));
        let task = state.current_task(&id, slot);
        match task.filter(|task| can_be_joined(task) && !ends(task)).and_then(|task| Some((task, task.node.clone()?))) {
            Some((task, node)) => Partner::Runs { task: Arc::clone(task), node },
            None => Partner::Missing(Cause::Partner { task: format!("{name}.{slot}") }),
        }
    }
}

/// Whether the service's tasks, by its latest spec or by one that some still run, share another's namespaces.
pub(super) fn shares(service: &Service) -> bool {
    service.specs.values().any(|spec| spec.rights.shares_with().is_some())
}

/// It waits for one that nobody wants: the other service has fewer replicas.
pub(super) fn is_surplus(state: &ClusterState, task: &Task) -> bool {
    let partner = state.task_spec(task).and_then(|spec| spec.rights.shares_with());
    let Some(name) = partner.filter(|_| task.node.is_none()) else { return false };
    let id = ServiceId { stack: task.service.stack.clone(), name: name.clone() };
    !state.services.get(&id).is_some_and(|partner| Wanted::of(state, partner).contains(&task.slot))
}

/// Its namespaces are to go, or gone.
pub(super) fn is_severed(state: &ClusterState, task: &Task) -> bool {
    let Some(partner) = &task.shares_with else { return false };
    !state.tasks.get(partner).is_some_and(|partner| can_be_joined(partner))
}

fn was_severed_from(task: &Task, partner: &Task) -> bool {
    task.shares_with.as_ref() == Some(&partner.id)
        && task.status.cause == Some(Cause::Stopped { reason: StopReason::Severed })
}

fn can_be_joined(task: &Task) -> bool {
    task.desired == Desired::Run && task.status.state == TaskState::Running
}

/// What was stopped after those that share with it had been looked at takes them along.
pub(super) fn tend(draft: &mut Draft) {
    let sharing: Vec<Arc<Service>> = draft.state.services.values().filter(|service| shares(service)).cloned().collect();
    for service in sharing {
        let severed: Vec<Arc<Task>> = draft
            .state
            .tasks_of(&service.id)
            .filter(|task| !task.status.state.is_terminal() && task.desired == Desired::Run)
            .filter(|task| draft.answers(task) && is_severed(&draft.state, task))
            .cloned()
            .collect();
        for task in severed {
            if draft.full() {
                return;
            }
            draft.push(Change::StopTask { task: task.id.clone(), reason: StopReason::Severed });
        }
    }
}
