//! Which file of a group gets which value for a config's `linux.resources`. Pure.
//!
//! Guarantees that a limit is either in the table or refused with a reason. The exceptions are those for which a config
//! loses nothing, or that every engine tolerates:
//! - `memory.kernel` is obsolete and ignored: kernels since 5.16 have no such limit, and runc ignores it as well.
//!   `memory.useHierarchy` is what every kernel since 5.11 does;
//! - zero means "not said" for processes, memory, shares, quotas and periods, as in the Go types from which most configs
//!   are written: Docker's `update` says it of everything that it leaves alone;
//! - the limit of swap is skipped where the kernel does not count swap.
//!
//! Devices have rules instead of values: see [`super::devices`].
//! Sources: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst; the runtime specification.

mod block;
mod cpu;
mod memory;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub(super) use memory::refuse_less_than_used;
use oci_spec::runtime::{LinuxHugepageLimit, LinuxNetwork, LinuxRdma, LinuxResources};

use super::Version;
use crate::error::StartError;

/// One value for one file of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub controller: String,
    pub file: String,
    pub value: String,
    pub absent: Absent,
}

/// What to do in a group without the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    Refuse,
    Skip,
    /// The same limit under another name.
    Instead {
        file: String,
        value: String,
    },
}

/// In the order in which they are best written. Where the right order depends on the values that are there, the kernel
/// refuses the wrong one, and [`super::write`] comes back to it.
pub fn writes(resources: &LinuxResources, version: Version) -> Result<Vec<Write>, StartError> {
    let mut table = Table { version, writes: Vec::new() };
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        table.set("pids", "pids.max", if pids.limit() > 0 { pids.limit().to_string() } else { "max".to_owned() });
    }
    if let Some(memory) = resources.memory() {
        memory::add(memory, &mut table)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu::add(cpu, &mut table)?;
    }
    if let Some(block) = resources.block_io() {
        block::add(block, &mut table)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        add_huge_pages(limit, &mut table)?;
    }
    if let Some(network) = resources.network() {
        add_network(network, &mut table)?;
    }
    if let Some(rdma) = resources.rdma() {
        add_rdma(rdma, &mut table)?;
    }
    if let Some(unified) = resources.unified() {
        add_unified(unified, &mut table)?;
    }
    Ok(table.writes)
}

struct Table {
    version: Version,
    writes: Vec<Write>,
}

impl Table {
    fn set(&mut self, controller: &str, file: &str, value: impl ToString) {
        self.set_or(controller, file, value, Absent::Refuse);
    }

    fn set_or(&mut self, controller: &str, file: &str, value: impl ToString, absent: Absent) {
        let (controller, file, value) = (controller.to_owned(), file.to_owned(), value.to_string());
        self.writes.push(Write { controller, file, value, absent });
    }
}

/// What one version of control groups does not have.
fn only_v1(field: &str) -> StartError {
    StartError::impossible(
        format!("limiting {field}"),
        "control groups v2, which this host has, know no such limit: leave it out of linux.resources",
    )
}

fn bad(field: &str, reason: impl Into<String>) -> StartError {
    StartError::impossible(format!("limiting by linux.resources.{field}"), reason)
}

/// Pages that are reserved but never touched count where the kernel can count them (since 5.7).
fn add_huge_pages(limit: &LinuxHugepageLimit, table: &mut Table) -> Result<(), StartError> {
    let size = limit.page_size();
    let digits = size.trim_start_matches(|c: char| c.is_ascii_digit());
    if digits.len() == size.len() || !matches!(digits, "KB" | "MB" | "GB") {
        let reason = format!("{size:?} is no page size: write it as the kernel does, such as 2MB or 1GB");
        return Err(bad("hugepageLimits", reason));
    }
    let (suffix, none) = match table.version {
        Version::V1 => ("limit_in_bytes", "-1"),
        Version::V2 => ("max", "max"),
    };
    let value = if limit.limit() < 0 { none.to_owned() } else { limit.limit().to_string() };
    table.set("hugetlb", &format!("hugetlb.{size}.{suffix}"), &value);
    table.set_or("hugetlb", &format!("hugetlb.{size}.rsvd.{suffix}"), value, Absent::Skip);
    Ok(())
}

fn add_network(network: &LinuxNetwork, table: &mut Table) -> Result<(), StartError> {
    let priorities = network.priorities().as_deref().unwrap_or_default();
    if table.version == Version::V2 && (network.class_id().is_some() || !priorities.is_empty()) {
        return Err(only_v1("the network by class and priority"));
    }
    if let Some(class) = network.class_id() {
        table.set("net_cls", "net_cls.classid", class);
    }
    for priority in priorities {
        let name = one_word("network.priorities", priority.name())?;
        table.set("net_prio", "net_prio.ifpriomap", format!("{name} {}", priority.priority()));
    }
    Ok(())
}

fn add_rdma(devices: &HashMap<String, LinuxRdma>, table: &mut Table) -> Result<(), StartError> {
    for (device, limit) in sorted(devices) {
        let mut value = one_word("rdma", device)?.to_owned();
        for (key, count) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            if let Some(count) = count {
                value += &format!(" {key}={count}");
            }
        }
        table.set("rdma", "rdma.max", value);
    }
    Ok(())
}

/// Written after everything else, so that it wins. A file with one line a device takes one of them at a time.
fn add_unified(files: &HashMap<String, String>, table: &mut Table) -> Result<(), StartError> {
    if table.version == Version::V1 && !files.is_empty() {
        let reason = "it names files of control groups v2, which this host does not use: say it with the other fields";
        return Err(bad("unified", reason));
    }
    for (file, value) in sorted(files) {
        let controller = match file.split_once('.') {
            Some((controller, rest)) if !controller.is_empty() && !rest.is_empty() && !file.contains('/') => controller,
            _ => return Err(bad("unified", format!("{file:?} is no file of a control group, such as memory.high"))),
        };
        for line in value.lines() {
            table.set(controller, file, line);
        }
    }
    Ok(())
}

fn sorted<V>(map: &HashMap<String, V>) -> Vec<(&String, &V)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    entries
}

fn one_word<'a>(field: &str, word: &'a str) -> Result<&'a str, StartError> {
    if word.is_empty() || word.contains(char::is_whitespace) {
        return Err(bad(field, format!("{word:?} is no device's name")));
    }
    Ok(word)
}
