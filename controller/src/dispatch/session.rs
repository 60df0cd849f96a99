//! One agent's session, from Hello to its end.
//!
//! Four things go on side by side: messages are read, statuses are made durable and acknowledged, heartbeats are
//! answered once a majority has confirmed that this controller still leads, and what the node must know (its assignment
//! set, the cluster's controllers and authorities) is sent whenever it changed. The session ends with the first of them
//! that cannot go on, and when this controller leads no longer; the agent then opens a new one.

use std::sync::Arc;

use imbl::OrdMap;
use roster_proto::{
    AGENT_PROTOCOLS,
    assignment::AssignmentSet,
    convert::ConvertError,
    id::{NodeId, PeerId, Version},
    node::{NodeDescription, NodeState},
    task::{Desired, StopReason, TaskReport},
    wire,
};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use super::{
    Dispatcher, FIRST_MESSAGE,
    sessions::{Outbound, Session},
};
use crate::{
    doors::is_root_here,
    forward::Origin,
    state::{ClusterState, Security, command::Command, controllers::ControllerInfo},
    status::malformed,
};

/// Batches read and not yet proposed; an agent that sends more waits.
const BATCH_QUEUE: usize = 64;
/// Batches proposed as one command while the one before is on its way to the disk.
const MERGED_BATCHES: usize = 16;

pub(super) struct SessionTask {
    dispatcher: Dispatcher,
    origin: Option<Origin>,
    inbound: Streaming<wire::AgentMessage>,
    outbound: Outbound,
}

struct Batch {
    number: u64,
    reports: Vec<TaskReport>,
}

impl SessionTask {
    pub(super) fn new(
        dispatcher: Dispatcher,
        origin: Option<Origin>,
        inbound: Streaming<wire::AgentMessage>,
        outbound: Outbound,
    ) -> Self {
        Self { dispatcher, origin, inbound, outbound }
    }

    pub(super) async fn run(mut self) {
        let dispatcher = self.dispatcher.clone();
        let shutdown = dispatcher.shutdown.clone();
        let end = tokio::select! {
            end = self.converse() => end,
            status = dispatcher.deposed() => Err(status),
            () = shutdown.cancelled() => Err(Status::unavailable("the controller is stopping: connect again")),
        };
        if let Err(status) = end {
            tracing::info!(code = ?status.code(), reason = status.message(), "a session cannot go on");
            // An agent that does not read gets no reason; the stream ends for it all the same.
            let _full_or_gone = self.outbound.try_send(Err(status));
        }
    }

    async fn converse(&mut self) -> Result<(), Status> {
        let (node, description, protocol) = self.hello().await?;
        let command = Command::RegisterNode { node: node.clone(), description: description.into() };
        self.dispatcher.cluster.change(command).await?;
        self.dispatcher.liveness.heard(&node);
        let by_root_here = self.origin.as_ref().is_some_and(is_root_here);
        let session = self.dispatcher.sessions.open(node, by_root_here, self.outbound.clone());
        tracing::info!(node = %session.node, "an agent's session begins");
        let end = self.attend(&session, protocol).await;
        self.dispatcher.sessions.close(&session);
        tracing::info!(node = %session.node, "an agent's session ended");
        end
    }

    async fn hello(&mut self) -> Result<(NodeId, NodeDescription, u32), Status> {
        let first = tokio::time::timeout(FIRST_MESSAGE, self.inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello came"))??;
        let Some(wire::agent_message::Message::Hello(hello)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let node: NodeId = hello.node.parse().map_err(|error| Status::invalid_argument(format!("Hello: {error}")))?;
        let description: NodeDescription = hello.description.unwrap_or_default().try_into().map_err(malformed)?;
        self.check_origin(&node)?;
        if !AGENT_PROTOCOLS.contains(&hello.protocol) {
            return Err(misfit(&node, &description, hello.protocol));
        }
        tracing::debug!(%node, generation = hello.generation, "hello");
        Ok((node, description, hello.protocol))
    }

    /// A node's certificate speaks for that node alone.
    fn check_origin(&self, node: &NodeId) -> Result<(), Status> {
        let caller = self.origin.as_ref().map_or("", |origin| &origin.caller);
        match caller.strip_prefix("agent/") {
            Some(certified) if certified != node.as_str() => {
                tracing::warn!(caller, %node, "refused a session for another node");
                let told = format!("the certificate is node {certified}'s and cannot speak for node {node}");
                Err(Status::permission_denied(told))
            }
            _ => Ok(()),
        }
    }

    async fn attend(&mut self, session: &Session, protocol: u32) -> Result<(), Status> {
        let dispatcher = &self.dispatcher;
        let (batches, proposals) = mpsc::channel(BATCH_QUEUE);
        let (beats, beats_here) = watch::channel(0);
        let welcome = wire::Welcome { heartbeat_period: micros(dispatcher.liveness.period()) };
        send(session, wire::controller_message::Message::Welcome(welcome)).await?;
        tokio::select! {
            end = receive(dispatcher, &session.node, &mut self.inbound, batches, beats) => end,
            end = confirm(dispatcher, session, beats_here) => end,
            end = report(dispatcher, session, proposals) => end,
            end = assign(dispatcher, session, protocol) => end,
            () = session.closed().cancelled() => {
                Err(Status::aborted("a newer session of this node replaced this one: two agents may have its name"))
            }
        }
    }
}

/// Says which of the two is to be upgraded.
fn misfit(node: &NodeId, description: &NodeDescription, protocol: u32) -> Status {
    let (oldest, newest) = AGENT_PROTOCOLS.into_inner();
    let what = if protocol > newest { "upgrade the controllers before the agents" } else { "upgrade the agent" };
    Status::failed_precondition(format!(
        "the agent of node {node} (release {:?}) speaks version {protocol} of the protocol, this controller (release {}) \
         versions {oldest} to {newest}: {what}",
        description.agent_version,
        env!("CARGO_PKG_VERSION"),
    ))
}

/// Reads until the agent closes its side or stays silent for too long.
async fn receive(
    dispatcher: &Dispatcher,
    node: &NodeId,
    inbound: &mut Streaming<wire::AgentMessage>,
    batches: mpsc::Sender<Batch>,
    beats: watch::Sender<u64>,
) -> Result<(), Status> {
    loop {
        let message = tokio::time::timeout(dispatcher.liveness.grace(), inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no heartbeat came in time: connect again"))??;
        let Some(message) = message else { return Ok(()) };
        dispatcher.liveness.heard(node);
        match message.message {
            Some(wire::agent_message::Message::Heartbeat(beat)) => _ = beats.send_replace(beat.number),
            Some(wire::agent_message::Message::Settled(settled)) => {
                settle(dispatcher, node, Version(settled.generation)).await?;
            }
            Some(wire::agent_message::Message::Statuses(batch)) => {
                let reports: Result<Vec<TaskReport>, ConvertError> =
                    batch.reports.into_iter().map(TaskReport::try_from).collect();
                let batch = Batch { number: batch.number, reports: reports.map_err(malformed)? };
                if batches.send(batch).await.is_err() {
                    return Ok(());
                }
            }
            Some(wire::agent_message::Message::Hello(_)) | None => {
                return Err(Status::invalid_argument("after Hello only heartbeats and statuses may follow"));
            }
        }
    }
}

/// A node that was Down, or is new, has ended what it must no longer run.
async fn settle(dispatcher: &Dispatcher, node: &NodeId, generation: Version) -> Result<(), Status> {
    if !dispatcher.cluster.read().node_is_ready(node) {
        dispatcher.cluster.change(Command::SettleNode { node: node.clone(), generation }).await?;
    }
    Ok(())
}

/// Answers heartbeats, and with them gives leases. Those that come while a round is under way share the next.
async fn confirm(dispatcher: &Dispatcher, session: &Session, mut beats: watch::Receiver<u64>) -> Result<(), Status> {
    while beats.changed().await.is_ok() {
        dispatcher.rounds.next().await;
        let number = *beats.borrow_and_update();
        if let Some(lease) = dispatcher.lease(&session.node).await {
            let ack = wire::HeartbeatAck { number, lease: micros(lease) };
            send(session, wire::controller_message::Message::HeartbeatAck(ack)).await?;
        }
    }
    Ok(())
}

/// Makes statuses durable, then acknowledges them. One proposal at a time keeps their order; what arrives meanwhile
/// goes into the next.
async fn report(
    dispatcher: &Dispatcher,
    session: &Session,
    mut proposals: mpsc::Receiver<Batch>,
) -> Result<(), Status> {
    let mut merged = Vec::with_capacity(MERGED_BATCHES);
    while proposals.recv_many(&mut merged, MERGED_BATCHES).await > 0 {
        let numbers: Vec<u64> = merged.iter().map(|batch| batch.number).collect();
        let reports: Vec<TaskReport> = merged.drain(..).flat_map(|batch| batch.reports).collect();
        if !reports.is_empty() {
            dispatcher.cluster.change(Command::Report { node: session.node.clone(), reports }).await?;
        }
        for number in numbers {
            send(session, wire::controller_message::Message::StatusAck(wire::StatusAck { number })).await?;
        }
    }
    Ok(())
}

/// Sends the node's set, then an increment for every generation it is seen at; and what it must know of the cluster,
/// again whenever that changes. A slow agent skips generations.
async fn assign(dispatcher: &Dispatcher, session: &Session, protocol: u32) -> Result<(), Status> {
    let mut states = dispatcher.cluster.watch();
    let mut sent: Option<AssignmentSet> = None;
    let (mut told, mut seen) = (None, None);
    loop {
        let state = states.borrow_and_update().clone();
        let Some(node) = state.nodes.get(&session.node) else {
            return Err(Status::failed_precondition("this node was removed from the cluster"));
        };
        let now = (node.state, node.since);
        if node.state == NodeState::Down && seen.is_some_and(|seen| seen != now) {
            // Settled is said once for each set: only a new session says it again.
            return Err(Status::aborted("this node was not heard for too long and counts as Down: connect again"));
        }
        seen = Some(now);
        if sent.as_ref().is_none_or(|sent| sent.generation != node.generation) {
            let next = in_words_of(protocol, state.assignment_set(&session.node));
            let message = match &sent {
                None => wire::controller_message::Message::Set(next.clone().into()),
                Some(sent) => wire::controller_message::Message::Diff(sent.diff_to(&next).into()),
            };
            send(session, message).await?;
            sent = Some(next);
        }
        if told.as_ref().is_none_or(|told| !is_same_cluster(told, &state)) {
            if state.security.cluster.is_some() {
                send(session, wire::controller_message::Message::Controllers(controllers(&state))).await?;
            }
            told = Some((state.controllers.clone(), state.security.clone()));
        }
        drop(state);
        states.changed().await.map_err(|_| Status::unavailable("the controller's store stopped: connect again"))?;
    }
}

/// An agent of protocol 1 knows no restart: to it a task that goes for one is outdated.
fn in_words_of(protocol: u32, mut set: AssignmentSet) -> AssignmentSet {
    if protocol < 2 {
        for assignment in set.tasks.values_mut().filter(|task| task.desired == Desired::Stop(StopReason::Restarted)) {
            assignment.desired = Desired::Stop(StopReason::Updated);
        }
    }
    set
}

type Told = (OrdMap<PeerId, Arc<ControllerInfo>>, Arc<Security>);

/// By what holds it, not by its content: for each agent, with each change of the state.
fn is_same_cluster((controllers, security): &Told, state: &ClusterState) -> bool {
    controllers.ptr_eq(&state.controllers) && Arc::ptr_eq(security, &state.security)
}

fn controllers(state: &ClusterState) -> wire::Controllers {
    let addresses = state.controllers.values().map(|controller| controller.address.clone());
    let authorities = state.security.authorities.iter().map(|authority| authority.certificate.clone().into());
    wire::Controllers {
        addresses: addresses.filter(|address| !address.is_empty()).collect(),
        authorities: authorities.collect(),
    }
}

async fn send(session: &Session, message: wire::controller_message::Message) -> Result<(), Status> {
    let message = wire::ControllerMessage { message: Some(message) };
    session.outbound().send(Ok(message)).await.map_err(|_| Status::cancelled("the agent went away"))
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
