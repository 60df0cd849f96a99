//! What agents say: that they are there, and how their tasks are.

use std::collections::BTreeMap;

use std::sync::Arc;

use roster_proto::{
    cause::Cause,
    id::{NodeId, Version},
    node::{Availability, Node, NodeDescription, NodeState},
    task::{Desired, Health, Task, TaskReport, TaskState, TaskStatus},
};

use super::Edit;
use crate::state::{Holder, MAX_LABEL_NAME, MAX_LABEL_VALUE, MAX_NODE_LABELS, MAX_NODES, command::Refusal};

impl Edit<'_> {
    pub(super) fn register_node(&mut self, id: &NodeId, description: &NodeDescription) -> Result<(), Refusal> {
        let Some(before) = self.state.nodes.get(id) else {
            return self.add_node(id, description);
        };
        if before.description != *description {
            let mut next = Node::clone(before);
            next.description = description.clone();
            self.put_node(next);
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
            state: NodeState::Down,
            availability: Availability::Active,
            since: self.at,
            generation: self.version,
            labels: BTreeMap::new(),
            fenced: true,
            joined: self.at,
        });
        self.tell_node(id, || format!("node {id} has joined"));
        Ok(())
    }

    pub(super) fn set_nodes_down(&mut self, nodes: &[NodeId]) {
        for id in nodes {
            if self.state.node_is_ready(id) {
                self.enter_node_state(id, NodeState::Down);
            }
        }
    }

    pub(super) fn settle_node(&mut self, id: &NodeId, generation: Version) -> Result<(), Refusal> {
        let node = self.state.nodes.get(id).ok_or_else(|| Refusal::NoSuchNode(id.clone()))?;
        if node.state != NodeState::Ready && node.generation == generation {
            self.enter_node_state(id, NodeState::Ready);
        }
        Ok(())
    }

    fn enter_node_state(&mut self, id: &NodeId, state: NodeState) {
        let Some(node) = self.state.nodes.get(id) else { return };
        let mut next = Node::clone(node);
        next.state = state;
        next.since = self.at;
        next.fenced = false;
        self.put_node(next);
        match state {
            NodeState::Ready => {
                self.tell_node(id, || format!("node {id} is Ready"));
                // It answers again: its tasks no longer wait for it.
                self.forget_causes(id, |cause| {
                    matches!(cause, Cause::NodeDown { .. } | Cause::Braked { .. } | Cause::WaitsForLease { .. })
                });
                self.note_return(id);
            }
            NodeState::Down => {
                self.tell_node(id, || format!("node {id} is Down: it no longer answers"));
                self.note_departure(id);
            }
        }
    }

    pub(super) fn set_node_fenced(&mut self, id: &NodeId) -> Result<(), Refusal> {
        let node = self.state.nodes.get(id).ok_or_else(|| Refusal::NoSuchNode(id.clone()))?;
        if node.state == NodeState::Down && !node.fenced {
            let mut next = Node::clone(node);
            next.fenced = true;
            self.put_node(next);
            self.tell_node(id, || format!("every lease of node {id} has run out"));
        }
        Ok(())
    }

    pub(super) fn set_availability(&mut self, id: &NodeId, availability: Availability) -> Result<(), Refusal> {
        let node = self.state.nodes.get(id).ok_or_else(|| Refusal::NoSuchNode(id.clone()))?;
        if node.availability != availability {
            let mut next = Node::clone(node);
            next.availability = availability;
            self.put_node(next);
            if availability != Availability::Drain {
                self.forget_causes(id, |cause| matches!(cause, Cause::NoNode { .. }));
            }
            self.tell_node(id, || match availability {
                Availability::Active => format!("node {id} takes tasks again"),
                Availability::Pause => format!("node {id} is paused: it takes no new tasks"),
                Availability::Drain => format!("node {id} is being drained: its tasks are moved away"),
            });
        }
        Ok(())
    }

    pub(super) fn set_node_labels(
        &mut self,
        id: &NodeId,
        put: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Result<(), Refusal> {
        let node = self.state.nodes.get(id).ok_or_else(|| Refusal::NoSuchNode(id.clone()))?;
        put.iter().try_for_each(|(name, value)| refuse_bad_label(name, value))?;
        let mut next = Node::clone(node);
        for name in remove {
            if next.labels.remove(name).is_none() {
                return Err(Refusal::NoSuchLabel {
                    node: id.clone(),
                    label: name.chars().take(MAX_LABEL_NAME).collect(),
                    own: node.description.labels.contains_key(name),
                });
            }
        }
        next.labels.extend(put.iter().map(|(name, value)| (name.clone(), value.clone())));
        if next.labels.len() > MAX_NODE_LABELS {
            let text = format!("node {id} would have {} labels, {MAX_NODE_LABELS} are allowed", next.labels.len());
            return Err(Refusal::Limit(text));
        }
        if next.labels != node.labels {
            self.put_node(next);
            self.tell_node(id, || format!("the labels of node {id} have changed"));
        }
        Ok(())
    }

    pub(super) fn remove_node(&mut self, id: &NodeId, force: bool) -> Result<(), Refusal> {
        let node = self.state.nodes.get(id).cloned().ok_or_else(|| Refusal::NoSuchNode(id.clone()))?;
        let tasks: Vec<Arc<Task>> = self.state.tasks_on(id).cloned().collect();
        let emptied = node.availability == Availability::Drain && tasks.is_empty();
        if node.state == NodeState::Ready && !emptied && !force {
            return Err(Refusal::NodeBusy { node: id.clone(), tasks: tasks.len() });
        }
        let is_singleton = |task: &&Arc<Task>| self.state.task_spec(task).is_some_and(|spec| spec.singleton);
        if let Some(task) = tasks.iter().find(is_singleton).filter(|_| !node.fenced && !force) {
            return Err(Refusal::NotFenced { node: id.clone(), task: task.name() });
        }
        self.revoke(Holder::Agent(id.to_string()))?;
        for task in &tasks {
            self.orphan_task(&task.id, &Cause::NodeLost { node: id.clone() });
        }
        self.changed = true;
        self.state.nodes.remove(id);
        self.tell_node(id, || format!("node {id} is removed"));
        self.note_return(id);
        Ok(())
    }

    /// What the node's tasks wait for no longer.
    fn forget_causes(&mut self, id: &NodeId, over: impl Fn(&Cause) -> bool) {
        let waits = |task: &&Arc<Task>| task.status.cause.as_ref().is_some_and(&over);
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
        } else if before.paused != next.status.paused {
            let verb = if next.status.paused { "stands still" } else { "goes on" };
            self.tell_task(&next, || format!("{} {verb} on {node}", next.name()));
        } else if before.health != next.status.health && next.status.health != Health::None {
            self.tell_task(&next, || format!("{} is {} on {node}", next.name(), next.status.health));
        }
    }
}

fn refuse_bad_label(name: &str, value: &str) -> Result<(), Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    if name.is_empty() || name.len() > MAX_LABEL_NAME || !name.chars().all(plain) {
        return Err(Refusal::InvalidLabel {
            what: "a label's name".to_owned(),
            value: name.chars().take(MAX_LABEL_NAME).collect(),
            rule: format!("use 1 to {MAX_LABEL_NAME} letters, digits, '.', '-', '_' or '/'"),
        });
    }
    if value.len() > MAX_LABEL_VALUE || value.chars().any(char::is_control) {
        return Err(Refusal::InvalidLabel {
            what: format!("the value of label {name}"),
            value: value.chars().take(MAX_LABEL_VALUE).collect(),
            rule: format!("use up to {MAX_LABEL_VALUE} bytes, none of them a control character"),
        });
    }
    Ok(())
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
