//! What others write is understood or refused, whatever it is: config.json, and what is said over the channel. A panic
//! would leave a container half made.

use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, send};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    cgroup::{Version, device_program, devices, resources},
    channel::Channel,
    config,
    error::StartError,
    namespaces::{self, Namespaces},
    process::{capabilities, rlimits},
    rootfs, seccomp, signal, sysctl,
};

/// With something of nearly everything.
fn config() -> Value {
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
    let hook = json!([{ "path": "/bin/hook", "args": ["hook"], "env": ["A=b"], "timeout": 3 }]);
    json!({
        "ociVersion": "1.2.0", "hostname": "box", "domainname": "box", "annotations": { "a": "b" },
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "args": ["/bin/sh"], "env": ["PATH=/bin"], "cwd": "/", "terminal": false, "noNewPrivileges": true,
            "user": { "uid": 1, "gid": 2, "umask": 18, "additionalGids": [3] },
            "capabilities": { "bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 10, "hard": 20 }],
            "scheduler": { "policy": "SCHED_BATCH", "nice": 3 }, "oomScoreAdj": 5,
            "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 3 }
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "ro"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=64k"] },
            { "destination": "/a", "source": "/b", "options": ["rbind", "rslave", "rro"], "uidMappings": map,
              "gidMappings": map }
        ],
        "hooks": { "prestart": hook, "poststop": hook },
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "user" }, { "type": "uts" },
                { "type": "ipc" }, { "type": "time" }, { "type": "network",
                "path": "/proc/1/ns/net" }],
            "uidMappings": map, "gidMappings": map, "cgroupsPath": "/a/b", "rootfsPropagation": "rslave",
            "sysctl": { "net.ipv4.ip_forward": "1", "kernel.shmmax": "1" },
            "devices": [{ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0 }],
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"], "timeOffsets": { "monotonic": { "secs": 1 } },
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 1, "minor": 3 }],
                "memory": { "limit": 1000, "swap": 2000, "reservation": 500, "swappiness": 10 },
                "cpu": { "shares": 100, "quota": 1000, "period": 1000, "cpus": "0-1", "mems": "0", "burst": 5 },
                "pids": { "limit": 10 }, "hugepageLimits": [{ "pageSize": "2MB", "limit": 9 }],
                "blockIO": { "weight": 10, "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 9 }] },
                "unified": { "memory.high": "1000" }
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [{ "names": ["read", "write"], "action": "SCMP_ACT_ALLOW",
                    "args": [{ "index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ" }] }]
            }
        }
    })
}

/// All that reads a config without doing anything by it.
fn understand(spec: &Spec) {
    let text = |error: StartError| error.to_string();
    let _ = Namespaces::of(spec).map(|all| (all.flags(), all.clone_flags())).map_err(text);
    rootfs::tests::understand(spec);
    if let Some(process) = spec.process() {
        let _ = rlimits::check(process.rlimits().as_deref().unwrap_or_default()).map_err(text);
        let sets = capabilities::Sets::wanted(process.capabilities().as_ref());
        let _ = capabilities::left_out(process.capabilities().as_ref(), sets.granted_to(sets));
    }
    let Some(linux) = spec.linux() else { return };
    let _ = sysctl::settings(linux).map_err(text);
    let _ = namespaces::id_map(linux.uid_mappings().iter().flatten());
    let _ = linux.seccomp().as_ref().map(|profile: &LinuxSeccomp| seccomp::compile(profile).map_err(text));
    let Some(limits) = linux.resources() else { return };
    for version in [Version::V1, Version::V2] {
        let _ = resources::writes(limits, version).map_err(text);
    }
    if let Ok(rules) = devices::rules(limits.devices().as_deref().unwrap_or_default()) {
        let _ = (devices::v1_writes(&rules).map_err(text), device_program::program(&rules));
    }
}

/// The number of values in one, itself among them.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(all) => all.iter().map(count).sum(),
        Value::Object(all) => all.values().map(count).sum(),
        _ => 0,
    }
}

/// Puts something else in the place of the value of this number.
fn replace(value: &mut Value, number: &mut usize, by: &Value) {
    if *number == 0 {
        *value = by.clone();
    }
    *number = number.wrapping_sub(1);
    match value {
        Value::Array(all) => all.iter_mut().for_each(|value| replace(value, number, by)),
        Value::Object(all) => all.values_mut().for_each(|value| replace(value, number, by)),
        _ => {}
    }
}

fn strange() -> impl Strategy<Value = Value> {
    let words =
        ["", "/", "..", "\0", "a\nb", "-1", "99999999999999999999", "0-", "1-0,,", "CAP_", "=", "a:b:c", "é\u{202e}"];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![any::<i64>(), Just(-1), Just(0), Just(i64::MIN), Just(i64::MAX)].prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        proptest::sample::select(words.to_vec()).prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        (0usize..9000).prop_map(|length| "x".repeat(length).into()),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[[]], {}, null, "a"])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_config_of_strange_values_is_understood_or_refused(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), strange()), 1..5)
    ) {
        let mut config = config();
        for (place, by) in changes {
            let mut number = place.index(count(&config));
            replace(&mut config, &mut number, &by);
        }
        if let Ok(spec) = serde_json::from_value::<Spec>(config) {
            understand(&spec);
        }
    }

    #[test]
    fn a_config_of_damaged_bytes_is_understood_or_refused(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        end in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = config().to_string().into_bytes();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        for bytes in [&bytes[..], &bytes[..end.index(bytes.len())]] {
            if let Ok(spec) = config::parse(bytes) {
                understand(&spec);
            }
        }
    }

    #[test]
    fn any_packet_is_a_word_or_an_error(packet in proptest::collection::vec(any::<u8>(), 0..200), tag in "[nogftw?+!]") {
        let (here, there) = Channel::pair().expect("sockets");
        for packet in [packet.clone(), [tag.as_bytes(), &packet].concat()] {
            send(there.as_fd().as_raw_fd(), &packet, MsgFlags::empty()).expect("sent");
            let _ = here.hear().map(|word| format!("{word:?}"));
        }
        drop(there);
        prop_assert!(matches!(here.hear(), Ok(None)));
    }

    #[test]
    fn any_signal_is_one_or_none(text in ".{0,20}") {
        prop_assert!(signal::parse(&text).is_none_or(|number| (0..=64).contains(&number)));
    }
}

#[test]
fn the_config_that_is_changed_is_whole() {
    let spec: Spec = serde_json::from_value(config()).expect("a spec");
    understand(&spec);
    Namespaces::of(&spec).expect("namespaces");
    seccomp::compile(spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()).expect("a profile"))
        .expect("a filter");
}
