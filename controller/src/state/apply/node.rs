//! What agents say: that they are there, and how their tasks are.

use std::collections::BTreeMap;

use std::sync::Arc;

use roster_proto::{
    cause::Cause,
    id::NodeId,
    node::{Availability, Node, NodeDescription, NodeState},
    task::{Desired, Health, Task, TaskReport, TaskState, TaskStatus},
};

use super::Edit;
use crate::state::{MAX_NODES, command::Refusal};

impl Edit<'_> {
    pub(super) fn register_node(&mut self, id: &NodeId, description: &NodeDescription) -> Result<(), Refusal> {
        let Some(before) = self.state.nodes.get(id).cloned() else {
            return self.add_node(id, description);
        };
        if before.state == NodeState::Ready && before.description == *description {
            return Ok(());
        }
        let mut next = Node::clone(&before);
        next.description = description.clone();
        self.put_node(next);
        if before.state != NodeState::Ready {
            self.enter_node_state(id, NodeState::Ready);
        }
        Ok(())
    }

    fn add_node(&mut self, id: &NodeId, description: &NodeDescription) -> Result<(), Refusal> {
        if self.state.nodes.len() >= MAX_NODES {
            return Err(Refusal::Limit(format!("node {id} cannot join: {MAX_NODES} nodes are allowed")));
        }
        self.put_node(Node {
            id: id.clone(),
            description: description.clone(),
            state: NodeState::Ready,
            availability: Availability::Active,
            since: self.at,
            generation: self.version,
            labels: BTreeMap::new(),
            fenced: false,
        });
        self.tell_node(id, || format!("node {id} has joined"));
        Ok(())
    }

    pub(super) fn set_node_state(&mut self, id: &NodeId, state: NodeState) -> Result<(), Refusal> {
        let node = self.state.nodes.get(id).ok_or_else(|| Refusal::NoSuchNode(id.clone()))?;
        if node.state != state {
            self.enter_node_state(id, state);
        }
        Ok(())
    }

    fn enter_node_state(&mut self, id: &NodeId, state: NodeState) {
        let Some(node) = self.state.nodes.get(id) else { return };
        let mut next = Node::clone(node);
        next.state = state;
        next.since = self.at;
        self.put_node(next);
        match state {
            NodeState::Ready => {
                self.tell_node(id, || format!("node {id} is Ready"));
                self.forget_node_down(id);
            }
            NodeState::Down => self.tell_node(id, || format!("node {id} is Down: it no longer answers")),
        }
    }

    /// The node answers again: its tasks no longer wait for it.
    fn forget_node_down(&mut self, id: &NodeId) {
        let waits = |task: &&Arc<Task>| matches!(task.status.cause, Some(Cause::NodeDown { .. }));
        let waiting: Vec<Arc<Task>> = self.state.tasks_on(id).filter(waits).cloned().collect();
        for task in waiting {
            let mut next = Task::clone(&task);
            next.status.cause = None;
            self.put_task(next);
        }
    }

    /// Takes what is new in a report. Reports may come late, twice, or for tasks long gone.
    pub(super) fn report(&mut self, node: &NodeId, report: &TaskReport) {
        let Some(task) = self.state.tasks.get(&report.task) else { return };
        if task.node.as_ref() != Some(node) {
            return;
        }
        let Some(status) = next_status(task, &report.status) else { return };
        let before = task.status.clone();
        let mut next = Task::clone(task);
        next.status = status;
        self.put_task(next.clone());
        if before.state != next.status.state {
            self.tell_task(&next, || format!("{} is {} on {node}", next.name(), next.status.state));
        } else if before.health != next.status.health && next.status.health != Health::None {
            self.tell_task(&next, || format!("{} is {} on {node}", next.name(), next.status.health));
        }
    }
}

/// The status after the report; `None` when the report says nothing new. An ended task stays as it ended, and only
/// the controller decides that a task is orphaned.
fn next_status(task: &Task, reported: &TaskStatus) -> Option<TaskStatus> {
    let before = &task.status;
    let backwards = reported.state < before.state || reported.state <= TaskState::Pending;
    if before.state.is_terminal() || reported.state == TaskState::Orphaned || backwards {
        return None;
    }
    let mut next = reported.clone();
    let began = (next.state == TaskState::Running).then_some(next.since);
    next.started = reported.started.or(before.started).or(began);
    if next.state.is_terminal() {
        next.finished = reported.finished.or(Some(next.since));
        next.cause = reported.cause.clone().or_else(|| unexplained(task, next.state));
    }
    (next != *before).then_some(next)
}

/// No task ends without a cause, whatever the agent left out.
fn unexplained(task: &Task, state: TaskState) -> Option<Cause> {
    let untold = || "the agent did not say".to_owned();
    Some(match (state, &task.desired) {
        (TaskState::Complete, _) => Cause::Exited { code: 0 },
        (TaskState::Rejected, _) => Cause::Impossible { what: "the task".to_owned(), reason: untold() },
        (_, Desired::Stop(reason)) => Cause::Stopped { reason: reason.clone() },
        (_, Desired::Run) => Cause::StartFailed { step: "unknown".to_owned(), error: untold() },
    })
}
