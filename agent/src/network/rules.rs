//! The packet filter's rules as text for `nft -f -`.
//!
//! Pure. One table of family `ip`, loaded as one batch, which the kernel takes as a whole or not at all (nft(8)):
//!
//! - `published`: a published port's first packet is sent to one of the port's backends, each in its turn. Reached from
//!   the network (`prerouting`) and from the host itself (`output`), for every address of the host's own. A port without
//!   backends has no rule: the connection is refused as on any port on which nothing listens.
//! - `postrouting`: what leaves the subnet for elsewhere gets the host's address; so does what comes back to the bridge
//!   it came from through a published port, and what the host sends from 127.0.0.1, since the answers must pass the host.
//! - `guard`: the bridge has `route_localnet` on, without which the kernel would not route from 127.0.0.1 to it. That
//!   would also let containers reach services that listen on the host's loopback (CVE-2020-8558), so whatever comes
//!   from the bridge with a loopback address is dropped before routing.
//! - `forward`: from outside the bridge only answers and connections to published ports reach a container, even for a
//!   neighbour of the host who knows the way to the subnet.
//!
//! A drop in another table cannot be undone here: where the host's own firewall drops forwarded packets (Docker sets
//! the policy of iptables' FORWARD chain to DROP), it must be told to accept those of the bridge, in both directions.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    net::Ipv4Addr,
};

use roster_proto::spec::Protocol;

use super::subnet::Subnet;
use crate::runtime::Publication;

/// What the rules speak of. `bridge` and `table` have passed the checks in `naming`.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) table: String,
    pub(super) bridge: String,
    pub(super) subnet: Subnet,
}

impl Scope {
    /// Everything but the published ports, which stay as they are. May be loaded again and again.
    pub(super) fn base(&self) -> String {
        let chains = ["guard", "forward", "prerouting", "output", "postrouting"];
        let flush = chains.iter().map(|chain| format!("flush chain ip {} {chain}\n", self.table)).collect::<String>();
        format!("{}{flush}{}", self.declarations(), self.fixed_rules())
    }

    /// The whole table with exactly these ports.
    pub(super) fn full(&self, ports: &[Publication]) -> String {
        let table = &self.table;
        let mut text = format!("{}flush table ip {table}\n{}", self.declarations(), self.fixed_rules());
        for (port, backends) in canonical(ports) {
            if !backends.is_empty() {
                writeln!(text, "add rule ip {table} published {}", Rule { port, backends: &backends })
                    .expect("a String takes every write");
            }
        }
        text
    }

    /// Removes the table whether it exists or not.
    pub(super) fn removal(&self) -> String {
        format!("add table ip {0}\ndelete table ip {0}\n", self.table)
    }

    fn declarations(&self) -> String {
        let table = &self.table;
        format!(
            "\
add table ip {table}
add chain ip {table} published
add chain ip {table} guard {{ type filter hook prerouting priority -300; policy accept; }}
add chain ip {table} forward {{ type filter hook forward priority 0; policy accept; }}
add chain ip {table} prerouting {{ type nat hook prerouting priority -100; policy accept; }}
add chain ip {table} output {{ type nat hook output priority -100; policy accept; }}
add chain ip {table} postrouting {{ type nat hook postrouting priority 100; policy accept; }}
"
        )
    }

    fn fixed_rules(&self) -> String {
        let Self { table, bridge, subnet } = self;
        format!(
            "\
add rule ip {table} guard iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop
add rule ip {table} guard iifname \"{bridge}\" ip saddr 127.0.0.0/8 drop
add rule ip {table} forward oifname \"{bridge}\" ct state established,related accept
add rule ip {table} forward oifname \"{bridge}\" ct status dnat accept
add rule ip {table} forward oifname \"{bridge}\" iifname != \"{bridge}\" drop
add rule ip {table} prerouting fib daddr type local jump published
add rule ip {table} output fib daddr type local jump published
add rule ip {table} postrouting oifname \"{bridge}\" ip saddr 127.0.0.0/8 masquerade
add rule ip {table} postrouting oifname \"{bridge}\" ip saddr {subnet} ct status dnat masquerade
add rule ip {table} postrouting oifname != \"{bridge}\" ip saddr {subnet} masquerade
"
        )
    }
}

/// What tells published ports apart. One that names an address is asked first, since it orders before one that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    /// Inverted for the order: `false` with an address.
    any_address: bool,
    host_ip: Option<Ipv4Addr>,
    udp: bool,
    port: u16,
}

/// Ports in a fixed order, with the backends of equal ones put together: equal wishes render as equal text.
fn canonical(ports: &[Publication]) -> BTreeMap<Port, Vec<(Ipv4Addr, u16)>> {
    let mut all: BTreeMap<Port, Vec<_>> = BTreeMap::new();
    for publication in ports {
        let host_ip = publication.host_ip.filter(|address| !address.is_unspecified());
        let udp = publication.protocol == Protocol::Udp;
        let port = Port { any_address: host_ip.is_none(), host_ip, udp, port: publication.port };
        all.entry(port).or_default().extend(publication.backends.iter().copied());
    }
    for backends in all.values_mut() {
        backends.sort_unstable();
        backends.dedup();
    }
    all
}

struct Rule<'a> {
    port: Port,
    backends: &'a [(Ipv4Addr, u16)],
}

impl fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.port.host_ip {
            write!(f, "ip daddr {address} ")?;
        }
        write!(f, "{} dport {} dnat to ", if self.port.udp { "udp" } else { "tcp" }, self.port.port)?;
        if let [(address, port)] = self.backends {
            return write!(f, "{address}:{port}");
        }
        write!(f, "numgen inc mod {} map {{ ", self.backends.len())?;
        for (turn, (address, port)) in self.backends.iter().enumerate() {
            write!(f, "{}{turn} : {address} . {port}", if turn == 0 { "" } else { ", " })?;
        }
        f.write_str(" }")
    }
}

#[cfg(test)]
mod tests;
