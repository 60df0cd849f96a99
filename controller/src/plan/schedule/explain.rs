//! Why can no node take this task?

use roster_proto::cause::Rejection;

use super::{Ask, Hosts, filter};

/// Nodes named in one explanation; in larger clusters the rest is like them.
pub(in crate::plan) const MAX_REJECTIONS: usize = 64;

impl Hosts {
    /// Every node's first reason against the task, in order of the nodes' names.
    pub(in crate::plan) fn explain(&self, ask: &Ask<'_>) -> Vec<Rejection> {
        self.candidates(ask)
            .iter()
            .filter_map(|host| {
                let reason = filter::rejection(host, ask)?;
                Some(Rejection { node: host.node.id.clone(), reason })
            })
            .take(MAX_REJECTIONS)
            .collect()
    }
}
