//! The keys of the Compose Specification: which are read, which are not supported yet, and what is near a mistyped one.
//!
//! The lists are those of the specification's `schema/compose-spec.json`; a key in neither list of its section is
//! unknown. Nested sections of keys that are not supported are not listed, since nothing of them is read.

/// A key that the specification has and Roster does not (yet), with what to do instead where there is something.
pub(super) struct Later {
    pub(super) key: &'static str,
    pub(super) instead: &'static str,
}

/// The keys of one kind of mapping.
pub(super) struct Section {
    /// As in a message: "unknown key `x` in ...".
    pub(super) name: &'static str,
    /// Where it stands within a service, for "belongs under"; empty where that helps nobody.
    path: &'static str,
    pub(super) known: &'static [&'static str],
    pub(super) later: &'static [Later],
}

const fn later(key: &'static str, instead: &'static str) -> Later {
    Later { key, instead }
}

const fn plain(key: &'static str) -> Later {
    Later { key, instead: "" }
}

pub(super) const ROOT: Section = Section {
    name: "the file",
    path: "",
    known: &["version", "name", "services"],
    later: &[
        later("include", "put the services into this file"),
        plain("models"),
        later("networks", "remove it: services share the default bridge network, or set `network_mode`"),
        later("volumes", "remove it, and mount a folder of the host (`./data:/data`) or a tmpfs"),
        later("secrets", "mount a file read-only: `./secret:/run/secrets/name:ro`"),
        later("configs", "mount a file read-only: `./app.conf:/etc/app.conf:ro`"),
    ],
};

pub(super) const SERVICE: Section = Section {
    name: "a service",
    path: "the service",
    known: &[
        "image",
        "command",
        "entrypoint",
        "environment",
        "env_file",
        "working_dir",
        "user",
        "hostname",
        "labels",
        "network_mode",
        "ports",
        "volumes",
        "tmpfs",
        "read_only",
        "init",
        "tty",
        "stdin_open",
        "stop_signal",
        "stop_grace_period",
        "healthcheck",
        "privileged",
        "group_add",
        "cap_add",
        "cap_drop",
        "security_opt",
        "devices",
        "device_cgroup_rules",
        "ipc",
        "pid",
        "userns_mode",
        "ulimits",
        "sysctls",
        "shm_size",
        "oom_score_adj",
        "oom_kill_disable",
        "cpus",
        "cpu_shares",
        "cpu_period",
        "cpu_quota",
        "cpuset",
        "mem_limit",
        "mem_reservation",
        "memswap_limit",
        "mem_swappiness",
        "pids_limit",
        "blkio_config",
        "storage_opt",
        "runtime",
        "restart",
        "scale",
        "deploy",
    ],
    later: &[
        plain("annotations"),
        plain("attach"),
        later("build", "build the image elsewhere, load it with `rctl image load`, and name it in `image`"),
        plain("cgroup"),
        later(
            "cgroup_parent",
            "remove it: every task has a group of its own below the agent's (its --cgroup-parent), and counts on it",
        ),
        later("configs", "mount a file read-only: `./app.conf:/etc/app.conf:ro`"),
        later("container_name", "remove it: every task gets a name of its own; `hostname` sets the name inside"),
        later("cpu_count", "use `deploy.resources.limits.cpus`"),
        later("cpu_percent", "use `deploy.resources.limits.cpus`"),
        plain("cpu_rt_period"),
        plain("cpu_rt_runtime"),
        plain("credential_spec"),
        later("depends_on", "remove it, and let the service wait or retry until what it needs answers"),
        plain("develop"),
        plain("dns"),
        plain("dns_opt"),
        plain("dns_search"),
        plain("domainname"),
        later("expose", "remove it: it has no effect, services on one network reach each other's ports"),
        later("extends", "use a YAML anchor and `<<: *anchor`"),
        plain("external_links"),
        plain("extra_hosts"),
        plain("gpus"),
        plain("isolation"),
        later("label_file", "write the labels under `labels`"),
        plain("links"),
        later("logging", "remove it: logs are kept per task, bounded in size, and shown by `rctl logs`"),
        plain("mac_address"),
        plain("models"),
        later("networks", "remove it: services share the default bridge network, or set `network_mode`"),
        plain("platform"),
        plain("post_start"),
        plain("pre_stop"),
        later("profiles", "put the service into a spec of its own"),
        plain("provider"),
        plain("pull_policy"),
        plain("pull_refresh_after"),
        later("secrets", "mount a file read-only: `./secret:/run/secrets/name:ro`"),
        plain("use_api_socket"),
        plain("uts"),
        plain("volumes_from"),
    ],
};

pub(super) const DEPLOY: Section = Section {
    name: "`deploy`",
    path: "`deploy`",
    known: &["mode", "replicas", "labels", "resources", "restart_policy", "update_config"],
    later: &[plain("endpoint_mode"), plain("placement"), plain("rollback_config")],
};

pub(super) const RESOURCES: Section =
    Section { name: "`resources`", path: "`deploy.resources`", known: &["limits", "reservations"], later: &[] };

pub(super) const LIMITS: Section =
    Section { name: "`limits`", path: "`deploy.resources.limits`", known: &["cpus", "memory", "pids"], later: &[] };

pub(super) const RESERVATIONS: Section = Section {
    name: "`reservations`",
    path: "",
    known: &["cpus", "memory"],
    later: &[plain("devices"), plain("generic_resources")],
};

pub(super) const RESTART_POLICY: Section = Section {
    name: "`restart_policy`",
    path: "`deploy.restart_policy`",
    known: &["condition", "delay", "max_attempts", "window"],
    later: &[],
};

pub(super) const UPDATE_CONFIG: Section = Section {
    name: "`update_config`",
    path: "`deploy.update_config`",
    known: &["parallelism", "delay", "order", "monitor"],
    later: &[
        later("failure_action", "remove it: a rollout that fails is held, as with `pause`"),
        later("max_failure_ratio", "remove it: the first failure holds the rollout"),
    ],
};

pub(super) const HEALTHCHECK: Section = Section {
    name: "`healthcheck`",
    path: "`healthcheck`",
    known: &["test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"],
    later: &[],
};

pub(super) const PORT: Section = Section {
    name: "a port",
    path: "",
    known: &["target", "published", "host_ip", "protocol", "mode", "name", "app_protocol"],
    later: &[],
};

pub(super) const VOLUME: Section = Section {
    name: "a volume",
    path: "",
    known: &["type", "source", "target", "read_only", "bind", "tmpfs", "consistency"],
    later: &[plain("volume"), plain("image")],
};

pub(super) const BIND: Section = Section {
    name: "`bind`",
    path: "",
    known: &["propagation", "create_host_path"],
    later: &[plain("recursive"), plain("selinux")],
};

pub(super) const TMPFS: Section = Section { name: "`tmpfs`", path: "", known: &["size", "mode"], later: &[] };

pub(super) const DEVICE: Section =
    Section { name: "a device", path: "", known: &["source", "target", "permissions"], later: &[] };

pub(super) const ULIMIT: Section = Section { name: "a ulimit", path: "", known: &["soft", "hard"], later: &[] };

pub(super) const STORAGE_OPT: Section =
    Section { name: "`storage_opt`", path: "`storage_opt`", known: &["size"], later: &[] };

pub(super) const BLKIO: Section = Section {
    name: "`blkio_config`",
    path: "`blkio_config`",
    known: &["weight", "weight_device", "device_read_bps", "device_write_bps", "device_read_iops", "device_write_iops"],
    later: &[],
};

pub(super) const BLKIO_WEIGHT: Section =
    Section { name: "a device's weight", path: "", known: &["path", "weight"], later: &[] };

pub(super) const BLKIO_RATE: Section =
    Section { name: "a device's rate", path: "", known: &["path", "rate"], later: &[] };

pub(super) const ENV_FILE: Section =
    Section { name: "an env file", path: "", known: &["path", "required"], later: &[plain("format")] };

/// Sections in which a key that stands in the wrong place may belong.
const HOMES: [&Section; 8] =
    [&SERVICE, &DEPLOY, &HEALTHCHECK, &RESOURCES, &LIMITS, &RESTART_POLICY, &UPDATE_CONFIG, &BLKIO];

/// What to do about a key that its section does not have.
pub(super) fn advice(key: &str, section: &Section) -> String {
    let listed = || section.known.iter().copied().chain(section.later.iter().map(|later| later.key));
    let home = HOMES.iter().find(|home| home.known.contains(&key) && home.path != section.path);
    if let Some(home) = home.filter(|_| !key.is_empty()) {
        return format!("`{key}` belongs under {}", home.path);
    }
    match nearest(key, listed()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("{} has: {}", section.name, section.known.join(", ")),
    }
}

/// The candidate that takes the fewest edits, if they are few for a word of this length.
pub(super) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word: Vec<char> = word.chars().flat_map(char::to_lowercase).map(|c| if c == '-' { '_' } else { c }).collect();
    if word.len() > 64 {
        return None;
    }
    let allowed = (word.len() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| {
            (edits(&word, &candidate.to_lowercase().replace('-', "_").chars().collect::<Vec<_>>()), candidate)
        })
        .filter(|(edits, _)| *edits <= allowed)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).
fn edits(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substituted = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substituted.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let keys = SERVICE.known.iter().copied();
        let near = |word| nearest(word, keys.clone());
        assert_eq!(near("imgae"), Some("image"));
        assert_eq!(near("Environment"), Some("environment"));
        assert_eq!(near("stop-signal"), Some("stop_signal"));
        assert_eq!(near("helthchek"), Some("healthcheck"));
        assert_eq!(near("frobnicate"), None);
        assert_eq!(near(""), None);
        assert_eq!(near(&"x".repeat(10_000)), None);
    }

    #[test]
    fn no_key_is_listed_twice() {
        let sections = [
            &ROOT,
            &SERVICE,
            &DEPLOY,
            &RESOURCES,
            &LIMITS,
            &RESERVATIONS,
            &RESTART_POLICY,
            &UPDATE_CONFIG,
            &HEALTHCHECK,
            &PORT,
            &VOLUME,
            &BIND,
            &TMPFS,
            &DEVICE,
            &ULIMIT,
            &BLKIO,
            &BLKIO_WEIGHT,
            &BLKIO_RATE,
            &ENV_FILE,
        ];
        for section in sections {
            let mut all: Vec<&str> =
                section.later.iter().map(|later| later.key).chain(section.known.iter().copied()).collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count, "{}", section.name);
        }
    }
}
