//! What may be done about a task whose node no longer answers.

use roster_proto::{
    cause::Cause,
    id::NodeId,
    node::NodeState,
    task::{Desired, Task},
    time::Timestamp,
};

use crate::state::ClusterState;

/// Where a task stands, as its node is concerned.
pub(super) enum Whereabouts {
    /// Its node answers, or it has none yet.
    Known,
    /// It will not be heard of again: another may take its place. When its node comes back, the task is not in the
    /// node's set, and goes.
    Lost(NodeId),
    /// Nothing may be done for now, because of this.
    Held(Cause),
}

pub(super) fn whereabouts(state: &ClusterState, now: Timestamp, task: &Task) -> Whereabouts {
    let Some(id) = &task.node else { return Whereabouts::Known };
    let Some(node) = state.nodes.get(id) else { return Whereabouts::Lost(id.clone()) };
    if node.state == NodeState::Ready {
        return Whereabouts::Known;
    }
    // What people want stopped is given up under the brake as well: nothing new starts for it.
    let braked = state.brake.as_ref().filter(|brake| task.desired == Desired::Run && brake.holds(id, now));
    if let Some(brake) = braked {
        return Whereabouts::Held(Cause::Braked { node: id.clone(), since: brake.since, until: brake.until });
    }
    let singleton = state.task_spec(task).is_some_and(|spec| spec.singleton);
    if singleton && !node.fenced {
        return Whereabouts::Held(Cause::WaitsForLease { node: id.clone(), since: node.since });
    }
    Whereabouts::Lost(id.clone())
}
