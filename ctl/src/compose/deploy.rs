//! `deploy` of a service, and `scale` and `restart`, which say some of the same.

use std::collections::BTreeMap;

use roster_proto::spec::{
    Limits, Mode, Reservations, Resources, RestartCondition, RestartPolicy, UpdateOrder, UpdatePolicy,
};

use super::{
    MAX_REPLICAS,
    context::{Context, Fields, one_of},
    keys::{self, DEPLOY, LIMITS, RESERVATIONS, RESOURCES, RESTART_POLICY, UPDATE_CONFIG},
    problem::quoted,
    units,
    yaml::Node,
};

/// Swarm's least: below it not even the C library starts.
const MIN_MEMORY: u64 = 4 << 20;
/// Swarm's least: the kernel's scheduler counts no finer.
const MIN_NANO_CPUS: u64 = 1_000_000;
/// The kernel's own limit of process ids.
const MAX_PIDS: u64 = 4_194_304;
const MAX_ATTEMPTS: u64 = 1_000_000;

#[derive(Default)]
pub(super) struct Deploy {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) resources: Resources,
    pub(super) update: UpdatePolicy,
    pub(super) restart: RestartPolicy,
}

/// The mode needs `scale`, the restart policy needs `restart`: so this reads all three keys.
pub(super) fn read(context: &mut Context<'_>, service: &Fields<'_>) -> (Mode, Deploy) {
    let fields = service.get("deploy").and_then(|node| context.fields(node, &DEPLOY));
    let mode = mode(context, service, fields.as_ref());
    let mut deploy = Deploy::default();
    let plain = service.get("restart").and_then(|node| restart(context, node));
    deploy.restart = plain.clone().unwrap_or_default();
    let Some(fields) = fields else { return (mode, deploy) };
    if let Some(node) = fields.get("labels") {
        deploy.labels = labels(context, node);
    }
    if let Some(node) = fields.get("resources") {
        deploy.resources = resources(context, node);
    }
    if let Some(node) = fields.get("update_config") {
        deploy.update = update(context, node);
    }
    if let Some(policy) = fields.get("restart_policy").and_then(|node| restart_policy(context, node)) {
        if let Some(entry) = service.entry("restart").filter(|_| plain.is_some()) {
            let help = "remove `restart`";
            context.warning(entry.key_span, "`restart` has no effect: `deploy.restart_policy` is set too").help(help);
        }
        deploy.restart = policy;
    }
    (mode, deploy)
}

/// `labels`, in both forms; a label without a value has an empty one.
pub(super) fn labels(context: &mut Context<'_>, node: &Node) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (name, value, span) in context.pairs(node, "labels") {
        if name.is_empty() {
            context.error(span, "a label's name is empty").help("write `name: value`, or remove it");
        }
        labels.insert(name, value.unwrap_or_default().to_owned());
    }
    labels
}

fn mode(context: &mut Context<'_>, service: &Fields<'_>, deploy: Option<&Fields<'_>>) -> Mode {
    let count = |context: &mut Context<'_>, node: Option<&Node>, key: &str| {
        let value = context.integer(node?, key, 0..=u64::from(MAX_REPLICAS))?;
        u32::try_from(value).ok()
    };
    let replicas_node = deploy.and_then(|deploy| deploy.get("replicas"));
    let replicas = count(context, replicas_node, "replicas");
    let scale_node = service.get("scale");
    let scale = count(context, scale_node, "scale");
    if let (Some(scale), Some(replicas), Some(at), Some(first)) = (scale, replicas, scale_node, replicas_node)
        && scale != replicas
    {
        let first = context.source.location(first.span.start);
        context
            .error(at.span, format!("`scale` says {scale}, `deploy.replicas` says {replicas}"))
            .related("`deploy.replicas` is at", first)
            .help("keep one of the two");
    }
    let replicated = Mode::Replicated { replicas: replicas.or(scale).unwrap_or(1) };
    let Some(node) = deploy.and_then(|deploy| deploy.get("mode")) else { return replicated };
    match context.text(node, "mode") {
        Some("replicated") => replicated,
        Some("global") => {
            for (node, key) in [(replicas_node, "replicas"), (scale_node, "scale")] {
                if let Some(node) = node {
                    context
                        .error(node.span, format!("`{key}` has no meaning in global mode: one task runs on every node"))
                        .help(format!("remove `{key}`, or `mode: global`"));
                }
            }
            Mode::Global
        }
        Some(name @ ("replicated-job" | "global-job")) => {
            context.not_supported(node.span, &format!("the mode {name}"), "use `replicated` or `global`");
            replicated
        }
        _ => {
            context.choice(node, "mode", &[("replicated", ()), ("global", ())]);
            replicated
        }
    }
}

fn resources(context: &mut Context<'_>, node: &Node) -> Resources {
    let mut resources = Resources::default();
    let Some(fields) = context.fields(node, &RESOURCES) else { return resources };
    let limits = fields.get("limits").and_then(|node| context.fields(node, &LIMITS));
    if let Some(fields) = &limits {
        resources.limits = Limits {
            nano_cpus: fields.get("cpus").and_then(|node| cpus(context, node, "cpus")),
            memory: fields.get("memory").and_then(|node| memory(context, node, "memory")),
            pids: fields.get("pids").and_then(|node| pids(context, node, "pids")),
            // Compose has it elsewhere: `storage_opt`.
            disk: None,
        };
    }
    let Some(fields) = fields.get("reservations").and_then(|node| context.fields(node, &RESERVATIONS)) else {
        return resources;
    };
    resources.reservations = Reservations {
        nano_cpus: fields.get("cpus").and_then(|node| cpus(context, node, "cpus")),
        memory: fields.get("memory").and_then(|node| memory(context, node, "memory")),
    };
    let pairs = [
        ("cpus", resources.reservations.nano_cpus, resources.limits.nano_cpus),
        ("memory", resources.reservations.memory, resources.limits.memory),
    ];
    for (key, reserved, limit) in pairs {
        let Some(node) = fields.get(key).filter(|_| limit.is_some() && reserved > limit) else { continue };
        let problem = context.diagnostics.error(
            context.source,
            node.span,
            format!("more {key} are reserved than the limit allows").replace("memory are", "memory is"),
        );
        if let Some(limit) = limits.as_ref().and_then(|limits| limits.get(key)) {
            problem.related("the limit is at", context.source.location(limit.span.start));
        }
        problem.help("reserve at most the limit");
    }
    resources
}

/// Zero is Docker's word for "no limit".
pub(super) fn cpus(context: &mut Context<'_>, node: &Node, key: &str) -> Option<u64> {
    let text = context.text(node, key)?;
    let value = context.parsed(node.span, text, key, "number of cores", units::cpus(text))?;
    if value != 0 && value < MIN_NANO_CPUS {
        context.error(node.span, format!("`{key}`: {} is too little", quoted(text))).help("write at least 0.001");
    }
    Some(value).filter(|value| *value > 0)
}

pub(super) fn memory(context: &mut Context<'_>, node: &Node, key: &str) -> Option<u64> {
    let value = context.bytes(node, key)?;
    if value != 0 && value < MIN_MEMORY {
        let help = format!("write at least {}m, with the unit", MIN_MEMORY >> 20);
        context.error(node.span, format!("`{key}`: {value} bytes are too little to run anything")).help(help);
    }
    Some(value).filter(|value| *value > 0)
}

/// `-1` and `0` mean "no limit", as for Docker.
pub(super) fn pids(context: &mut Context<'_>, node: &Node, key: &str) -> Option<u64> {
    if context.text(node, key)? == "-1" {
        return None;
    }
    context.integer(node, key, 0..=MAX_PIDS).filter(|pids| *pids > 0)
}

fn update(context: &mut Context<'_>, node: &Node) -> UpdatePolicy {
    let mut update = UpdatePolicy::default();
    let Some(fields) = context.fields(node, &UPDATE_CONFIG) else { return update };
    let parallelism =
        fields.get("parallelism").and_then(|node| context.integer(node, "parallelism", 0..=u64::from(MAX_REPLICAS)));
    if let Some(value) = parallelism.and_then(|value| u32::try_from(value).ok()) {
        update.parallelism = value;
    }
    if let Some(delay) = fields.get("delay").and_then(|node| context.duration(node, "delay")) {
        update.delay = delay;
    }
    if let Some(monitor) = fields.get("monitor").and_then(|node| context.duration(node, "monitor")) {
        update.monitor = monitor;
    }
    let orders = [("stop-first", UpdateOrder::StopFirst), ("start-first", UpdateOrder::StartFirst)];
    if let Some(order) = fields.get("order").and_then(|node| context.choice(node, "order", &orders)) {
        update.order = order;
    }
    update
}

fn restart_policy(context: &mut Context<'_>, node: &Node) -> Option<RestartPolicy> {
    let fields = context.fields(node, &RESTART_POLICY)?;
    let conditions = [
        ("none", RestartCondition::Never),
        ("on-failure", RestartCondition::OnFailure),
        ("any", RestartCondition::Always),
    ];
    let condition = fields.get("condition").and_then(|node| context.choice(node, "condition", &conditions));
    Some(RestartPolicy {
        condition: condition.unwrap_or(RestartCondition::Always),
        delay: fields.get("delay").and_then(|node| context.duration(node, "delay")),
        max_attempts: fields
            .get("max_attempts")
            .and_then(|node| context.integer(node, "max_attempts", 0..=MAX_ATTEMPTS))
            .and_then(attempts),
        window: fields.get("window").and_then(|node| context.duration(node, "window")),
    })
}

/// Zero is Docker's word for "as often as needed".
fn attempts(count: u64) -> Option<u32> {
    u32::try_from(count).ok().filter(|count| *count > 0)
}

/// `restart`: what `docker run --restart` takes.
fn restart(context: &mut Context<'_>, node: &Node) -> Option<RestartPolicy> {
    const FORMS: [&str; 5] = ["\"no\"", "always", "unless-stopped", "on-failure", "on-failure:5"];
    let text = context.text(node, "restart")?;
    let (word, count) = match text.split_once(':') {
        Some((word, count)) => (word, Some(count)),
        None => (text, None),
    };
    let condition = match (word, count) {
        ("no", None) => RestartCondition::Never,
        // Tasks are stopped by a change of the spec only, which an unless-stopped container would not survive either.
        ("always" | "unless-stopped", None) => RestartCondition::Always,
        ("on-failure", _) => RestartCondition::OnFailure,
        _ => {
            let help =
                match keys::nearest(word, ["always", "unless-stopped", "on-failure"]).filter(|near| *near != word) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => one_of(FORMS.into_iter()),
                };
            context.error(node.span, format!("`restart` cannot be {}", quoted(text))).help(help);
            return None;
        }
    };
    let max_attempts = match count.map(|count| count.parse::<u32>()) {
        None => None,
        Some(Ok(count)) if u64::from(count) <= MAX_ATTEMPTS => attempts(u64::from(count)),
        Some(_) => {
            let help = "write on-failure:5, with the number of attempts";
            context.error(node.span, format!("`restart` cannot be {}", quoted(text))).help(help);
            return None;
        }
    };
    Some(RestartPolicy { condition, max_attempts, ..RestartPolicy::default() })
}
