//! Which containers are meant, and asking their nodes.

use std::{collections::BTreeMap, sync::Arc};

use roster_proto::{
    id::{NodeId, TaskId},
    task::{Task, TaskState},
    wire::{self, container_request},
};
use tonic::Status;

use crate::{
    api::{filter::Selection, kept},
    dispatch::broker::{Answer, AskError, Broker},
    state::ClusterState,
};

/// Names in one request.
const MAX_TARGETS: usize = 1_000;
/// Containers that one request concerns.
const MAX_TASKS: usize = 2_000;
/// Named in an error.
const LISTED: usize = 4;

/// What the names mean, each of which must be of something.
pub(super) fn selections(state: &ClusterState, names: &[String]) -> Result<Vec<Selection>, Status> {
    if names.is_empty() {
        return Err(Status::invalid_argument("name at least one service, replica or task"));
    }
    if names.len() > MAX_TARGETS {
        return Err(Status::invalid_argument(format!("up to {MAX_TARGETS} names can be given at once")));
    }
    names.iter().map(|name| Ok(Selection::named(state, name)?)).collect()
}

/// The tasks that run, of what was named; of each name at least one.
pub(super) fn running(state: &ClusterState, names: &[String]) -> Result<Vec<Arc<Task>>, Status> {
    let mut found: BTreeMap<TaskId, Arc<Task>> = BTreeMap::new();
    for (selection, name) in selections(state, names)?.iter().zip(names) {
        let mut none = true;
        for task in tasks(state, selection).filter(|task| runs(task)) {
            none = false;
            found.insert(task.id.clone(), Arc::clone(task));
            if found.len() > MAX_TASKS {
                return Err(too_many());
            }
        }
        if none {
            return Err(Status::failed_precondition(why_not(state, selection, name)));
        }
    }
    Ok(found.into_values().collect())
}

/// The one task that the name means, which runs.
pub(super) fn one(state: &ClusterState, name: &str) -> Result<Arc<Task>, Status> {
    let mut found = running(state, std::slice::from_ref(&name.to_owned()))?;
    match (found.pop(), found.len()) {
        (Some(task), 0) => Ok(task),
        (last, _) => {
            let mut names: Vec<String> = found.iter().chain(&last).map(|task| task.name()).collect();
            names.sort();
            names.truncate(LISTED);
            let names = names.join(", ");
            Err(Status::invalid_argument(format!("{name} has several containers: name one of them, as {names}")))
        }
    }
}

/// The same; or the failed one that is kept, if it is asked for or none runs.
pub(super) fn one_or_kept(state: &ClusterState, name: &str, failed: bool) -> Result<Arc<Task>, Status> {
    kept::running_or_kept(state, name, failed, || one(state, name))
}

pub(super) fn tasks<'a>(
    state: &'a ClusterState,
    selection: &'a Selection,
) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
    let services = state.services.keys().filter(|id| selection.has_service(id));
    services.flat_map(|id| state.tasks_of(id)).filter(|task| selection.has_task(task))
}

pub(super) fn runs(task: &Task) -> bool {
    task.status.state == TaskState::Running && task.node.is_some()
}

pub(super) fn too_many() -> Status {
    Status::resource_exhausted(format!("more than {MAX_TASKS} containers match: name fewer"))
}

fn why_not(state: &ClusterState, selection: &Selection, name: &str) -> String {
    let last = tasks(state, selection).max_by_key(|task| task.created);
    match last {
        None => format!("{name} has no container"),
        Some(task) => {
            let cause = task.status.cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{name} has no container that runs; {} ({}) is {}{cause}", task.name(), task.id, task.status.state)
        }
    }
}

pub(super) fn by_node(tasks: &[Arc<Task>]) -> BTreeMap<&NodeId, Vec<String>> {
    let mut nodes: BTreeMap<&NodeId, Vec<String>> = BTreeMap::new();
    for task in tasks {
        if let Some(node) = &task.node {
            nodes.entry(node).or_default().push(task.id.to_string());
        }
    }
    nodes
}

pub(super) fn name_of(task: &Task) -> wire::TaskName {
    wire::TaskName { task: task.id.to_string(), name: task.name() }
}

/// One request for each node, about all of its tasks; the nodes work side by side.
pub(super) async fn ask_all(
    broker: &Arc<Broker>,
    tasks: &[Arc<Task>],
    request: impl Fn(Vec<String>) -> container_request::Request,
) -> Vec<(NodeId, Result<Vec<wire::ContainerAnswer>, AskError>)> {
    let request = &request;
    let answers = by_node(tasks).into_iter().map(async |(node, tasks)| {
        let most = tasks.len();
        let answers = async { whole(ask(broker, node, request(tasks)).await?, most).await };
        (node.clone(), answers.await)
    });
    futures::future::join_all(answers).await
}

pub(super) async fn ask(
    broker: &Arc<Broker>,
    node: &NodeId,
    request: container_request::Request,
) -> Result<Answer, AskError> {
    let request = wire::ContainerRequest { request: Some(request) };
    broker.ask(node, wire::request::Request::Container(request)).await
}

/// One answer for each task; an agent that has more to say is not listened to.
async fn whole(mut answer: Answer, most: usize) -> Result<Vec<wire::ContainerAnswer>, AskError> {
    let mut answers = Vec::new();
    while answers.len() < most
        && let Some(part) = answer.next_container().await
    {
        answers.push(part?);
    }
    Ok(answers)
}
