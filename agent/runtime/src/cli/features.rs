//! `features`: what this runtime supports, as the standard has it (features.md of the runtime-spec).

use oci_spec::runtime::Capability;
use serde_json::{Value, json};

use super::{Outcome, print as print_json};
use crate::{
    config::{NEWEST, OLDEST},
    container::ANNOTATION_CREATE,
    rootfs::MOUNT_OPTIONS,
    seccomp,
};

const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];

pub(super) fn print() -> Outcome {
    print_json(&document())
}

fn document() -> Value {
    let mut mount_options = MOUNT_OPTIONS.to_vec();
    mount_options.sort_unstable();
    json!({
        "ociVersionMin": OLDEST,
        "ociVersionMax": NEWEST,
        "hooks": HOOKS,
        "mountOptions": mount_options,
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": capabilities(),
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": seccomp::features(),
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": false }
        },
        "annotations": { "org.roster.runtime.version": env!("CARGO_PKG_VERSION") },
        "potentiallyUnsafeConfigAnnotations": [ANNOTATION_CREATE]
    })
}

/// By the names that config.json may have.
fn capabilities() -> Vec<String> {
    let known = |name: &String| serde_json::from_value::<Capability>(json!(name)).is_ok();
    let mut all: Vec<_> = caps::all().into_iter().map(|capability| capability.to_string()).filter(known).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_the_standards() {
        let document = document();
        let features: oci_spec::runtime::Features = serde_json::from_value(document.clone()).expect("features");
        assert_eq!(features.oci_version_max(), NEWEST);
        let listed = |pointer: &str, word: &str| {
            document.pointer(pointer).and_then(Value::as_array).is_some_and(|all| all.contains(&json!(word)))
        };
        assert!(listed("/linux/capabilities", "CAP_CHECKPOINT_RESTORE"));
        assert!(listed("/mountOptions", "rro") && listed("/mountOptions", "rslave"));
        assert!(listed("/linux/seccomp/actions", "SCMP_ACT_ERRNO"));
        assert!(!listed("/linux/seccomp/actions", "SCMP_ACT_NOTIFY"));
    }
}
