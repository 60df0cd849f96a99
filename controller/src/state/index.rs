//! Which tasks a slot has and which a node runs. Derived from the tasks alone: never stored, rebuilt on load.

use std::sync::Arc;

use imbl::OrdMap;
use roster_proto::{
    id::{NodeId, ServiceId, Slot, TaskId},
    task::{Desired, Task},
};

/// The tasks of one slot.
type Attempts = Arc<Vec<Arc<Task>>>;

/// Holds the tasks themselves: a plan looks at every one of them several times, and finding one by its id is most of
/// what that costs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    /// Oldest first. `created` is strictly increasing within a slot, so that a rebuilt index has the same order.
    slots: OrdMap<ServiceId, OrdMap<Slot, Attempts>>,
    /// Bound and not ended.
    nodes: OrdMap<NodeId, OrdMap<TaskId, Arc<Task>>>,
}

/// A task's part in the assignment set of its node.
pub(super) fn offer(task: &Task) -> Option<(&NodeId, &Desired, bool)> {
    let node = task.node.as_ref().filter(|_| !task.status.state.is_terminal())?;
    Some((node, &task.desired, task.paused))
}

impl Index {
    pub(super) fn of<'a>(tasks: impl Iterator<Item = &'a Arc<Task>>) -> Self {
        let mut ordered: Vec<&Arc<Task>> = tasks.collect();
        ordered.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        let mut index = Self::default();
        ordered.into_iter().for_each(|task| index.put(task));
        index
    }

    pub(super) fn slots<'a>(
        &'a self,
        service: &ServiceId,
    ) -> impl Iterator<Item = (&'a Slot, &'a [Arc<Task>])> + use<'a> {
        self.slots.get(service).into_iter().flat_map(OrdMap::iter).map(|(slot, tasks)| (slot, tasks.as_slice()))
    }

    pub(super) fn slot(&self, service: &ServiceId, slot: &Slot) -> &[Arc<Task>] {
        self.slots.get(service).and_then(|slots| slots.get(slot)).map_or(&[], |tasks| tasks.as_slice())
    }

    pub(super) fn node<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        self.nodes.get(node).into_iter().flat_map(OrdMap::values)
    }

    /// A task that is newer than every other of its slot, or one that is there already.
    pub(super) fn put(&mut self, task: &Arc<Task>) {
        let slots = self.slots.entry(task.service.clone()).or_default();
        let tasks = Arc::make_mut(slots.entry(task.slot.clone()).or_default());
        match tasks.iter_mut().rfind(|known| known.id == task.id) {
            Some(known) => *known = Arc::clone(task),
            None => tasks.push(Arc::clone(task)),
        }
        if let Some((node, ..)) = offer(task) {
            self.nodes.entry(node.clone()).or_default().insert(task.id.clone(), Arc::clone(task));
        }
    }

    pub(super) fn remove(&mut self, task: &Task) {
        let Some(slots) = self.slots.get_mut(&task.service) else { return };
        if let Some(tasks) = slots.get_mut(&task.slot) {
            Arc::make_mut(tasks).retain(|known| known.id != task.id);
            if tasks.is_empty() {
                slots.remove(&task.slot);
            }
        }
        if slots.is_empty() {
            self.slots.remove(&task.service);
        }
    }

    pub(super) fn unbind(&mut self, node: &NodeId, task: &TaskId) {
        let Some(tasks) = self.nodes.get_mut(node) else { return };
        tasks.remove(task);
        if tasks.is_empty() {
            self.nodes.remove(node);
        }
    }
}
