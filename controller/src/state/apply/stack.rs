//! What users want: stacks put and removed, services scaled.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use roster_proto::{
    id::{ServiceId, StackName, Version},
    report::Subject,
    spec::{Mode, ServiceSpec, StackSpec},
};

use super::Edit;
use crate::state::{MAX_REPLICAS, MAX_SERVICES, MAX_WANTED, Service, command::Refusal, ports::Taken};

impl Edit<'_> {
    pub(super) fn put_stack(&mut self, stack: &StackSpec, prune: bool, base: Option<Version>) -> Result<(), Refusal> {
        // A plan's base is a `plan_base`; the controller's own plans raise that one too, and do not make a user's stale.
        if let Some(base) = base.filter(|base| *base < self.state.intent_base || *base > self.state.version) {
            return Err(Refusal::Stale { base, now: self.state.plan_base });
        }
        if prune {
            let named = |id: &ServiceId| stack.services.contains_key(&id.name);
            for id in self.services_of(&stack.name).into_iter().filter(|id| !named(id)) {
                // What runs once is in no file.
                if self.refuse_one_off(&id).is_ok() {
                    self.begin_removal(&id);
                }
            }
        }
        let mut reported = Vec::new();
        let mut touched = BTreeSet::new();
        for (name, spec) in &stack.services {
            let id = ServiceId::new(stack.name.clone(), name.clone());
            self.refuse_one_off(&id)?;
            refuse_too_many(&id, &spec.mode, spec.task.singleton)?;
            if let Some((service, message)) = self.next_service(&id, spec) {
                touched.insert(id.clone());
                reported.push((id, message));
                self.put_service(service);
            }
        }
        self.decide_ports(&touched)?;
        self.refuse_beyond_limits()?;
        for (id, message) in reported {
            self.tell_service(&id, || message);
            self.drop_unused_specs(&id);
        }
        Ok(())
    }

    pub(super) fn remove_stack(&mut self, stack: &StackName) -> Result<(), Refusal> {
        let services = self.services_of(stack);
        if services.is_empty() {
            return Err(Refusal::NoSuchStack(stack.clone()));
        }
        services.iter().for_each(|id| self.begin_removal(id));
        if self.changed {
            self.tell(Subject::Stack { stack: stack.clone() }, || format!("{stack} is being removed"), None);
        }
        Ok(())
    }

    pub(super) fn remove_service(&mut self, id: &ServiceId) -> Result<(), Refusal> {
        if !self.state.services.contains_key(id) {
            return Err(Refusal::NoSuchService(id.clone()));
        }
        self.begin_removal(id);
        Ok(())
    }

    pub(super) fn scale(&mut self, replicas: &BTreeMap<ServiceId, u32>) -> Result<(), Refusal> {
        for (id, wanted) in replicas {
            let service = self.state.services.get(id).ok_or_else(|| Refusal::NoSuchService(id.clone()))?;
            if service.removing {
                return Err(Refusal::BeingRemoved(id.clone()));
            }
            self.refuse_one_off(id)?;
            let Mode::Replicated { replicas: before } = service.spec.mode else {
                return Err(Refusal::GlobalService(id.clone()));
            };
            let mode = Mode::Replicated { replicas: *wanted };
            refuse_too_many(id, &mode, service.spec.task.singleton)?;
            if before != *wanted {
                let mut next = Service::clone(service);
                next.spec.mode = mode;
                next.version = self.version;
                next.updated_at = self.at;
                self.put_service(next);
                self.tell_service(id, || format!("{id} is scaled from {before} to {wanted}"));
            }
        }
        self.refuse_beyond_limits()
    }

    fn services_of(&self, stack: &StackName) -> Vec<ServiceId> {
        self.state.services.keys().filter(|id| id.stack == *stack).cloned().collect()
    }

    pub(super) fn begin_removal(&mut self, id: &ServiceId) {
        let Some(service) = self.state.services.get(id).filter(|service| !service.removing) else { return };
        let mut next = Service::clone(service);
        next.removing = true;
        next.version = self.version;
        next.updated_at = self.at;
        self.put_service(next);
        self.tell_service(id, || format!("{id} is being removed"));
    }

    /// The service with its new spec and what to say of it; `None` when it is so already. Its ports are still to be
    /// decided.
    fn next_service(&self, id: &ServiceId, spec: &ServiceSpec) -> Option<(Service, String)> {
        let Some(before) = self.state.services.get(id) else {
            let service = Service {
                id: id.clone(),
                spec: spec.clone(),
                version: self.version,
                spec_version: self.version,
                specs: BTreeMap::from([(self.version, Arc::new(spec.task.clone()))]),
                ports: Vec::new(),
                published: BTreeMap::new(),
                removing: false,
                created: self.at,
                updated_at: self.at,
                one_off: None,
            };
            return Some((service, format!("{id} is created")));
        };
        if before.spec == *spec && !before.removing {
            return None;
        }
        let mut next = Service::clone(before);
        next.removing = false;
        next.version = self.version;
        next.updated_at = self.at;
        if before.spec.task != spec.task {
            next.spec_version = self.version;
            next.specs.insert(self.version, Arc::new(spec.task.clone()));
        }
        next.spec = spec.clone();
        let verb = if before.removing { "is brought back" } else { "is updated" };
        Some((next, format!("{id} {verb}")))
    }

    /// Ports that specs name come first, so that a port left open never takes one that is named elsewhere.
    fn decide_ports(&mut self, touched: &BTreeSet<ServiceId>) -> Result<(), Refusal> {
        let mut taken = Taken::default();
        for service in self.state.services.values() {
            if !service.removing && !touched.contains(&service.id) {
                service.ports.iter().try_for_each(|port| taken.hold(&service.id, port))?;
            }
        }
        let services: Vec<Arc<Service>> =
            touched.iter().filter_map(|id| self.state.services.get(id).cloned()).collect();
        for service in &services {
            taken.hold_named(&service.id, service.task_spec())?;
        }
        for service in &services {
            let ports = taken.decide(&service.id, service.task_spec(), &service.ports)?;
            let mut next = Service::clone(service);
            // Brought back, but its port was given away meanwhile: running tasks publish what they were told.
            if next.published.get(&next.spec_version).is_some_and(|before| *before != ports) {
                next.spec_version = self.version;
                next.specs.insert(self.version, Arc::new(next.spec.task.clone()));
            }
            next.published.insert(next.spec_version, ports.clone());
            next.ports = ports;
            self.put_service(next);
        }
        Ok(())
    }

    pub(super) fn refuse_beyond_limits(&self) -> Result<(), Refusal> {
        let count = self.state.services.len();
        if count > MAX_SERVICES {
            let text =
                format!("the cluster would have {count} services, {MAX_SERVICES} are allowed: remove some first");
            return Err(Refusal::Limit(text));
        }
        let replicas = |service: &Arc<Service>| match service.spec.mode {
            Mode::Replicated { replicas } if !service.removing => u64::from(replicas),
            _ => 0,
        };
        let wanted: u64 = self.state.services.values().map(replicas).sum();
        if wanted > MAX_WANTED {
            let text = format!(
                "the cluster would have {wanted} replicas, {MAX_WANTED} are allowed: ask for fewer or scale something down"
            );
            return Err(Refusal::Limit(text));
        }
        Ok(())
    }
}

fn refuse_too_many(id: &ServiceId, mode: &Mode, singleton: bool) -> Result<(), Refusal> {
    match mode {
        Mode::Replicated { replicas } if singleton && *replicas > 1 => Err(Refusal::Singleton(id.clone(), *replicas)),
        Mode::Replicated { replicas } if *replicas > MAX_REPLICAS => Err(Refusal::Limit(format!(
            "service {id} asks for {replicas} replicas, {MAX_REPLICAS} are allowed: ask for fewer"
        ))),
        _ => Ok(()),
    }
}
