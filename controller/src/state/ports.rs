//! Which host ports a service publishes: those its spec names, and free ones for those it leaves open.
//!
//! A host port belongs to one service of the cluster; its replicas on a node share it. Services in host or no network
//! publish nothing: what they listen on is theirs to know.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::RangeInclusive};

use roster_proto::{
    assignment::PublishedPort,
    id::ServiceId,
    spec::{NetworkMode, Port, Protocol, TaskSpec},
};

use super::command::Refusal;

/// Where host ports are taken from that a spec leaves open.
pub const AUTOMATIC_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// The host ports that are spoken for, each with its holders (several when bound to different addresses).
#[derive(Debug, Default)]
pub(super) struct Taken(BTreeMap<(Protocol, u16), Vec<Holder>>);

type Holder = (Option<Ipv4Addr>, ServiceId);

/// Two bindings of one port exclude each other unless they name different addresses.
pub(crate) fn overlap(a: Option<Ipv4Addr>, b: Option<Ipv4Addr>) -> bool {
    let all = |ip: Option<Ipv4Addr>| ip.is_none_or(|ip| ip.is_unspecified());
    all(a) || all(b) || a == b
}

/// The ports of a spec that the host knows of.
pub(super) fn published(spec: &TaskSpec) -> &[Port] {
    match spec.network {
        NetworkMode::Bridge => &spec.ports,
        NetworkMode::Host | NetworkMode::None => &[],
    }
}

impl Taken {
    fn holder(&self, protocol: Protocol, port: u16, host_ip: Option<Ipv4Addr>) -> Option<&ServiceId> {
        let holders = self.0.get(&(protocol, port))?;
        holders.iter().find(|(ip, _)| overlap(*ip, host_ip)).map(|(_, service)| service)
    }

    pub(super) fn hold(&mut self, service: &ServiceId, port: &PublishedPort) -> Result<(), Refusal> {
        if let Some(holder) = self.holder(port.protocol, port.published, port.host_ip) {
            let protocol = if port.protocol == Protocol::Tcp { "tcp" } else { "udp" };
            return Err(Refusal::PortTaken {
                service: service.clone(),
                port: format!("{}/{protocol}", port.published),
                holder: holder.clone(),
            });
        }
        self.0.entry((port.protocol, port.published)).or_default().push((port.host_ip, service.clone()));
        Ok(())
    }

    /// Takes the ports that the spec names.
    pub(super) fn hold_named(&mut self, service: &ServiceId, spec: &TaskSpec) -> Result<(), Refusal> {
        let mut named = published(spec).iter().filter_map(|port| Some(decided(port, port.published?)));
        named.try_for_each(|port| self.hold(service, &port))
    }

    /// Decides every port of the spec, whose named ones are held already. A port left open keeps the number it had
    /// among `before`, else takes the lowest free one.
    pub(super) fn decide(
        &mut self,
        service: &ServiceId,
        spec: &TaskSpec,
        before: &[PublishedPort],
    ) -> Result<Vec<PublishedPort>, Refusal> {
        let mut ports = Vec::new();
        for port in published(spec) {
            let number = match port.published {
                Some(number) => number,
                None => {
                    let number = self.pick(service, port, before)?;
                    self.0.entry((port.protocol, number)).or_default().push((port.host_ip, service.clone()));
                    number
                }
            };
            ports.push(decided(port, number));
        }
        Ok(ports)
    }

    fn pick(&self, service: &ServiceId, port: &Port, before: &[PublishedPort]) -> Result<u16, Refusal> {
        let free = |number: &u16| self.holder(port.protocol, *number, port.host_ip).is_none();
        let same = |b: &&PublishedPort| {
            (b.target, b.protocol, b.host_ip) == (port.target, port.protocol, port.host_ip)
                && AUTOMATIC_PORTS.contains(&b.published)
        };
        let kept = before.iter().find(same).map(|b| b.published).filter(|number| free(number));
        kept.or_else(|| AUTOMATIC_PORTS.into_iter().find(free)).ok_or_else(|| Refusal::NoFreePort {
            service: service.clone(),
            first: *AUTOMATIC_PORTS.start(),
            last: *AUTOMATIC_PORTS.end(),
        })
    }
}

fn decided(port: &Port, published: u16) -> PublishedPort {
    PublishedPort { published, target: port.target, protocol: port.protocol, host_ip: port.host_ip }
}
