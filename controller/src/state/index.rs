//! Which tasks a slot has and which a node runs. Derived from the tasks alone: never stored, rebuilt on load.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use roster_proto::{
    id::{NodeId, ServiceId, Slot, TaskId},
    task::{Desired, Task},
};

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    /// Oldest first. `created` is strictly increasing within a slot, so that a rebuilt index has the same order.
    slots: OrdMap<ServiceId, OrdMap<Slot, Arc<Vec<TaskId>>>>,
    /// Bound and not ended.
    nodes: OrdMap<NodeId, OrdSet<TaskId>>,
}

/// A task's part in the assignment set of its node.
pub(super) fn offer(task: &Task) -> Option<(&NodeId, &Desired)> {
    let node = task.node.as_ref().filter(|_| !task.status.state.is_terminal())?;
    Some((node, &task.desired))
}

impl Index {
    pub(super) fn of<'a>(tasks: impl Iterator<Item = &'a Task>) -> Self {
        let mut ordered: Vec<&Task> = tasks.collect();
        ordered.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        let mut index = Self::default();
        for task in ordered {
            index.add(task);
            if let Some((node, _)) = offer(task) {
                index.bind(node, &task.id);
            }
        }
        index
    }

    pub(super) fn slots<'a>(
        &'a self,
        service: &ServiceId,
    ) -> impl Iterator<Item = (&'a Slot, &'a Arc<Vec<TaskId>>)> + use<'a> {
        self.slots.get(service).into_iter().flat_map(OrdMap::iter)
    }

    pub(super) fn slot(&self, service: &ServiceId, slot: &Slot) -> &[TaskId] {
        self.slots.get(service).and_then(|slots| slots.get(slot)).map_or(&[], |ids| ids.as_slice())
    }

    pub(super) fn node<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = &'a TaskId> + use<'a> {
        self.nodes.get(node).into_iter().flat_map(OrdSet::iter)
    }

    /// A task that is newer than every other of its slot.
    pub(super) fn add(&mut self, task: &Task) {
        let slots = self.slots.entry(task.service.clone()).or_default();
        Arc::make_mut(slots.entry(task.slot.clone()).or_default()).push(task.id.clone());
    }

    pub(super) fn remove(&mut self, task: &Task) {
        let Some(slots) = self.slots.get_mut(&task.service) else { return };
        if let Some(ids) = slots.get_mut(&task.slot) {
            Arc::make_mut(ids).retain(|id| *id != task.id);
            if ids.is_empty() {
                slots.remove(&task.slot);
            }
        }
        if slots.is_empty() {
            self.slots.remove(&task.service);
        }
    }

    pub(super) fn bind(&mut self, node: &NodeId, task: &TaskId) {
        self.nodes.entry(node.clone()).or_default().insert(task.clone());
    }

    pub(super) fn unbind(&mut self, node: &NodeId, task: &TaskId) {
        let Some(tasks) = self.nodes.get_mut(node) else { return };
        tasks.remove(task);
        if tasks.is_empty() {
            self.nodes.remove(node);
        }
    }
}
