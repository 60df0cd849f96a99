//! What the interfaces are called and which hardware addresses they have.
//!
//! Pure. Names follow from the task alone, so that a second attempt and a teardown find what a first one left. An
//! address follows from the IP address, and can be read back from it: the interface and the note of whose IP address it
//! stands for come into being in one system call.

use std::net::Ipv4Addr;

use roster_proto::id::TaskId;
use sha2::{Digest, Sha256};

/// IFNAMSIZ without the closing zero, see netdevice(7).
pub(super) const MAX_INTERFACE_NAME: usize = 15;

/// The container's end of its pair.
pub(super) const CONTAINER_INTERFACE: &str = "eth0";

const VETH_PREFIX: &str = "veth";
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Locally administered unicast (IEEE 802, second bit of the first octet). The host's ends begin with fe, above every
/// other address.
const HOST_MAC: [u8; 2] = [0xfe, 0x52];
const CONTAINER_MAC: [u8; 2] = [0x02, 0x52];

/// The host's end of a task's pair: 15 characters, 55 bits of them from a digest of bridge and task.
pub(super) fn veth(bridge: &str, task: &TaskId) -> String {
    let digest = Sha256::new().chain_update(bridge).chain_update([0]).chain_update(task.as_str()).finalize();
    let mut bits = digest.iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    let mut name = VETH_PREFIX.to_owned();
    while name.len() < MAX_INTERFACE_NAME {
        name.push(char::from(BASE32[(bits & 31) as usize]));
        bits >>= 5;
    }
    name
}

pub(super) fn host_mac(address: Ipv4Addr) -> [u8; 6] {
    mac(HOST_MAC, address)
}

pub(super) fn container_mac(address: Ipv4Addr) -> [u8; 6] {
    mac(CONTAINER_MAC, address)
}

fn mac([a, b]: [u8; 2], address: Ipv4Addr) -> [u8; 6] {
    let [c, d, e, f] = address.octets();
    [a, b, c, d, e, f]
}

/// The address of the container behind a host's end, `None` for an interface that is not ours.
pub(super) fn address_of(name: &str, mac: [u8; 6]) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f] = mac;
    (name.starts_with(VETH_PREFIX) && [a, b] == HOST_MAC).then(|| Ipv4Addr::new(c, d, e, f))
}

/// The alias of a host's end, for people (`ip link`) and for finding the task when its namespace is gone.
pub(super) fn alias(task: &TaskId) -> String {
    format!("{ALIAS_PREFIX}{task}")
}

pub(super) fn task_of(alias: &str) -> Option<TaskId> {
    TaskId::new(alias.strip_prefix(ALIAS_PREFIX)?).ok()
}

const ALIAS_PREFIX: &str = "roster task ";

/// Why `name` may not be the bridge's: it becomes part of a path under /proc/sys and of the packet filter's rules.
pub(super) fn check_bridge(name: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_free = !["all", "default", "lo"].contains(&name) && !name.starts_with(VETH_PREFIX);
    if (1..=MAX_INTERFACE_NAME).contains(&name.len()) && name.chars().all(allowed) && is_free {
        Ok(())
    } else {
        Err("use 1 to 15 letters, digits, '-' or '_', but not all, default, lo or veth...")
    }
}

pub(super) fn check_table(name: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.len() <= 63 && name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(allowed) {
        Ok(())
    } else {
        Err("use 1 to 63 letters, digits or '_', beginning with a letter")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_and_depends_on_bridge_and_task() {
        let task = TaskId::new("a".repeat(63)).unwrap();
        let name = veth("roster0", &task);
        assert_eq!(name.len(), MAX_INTERFACE_NAME);
        assert_eq!(name, veth("roster0", &task));
        assert_ne!(name, veth("roster1", &task));
        assert_ne!(name, veth("roster0", &TaskId::new("b").unwrap()));
    }

    #[test]
    fn the_address_can_be_read_back() {
        let address = Ipv4Addr::new(10, 42, 3, 4);
        assert_eq!(address_of("vethabc", host_mac(address)), Some(address));
        assert_eq!(address_of("vethabc", container_mac(address)), None);
        assert_eq!(address_of("eth0", host_mac(address)), None);
        assert_eq!(host_mac(address)[0] & 3, 2, "unicast and locally administered");
        assert_eq!(container_mac(address)[0] & 3, 2);
    }

    #[test]
    fn an_alias_names_its_task() {
        let task = TaskId::new("t1").unwrap();
        assert_eq!(task_of(&alias(&task)), Some(task));
        assert_eq!(task_of("roster task ../x"), None);
        assert_eq!(task_of("uplink"), None);
    }

    #[test]
    fn names_that_would_reach_elsewhere_are_refused() {
        for name in ["", "..", "a/b", "all", "lo", "roster0;", "ro*", "roster-with-a-long-name", "veth0"] {
            assert!(check_bridge(name).is_err(), "{name}");
        }
        assert!(check_bridge("roster0").is_ok());
        for name in ["", "0a", "a b", "a{", "a-b"] {
            assert!(check_table(name).is_err(), "{name}");
        }
        assert!(check_table("roster").is_ok());
    }
}
