//! What a container may do beyond, or less than, the default, and what of the host it sees.

use std::{collections::BTreeSet, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::id::ServiceName;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rights {
    /// Every capability and device, no filter of system calls, nothing of the kernel masked or read-only.
    pub privileged: bool,
    /// Supplementary groups: names, looked up in the container's own group file, or numbers.
    pub group_add: Vec<String>,
    /// Names without `CAP_`, in capitals; `ALL`.
    pub cap_add: BTreeSet<String>,
    pub cap_drop: BTreeSet<String>,
    /// No program gets more rights by being executed. `None`: so it is, unless the container is privileged.
    pub no_new_privileges: Option<bool>,
    pub seccomp: Seccomp,
    /// The name of a profile that the node has loaded, or `unconfined`.
    pub apparmor: Option<String>,
    /// `systempaths=unconfined`: nothing below `/proc` and `/sys` is masked or read-only.
    pub unmasked: bool,
    pub devices: Vec<Device>,
    /// Device numbers it may use without having them: `c 189:* rmw`.
    pub device_rules: Vec<String>,
    pub ipc: IpcMode,
    pub pid: PidMode,
}

/// The filter of system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Default,
    Unconfined,
    /// A profile in Docker's format, as JSON: see [`crate::seccomp`].
    Profile(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute, on the node: a device, or a directory of devices.
    pub source: PathBuf,
    pub target: PathBuf,
    /// Some of `r`, `w` and `m` (make nodes of it).
    pub access: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpcMode {
    #[default]
    Private,
    /// Of its own, and without `/dev/shm`.
    None,
    Host,
    /// That of the same replica of another service of the stack.
    Service(ServiceName),
}

/// Which processes it sees and may signal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// Its own.
    #[default]
    Private,
    Host,
    /// Those of the same replica of another service of the stack, too.
    Service(ServiceName),
}

impl Rights {
    /// The service of the stack whose containers' namespaces this one's share: a replica goes with the same replica.
    pub fn shares_with(&self) -> Option<&ServiceName> {
        match (&self.ipc, &self.pid) {
            (IpcMode::Service(service), _) | (_, PidMode::Service(service)) => Some(service),
            _ => None,
        }
    }
}
