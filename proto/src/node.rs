//! A host as the cluster sees it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    id::{NodeId, Version},
    time::Timestamp,
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub description: NodeDescription,
    pub state: NodeState,
    pub availability: Availability,
    /// When `state` began.
    pub since: Timestamp,
    /// Grows whenever the set of tasks this node should run changes.
    pub generation: Version,
    /// Given by people; they win over the agent's own.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Down for so long that every lease it had is over: not even a singleton can still run there.
    #[serde(default)]
    pub fenced: bool,
    /// The epoch when that was before it was kept.
    #[serde(default)]
    pub joined: Timestamp,
}

impl Node {
    /// What people gave it, and of the agent's own what they did not.
    pub fn all_labels(&self) -> BTreeMap<&str, &str> {
        let all = self.description.labels.iter().chain(&self.labels);
        all.map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }
}

/// What an agent says of its host when it registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    pub hostname: String,
    pub addresses: Vec<String>,
    pub capacity: Capacity,
    pub labels: BTreeMap<String, String>,
    pub agent_version: String,
    pub kernel: String,
    /// `v1`, `hybrid` or `v2`.
    pub cgroups: String,
    pub architecture: String,
    /// OCI runtimes that services may ask for, beside Roster's own.
    #[serde(default)]
    pub runtimes: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub nano_cpus: u64,
    /// Bytes.
    pub memory: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    Ready,
    /// Its heartbeats stopped.
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    /// Takes new tasks.
    Active,
    /// Keeps what it has, takes nothing new.
    Pause,
    /// Its tasks are moved away.
    Drain,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NodeState::Ready => "Ready",
            NodeState::Down => "Down",
        })
    }
}

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Availability::Active => "Active",
            Availability::Pause => "Pause",
            Availability::Drain => "Drain",
        })
    }
}
