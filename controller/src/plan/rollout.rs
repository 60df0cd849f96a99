//! Replacing the tasks of an outdated spec, batch by batch.
//!
//! Nothing of a rollout is stored. A batch is under way as long as some slot of the latest spec is not proven; the
//! next one begins when all are, and the delay has passed since the last of them came up.

use std::sync::Arc;

use roster_proto::{
    id::Slot,
    node::{Availability, NodeState},
    spec::{TaskSpec, UpdateOrder},
    task::{Desired, StopReason, Task, TaskState},
    time::Timestamp,
};

use super::{
    draft::{Creation, Draft},
    restart, sharing,
    wanted::Wanted,
};
use crate::state::{ClusterState, Service, command::Change};

/// How far a rollout is.
pub(super) struct Survey {
    /// Slots to be replaced whose task can be told to stop, in the order to take them.
    candidates: Vec<Arc<Task>>,
    /// Slots still on an outdated spec, whatever their state.
    outdated: usize,
    hold: Option<Hold>,
    /// When the last updated slot came up.
    last_up: Option<Timestamp>,
}

/// What the next batch waits for.
struct Hold {
    what: String,
    until: Option<Timestamp>,
}

pub(super) fn tend(draft: &mut Draft, service: &Arc<Service>, wanted: &Wanted) {
    let survey = Survey::of(&draft.state, service, wanted, draft.now);
    if survey.candidates.is_empty() || draft.full() {
        return;
    }
    let policy = &service.spec.update;
    let batch = if policy.parallelism == 0 {
        survey.candidates.len()
    } else if let Some(hold) = survey.waits_for(service, draft.now) {
        hold.until.into_iter().for_each(|moment| draft.wake_at(moment));
        return;
    } else {
        usize::try_from(policy.parallelism).unwrap_or(usize::MAX)
    };
    for task in survey.candidates.into_iter().take(batch) {
        if draft.full() {
            return;
        }
        match order(&draft.state, service, &task) {
            UpdateOrder::StopFirst => {
                let reason = outdated(&draft.state, service, &task);
                draft.push(Change::StopTask { task: task.id.clone(), reason });
            }
            UpdateOrder::StartFirst => draft.create(Creation {
                service: Arc::clone(service),
                slot: task.slot.clone(),
                attempt: 0,
                replaces: Some(task.id.clone()),
            }),
        }
    }
}

/// Why a task of another spec version goes: for a newer spec, or to begin anew with the same.
pub(super) fn outdated(state: &ClusterState, service: &Service, task: &Task) -> StopReason {
    let same = state.task_spec(task).is_some_and(|spec| **spec == service.spec.task)
        && state.task_ports(task) == service.ports.as_slice();
    if same { StopReason::Restarted } else { StopReason::Updated }
}

/// How this task is replaced. No singleton ever has another beside it, and what shares another's namespaces need not.
pub(super) fn order(state: &ClusterState, service: &Service, task: &Task) -> UpdateOrder {
    let alone = |spec: &TaskSpec| spec.singleton || spec.rights.shares_with().is_some();
    if alone(&service.spec.task) || state.task_spec(task).is_some_and(|spec| alone(spec)) {
        UpdateOrder::StopFirst
    } else {
        service.spec.update.order
    }
}

/// Whether an updated task has shown that it works. `Err` holds when it will have, if only time is missing.
pub(super) fn proven(draft: &Draft, service: &Service, task: &Task) -> Result<(), Option<Timestamp>> {
    proven_at(&draft.state, service, task, draft.now)
}

/// A slot that failed before must run through the monitored time; one that did not is believed at once.
fn proven_at(state: &ClusterState, service: &Service, task: &Task, now: Timestamp) -> Result<(), Option<Timestamp>> {
    if !state.is_up(task) {
        return Err(None);
    }
    let good_at = up_since(task, now).plus(service.spec.update.monitor);
    if task.attempt == 0 || good_at <= now { Ok(()) } else { Err(Some(good_at)) }
}

/// A task that is told to stop must be able to have a successor: one that is bound to its node has none on a node that
/// takes no new tasks.
fn can_be_replaced(state: &ClusterState, task: &Task) -> bool {
    let Some(node) = task.node.as_ref().and_then(|node| state.nodes.get(node)) else { return false };
    node.state == NodeState::Ready
        && (matches!(task.slot, Slot::Replica(_)) || node.availability == Availability::Active)
}

fn up_since(task: &Task, now: Timestamp) -> Timestamp {
    task.status.since.min(now)
}

/// What the service's rollout waits for, in words; `None` when none is under way.
pub(super) fn waits(state: &ClusterState, service: &Service, wanted: &Wanted, now: Timestamp) -> Option<String> {
    let survey = Survey::of(state, service, wanted, now);
    let total = wanted.count();
    let done = usize::try_from(total).unwrap_or(usize::MAX).saturating_sub(survey.outdated);
    let what = match survey.waits_for(service, now) {
        Some(hold) if survey.outdated > 0 => hold.what,
        None if survey.outdated > survey.candidates.len() => "a node that is paused or no longer answers".to_owned(),
        _ => return None,
    };
    Some(format!("{done} of {total} updated, waits for {what}"))
}

impl Survey {
    fn of(state: &ClusterState, service: &Service, wanted: &Wanted, now: Timestamp) -> Self {
        let mut survey = Self { candidates: Vec::new(), outdated: 0, hold: None, last_up: None };
        for slot in wanted.slots() {
            survey.look_at(state, service, &slot, now);
        }
        survey.candidates.sort_by_key(|task| state.is_up(task));
        survey
    }

    fn look_at(&mut self, state: &ClusterState, service: &Service, slot: &Slot, now: Timestamp) {
        let Some(current) = state.current_task(&service.id, slot) else { return };
        let newest = state.newest_task(&service.id, slot).unwrap_or(current);
        let lives = |task: &&Arc<Task>| !task.status.state.is_terminal() && task.id != current.id;
        let others_live = state.tasks_in(&service.id, slot).any(|task| lives(&task));
        if current.spec_version == service.spec_version {
            self.outdated += usize::from(others_live);
            return self.look_at_updated(state, service, current, others_live, now);
        }
        self.outdated += 1;
        if newest.spec_version == service.spec_version {
            // Started beside the current one, and ended.
            self.hold(format!("{}, whose new task failed", newest.name()), None);
        } else if sharing::is_surplus(state, current) {
            // Its successor has nobody to share with either.
        } else if current.status.state.is_terminal() || current.desired != Desired::Run {
            self.hold(format!("{} to end", current.name()), None);
        } else if others_live {
            self.hold(format!("the task beside {} to end", current.name()), None);
        } else if can_be_replaced(state, current) {
            self.candidates.push(Arc::clone(current));
        }
    }

    fn look_at_updated(
        &mut self,
        state: &ClusterState,
        service: &Service,
        task: &Task,
        older_lives: bool,
        now: Timestamp,
    ) {
        if task.status.state.is_terminal() {
            let done =
                task.status.state == TaskState::Complete && restart::finished(&service.spec.restart, task.status.state);
            if !done {
                self.hold(format!("{}, which failed", task.name()), None);
            }
            return;
        }
        // A slot that is new altogether and has no room anywhere, or nobody to share with, proves nothing about the new spec.
        if task.node.is_none() && task.replaces.is_none() || sharing::is_surplus(state, task) {
            return;
        }
        match proven_at(state, service, task, now) {
            Ok(()) if older_lives => self.hold(format!("the task that {} replaces to end", task.name()), None),
            Ok(()) => self.last_up = self.last_up.max(Some(up_since(task, now))),
            Err(Some(moment)) => self.hold(format!("{} to run until {moment}", task.name()), Some(moment)),
            Err(None) => self.hold(format!("{} to be up", task.name()), None),
        }
    }

    fn hold(&mut self, what: String, until: Option<Timestamp>) {
        match &mut self.hold {
            None => self.hold = Some(Hold { what, until }),
            Some(hold) => hold.until = hold.until.into_iter().chain(until).min(),
        }
    }

    fn waits_for(&self, service: &Service, now: Timestamp) -> Option<Hold> {
        if let Some(hold) = &self.hold {
            return Some(Hold { what: hold.what.clone(), until: hold.until });
        }
        let next = self.last_up?.plus(service.spec.update.delay);
        (next > now).then(|| Hold { what: format!("the delay between batches, until {next}"), until: Some(next) })
    }
}
