//! What a container may do and how the kernel treats it.

use roster_proto::{
    seccomp::Profile,
    spec::{MemorySwap, Resources, Rights, Seccomp, TaskSpec, rules},
};

use super::Problems;

/// Devices of one container; a directory of devices counts once.
const MAX_DEVICES: usize = 256;
/// More would only wear the log.
const MAX_GROUPS: usize = 256;
const MAX_BYTES: u64 = i64::MAX as u64;

impl Problems {
    pub(super) fn rights(&mut self, service: &str, rights: &Rights) {
        let at = |field: &str| format!("services.{service}.{field}");
        self.most(&at("group_add"), rights.group_add.len(), MAX_GROUPS);
        for group in &rights.group_add {
            self.fit(&at("group_add"), rules::group(group));
        }
        for (field, names) in [("cap_add", &rights.cap_add), ("cap_drop", &rights.cap_drop)] {
            for name in names {
                let canonical = rules::capability(name).is_ok_and(|known| known == *name);
                self.require(canonical, &at(field), || {
                    let shown: String = name.chars().take(60).collect();
                    format!("{shown:?} is not a capability: write its name in capitals without CAP_")
                });
            }
        }
        if let Seccomp::Profile(profile) = &rights.seccomp {
            self.check(&at("security_opt.seccomp"), Profile::parse(profile).map(drop));
        }
        if let Some(profile) = &rights.apparmor {
            self.fit(&at("security_opt.apparmor"), rules::apparmor(profile));
        }
        self.most(&at("devices"), rights.devices.len(), MAX_DEVICES);
        for device in &rights.devices {
            self.fit(&at("devices"), rules::host_path(&device.source));
            self.fit(&at("devices"), rules::host_path(&device.target));
            self.fit(&at("devices"), rules::device_access(&device.access));
        }
        self.most(&at("device_cgroup_rules"), rights.device_rules.len(), MAX_DEVICES);
        for rule in &rights.device_rules {
            self.fit(&at("device_cgroup_rules"), rules::device_rule(rule));
        }
    }

    pub(super) fn kernel(&mut self, service: &str, task: &TaskSpec) {
        let at = |field: &str| format!("services.{service}.{field}");
        let kernel = &task.kernel;
        for (name, limit) in &kernel.ulimits {
            self.fit(&at("ulimits"), rules::ulimit(name, *limit));
        }
        self.count(&at("sysctls"), kernel.sysctls.len());
        for (name, value) in &kernel.sysctls {
            self.fit(&at("sysctls"), rules::sysctl(name, value, task.network, &task.rights.ipc));
        }
        let shm = kernel.shm_size.is_none_or(|size| (rules::MIN_SHM..=MAX_BYTES).contains(&size));
        self.require(shm, &at("shm_size"), || format!("must be at least {}", rules::MIN_SHM));
        let score = kernel.oom_score_adj.is_none_or(|score| rules::OOM_SCORES.contains(&score));
        self.require(score, &at("oom_score_adj"), || "must be from -1000 to 1000".to_owned());
        if let Some(runtime) = &task.runtime {
            self.fit(&at("runtime"), rules::runtime(runtime));
        }
    }

    pub(super) fn controls(&mut self, service: &str, resources: &Resources) {
        let at = |field: &str| format!("services.{service}.{field}");
        let (controls, limits) = (&resources.controls, &resources.limits);
        if let Some(size) = limits.disk {
            self.fit(&at("storage_opt.size"), rules::disk(size));
        }
        if let Some(swap) = controls.memory_swap {
            let holds = match (swap, limits.memory) {
                (_, None) => false,
                (MemorySwap::Unlimited, Some(_)) => true,
                (MemorySwap::Bytes(bytes), Some(limit)) => (limit..=MAX_BYTES).contains(&bytes),
            };
            self.require(holds, &at("memswap_limit"), || {
                "counts memory and swap together: it needs a limit of memory, and at least as much".to_owned()
            });
        }
        self.require(controls.swappiness.is_none_or(|percent| percent <= 100), &at("mem_swappiness"), || {
            "must be from 0 to 100".to_owned()
        });
        let twice = limits.nano_cpus.is_some() && (controls.cpu_period.is_some() || controls.cpu_quota.is_some());
        self.require(!twice, &at("cpu_quota"), || "cannot be set beside cpus: leave out one of them".to_owned());
        let within = [
            ("cpu_shares", controls.cpu_shares, rules::CPU_SHARES),
            ("cpu_period", controls.cpu_period, rules::CPU_PERIODS),
            ("cpu_quota", controls.cpu_quota, rules::MIN_CPU_QUOTA..=MAX_BYTES),
        ];
        for (field, value, range) in within {
            self.require(value.is_none_or(|value| range.contains(&value)), &at(field), || {
                format!("must be from {} to {}", range.start(), range.end())
            });
        }
        if let Some(cpuset) = &controls.cpuset {
            self.fit(&at("cpuset"), rules::cpuset(cpuset));
        }
        self.block(&at("blkio_config"), controls);
    }

    fn block(&mut self, at: &str, controls: &roster_proto::spec::Controls) {
        let block = &controls.block;
        let rates = [&block.read_bps, &block.write_bps, &block.read_iops, &block.write_iops];
        self.most(at, block.device_weights.len() + rates.iter().map(|map| map.len()).sum::<usize>(), MAX_DEVICES);
        for weight in block.weight.iter().chain(block.device_weights.values()) {
            self.require(rules::WEIGHTS.contains(weight), at, || "a weight must be from 10 to 1000".to_owned());
        }
        for rate in rates.iter().flat_map(|map| map.values()) {
            self.require((1..=MAX_BYTES).contains(rate), at, || "a rate must be more than nothing".to_owned());
        }
        for path in block.device_weights.keys().chain(rates.iter().flat_map(|map| map.keys())) {
            self.fit(at, rules::host_path(path));
        }
    }

    fn most(&mut self, at: &str, count: usize, most: usize) {
        self.require(count <= most, at, || format!("{count} entries; {most} are allowed"));
    }

    fn fit(&mut self, at: &str, checked: Result<(), rules::Unfit>) {
        self.check(at, checked.map_err(|unfit| unfit.to_string()));
    }
}
