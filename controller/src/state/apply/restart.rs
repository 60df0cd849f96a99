//! What people want begun anew, though its spec is the same.

use std::{collections::BTreeSet, sync::Arc};

use roster_proto::{
    id::{ServiceId, TaskId},
    task::{Desired, StopReason, Task},
};

use super::Edit;
use crate::state::{Service, command::Refusal};

impl Edit<'_> {
    pub(super) fn restart(&mut self, services: &BTreeSet<ServiceId>, tasks: &BTreeSet<TaskId>) -> Result<(), Refusal> {
        services.iter().try_for_each(|id| self.restart_service(id))?;
        tasks.iter().try_for_each(|id| self.restart_task(id))
    }

    /// The same task spec under a new version: every task is outdated, and the rollout replaces them.
    fn restart_service(&mut self, id: &ServiceId) -> Result<(), Refusal> {
        let mut next = Service::clone(&*self.service_to_restart(id)?);
        next.spec_version = self.version;
        next.specs.insert(self.version, Arc::new(next.spec.task.clone()));
        next.published.insert(self.version, next.ports.clone());
        self.put_service(next);
        self.tell_service(id, || format!("{id} is being restarted"));
        self.drop_unused_specs(id);
        Ok(())
    }

    /// What is told to stop is replaced at once. A task that has ended is marked, so that its slot is not left as it
    /// ended.
    fn restart_task(&mut self, id: &TaskId) -> Result<(), Refusal> {
        let task = self.state.tasks.get(id).cloned().ok_or_else(|| Refusal::NoSuchTask(id.clone()))?;
        self.service_to_restart(&task.service)?;
        if !task.status.state.is_terminal() {
            self.stop_task(id, &StopReason::Restarted);
            return Ok(());
        }
        if self.state.newest_task(&task.service, &task.slot).is_none_or(|newest| newest.id != *id) {
            return Err(Refusal::Replaced { task: id.clone(), name: task.name() });
        }
        if task.desired == Desired::Run {
            let next = Task { desired: Desired::Stop(StopReason::Restarted), ..Task::clone(&task) };
            self.tell_task(&next, || format!("{} is to be restarted", next.name()));
            self.put_task(next);
        }
        Ok(())
    }

    fn service_to_restart(&self, id: &ServiceId) -> Result<Arc<Service>, Refusal> {
        let service = self.state.services.get(id).cloned().ok_or_else(|| Refusal::NoSuchService(id.clone()))?;
        self.refuse_one_off(id)?;
        if service.removing { Err(Refusal::BeingRemoved(id.clone())) } else { Ok(service) }
    }
}
