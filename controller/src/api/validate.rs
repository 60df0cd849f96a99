//! Whether a well-formed spec makes sense. Pure.
//!
//! `rctl` reports most of this with line and column long before; but whoever speaks gRPC need not be `rctl`, and what
//! gets past here is written to the log of every peer and carried out as root. All problems are told at once.

use std::{collections::BTreeSet, fmt, path::Path, time::Duration};

use roster_proto::{
    id::{ServiceName, StackName},
    spec::{
        HealthTest, Healthcheck, Mode, Mount, NetworkMode, Port, Resources, RestartPolicy, ServiceSpec, StackSpec,
        TaskSpec, UpdateOrder, sharing,
    },
};

use crate::state::{MAX_REPLICAS, MAX_SERVICES};

mod container;

/// Problems listed; more are counted.
const LISTED: usize = 20;
/// The kernel refuses a single argument or variable of 128 KiB and more: execve(2), MAX_ARG_STRLEN.
const MAX_STRING: usize = 128 * 1024 - 1;
/// Arguments, variables, labels, ports or mounts of one service.
const MAX_ITEMS: usize = 4096;
const MAX_IMAGE: usize = 1024;
/// PATH_MAX, path_resolution(7).
const MAX_PATH: usize = 4096;
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);
/// In thousand-millionths of a core.
const MAX_NANO_CPUS: u64 = 4096 * 1_000_000_000;
const LAST_SIGNAL: u32 = 64;

#[derive(Debug, PartialEq, Eq)]
pub struct InvalidSpec {
    stack: StackName,
    problems: Vec<String>,
}

impl std::error::Error for InvalidSpec {}

impl fmt::Display for InvalidSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stack {} cannot be applied:", self.stack)?;
        for problem in self.problems.iter().take(LISTED) {
            write!(f, "\n  {problem}")?;
        }
        match self.problems.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// The spec, when nothing is wrong with it.
pub fn validated(stack: StackSpec) -> Result<StackSpec, InvalidSpec> {
    let mut problems = Problems::default();
    if stack.services.len() > MAX_SERVICES {
        problems.0.push(format!("{} services; {MAX_SERVICES} are allowed", stack.services.len()));
    }
    for (name, service) in &stack.services {
        problems.of_service(name, service);
    }
    for (name, unfit) in sharing::problems(&stack.services, |_| false) {
        problems.0.push(format!("services.{name}: {unfit}"));
    }
    match problems.0.is_empty() {
        true => Ok(stack),
        false => Err(InvalidSpec { stack: stack.name, problems: problems.0 }),
    }
}

/// The replicas somebody asked for.
pub fn replicas_allowed(replicas: u32) -> Result<(), String> {
    if replicas <= MAX_REPLICAS {
        return Ok(());
    }
    Err(format!("{replicas} replicas; {MAX_REPLICAS} are allowed for one service"))
}

/// A name or id of an image, for a pull or a removal.
pub fn image_reference_allowed(image: &str) -> Result<(), String> {
    if image.is_empty() {
        return Err("is missing: name an image".to_owned());
    }
    if image.len() > MAX_IMAGE || image.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("{:?} is not an image name", brief(image)));
    }
    Ok(())
}

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn of_service(&mut self, name: &ServiceName, service: &ServiceSpec) {
        let at = |field: &str| format!("services.{name}.{field}");
        if let Mode::Replicated { replicas } = service.mode {
            self.check(&at("deploy.replicas"), replicas_allowed(replicas));
        }
        self.restart(&at("deploy.restart_policy"), &service.restart);
        self.duration(&at("deploy.update_config.delay"), service.update.delay);
        self.duration(&at("deploy.update_config.monitor"), service.update.monitor);
        self.pairs(&at("deploy.labels"), &service.labels);
        self.pairs(&at("x-*"), &service.extensions);
        self.task(name, &service.task);
        if service.task.singleton {
            self.singleton(&at("x-singleton"), service);
        }
    }

    /// Never two of it at once.
    fn singleton(&mut self, at: &str, service: &ServiceSpec) {
        let one = matches!(service.mode, Mode::Replicated { replicas: 0 | 1 });
        self.require(one, at, || "cannot be with more than one replica, nor in global mode".to_owned());
        let stops_first = service.update.order == UpdateOrder::StopFirst;
        self.require(stops_first, at, || "cannot be updated start-first: two would run at once".to_owned());
    }

    fn restart(&mut self, at: &str, policy: &RestartPolicy) {
        for (field, value) in [("delay", policy.delay), ("window", policy.window)] {
            if let Some(value) = value {
                self.duration(&format!("{at}.{field}"), value);
            }
        }
    }

    fn task(&mut self, name: &ServiceName, task: &TaskSpec) {
        let at = |field: &str| format!("services.{name}.{field}");
        self.check(&at("image"), image_reference_allowed(&task.image));
        self.arguments(&at("entrypoint"), task.entrypoint.as_deref().unwrap_or_default());
        self.arguments(&at("command"), task.command.as_deref().unwrap_or_default());
        self.environment(&at("environment"), task);
        self.pairs(&at("labels"), &task.labels);
        if let Some(dir) = &task.working_dir {
            self.check(&at("working_dir"), absolute(Path::new(dir)));
        }
        if let Some(user) = &task.user {
            let fits = !user.is_empty()
                && user.len() <= 512
                && !user.contains(|c: char| c.is_control() || matches!(c, '/' | ','));
            self.require(fits, &at("user"), || format!("{:?} is not USER[:GROUP]", brief(user)));
        }
        if let Some(hostname) = &task.hostname {
            self.require(is_hostname(hostname), &at("hostname"), || {
                format!("{:?} is not a host name: use up to 63 letters, digits, '-' or '.'", brief(hostname))
            });
        }
        if let Some(signal) = &task.stop_signal {
            self.require(is_signal(signal), &at("stop_signal"), || {
                format!("{:?} is not a signal: write a name such as SIGTERM or a number from 1 to 64", brief(signal))
            });
        }
        self.duration(&at("stop_grace_period"), task.stop_grace_period);
        self.ports(&at("ports"), task.network, &task.ports);
        self.mounts(name, &task.mounts);
        if let Some(check) = &task.healthcheck {
            self.healthcheck(&at("healthcheck"), check);
        }
        self.resources(&at("deploy.resources"), &task.resources);
        self.controls(name.as_str(), &task.resources);
        self.rights(name.as_str(), &task.rights);
        self.kernel(name.as_str(), task);
    }

    fn environment(&mut self, at: &str, task: &TaskSpec) {
        self.pairs(at, &task.environment);
        for name in task.environment.keys() {
            self.require(!name.is_empty() && !name.contains('='), at, || {
                format!("{:?} is not a variable's name: it must not be empty or hold '='", brief(name))
            });
        }
    }

    fn ports(&mut self, at: &str, network: NetworkMode, ports: &[Port]) {
        self.count(at, ports.len());
        self.require(ports.is_empty() || network == NetworkMode::Bridge, at, || {
            "only a service with the bridge network can publish ports: leave out ports or network_mode".to_owned()
        });
        let mut seen = BTreeSet::new();
        for port in ports {
            self.require(port.target != 0 && port.published != Some(0), at, || {
                "port 0 cannot be used: use 1 to 65535".to_owned()
            });
            if let Some(published) = port.published {
                self.require(seen.insert((published, port.protocol, port.host_ip)), at, || {
                    format!("port {published} is published twice")
                });
            }
        }
    }

    fn mounts(&mut self, name: &ServiceName, mounts: &[Mount]) {
        let at = format!("services.{name}.volumes");
        self.count(&at, mounts.len());
        let mut seen = BTreeSet::new();
        for mount in mounts {
            let target = match mount {
                Mount::Bind { source, target, .. } => {
                    self.check(&at, absolute(source));
                    target
                }
                Mount::Tmpfs { target, mode, .. } => {
                    self.require(mode.is_none_or(|mode| mode <= 0o7777), &at, || {
                        format!("mode {:o} is not a permission: use up to 7777", mode.unwrap_or_default())
                    });
                    target
                }
            };
            self.check(&at, absolute(target));
            // Compared by components: `/a/` and `/a` are one place.
            let place: Vec<_> = target.components().collect();
            self.require(place.len() > 1, &at, || "nothing can be mounted over / itself".to_owned());
            self.require(seen.insert(place), &at, || format!("{target:?} is mounted twice"));
        }
    }

    fn healthcheck(&mut self, at: &str, check: &Healthcheck) {
        match &check.test {
            HealthTest::Command(command) => {
                self.require(!command.is_empty(), &format!("{at}.test"), || "names no command".to_owned());
                self.arguments(&format!("{at}.test"), command);
            }
            HealthTest::Shell(line) => self.arguments(&format!("{at}.test"), std::slice::from_ref(line)),
            HealthTest::Inherit | HealthTest::Disabled => {}
        }
        let positive =
            [("interval", check.interval), ("timeout", check.timeout), ("start_interval", check.start_interval)];
        for (field, value) in positive {
            let Some(value) = value else { continue };
            self.duration(&format!("{at}.{field}"), value);
            self.require(value >= Duration::from_millis(1), &format!("{at}.{field}"), || {
                "must be at least 1ms".to_owned()
            });
        }
        if let Some(value) = check.start_period {
            self.duration(&format!("{at}.start_period"), value);
        }
        self.require(check.retries != Some(0), &format!("{at}.retries"), || "must be at least 1".to_owned());
    }

    fn resources(&mut self, at: &str, resources: &Resources) {
        let (limits, reservations) = (&resources.limits, &resources.reservations);
        let amounts = [
            ("limits.cpus", limits.nano_cpus, MAX_NANO_CPUS),
            ("limits.memory", limits.memory, i64::MAX as u64),
            // The kernel's bound on pids: PID_MAX_LIMIT, proc(5).
            ("limits.pids", limits.pids, 4 * 1024 * 1024),
            ("reservations.cpus", reservations.nano_cpus, MAX_NANO_CPUS),
            ("reservations.memory", reservations.memory, i64::MAX as u64),
        ];
        for (field, amount, most) in amounts {
            self.require(amount.is_none_or(|amount| (1..=most).contains(&amount)), &format!("{at}.{field}"), || {
                "must be more than nothing and no more than a machine can have".to_owned()
            });
        }
        let pairs = [
            ("reservations.cpus", reservations.nano_cpus, limits.nano_cpus),
            ("reservations.memory", reservations.memory, limits.memory),
        ];
        for (field, reserved, limit) in pairs {
            self.require(
                reserved.zip(limit).is_none_or(|(reserved, limit)| reserved <= limit),
                &format!("{at}.{field}"),
                || "is more than its limit".to_owned(),
            );
        }
    }

    fn arguments(&mut self, at: &str, arguments: &[String]) {
        self.count(at, arguments.len());
        for argument in arguments {
            self.check(at, c_string(argument));
        }
    }

    fn pairs(&mut self, at: &str, pairs: &std::collections::BTreeMap<String, String>) {
        self.count(at, pairs.len());
        for (name, value) in pairs {
            self.check(at, c_string(name));
            self.check(at, c_string(value));
        }
    }

    fn count(&mut self, at: &str, count: usize) {
        self.require(count <= MAX_ITEMS, at, || format!("{count} entries; {MAX_ITEMS} are allowed"));
    }

    fn duration(&mut self, at: &str, value: Duration) {
        self.require(value <= MAX_DURATION, at, || "is longer than a year".to_owned());
    }

    fn require(&mut self, fits: bool, at: &str, problem: impl FnOnce() -> String) {
        if !fits {
            self.0.push(format!("{at}: {}", problem()));
        }
    }

    fn check(&mut self, at: &str, checked: Result<(), String>) {
        if let Err(problem) = checked {
            self.0.push(format!("{at}: {problem}"));
        }
    }
}

fn c_string(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return Err(format!("{:?} holds a NUL, which no process can be given", brief(text)));
    }
    if text.len() > MAX_STRING {
        return Err(format!("{:?}... is longer than {MAX_STRING} bytes, the most the kernel passes on", brief(text)));
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<(), String> {
    let shown = path.to_string_lossy();
    let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
    if !path.is_absolute() || climbs || path.as_os_str().len() > MAX_PATH || shown.contains('\0') {
        return Err(format!("{:?} must be an absolute path without '..'", brief(&shown)));
    }
    Ok(())
}

/// RFC 1123 labels, within what sethostname(2) takes.
fn is_hostname(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    name.len() <= 63 && name.split('.').all(label)
}

/// A number of signal(7), or a name with or without SIG; real-time signals as SIGRTMIN+n and SIGRTMAX-n.
fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=LAST_SIGNAL).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, sign: char| {
        rest.is_empty() || rest.strip_prefix(sign).and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n <= 30)
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return real_time(rest, '+');
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return real_time(rest, '-');
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().is_ok()
}

/// The beginning of what somebody sent, fit for a message.
fn brief(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests;
