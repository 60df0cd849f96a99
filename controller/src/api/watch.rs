//! Services and tasks as they are, and again whenever they change.

use std::time::Duration;

use roster_proto::{id::Version, time::Timestamp, wire};
use tokio::sync::mpsc;
use tonic::Status;

use super::filter::Selection;
use crate::{cluster::Cluster, plan::service_view, state::ClusterState, status::retry_safe};

/// Between two messages of one caller: nobody reads faster, and a busy cluster changes thousands of times a second.
/// The first change after a quiet time goes out at once.
const PAUSE: Duration = Duration::from_millis(5);

/// Whole messages; versions that come while the caller reads are skipped, the last one never is. Nothing up to `after`:
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
        let seen = (services(&state, &selection, cluster.now()), current_tasks(&state, &selection));
        if last.as_ref() != Some(&seen) {
            let (services, tasks) = seen.clone();
            room.send(Ok(wire::WatchResponse { version: state.version.0, services, tasks }));
            last = Some(seen);
            drop(state);
            tokio::time::sleep(PAUSE).await;
        }
        states.changed().await.map_err(|_| store_stopped())?;
    }
}

fn store_stopped() -> Status {
    retry_safe("the controller's store stopped: try again")
}

pub(super) fn services(state: &ClusterState, selection: &Selection, now: Timestamp) -> Vec<wire::ServiceView> {
    let selected = state.services.keys().filter(|id| selection.has_service(id));
    selected.filter_map(|id| service_view(state, id, now)).map(Into::into).collect()
}

/// The newest task of every slot; a task that was named by its id, even when another took its slot.
pub(super) fn current_tasks(state: &ClusterState, selection: &Selection) -> Vec<wire::Task> {
    if selection.single_task().is_some() {
        return all_tasks(state, selection);
    }
    let services = state.services.keys().filter(|id| selection.has_service(id));
    let slots = services.flat_map(|id| state.slots_of(id).map(move |slot| (id, slot)));
    let tasks = slots.filter_map(|(id, slot)| state.current_task(id, slot));
    tasks.filter(|task| selection.has_task(task)).map(|task| task.as_ref().clone().into()).collect()
}

/// Also those that ended and are kept.
pub(super) fn all_tasks(state: &ClusterState, selection: &Selection) -> Vec<wire::Task> {
    let services = state.services.keys().filter(|id| selection.has_service(id));
    let tasks = services.flat_map(|id| state.tasks_of(id));
    tasks.filter(|task| selection.has_task(task)).map(|task| task.as_ref().clone().into()).collect()
}
