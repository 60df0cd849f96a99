//! Services as people see them: the spec with the count of its tasks, computed afresh from the state.

use std::sync::Arc;

use roster_proto::{
    id::{ServiceId, Slot},
    report::ServiceView,
    task::{Desired, Task, TaskState},
    time::Timestamp,
};

use super::{restart, rollout, wanted::Wanted};
use crate::state::{ClusterState, Service};

/// `None` when there is no such service.
///
/// `converged` depends on the state alone, not on `now`, so that whoever watches the state never misses it. A slot
/// that failed for good counts as finished, but keeps the service from converging.
pub fn service_view(state: &ClusterState, id: &ServiceId, now: Timestamp) -> Option<ServiceView> {
    let service = state.services.get(id)?;
    let wanted = Wanted::of(state, service);
    let mut view = ServiceView {
        id: id.clone(),
        spec: service.spec.clone(),
        version: service.version,
        spec_version: service.spec_version,
        ports: service.ports.clone(),
        wanted: wanted.count(),
        up: 0,
        updated: 0,
        finished: 0,
        removing: service.removing,
        converged: !service.removing,
        waits: rollout::waits(state, service, &wanted, now),
        created: service.created,
        updated_at: service.updated_at,
        one_off: service.one_off.as_ref().map(|it| it.of.clone()),
    };
    for slot in wanted.slots() {
        count_slot(state, service, &slot, &mut view);
    }
    let surplus = state.slots_of(id).any(|slot| !wanted.contains(slot));
    view.converged &= !surplus;
    Some(view)
}

fn count_slot(state: &ClusterState, service: &Service, slot: &Slot, view: &mut ServiceView) {
    let Some(task) = state.current_task(&service.id, slot) else {
        view.converged = false;
        return;
    };
    let up = state.tasks_in(&service.id, slot).any(|task| state.is_up(task));
    let updated = task.spec_version == service.spec_version;
    let finished = updated && is_finished(service, task);
    let alone = state.tasks_in(&service.id, slot).filter(|task| !task.status.state.is_terminal()).count() <= 1;
    view.up += u32::from(up);
    view.updated += u32::from(updated);
    view.finished += u32::from(finished);
    let done = finished && task.status.state == TaskState::Complete;
    // What is to stop in a slot that is wanted has a successor to come.
    let stays = task.desired == Desired::Run;
    view.converged &= alone && updated && stays && (up || done);
}

/// The slot stays as its task ended.
fn is_finished(service: &Service, task: &Task) -> bool {
    let state = task.status.state;
    if service.one_off.is_some() {
        return state.is_terminal();
    }
    let gave_up = matches!(task.status.cause, Some(roster_proto::cause::Cause::GaveUp { .. }));
    let by_itself = matches!(state, TaskState::Complete | TaskState::Failed | TaskState::Rejected);
    task.desired == Desired::Run && (gave_up || (by_itself && restart::finished(&service.spec.restart, state)))
}

/// The task that stands for each slot of the service, in order of the slots.
pub fn current_tasks<'a>(state: &'a ClusterState, service: &ServiceId) -> Vec<&'a Arc<Task>> {
    state.slots_of(service).filter_map(|slot| state.current_task(service, slot)).collect()
}
