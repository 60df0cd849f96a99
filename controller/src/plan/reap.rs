//! Forgetting what has ended: old attempts beyond a bounded history, slots that no longer exist, removed services, and
//! what ran once and was to be forgotten then.

use std::{sync::Arc, time::Duration};

use roster_proto::{
    id::{Slot, TaskId},
    task::Task,
};

use super::{draft::Draft, wanted::Wanted};
use crate::state::{ClusterState, Service, command::Change};

/// Ended tasks kept in each slot beside its current one, and beside the last that failed, whose container is there.
pub const HISTORY: usize = 4;

/// What is to be forgotten at its end stays so long, for those who watch it to see how that was.
pub const LINGER: Duration = Duration::from_secs(5);

pub(super) fn tend(draft: &mut Draft) {
    retire(draft);
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

/// Takes down what ran once, has ended, and is not to be kept.
fn retire(draft: &mut Draft) {
    let ends = |service: &&Arc<Service>| {
        !service.removing && service.one_off.as_ref().is_some_and(|one_off| one_off.remove_when_ended)
    };
    let ending: Vec<Arc<Service>> = draft.state.services.values().filter(ends).cloned().collect();
    for service in ending {
        let Some(last) = draft.state.newest_task(&service.id, &Slot::Replica(1)) else { continue };
        if !last.status.state.is_terminal() {
            continue;
        }
        let ended = last.status.finished.unwrap_or(last.status.since);
        // By a clock that is ahead of this one it would stay for as long as that is.
        if ended <= draft.now && ended.plus(LINGER) > draft.now {
            draft.wake_at(ended.plus(LINGER));
        } else if !draft.full() {
            draft.push(Change::Retire { service: service.id.clone() });
        }
    }
}

fn superfluous(state: &ClusterState, service: &Service, slot: &Slot, wanted: bool) -> Vec<TaskId> {
    let mut tasks: Vec<&Arc<Task>> = state.tasks_in(&service.id, slot).collect();
    let (mut kept, mut inspected) = (0, None);
    if wanted {
        tasks.pop();
        kept = HISTORY;
        inspected = state.kept_task(&service.id, slot).map(|task| &task.id);
    }
    tasks.retain(|task| task.status.state.is_terminal());
    tasks.truncate(tasks.len().saturating_sub(kept));
    tasks.into_iter().map(|task| &task.id).filter(|task| Some(*task) != inspected).cloned().collect()
}
