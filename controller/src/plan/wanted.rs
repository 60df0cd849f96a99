//! Which slots a service should have now.

use std::collections::BTreeSet;

use roster_proto::{
    id::{NodeId, Slot},
    node::{Availability, NodeState},
    spec::Mode,
    task::Desired,
};

use crate::state::{ClusterState, Service};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Replicas(u32),
    /// Global mode.
    Nodes(BTreeSet<NodeId>),
}

impl Wanted {
    pub(super) fn of(state: &ClusterState, service: &Service) -> Self {
        if service.removing {
            return Wanted::Replicas(0);
        }
        match service.spec.mode {
            Mode::Replicated { replicas } => Wanted::Replicas(replicas),
            Mode::Global => {
                Wanted::Nodes(state.nodes.keys().filter(|node| wants_global(state, service, node)).cloned().collect())
            }
        }
    }

    pub(super) fn contains(&self, slot: &Slot) -> bool {
        match (self, slot) {
            (Wanted::Replicas(count), Slot::Replica(number)) => (1..=*count).contains(number),
            (Wanted::Nodes(nodes), Slot::Node(node)) => nodes.contains(node),
            (Wanted::Replicas(_), Slot::Node(_)) | (Wanted::Nodes(_), Slot::Replica(_)) => false,
        }
    }

    pub(super) fn count(&self) -> u32 {
        match self {
            Wanted::Replicas(count) => *count,
            Wanted::Nodes(nodes) => u32::try_from(nodes.len()).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn slots(&self) -> Vec<Slot> {
        match self {
            Wanted::Replicas(count) => (1..=*count).map(Slot::Replica).collect(),
            Wanted::Nodes(nodes) => nodes.iter().cloned().map(Slot::Node).collect(),
        }
    }
}

/// A node that takes new tasks; one that is paused or does not answer keeps what it has.
fn wants_global(state: &ClusterState, service: &Service, id: &NodeId) -> bool {
    let Some(node) = state.nodes.get(id) else { return false };
    let kept = || {
        state
            .tasks_in(&service.id, &Slot::Node(id.clone()))
            .any(|task| task.node.is_some() && !task.status.state.is_terminal() && task.desired == Desired::Run)
    };
    match (node.state, node.availability) {
        (_, Availability::Drain) => false,
        (NodeState::Ready, Availability::Active) => true,
        (NodeState::Down, _) | (_, Availability::Pause) => kept(),
    }
}
