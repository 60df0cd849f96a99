//! One command turns one state into the next.
//!
//! Every command works on a copy (which is cheap), so that a refusal in its middle leaves nothing behind. All writes
//! go through [`Edit`], which keeps the indexes and the nodes' generations in step.

mod brake;
mod change;
mod controllers;
mod node;
mod one_off;
mod pause;
mod restart;
mod security;
mod stack;

use std::sync::Arc;

use roster_proto::{
    cause::Cause,
    id::{NodeId, ServiceId, TaskId, Version},
    node::Node,
    report::{Event, Subject},
    task::Task,
    time::Timestamp,
};

use super::{
    ClusterState, EVENTS_KEPT, Service,
    command::{Change, Command, Entry, Outcome, Refusal},
    index,
    requests::Answered,
};

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Of the command; of the first one, when its request had come before.
    pub version: Version,
    pub outcome: Outcome,
    /// What to tell those who watch; the state keeps them too.
    pub events: Vec<Event>,
}

impl ClusterState {
    /// Applies the command at log position `version`. The same state, version and entry always give the same result.
    pub fn apply(&mut self, version: Version, entry: &Entry) -> Applied {
        if let Some(before) = entry.request.as_deref().and_then(|id| self.requests.get(id)) {
            let applied = Applied { version: before.version, outcome: before.outcome.clone(), events: Vec::new() };
            self.version = version;
            return applied;
        }
        let applied = self.apply_once(version, entry);
        self.version = version;
        if let Some(id) = &entry.request {
            let outcome = applied.outcome.clone();
            self.requests.remember(Answered { id: id.clone(), version, outcome });
        }
        applied
    }

    fn apply_once(&mut self, version: Version, entry: &Entry) -> Applied {
        let mut next = self.clone();
        let mut edit = Edit::new(&mut next, version, entry.at);
        let result = edit.command(&entry.command);
        let (changed, events) = (edit.changed, edit.events);
        let outcome = match result {
            Err(refusal) => Outcome::Refused(refusal),
            Ok(()) if !changed => Outcome::Unchanged,
            Ok(()) => {
                next.keep_events(&events);
                next.raise_bases(version, &entry.command);
                *self = next;
                return Applied { version, outcome: Outcome::Applied, events };
            }
        };
        Applied { version, outcome, events: Vec::new() }
    }

    /// What one change of a plan would make of this state, without its events.
    pub(crate) fn rehearse(&mut self, at: Timestamp, change: &Change) {
        let version = self.version;
        let mut edit = Edit::new(self, version, at);
        edit.silent = true;
        edit.change(change);
    }

    fn keep_events(&mut self, events: &[Event]) {
        for event in events {
            self.events.push_back(Arc::new(event.clone()));
        }
        while self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
    }

    fn raise_bases(&mut self, version: Version, command: &Command) {
        match command {
            // Neither specs nor nodes.
            Command::Report { .. }
            | Command::InitCluster { .. }
            | Command::PutController { .. }
            | Command::SetControllerSilent { .. }
            | Command::SetSpares { .. }
            | Command::DismissController { .. }
            | Command::RemoveController { .. }
            | Command::Configure { .. }
            | Command::SetAuthorities { .. }
            | Command::PutToken { .. }
            | Command::RevokeToken { .. }
            | Command::UseToken { .. }
            | Command::PutGrant { .. }
            | Command::PutUser { .. }
            | Command::RemoveUser { .. } => {}
            Command::ApplyPlan { .. } => self.plan_base = version,
            Command::PutStack { .. }
            | Command::RemoveStack { .. }
            | Command::RemoveService { .. }
            | Command::Scale { .. }
            | Command::Restart { .. }
            | Command::SetPaused { .. }
            | Command::RunOnce { .. }
            | Command::RegisterNode { .. }
            | Command::SetNodesDown { .. }
            | Command::SettleNode { .. }
            | Command::SetAvailability { .. }
            | Command::SetNodeLabels { .. }
            | Command::RemoveNode { .. }
            | Command::SetNodeFenced { .. }
            | Command::ReleaseBrake => {
                self.plan_base = version;
                self.intent_base = version;
            }
        }
    }
}

/// A state being changed by one command.
struct Edit<'a> {
    state: &'a mut ClusterState,
    version: Version,
    at: Timestamp,
    events: Vec<Event>,
    changed: bool,
    silent: bool,
}

impl<'a> Edit<'a> {
    fn new(state: &'a mut ClusterState, version: Version, at: Timestamp) -> Self {
        Self { state, version, at, events: Vec::new(), changed: false, silent: false }
    }

    fn command(&mut self, command: &Command) -> Result<(), Refusal> {
        match command {
            Command::PutStack { stack, prune, base } => self.put_stack(stack, *prune, *base),
            Command::RemoveStack { stack } => self.remove_stack(stack),
            Command::RemoveService { service } => self.remove_service(service),
            Command::Scale { replicas } => self.scale(replicas),
            Command::Restart { services, tasks } => self.restart(services, tasks),
            Command::RunOnce { service, one_off, spec } => self.run_once(service, one_off, spec),
            Command::SetPaused { tasks, paused } => self.set_paused(tasks, *paused),
            Command::RegisterNode { node, description } => self.register_node(node, description),
            Command::SetNodesDown { nodes } => {
                self.set_nodes_down(nodes);
                Ok(())
            }
            Command::SettleNode { node, generation } => self.settle_node(node, *generation),
            Command::Report { node, reports } => {
                reports.iter().for_each(|report| self.report(node, report));
                Ok(())
            }
            Command::PutController { id, name, address, release, protocol, spare } => {
                self.put_controller(*id, name, address, release, *protocol, *spare)
            }
            Command::SetControllerSilent { id, silent } => self.set_controller_silent(*id, *silent),
            Command::SetSpares { spares } => self.set_spares(spares),
            Command::DismissController { id } => self.dismiss_controller(*id),
            Command::RemoveController { id } => self.remove_controller(*id),
            Command::SetAvailability { node, availability } => self.set_availability(node, *availability),
            Command::SetNodeLabels { node, put, remove } => self.set_node_labels(node, put, remove),
            Command::RemoveNode { node, force } => self.remove_node(node, *force),
            Command::SetNodeFenced { node } => self.set_node_fenced(node),
            Command::ReleaseBrake => {
                self.release_brake();
                Ok(())
            }
            Command::InitCluster { cluster, authority } => self.init_cluster(cluster, authority),
            Command::Configure { settings } => self.configure(settings),
            Command::SetAuthorities { authorities } => self.set_authorities(authorities),
            Command::PutToken { id, role, digest, expires, uses } => self.put_token(id, *role, digest, *expires, *uses),
            Command::RevokeToken { id } => self.revoke_token(id),
            Command::UseToken { id, digest, name, grant } => self.use_token(id, digest, name, grant),
            Command::PutGrant { holder, grant } => self.renew_grant(holder, grant),
            Command::PutUser { name, role, grant } => self.put_user(name, *role, grant),
            Command::RemoveUser { name } => self.remove_user(name),
            Command::ApplyPlan { base, changes } => self.apply_plan(*base, changes),
        }
    }

    fn put_service(&mut self, service: Service) {
        self.changed = true;
        self.state.services.insert(service.id.clone(), Arc::new(service));
    }

    fn put_node(&mut self, node: Node) {
        self.changed = true;
        self.state.nodes.insert(node.id.clone(), Arc::new(node));
    }

    /// Writes a task that is there already, or the newest of its slot.
    fn put_task(&mut self, task: Task) {
        self.changed = true;
        let before = self.state.tasks.get(&task.id).cloned();
        let before = before.as_deref().and_then(index::offer);
        let after = index::offer(&task);
        if before != after {
            if let Some((node, ..)) = before {
                self.state.index.unbind(node, &task.id);
                self.raise_generation(node);
            }
            if let Some((node, ..)) = after {
                self.raise_generation(node);
            }
        }
        let task = Arc::new(task);
        let keepers = self.state.index.put(&task);
        keepers.iter().for_each(|node| self.raise_generation(node));
        self.state.tasks.insert(task.id.clone(), task);
    }

    /// Forgets a task that has ended.
    fn drop_task(&mut self, id: &TaskId) {
        let Some(task) = self.state.tasks.remove(id) else { return };
        self.changed = true;
        let keepers = self.state.index.remove(&task);
        keepers.iter().for_each(|node| self.raise_generation(node));
    }

    fn raise_generation(&mut self, node: &NodeId) {
        if let Some(node) = self.state.nodes.get_mut(node) {
            Arc::make_mut(node).generation = self.version;
        }
    }

    /// Forgets the task specs that neither a task nor the next task of the service needs.
    fn drop_unused_specs(&mut self, id: &ServiceId) {
        let Some(service) = self.state.services.get(id) else { return };
        if service.specs.len() <= 1 {
            return;
        }
        let mut used: Vec<Version> = self.state.tasks_of(id).map(|task| task.spec_version).collect();
        used.push(service.spec_version);
        used.sort_unstable();
        let needed = |version: &Version| used.binary_search(version).is_ok();
        if service.specs.keys().all(needed) {
            return;
        }
        let mut service = Service::clone(service);
        service.specs.retain(|version, _| needed(version));
        service.published.retain(|version, _| needed(version));
        self.put_service(service);
    }

    fn tell(&mut self, subject: Subject, message: impl FnOnce() -> String, cause: Option<&Cause>) {
        if !self.silent {
            let event =
                Event { version: self.version, at: self.at, subject, message: message(), cause: cause.cloned() };
            self.events.push(event);
        }
    }

    fn tell_service(&mut self, service: &ServiceId, message: impl FnOnce() -> String) {
        self.tell(Subject::Service { service: service.clone() }, message, None);
    }

    fn tell_node(&mut self, node: &NodeId, message: impl FnOnce() -> String) {
        self.tell(Subject::Node { node: node.clone() }, message, None);
    }

    fn tell_task(&mut self, task: &Task, message: impl FnOnce() -> String) {
        if self.silent {
            return;
        }
        let subject = Subject::Task { task: task.id.clone(), service: task.service.clone(), slot: task.slot.clone() };
        self.tell(subject, message, task.status.cause.as_ref());
    }
}
