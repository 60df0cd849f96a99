//! What a container may do and how the kernel treats it.

use roster_proto::spec::{Controls, IpcMode, KernelSettings, MemorySwap, PidMode, Rights, Seccomp, TmpfsOptions};

use super::{Fields, bytes, list, put_map};

fn yes(value: bool) -> Option<String> {
    value.then(|| "true".to_owned())
}

fn text(value: Option<impl ToString>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn words<'a>(words: impl IntoIterator<Item = &'a String>) -> Option<String> {
    let words: Vec<&String> = words.into_iter().collect();
    (!words.is_empty()).then(|| list(&words, |word| (*word).clone()))
}

pub(super) fn put_rights(fields: &mut Fields, rights: &Rights) {
    let mut put = |path: &str, value: Option<String>| {
        fields.extend(value.map(|value| (path.to_owned(), value)));
    };
    let seccomp = match &rights.seccomp {
        Seccomp::Default => None,
        Seccomp::Unconfined => Some("unconfined".to_owned()),
        Seccomp::Profile(profile) => Some(format!("a profile of {} bytes ({:08x})", profile.len(), digest(profile))),
    };
    let pid = match &rights.pid {
        PidMode::Private => None,
        PidMode::Host => Some("host".to_owned()),
        PidMode::Service(service) => Some(format!("service:{service}")),
    };
    let ipc = match &rights.ipc {
        IpcMode::Private => None,
        IpcMode::None => Some("none".to_owned()),
        IpcMode::Host => Some("host".to_owned()),
        IpcMode::Service(service) => Some(format!("service:{service}")),
    };
    put("privileged", yes(rights.privileged));
    put("group_add", words(&rights.group_add));
    put("cap_add", words(&rights.cap_add));
    put("cap_drop", words(&rights.cap_drop));
    put("security_opt.no-new-privileges", text(rights.no_new_privileges));
    put("security_opt.seccomp", seccomp);
    put("security_opt.apparmor", rights.apparmor.clone());
    put("security_opt.systempaths", rights.unmasked.then(|| "unconfined".to_owned()));
    put("device_cgroup_rules", words(&rights.device_rules));
    put("ipc", ipc);
    put("pid", pid);
    for device in &rights.devices {
        put(&format!("devices.{}", device.target.display()), {
            Some(format!("{} ({})", device.source.display(), device.access))
        });
    }
}

/// FNV-1a: only so that two profiles of one length do not look alike.
fn digest(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

pub(super) fn put_kernel(fields: &mut Fields, kernel: &KernelSettings) {
    let limit = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    for (name, both) in &kernel.ulimits {
        fields.insert(format!("ulimits.{name}"), format!("{} to {}", limit(both.soft), limit(both.hard)));
    }
    put_map(fields, "sysctls", &kernel.sysctls);
    fields.extend(kernel.shm_size.map(|size| ("shm_size".to_owned(), bytes(size))));
    fields.extend(kernel.oom_score_adj.map(|score| ("oom_score_adj".to_owned(), score.to_string())));
}

pub(super) fn put_controls(fields: &mut Fields, controls: &Controls) {
    let mut put = |path: &str, value: Option<String>| {
        fields.extend(value.map(|value| (path.to_owned(), value)));
    };
    put(
        "memswap_limit",
        controls.memory_swap.map(|swap| match swap {
            MemorySwap::Unlimited => "unlimited".to_owned(),
            MemorySwap::Bytes(count) => bytes(count),
        }),
    );
    put("mem_swappiness", text(controls.swappiness));
    put("oom_kill_disable", yes(controls.oom_kill_disable));
    put("cpu_shares", text(controls.cpu_shares));
    put("cpu_period", text(controls.cpu_period));
    put("cpu_quota", text(controls.cpu_quota));
    put("cpuset", controls.cpuset.clone());
    let block = &controls.block;
    put("blkio_config.weight", text(block.weight));
    for (path, weight) in &block.device_weights {
        put(&format!("blkio_config.weight_device.{}", path.display()), Some(weight.to_string()));
    }
    let rates = [
        ("device_read_bps", &block.read_bps),
        ("device_write_bps", &block.write_bps),
        ("device_read_iops", &block.read_iops),
        ("device_write_iops", &block.write_iops),
    ];
    for (key, devices) in rates {
        for (path, rate) in devices {
            put(&format!("blkio_config.{key}.{}", path.display()), Some(rate.to_string()));
        }
    }
}

/// Beside size, mode and access.
pub(super) fn tmpfs(options: &TmpfsOptions) -> String {
    let mut out = String::new();
    for (name, value) in [("uid", options.uid), ("gid", options.gid)] {
        out += &value.map(|id| format!(", {name} {id}")).unwrap_or_default();
    }
    out += &options.inodes.map(|count| format!(", {count} inodes")).unwrap_or_default();
    for (name, allowed) in [("exec", options.exec), ("suid", options.suid)] {
        if allowed {
            out += &format!(", {name}");
        }
    }
    out
}
