//! `inspect`: what a name stands for, in full.

use roster_proto::{node::Node, report::ServiceView, task::Task, wire};
use serde::Serialize;

use super::{all, node::listed, now, target};
use crate::{
    cli::{Inspect, Kind},
    client::{self, Client},
    error::{Ending, Error},
    render::{
        Format, inspect,
        list::Load,
        views::{NodeView, ServiceInfo, TaskView},
    },
};

#[derive(Serialize)]
struct ServiceDocument {
    #[serde(flatten)]
    service: ServiceInfo,
    tasks: Vec<TaskView>,
}

#[derive(Serialize)]
struct TaskDocument {
    #[serde(flatten)]
    task: TaskView,
    history: Vec<TaskView>,
}

#[derive(Serialize)]
struct NodeDocument {
    #[serde(flatten)]
    node: NodeView,
    tasks: Vec<TaskView>,
}

enum Found {
    Service(Box<ServiceView>),
    Tasks(Vec<Task>),
    Node(Box<Node>, Load),
}

pub(super) async fn run(args: Inspect, client: &mut Client) -> Result<Ending, Error> {
    let format = args.output.output;
    let mut found = Vec::new();
    if matches!(args.kind, None | Some(Kind::Service)) && !target::is_replica(&args.target) {
        found.extend(service(client, &args.target).await?);
    }
    if matches!(args.kind, None | Some(Kind::Task)) && (found.is_empty() || target::is_replica(&args.target)) {
        found.extend(tasks(client, &args.target).await?);
    }
    if matches!(args.kind, None | Some(Kind::Node)) {
        found.extend(node(client, &args.target).await?);
    }
    let one = match (found.pop(), found.pop()) {
        (Some(one), None) => one,
        (None, _) if args.kind.is_none() && is_stack(client, &args.target).await? => {
            return Err(Error::Usage(format!(
                "{0} is a stack: `rctl services {0}` and `rctl ps {0}` show it, `inspect` takes one of its services",
                args.target
            )));
        }
        (None, _) => {
            return Err(Error::NotFound(format!(
                "there is no {} {:?}: `rctl services`, `rctl ps` and `rctl node ls` list what there is",
                match args.kind {
                    None => "service, task or node",
                    Some(Kind::Service) => "service",
                    Some(Kind::Task) => "task",
                    Some(Kind::Node) => "node",
                },
                args.target
            )));
        }
        (Some(_), Some(_)) => {
            return Err(Error::Usage(format!(
                "{:?} is the name of several things: choose one with --type service, task or node",
                args.target
            )));
        }
    };
    match one {
        Found::Service(view) => show_service(client, *view, format).await,
        Found::Tasks(tasks) => show_task(client, tasks, format).await,
        Found::Node(node, load) => show_node(client, *node, load, format).await,
    }
}

/// Not to be found is an answer here, other refusals are not.
fn if_found<T>(answer: Result<T, tonic::Status>) -> Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

async fn service(client: &mut Client, name: &str) -> Result<Option<Found>, Error> {
    let request = wire::ListServicesRequest { filter: Some(target::by_service(name)) };
    let services: Vec<ServiceView> =
        all(if_found(client::services(client, request).await)?.map(|answer| answer.services).unwrap_or_default())?;
    Ok(services.into_iter().next().map(|view| Found::Service(Box::new(view))))
}

async fn is_stack(client: &mut Client, name: &str) -> Result<bool, Error> {
    let request = wire::ListServicesRequest { filter: Some(target::by_stack(Some(name.to_owned()))) };
    Ok(if_found(client::services(client, request).await)?.is_some())
}

async fn list_tasks(client: &mut Client, filter: wire::Filter, whole: bool) -> Result<Vec<Task>, Error> {
    let request = wire::ListTasksRequest { filter: Some(filter), all: whole };
    all(if_found(client::tasks(client, request).await)?.map(|answer| answer.tasks).unwrap_or_default())
}

async fn tasks(client: &mut Client, name: &str) -> Result<Option<Found>, Error> {
    let tasks = list_tasks(client, target::by_task(name), true).await?;
    Ok((!tasks.is_empty()).then_some(Found::Tasks(tasks)))
}

async fn node(client: &mut Client, name: &str) -> Result<Option<Found>, Error> {
    let listed = listed(client).await?;
    let found = listed.nodes.into_iter().find(|node| node.id.as_str() == name);
    Ok(found.map(|node| {
        let load = listed.load.get(&node.id).copied().unwrap_or_default();
        Found::Node(Box::new(node), load)
    }))
}

/// As `node inspect` shows it.
pub(super) async fn one_node(client: &mut Client, name: &str, format: Format) -> Result<Ending, Error> {
    match node(client, name).await? {
        Some(Found::Node(node, load)) => show_node(client, *node, load, format).await,
        _ => Err(super::node::no_such(name)),
    }
}

async fn show_service(client: &mut Client, view: ServiceView, format: Format) -> Result<Ending, Error> {
    let tasks = list_tasks(client, target::by_service(&view.id.to_string()), format != Format::Table).await?;
    let document =
        ServiceDocument { service: ServiceInfo::new(&view, true), tasks: tasks.iter().map(TaskView::from).collect() };
    show(format, &document, || inspect::service(&view, &tasks, now()))
}

/// The newest of a slot's tasks, with the others as its history; a task's id shows that one.
async fn show_task(client: &mut Client, tasks: Vec<Task>, format: Format) -> Result<Ending, Error> {
    let Some(newest) = tasks.into_iter().max_by_key(|task| task.created) else {
        return Err(Error::NotFound("the task is gone".to_owned()));
    };
    let filter = target::by_service(&newest.service.to_string());
    let mut history: Vec<Task> = list_tasks(client, filter, true)
        .await?
        .into_iter()
        .filter(|task| task.slot == newest.slot && task.created < newest.created)
        .collect();
    history.sort_by_key(|task| std::cmp::Reverse(task.created));
    let document =
        TaskDocument { task: TaskView::from(&newest), history: history.iter().map(TaskView::from).collect() };
    show(format, &document, || inspect::task(&newest, &history, now()))
}

async fn show_node(client: &mut Client, node: Node, load: Load, format: Format) -> Result<Ending, Error> {
    let filter = wire::Filter { node: Some(node.id.to_string()), ..Default::default() };
    let tasks = list_tasks(client, filter, false).await?;
    let document = NodeDocument { node: NodeView::new(&node, load), tasks: tasks.iter().map(TaskView::from).collect() };
    show(format, &document, || inspect::node(&node, load, &tasks, now()))
}

fn show(format: Format, document: &impl Serialize, text: impl FnOnce() -> String) -> Result<Ending, Error> {
    super::write_out(&format.document(document).unwrap_or_else(text))?;
    Ok(Ending::Done)
}
