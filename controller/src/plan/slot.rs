//! One service's slots: stop what is surplus, refill what is empty, find a node for what waits.

use std::sync::Arc;

use roster_proto::{
    cause::Cause,
    id::{NodeId, Slot, TaskId},
    node::NodeState,
    task::{Desired, StopReason, Task, TaskState},
};

use super::{
    draft::{Creation, Draft},
    lost::{Whereabouts, whereabouts},
    restart::{self, Restart},
    rollout, sharing,
    wanted::Wanted,
};
use crate::state::{Service, command::Change};

/// How often a slot is looked at again in one pass. Stopping a task that was never bound ends it at once, and what
/// follows belongs to the same plan, as does what a hand-over that is called off leaves behind; twice is the longest
/// chain there is.
const LOOKS: usize = 3;

pub(super) fn tend_service(draft: &mut Draft, service: &Arc<Service>) {
    let wanted = Wanted::of(&draft.state, service);
    let mut surplus: Vec<Slot> =
        draft.state.slots_of(&service.id).filter(|slot| !wanted.contains(slot)).cloned().collect();
    surplus.reverse();
    for slot in &surplus {
        if draft.full() {
            return;
        }
        stop_surplus(draft, service, slot);
    }
    for slot in wanted.slots() {
        for _ in 0..LOOKS {
            if draft.full() {
                return;
            }
            if !tend(draft, service, &slot) {
                break;
            }
        }
    }
    rollout::tend(draft, service, &wanted);
}

fn stop_surplus(draft: &mut Draft, service: &Service, slot: &Slot) {
    let reason = match slot {
        _ if service.removing => StopReason::Removed,
        Slot::Node(node) if draft.state.nodes.get(node).is_some_and(|node| node.state == NodeState::Ready) => {
            StopReason::Moved
        }
        _ => StopReason::ScaledDown,
    };
    for task in live(draft, service, slot) {
        stop(draft, &task, reason.clone());
    }
}

/// Looks at one slot; true when it should be looked at again.
fn tend(draft: &mut Draft, service: &Arc<Service>, slot: &Slot) -> bool {
    let tasks = live(draft, service, slot);
    let mut lost = false;
    for task in tasks.iter().filter(|task| task.desired != Desired::Run) {
        lost |= orphan_if_lost(draft, &task.id);
    }
    if lost {
        return true;
    }
    let stopping = tasks.iter().any(|task| task.desired != Desired::Run);
    let running: Vec<&Arc<Task>> = tasks.iter().filter(|task| task.desired == Desired::Run).collect();
    match running.as_slice() {
        [] if stopping => false,
        [] => {
            refill(draft, service, slot);
            false
        }
        [task] => keep(draft, service, task),
        [older @ .., newest] => hand_over(draft, service, older, newest),
    }
}

/// The task that stands for the slot alone.
fn keep(draft: &mut Draft, service: &Arc<Service>, task: &Arc<Task>) -> bool {
    if task.node.is_none() {
        return wait(draft, service, task);
    }
    match whereabouts(&draft.state, draft.now, task) {
        Whereabouts::Lost(node) => move_away(draft, service, task, node),
        Whereabouts::Held(cause) => explain(draft, task, cause),
        Whereabouts::Known if sharing::is_severed(&draft.state, task) => stop(draft, task, StopReason::Severed),
        Whereabouts::Known if task.spec_version != service.spec_version && hand_over_failed(draft, service, task) => {
            refill(draft, service, &task.slot);
        }
        Whereabouts::Known => {}
    }
    false
}

/// A task of the latest spec was started beside this one, and ended.
fn hand_over_failed(draft: &Draft, service: &Service, task: &Task) -> bool {
    let newest = draft.state.newest_task(&service.id, &task.slot);
    newest.is_some_and(|newest| newest.id != task.id && newest.spec_version == service.spec_version)
}

/// A start-first rollout, or a move off a drained node: the older task goes when the newest has proved itself.
fn hand_over(draft: &mut Draft, service: &Arc<Service>, older: &[&Arc<Task>], newest: &Arc<Task>) -> bool {
    if newest.spec_version != service.spec_version {
        stop(draft, newest, rollout::outdated(&draft.state, service, newest));
        // The older one stands for the slot alone again.
        return true;
    }
    if newest.node.is_none() {
        return wait(draft, service, newest);
    }
    match whereabouts(&draft.state, draft.now, newest) {
        Whereabouts::Known => {}
        Whereabouts::Lost(node) => {
            move_away(draft, service, newest, node);
            return false;
        }
        Whereabouts::Held(cause) => {
            explain(draft, newest, cause);
            return false;
        }
    }
    match rollout::proven(draft, service, newest) {
        Ok(()) => {
            for task in older {
                let reason = match task.spec_version == service.spec_version {
                    true => StopReason::Moved,
                    false => rollout::outdated(&draft.state, service, task),
                };
                stop(draft, task, reason);
            }
        }
        Err(Some(moment)) => draft.wake_at(moment),
        Err(None) => {}
    }
    false
}

/// A task that has no node yet.
fn wait(draft: &mut Draft, service: &Arc<Service>, task: &Arc<Task>) -> bool {
    if task.spec_version != service.spec_version {
        stop(draft, task, rollout::outdated(&draft.state, service, task));
        return true;
    }
    match task.not_before.filter(|moment| *moment > draft.now) {
        Some(moment) => draft.wake_at(moment),
        None => draft.place(service, task),
    }
    false
}

/// Nothing of the slot is left that could run, or only one whose replacement ended before it was any good.
pub(super) fn refill(draft: &mut Draft, service: &Arc<Service>, slot: &Slot) {
    let last = draft.state.newest_task(&service.id, slot).cloned();
    let creation = |attempt| Creation {
        service: Arc::clone(service),
        slot: slot.clone(),
        attempt,
        replaces: last.as_ref().map(|task| task.id.clone()),
    };
    let Some(last) = &last else { return draft.create(creation(0)) };
    match restart::decide(service, last, draft.now) {
        Restart::Now { attempt } => draft.create(creation(attempt)),
        Restart::At { until, attempt, cause } => {
            draft.create_pending(creation(attempt), Some(until), Some(cause));
            draft.wake_at(until);
        }
        Restart::Finished => {}
        Restart::GiveUp { cause } => draft.push(Change::GiveUp { task: last.id.clone(), cause }),
    }
}

/// A task on a node that no longer answers is replaced only where another node can take the slot: what still runs
/// there is worth more than nothing.
///
/// What runs once has no other: it is lost with its node.
fn move_away(draft: &mut Draft, service: &Arc<Service>, task: &Arc<Task>, node: NodeId) {
    if service.one_off.is_some() {
        draft.push(Change::OrphanTask { task: task.id.clone(), cause: Cause::NodeLost { node } });
        return;
    }
    let creation = Creation {
        service: Arc::clone(service),
        slot: task.slot.clone(),
        attempt: if task.spec_version == service.spec_version { task.attempt } else { 0 },
        replaces: Some(task.id.clone()),
    };
    if let Some(other) = draft.find_node(service, &task.slot, service.spec_version) {
        draft.push(Change::OrphanTask { task: task.id.clone(), cause: Cause::NodeLost { node } });
        draft.create_on(creation, other);
        return;
    }
    let since = draft.state.nodes.get(&node).map_or(draft.now, |node| node.since);
    explain(draft, task, Cause::NodeDown { node, since });
}

fn explain(draft: &mut Draft, task: &Task, cause: Cause) {
    if task.status.cause.as_ref() != Some(&cause) {
        draft.push(Change::Explain { task: task.id.clone(), cause });
    }
}

/// Tells the task to stop. By that alone it has ended when its node is lost.
fn stop(draft: &mut Draft, task: &Task, reason: StopReason) {
    if task.desired == Desired::Run {
        draft.push(Change::StopTask { task: task.id.clone(), reason });
    }
    orphan_if_lost(draft, &task.id);
}

/// A task that is to stop on a node that no longer answers will not be heard of: true when that was its end.
fn orphan_if_lost(draft: &mut Draft, id: &TaskId) -> bool {
    let Some(task) = draft.state.tasks.get(id).cloned() else { return false };
    if task.status.state.is_terminal() || task.desired == Desired::Run {
        return false;
    }
    match whereabouts(&draft.state, draft.now, &task) {
        Whereabouts::Known => false,
        Whereabouts::Held(cause) => {
            explain(draft, &task, cause);
            false
        }
        Whereabouts::Lost(node) => {
            draft.push(Change::OrphanTask { task: id.clone(), cause: Cause::NodeLost { node } });
            true
        }
    }
}

fn live(draft: &Draft, service: &Service, slot: &Slot) -> Vec<Arc<Task>> {
    let live = |task: &&Arc<Task>| task.status.state < TaskState::Complete;
    draft.state.tasks_in(&service.id, slot).filter(live).cloned().collect()
}
