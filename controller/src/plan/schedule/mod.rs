//! Where a task goes: [`filter`] says which nodes can take it, [`score`] which of them is best, [`explain`] why none
//! can.
//!
//! The nodes are ranked once for each kind of task; then only the one that was chosen changes its rank. Placing many
//! tasks of a service on many nodes costs little more than placing one.

mod explain;
mod filter;
mod score;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::Ipv4Addr,
    sync::Arc,
};

use roster_proto::{
    assignment::PublishedPort,
    id::{NodeId, ServiceId, Slot, Version},
    node::Node,
    spec::{Protocol, Resources},
};

pub(super) use self::explain::MAX_REJECTIONS;
use self::score::Rank;
use crate::state::{ClusterState, Service};

/// What a task needs of a node.
pub(super) struct Ask<'a> {
    service: &'a ServiceId,
    version: Version,
    /// In global mode, or when another's namespaces are to be shared.
    only: Option<&'a NodeId>,
    resources: &'a Resources,
    ports: &'a [PublishedPort],
    /// Another OCI runtime than Roster's own.
    runtime: Option<&'a str>,
}

/// The nodes with what is promised on each.
#[derive(Clone, Debug)]
pub(super) struct Hosts {
    /// In order of their names.
    hosts: Vec<Host>,
    ranking: Option<Ranking>,
}

/// The nodes that can take one kind of task, the best on top; right as long as only tasks of this kind are placed.
#[derive(Clone, Debug)]
struct Ranking {
    service: ServiceId,
    version: Version,
    heap: BinaryHeap<Reverse<Ranked>>,
}

/// A host by its place in [`Hosts`], which decides between equals.
type Ranked = (Rank, usize);

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
        let runtime = spec.runtime.as_deref();
        Some(Self { service: &service.id, version, only, resources: &spec.resources, ports, runtime })
    }

    /// On no other node than this one, if there is one.
    pub(super) fn beside(self, node: Option<&'a NodeId>) -> Self {
        Self { only: self.only.or(node), ..self }
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
            host
        };
        Self { hosts: state.nodes.values().map(host).collect(), ranking: None }
    }

    pub(super) fn len(&self) -> usize {
        self.hosts.len()
    }

    /// The best node that can take the task, which is promised its room.
    pub(super) fn take(&mut self, ask: &Ask<'_>) -> Option<NodeId> {
        if let Some(only) = ask.only {
            let host = self.get_mut(only).filter(|host| filter::rejection(host, ask).is_none())?;
            host.promise(ask);
            self.ranking = None;
            return Some(only.clone());
        }
        let known = |ranking: &Ranking| ranking.version == ask.version && ranking.service == *ask.service;
        let mut ranking = match self.ranking.take().filter(known) {
            Some(ranking) => ranking,
            None => self.rank(ask),
        };
        let best = ranking.heap.pop();
        let taken = best.and_then(|Reverse((_, place))| {
            let host = self.hosts.get_mut(place)?;
            host.promise(ask);
            if filter::rejection(host, ask).is_none() {
                ranking.heap.push(Reverse((score::rank(host, ask), place)));
            }
            Some(host.node.id.clone())
        });
        self.ranking = Some(ranking);
        taken
    }

    fn rank(&self, ask: &Ask<'_>) -> Ranking {
        let able = self.hosts.iter().enumerate().filter(|(_, host)| filter::rejection(host, ask).is_none());
        let heap = able.map(|(place, host)| Reverse((score::rank(host, ask), place))).collect();
        Ranking { service: ask.service.clone(), version: ask.version, heap }
    }

    fn candidates<'a>(&'a self, ask: &'a Ask<'_>) -> &'a [Host] {
        match ask.only {
            None => &self.hosts,
            Some(only) => self.place(only).map_or(&[], |place| &self.hosts[place..=place]),
        }
    }

    fn get_mut(&mut self, node: &NodeId) -> Option<&mut Host> {
        self.place(node).and_then(|place| self.hosts.get_mut(place))
    }

    fn place(&self, node: &NodeId) -> Option<usize> {
        self.hosts.binary_search_by(|host| host.node.id.cmp(node)).ok()
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
        match self.by_service.get_mut(ask.service) {
            Some(count) => *count += 1,
            None => drop(self.by_service.insert(ask.service.clone(), 1)),
        }
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
