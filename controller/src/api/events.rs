//! The events that are kept, and new ones as they come. From the state's own ring, by version: a reader that is too
//! slow for it, or comes back too late, is told, and never misses one silently.

use std::sync::Arc;

use roster_proto::{
    id::Version,
    report::{Event, Subject},
    wire,
};
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::filter::Selection;
use crate::{
    state::{ClusterState, EVENTS_KEPT},
    status::retry_safe,
};

pub(super) async fn send(
    mut states: watch::Receiver<Arc<ClusterState>>,
    selection: Selection,
    after: Option<Version>,
    follow: bool,
    replies: mpsc::Sender<Result<wire::Event, Status>>,
) -> Result<(), Status> {
    let mut seen = after;
    loop {
        let state = states.borrow_and_update().clone();
        if let Some(seen) = seen.filter(|seen| forgotten(&state, *seen)) {
            return Err(Status::out_of_range(format!(
                "some events after version {seen} are forgotten, only the last {EVENTS_KEPT} are kept: ask again without \
                 a version"
            )));
        }
        let unseen = state.events().rev().take_while(|event| seen.is_none_or(|seen| event.version > seen)).count();
        for event in state.events().rev().take(unseen).rev().filter(|event| selected(&state, &selection, event)) {
            if replies.send(Ok(event.as_ref().clone().into())).await.is_err() {
                return Ok(());
            }
        }
        if !follow {
            return Ok(());
        }
        // A controller may be behind what the caller has seen elsewhere.
        seen = seen.max(Some(state.version));
        drop(state);
        states.changed().await.map_err(|_| retry_safe("the controller's store stopped: try again"))?;
    }
}

/// Whether the ring turned round since `seen`.
fn forgotten(state: &ClusterState, seen: Version) -> bool {
    let mut events = state.events();
    events.len() >= EVENTS_KEPT && events.next().is_some_and(|oldest| oldest.version > seen)
}

fn selected(state: &ClusterState, selection: &Selection, event: &Event) -> bool {
    match &event.subject {
        Subject::Stack { stack } => selection.has_stack(stack),
        Subject::Service { service } => !selection.narrows_tasks() && selection.has_service(service),
        Subject::Controller { .. } | Subject::Cluster => !selection.names_services() && !selection.narrows_tasks(),
        Subject::Node { node } => selection.has_node(node) && !selection.names_services(),
        Subject::Task { task, service, slot } => match state.tasks.get(task) {
            Some(task) => selection.has_task(task),
            None => selection.has_forgotten_task(task, service, slot),
        },
    }
}
