//! Forgetting what has ended: old attempts beyond a bounded history, slots that no longer exist, removed services.

use std::sync::Arc;

use roster_proto::{
    id::{Slot, TaskId},
    task::Task,
};

use super::{draft::Draft, wanted::Wanted};
use crate::state::{ClusterState, Service, command::Change};

/// Ended tasks kept in each slot beside its current one.
pub const HISTORY: usize = 4;

pub(super) fn tend(draft: &mut Draft) {
    let services: Vec<Arc<Service>> = draft.state.services.values().cloned().collect();
    for service in services {
        let wanted = Wanted::of(&draft.state, &service);
        let slots: Vec<&Slot> = draft.state.slots_of(&service.id).collect();
        let done: Vec<TaskId> = slots
            .into_iter()
            .flat_map(|slot| superfluous(&draft.state, &service, slot, wanted.contains(slot)))
            .collect();
        for task in done {
            if draft.full() {
                return;
            }
            draft.push(Change::RemoveTask { task });
        }
        if service.removing && draft.state.tasks_of(&service.id).next().is_none() && !draft.full() {
            draft.push(Change::ForgetService { service: service.id.clone() });
        }
    }
}

fn superfluous(state: &ClusterState, service: &Service, slot: &Slot, wanted: bool) -> Vec<TaskId> {
    let mut tasks: Vec<&Arc<Task>> = state.tasks_in(&service.id, slot).collect();
    let mut kept = 0;
    if wanted {
        tasks.pop();
        kept = HISTORY;
    }
    tasks.retain(|task| task.status.state.is_terminal());
    tasks.truncate(tasks.len().saturating_sub(kept));
    tasks.into_iter().map(|task| task.id.clone()).collect()
}
