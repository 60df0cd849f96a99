//! Services and tasks as they are, and again whenever they change.

use std::time::Duration;

use roster_proto::{id::Version, time::Timestamp, wire};
use tokio::sync::mpsc;
use tonic::Status;

use super::{
    filter::Selection,
    pages::{self, Pages},
};
use crate::{cluster::Cluster, plan::service_view, state::ClusterState, status::retry_safe};

/// Between two messages of one caller: nobody reads faster, and a busy cluster changes thousands of times a second.
/// The first change after a quiet time goes out at once.
const PAUSE: Duration = Duration::from_millis(5);

/// Whole versions; those that come while the caller reads are skipped, the last one never is. Nothing up to `after`:
/// a controller that is behind what the caller has seen elsewhere says nothing until it has caught up.
pub(super) async fn follow(
    cluster: Cluster,
    selection: Selection,
    after: Version,
    replies: mpsc::Sender<Result<wire::WatchResponse, Status>>,
) -> Result<(), Status> {
    let mut states = cluster.watch();
    let mut last = None;
    loop {
        // Room first: what is sent is then as new as can be.
        let Ok(room) = replies.reserve().await else { return Ok(()) };
        let state = states.borrow_and_update().clone();
        if state.version <= after {
            states.changed().await.map_err(|_| store_stopped())?;
            continue;
        }
        let seen = (
            services(&state, &selection, cluster.now()).collect::<Vec<_>>(),
            current_tasks(&state, &selection).collect::<Vec<_>>(),
        );
        if last.as_ref() != Some(&seen) {
            let (services, tasks) = seen.clone();
            let mut parts = parts(state.version, services, tasks).into_iter();
            drop(state);
            if let Some(first) = parts.next() {
                room.send(Ok(first));
            }
            pages::send(parts, replies.clone()).await?;
            last = Some(seen);
            tokio::time::sleep(PAUSE).await;
        }
        states.changed().await.map_err(|_| store_stopped())?;
    }
}

/// One version, in as many messages as it takes.
fn parts(version: Version, services: Vec<wire::ServiceView>, tasks: Vec<wire::Task>) -> Vec<wire::WatchResponse> {
    let part = |services, tasks| wire::WatchResponse { version: version.0, services, tasks, more: true };
    let (services, mut tasks) = (Pages::of(services), Pages::of(tasks));
    let mut parts: Vec<_> = services.map(|services| part(services, Vec::new())).collect();
    if let (Some(last), Some(first)) = (parts.last_mut(), tasks.next()) {
        last.tasks = first;
    }
    parts.extend(tasks.map(|tasks| part(Vec::new(), tasks)));
    if let Some(last) = parts.last_mut() {
        last.more = false;
    }
    parts
}

fn store_stopped() -> Status {
    retry_safe("the controller's store stopped: try again")
}

/// Answers are made of these while they are sent.
type Items<'a, T> = Box<dyn Iterator<Item = T> + Send + 'a>;

pub(super) fn services<'a>(
    state: &'a ClusterState,
    selection: &'a Selection,
    now: Timestamp,
) -> Items<'a, wire::ServiceView> {
    let selected = state.services.keys().filter(|id| selection.has_service(id));
    Box::new(selected.filter_map(move |id| service_view(state, id, now)).map(Into::into))
}

/// The newest task of every slot; a task that was named by its id, even when another took its slot.
pub(super) fn current_tasks<'a>(state: &'a ClusterState, selection: &'a Selection) -> Items<'a, wire::Task> {
    if selection.single_task().is_some() {
        return all_tasks(state, selection);
    }
    let services = state.services.keys().filter(|id| selection.has_service(id));
    let slots = services.flat_map(|id| state.slots_of(id).map(move |slot| (id, slot)));
    let tasks = slots.filter_map(|(id, slot)| state.current_task(id, slot));
    Box::new(tasks.filter(|task| selection.has_task(task)).map(|task| task.as_ref().clone().into()))
}

/// Also those that ended and are kept.
pub(super) fn all_tasks<'a>(state: &'a ClusterState, selection: &'a Selection) -> Items<'a, wire::Task> {
    let services = state.services.keys().filter(|id| selection.has_service(id));
    let tasks = services.flat_map(|id| state.tasks_of(id));
    Box::new(tasks.filter(|task| selection.has_task(task)).map(|task| task.as_ref().clone().into()))
}
