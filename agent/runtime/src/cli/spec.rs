//! A config.json to start from.

use std::{fs, io, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{Doing, Outcome};
use crate::config::NEWEST;

#[derive(Debug, Args)]
pub(super) struct Write {
    /// The bundle's folder
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
}

pub(super) fn write(write: &Write) -> Outcome {
    let path = write.bundle.join("config.json");
    let text = serde_json::to_string_pretty(&example()).map_err(io::Error::from).doing(|| "write JSON".to_owned())?;
    let doing = || format!("write {} (one that exists is kept)", path.display());
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&path).doing(doing)?;
    io::Write::write_all(&mut file, format!("{text}\n").as_bytes()).doing(doing)?;
    Ok(0)
}

/// A shell in a terminal, with little rights.
fn example() -> serde_json::Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    json!({
        "ociVersion": NEWEST,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "container",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
                "/sys/devices/virtual/powercap", "/sys/firmware"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;
    use crate::config::check;

    #[test]
    fn the_example_is_one_that_this_runtime_takes() {
        let spec: Spec = serde_json::from_value(example()).expect("a spec");
        check(&spec).expect("nothing to refuse");
        crate::namespaces::Namespaces::of(&spec).expect("namespaces");
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let refused = |key: &str, value: serde_json::Value| {
            let mut all = example();
            *all.pointer_mut(key).unwrap_or(&mut json!(null)) = value;
            let spec: Spec = serde_json::from_value(all).expect("a spec");
            check(&spec).expect_err(key).to_string()
        };
        assert!(refused("/ociVersion", json!("2.0.0")).contains("\"2.0.0\" is not understood"));
        assert!(refused("/linux", json!(null)).contains("linux: it is missing"));
        let rdt = json!({ "intelRdt": {}, "namespaces": [{ "type": "mount" }] });
        assert!(refused("/linux", rdt).contains("intelRdt: not supported"));
    }
}
