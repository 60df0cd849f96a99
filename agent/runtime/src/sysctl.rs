//! Kernel parameters of a container: only those of namespaces that it has of its own.
//!
//! Most of what lies below `/proc/sys` is the host's, whoever writes it. The kernel picks the namespace by the process
//! that writes, so that the host's procfs serves for writing when the process is in the container's namespaces and its
//! root is still the host's: the container's own `/proc` cannot be trusted ([`procfs`]), and is read-only later.

use std::{io, path::Path};

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};

use crate::{
    error::{StartError, Step},
    namespaces::is_ours,
    process::procfs,
};

/// Those of `/proc/sys/kernel` that each IPC namespace has for itself: ipc_namespaces(7).
const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shm_rmid_forced", "shmall", "shmmax", "shmmni"];

/// One parameter, found to be the container's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Below `/proc/sys`.
    path: String,
    value: String,
}

/// The parameters of `linux.sysctl` in the order of their paths, or why one of them may not be set. To be called
/// before the process enters any namespace: one that is joined by its path could be the one the runtime is in.
pub fn settings(linux: &Linux) -> Result<Vec<Setting>, StartError> {
    plan(linux, is_ours)
}

/// See above for where the process must be.
pub fn apply(settings: &[Setting]) -> Result<(), StartError> {
    for Setting { path, value } in settings {
        procfs::write(&format!("sys/{path}"), value).step(|| format!("set the sysctl {path} to {value:?}"))?;
    }
    Ok(())
}

/// `is_ours` says whether a path shows the namespace of this type that the runtime itself is in.
fn plan(
    linux: &Linux,
    is_ours: impl Fn(LinuxNamespaceType, &Path) -> io::Result<bool>,
) -> Result<Vec<Setting>, StartError> {
    let mut settings = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        let impossible = |reason: String| StartError::impossible(format!("setting the sysctl {key}"), reason);
        let path = path_of(key).ok_or_else(|| impossible("it is not the name of a sysctl".to_owned()))?;
        let kind = namespace_of(&path).map_err(|reason| impossible(reason.to_owned()))?;
        let without = |which: &str| {
            let reason = format!("it belongs to the {kind} namespace, and {which}: setting it would change the host");
            Err(impossible(reason))
        };
        match namespace(linux, kind).map(LinuxNamespace::path) {
            None => return without("the container has none of its own in linux.namespaces"),
            Some(None) => {}
            Some(Some(joined)) => {
                if is_ours(kind, joined).step(|| format!("look at the namespace {}", joined.display()))? {
                    return without(&format!("{} is the runtime's own", joined.display()));
                }
            }
        }
        settings.push(Setting { path, value: value.clone() });
    }
    settings.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(settings)
}

fn namespace(linux: &Linux, kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    linux.namespaces().iter().flatten().find(|namespace| namespace.typ() == kind)
}

/// As sysctl.d(5) reads names: the first separator is the one that separates, and where that is a dot, a slash stands
/// for a dot (`net.ipv4.conf.eth0/1.forwarding`).
fn path_of(key: &str) -> Option<String> {
    let path: String = match key.find(['.', '/']).map(|at| key.as_bytes()[at]) {
        Some(b'.') => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => key.to_owned(),
    };
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    path.split('/').all(is_name).then_some(path)
}

/// The type of namespace that has this parameter for itself.
fn namespace_of(path: &str) -> Result<LinuxNamespaceType, &'static str> {
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        ["net", _, ..] => Ok(LinuxNamespaceType::Network),
        ["fs", "mqueue", _] => Ok(LinuxNamespaceType::Ipc),
        ["kernel", name] if IPC.contains(&name) => Ok(LinuxNamespaceType::Ipc),
        ["kernel", "domainname"] => Ok(LinuxNamespaceType::Uts),
        ["kernel", "hostname"] => Err("the container's name is set by `hostname`"),
        ["user", _] => Ok(LinuxNamespaceType::User),
        _ => Err("it is the host's: no namespace has it for itself"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::process::in_child::{failure, in_child};

    fn linux(namespaces: serde_json::Value, sysctl: &[(&str, &str)]) -> Linux {
        let sysctl: serde_json::Map<_, _> =
            sysctl.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        serde_json::from_value(serde_json::json!({"namespaces": namespaces, "sysctl": sysctl})).unwrap()
    }

    fn all_new() -> serde_json::Value {
        serde_json::json!([{"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "user"}])
    }

    fn refused(namespaces: serde_json::Value, key: &str) -> String {
        failure(plan(&linux(namespaces, &[(key, "1")]), |_, _| Ok(false)))
    }

    #[test]
    fn what_a_namespace_has_for_itself_may_be_set() {
        let keys = [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("kernel.shmmax", "kernel/shmmax"),
            ("fs/mqueue/msg_max", "fs/mqueue/msg_max"),
            ("kernel.domainname", "kernel/domainname"),
            ("user.max_user_namespaces", "user/max_user_namespaces"),
        ];
        for (key, path) in keys {
            let settings = plan(&linux(all_new(), &[(key, "1")]), |_, _| Ok(false)).unwrap();
            assert_eq!(settings, [Setting { path: path.to_owned(), value: "1".to_owned() }]);
            assert!(refused(serde_json::json!([{"type": "mount"}]), key).contains("none of its own"), "{key}");
        }
    }

    #[test]
    fn what_is_the_hosts_is_refused() {
        for key in ["kernel.panic", "vm.swappiness", "fs.file-max", "fs.mqueue.a.b", "kernel.shmmax.x", "net", "user"] {
            assert!(refused(all_new(), key).contains("it is the host's"), "{key}");
        }
        assert!(refused(all_new(), "kernel.hostname").contains("`hostname`"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for key in ["", "net..x", "net/../kernel/panic", "net.//.kernel.panic", "/net/x", "net/", "net/./x", "net/a\0"]
        {
            assert!(refused(all_new(), key).contains("not the name of a sysctl"), "{key:?}");
        }
    }

    #[test]
    fn a_joined_namespace_must_not_be_the_runtimes_own() {
        let with = |path: &str| {
            let namespaces = serde_json::json!([{"type": "network", "path": path}]);
            settings(&linux(namespaces, &[("net.ipv4.ip_forward", "1")]))
        };
        assert!(failure(with("/proc/self/ns/net")).contains("is the runtime's own"));
        assert!(failure(with("/nowhere")).contains("look at the namespace /nowhere"));
        // Any other file is another namespace as far as this goes; entering it will fail.
        assert_eq!(with("/proc/self/ns/ipc").unwrap().len(), 1);
    }

    #[test]
    fn settings_are_the_containers_and_leave_the_hosts_alone() {
        let wanted = linux(
            all_new(),
            &[
                ("kernel.shmmni", "77"),
                ("net/ipv4/ip_forward", "1"),
                ("kernel.domainname", "test"),
                ("net.ipv4.ping_group_range", "0 5"),
            ],
        );
        let read = || {
            ["kernel/domainname", "kernel/shmmni", "net/ipv4/ip_forward", "net/ipv4/ping_group_range"]
                .map(|path| fs::read_to_string(format!("/proc/sys/{path}")).unwrap().trim().replace('\t', " "))
                .join("|")
        };
        let before = read();
        let seen = in_child(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).unwrap();
            apply(&settings(&wanted).unwrap()).unwrap();
            read()
        });
        assert_eq!(seen, "test|77|1|0 5");
        assert_eq!(read(), before);
    }

    #[test]
    fn a_setting_that_the_kernel_refuses_is_named() {
        let seen = in_child(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let wrong = plan(&linux(all_new(), &[("net.ipv4.no_such", "1")]), |_, _| Ok(false)).unwrap();
            failure(apply(&wrong))
        });
        assert!(seen.starts_with("set the sysctl net/ipv4/no_such to \"1\": No such file"), "{seen}");
    }
}
