//! Listings: one table each, a few columns by default, more with `-o wide`.

use anstyle::Style;
use roster_proto::{
    cause::{Brief, Bytes, Cause, Cpus},
    node::{Availability, Node, NodeState},
    report::{Event, ImageInfo, ServiceView, Subject},
    spec::Mode,
    task::{Health, Task, TaskState},
    time::Timestamp,
};

use super::{
    style::{BAD, BUSY, FAINT, GOOD},
    table::{Cell, Table},
    views,
};

/// What an age column says.
pub fn ago(now: Timestamp, then: Timestamp) -> String {
    Brief(now.since(then)).to_string()
}

/// Of a moment that may lie on either side.
pub fn ago_or_ahead(now: Timestamp, then: Timestamp) -> String {
    if then > now { format!("in {}", Brief(then.since(now))) } else { format!("{} ago", ago(now, then)) }
}

pub fn bytes(count: u64) -> String {
    Bytes(count).to_string()
}

/// The cause as one would say it now: moments ahead become durations.
pub fn cause(cause: &Cause, now: Timestamp) -> String {
    match cause {
        Cause::Backoff { until, failures, last } => {
            let again = if *until > now { format!("in {}", Brief(until.since(now))) } else { "now".to_owned() };
            format!("restarts {again} after failure {failures} in a row: {last}")
        }
        Cause::Stopping { reason, kill_at } => {
            format!("stopping ({reason}), killed in {}", Brief(kill_at.since(now)))
        }
        Cause::NodeDown { node, since } => {
            format!("node {node} has been Down for {} and no other node can take it", ago(now, *since))
        }
        Cause::GaveUp { attempts, last } => {
            format!("gave up after {attempts} restarts: {}", self::cause(last, now))
        }
        other => other.to_string(),
    }
}

pub fn state_style(task: &Task) -> Style {
    match (task.status.state, task.status.health) {
        (TaskState::Running, Health::Unhealthy) => BAD,
        (TaskState::Running, _) if task.status.paused => BUSY,
        (TaskState::Running, Health::Starting) => BUSY,
        (TaskState::Running | TaskState::Complete, _) => GOOD,
        (TaskState::Failed | TaskState::Rejected | TaskState::Orphaned, _) => BAD,
        (TaskState::Shutdown, _) => FAINT,
        _ => BUSY,
    }
}

/// `Running (healthy)`.
pub fn state(task: &Task) -> String {
    match (task.status.state, task.status.health) {
        (TaskState::Running, Health::None) if task.status.paused => "Running (paused)".to_owned(),
        (TaskState::Running, health) if task.status.paused => format!("Running (paused, {health})"),
        (TaskState::Running, health) if health != Health::None => format!("Running ({health})"),
        (state, _) => state.to_string(),
    }
}

pub fn tasks(tasks: &[Task], wide: bool, now: Timestamp) -> Table {
    let mut table = if wide {
        Table::new(["STACK", "TASK", "ID", "NODE", "STATE", "FOR", "RESTARTS", "PID", "ADDRESS", "SPEC", "REASON"])
    } else {
        Table::new(["STACK", "TASK", "ID", "NODE", "STATE", "FOR", "RESTARTS", "REASON"])
    };
    for task in tasks {
        let reason = task.status.cause.as_ref().map(|known| cause(known, now)).unwrap_or_default();
        let or_dash = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "-".to_owned()));
        let mut cells = vec![
            task.service.stack.to_string().into(),
            task.name().into(),
            task.id.to_string().into(),
            or_dash(task.node.as_ref().map(ToString::to_string)),
            Cell::styled(state(task), state_style(task)),
            ago(now, task.status.since).into(),
            task.attempt.to_string().into(),
        ];
        if wide {
            cells.push(or_dash(task.status.pid.map(|pid| pid.to_string())));
            cells.push(or_dash(task.status.address.map(|address| address.to_string())));
            cells.push(task.spec_version.to_string().into());
        }
        cells.push(reason.into());
        table.row(cells);
    }
    table
}

/// What a service is about, in a word or a sentence.
pub fn service_state(view: &ServiceView) -> (String, Style) {
    if view.removing {
        return ("removing".to_owned(), BUSY);
    }
    if view.one_off.is_some() {
        return match (view.converged, view.finished > 0) {
            (true, true) => ("finished".to_owned(), FAINT),
            (_, true) => ("failed".to_owned(), BAD),
            (true, _) => ("ok".to_owned(), GOOD),
            _ => ("not up".to_owned(), BUSY),
        };
    }
    match &view.waits {
        Some(waits) => (format!("updating: {waits}"), BUSY),
        None if view.converged && view.finished > 0 && view.up == 0 => ("finished".to_owned(), FAINT),
        None if view.converged => ("ok".to_owned(), GOOD),
        None if has_failed_for_good(view) => ("failed".to_owned(), BAD),
        None if view.up < view.wanted => ("not all up".to_owned(), BUSY),
        None => ("updating".to_owned(), BUSY),
    }
}

/// Every slot has come to rest, and yet not all is as wanted: a replica failed and is not to be restarted.
pub fn has_failed_for_good(view: &ServiceView) -> bool {
    !view.converged && !view.removing && view.finished > 0 && view.up + view.finished >= view.wanted
}

/// How far a service is, for a line of its own.
pub fn service_line(view: &ServiceView) -> String {
    let (state, _) = service_state(view);
    match view.removing {
        true => format!("{}: {state}", view.id),
        false => format!("{}: {}/{} up, {state}", view.id, view.up, view.wanted),
    }
}

pub fn services(services: &[ServiceView], wide: bool, now: Timestamp) -> Table {
    let mut table = if wide {
        Table::new(["STACK", "SERVICE", "MODE", "UP", "STATE", "UPDATED", "IMAGE", "PORTS", "SPEC", "AGE"])
    } else {
        Table::new(["STACK", "SERVICE", "MODE", "UP", "STATE", "UPDATED", "IMAGE", "PORTS"])
    };
    for view in services {
        let mode = match view.spec.mode {
            _ if view.one_off.is_some() => "once",
            Mode::Replicated { .. } => "replicated",
            Mode::Global => "global",
        };
        let (state, style) = service_state(view);
        let mut cells = vec![
            view.id.stack.to_string().into(),
            view.id.name.to_string().into(),
            mode.into(),
            format!("{}/{}", view.up, view.wanted).into(),
            Cell::styled(state, style),
            format!("{} ago", ago(now, view.updated_at)).into(),
            view.spec.task.image.clone().into(),
            views::ports(view).join(", ").into(),
        ];
        if wide {
            cells.push(view.spec_version.to_string().into());
            cells.push(ago(now, view.created).into());
        }
        table.row(cells);
    }
    table
}

/// What is promised on a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    pub tasks: u32,
    pub nano_cpus: u64,
    pub memory: u64,
}

/// Of a moment that is not known of what is older than its being kept.
pub fn since(now: Timestamp, then: Timestamp) -> String {
    if then.0 == 0 { "-".to_owned() } else { format!("{then} ({} ago)", ago(now, then)) }
}

pub fn labels(node: &Node) -> String {
    let labels: Vec<_> = node.all_labels().into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.join(",")
}

pub fn nodes(nodes: &[Node], load: impl Fn(&Node) -> Load, wide: bool, now: Timestamp) -> Table {
    let mut table = match wide {
        true => Table::new([
            "NODE",
            "STATE",
            "FOR",
            "AVAILABILITY",
            "TASKS",
            "AGE",
            "AGENT",
            "ADDRESS",
            "CPUS",
            "RESERVED",
            "MEMORY",
            "RESERVED",
            "CGROUPS",
            "KERNEL",
            "ARCH",
            "LABELS",
        ]),
        false => Table::new(["NODE", "STATE", "FOR", "AVAILABILITY", "TASKS", "AGE", "AGENT", "ADDRESS", "LABELS"]),
    };
    for node in nodes {
        let description = &node.description;
        let load = load(node);
        let state = if node.state == NodeState::Ready { GOOD } else { BAD };
        let availability = if node.availability == Availability::Active { Style::new() } else { BUSY };
        let addresses = if wide { description.addresses.len() } else { 1 };
        let addresses: Vec<_> = description.addresses.iter().take(addresses).cloned().collect();
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let mut cells = vec![
            node.id.to_string().into(),
            Cell::styled(node.state.to_string(), state),
            ago(now, node.since).into(),
            Cell::styled(node.availability.to_string(), availability),
            load.tasks.to_string().into(),
            if node.joined.0 == 0 { "-".into() } else { ago(now, node.joined).into() },
            or_dash(description.agent_version.clone()).into(),
            or_dash(addresses.join(",")).into(),
        ];
        if wide {
            cells.push(Cpus(description.capacity.nano_cpus).to_string().into());
            cells.push(Cpus(load.nano_cpus).to_string().into());
            cells.push(Bytes(description.capacity.memory).to_string().into());
            cells.push(Bytes(load.memory).to_string().into());
            cells.push(or_dash(description.cgroups.clone()).into());
            cells.push(or_dash(description.kernel.clone()).into());
            cells.push(or_dash(description.architecture.clone()).into());
        }
        cells.push(or_dash(labels(node)).into());
        table.row(cells);
    }
    table
}

pub fn images(images: &[ImageInfo], wide: bool) -> Table {
    let mut table = Table::new(["NAME", "ID", "SIZE", "CREATED", "NODE"]);
    for image in images {
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        let id = if wide { id } else { id.get(..12).unwrap_or(id) };
        let unnamed = ["<none>".to_owned()];
        let names = if image.names.is_empty() { &unnamed[..] } else { &image.names };
        for name in names {
            table.row([
                name.clone().into(),
                id.into(),
                Bytes(image.size).to_string().into(),
                image.created.clone().unwrap_or_else(|| "-".to_owned()).into(),
                image.node.to_string().into(),
            ]);
        }
    }
    table
}

/// One line for one event; the columns are fixed, for more lines may follow any time.
pub fn event(event: &Event, wide: bool) -> String {
    let subject = match &event.subject {
        Subject::Stack { stack } => format!("stack {stack}"),
        Subject::Service { service } => format!("service {service}"),
        Subject::Task { service, slot, task } if wide => format!("task {service}.{slot} {task}"),
        Subject::Task { service, slot, .. } => format!("task {service}.{slot}"),
        Subject::Node { node } => format!("node {node}"),
        Subject::Controller { controller } => format!("controller {controller}"),
        Subject::Cluster => "cluster".to_owned(),
    };
    let cause = event.cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
    let text = super::table::clean(&format!("{}{cause}", event.message));
    format!("{FAINT}{}{FAINT:#}  {subject:<24}  {text}", event.at)
}
