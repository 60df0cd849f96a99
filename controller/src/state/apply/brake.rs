//! The brake engages and is released.

use std::{collections::BTreeSet, time::Duration};

use roster_proto::{id::NodeId, node::NodeState};

use super::Edit;
use crate::state::brake::{Brake, WINDOW, too_many};

impl Edit<'_> {
    /// A node that was Ready no longer is.
    pub(super) fn note_departure(&mut self, id: &NodeId) {
        let at = self.at;
        let recent = self.state.departed.iter().filter(|(_, departed)| at.since(**departed) < WINDOW);
        self.state.departed = recent.map(|(node, departed)| (node.clone(), *departed)).collect();
        self.state.departed.insert(id.clone(), at);
        if let Some(brake) = self.state.brake.as_mut().filter(|brake| !brake.is_over(at)) {
            brake.nodes.insert(id.clone());
            return;
        }
        if !too_many(self.state.departed.len(), self.ready_nodes()) {
            return;
        }
        let time = self.state.settings.brake_for;
        let until = (time > 0).then(|| at.plus(Duration::from_micros(time)));
        let nodes: BTreeSet<NodeId> = self.state.departed.keys().cloned().collect();
        let count = nodes.len();
        self.state.brake = Some(Brake { since: at, until, nodes });
        self.tell_cluster(|| {
            let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
            format!("the brake engages{until}: {count} nodes vanished within a minute, so nothing is moved off them")
        });
    }

    /// The node is back, or gone for good.
    pub(super) fn note_return(&mut self, id: &NodeId) {
        self.state.departed.remove(id);
        let Some(brake) = &mut self.state.brake else { return };
        brake.nodes.remove(id);
        let gone = brake.nodes.len();
        if !too_many(gone, self.ready_nodes()) {
            self.lift_brake("enough nodes are back");
        }
    }

    pub(super) fn release_brake(&mut self) {
        self.lift_brake("it was released by hand");
    }

    /// Nothing when the timer has not run out.
    pub(super) fn end_brake(&mut self) {
        if self.state.brake.as_ref().is_some_and(|brake| brake.is_over(self.at)) {
            self.lift_brake("its time has run out");
        }
    }

    fn lift_brake(&mut self, why: &'static str) {
        if self.state.brake.take().is_some() {
            self.changed = true;
            // They have been reckoned with: the next node alone must not engage it anew.
            self.state.departed.clear();
            self.tell_cluster(|| format!("the brake is released: {why}"));
        }
    }

    fn ready_nodes(&self) -> usize {
        self.state.nodes.values().filter(|node| node.state == NodeState::Ready).count()
    }
}
