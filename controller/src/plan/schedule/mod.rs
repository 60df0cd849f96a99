//! Where a task goes: [`filter`] says which nodes can take it, [`score`] which of them is best, [`explain`] why none
//! can.

mod explain;
mod filter;
mod score;

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use roster_proto::{
    assignment::PublishedPort,
    id::{NodeId, ServiceId, Slot, Version},
    node::Node,
    spec::{Protocol, Resources},
};

use crate::state::{ClusterState, Service};

/// What a task needs of a node.
pub(super) struct Ask<'a> {
    service: &'a ServiceId,
    /// In global mode.
    only: Option<&'a NodeId>,
    resources: &'a Resources,
    ports: &'a [PublishedPort],
}

/// The nodes with what is promised on each.
#[derive(Clone, Debug)]
pub(super) struct Hosts(BTreeMap<NodeId, Host>);

#[derive(Clone, Debug)]
struct Host {
    node: Arc<Node>,
    nano_cpus: u64,
    memory: u64,
    tasks: u32,
    by_service: BTreeMap<ServiceId, u32>,
    ports: BTreeMap<(Protocol, u16), Vec<Binding>>,
}

/// Who publishes a host port; replicas of one service share it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Binding {
    host_ip: Option<Ipv4Addr>,
    service: ServiceId,
}

impl<'a> Ask<'a> {
    /// `None` when the service does not know the spec version.
    pub(super) fn of(service: &'a Service, slot: &'a Slot, version: Version) -> Option<Self> {
        let spec = service.specs.get(&version)?;
        let only = match slot {
            Slot::Replica(_) => None,
            Slot::Node(node) => Some(node),
        };
        let ports = service.published.get(&version).map_or(&[][..], Vec::as_slice);
        Some(Self { service: &service.id, only, resources: &spec.resources, ports })
    }
}

impl Hosts {
    pub(super) fn of(state: &ClusterState) -> Self {
        let host = |node: &Arc<Node>| {
            let mut host = Host::new(node);
            for task in state.tasks_on(&node.id) {
                let service = state.services.get(&task.service);
                if let Some(ask) = service.and_then(|service| Ask::of(service, &task.slot, task.spec_version)) {
                    host.promise(&ask);
                }
            }
            (node.id.clone(), host)
        };
        Self(state.nodes.values().map(host).collect())
    }

    /// The best node that can take the task, which is promised its room.
    pub(super) fn take(&mut self, ask: &Ask<'_>) -> Option<NodeId> {
        let best = self
            .candidates(ask)
            .filter(|host| filter::rejection(host, ask).is_none())
            .min_by_key(|host| score::rank(host, ask))?;
        let id = best.node.id.clone();
        self.0.get_mut(&id)?.promise(ask);
        Some(id)
    }

    fn candidates<'a>(&'a self, ask: &'a Ask<'_>) -> impl Iterator<Item = &'a Host> {
        self.0.values().filter(|host| ask.only.is_none_or(|only| *only == host.node.id))
    }
}

impl Host {
    fn new(node: &Arc<Node>) -> Self {
        Self {
            node: Arc::clone(node),
            nano_cpus: 0,
            memory: 0,
            tasks: 0,
            by_service: BTreeMap::new(),
            ports: BTreeMap::new(),
        }
    }

    fn promise(&mut self, ask: &Ask<'_>) {
        let reserved = &ask.resources.reservations;
        self.nano_cpus = self.nano_cpus.saturating_add(reserved.nano_cpus.unwrap_or(0));
        self.memory = self.memory.saturating_add(reserved.memory.unwrap_or(0));
        self.tasks += 1;
        *self.by_service.entry(ask.service.clone()).or_default() += 1;
        for port in ask.ports {
            let bindings = self.ports.entry((port.protocol, port.published)).or_default();
            let binding = Binding { host_ip: port.host_ip, service: ask.service.clone() };
            if !bindings.contains(&binding) {
                bindings.push(binding);
            }
        }
    }

    fn free_nano_cpus(&self) -> u64 {
        self.node.description.capacity.nano_cpus.saturating_sub(self.nano_cpus)
    }

    fn free_memory(&self) -> u64 {
        self.node.description.capacity.memory.saturating_sub(self.memory)
    }
}
