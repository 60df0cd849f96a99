//! A spec as a flat list of fields with the paths of a Compose file, so that two specs can be compared line by line.
//!
//! What a file leaves out is left out here, so that a default written down by hand still shows as a change.

use std::{collections::BTreeMap, time::Duration};

use roster_proto::{
    cause::Cpus,
    report::FieldChange,
    spec::{
        HealthTest, Healthcheck, Mode, Mount, NetworkMode, Port, Protocol, Resources, RestartCondition, ServiceSpec,
        TaskSpec, UpdateOrder,
    },
};

mod container;

type Fields = BTreeMap<String, String>;

/// The fields that differ, in order of their paths.
pub(super) fn difference(before: Option<&ServiceSpec>, after: Option<&ServiceSpec>) -> Vec<FieldChange> {
    let mut before = before.map(of_service).unwrap_or_default();
    let after = after.map(of_service).unwrap_or_default();
    let mut changes = Vec::new();
    for (path, value) in after {
        let was = before.remove(&path);
        if was.as_ref() != Some(&value) {
            changes.push(FieldChange { path, before: was, after: Some(value) });
        }
    }
    changes.extend(before.into_iter().map(|(path, was)| FieldChange { path, before: Some(was), after: None }));
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    changes
}

fn of_service(spec: &ServiceSpec) -> Fields {
    let mut fields = Fields::new();
    let mut put = |path: &str, value: String| {
        fields.insert(path.to_owned(), value);
    };
    match spec.mode {
        Mode::Replicated { replicas } => put("deploy.replicas", replicas.to_string()),
        Mode::Global => put("deploy.mode", "global".to_owned()),
    }
    let condition = match spec.restart.condition {
        RestartCondition::Never => "none",
        RestartCondition::OnFailure => "on-failure",
        RestartCondition::Always => "any",
    };
    put("deploy.restart_policy.condition", condition.to_owned());
    spec.restart.delay.iter().for_each(|delay| put("deploy.restart_policy.delay", duration(*delay)));
    spec.restart.window.iter().for_each(|window| put("deploy.restart_policy.window", duration(*window)));
    spec.restart.max_attempts.iter().for_each(|most| put("deploy.restart_policy.max_attempts", most.to_string()));
    let order = match spec.update.order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    };
    put("deploy.update_config.order", order.to_owned());
    put("deploy.update_config.parallelism", spec.update.parallelism.to_string());
    put("deploy.update_config.delay", duration(spec.update.delay));
    put("deploy.update_config.monitor", duration(spec.update.monitor));
    put_map(&mut fields, "deploy.labels", &spec.labels);
    fields.extend(spec.extensions.iter().map(|(key, value)| (key.clone(), value.clone())));
    put_task(&mut fields, &spec.task);
    fields
}

fn put_task(fields: &mut Fields, task: &TaskSpec) {
    let mut put = |path: &str, value: Option<String>| {
        fields.extend(value.map(|value| (path.to_owned(), value)));
    };
    let network = match task.network {
        NetworkMode::Bridge => None,
        NetworkMode::Host => Some("host".to_owned()),
        NetworkMode::None => Some("none".to_owned()),
    };
    put("image", Some(task.image.clone()));
    put("entrypoint", task.entrypoint.as_deref().map(words));
    put("command", task.command.as_deref().map(words));
    put("working_dir", task.working_dir.clone());
    put("user", task.user.clone());
    put("hostname", task.hostname.clone());
    put("network_mode", network);
    put("read_only", task.read_only.then(|| "true".to_owned()));
    put("init", task.init.then(|| "true".to_owned()));
    put("tty", task.tty.then(|| "true".to_owned()));
    put("stdin_open", task.stdin_open.then(|| "true".to_owned()));
    put("runtime", task.runtime.clone());
    put("stop_signal", task.stop_signal.clone());
    put("stop_grace_period", Some(duration(task.stop_grace_period)));
    put("ports", (!task.ports.is_empty()).then(|| list(&task.ports, port)));
    put_map(fields, "environment", &task.environment);
    put_map(fields, "labels", &task.labels);
    for mount in &task.mounts {
        let (target, value) = describe(mount);
        fields.insert(format!("volumes.{target}"), value);
    }
    task.healthcheck.iter().for_each(|check| put_healthcheck(fields, check));
    put_resources(fields, &task.resources);
    container::put_controls(fields, &task.resources.controls);
    container::put_rights(fields, &task.rights);
    container::put_kernel(fields, &task.kernel);
}

fn put_healthcheck(fields: &mut Fields, check: &Healthcheck) {
    let mut put = |path: &str, value: Option<String>| {
        fields.extend(value.map(|value| (format!("healthcheck.{path}"), value)));
    };
    let test = match &check.test {
        HealthTest::Inherit => None,
        HealthTest::Disabled => Some("NONE".to_owned()),
        HealthTest::Command(command) => Some(words(command)),
        HealthTest::Shell(line) => Some(line.clone()),
    };
    put("test", test);
    put("interval", check.interval.map(duration));
    put("timeout", check.timeout.map(duration));
    put("retries", check.retries.map(|retries| retries.to_string()));
    put("start_period", check.start_period.map(duration));
    put("start_interval", check.start_interval.map(duration));
}

fn put_resources(fields: &mut Fields, resources: &Resources) {
    let mut put = |path: &str, value: Option<String>| {
        fields.extend(value.map(|value| (format!("deploy.resources.{path}"), value)));
    };
    put("limits.cpus", resources.limits.nano_cpus.map(|cpus| Cpus(cpus).to_string()));
    put("limits.memory", resources.limits.memory.map(bytes));
    put("limits.pids", resources.limits.pids.map(|pids| pids.to_string()));
    put("reservations.cpus", resources.reservations.nano_cpus.map(|cpus| Cpus(cpus).to_string()));
    put("reservations.memory", resources.reservations.memory.map(bytes));
    fields.extend(resources.limits.disk.map(|size| ("storage_opt.size".to_owned(), bytes(size))));
}

fn put_map(fields: &mut Fields, path: &str, map: &BTreeMap<String, String>) {
    fields.extend(map.iter().map(|(key, value)| (format!("{path}.{key}"), value.clone())));
}

fn describe(mount: &Mount) -> (String, String) {
    let access = |read_only: &bool| if *read_only { "ro" } else { "rw" };
    match mount {
        Mount::Bind { source, target, read_only, create_source, propagation } => {
            let missing = if *create_source { "created when missing" } else { "must exist" };
            let propagation = format!("{propagation:?}").to_lowercase();
            let text = format!("bind {} ({}, {missing}, {propagation})", source.display(), access(read_only));
            (target.display().to_string(), text)
        }
        Mount::Tmpfs { target, size, mode, read_only, options } => {
            let size = size.map_or_else(|| "no size limit".to_owned(), bytes);
            let mode = mode.map(|mode| format!(", mode {mode:04o}")).unwrap_or_default();
            let more = container::tmpfs(options);
            (target.display().to_string(), format!("tmpfs ({}, {size}{mode}{more})", access(read_only)))
        }
    }
}

fn port(port: &Port) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let published = port.published.map(|number| format!("{number}:")).unwrap_or_default();
    let host_ip = port.host_ip.map(|ip| format!("{ip}:")).unwrap_or_default();
    format!("{host_ip}{published}{}/{protocol}", port.target)
}

fn words(words: &[String]) -> String {
    list(words, |word| format!("{word:?}"))
}

fn list<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", "))
}

/// Exact, unlike what is printed elsewhere: two sizes that differ must not look alike.
fn bytes(bytes: u64) -> String {
    let exact = [("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .find(|(_, bits)| bytes > 0 && bytes.trailing_zeros() >= *bits);
    match exact {
        Some((unit, bits)) => format!("{} {unit}", bytes >> bits),
        None => format!("{bytes} B"),
    }
}

fn duration(duration: Duration) -> String {
    if duration.is_zero() { "0s".to_owned() } else { format!("{duration:?}") }
}
