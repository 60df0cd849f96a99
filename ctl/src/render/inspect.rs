//! One thing in full, for a person.

use std::fmt::Write;

use roster_proto::{
    cause::{Bytes, Cpus},
    node::Node,
    report::ServiceView,
    spec::TaskSpec,
    task::{Desired, Task, TaskState},
    time::Timestamp,
};

use super::{list, table::clean, views};

pub(super) fn line(out: &mut String, key: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{:<14}{}", format!("{key}:"), clean(&value.to_string()));
}

fn optional(out: &mut String, key: &str, value: Option<impl std::fmt::Display>) {
    if let Some(value) = value {
        line(out, key, value);
    }
}

pub fn service(view: &ServiceView, tasks: &[Task], now: Timestamp) -> String {
    let mut out = String::new();
    let (state, _) = list::service_state(view);
    line(&mut out, "Service", &view.id);
    line(&mut out, "State", state);
    line(
        &mut out,
        "Replicas",
        format!("{} up of {} wanted, {} on the latest spec", view.up, view.wanted, view.updated),
    );
    line(&mut out, "Ports", if view.ports.is_empty() { "none".to_owned() } else { views::ports(view).join(", ") });
    line(&mut out, "Created", format!("{} ({} ago)", view.created, list::ago(now, view.created)));
    line(&mut out, "Updated", format!("{} ({} ago)", view.updated_at, list::ago(now, view.updated_at)));
    line(&mut out, "Version", format!("{} (tasks run spec {})", view.version, view.spec_version));
    task_spec(&mut out, &view.spec.task);
    out.push('\n');
    out + &list::tasks(tasks, false, now).render()
}

fn task_spec(out: &mut String, spec: &TaskSpec) {
    line(out, "Image", &spec.image);
    optional(out, "Entrypoint", spec.entrypoint.as_ref().map(|words| format!("{words:?}")));
    optional(out, "Command", spec.command.as_ref().map(|words| format!("{words:?}")));
    optional(out, "User", spec.user.as_ref());
    let limits = &spec.resources.limits;
    let mut parts = Vec::new();
    parts.extend(limits.nano_cpus.map(|cpus| format!("{} cpus", Cpus(cpus))));
    parts.extend(limits.memory.map(|memory| format!("{} memory", Bytes(memory))));
    parts.extend(limits.pids.map(|pids| format!("{pids} pids")));
    parts.extend(limits.disk.map(|disk| format!("{} disk", Bytes(disk))));
    line(out, "Limits", if parts.is_empty() { "none".to_owned() } else { parts.join(", ") });
    for (key, value) in &spec.environment {
        line(out, "Environment", format!("{key}={value}"));
    }
}

/// `history`: the slot's other tasks, newest first.
pub fn task(task: &Task, history: &[Task], now: Timestamp) -> String {
    let mut out = String::new();
    let status = &task.status;
    line(&mut out, "Task", format!("{} ({})", task.name(), task.id));
    line(&mut out, "Service", &task.service);
    line(&mut out, "Node", task.node.as_ref().map_or_else(|| "not placed yet".to_owned(), ToString::to_string));
    line(
        &mut out,
        "Wanted",
        match &task.desired {
            Desired::Run => "to run".to_owned(),
            Desired::Stop(reason) => format!("stopped: {reason}"),
        },
    );
    line(&mut out, "State", format!("{} for {}", list::state(task), list::ago(now, status.since)));
    optional(&mut out, "Reason", status.cause.as_ref().map(|known| list::cause(known, now)));
    optional(&mut out, "Process", status.pid);
    optional(&mut out, "Address", status.address);
    line(&mut out, "Created", task.created);
    optional(&mut out, "Started", status.started);
    optional(&mut out, "Finished", status.finished);
    line(&mut out, "Restarts", format!("{} since the last healthy window", task.attempt));
    line(&mut out, "Spec", task.spec_version);
    let failed = |one: &&Task| one.status.state == TaskState::Failed && one.status.started.is_some();
    // As the controller chooses it.
    if let Some(kept) = std::iter::once(task).chain(history).find(failed) {
        let how = format!("its files, as {} left them: rctl debug --failed {}", kept.id, kept.name());
        line(&mut out, "Kept", how);
    }
    if !history.is_empty() {
        out.push_str("\nBefore it in this slot:\n");
        out.push_str(&list::tasks(history, false, now).render());
    }
    out
}

pub fn node(node: &Node, load: list::Load, tasks: &[Task], now: Timestamp) -> String {
    let mut out = String::new();
    let description = &node.description;
    line(&mut out, "Node", &node.id);
    line(&mut out, "State", format!("{} for {}", node.state, list::ago(now, node.since)));
    line(&mut out, "Availability", node.availability);
    line(&mut out, "Joined", list::since(now, node.joined));
    line(&mut out, "Tasks", load.tasks);
    line(&mut out, "Hostname", &description.hostname);
    line(&mut out, "Addresses", description.addresses.join(", "));
    let capacity = description.capacity;
    line(&mut out, "Cpus", format!("{} ({} reserved)", Cpus(capacity.nano_cpus), Cpus(load.nano_cpus)));
    line(&mut out, "Memory", format!("{} ({} reserved)", Bytes(capacity.memory), Bytes(load.memory)));
    line(
        &mut out,
        "Kernel",
        format!("{} ({}), cgroups {}", description.kernel, description.architecture, description.cgroups),
    );
    line(&mut out, "Agent", &description.agent_version);
    if !description.runtimes.is_empty() {
        line(&mut out, "Runtimes", description.runtimes.join(", "));
    }
    for (key, value) in node.all_labels() {
        line(&mut out, "Label", format!("{key}={value}"));
    }
    out.push('\n');
    out + &list::tasks(tasks, false, now).render()
}
