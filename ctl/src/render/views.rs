//! What `-o json` and `-o yaml` print: a stable shape with names and times that programs and people can read.

use std::collections::BTreeMap;

use roster_proto::{
    cause::Cause,
    node::Node,
    report::{Event, ImageInfo, ServiceAction, ServicePlan, ServiceView, SlotAction, StackPlan, Subject},
    spec::{Mode, Protocol},
    task::{Desired, Task},
    time::Timestamp,
};
use serde::Serialize;

use super::list::Load;

fn moment(at: Timestamp) -> String {
    at.to_string()
}

#[derive(Debug, Serialize)]
pub struct Why {
    pub message: String,
    #[serde(flatten)]
    pub cause: Cause,
}

impl From<&Cause> for Why {
    fn from(cause: &Cause) -> Self {
        Self { message: cause.to_string(), cause: cause.clone() }
    }
}

#[derive(Debug, Serialize)]
pub struct TaskView {
    pub name: String,
    pub id: String,
    pub stack: String,
    pub service: String,
    pub slot: String,
    pub node: Option<String>,
    pub desired: String,
    pub state: String,
    pub health: Option<String>,
    pub paused: bool,
    pub cause: Option<Why>,
    pub pid: Option<u32>,
    pub address: Option<String>,
    pub restarts: u32,
    pub spec_version: u64,
    pub created: String,
    pub since: String,
    pub started: Option<String>,
    pub finished: Option<String>,
    pub replaces: Option<String>,
}

impl From<&Task> for TaskView {
    fn from(task: &Task) -> Self {
        let status = &task.status;
        Self {
            name: task.name(),
            id: task.id.to_string(),
            stack: task.service.stack.to_string(),
            service: task.service.name.to_string(),
            slot: task.slot.to_string(),
            node: task.node.as_ref().map(ToString::to_string),
            desired: match &task.desired {
                Desired::Run => "run".to_owned(),
                Desired::Stop(_) => "stop".to_owned(),
            },
            state: status.state.to_string(),
            health: match status.health {
                roster_proto::task::Health::None => None,
                other => Some(other.to_string()),
            },
            paused: status.paused,
            cause: status.cause.as_ref().map(Why::from),
            pid: status.pid,
            address: status.address.map(|address| address.to_string()),
            restarts: task.attempt,
            spec_version: task.spec_version.0,
            created: moment(task.created),
            since: moment(status.since),
            started: status.started.map(moment),
            finished: status.finished.map(moment),
            replaces: task.replaces.as_ref().map(ToString::to_string),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct ServiceInfo {
    pub name: String,
    pub stack: String,
    pub service: String,
    pub mode: String,
    pub image: String,
    pub wanted: u32,
    pub up: u32,
    pub updated: u32,
    pub finished: u32,
    pub converged: bool,
    pub removing: bool,
    pub waits: Option<String>,
    pub ports: Vec<String>,
    pub version: u64,
    pub spec_version: u64,
    pub created: String,
    pub updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<serde_json::Value>,
}

impl ServiceInfo {
    pub fn new(view: &ServiceView, with_spec: bool) -> Self {
        Self {
            name: view.id.to_string(),
            stack: view.id.stack.to_string(),
            service: view.id.name.to_string(),
            mode: match view.spec.mode {
                Mode::Replicated { .. } => "replicated".to_owned(),
                Mode::Global => "global".to_owned(),
            },
            image: view.spec.task.image.clone(),
            wanted: view.wanted,
            up: view.up,
            updated: view.updated,
            finished: view.finished,
            converged: view.converged,
            removing: view.removing,
            waits: view.waits.clone(),
            ports: ports(view),
            version: view.version.0,
            spec_version: view.spec_version.0,
            created: moment(view.created),
            updated_at: moment(view.updated_at),
            spec: with_spec.then(|| super::spec::compose(&view.spec)),
        }
    }
}

/// `8080->80/tcp`, as Docker shows them.
pub fn ports(view: &ServiceView) -> Vec<String> {
    view.ports
        .iter()
        .map(|port| {
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            let address = port.host_ip.map(|ip| format!("{ip}:")).unwrap_or_default();
            format!("{address}{}->{}/{protocol}", port.published, port.target)
        })
        .collect()
}

#[derive(Debug, Serialize)]
pub struct NodeView {
    pub name: String,
    pub state: String,
    pub availability: String,
    /// When `state` began.
    pub since: String,
    /// Absent: longer ago than this is kept.
    pub joined: Option<String>,
    pub tasks: u32,
    pub hostname: String,
    pub addresses: Vec<String>,
    pub cpus: f64,
    pub reserved_cpus: f64,
    pub memory: u64,
    pub reserved_memory: u64,
    pub labels: BTreeMap<String, String>,
    pub agent_version: String,
    pub kernel: String,
    pub cgroups: String,
    pub architecture: String,
    pub runtimes: Vec<String>,
}

impl NodeView {
    pub fn new(node: &Node, load: Load) -> Self {
        let labels = node.all_labels().into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let description = node.description.clone();
        Self {
            name: node.id.to_string(),
            state: node.state.to_string(),
            availability: node.availability.to_string(),
            since: moment(node.since),
            joined: (node.joined.0 > 0).then(|| moment(node.joined)),
            tasks: load.tasks,
            hostname: description.hostname,
            addresses: description.addresses,
            cpus: description.capacity.nano_cpus as f64 / 1e9,
            reserved_cpus: load.nano_cpus as f64 / 1e9,
            memory: description.capacity.memory,
            reserved_memory: load.memory,
            labels,
            agent_version: description.agent_version,
            kernel: description.kernel,
            cgroups: description.cgroups,
            architecture: description.architecture,
            runtimes: description.runtimes,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct EventView {
    pub at: String,
    pub version: u64,
    #[serde(flatten)]
    pub subject: SubjectView,
    pub message: String,
    pub cause: Option<Why>,
}

/// The same words for the same things as in the other views.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SubjectView {
    Stack { stack: String },
    Service { service: String },
    Task { task: String, service: String, slot: String },
    Node { node: String },
    Controller { controller: String },
    Cluster,
}

impl From<&Subject> for SubjectView {
    fn from(subject: &Subject) -> Self {
        match subject {
            Subject::Stack { stack } => Self::Stack { stack: stack.to_string() },
            Subject::Service { service } => Self::Service { service: service.to_string() },
            Subject::Task { task, service, slot } => {
                Self::Task { task: task.to_string(), service: service.to_string(), slot: slot.to_string() }
            }
            Subject::Node { node } => Self::Node { node: node.to_string() },
            Subject::Controller { controller } => Self::Controller { controller: controller.to_string() },
            Subject::Cluster => Self::Cluster,
        }
    }
}

impl From<&Event> for EventView {
    fn from(event: &Event) -> Self {
        Self {
            at: moment(event.at),
            version: event.version.0,
            subject: SubjectView::from(&event.subject),
            message: event.message.clone(),
            cause: event.cause.as_ref().map(Why::from),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct PlanView {
    pub stack: String,
    pub base: u64,
    pub changes: bool,
    pub services: Vec<ServicePlanView>,
}

#[derive(Debug, Serialize)]
pub struct ServicePlanView {
    pub service: String,
    pub action: ServiceAction,
    pub fields: Vec<roster_proto::report::FieldChange>,
    pub slots: Vec<SlotPlanView>,
}

#[derive(Debug, Serialize)]
pub struct SlotPlanView {
    pub slot: String,
    pub action: SlotAction,
    pub node: Option<String>,
    pub cause: Option<Why>,
}

impl From<&StackPlan> for PlanView {
    fn from(plan: &StackPlan) -> Self {
        Self {
            stack: plan.stack.to_string(),
            base: plan.base.0,
            changes: plan.changes_anything(),
            services: plan.services.iter().map(ServicePlanView::from).collect(),
        }
    }
}

impl From<&ServicePlan> for ServicePlanView {
    fn from(plan: &ServicePlan) -> Self {
        Self {
            service: plan.service.to_string(),
            action: plan.action,
            fields: plan.fields.clone(),
            slots: plan
                .slots
                .iter()
                .map(|slot| SlotPlanView {
                    slot: slot.slot.to_string(),
                    action: slot.action,
                    node: slot.node.as_ref().map(ToString::to_string),
                    cause: slot.cause.as_ref().map(Why::from),
                })
                .collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct ImageView<'a> {
    pub id: &'a str,
    pub names: &'a [String],
    pub node: String,
    pub size: u64,
    pub created: Option<&'a str>,
    pub labels: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a ImageInfo> for ImageView<'a> {
    fn from(image: &'a ImageInfo) -> Self {
        Self {
            id: &image.id,
            names: &image.names,
            node: image.node.to_string(),
            size: image.size,
            created: image.created.as_deref(),
            labels: &image.labels,
        }
    }
}
