//! A service's spec in the words of a Compose file, for `inspect -o json|yaml`: what is not set is left out.

use std::{path::Path, time::Duration};

use roster_proto::{
    cause::Cpus,
    spec::{
        HealthTest, Healthcheck, Mode, Mount, NetworkMode, Port, Protocol, RestartCondition, RestartPolicy,
        ServiceSpec, TmpfsOptions, UpdateOrder, UpdatePolicy,
    },
};
use serde_json::{Map, Value, json};

use super::container;

/// An object that only grows by what is there.
#[derive(Default)]
pub(super) struct Object(Map<String, Value>);

impl Object {
    pub(super) fn put(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        let value = value.into();
        let absent = match &value {
            Value::Null | Value::Bool(false) => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if !absent {
            self.0.insert(key.to_owned(), value);
        }
        self
    }

    pub(super) fn done(&mut self) -> Value {
        Value::Object(std::mem::take(&mut self.0))
    }
}

pub fn compose(spec: &ServiceSpec) -> Value {
    let task = &spec.task;
    let mut out = Object::default();
    out.put("image", task.image.as_str())
        .put("network_mode", network(task.network))
        .put("environment", json!(task.environment))
        .put("working_dir", json!(task.working_dir))
        .put("user", json!(task.user))
        .put("hostname", json!(task.hostname))
        .put("labels", json!(task.labels))
        .put("ports", task.ports.iter().map(port).collect::<Vec<_>>())
        .put("volumes", task.mounts.iter().filter(|mount| !is_short(mount)).map(mount).collect::<Vec<_>>())
        .put("tmpfs", task.mounts.iter().filter(|mount| is_short(mount)).map(mount).collect::<Vec<_>>())
        .put("read_only", task.read_only)
        .put("init", task.init)
        .put("tty", task.tty)
        .put("stdin_open", task.stdin_open)
        .put("stop_signal", json!(task.stop_signal))
        .put("stop_grace_period", duration(task.stop_grace_period))
        .put("healthcheck", task.healthcheck.as_ref().map_or(Value::Null, healthcheck))
        .put("runtime", json!(task.runtime))
        .put("storage_opt", Object::default().put("size", json!(task.resources.limits.disk)).done())
        .put("deploy", deploy(spec));
    container::rights(&mut out, &task.rights);
    container::kernel(&mut out, &task.kernel);
    container::controls(&mut out, &task.resources.controls);
    // An empty list clears what the image says, so it must be seen.
    for (key, words) in [("entrypoint", &task.entrypoint), ("command", &task.command)] {
        if let Some(words) = words {
            out.0.insert(key.to_owned(), json!(words));
        }
    }
    for (key, text) in &spec.extensions {
        out.put(key, serde_json::from_str::<Value>(text).unwrap_or_else(|_| json!(text)));
    }
    out.done()
}

fn deploy(spec: &ServiceSpec) -> Value {
    let resources = &spec.task.resources;
    let cpus = |nano: Option<u64>| json!(nano.map(|nano| Cpus(nano).to_string()));
    let limits = Object::default()
        .put("cpus", cpus(resources.limits.nano_cpus))
        .put("memory", json!(resources.limits.memory))
        .put("pids", json!(resources.limits.pids))
        .done();
    let reservations = Object::default()
        .put("cpus", cpus(resources.reservations.nano_cpus))
        .put("memory", json!(resources.reservations.memory))
        .done();
    let mut out = Object::default();
    match spec.mode {
        Mode::Replicated { replicas } => out.put("mode", "replicated").put("replicas", replicas),
        Mode::Global => out.put("mode", "global"),
    };
    out.put("labels", json!(spec.labels))
        .put("resources", Object::default().put("limits", limits).put("reservations", reservations).done())
        .put("restart_policy", restart(&spec.restart))
        .put("update_config", update(&spec.update))
        .done()
}

fn restart(policy: &RestartPolicy) -> Value {
    let condition = match policy.condition {
        RestartCondition::Never => "none",
        RestartCondition::OnFailure => "on-failure",
        RestartCondition::Always => "any",
    };
    Object::default()
        .put("condition", condition)
        .put("delay", policy.delay.map_or(Value::Null, duration))
        .put("max_attempts", json!(policy.max_attempts))
        .put("window", policy.window.map_or(Value::Null, duration))
        .done()
}

fn update(policy: &UpdatePolicy) -> Value {
    let order = match policy.order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    };
    json!({
        "parallelism": policy.parallelism,
        "delay": duration(policy.delay),
        "order": order,
        "monitor": duration(policy.monitor),
    })
}

fn network(mode: NetworkMode) -> &'static str {
    match mode {
        NetworkMode::Bridge => "bridge",
        NetworkMode::Host => "host",
        NetworkMode::None => "none",
    }
}

fn port(port: &Port) -> Value {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    Object::default()
        .put("target", port.target)
        .put("published", json!(port.published.map(|published| published.to_string())))
        .put("host_ip", json!(port.host_ip))
        .put("protocol", protocol)
        .done()
}

/// A tmpfs with options that `volumes` has no words for.
fn is_short(mount: &Mount) -> bool {
    matches!(mount, Mount::Tmpfs { options, .. } if *options != TmpfsOptions::default())
}

fn mount(mount: &Mount) -> Value {
    match mount {
        Mount::Bind { source, target, read_only, create_source, propagation } => {
            let bind = json!({"create_host_path": create_source, "propagation": propagation.as_str()});
            json!({"type": "bind", "source": source, "target": target, "read_only": read_only, "bind": bind})
        }
        // The options that only the short form has.
        Mount::Tmpfs { target, size, mode, read_only, options } if is_short(mount) => {
            json!(short_tmpfs(target, *size, *mode, *read_only, options))
        }
        Mount::Tmpfs { target, size, mode, read_only, options: _ } => {
            let tmpfs = Object::default()
                .put("size", json!(size))
                .put("mode", json!(mode.map(|mode| format!("{mode:04o}"))))
                .done();
            Object::default()
                .put("type", "tmpfs")
                .put("target", json!(target))
                .put("read_only", *read_only)
                .put("tmpfs", tmpfs)
                .done()
        }
    }
}

fn short_tmpfs(target: &Path, size: Option<u64>, mode: Option<u32>, read_only: bool, options: &TmpfsOptions) -> String {
    let mut words = Vec::new();
    words.extend(size.map(|size| format!("size={size}")));
    words.extend(mode.map(|mode| format!("mode={mode:04o}")));
    words.extend(options.uid.map(|uid| format!("uid={uid}")));
    words.extend(options.gid.map(|gid| format!("gid={gid}")));
    words.extend(options.inodes.map(|count| format!("nr_inodes={count}")));
    let flags = [("exec", options.exec), ("suid", options.suid), ("ro", read_only)];
    words.extend(flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name.to_owned()));
    format!("{}:{}", target.display(), words.join(","))
}

fn healthcheck(check: &Healthcheck) -> Value {
    let test = match &check.test {
        HealthTest::Inherit => Value::Null,
        HealthTest::Disabled => json!(["NONE"]),
        HealthTest::Command(words) => json!([&["CMD".to_owned()][..], words].concat()),
        HealthTest::Shell(line) => json!(["CMD-SHELL", line]),
    };
    let optional = |value: Option<Duration>| value.map_or(Value::Null, duration);
    Object::default()
        .put("test", test)
        .put("interval", optional(check.interval))
        .put("timeout", optional(check.timeout))
        .put("retries", json!(check.retries))
        .put("start_period", optional(check.start_period))
        .put("start_interval", optional(check.start_interval))
        .done()
}

/// Compose's notation, exact: `1m30s`, `250ms`, `0s`.
fn duration(value: Duration) -> Value {
    let micros = value.as_micros();
    let parts = [
        (micros / 60_000_000, "m"),
        (micros / 1_000_000 % 60, "s"),
        (micros / 1_000 % 1_000, "ms"),
        (micros % 1_000, "us"),
    ];
    let text: String =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect();
    json!(if text.is_empty() { "0s".to_owned() } else { text })
}
