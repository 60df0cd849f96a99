//! What a container may do.

use super::{ConvertError, name, spec::path_text};
use crate::{
    id::ServiceName,
    spec::{Device, IpcMode, PidMode, Rights, Seccomp},
    wire,
};

impl From<Rights> for wire::Rights {
    fn from(rights: Rights) -> Self {
        use wire::rights::{Ipc, Seccomp as Wire, Unconfined};
        let device = |device: Device| wire::rights::Device {
            source: path_text(device.source),
            target: path_text(device.target),
            access: device.access,
        };
        let (ipc, ipc_of) = match rights.ipc {
            IpcMode::Private => (Ipc::Private, None),
            IpcMode::None => (Ipc::None, None),
            IpcMode::Host => (Ipc::Host, None),
            IpcMode::Service(service) => (Ipc::Private, Some(service.to_string())),
        };
        let (host_pid, pid_of) = match rights.pid {
            PidMode::Private => (false, None),
            PidMode::Host => (true, None),
            PidMode::Service(service) => (false, Some(service.to_string())),
        };
        Self {
            privileged: rights.privileged,
            group_add: rights.group_add,
            cap_add: rights.cap_add.into_iter().collect(),
            cap_drop: rights.cap_drop.into_iter().collect(),
            no_new_privileges: rights.no_new_privileges,
            seccomp: match rights.seccomp {
                Seccomp::Default => None,
                Seccomp::Unconfined => Some(Wire::Unconfined(Unconfined {})),
                Seccomp::Profile(profile) => Some(Wire::Profile(profile)),
            },
            apparmor: rights.apparmor,
            unmasked: rights.unmasked,
            devices: rights.devices.into_iter().map(device).collect(),
            device_rules: rights.device_rules,
            ipc: ipc.into(),
            host_pid,
            ipc_of,
            pid_of,
        }
    }
}

impl TryFrom<wire::Rights> for Rights {
    type Error = ConvertError;
    fn try_from(rights: wire::Rights) -> Result<Self, ConvertError> {
        use wire::rights::{Ipc, Seccomp as Wire};
        let device = |device: wire::rights::Device| Device {
            source: device.source.into(),
            target: device.target.into(),
            access: device.access,
        };
        let service = |field: &'static str, service: Option<String>| -> Result<Option<ServiceName>, ConvertError> {
            service.map(|service| name(field, &service)).transpose()
        };
        let ipc = match Ipc::try_from(rights.ipc) {
            Ok(Ipc::Private) => IpcMode::Private,
            Ok(Ipc::None) => IpcMode::None,
            Ok(Ipc::Host) => IpcMode::Host,
            Err(_) => {
                let problem = format!("value {} is not known to this version of Roster", rights.ipc);
                return Err(ConvertError::new("ipc", problem));
            }
        };
        Ok(Self {
            privileged: rights.privileged,
            group_add: rights.group_add,
            cap_add: rights.cap_add.into_iter().collect(),
            cap_drop: rights.cap_drop.into_iter().collect(),
            no_new_privileges: rights.no_new_privileges,
            seccomp: match rights.seccomp {
                None => Seccomp::Default,
                Some(Wire::Unconfined(_)) => Seccomp::Unconfined,
                Some(Wire::Profile(profile)) => Seccomp::Profile(profile),
            },
            apparmor: rights.apparmor,
            unmasked: rights.unmasked,
            devices: rights.devices.into_iter().map(device).collect(),
            device_rules: rights.device_rules,
            ipc: service("ipc_of", rights.ipc_of)?.map_or(ipc, IpcMode::Service),
            pid: match service("pid_of", rights.pid_of)? {
                Some(service) => PidMode::Service(service),
                None if rights.host_pid => PidMode::Host,
                None => PidMode::Private,
            },
        })
    }
}
