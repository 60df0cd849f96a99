//! An IPv4 subnet in CIDR notation, and whether a host already uses some of it.
//!
//! Pure. IPv6 is absent: containers get IPv4 addresses only.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// A subnet of /8 to /30. Host bits are always zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a subnet: {rule}; write it like 10.42.0.0/16")]
pub struct InvalidSubnet {
    value: String,
    rule: &'static str,
}

const PREFIXES: std::ops::RangeInclusive<u8> = 8..=30;

impl Subnet {
    pub fn new(network: Ipv4Addr, prefix: u8) -> Result<Self, InvalidSubnet> {
        let invalid = |rule| InvalidSubnet { value: format!("{network}/{prefix}"), rule };
        if !PREFIXES.contains(&prefix) {
            return Err(invalid("the prefix must be 8 to 30"));
        }
        if u32::from(network) & !mask(prefix) != 0 {
            return Err(invalid("the address has bits set after the prefix"));
        }
        if network.is_loopback() || network.is_multicast() || network.is_link_local() || network.octets()[0] == 0 {
            return Err(invalid("this range has a meaning of its own; take a private one (RFC 1918)"));
        }
        Ok(Self { network, prefix })
    }

    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The bridge's own address: the first of the subnet.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }

    /// What containers may get: all but the network, the gateway and the broadcast address.
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 2)
    }

    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from((u32::from(self.network) | !mask(self.prefix)) - 1)
    }

    /// How many addresses there are from [`first`](Self::first) to [`last`](Self::last).
    pub fn capacity(&self) -> usize {
        (u32::from(self.last()) - u32::from(self.first())) as usize + 1
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == u32::from(self.network)
    }

    /// Whether the two ranges share an address. `prefix` may be anything from 0 to 32.
    pub fn overlaps(&self, address: Ipv4Addr, prefix: u8) -> bool {
        let shorter = mask(prefix.min(self.prefix));
        u32::from(address) & shorter == u32::from(self.network) & shorter
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(value: &str) -> Result<Self, InvalidSubnet> {
        let invalid = |rule| InvalidSubnet { value: value.to_owned(), rule };
        let (network, prefix) = value.split_once('/').ok_or_else(|| invalid("the prefix is missing"))?;
        let network = network.parse().map_err(|_| invalid("the part before the slash is not an IPv4 address"))?;
        let prefix = prefix.parse().map_err(|_| invalid("the part after the slash is not a number"))?;
        Self::new(network, prefix)
    }
}

/// A range of addresses that an interface of the host already uses or leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) what: ClaimKind,
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) interface: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimKind {
    Address,
    Route,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            ClaimKind::Address => "address",
            ClaimKind::Route => "route",
        };
        write!(f, "the {what} {}/{}", self.address, self.prefix)
    }
}

/// Default routes, and the two halves that VPN clients write instead of one, lead everywhere and claim nothing.
const SHORTEST_CLAIMING_PREFIX: u8 = 2;

/// The first claim of another interface than `own` that shares an address with the subnet.
pub(super) fn collision(subnet: Subnet, own: Option<u32>, claims: &[Claim]) -> Option<&Claim> {
    claims.iter().find(|claim| {
        Some(claim.interface) != own
            && claim.prefix >= SHORTEST_CLAIMING_PREFIX
            && subnet.overlaps(claim.address, claim.prefix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn bounds_of_a_subnet() {
        let it = subnet("10.42.7.0/24");
        assert_eq!(it.gateway(), Ipv4Addr::new(10, 42, 7, 1));
        assert_eq!(it.first(), Ipv4Addr::new(10, 42, 7, 2));
        assert_eq!(it.last(), Ipv4Addr::new(10, 42, 7, 254));
        assert_eq!(it.capacity(), 253);
        assert_eq!(subnet("192.168.0.0/30").capacity(), 1);
        assert_eq!(it.to_string(), "10.42.7.0/24");
    }

    #[test]
    fn wrong_subnets_are_told() {
        for (text, part) in [
            ("10.42.0.0", "prefix is missing"),
            ("10.42.0.0/31", "8 to 30"),
            ("10.42.0.0/255", "8 to 30"),
            ("10.42.0.0/256", "not a number"),
            ("10.42.0.1/16", "bits set"),
            ("127.0.0.0/16", "meaning of its own"),
            ("roster/16", "not an IPv4"),
        ] {
            let error = text.parse::<Subnet>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn collisions_leave_out_default_routes_and_the_own_interface() {
        let claim = |address: [u8; 4], prefix, interface| Claim {
            what: ClaimKind::Route,
            address: address.into(),
            prefix,
            interface,
        };
        let it = subnet("10.42.0.0/16");
        let claims =
            [claim([0; 4], 0, 1), claim([0; 4], 1, 1), claim([10, 43, 0, 0], 16, 1), claim([10, 42, 0, 0], 16, 9)];
        assert_eq!(collision(it, Some(9), &claims), None);
        assert_eq!(collision(it, None, &claims), Some(&claims[3]));
        assert!(collision(it, None, &[claim([10, 0, 0, 0], 8, 1)]).is_some());
        assert!(collision(it, None, &[claim([10, 42, 200, 1], 32, 1)]).is_some());
    }
}
