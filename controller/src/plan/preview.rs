//! What an apply would do, shown before it is done: the stack is put into a copy, the copy is planned for until it
//! settles, and the two are compared.
//!
//! Placements are those the planner would choose if every task came up at once; what happens meanwhile may change
//! them.

use std::{collections::BTreeSet, sync::Arc};

use roster_proto::{
    cause::Cause,
    id::{ServiceId, Slot, Version},
    report::{ServiceAction, ServicePlan, SlotAction, SlotPlan, StackPlan},
    spec::StackSpec,
    task::{Desired, Task, TaskReport, TaskState, TaskStatus},
    time::Timestamp,
};

use super::{MAX_CHANGES, fields, plan, wanted::Wanted};
use crate::state::{
    ClusterState, MAX_WANTED, Service,
    command::{Command, Entry, Outcome, Refusal},
};

/// Rounds of planning in which the copy must settle: a batch is stopped, replaced, up; and as many more as the bound
/// on one plan makes of the largest cluster.
const MAX_ROUNDS: usize = 8 + 4 * (MAX_WANTED as usize / MAX_CHANGES);

/// What `PutStack` with these arguments would do now. Refused as it would be.
pub fn preview(state: &ClusterState, stack: &StackSpec, prune: bool, now: Timestamp) -> Result<StackPlan, Refusal> {
    let mut after = state.clone();
    let put = Command::PutStack { stack: stack.clone(), prune, base: None };
    if let Outcome::Refused(refusal) = apply(&mut after, now, put) {
        return Err(refusal);
    }
    let asked = after.clone();
    settle(&mut after, now);
    let listed = |service: &&Arc<Service>| service.id.stack == stack.name && service.one_off.is_none();
    let ids: BTreeSet<&ServiceId> =
        state.services.values().chain(asked.services.values()).filter(listed).map(|service| &service.id).collect();
    let comparison = Comparison { before: state, asked: &asked, after: &after, stack };
    Ok(StackPlan {
        stack: stack.name.clone(),
        base: state.plan_base,
        services: ids.into_iter().map(|id| comparison.of_service(id)).collect(),
    })
}

struct Comparison<'a> {
    before: &'a ClusterState,
    /// With the stack put, and nothing done about it.
    asked: &'a ClusterState,
    /// Settled.
    after: &'a ClusterState,
    stack: &'a StackSpec,
}

impl Comparison<'_> {
    fn of_service(&self, id: &ServiceId) -> ServicePlan {
        let before = self.before.services.get(id).filter(|service| !service.removing);
        let asked = self.asked.services.get(id).filter(|service| !service.removing);
        let in_file = self.stack.services.contains_key(&id.name);
        let action = match (before, asked) {
            (None, Some(_)) => ServiceAction::Create,
            (_, None) => ServiceAction::Remove,
            (Some(_), Some(_)) if !in_file => ServiceAction::NotInFile,
            (Some(before), Some(asked)) if before.version == asked.version => ServiceAction::Unchanged,
            (Some(_), Some(_)) => ServiceAction::Update,
        };
        let fields = match action {
            ServiceAction::Remove => Vec::new(),
            _ => fields::difference(before.map(|s| &s.spec), asked.map(|s| &s.spec)),
        };
        ServicePlan { service: id.clone(), action, fields, slots: self.slots(id) }
    }

    fn slots(&self, id: &ServiceId) -> Vec<SlotPlan> {
        let service = self.asked.services.get(id);
        let wanted = service.map_or(Wanted::Replicas(0), |service| Wanted::of(self.asked, service));
        let mut slots: BTreeSet<Slot> = wanted.slots().into_iter().collect();
        slots.extend(self.before.slots_of(id).filter(|slot| self.lives(id, slot)).cloned());
        slots.into_iter().map(|slot| self.slot(service, id, slot, &wanted)).collect()
    }

    fn lives(&self, id: &ServiceId, slot: &Slot) -> bool {
        self.before.tasks_in(id, slot).any(|task| !task.status.state.is_terminal())
    }

    fn slot(&self, service: Option<&Arc<Service>>, id: &ServiceId, slot: Slot, wanted: &Wanted) -> SlotPlan {
        let before = self.before.current_task(id, &slot);
        let after = self.after.current_task(id, &slot);
        let current = |task: &&Arc<Task>| service.is_some_and(|service| service.spec_version == task.spec_version);
        let action = match before {
            _ if !wanted.contains(&slot) => SlotAction::Stop,
            None => SlotAction::Start,
            Some(task) if current(&task) && task.desired == Desired::Run => SlotAction::Keep,
            Some(_) => SlotAction::Replace,
        };
        let task = if action == SlotAction::Stop { before } else { after };
        let unplaced = |task: &&Arc<Task>| {
            let cause = task.status.cause.as_ref();
            let waits =
                matches!(cause, Some(Cause::NodeDown { .. } | Cause::Braked { .. } | Cause::WaitsForLease { .. }));
            task.node.is_none() || waits
        };
        SlotPlan {
            slot,
            action,
            node: task.and_then(|task| task.node.clone()),
            cause: task.filter(unplaced).and_then(|task| task.status.cause.clone()),
        }
    }
}

/// Plans for the copy until nothing is left to do, as if every agent did at once what it is told.
fn settle(state: &mut ClusterState, now: Timestamp) {
    all_at_once(state);
    for round in 0..MAX_ROUNDS {
        let plan = plan(state, now, round as u64);
        let idle = plan.changes.is_empty();
        let apply_plan = Command::ApplyPlan { base: plan.base, changes: plan.changes };
        apply(state, now, apply_plan);
        if !obey(state, now) && idle {
            return;
        }
    }
}

/// The end of a rollout does not depend on the size of its batches.
fn all_at_once(state: &mut ClusterState) {
    let batches = |service: &&Arc<Service>| service.spec.update.parallelism != 0;
    let ids: Vec<ServiceId> = state.services.values().filter(batches).map(|service| service.id.clone()).collect();
    for id in ids {
        if let Some(service) = state.services.get_mut(&id) {
            Arc::make_mut(service).spec.update.parallelism = 0;
        }
    }
}

/// Every agent that answers reports its tasks as running or stopped; true when that was news.
fn obey(state: &mut ClusterState, now: Timestamp) -> bool {
    let nodes: Vec<_> = state.nodes.keys().filter(|node| state.node_is_ready(node)).cloned().collect();
    let mut news = false;
    for node in nodes {
        let told = |task: &Arc<Task>| match &task.desired {
            Desired::Stop(_) => {
                Some(TaskReport { task: task.id.clone(), status: TaskStatus::new(TaskState::Shutdown, now) })
            }
            Desired::Run if task.status.state < TaskState::Running => {
                Some(TaskReport { task: task.id.clone(), status: TaskStatus::new(TaskState::Running, now) })
            }
            Desired::Run => None,
        };
        let reports: Vec<TaskReport> = state.tasks_on(&node).filter_map(told).collect();
        news |= apply(state, now, Command::Report { node, reports }) == Outcome::Applied;
    }
    news
}

fn apply(state: &mut ClusterState, at: Timestamp, command: Command) -> Outcome {
    let version = Version(state.version.0.saturating_add(1));
    state.apply(version, &Entry::new(at, command)).outcome
}
