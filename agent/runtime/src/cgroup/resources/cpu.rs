//! Shares, quotas and sets of processors.

use oci_spec::runtime::LinuxCpu;

use super::{Table, only_v1};
use crate::{cgroup::Version, error::StartError};

/// What the kernel takes of shares; it clamps others.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

pub(super) fn add(cpu: &LinuxCpu, table: &mut Table) -> Result<(), StartError> {
    match table.version {
        Version::V1 => add_v1(cpu, table),
        Version::V2 => add_v2(cpu, table)?,
    }
    for (file, set) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(set) = set.as_deref().filter(|set| !set.is_empty()) {
            table.set("cpuset", file, set);
        }
    }
    Ok(())
}

fn add_v1(cpu: &LinuxCpu, table: &mut Table) {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        table.set("cpu", "cpu.shares", shares);
    }
    if let Some(period) = cpu.period().filter(|period| *period != 0) {
        table.set("cpu", "cpu.cfs_period_us", period);
    }
    if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
        table.set("cpu", "cpu.cfs_quota_us", if quota > 0 { quota } else { -1 });
    }
    if let Some(burst) = cpu.burst() {
        table.set("cpu", "cpu.cfs_burst_us", burst);
    }
    if let Some(period) = cpu.realtime_period().filter(|period| *period != 0) {
        table.set("cpu", "cpu.rt_period_us", period);
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|runtime| *runtime != 0) {
        table.set("cpu", "cpu.rt_runtime_us", runtime);
    }
    if let Some(idle) = cpu.idle() {
        table.set("cpu", "cpu.idle", idle);
    }
}

fn add_v2(cpu: &LinuxCpu, table: &mut Table) -> Result<(), StartError> {
    let realtime =
        cpu.realtime_period().is_some_and(|period| period != 0) || cpu.realtime_runtime().is_some_and(|time| time != 0);
    if realtime {
        return Err(only_v1("cpu.realtimeRuntime and cpu.realtimePeriod"));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        table.set("cpu", "cpu.weight", weight(shares));
    }
    let quota = cpu
        .quota()
        .filter(|quota| *quota != 0)
        .map(|quota| if quota > 0 { quota.to_string() } else { "max".to_owned() });
    match (quota, cpu.period().filter(|period| *period != 0)) {
        (None, None) => {}
        (quota, Some(period)) => table.set("cpu", "cpu.max", format!("{} {period}", quota.as_deref().unwrap_or("max"))),
        // Leaves the period as it is.
        (Some(quota), None) => table.set("cpu", "cpu.max", quota),
    }
    if let Some(burst) = cpu.burst() {
        table.set("cpu", "cpu.max.burst", burst);
    }
    if let Some(idle) = cpu.idle() {
        table.set("cpu", "cpu.idle", idle);
    }
    Ok(())
}

/// The straight line from v1's 2..=262144 to v2's 1..=10000, by which runtimes have long translated:
/// `1 + (shares - 2) * 9999 / 262142`.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(*SHARES.start(), *SHARES.end());
    1 + (shares - SHARES.start()) * 9_999 / (SHARES.end() - SHARES.start())
}
