//! Tasks that people run once, each in the record of a service of its own.

use std::{collections::BTreeMap, sync::Arc};

use roster_proto::{id::ServiceId, spec::ServiceSpec};

use super::Edit;
use crate::state::{OneOff, Service, command::Refusal};

impl Edit<'_> {
    pub(super) fn run_once(&mut self, id: &ServiceId, one_off: &OneOff, spec: &ServiceSpec) -> Result<(), Refusal> {
        let of = ServiceId::new(id.stack.clone(), one_off.of.clone());
        let service = self.state.services.get(&of).ok_or_else(|| Refusal::NoSuchService(of.clone()))?;
        if service.removing {
            return Err(Refusal::BeingRemoved(of));
        }
        self.refuse_one_off(&of)?;
        if self.state.services.contains_key(id) {
            return Err(Refusal::ServiceExists(id.clone()));
        }
        let version = self.version;
        self.put_service(Service {
            id: id.clone(),
            spec: spec.clone(),
            version,
            spec_version: version,
            specs: BTreeMap::from([(version, Arc::new(spec.task.clone()))]),
            ports: Vec::new(),
            published: BTreeMap::from([(version, Vec::new())]),
            removing: false,
            created: self.at,
            updated_at: self.at,
            one_off: Some(one_off.clone()),
        });
        self.refuse_beyond_limits()?;
        self.tell_service(id, || format!("{id} is to run once, for {of}"));
        Ok(())
    }

    /// What runs once is never changed, nor begun anew.
    pub(super) fn refuse_one_off(&self, id: &ServiceId) -> Result<(), Refusal> {
        match self.state.services.get(id) {
            Some(service) if service.one_off.is_some() => Err(Refusal::OneOff(id.clone())),
            _ => Ok(()),
        }
    }

    /// It has ended and was to be removed then.
    pub(super) fn retire(&mut self, id: &ServiceId) {
        let retires = |service: &&Arc<Service>| service.one_off.as_ref().is_some_and(|it| it.remove_when_ended);
        if self.state.services.get(id).filter(retires).is_some() {
            self.begin_removal(id);
        }
    }
}
