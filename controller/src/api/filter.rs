//! What a caller named, found in the state. Pure.
//!
//! People write `web`, `hello/web`, `web.2` or the beginning of a task's id; what comes out names services, slots and
//! tasks exactly. What fits several things is refused with the list of them, what fits nothing with the nearest name.

use std::collections::BTreeSet;

use roster_proto::{
    id::{InvalidId, NodeId, ServiceId, ServiceName, Slot, StackName, TaskId},
    task::Task,
    wire,
};

use crate::state::ClusterState;

/// Candidates listed in an error; more are counted.
const LISTED: usize = 8;

/// Of a stack, a service in it, and a slot that is a node, together.
const LONGEST_NAME: usize = 256;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error(transparent)]
    Invalid(#[from] InvalidId),
    #[error("{given:?} is ambiguous, it could be any of these {what}s: {candidates}; write more of the one you mean")]
    Ambiguous { what: &'static str, given: String, candidates: String },
    #[error("{given:?} is not of {outer}: name only one of them")]
    Contradiction { given: String, outer: String },
    #[error("there is no {what} {given:?}{hint}")]
    NotFound { what: &'static str, given: String, hint: String },
}

/// What a filter means in the state it was resolved against. What is `None` does not narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    stack: Option<StackName>,
    service: Option<ServiceId>,
    task: Option<TaskSelection>,
    node: Option<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TaskSelection {
    /// One task, whatever takes its place.
    Task(TaskId, ServiceId),
    /// Whoever holds the slot.
    Slot(ServiceId, Slot),
}

impl Selection {
    pub fn resolve(state: &ClusterState, filter: &wire::Filter) -> Result<Self, FilterError> {
        let mut selection = Selection::default();
        if let Some(name) = &filter.stack {
            selection.stack = Some(resolve_stack(state, name)?);
        }
        if let Some(name) = &filter.service {
            let service = resolve_service(state, selection.stack.as_ref(), name)?;
            selection.service = Some(service);
        }
        if let Some(name) = &filter.task {
            selection.task = Some(resolve_task(state, &selection, name)?);
        }
        if let Some(name) = &filter.node {
            selection.node = Some(resolve_node(state, name)?);
        }
        Ok(selection)
    }

    /// What people call a thing: a replica (`web.2`), which no other name looks like, a service, a stack, or a task's id;
    /// the first that exists, in this order.
    pub fn named(state: &ClusterState, name: &str) -> Result<Self, FilterError> {
        let shown = || name.chars().take(LONGEST_NAME).collect();
        if name.len() > LONGEST_NAME {
            let hint = format!(": names have up to {LONGEST_NAME} letters");
            return Err(FilterError::NotFound { what: "service or task", given: shown(), hint });
        }
        let text = || Some(name.to_owned());
        let task = wire::Filter { task: text(), ..Default::default() };
        let service = wire::Filter { service: text(), ..Default::default() };
        let stack = wire::Filter { stack: text(), ..Default::default() };
        let readings = match (name.contains('.'), name.contains('/')) {
            (true, _) => vec![task],
            (false, true) => vec![service],
            (false, false) => vec![service, stack, task],
        };
        let mut refusal = None;
        for reading in &readings {
            match Self::resolve(state, reading) {
                Err(error @ (FilterError::NotFound { .. } | FilterError::Invalid(_))) => {
                    refusal.get_or_insert(error);
                }
                resolved => return resolved,
            }
        }
        let hint = "; `rctl services` and `rctl ps` list what there is".to_owned();
        Err(refusal.unwrap_or(FilterError::NotFound { what: "service or task", given: shown(), hint }))
    }

    pub fn has_service(&self, id: &ServiceId) -> bool {
        self.stack.as_ref().is_none_or(|stack| *stack == id.stack)
            && self.service.as_ref().is_none_or(|service| service == id)
            && match &self.task {
                Some(TaskSelection::Slot(service, _) | TaskSelection::Task(_, service)) => service == id,
                None => true,
            }
    }

    pub fn has_task(&self, task: &Task) -> bool {
        self.has_service(&task.service)
            && match &self.task {
                Some(TaskSelection::Task(id, _)) => *id == task.id,
                Some(TaskSelection::Slot(_, slot)) => *slot == task.slot,
                None => true,
            }
            && self.node.as_ref().is_none_or(|node| task.node.as_ref() == Some(node))
    }

    pub fn has_node(&self, id: &NodeId) -> bool {
        self.node.as_ref().is_none_or(|node| node == id)
    }

    /// Only this task, so that what comes after it does not belong.
    pub fn single_task(&self) -> Option<&TaskId> {
        match &self.task {
            Some(TaskSelection::Task(id, _)) => Some(id),
            _ => None,
        }
    }

    /// Narrower than services.
    pub fn narrows_tasks(&self) -> bool {
        self.task.is_some() || self.node.is_some()
    }

    /// Narrows by anything but the node.
    pub fn names_services(&self) -> bool {
        self.stack.is_some() || self.service.is_some() || self.task.is_some()
    }

    /// Of the stack as a whole, not of one service in it.
    pub fn has_stack(&self, name: &StackName) -> bool {
        self.stack.as_ref().is_none_or(|stack| stack == name) && self.service.is_none() && !self.narrows_tasks()
    }

    /// Of a task the state no longer holds: where it ran is not known any more.
    pub fn has_forgotten_task(&self, task: &TaskId, service: &ServiceId, slot: &Slot) -> bool {
        self.has_service(service)
            && match &self.task {
                Some(TaskSelection::Task(id, _)) => id == task,
                Some(TaskSelection::Slot(_, selected)) => selected == slot,
                None => true,
            }
            && self.node.is_none()
    }
}

/// The nodes named, each of which must exist.
pub fn resolve_node(state: &ClusterState, name: &str) -> Result<NodeId, FilterError> {
    let id = NodeId::new(name)?;
    if state.nodes.contains_key(&id) {
        return Ok(id);
    }
    Err(not_found("node", name, state.nodes.keys().map(ToString::to_string)))
}

fn resolve_stack(state: &ClusterState, name: &str) -> Result<StackName, FilterError> {
    let stack = StackName::new(name)?;
    if state.services.keys().any(|service| service.stack == stack) {
        return Ok(stack);
    }
    let stacks: BTreeSet<&StackName> = state.services.keys().map(|service| &service.stack).collect();
    Err(not_found("stack", name, stacks.into_iter().map(ToString::to_string)))
}

fn resolve_service(state: &ClusterState, stack: Option<&StackName>, name: &str) -> Result<ServiceId, FilterError> {
    let within = |id: &&ServiceId| stack.is_none_or(|stack| *stack == id.stack);
    if name.contains('/') {
        let id: ServiceId = name.parse()?;
        if let Some(stack) = stack.filter(|stack| **stack != id.stack) {
            return Err(FilterError::Contradiction { given: name.to_owned(), outer: format!("stack {stack}") });
        }
        if state.services.contains_key(&id) {
            return Ok(id);
        }
        return Err(not_found("service", name, state.services.keys().filter(within).map(ToString::to_string)));
    }
    let wanted = ServiceName::new(name)?;
    let mut found = state.services.keys().filter(within).filter(|id| id.name == wanted);
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id.clone()),
        (Some(_), Some(_)) => {
            let all = state.services.keys().filter(within).filter(|id| id.name == wanted);
            Err(ambiguous("service", name, all.map(ToString::to_string)))
        }
        (None, _) => Err(not_found("service", name, state.services.keys().filter(within).map(short_name))),
    }
}

fn resolve_task(state: &ClusterState, within: &Selection, name: &str) -> Result<TaskSelection, FilterError> {
    match name.rsplit_once('.') {
        Some((service, slot)) => resolve_slot(state, within, name, service, slot),
        None => resolve_task_id(state, within, name),
    }
}

fn resolve_slot(
    state: &ClusterState,
    within: &Selection,
    name: &str,
    service: &str,
    slot: &str,
) -> Result<TaskSelection, FilterError> {
    let has = |id: &&ServiceId| state.slots_of(id).any(|candidate| candidate.to_string() == slot);
    let service = match resolve_service(state, within.stack.as_ref(), service) {
        // Of several services of that name those count that have such a task.
        Err(FilterError::Ambiguous { .. }) => {
            let named = || state.services.keys().filter(|id| id.name.as_str() == service);
            let mut fitting = named().filter(has);
            match (fitting.next(), fitting.next()) {
                (Some(id), None) => id.clone(),
                (Some(_), Some(_)) => {
                    return Err(ambiguous("task", name, named().filter(has).map(|id| format!("{id}.{slot}"))));
                }
                (None, _) => {
                    let hint = "; `rctl ps` lists what there is".to_owned();
                    return Err(FilterError::NotFound { what: "task", given: name.to_owned(), hint });
                }
            }
        }
        service => service?,
    };
    if let Some(outer) = within.service.as_ref().filter(|outer| **outer != service) {
        return Err(FilterError::Contradiction { given: name.to_owned(), outer: format!("service {outer}") });
    }
    let names = || state.slots_of(&service).map(|slot| format!("{}.{slot}", service.name));
    match state.slots_of(&service).find(|candidate| candidate.to_string() == slot) {
        Some(slot) => Ok(TaskSelection::Slot(service.clone(), slot.clone())),
        None => Err(not_found("task", name, names())),
    }
}

fn resolve_task_id(state: &ClusterState, within: &Selection, prefix: &str) -> Result<TaskSelection, FilterError> {
    let first = TaskId::new(prefix)?;
    let fitting = || {
        state
            .tasks
            .range(first.clone()..)
            .take_while(|(id, _)| id.as_str().starts_with(prefix))
            .filter(|(_, task)| within.has_task(task))
    };
    let mut found = fitting();
    match (found.next(), found.next()) {
        // A whole id may begin another one.
        (Some((id, task)), _) if id.as_str() == prefix => Ok(TaskSelection::Task(id.clone(), task.service.clone())),
        (Some((id, task)), None) => Ok(TaskSelection::Task(id.clone(), task.service.clone())),
        (Some(_), Some(_)) => {
            Err(ambiguous("task", prefix, fitting().map(|(id, task)| format!("{id} ({})", task.name()))))
        }
        (None, _) if state.services.keys().any(|id| id.name.as_str() == prefix) => {
            let hint = format!(": it is a service; its tasks are {prefix}.1, {prefix}.2, ...");
            Err(FilterError::NotFound { what: "task", given: prefix.to_owned(), hint })
        }
        (None, _) => {
            let hint = "; `rctl ps` lists what there is".to_owned();
            Err(FilterError::NotFound { what: "task", given: prefix.to_owned(), hint })
        }
    }
}

fn short_name(id: &ServiceId) -> String {
    id.name.to_string()
}

fn ambiguous(what: &'static str, given: &str, candidates: impl Iterator<Item = String>) -> FilterError {
    let mut candidates: Vec<String> = candidates.collect();
    if candidates.len() > LISTED {
        let more = candidates.len() - LISTED;
        candidates.truncate(LISTED);
        candidates.push(format!("and {more} more"));
    }
    FilterError::Ambiguous { what, given: given.to_owned(), candidates: candidates.join(", ") }
}

fn not_found(what: &'static str, given: &str, candidates: impl Iterator<Item = String>) -> FilterError {
    let near = candidates.map(|candidate| (distance(given, &candidate), candidate)).min();
    // Further away than this, the name is no help.
    let tolerance = (given.len() + 1) / 3;
    let hint = match near {
        Some((away, name)) if away <= tolerance => format!(": did you mean {name:?}?"),
        Some(_) => format!("; `rctl {}` lists what there is", listing(what)),
        None => format!(": there are no {what}s yet"),
    };
    FilterError::NotFound { what, given: given.to_owned(), hint }
}

fn listing(what: &str) -> &'static str {
    match what {
        "node" => "node ls",
        "task" => "ps",
        _ => "services",
    }
}

/// Levenshtein's: single-letter insertions, deletions and substitutions that turn the one into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
