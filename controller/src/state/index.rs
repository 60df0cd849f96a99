//! Which tasks a slot has and which a node runs. Derived from the tasks alone: never stored, rebuilt on load.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use roster_proto::{
    id::{NodeId, ServiceId, Slot, TaskId},
    task::{Desired, Task, TaskState},
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
    /// Of each slot the last that failed, by the node that keeps its container.
    kept: OrdMap<NodeId, OrdSet<TaskId>>,
}

/// A task's part in the assignment set of its node.
pub(super) fn offer(task: &Task) -> Option<(&NodeId, &Desired, bool)> {
    let node = task.node.as_ref().filter(|_| !task.status.state.is_terminal())?;
    Some((node, &task.desired, task.paused))
}

/// Ran, and failed: there is a container to look at.
fn failed(task: &Task) -> bool {
    task.status.state == TaskState::Failed && task.node.is_some() && task.status.started.is_some()
}

impl Index {
    pub(super) fn of<'a>(tasks: impl Iterator<Item = &'a Arc<Task>>) -> Self {
        let mut ordered: Vec<&Arc<Task>> = tasks.collect();
        ordered.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        let mut index = Self::default();
        for task in ordered {
            index.put(task);
        }
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

    /// Of the slot's tasks, the last that failed.
    pub(super) fn kept(&self, service: &ServiceId, slot: &Slot) -> Option<&Arc<Task>> {
        self.slot(service, slot).iter().rfind(|task| failed(task))
    }

    pub(super) fn kept_on<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = &'a TaskId> + use<'a> {
        self.kept.get(node).into_iter().flatten()
    }

    /// A task that is newer than every other of its slot, or one that is there already. The nodes that keep other
    /// containers for it.
    pub(super) fn put(&mut self, task: &Arc<Task>) -> Vec<NodeId> {
        let before = self.kept(&task.service, &task.slot).cloned();
        self.put_in_place(task);
        self.keep_instead(before, task)
    }

    fn keep_instead(&mut self, before: Option<Arc<Task>>, of_slot: &Task) -> Vec<NodeId> {
        let after = self.kept(&of_slot.service, &of_slot.slot).cloned();
        if before.as_ref().map(|task| &task.id) == after.as_ref().map(|task| &task.id) {
            return Vec::new();
        }
        if let Some((task, node)) = before.as_ref().and_then(|task| Some((task, task.node.as_ref()?)))
            && let Some(kept) = self.kept.get_mut(node)
        {
            kept.remove(&task.id);
            if kept.is_empty() {
                self.kept.remove(node);
            }
        }
        if let Some((task, node)) = after.as_ref().and_then(|task| Some((task, task.node.as_ref()?))) {
            self.kept.entry(node.clone()).or_default().insert(task.id.clone());
        }
        before.iter().chain(&after).filter_map(|task| task.node.clone()).collect()
    }

    fn put_in_place(&mut self, task: &Arc<Task>) {
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

    /// The nodes that keep other containers for it.
    pub(super) fn remove(&mut self, task: &Task) -> Vec<NodeId> {
        let before = self.kept(&task.service, &task.slot).cloned();
        self.remove_from_slot(task);
        self.keep_instead(before, task)
    }

    fn remove_from_slot(&mut self, task: &Task) {
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
