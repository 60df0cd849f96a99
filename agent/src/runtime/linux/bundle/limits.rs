//! Control groups, ulimits and sysctls. Pure.

use std::collections::{BTreeMap, HashMap};

use oci_spec::{
    OciSpecError,
    runtime::{
        LinuxBlockIo, LinuxBlockIoBuilder, LinuxCpu, LinuxCpuBuilder, LinuxMemory, LinuxMemoryBuilder,
        LinuxPidsBuilder, LinuxResources, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, LinuxWeightDeviceBuilder,
        PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
    },
};
use roster_proto::spec::{BlockIo, MemorySwap, NetworkMode, Resources, TaskSpec};

use crate::runtime::linux::devices::HostDevices;

/// Microseconds: the kernel's and Docker's default.
const CPU_PERIOD: u64 = 100_000;
/// Microseconds: the kernel refuses less.
const SMALLEST_QUOTA: u64 = 1_000;
/// As Docker has it in a network of the container's own: everybody may bind every port, and ping.
const NETWORK_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn resources(wanted: &Resources, devices: &HostDevices) -> Result<LinuxResources, OciSpecError> {
    let mut resources = LinuxResources::default();
    if let Some(pids) = wanted.limits.pids {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(signed(pids)).build()?));
    }
    let memory = memory(wanted)?;
    resources.set_memory(Some(memory).filter(|memory| *memory != LinuxMemory::default()));
    let cpu = cpu(wanted)?;
    resources.set_cpu(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()));
    let block = block(&wanted.controls.block, devices)?;
    // Without a limit too: what it reads and writes is counted then.
    resources.set_block_io(Some(block));
    Ok(resources)
}

/// The limit of memory holds for memory and swap together, where nothing else is said: a container that is out of
/// memory is killed, not swapped.
fn memory(wanted: &Resources) -> Result<LinuxMemory, OciSpecError> {
    let controls = &wanted.controls;
    let mut memory = LinuxMemoryBuilder::default().build()?;
    if let Some(bytes) = wanted.limits.memory.map(signed) {
        memory.set_limit(Some(bytes));
        memory.set_swap(Some(match controls.memory_swap {
            None => bytes,
            Some(MemorySwap::Unlimited) => -1,
            Some(MemorySwap::Bytes(both)) => signed(both),
        }));
    }
    memory.set_reservation(wanted.reservations.memory.map(signed));
    memory.set_swappiness(controls.swappiness.map(u64::from));
    memory.set_disable_oom_killer(controls.oom_kill_disable.then_some(true));
    Ok(memory)
}

fn cpu(wanted: &Resources) -> Result<LinuxCpu, OciSpecError> {
    let controls = &wanted.controls;
    let mut cpu = LinuxCpuBuilder::default().build()?;
    match wanted.limits.nano_cpus {
        Some(nano_cpus) => {
            let (quota, period) = quota(nano_cpus);
            cpu.set_quota(Some(quota)).set_period(Some(period));
        }
        None => {
            cpu.set_quota(controls.cpu_quota.map(signed)).set_period(controls.cpu_period);
        }
    }
    cpu.set_shares(controls.cpu_shares).set_cpus(controls.cpuset.clone());
    Ok(cpu)
}

/// Quota and period in microseconds.
pub(super) fn quota(nano_cpus: u64) -> (i64, u64) {
    let quota = (nano_cpus / (1_000_000_000 / CPU_PERIOD)).max(SMALLEST_QUOTA);
    (signed(quota), CPU_PERIOD)
}

fn block(wanted: &BlockIo, devices: &HostDevices) -> Result<LinuxBlockIo, OciSpecError> {
    let number = |path: &std::path::PathBuf| devices.block.get(path).copied().unwrap_or_default();
    let throttle =
        |rates: &BTreeMap<std::path::PathBuf, u64>| -> Result<Option<Vec<LinuxThrottleDevice>>, OciSpecError> {
            let one = |(path, rate): (&std::path::PathBuf, &u64)| {
                let (major, minor) = number(path);
                LinuxThrottleDeviceBuilder::default().major(major).minor(minor).rate(*rate).build()
            };
            let all: Vec<_> = rates.iter().map(one).collect::<Result<_, _>>()?;
            Ok(Some(all).filter(|all| !all.is_empty()))
        };
    let weight = |(path, weight): (&std::path::PathBuf, &u16)| {
        let (major, minor) = number(path);
        LinuxWeightDeviceBuilder::default().major(major).minor(minor).weight(*weight).build()
    };
    let weights: Vec<_> = wanted.device_weights.iter().map(weight).collect::<Result<_, _>>()?;
    let mut block = LinuxBlockIoBuilder::default().build()?;
    block
        .set_weight(wanted.weight)
        .set_weight_device(Some(weights).filter(|weights| !weights.is_empty()))
        .set_throttle_read_bps_device(throttle(&wanted.read_bps)?)
        .set_throttle_write_bps_device(throttle(&wanted.write_bps)?)
        .set_throttle_read_iops_device(throttle(&wanted.read_iops)?)
        .set_throttle_write_iops_device(throttle(&wanted.write_iops)?);
    Ok(block)
}

/// Those that are not named are the agent's own.
pub(super) fn rlimits(task: &TaskSpec) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let limit = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    task.kernel
        .ulimits
        .iter()
        .filter_map(|(name, both)| Some((rlimit(name)?, both)))
        .map(|(typ, both)| PosixRlimitBuilder::default().typ(typ).soft(limit(both.soft)).hard(limit(both.hard)).build())
        .collect()
}

/// The controller has checked the name.
fn rlimit(name: &str) -> Option<PosixRlimitType> {
    serde_json::from_value(format!("RLIMIT_{}", name.to_ascii_uppercase()).into()).ok()
}

pub(super) fn sysctls(task: &TaskSpec) -> HashMap<String, String> {
    let defaults = NETWORK_SYSCTLS.iter().filter(|_| task.network != NetworkMode::Host);
    let mut sysctls: HashMap<String, String> =
        defaults.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    for (name, value) in &task.kernel.sysctls {
        // The same one may be written in two ways.
        sysctls.retain(|default, _| default.replace('.', "/") != name.replace('.', "/"));
        sysctls.insert(name.clone(), value.clone());
    }
    sysctls
}
