//! Waiting until containers stand still, or go on.

use std::{collections::BTreeSet, time::Duration};

use roster_proto::{
    id::{TaskId, Version},
    task::Task,
    wire,
};
use tonic::Status;

use super::targets::name_of;
use crate::{cluster::Cluster, state::ClusterState, status::retry_safe};

/// An agent that answers takes moments; of one that does not, the caller is told.
const PATIENCE: Duration = Duration::from_secs(10);

/// Until all that have not ended are as wanted, or patience ends. Once is enough: somebody may have wanted otherwise
/// by then.
pub(super) async fn until(
    cluster: &Cluster,
    tasks: &BTreeSet<TaskId>,
    paused: bool,
    version: Version,
) -> Result<wire::SetPausedResponse, Status> {
    let mut states = cluster.watch();
    let done = |state: &ClusterState| {
        state.version >= version && tasks.iter().all(|id| state.tasks.get(id).is_none_or(|task| is_so(task, paused)))
    };
    let waited = tokio::time::timeout(PATIENCE, states.wait_for(|state| done(state))).await;
    if let Ok(Err(_)) = waited {
        return Err(retry_safe("the controller's store stopped: try again"));
    }
    drop(waited);
    let state = cluster.read();
    let mut response = wire::SetPausedResponse { version: version.0, ..Default::default() };
    for task in tasks.iter().filter_map(|id| state.tasks.get(id)) {
        if task.status.state.is_terminal() {
            let words = format!("{} ({}): it has ended meanwhile", task.name(), task.id);
            response.failures.push(words);
        } else if is_so(task, paused) {
            response.tasks.push(name_of(task));
        } else {
            let (what, node) = (if paused { "stand still" } else { "go on" }, task.node.as_ref());
            let node = node.map_or("-", |node| node.as_str());
            let name = task.name();
            response.failures.push(format!("{name} ({}): it is to {what}, and does not yet on node {node}", task.id));
        }
    }
    Ok(response)
}

fn is_so(task: &Task, paused: bool) -> bool {
    task.status.paused == paused || task.status.state.is_terminal()
}
