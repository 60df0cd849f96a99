//! The one running task that a caller's name means. Pure.

use std::sync::Arc;

use roster_proto::{
    id::{ServiceId, TaskId},
    task::{Desired, Task, TaskState},
    wire,
};

use crate::{
    api::filter::{FilterError, Selection},
    state::ClusterState,
};

/// Replicas told about when none runs; more are counted.
const LISTED: usize = 4;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("{0}; it must be Running")]
    NotRunning(String),
    #[error("no replica of {service} runs: {tasks}")]
    NoneRuns { service: ServiceId, tasks: String },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) task: Arc<Task>,
    /// Other replicas that would have done as well.
    pub(super) others: u32,
}

pub(super) fn find(state: &ClusterState, name: &str) -> Result<Found, TargetError> {
    let by_task = || wire::Filter { task: Some(name.to_owned()), ..Default::default() };
    let by_service = || wire::Filter { service: Some(name.to_owned()), ..Default::default() };
    if name.contains('.') {
        return one(state, &Selection::resolve(state, &by_task())?);
    }
    let refusal = match Selection::resolve(state, &by_service()) {
        Ok(selection) => return first(state, &selection),
        Err(refusal) => refusal,
    };
    match Selection::resolve(state, &by_task()) {
        Ok(selection) => one(state, &selection),
        // Of what it could have been, the likelier one is told about; but what is ambiguous is there.
        Err(ambiguous @ FilterError::Ambiguous { .. }) if matches!(refusal, FilterError::NotFound { .. }) => {
            Err(ambiguous.into())
        }
        Err(_) => Err(refusal.into()),
    }
}

/// The slot's task, or that of the id.
fn one(state: &ClusterState, selection: &Selection) -> Result<Found, TargetError> {
    let services = state.services.keys().filter(|id| selection.has_service(id));
    let mut tasks: Vec<&Arc<Task>> =
        services.flat_map(|id| state.tasks_of(id)).filter(|task| selection.has_task(task)).collect();
    // During a start-first hand-over a slot has two: the one that stays.
    tasks.sort_by_key(|task| (is_running(task), task.desired == Desired::Run, task.created));
    match tasks.pop() {
        Some(task) if is_running(task) => Ok(Found { task: task.clone(), others: 0 }),
        Some(task) => Err(TargetError::NotRunning(described(task))),
        None => {
            let given = selection.single_task().map(TaskId::to_string).unwrap_or_default();
            let hint = "; `rctl ps` lists what there is".to_owned();
            Err(FilterError::NotFound { what: "task", given, hint }.into())
        }
    }
}

/// The lowest slot's that runs, and that is not about to be stopped if there is such a one.
fn first(state: &ClusterState, selection: &Selection) -> Result<Found, TargetError> {
    let services = || state.services.keys().filter(|id| selection.has_service(id));
    let running: Vec<&Arc<Task>> =
        services().flat_map(|id| state.tasks_of(id)).filter(|task| is_running(task)).collect();
    let lasting = running.iter().find(|task| task.desired == Desired::Run);
    if let Some(task) = lasting.or(running.first()) {
        let others = running.iter().filter(|other| other.slot != task.slot && other.desired == Desired::Run).count();
        return Ok(Found { task: (*task).clone(), others: u32::try_from(others).unwrap_or(u32::MAX) });
    }
    let service = services().next().cloned().ok_or_else(|| FilterError::NotFound {
        what: "service",
        given: String::new(),
        hint: "; `rctl services` lists what there is".to_owned(),
    })?;
    let current: Vec<_> = state.slots_of(&service).filter_map(|slot| state.current_task(&service, slot)).collect();
    let mut tasks: Vec<String> = current.iter().take(LISTED).map(|task| described(task)).collect();
    if current.len() > LISTED {
        tasks.push(format!("and {} more", current.len() - LISTED));
    }
    if tasks.is_empty() {
        tasks.push("it has none".to_owned());
    }
    Err(TargetError::NoneRuns { service, tasks: tasks.join("; ") })
}

fn is_running(task: &Task) -> bool {
    task.status.state == TaskState::Running && task.node.is_some()
}

fn described(task: &Task) -> String {
    let (name, id, state) = (task.name(), &task.id, task.status.state);
    match &task.status.cause {
        Some(cause) => format!("{name} ({id}) is {state}: {cause}"),
        None => format!("{name} ({id}) is {state}"),
    }
}

#[cfg(test)]
mod tests;
