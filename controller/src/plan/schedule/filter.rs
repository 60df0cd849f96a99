//! Can this node take this task?

use roster_proto::{
    cause::RejectReason,
    node::{Availability, NodeState},
};

use super::{Ask, Host};
use crate::state::overlap;

/// The first reason that stands against it; `None` when the node can take it.
pub(super) fn rejection(host: &Host, ask: &Ask<'_>) -> Option<RejectReason> {
    state(host).or_else(|| runtime(host, ask)).or_else(|| room(host, ask)).or_else(|| ports(host, ask))
}

fn state(host: &Host) -> Option<RejectReason> {
    match (host.node.state, host.node.availability) {
        (NodeState::Down, _) => Some(RejectReason::Down),
        (NodeState::Ready, Availability::Pause) => Some(RejectReason::Paused),
        (NodeState::Ready, Availability::Drain) => Some(RejectReason::Draining),
        (NodeState::Ready, Availability::Active) => None,
    }
}

fn runtime(host: &Host, ask: &Ask<'_>) -> Option<RejectReason> {
    let wanted = ask.runtime.filter(|wanted| !host.node.description.runtimes.iter().any(|known| known == wanted))?;
    Some(RejectReason::NoRuntime { runtime: wanted.to_owned() })
}

fn room(host: &Host, ask: &Ask<'_>) -> Option<RejectReason> {
    let reserved = &ask.resources.reservations;
    if let Some(wanted) = reserved.nano_cpus.filter(|wanted| *wanted > host.free_nano_cpus()) {
        return Some(RejectReason::Cpu { wanted, free: host.free_nano_cpus() });
    }
    let wanted = reserved.memory.filter(|wanted| *wanted > host.free_memory())?;
    Some(RejectReason::Memory { wanted, free: host.free_memory() })
}

/// Another service's task may still hold a port that its newer spec has given up.
fn ports(host: &Host, ask: &Ask<'_>) -> Option<RejectReason> {
    ask.ports.iter().find_map(|port| {
        let bindings = host.ports.get(&(port.protocol, port.published))?;
        let holder = bindings.iter().find(|b| b.service != *ask.service && overlap(b.host_ip, port.host_ip))?;
        Some(RejectReason::HostPort {
            port: port.published,
            protocol: port.protocol,
            holder: holder.service.to_string(),
        })
    })
}
