//! One service: every key that is not a part of its own elsewhere.

use roster_proto::spec::{Mode, NetworkMode, STOP_GRACE_PERIOD, ServiceSpec, TaskSpec, UpdateOrder, rules};

use super::{
    context::{Context, Fields},
    deploy, environment, health, json, kernel,
    keys::{SERVICE, nearest},
    limits, mounts,
    ports::{self, Placed},
    problem::{Span, quoted},
    rights,
    shell_words::{self, Unfinished},
    words,
    yaml::{Entry, Node, Value},
};

/// Lets no two tasks of the service run at once, whatever becomes of their nodes.
const SINGLETON: &str = "x-singleton";

pub(super) struct Service {
    pub(super) spec: ServiceSpec,
    pub(super) ports: Vec<Placed>,
    /// Where it says that it shares another service's namespaces.
    pub(super) shares: Option<Span>,
}

pub(super) fn read(context: &mut Context<'_>, entry: &Entry) -> Option<Service> {
    if entry.value.is_null() {
        let message = format!("the service {} has nothing in it", quoted(&entry.key));
        context.error(entry.key_span, message).help("add at least `image:`, indented below it");
        return None;
    }
    let fields = context.fields(&entry.value, &SERVICE)?;
    let image = image(context, entry, &fields).unwrap_or_default();
    let (mode, deploy) = deploy::read(context, &fields);
    let network = network(context, &fields);
    let ports = match fields.get("ports") {
        Some(node) => ports::read(context, node),
        None => Vec::new(),
    };
    if let Some(ports) = fields.entry("ports").filter(|_| !ports.is_empty() && network != NetworkMode::Bridge) {
        let (mode, help) = match network {
            NetworkMode::Host => ("host", "remove `ports`: the container's ports are the host's already"),
            _ => ("none", "remove `ports`, or `network_mode`: without a network nothing can reach the container"),
        };
        context.error(ports.key_span, format!("`ports` cannot be used with `network_mode: {mode}`")).help(help);
    }
    let mut resources = deploy.resources;
    limits::read(context, &fields, &mut resources);
    let rights = rights::read(context, &fields);
    let kernel = kernel::read(context, &fields, network, &rights.ipc);
    let task = TaskSpec {
        image,
        entrypoint: fields.get("entrypoint").and_then(|node| command(context, node, "entrypoint")),
        command: fields.get("command").and_then(|node| command(context, node, "command")),
        environment: environment::read(context, &fields),
        working_dir: fields.get("working_dir").and_then(|node| working_dir(context, node)),
        user: fields.get("user").and_then(|node| words::user(context, node)),
        hostname: fields.get("hostname").and_then(|node| words::hostname(context, node)),
        labels: fields.get("labels").map(|node| deploy::labels(context, node)).unwrap_or_default(),
        network,
        ports: ports.iter().map(|(port, _)| port.clone()).collect(),
        mounts: mounts::read(context, &fields),
        read_only: boolean(context, &fields, "read_only"),
        init: boolean(context, &fields, "init"),
        tty: boolean(context, &fields, "tty"),
        stdin_open: boolean(context, &fields, "stdin_open"),
        attended: false,
        stop_signal: fields.get("stop_signal").and_then(|node| words::stop_signal(context, node)),
        stop_grace_period: fields
            .get("stop_grace_period")
            .and_then(|node| context.duration(node, "stop_grace_period"))
            .unwrap_or(STOP_GRACE_PERIOD),
        healthcheck: fields.get("healthcheck").and_then(|node| health::read(context, node)),
        resources,
        singleton: singleton(context, &fields, &mode, deploy.update.order),
        rights,
        kernel,
        runtime: fields.get("runtime").and_then(|node| {
            let name = context.word(node, "runtime")?;
            context.fit(node.span, rules::runtime(name)).map(|()| name.to_owned())
        }),
    };
    let spec = ServiceSpec {
        mode,
        restart: deploy.restart,
        update: deploy.update,
        labels: deploy.labels,
        extensions: fields.extensions().filter(|entry| entry.key != SINGLETON).map(extension).collect(),
        task,
    };
    Some(Service { spec, ports, shares: rights::sharing_span(&fields) })
}

/// What nobody here reads goes along for whoever does.
fn extension(entry: &Entry) -> (String, String) {
    (entry.key.clone(), json::value(&entry.value).to_string())
}

/// `x-singleton`: never two at once. What contradicts it is told where it stands.
fn singleton(context: &mut Context<'_>, fields: &Fields<'_>, mode: &Mode, order: UpdateOrder) -> bool {
    let near = |entry: &&Entry| entry.key != SINGLETON && nearest(&entry.key, [SINGLETON]).is_some();
    for entry in fields.extensions().filter(near) {
        let message = format!("`{}` means nothing to Roster", entry.key);
        context.warning(entry.key_span, message).help(format!("did you mean `{SINGLETON}`?"));
    }
    let Some(entry) = fields.extensions().find(|entry| entry.key == SINGLETON) else { return false };
    if !context.boolean(&entry.value, SINGLETON).unwrap_or(false) {
        return false;
    }
    let span = entry.key_span;
    match mode {
        Mode::Replicated { replicas: 0 | 1 } => {}
        Mode::Replicated { replicas } => {
            let message = format!("`{SINGLETON}` allows one replica, the service asks for {replicas}");
            context.error(span, message).help(format!("remove `{SINGLETON}`, or ask for one replica"));
        }
        Mode::Global => {
            let message = format!("`{SINGLETON}` has no meaning in global mode: one task runs on every node");
            context.error(span, message).help(format!("remove `{SINGLETON}`, or `mode: global`"));
        }
    }
    if order == UpdateOrder::StartFirst {
        let message = format!("`{SINGLETON}` forbids the update order `start-first`: two would run at once");
        context.error(span, message).help(format!("remove `{SINGLETON}`, or `order: start-first`"));
    }
    true
}

fn boolean(context: &mut Context<'_>, fields: &Fields<'_>, key: &str) -> bool {
    fields.get(key).and_then(|node| context.boolean(node, key)).unwrap_or(false)
}

fn image(context: &mut Context<'_>, service: &Entry, fields: &Fields<'_>) -> Option<String> {
    if let Some(node) = fields.get("image") {
        return words::image(context, node);
    }
    // Where the reason is told already, the consequence is not worth a message.
    let told =
        |entry: &Entry| entry.key == "build" || (entry.key != "image" && nearest(&entry.key, ["image"]).is_some());
    let is_told = matches!(&service.value.value, Value::Mapping(entries) if entries.iter().any(told));
    if !is_told {
        let message = format!("the service {} has no image", quoted(&service.key));
        context.error(service.key_span, message).help("add `image:` with the name of an image");
    }
    None
}

/// `command` and `entrypoint`: a list is taken as is, a string is split into words. Empty ones clear the image's.
fn command(context: &mut Context<'_>, node: &Node, key: &str) -> Option<Vec<String>> {
    if let Value::Sequence(_) = node.value {
        return context.texts(node, key);
    }
    let text = context.text_or_list(node, key)?;
    match shell_words::split(text) {
        Ok(split) => {
            if let Some(operator) = split.operator {
                context
                    .warning(node.span, format!("`{key}` is not run by a shell: `{operator}` is passed on as a word"))
                    .help(format!("write `{key}: [\"sh\", \"-c\", \"...\"]` if a shell should run it"));
            }
            Some(split.words)
        }
        Err(unfinished) => {
            let message = match unfinished {
                Unfinished::Quote(quote) => format!("`{key}`: a quote ({quote}) is not closed"),
                Unfinished::Escape => format!("`{key}` ends in a backslash"),
            };
            context
                .error(node.span, message)
                .help("close it, or write the words as a list: [\"program\", \"argument\"]");
            None
        }
    }
}

fn working_dir(context: &mut Context<'_>, node: &Node) -> Option<String> {
    let text = context.word(node, "working_dir")?;
    if !text.starts_with('/') {
        let message = format!("`working_dir` must be an absolute path, {} is not", quoted(text));
        context.error(node.span, message).help("begin it with `/`");
        return None;
    }
    Some(text.to_owned())
}

fn network(context: &mut Context<'_>, fields: &Fields<'_>) -> NetworkMode {
    let modes = [("bridge", NetworkMode::Bridge), ("none", NetworkMode::None), ("host", NetworkMode::Host)];
    let Some(node) = fields.get("network_mode") else { return NetworkMode::Bridge };
    match context.text(node, "network_mode") {
        Some(text) if text.starts_with("service:") || text.starts_with("container:") => {
            let help = "use bridge, host or none";
            context.not_supported(node.span, "sharing the network of another container", help);
            NetworkMode::Bridge
        }
        Some(_) => context.choice(node, "network_mode", &modes).unwrap_or(NetworkMode::Bridge),
        None => NetworkMode::Bridge,
    }
}
