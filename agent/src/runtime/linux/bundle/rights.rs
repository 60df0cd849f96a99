//! What the container may do: capabilities, system calls, what of the kernel it sees, devices. Pure.

use std::collections::HashSet;

use oci_spec::{
    OciSpecError,
    runtime::{
        Capability, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
        LinuxSeccomp,
    },
};
use roster_proto::spec::{Rights, Seccomp, rules};
use roster_runtime::{error::StartError, seccomp};

use super::profile::{self, Platform};
use crate::runtime::linux::devices::{HostDevice, HostDevices};

/// Docker's default set.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

pub(super) const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

pub(super) const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Docker's rules: what is added counts more than what is dropped, but `ALL` on either side counts least; a privileged
/// container has everything.
pub(super) fn capabilities(rights: &Rights) -> HashSet<Capability> {
    let named = |name: &String| name.parse::<Capability>().ok();
    let all = || rules::CAPABILITIES.iter().filter_map(|name| name.parse::<Capability>().ok()).collect();
    if rights.privileged {
        return all();
    }
    let (adds_all, drops_all) = (rights.cap_add.contains("ALL"), rights.cap_drop.contains("ALL"));
    let mut set: HashSet<Capability> = match (adds_all, drops_all) {
        (true, _) => all(),
        (false, true) => HashSet::new(),
        (false, false) => CAPABILITIES.into_iter().collect(),
    };
    if adds_all || !drops_all {
        rights.cap_drop.iter().filter_map(named).for_each(|dropped| {
            set.remove(&dropped);
        });
    }
    set.extend(rights.cap_add.iter().filter_map(named));
    set
}

pub(super) fn no_new_privileges(rights: &Rights) -> bool {
    rights.no_new_privileges.unwrap_or(!rights.privileged)
}

/// A privileged container has no filter but one that it was given.
pub(super) fn seccomp(
    rights: &Rights,
    capabilities: &HashSet<Capability>,
    platform: &Platform,
) -> Result<Option<LinuxSeccomp>, StartError> {
    match &rights.seccomp {
        Seccomp::Profile(text) => profile::seccomp(text, capabilities, platform).map(Some),
        Seccomp::Unconfined => Ok(None),
        Seccomp::Default if rights.privileged => Ok(None),
        Seccomp::Default => Ok(Some(seccomp::default_profile(capabilities))),
    }
}

/// Whether devices are kept away by a control group. Otherwise there are no nodes in the container that could be
/// opened, nor a place where one could be made, which costs nothing.
pub(super) fn controls_devices(rights: &Rights) -> bool {
    rights.privileged || !rights.devices.is_empty() || !rights.device_rules.is_empty()
}

pub(super) fn nodes(devices: &HostDevices) -> Result<Vec<LinuxDevice>, OciSpecError> {
    let node = |device: &HostDevice| {
        LinuxDeviceBuilder::default()
            .path(device.target.clone())
            .typ(kind(device.is_block))
            .major(device.major)
            .minor(device.minor)
            .file_mode(device.mode)
            .uid(device.uid)
            .gid(device.gid)
            .build()
    };
    devices.nodes.iter().map(node).collect()
}

fn kind(is_block: bool) -> LinuxDeviceType {
    if is_block { LinuxDeviceType::B } else { LinuxDeviceType::C }
}

/// For the devices control group.
pub(super) fn device_rules(rights: &Rights, devices: &HostDevices) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let every = |allow| LinuxDeviceCgroupBuilder::default().allow(allow).access("rwm").build();
    if rights.privileged {
        return Ok(vec![every(true)?]);
    }
    if !controls_devices(rights) {
        return Ok(Vec::new());
    }
    let mut rules = vec![every(false)?];
    for device in &devices.nodes {
        rules.push(
            LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(kind(device.is_block))
                .major(device.major)
                .minor(device.minor)
                .access(device.access.clone())
                .build()?,
        );
    }
    for rule in &rights.device_rules {
        rules.extend(parsed_rule(rule)?);
    }
    Ok(rules)
}

/// The controller has checked the form: `c 189:* rmw`.
fn parsed_rule(rule: &str) -> Result<Option<LinuxDeviceCgroup>, OciSpecError> {
    let mut words = rule.split(' ');
    let (Some(kind), Some(numbers), Some(access)) = (words.next(), words.next(), words.next()) else {
        return Ok(None);
    };
    let (major, minor) = numbers.split_once(':').unwrap_or(("*", "*"));
    let typ = match kind {
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        _ => LinuxDeviceType::A,
    };
    // -1 is any.
    let number = |text: &str| text.parse::<i64>().unwrap_or(-1);
    let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(typ).major(number(major)).minor(number(minor));
    rule.access(access).build().map(Some)
}
