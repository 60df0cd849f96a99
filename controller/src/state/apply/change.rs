//! The edits of a plan.
//!
//! A plan was made for exactly this `plan_base`, but agents may have reported since. A change that a report has
//! overtaken (stop a task that has ended) is passed over; the next plan sees what became of it.

use std::collections::BTreeSet;

use roster_proto::{
    cause::Cause,
    id::{NodeId, ServiceId, TaskId, Version},
    task::{Desired, StopReason, Task, TaskState, TaskStatus},
};

use super::Edit;
use crate::state::command::{Change, Refusal};

impl Edit<'_> {
    pub(super) fn apply_plan(&mut self, base: Version, changes: &[Change]) -> Result<(), Refusal> {
        if base != self.state.plan_base {
            return Err(Refusal::Stale { base, now: self.state.plan_base });
        }
        let removed = |change: &Change| match change {
            Change::RemoveTask { task } => Some(task.clone()),
            _ => None,
        };
        let thinned: BTreeSet<ServiceId> = changes
            .iter()
            .filter_map(removed)
            .filter_map(|id| self.state.tasks.get(&id).map(|task| task.service.clone()))
            .collect();
        changes.iter().for_each(|change| self.change(change));
        thinned.iter().for_each(|service| self.drop_unused_specs(service));
        Ok(())
    }

    pub(super) fn change(&mut self, change: &Change) {
        match change {
            Change::CreateTask { .. } => self.create_task(change),
            Change::AssignTask { task, node, shares_with } => self.assign_task(task, node, shares_with.as_ref()),
            Change::Explain { task, cause } => self.explain(task, cause),
            Change::StopTask { task, reason } => self.stop_task(task, reason),
            Change::OrphanTask { task, cause } => self.orphan_task(task, cause),
            Change::GiveUp { task, cause } => self.give_up(task, cause),
            Change::RemoveTask { task } => {
                if self.state.tasks.get(task).is_some_and(|task| task.status.state.is_terminal()) {
                    self.drop_task(task);
                }
            }
            Change::ForgetService { service } => self.forget_service(service),
            Change::EndBrake => self.end_brake(),
            Change::Retire { service } => self.retire(service),
        }
    }

    fn create_task(&mut self, change: &Change) {
        let Change::CreateTask { task, service, slot, spec_version, not_before, attempt, replaces, cause } = change
        else {
            return;
        };
        let known = self.state.services.get(service).is_some_and(|s| s.specs.contains_key(spec_version));
        if !known || self.state.tasks.contains_key(task) {
            return;
        }
        // Two leaders' clocks may differ; the order of a slot's tasks must not.
        let newest = self.state.newest_task(service, slot).map(|newest| newest.created.0.saturating_add(1));
        let created = newest.map_or(self.at, |after| self.at.max(roster_proto::time::Timestamp(after)));
        let mut status = TaskStatus::new(TaskState::Pending, self.at);
        status.cause = cause.clone();
        let task = Task {
            id: task.clone(),
            service: service.clone(),
            slot: slot.clone(),
            spec_version: *spec_version,
            node: None,
            desired: Desired::Run,
            status,
            created,
            not_before: *not_before,
            attempt: *attempt,
            replaces: replaces.clone(),
            paused: false,
            shares_with: None,
        };
        if task.status.cause.is_some() {
            self.tell_task(&task, || format!("{} waits", task.name()));
        }
        self.put_task(task);
    }

    fn assign_task(&mut self, id: &TaskId, node: &NodeId, shares_with: Option<&TaskId>) {
        let Some(task) = self.state.tasks.get(id) else { return };
        let bound = task.node.is_some() || task.status.state > TaskState::Pending;
        if bound || !self.state.nodes.contains_key(node) {
            return;
        }
        let mut next = Task::clone(task);
        next.node = Some(node.clone());
        next.shares_with = shares_with.cloned();
        next.status = TaskStatus::new(TaskState::Assigned, self.at);
        self.tell_task(&next, || format!("{} is assigned to {node}", next.name()));
        self.put_task(next);
    }

    fn explain(&mut self, id: &TaskId, cause: &Cause) {
        let Some(task) = self.state.tasks.get(id) else { return };
        if task.status.state.is_terminal() || task.status.cause.as_ref() == Some(cause) {
            return;
        }
        let mut next = Task::clone(task);
        next.status.cause = Some(cause.clone());
        self.tell_task(&next, || format!("{} waits", next.name()));
        self.put_task(next);
    }

    pub(super) fn stop_task(&mut self, id: &TaskId, reason: &StopReason) {
        let Some(task) = self.state.tasks.get(id) else { return };
        if task.status.state.is_terminal() || task.desired != Desired::Run {
            return;
        }
        let mut next = Task::clone(task);
        next.desired = Desired::Stop(reason.clone());
        if matches!(next.status.cause, Some(Cause::NoNode { .. })) {
            next.status.cause = None;
        }
        if next.node.is_none() {
            self.end(&mut next, TaskState::Shutdown, Cause::Stopped { reason: reason.clone() });
        }
        self.tell_task(&next, || format!("{} is to stop: {reason}", next.name()));
        self.put_task(next);
    }

    pub(super) fn orphan_task(&mut self, id: &TaskId, cause: &Cause) {
        let Some(task) = self.state.tasks.get(id) else { return };
        if task.status.state.is_terminal() {
            return;
        }
        let mut next = Task::clone(task);
        if next.desired == Desired::Run {
            next.desired = Desired::Stop(StopReason::Moved);
        }
        self.end(&mut next, TaskState::Orphaned, cause.clone());
        self.tell_task(&next, || format!("{} is given up with its node", next.name()));
        self.put_task(next);
    }

    fn give_up(&mut self, id: &TaskId, cause: &Cause) {
        let Some(task) = self.state.tasks.get(id) else { return };
        if !task.status.state.is_terminal() || task.status.cause.as_ref() == Some(cause) {
            return;
        }
        let mut next = Task::clone(task);
        next.status.cause = Some(cause.clone());
        self.tell_task(&next, || format!("{} is not restarted again", next.name()));
        self.put_task(next);
    }

    fn forget_service(&mut self, id: &ServiceId) {
        let removing = self.state.services.get(id).is_some_and(|service| service.removing);
        if removing && self.state.tasks_of(id).next().is_none() {
            self.state.services.remove(id);
            self.changed = true;
            self.tell_service(id, || format!("{id} is removed"));
        }
    }

    fn end(&self, task: &mut Task, state: TaskState, cause: Cause) {
        task.status.state = state;
        task.status.since = self.at;
        task.status.finished = Some(self.at);
        task.status.cause = Some(cause);
    }
}
