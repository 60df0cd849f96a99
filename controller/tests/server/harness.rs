//! A controller to start and stop, and an agent that does what its session says.

use std::{collections::BTreeMap, future::Future, path::Path, time::Duration};

use clap::Parser;
use hyper_util::rt::TokioIo;
use roster_controller::{Listeners, RunError, config::Config, run};
use roster_proto::{
    assignment::AssignmentSet,
    id::Version,
    spec::{ServiceSpec, StackSpec},
    task::{Desired, TaskReport, TaskState, TaskStatus},
    time::Timestamp,
    whole::{self, Versions},
    wire::{self, control_client::ControlClient, controller_message::Message, dispatch_client::DispatchClient},
};
use roster_tls::KeyAndRequest;
use tempfile::TempDir;
use tokio::{net::UnixStream, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Nothing here takes long; what does is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Controller {
    pub(crate) dir: TempDir,
    shutdown: CancellationToken,
    ended: JoinHandle<Result<(), RunError>>,
    channel: Channel,
}

impl Controller {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), flags).await
    }

    pub(crate) async fn start_in(dir: TempDir, flags: &[&str]) -> Self {
        let config = config(dir.path(), flags);
        let listeners = Listeners::bind(&config).await.expect("the socket is free");
        let channel = connect(&config.socket).await;
        let shutdown = CancellationToken::new();
        let ended = tokio::spawn(run(config, listeners, shutdown.clone()));
        Self { dir, shutdown, ended, channel }
    }

    pub(crate) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Another connection, as another process would have.
    pub(crate) async fn connect(&self) -> Channel {
        connect(&self.dir.path().join("c.sock")).await
    }

    /// Stops it in order; the directory is left for the next.
    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        let ended = within("the controller's end", self.ended).await.expect("it does not panic");
        ended.expect("it stops in order");
        self.dir
    }

    pub(crate) async fn apply(&self, stack: StackSpec) -> Result<wire::ApplyResponse, Status> {
        let request = wire::ApplyRequest { stack: Some(stack.into()), prune: false, base: None };
        self.control().apply(request).await.map(tonic::Response::into_inner)
    }

    /// Watches until `wanted` holds; the last thing seen is in the failure.
    pub(crate) async fn watch(
        &self,
        what: &str,
        mut wanted: impl FnMut(&wire::WatchResponse) -> bool,
    ) -> wire::WatchResponse {
        let stream = self.control().watch(wire::WatchRequest { filter: None, after: 0 }).await.expect("watch");
        let mut versions = Versions::new(stream.into_inner());
        let mut last = None;
        let found = tokio::time::timeout(DEADLINE, async {
            while let Some(seen) = versions.next().await.expect("the stream goes on") {
                if wanted(&seen) {
                    return Some(seen);
                }
                last = Some(seen);
            }
            None
        });
        let found = found.await.ok().flatten();
        found.unwrap_or_else(|| panic!("{what} did not come about; last seen: {last:#?}"))
    }

    pub(crate) async fn node_becomes(&self, name: &str, state: wire::node::State) {
        node_becomes(self.control(), name, state).await;
    }
}

pub(crate) async fn nodes(control: &ControlClient<Channel>) -> Result<wire::ListNodesResponse, Status> {
    whole::listing(async || control.clone().list_nodes(wire::ListNodesRequest {}).await).await
}

async fn node_becomes(control: ControlClient<Channel>, name: &str, state: wire::node::State) {
    let mut last = Vec::new();
    let begun = std::time::Instant::now();
    while begun.elapsed() < DEADLINE {
        last = nodes(&control).await.expect("list nodes").nodes;
        if last.iter().any(|node| node.id == name && node.state() == state) {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("node {name} did not become {state:?}: {last:#?}");
}

pub(crate) fn config(dir: &Path, flags: &[&str]) -> Config {
    let (data, socket) = (dir.join("data"), dir.join("c.sock"));
    let paths = ["--data-dir".as_ref(), data.as_os_str(), "--socket".as_ref(), socket.as_os_str()];
    // Agents here send no heartbeats, and a busy machine is no reason to lose one.
    let defaults = [["--metrics", "none"], ["--heartbeat", "60s"]];
    let defaults = defaults.into_iter().filter(|[flag, _]| !flags.contains(flag)).flatten();
    let flags = defaults.chain(flags.iter().copied()).map(std::ffi::OsStr::new);
    Config::parse_from(["roster-controller".as_ref()].into_iter().chain(paths).chain(flags))
}

pub(crate) async fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The name is never looked up.
    Endpoint::from_static("http://controller").connect_with_connector_lazy(connector)
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {DEADLINE:?}"),
    }
}

/// The same request, to be made again.
pub(crate) fn again(key: &KeyAndRequest) -> KeyAndRequest {
    KeyAndRequest { key_pem: key.key_pem.clone(), request_der: key.request_der.clone() }
}

pub(crate) fn stack(name: &str, services: &[(&str, u32)]) -> StackSpec {
    let service =
        |&(name, replicas): &(&str, u32)| (name.parse().expect("a name"), ServiceSpec::of_image("test:1", replicas));
    StackSpec { name: name.parse().expect("a name"), services: services.iter().map(service).collect() }
}

pub(crate) fn converged(seen: &wire::WatchResponse) -> bool {
    !seen.services.is_empty() && seen.services.iter().all(|service| service.converged)
}

pub(crate) struct Agent {
    pub(crate) dispatch: DispatchClient<Channel>,
    pub(crate) set: AssignmentSet,
    settled: Version,
    pub(crate) heartbeat_period: Duration,
    pub(crate) requests: Vec<wire::Request>,
    pub(crate) cancelled: Vec<String>,
    messages: mpsc::Sender<wire::AgentMessage>,
    session: Streaming<wire::ControllerMessage>,
    reported: BTreeMap<roster_proto::id::TaskId, TaskState>,
    next_batch: u64,
    acknowledged: u64,
}

impl Agent {
    /// Connects and waits for its whole set, and until its node is Ready. Sends no heartbeats of its own.
    pub(crate) async fn join(controller: &Controller, node: &str) -> Self {
        Self::join_by(controller.connect().await, node).await
    }

    pub(crate) async fn join_by(channel: Channel, node: &str) -> Self {
        let mut dispatch = DispatchClient::new(channel.clone());
        let (messages, stream) = mpsc::channel(16);
        send(&messages, wire::agent_message::Message::Hello(hello(node))).await;
        let session = dispatch.session(ReceiverStream::new(stream)).await.expect("a session").into_inner();
        let mut agent = Self {
            dispatch,
            set: AssignmentSet::default(),
            settled: Version(0),
            heartbeat_period: Duration::ZERO,
            requests: Vec::new(),
            cancelled: Vec::new(),
            messages,
            session,
            reported: BTreeMap::new(),
            next_batch: 1,
            acknowledged: 0,
        };
        let Some(Message::Welcome(welcome)) = agent.receive().await.expect("a message").message else {
            panic!("Welcome must come first");
        };
        agent.heartbeat_period = Duration::from_micros(welcome.heartbeat_period);
        let Some(Message::Set(set)) = agent.receive().await.expect("a message").message else {
            panic!("the whole set must come second");
        };
        agent.set = set.try_into().expect("a set");
        agent.settle().await;
        node_becomes(ControlClient::new(channel), node, wire::node::State::Ready).await;
        agent
    }

    /// Says that it runs nothing that its set does not want.
    pub(crate) async fn settle(&mut self) {
        self.settled = self.set.generation;
        let settled = wire::Settled { generation: self.set.generation.0 };
        send(&self.messages, wire::agent_message::Message::Settled(settled)).await;
    }

    pub(crate) async fn receive(&mut self) -> Result<wire::ControllerMessage, Status> {
        let message = within("a message of the session", self.session.message()).await?;
        message.ok_or_else(|| Status::cancelled("the session ended"))
    }

    /// Takes in one message.
    pub(crate) async fn step(&mut self) -> Result<(), Status> {
        match self.receive().await?.message.expect("never empty") {
            Message::Diff(diff) => {
                let diff = roster_proto::assignment::AssignmentDiff::try_from(diff).expect("an increment");
                self.set.apply(diff).expect("increments chain");
            }
            Message::StatusAck(ack) => self.acknowledged = ack.number,
            Message::Request(request) => self.requests.push(request),
            Message::Cancel(id) => self.cancelled.push(id),
            Message::HeartbeatAck(_) | Message::Controllers(_) => {}
            Message::Welcome(_) | Message::Set(_) => panic!("only at the beginning"),
        }
        Ok(())
    }

    /// Takes in messages until `wanted` holds.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            if let Err(status) = self.step().await {
                panic!("waiting for {what}: {status}; the set is {:?}", self.set);
            }
        }
    }

    pub(crate) async fn next_request(&mut self) -> wire::Request {
        self.until("a request", |agent| !agent.requests.is_empty()).await;
        self.requests.remove(0)
    }

    /// Tells the tasks' state, and waits until it is durable.
    pub(crate) async fn report(&mut self, reports: Vec<TaskReport>) {
        let number = self.next_batch;
        self.next_batch += 1;
        for report in &reports {
            self.reported.insert(report.task.clone(), report.status.state);
        }
        let reports = reports.into_iter().map(Into::into).collect();
        let batch = wire::StatusBatch { number, reports };
        send(&self.messages, wire::agent_message::Message::Statuses(batch)).await;
        self.until("the acknowledgement", |agent| agent.acknowledged >= number).await;
    }

    /// As if every task in the set had been carried out at once.
    pub(crate) async fn carry_out(&mut self) {
        let now = Timestamp::from(std::time::SystemTime::now());
        let mut reports = Vec::new();
        for (id, assignment) in &self.set.tasks {
            let state = match assignment.desired {
                Desired::Run => TaskState::Running,
                Desired::Stop(_) => TaskState::Shutdown,
            };
            if self.reported.get(id).is_none_or(|reported| *reported < state) {
                let mut status = TaskStatus::new(state, now);
                status.started = Some(now);
                if let Desired::Stop(reason) = &assignment.desired {
                    status.cause = Some(roster_proto::cause::Cause::Stopped { reason: reason.clone() });
                }
                reports.push(TaskReport { task: id.clone(), status });
            }
        }
        if !reports.is_empty() {
            self.report(reports).await;
        }
        if self.settled != self.set.generation {
            self.settle().await;
        }
    }

    /// Carries out everything the session says until `done`.
    pub(crate) async fn work_until<T>(&mut self, done: impl Future<Output = T>) -> T {
        tokio::pin!(done);
        loop {
            self.carry_out().await;
            tokio::select! {
                value = &mut done => return value,
                stepped = self.step() => stepped.expect("the session goes on"),
            }
        }
    }

    /// Answers a request: its parts, then the end.
    pub(crate) async fn answer(
        &mut self,
        request: &wire::Request,
        parts: Vec<wire::answer_part::Part>,
    ) -> Result<(), Status> {
        let first = wire::answer_part::Part::RequestId(request.id.clone());
        let parts = std::iter::once(first).chain(parts).map(|part| wire::AnswerPart { part: Some(part) });
        let parts: Vec<_> = parts.collect();
        within("the answer", self.dispatch.answer(tokio_stream::iter(parts))).await.map(|_| ())
    }

    /// An answer that goes on until the sender is dropped.
    pub(crate) async fn answer_slowly(
        &self,
        request: &wire::Request,
    ) -> (mpsc::Sender<wire::AnswerPart>, JoinHandle<Status>) {
        let (parts, stream) = mpsc::channel(1);
        let first = wire::answer_part::Part::RequestId(request.id.clone());
        parts.send(wire::AnswerPart { part: Some(first) }).await.expect("there is room");
        let mut dispatch = self.dispatch.clone();
        let ended = tokio::spawn(async move {
            match dispatch.answer(ReceiverStream::new(stream)).await {
                Ok(_) => Status::ok("answered"),
                Err(status) => status,
            }
        });
        (parts, ended)
    }
}

pub(crate) fn hello(node: &str) -> wire::Hello {
    let description = roster_proto::node::NodeDescription {
        hostname: node.to_owned(),
        capacity: roster_proto::node::Capacity { nano_cpus: 4_000_000_000, memory: 8 << 30 },
        ..Default::default()
    };
    let protocol = *roster_proto::AGENT_PROTOCOLS.end();
    wire::Hello { node: node.to_owned(), description: Some(description.into()), generation: 0, protocol }
}

async fn send(messages: &mpsc::Sender<wire::AgentMessage>, message: wire::agent_message::Message) {
    messages.send(wire::AgentMessage { message: Some(message) }).await.expect("the session is open");
}
