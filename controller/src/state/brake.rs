//! The brake: when most nodes vanish at once, the fault is likelier the network's or the controller's than theirs, and
//! moving everything onto the few that are left would make it worse.
//!
//! It engages when more than half of the nodes that were Ready within [`WINDOW`] are gone, and at least two. It holds
//! until it is released by hand, by its timer, or because enough nodes are back.

use std::{collections::BTreeSet, time::Duration};

use imbl::OrdMap;
use roster_proto::{id::NodeId, time::Timestamp};
use serde::{Deserialize, Serialize};

/// Nodes that vanish within this time vanish at once.
pub const WINDOW: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brake {
    pub since: Timestamp,
    /// It releases itself then; never without it.
    pub until: Option<Timestamp>,
    /// Off which nothing is moved.
    pub nodes: BTreeSet<NodeId>,
}

impl Brake {
    pub fn holds(&self, node: &NodeId, now: Timestamp) -> bool {
        !self.is_over(now) && self.nodes.contains(node)
    }

    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// The nodes that were Ready and are Down, with when they turned; those beyond [`WINDOW`] go with the next one.
pub(super) type Departed = OrdMap<NodeId, Timestamp>;

/// Whether so many nodes are gone, beside those that are Ready, that nothing should be moved.
pub(crate) fn too_many(gone: usize, ready: usize) -> bool {
    gone >= 2 && gone > ready
}
