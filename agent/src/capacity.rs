//! What the agent tells of its host when it registers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    path::Path,
};

use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sys::utsname::{UtsName, uname},
};
use roster_proto::node::{Capacity, NodeDescription};

const MEMINFO: &str = "/proc/meminfo";
const CGROUP: &str = "/sys/fs/cgroup";

#[derive(Debug, thiserror::Error)]
pub enum CapacityError {
    #[error("cannot ask the kernel for {what}: {source}")]
    Kernel { what: &'static str, source: io::Error },
    #[error("{MEMINFO} has no line MemTotal: is /proc mounted?")]
    NoMemory,
}

/// Describes this host. `own_bridge` is left out of its addresses.
pub fn describe(
    labels: BTreeMap<String, String>,
    runtimes: BTreeSet<String>,
    own_bridge: &str,
) -> Result<NodeDescription, CapacityError> {
    let names = uname().map_err(|error| CapacityError::Kernel { what: "its name (uname)", source: error.into() })?;
    Ok(NodeDescription {
        hostname: text(&names, UtsName::nodename),
        addresses: addresses(own_bridge)?,
        capacity: Capacity { nano_cpus: nano_cpus()?, memory: memory()? },
        labels,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: text(&names, UtsName::release),
        cgroups: cgroup_mode(Path::new(CGROUP)).to_owned(),
        architecture: text(&names, UtsName::machine),
        runtimes: runtimes.into_iter().collect(),
    })
}

/// The host's name as a node name: its first label in lower case, with what a name may not hold made a hyphen.
pub fn default_node_name() -> Result<String, CapacityError> {
    let names = uname().map_err(|error| CapacityError::Kernel { what: "its name (uname)", source: error.into() })?;
    Ok(node_name(&text(&names, UtsName::nodename)))
}

fn node_name(hostname: &str) -> String {
    let first = hostname.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let name: String = first.chars().map(allowed).take(63).collect();
    let name = name.trim_start_matches(['-', '_']);
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

fn text(names: &UtsName, part: fn(&UtsName) -> &std::ffi::OsStr) -> String {
    part(names).to_string_lossy().into_owned()
}

/// IPv4 addresses a peer could reach: of interfaces that are up, without loopback and our own bridge.
pub(crate) fn addresses(own_bridge: &str) -> Result<Vec<String>, CapacityError> {
    let interfaces =
        getifaddrs().map_err(|error| CapacityError::Kernel { what: "its addresses", source: error.into() })?;
    let reachable =
        |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK);
    let mut addresses: Vec<Ipv4Addr> = interfaces
        .filter(|interface| reachable(interface.flags) && interface.interface_name != own_bridge)
        .filter_map(|interface| interface.address?.as_sockaddr_in().map(|address| address.ip()))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses.into_iter().map(|address| address.to_string()).collect())
}

/// The cores this process may use (sched_getaffinity), which is what its containers get.
fn nano_cpus() -> Result<u64, CapacityError> {
    let cores = std::thread::available_parallelism()
        .map_err(|source| CapacityError::Kernel { what: "the number of its cores", source })?;
    Ok(cores.get() as u64 * 1_000_000_000)
}

fn memory() -> Result<u64, CapacityError> {
    let text = fs::read_to_string(MEMINFO).map_err(|source| CapacityError::Kernel { what: "its memory", source })?;
    total_memory(&text).ok_or(CapacityError::NoMemory)
}

/// proc_meminfo(5): `MemTotal:        8039988 kB`.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// v2 has its file list of controllers at the root; hybrid mounts v2 beside v1 at `unified`.
fn cgroup_mode(root: &Path) -> &'static str {
    if root.join("cgroup.controllers").exists() {
        "v2"
    } else if root.join("unified/cgroup.controllers").exists() {
        "hybrid"
    } else {
        "v1"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_becomes_a_valid_node_name() {
        for (hostname, name) in [
            ("vm1", "vm1"),
            ("VM1.lab.example.org", "vm1"),
            ("-odd näme-", "odd-n-me-"),
            ("", "node"),
            ("___", "node"),
            (&"x".repeat(80), &"x".repeat(63)),
        ] {
            assert_eq!(node_name(hostname), name);
            roster_proto::id::NodeId::new(node_name(hostname)).unwrap();
        }
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(total_memory("MemTotal:        8039988 kB\nMemFree: 1 kB\n"), Some(8_039_988 * 1024));
        assert_eq!(total_memory("MemFree: 1 kB\n"), None);
        assert_eq!(total_memory("MemTotal: many kB\n"), None);
    }

    #[test]
    fn the_cgroup_mode_is_told_by_what_is_mounted() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(cgroup_mode(root.path()), "v1");
        fs::create_dir(root.path().join("unified")).unwrap();
        fs::write(root.path().join("unified/cgroup.controllers"), "").unwrap();
        assert_eq!(cgroup_mode(root.path()), "hybrid");
        fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(cgroup_mode(root.path()), "v2");
    }

    #[test]
    fn this_host_can_be_described() {
        let description = describe(BTreeMap::new(), BTreeSet::new(), "roster0").unwrap();
        assert!(description.capacity.nano_cpus >= 1_000_000_000, "{description:?}");
        assert!(description.capacity.memory > 0 && !description.kernel.is_empty(), "{description:?}");
    }
}
