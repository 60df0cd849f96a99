//! Specs.

use std::{path::PathBuf, time::Duration};

use super::{ConvertError, address, enumeration, list, micros, name, nested, optional, port, required, twin_enum};
use crate::{
    assignment::PublishedPort,
    spec::{
        HealthTest, Healthcheck, Limits, Mode, Mount, NetworkMode, Port, Propagation, Protocol, Reservations,
        Resources, RestartCondition, RestartPolicy, ServiceSpec, StackSpec, TaskSpec, TmpfsOptions, UpdateOrder,
        UpdatePolicy,
    },
    wire,
};

twin_enum!(wire::NetworkMode, NetworkMode, "network", { Bridge <=> Bridge, Host <=> Host, None <=> None });
twin_enum!(wire::Protocol, Protocol, "protocol", { Tcp <=> Tcp, Udp <=> Udp });
twin_enum!(wire::restart_policy::Condition, RestartCondition, "condition", {
    Never <=> Never, OnFailure <=> OnFailure, Always <=> Always,
});
twin_enum!(wire::update_policy::Order, UpdateOrder, "order", { StopFirst <=> StopFirst, StartFirst <=> StartFirst });

impl From<StackSpec> for wire::StackSpec {
    fn from(stack: StackSpec) -> Self {
        Self {
            name: stack.name.into(),
            services: stack.services.into_iter().map(|(name, service)| (name.into(), service.into())).collect(),
        }
    }
}

impl TryFrom<wire::StackSpec> for StackSpec {
    type Error = ConvertError;
    fn try_from(stack: wire::StackSpec) -> Result<Self, ConvertError> {
        let services = stack
            .services
            .into_iter()
            .map(|(key, service)| {
                let service = nested(&format!("services.{key}"), service)?;
                Ok((name("services", &key)?, service))
            })
            .collect::<Result<_, ConvertError>>()?;
        Ok(Self { name: name("name", &stack.name)?, services })
    }
}

impl From<ServiceSpec> for wire::ServiceSpec {
    fn from(spec: ServiceSpec) -> Self {
        use wire::service_spec::{Global, Mode as WireMode, Replicated};
        Self {
            mode: Some(match spec.mode {
                Mode::Replicated { replicas } => WireMode::Replicated(Replicated { replicas }),
                Mode::Global => WireMode::Global(Global {}),
            }),
            restart: Some(spec.restart.into()),
            update: Some(spec.update.into()),
            labels: spec.labels,
            extensions: spec.extensions,
            task: Some(spec.task.into()),
        }
    }
}

impl TryFrom<wire::ServiceSpec> for ServiceSpec {
    type Error = ConvertError;
    fn try_from(spec: wire::ServiceSpec) -> Result<Self, ConvertError> {
        use wire::service_spec::Mode as WireMode;
        Ok(Self {
            mode: match spec.mode.ok_or_else(|| ConvertError::missing("mode"))? {
                WireMode::Replicated(mode) => Mode::Replicated { replicas: mode.replicas },
                WireMode::Global(_) => Mode::Global,
            },
            restart: required("restart", spec.restart)?,
            update: required("update", spec.update)?,
            labels: spec.labels,
            extensions: spec.extensions,
            task: required("task", spec.task)?,
        })
    }
}

fn strings(values: Vec<String>) -> wire::StringList {
    wire::StringList { values }
}

impl From<TaskSpec> for wire::TaskSpec {
    fn from(spec: TaskSpec) -> Self {
        Self {
            image: spec.image,
            entrypoint: spec.entrypoint.map(strings),
            command: spec.command.map(strings),
            environment: spec.environment,
            working_dir: spec.working_dir,
            user: spec.user,
            hostname: spec.hostname,
            labels: spec.labels,
            network: wire::NetworkMode::from(spec.network).into(),
            ports: spec.ports.into_iter().map(Into::into).collect(),
            mounts: spec.mounts.into_iter().map(Into::into).collect(),
            read_only: spec.read_only,
            init: spec.init,
            stop_signal: spec.stop_signal,
            stop_grace_period: micros(spec.stop_grace_period),
            healthcheck: spec.healthcheck.map(Into::into),
            resources: Some(spec.resources.into()),
            singleton: spec.singleton,
            tty: spec.tty,
            stdin_open: spec.stdin_open,
            rights: Some(spec.rights.into()),
            kernel: Some(spec.kernel.into()),
            runtime: spec.runtime,
            attended: spec.attended,
        }
    }
}

impl TryFrom<wire::TaskSpec> for TaskSpec {
    type Error = ConvertError;
    fn try_from(spec: wire::TaskSpec) -> Result<Self, ConvertError> {
        Ok(Self {
            image: spec.image,
            entrypoint: spec.entrypoint.map(|list| list.values),
            command: spec.command.map(|list| list.values),
            environment: spec.environment,
            working_dir: spec.working_dir,
            user: spec.user,
            hostname: spec.hostname,
            labels: spec.labels,
            network: enumeration::<wire::NetworkMode, _>("network", spec.network)?,
            ports: list("ports", spec.ports)?,
            mounts: list("mounts", spec.mounts)?,
            read_only: spec.read_only,
            init: spec.init,
            stop_signal: spec.stop_signal,
            stop_grace_period: Duration::from_micros(spec.stop_grace_period),
            healthcheck: optional("healthcheck", spec.healthcheck)?,
            resources: nested("resources", spec.resources.unwrap_or_default())?,
            singleton: spec.singleton,
            tty: spec.tty,
            stdin_open: spec.stdin_open,
            rights: optional("rights", spec.rights)?.unwrap_or_default(),
            kernel: spec.kernel.unwrap_or_default().into(),
            runtime: spec.runtime,
            attended: spec.attended,
        })
    }
}

impl From<Port> for wire::Port {
    fn from(port: Port) -> Self {
        Self {
            target: port.target.into(),
            published: port.published.map(Into::into),
            host_ip: port.host_ip.map(|ip| ip.to_string()),
            protocol: wire::Protocol::from(port.protocol).into(),
        }
    }
}

impl TryFrom<wire::Port> for Port {
    type Error = ConvertError;
    fn try_from(value: wire::Port) -> Result<Self, ConvertError> {
        Ok(Self {
            target: port("target", value.target)?,
            published: value.published.map(|published| port("published", published)).transpose()?,
            host_ip: value.host_ip.map(|ip| address("host_ip", &ip)).transpose()?,
            protocol: enumeration::<wire::Protocol, _>("protocol", value.protocol)?,
        })
    }
}

impl From<PublishedPort> for wire::PublishedPort {
    fn from(port: PublishedPort) -> Self {
        Self {
            published: port.published.into(),
            target: port.target.into(),
            protocol: wire::Protocol::from(port.protocol).into(),
            host_ip: port.host_ip.map(|ip| ip.to_string()),
        }
    }
}

impl TryFrom<wire::PublishedPort> for PublishedPort {
    type Error = ConvertError;
    fn try_from(value: wire::PublishedPort) -> Result<Self, ConvertError> {
        Ok(Self {
            published: port("published", value.published)?,
            target: port("target", value.target)?,
            protocol: enumeration::<wire::Protocol, _>("protocol", value.protocol)?,
            host_ip: value.host_ip.map(|ip| address("host_ip", &ip)).transpose()?,
        })
    }
}

const PROPAGATIONS: [(Propagation, &str); 6] = [
    (Propagation::Rprivate, "rprivate"),
    (Propagation::Private, "private"),
    (Propagation::Rshared, "rshared"),
    (Propagation::Shared, "shared"),
    (Propagation::Rslave, "rslave"),
    (Propagation::Slave, "slave"),
];

impl Propagation {
    /// As Compose and mount(8) write it.
    pub fn as_str(self) -> &'static str {
        PROPAGATIONS.iter().find(|(mode, _)| *mode == self).map_or("rprivate", |(_, text)| text)
    }
}

impl std::str::FromStr for Propagation {
    type Err = ConvertError;
    fn from_str(text: &str) -> Result<Self, ConvertError> {
        PROPAGATIONS.iter().find(|(_, known)| *known == text).map(|(mode, _)| *mode).ok_or_else(|| {
            let known = PROPAGATIONS.map(|(_, known)| known).join(", ");
            ConvertError::new("propagation", format!("{text:?} is not one of {known}"))
        })
    }
}

pub(super) fn path_text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

impl From<Mount> for wire::Mount {
    fn from(mount: Mount) -> Self {
        use wire::mount::{Bind, Kind, Tmpfs};
        let kind = match mount {
            Mount::Bind { source, target, read_only, create_source, propagation } => Kind::Bind(Bind {
                source: path_text(source),
                target: path_text(target),
                read_only,
                create_source,
                propagation: propagation.as_str().to_owned(),
            }),
            Mount::Tmpfs { target, size, mode, read_only, options } => Kind::Tmpfs(Tmpfs {
                target: path_text(target),
                size,
                mode,
                read_only,
                uid: options.uid,
                gid: options.gid,
                inodes: options.inodes,
                exec: options.exec,
                suid: options.suid,
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::Mount> for Mount {
    type Error = ConvertError;
    fn try_from(mount: wire::Mount) -> Result<Self, ConvertError> {
        use wire::mount::Kind;
        Ok(match mount.kind.ok_or_else(|| ConvertError::missing("kind"))? {
            Kind::Bind(bind) => Mount::Bind {
                source: bind.source.into(),
                target: bind.target.into(),
                read_only: bind.read_only,
                create_source: bind.create_source,
                propagation: bind.propagation.parse()?,
            },
            Kind::Tmpfs(tmpfs) => Mount::Tmpfs {
                target: tmpfs.target.into(),
                size: tmpfs.size,
                mode: tmpfs.mode,
                read_only: tmpfs.read_only,
                options: TmpfsOptions {
                    uid: tmpfs.uid,
                    gid: tmpfs.gid,
                    inodes: tmpfs.inodes,
                    exec: tmpfs.exec,
                    suid: tmpfs.suid,
                },
            },
        })
    }
}

impl From<Healthcheck> for wire::Healthcheck {
    fn from(check: Healthcheck) -> Self {
        use wire::healthcheck::{Disabled, Inherit, Test};
        Self {
            test: Some(match check.test {
                HealthTest::Inherit => Test::Inherit(Inherit {}),
                HealthTest::Disabled => Test::Disabled(Disabled {}),
                HealthTest::Command(values) => Test::Command(strings(values)),
                HealthTest::Shell(line) => Test::Shell(line),
            }),
            interval: check.interval.map(micros),
            timeout: check.timeout.map(micros),
            retries: check.retries,
            start_period: check.start_period.map(micros),
            start_interval: check.start_interval.map(micros),
        }
    }
}

impl TryFrom<wire::Healthcheck> for Healthcheck {
    type Error = ConvertError;
    fn try_from(check: wire::Healthcheck) -> Result<Self, ConvertError> {
        use wire::healthcheck::Test;
        Ok(Self {
            test: match check.test.ok_or_else(|| ConvertError::missing("test"))? {
                Test::Inherit(_) => HealthTest::Inherit,
                Test::Disabled(_) => HealthTest::Disabled,
                Test::Command(list) => HealthTest::Command(list.values),
                Test::Shell(line) => HealthTest::Shell(line),
            },
            interval: check.interval.map(Duration::from_micros),
            timeout: check.timeout.map(Duration::from_micros),
            retries: check.retries,
            start_period: check.start_period.map(Duration::from_micros),
            start_interval: check.start_interval.map(Duration::from_micros),
        })
    }
}

impl From<Resources> for wire::Resources {
    fn from(resources: Resources) -> Self {
        Self {
            limit_nano_cpus: resources.limits.nano_cpus,
            limit_memory: resources.limits.memory,
            limit_pids: resources.limits.pids,
            limit_disk: resources.limits.disk,
            reserved_nano_cpus: resources.reservations.nano_cpus,
            reserved_memory: resources.reservations.memory,
            controls: Some(resources.controls.into()),
        }
    }
}

impl TryFrom<wire::Resources> for Resources {
    type Error = ConvertError;
    fn try_from(resources: wire::Resources) -> Result<Self, ConvertError> {
        Ok(Self {
            limits: Limits {
                nano_cpus: resources.limit_nano_cpus,
                memory: resources.limit_memory,
                pids: resources.limit_pids,
                disk: resources.limit_disk,
            },
            reservations: Reservations { nano_cpus: resources.reserved_nano_cpus, memory: resources.reserved_memory },
            controls: optional("controls", resources.controls)?.unwrap_or_default(),
        })
    }
}

impl From<RestartPolicy> for wire::RestartPolicy {
    fn from(policy: RestartPolicy) -> Self {
        Self {
            condition: wire::restart_policy::Condition::from(policy.condition).into(),
            delay: policy.delay.map(micros),
            max_attempts: policy.max_attempts,
            window: policy.window.map(micros),
        }
    }
}

impl TryFrom<wire::RestartPolicy> for RestartPolicy {
    type Error = ConvertError;
    fn try_from(policy: wire::RestartPolicy) -> Result<Self, ConvertError> {
        Ok(Self {
            condition: enumeration::<wire::restart_policy::Condition, _>("condition", policy.condition)?,
            delay: policy.delay.map(Duration::from_micros),
            max_attempts: policy.max_attempts,
            window: policy.window.map(Duration::from_micros),
        })
    }
}

impl From<UpdatePolicy> for wire::UpdatePolicy {
    fn from(policy: UpdatePolicy) -> Self {
        Self {
            parallelism: policy.parallelism,
            delay: micros(policy.delay),
            order: wire::update_policy::Order::from(policy.order).into(),
            monitor: micros(policy.monitor),
        }
    }
}

impl TryFrom<wire::UpdatePolicy> for UpdatePolicy {
    type Error = ConvertError;
    fn try_from(policy: wire::UpdatePolicy) -> Result<Self, ConvertError> {
        Ok(Self {
            parallelism: policy.parallelism,
            delay: Duration::from_micros(policy.delay),
            order: enumeration::<wire::update_policy::Order, _>("order", policy.order)?,
            monitor: Duration::from_micros(policy.monitor),
        })
    }
}
