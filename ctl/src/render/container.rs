//! What a container may do and how the kernel treats it, in the words of a Compose file.

use std::{collections::BTreeMap, path::PathBuf};

use roster_proto::spec::{BlockIo, Controls, IpcMode, KernelSettings, MemorySwap, PidMode, Rights, Seccomp, Ulimit};
use serde_json::{Value, json};

use super::spec::Object;

pub(super) fn rights(out: &mut Object, rights: &Rights) {
    let pid = match &rights.pid {
        PidMode::Private => Value::Null,
        PidMode::Host => json!("host"),
        PidMode::Service(service) => json!(format!("service:{service}")),
    };
    let ipc = match &rights.ipc {
        IpcMode::Private => Value::Null,
        IpcMode::None => json!("none"),
        IpcMode::Host => json!("host"),
        IpcMode::Service(service) => json!(format!("service:{service}")),
    };
    let devices = rights.devices.iter();
    let device = |device: &roster_proto::spec::Device| {
        format!("{}:{}:{}", device.source.display(), device.target.display(), device.access)
    };
    out.put("privileged", rights.privileged)
        .put("group_add", json!(rights.group_add))
        .put("cap_add", json!(rights.cap_add))
        .put("cap_drop", json!(rights.cap_drop))
        .put("security_opt", json!(security_options(rights)))
        .put("devices", json!(devices.map(device).collect::<Vec<_>>()))
        .put("device_cgroup_rules", json!(rights.device_rules))
        .put("ipc", ipc)
        .put("pid", pid);
}

fn security_options(rights: &Rights) -> Vec<String> {
    let mut options = Vec::new();
    options.extend(rights.no_new_privileges.map(|forbidden| format!("no-new-privileges:{forbidden}")));
    match &rights.seccomp {
        Seccomp::Default => {}
        Seccomp::Unconfined => options.push("seccomp=unconfined".to_owned()),
        // The file's name is not known any more.
        Seccomp::Profile(profile) => options.push(format!("seccomp={profile}")),
    }
    options.extend(rights.apparmor.iter().map(|profile| format!("apparmor={profile}")));
    options.extend(rights.unmasked.then(|| "systempaths=unconfined".to_owned()));
    options
}

pub(super) fn kernel(out: &mut Object, kernel: &KernelSettings) {
    let limit = |limit: Option<u64>| limit.map_or(json!(-1), |limit| json!(limit));
    let ulimit = |both: &Ulimit| match both.soft == both.hard {
        true => limit(both.soft),
        false => json!({"soft": limit(both.soft), "hard": limit(both.hard)}),
    };
    let ulimits: BTreeMap<&String, Value> = kernel.ulimits.iter().map(|(name, both)| (name, ulimit(both))).collect();
    out.put("ulimits", json!(ulimits))
        .put("sysctls", json!(kernel.sysctls))
        .put("shm_size", json!(kernel.shm_size))
        .put("oom_score_adj", json!(kernel.oom_score_adj));
}

pub(super) fn controls(out: &mut Object, controls: &Controls) {
    let swap = match controls.memory_swap {
        None => Value::Null,
        Some(MemorySwap::Unlimited) => json!(-1),
        Some(MemorySwap::Bytes(bytes)) => json!(bytes),
    };
    out.put("memswap_limit", swap)
        .put("mem_swappiness", json!(controls.swappiness))
        .put("oom_kill_disable", controls.oom_kill_disable)
        .put("cpu_shares", json!(controls.cpu_shares))
        .put("cpu_period", json!(controls.cpu_period))
        .put("cpu_quota", json!(controls.cpu_quota))
        .put("cpuset", json!(controls.cpuset))
        .put("blkio_config", block(&controls.block));
}

fn block(block: &BlockIo) -> Value {
    fn rates(rates: &BTreeMap<PathBuf, u64>) -> Vec<Value> {
        rates.iter().map(|(path, rate)| json!({"path": path, "rate": rate})).collect()
    }
    let weights = block.device_weights.iter().map(|(path, weight)| json!({"path": path, "weight": weight}));
    Object::default()
        .put("weight", json!(block.weight))
        .put("weight_device", weights.collect::<Vec<_>>())
        .put("device_read_bps", rates(&block.read_bps))
        .put("device_write_bps", rates(&block.write_bps))
        .put("device_read_iops", rates(&block.read_iops))
        .put("device_write_iops", rates(&block.write_iops))
        .done()
}
