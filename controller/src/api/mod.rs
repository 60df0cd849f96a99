//! What people and `rctl` ask of the controller: thin methods that check, resolve names, and read or change the state.
//!
//! Guarantees: whatever arrives is checked for form and sense before it is proposed; every stream is bounded, ends with
//! the controller, and says so when it cannot go on. Absent: who may call, which is the listener's; and decisions.

pub(crate) mod cluster;
mod containers;
pub(crate) mod enroll;
mod events;
pub mod filter;
mod images;
mod kept;
pub(crate) mod live;
mod logs;
mod pages;
pub mod validate;
mod watch;

use std::{collections::BTreeMap, future::Future, sync::Arc};

use roster_proto::{
    call,
    id::{NodeId, ServiceId, StackName, Version},
    spec::StackSpec,
    wire::{self, control_server::Control},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::{filter::Selection, pages::Pages};
use crate::{
    cluster::{ChangeError, Changed, Cluster},
    dispatch::broker::Broker,
    forward::request_id,
    plan::preview,
    state::{Brake, ClusterState, MAX_NODE_LABELS, command::Command},
    status::{invalid_id, malformed, retry_safe},
};

/// Messages of one stream waiting for its caller to read them.
const STREAM_QUEUE: usize = 4;

/// As many can be put and as many removed.
const MAX_LABELS_CHANGED: usize = 2 * MAX_NODE_LABELS;

/// The gRPC service.
#[derive(Clone, Debug)]
pub struct Api {
    pub(crate) cluster: Cluster,
    pub(crate) broker: Arc<Broker>,
    pub(crate) shutdown: CancellationToken,
}

type Reply<T> = Result<Response<T>, Status>;
type ReplyStream<T> = ReceiverStream<Result<T, Status>>;

impl Api {
    /// A stream that `body` fills until it returns, the caller goes away or the controller stops. An error ends it.
    fn stream<T, F>(&self, body: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F) -> Response<ReplyStream<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (replies, stream) = mpsc::channel(STREAM_QUEUE);
        let body = body(replies.clone());
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let end = tokio::select! {
                biased;
                end = body => end,
                () = replies.closed() => Ok(()),
                () = shutdown.cancelled() => Err(retry_safe("the controller is stopping: try again")),
            };
            if let Err(status) = end {
                // Nobody is left to tell when this fails.
                let _gone = replies.send(Err(status)).await;
            }
        });
        Response::new(ReceiverStream::new(stream))
    }

    /// Off the runtime's threads: a large stack is planned for in many rounds.
    async fn plan_of(
        &self,
        state: Arc<ClusterState>,
        stack: StackSpec,
        prune: bool,
    ) -> Result<wire::StackPlan, Status> {
        let now = self.cluster.now();
        let planned = tokio::task::spawn_blocking(move || preview(&state, &stack, prune, now)).await;
        let planned = planned.map_err(|error| Status::internal(format!("planning broke: {error}")))?;
        Ok(planned?.into())
    }
}

#[tonic::async_trait]
impl Control for Api {
    type ListServicesStream = ReplyStream<wire::ListServicesResponse>;
    type ListTasksStream = ReplyStream<wire::ListTasksResponse>;
    type ListNodesStream = ReplyStream<wire::ListNodesResponse>;
    type WatchStream = ReplyStream<wire::WatchResponse>;
    type EventsStream = ReplyStream<wire::Event>;
    type LogsStream = ReplyStream<wire::LogLine>;

    async fn plan(&self, request: Request<wire::PlanRequest>) -> Reply<wire::PlanResponse> {
        let state = read(&self.cluster, &request).await?;
        let request = request.into_inner();
        let stack = checked_stack(request.stack)?;
        let plan = self.plan_of(state, stack, request.prune).await?;
        Ok(Response::new(wire::PlanResponse { plan: Some(plan) }))
    }

    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Reply<wire::ApplyResponse> {
        let id = request_id(&request)?;
        let request = request.into_inner();
        let stack = checked_stack(request.stack)?;
        let command = Command::PutStack { stack: stack.clone(), prune: request.prune, base: request.base.map(Version) };
        // Side by side: the work begins before its description is ready.
        let plan = self.plan_of(self.cluster.read(), stack, request.prune);
        let (plan, changed) = tokio::join!(plan, change(&self.cluster, id, command));
        let changed = changed?;
        Ok(Response::new(wire::ApplyResponse { version: changed.version.0, plan: Some(plan?) }))
    }

    async fn remove_stack(&self, request: Request<wire::RemoveStackRequest>) -> Reply<wire::ChangeResponse> {
        let id = request_id(&request)?;
        let stack = StackName::new(request.into_inner().stack).map_err(invalid_id)?;
        self.change(id, Command::RemoveStack { stack }).await
    }

    async fn remove_service(&self, request: Request<wire::RemoveServiceRequest>) -> Reply<wire::ChangeResponse> {
        let id = request_id(&request)?;
        let service: ServiceId = request.into_inner().service.parse().map_err(invalid_id)?;
        self.change(id, Command::RemoveService { service }).await
    }

    async fn scale(&self, request: Request<wire::ScaleRequest>) -> Reply<wire::ChangeResponse> {
        let id = request_id(&request)?;
        let mut replicas = BTreeMap::new();
        for (name, wanted) in request.into_inner().replicas {
            let service: ServiceId = name.parse().map_err(invalid_id)?;
            validate::replicas_allowed(wanted)
                .map_err(|problem| Status::invalid_argument(format!("service {service}: {problem}")))?;
            replicas.insert(service, wanted);
        }
        if replicas.is_empty() {
            return Err(Status::invalid_argument("name at least one service to scale"));
        }
        self.change(id, Command::Scale { replicas }).await
    }

    async fn list_services(&self, request: Request<wire::ListServicesRequest>) -> Reply<Self::ListServicesStream> {
        let state = read(&self.cluster, &request).await?;
        let selection = selected(&state, request.into_inner().filter)?;
        let (version, now) = (state.version.0, self.cluster.now());
        Ok(self.stream(async move |replies| {
            let pages = Pages::of(watch::services(&state, &selection, now));
            let answers = pages.map(|services| wire::ListServicesResponse { services, version });
            pages::send(answers, replies).await
        }))
    }

    async fn list_tasks(&self, request: Request<wire::ListTasksRequest>) -> Reply<Self::ListTasksStream> {
        let state = read(&self.cluster, &request).await?;
        let request = request.into_inner();
        let selection = selected(&state, request.filter)?;
        let version = state.version.0;
        Ok(self.stream(async move |replies| {
            let tasks = match request.all {
                true => watch::all_tasks(&state, &selection),
                false => watch::current_tasks(&state, &selection),
            };
            let answers = Pages::of(tasks).map(|tasks| wire::ListTasksResponse { tasks, version });
            pages::send(answers, replies).await
        }))
    }

    async fn list_nodes(&self, request: Request<wire::ListNodesRequest>) -> Reply<Self::ListNodesStream> {
        let state = read(&self.cluster, &request).await?;
        Ok(self.stream(async move |replies| {
            let mut brake = state.brake.as_ref().map(Into::into);
            let nodes = state.nodes.values().map(|node| wire::Node::from(node.as_ref().clone()));
            let answers = Pages::of(nodes).map(|nodes| {
                let loads = nodes.iter().filter_map(|node| NodeId::new(node.id.as_str()).ok());
                let load = loads.map(|node| (node.to_string(), load(&state, &node))).collect();
                wire::ListNodesResponse { nodes, version: state.version.0, load, brake: brake.take() }
            });
            pages::send(answers, replies).await
        }))
    }

    async fn set_availability(&self, request: Request<wire::SetAvailabilityRequest>) -> Reply<wire::ChangeResponse> {
        let id = request_id(&request)?;
        let request = request.into_inner();
        let availability = request.availability().try_into().map_err(malformed)?;
        let node = NodeId::new(request.node).map_err(invalid_id)?;
        self.change(id, Command::SetAvailability { node, availability }).await
    }

    async fn set_node_labels(&self, request: Request<wire::SetNodeLabelsRequest>) -> Reply<wire::ChangeResponse> {
        let id = request_id(&request)?;
        let wire::SetNodeLabelsRequest { node, put, remove } = request.into_inner();
        let node = NodeId::new(node).map_err(invalid_id)?;
        if put.is_empty() && remove.is_empty() {
            return Err(Status::invalid_argument("name at least one label to set or to remove"));
        }
        if put.len() + remove.len() > MAX_LABELS_CHANGED {
            return Err(Status::invalid_argument(format!("up to {MAX_LABELS_CHANGED} labels can be changed at once")));
        }
        self.change(id, Command::SetNodeLabels { node, put: put.into_iter().collect(), remove }).await
    }

    async fn remove_node(&self, request: Request<wire::RemoveNodeRequest>) -> Reply<wire::ChangeResponse> {
        let id = request_id(&request)?;
        let wire::RemoveNodeRequest { node, force } = request.into_inner();
        let node = NodeId::new(node).map_err(invalid_id)?;
        self.change(id, Command::RemoveNode { node, force }).await
    }

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Reply<Self::WatchStream> {
        let state = read(&self.cluster, &request).await?;
        let request = request.into_inner();
        let selection = selected(&state, request.filter)?;
        let after = Version(request.after);
        Ok(self.stream(|replies| watch::follow(self.cluster.clone(), selection, after, replies)))
    }

    async fn events(&self, request: Request<wire::EventsRequest>) -> Reply<Self::EventsStream> {
        let stale = is_stale(&request)?;
        let state = read(&self.cluster, &request).await?;
        let wire::EventsRequest { follow, filter, after } = request.into_inner();
        let selection = selected(&state, filter)?;
        let after = after.map(Version);
        if let Some(after) = after.filter(|after| !stale && *after > state.version) {
            return Err(Status::out_of_range(format!(
                "there is no version {after} yet, the cluster is at {}: was it restored from a backup? Ask from the \
                 beginning",
                state.version
            )));
        }
        Ok(self.stream(|replies| events::send(self.cluster.watch(), selection, after, follow, replies)))
    }

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Reply<Self::LogsStream> {
        let request = request.into_inner();
        let selection = selected(&self.cluster.read(), request.filter)?;
        let query = request.query.unwrap_or_default();
        let seen = logs::seen(request.seen)?;
        let logs = logs::Logs::new(self.cluster.clone(), self.broker.clone(), selection, query, seen);
        Ok(self.stream(|replies| logs.send(replies)))
    }

    async fn load_image(&self, request: Request<Streaming<wire::LoadImageRequest>>) -> Reply<wire::LoadImageResponse> {
        let images = images::load(&self.cluster.read(), &self.broker, request.into_inner()).await?;
        Ok(Response::new(wire::LoadImageResponse { images }))
    }

    async fn pull_image(&self, request: Request<wire::PullImageRequest>) -> Reply<wire::PullImageResponse> {
        let wire::PullImageRequest { reference, nodes } = request.into_inner();
        let nodes = images::nodes(&self.cluster.read(), &nodes)?;
        let images = images::pull(&self.broker, &nodes, reference).await?;
        Ok(Response::new(wire::PullImageResponse { images }))
    }

    async fn list_images(&self, request: Request<wire::ListImagesRequest>) -> Reply<wire::ListImagesResponse> {
        let nodes = images::nodes(&self.cluster.read(), &request.into_inner().nodes)?;
        let images = images::list(&self.broker, &nodes).await?;
        Ok(Response::new(wire::ListImagesResponse { images }))
    }

    async fn remove_image(&self, request: Request<wire::RemoveImageRequest>) -> Reply<wire::RemoveImageResponse> {
        let wire::RemoveImageRequest { reference, nodes } = request.into_inner();
        let nodes = images::nodes(&self.cluster.read(), &nodes)?;
        let nodes = images::remove(&self.broker, &nodes, reference).await?;
        Ok(Response::new(wire::RemoveImageResponse { nodes }))
    }

    async fn version(&self, _request: Request<wire::VersionRequest>) -> Reply<wire::VersionResponse> {
        let leadership = *self.cluster.leadership().borrow();
        Ok(Response::new(wire::VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_version: self.cluster.read().version.0,
            leader: leadership.leader.map_or(0, |leader| leader.0),
            term: leadership.term,
        }))
    }
}

impl Api {
    async fn change(&self, id: Option<String>, command: Command) -> Reply<wire::ChangeResponse> {
        let changed = change(&self.cluster, id, command).await?;
        Ok(Response::new(wire::ChangeResponse { version: changed.version.0 }))
    }
}

/// The state a read is answered from: all that was acknowledged before it came, unless the caller does without.
pub(crate) async fn read<T>(cluster: &Cluster, request: &Request<T>) -> Result<Arc<ClusterState>, Status> {
    if is_stale(request)? { Ok(cluster.read()) } else { Ok(cluster.read_linearizable().await?) }
}

fn is_stale<T>(request: &Request<T>) -> Result<bool, Status> {
    match request.metadata().get(call::CONSISTENCY) {
        None => Ok(false),
        Some(value) if value.as_bytes() == call::STALE.as_bytes() => Ok(true),
        Some(_) => Err(Status::invalid_argument(format!(
            "{} is either {} or not given at all",
            call::CONSISTENCY,
            call::STALE
        ))),
    }
}

/// Once for each request id.
pub(crate) async fn change(cluster: &Cluster, id: Option<String>, command: Command) -> Result<Changed, ChangeError> {
    match id {
        Some(id) => cluster.change_for(id, command).await,
        None => cluster.change(command).await,
    }
}

fn load(state: &ClusterState, node: &NodeId) -> wire::NodeLoad {
    let mut load = wire::NodeLoad::default();
    for task in state.tasks_on(node) {
        load.tasks += 1;
        if let Some(spec) = state.task_spec(task) {
            let reserved = &spec.resources.reservations;
            load.nano_cpus = load.nano_cpus.saturating_add(reserved.nano_cpus.unwrap_or(0));
            load.memory = load.memory.saturating_add(reserved.memory.unwrap_or(0));
        }
    }
    load
}

impl From<&Brake> for wire::Brake {
    fn from(brake: &Brake) -> Self {
        Self {
            since: brake.since.0,
            until: brake.until.map(|until| until.0),
            nodes: brake.nodes.iter().map(ToString::to_string).collect(),
        }
    }
}

fn checked_stack(stack: Option<wire::StackSpec>) -> Result<StackSpec, Status> {
    let stack = stack.ok_or_else(|| Status::invalid_argument("field stack: is missing"))?;
    let stack = StackSpec::try_from(stack).map_err(malformed)?;
    Ok(validate::validated(stack)?)
}

fn selected(state: &ClusterState, filter: Option<wire::Filter>) -> Result<Selection, Status> {
    Ok(Selection::resolve(state, &filter.unwrap_or_default())?)
}
