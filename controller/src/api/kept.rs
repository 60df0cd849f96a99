//! Failed containers that are kept for inspection: which one is meant. Pure, but for asking its node.

use std::sync::Arc;

use roster_proto::{
    task::Task,
    wire::{self, container_answer::Answer, container_request::Request},
};
use tonic::Status;

use super::filter::Selection;
use crate::{dispatch::broker::Broker, state::ClusterState};

/// Named in an error.
const LISTED: usize = 4;

/// The one failed container that the name means: a replica's, a service's with one replica, or that of a task's id.
pub(super) fn find(state: &ClusterState, name: &str) -> Result<Arc<Task>, Status> {
    let selection = Selection::named(state, name)?;
    let services = state.services.keys().filter(|id| selection.has_service(id));
    let slots = services.flat_map(|id| state.slots_of(id).map(move |slot| (id, slot)));
    let kept = slots.filter_map(|(id, slot)| state.kept_task(id, slot)).filter(|task| selection.has_task(task));
    let found: Vec<&Arc<Task>> = kept.take(LISTED + 1).collect();
    match found.as_slice() {
        [task] => Ok(Arc::clone(task)),
        [] => Err(Status::failed_precondition(format!(
            "{name} has no failed container: of each replica the last that failed is kept, until the replica or its \
             service is removed"
        ))),
        several => {
            let names: Vec<String> = several.iter().take(LISTED).map(|task| task.name()).collect();
            let names = names.join(", ");
            Err(Status::invalid_argument(format!("{name} has several failed containers: name one of them, as {names}")))
        }
    }
}

/// The one that runs; where none does, the one that is kept; or that one if it is asked for.
pub(super) fn running_or_kept(
    state: &ClusterState,
    name: &str,
    failed: bool,
    running: impl FnOnce() -> Result<Arc<Task>, Status>,
) -> Result<Arc<Task>, Status> {
    if failed {
        return find(state, name);
    }
    match running() {
        Err(none) if none.code() == tonic::Code::FailedPrecondition => find(state, name).map_err(|_| none),
        found => found,
    }
}

/// How it ended, in words.
pub(super) fn failure(task: &Task) -> String {
    task.status.cause.as_ref().map_or_else(|| task.status.state.to_string(), ToString::to_string)
}

pub(super) async fn tell(broker: &Arc<Broker>, task: &Task) -> Result<wire::KeptResponse, Status> {
    let node = task.node.as_ref().ok_or_else(|| Status::internal("a failed task without a node"))?;
    let request = wire::ContainerRequest { request: Some(Request::Kept(task.id.to_string())) };
    let mut answer = broker.ask(node, wire::request::Request::Container(request)).await?;
    let figures = match answer.next_container().await {
        Some(Ok(wire::ContainerAnswer { answer: Some(Answer::Kept(figures)), .. })) => figures,
        Some(Err(error)) => return Err(error.into()),
        _ => return Err(Status::internal(format!("node {node} answered with something else than was asked"))),
    };
    Ok(wire::KeptResponse {
        task: Some(wire::TaskName { task: task.id.to_string(), name: task.name() }),
        node: node.to_string(),
        failure: failure(task),
        figures: Some(figures),
    })
}
