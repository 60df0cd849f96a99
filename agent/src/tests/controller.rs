//! A controller played by a test, on a unix socket of its own or by TLS.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use roster_proto::{
    assignment::{AssignmentDiff, AssignmentSet},
    call,
    id::TaskId,
    task::{TaskReport, TaskStatus},
    wire::{
        self, agent_message, controller_message,
        dispatch_server::{Dispatch, DispatchServer},
        enroll_server::EnrollServer,
    },
};
use roster_tls::{Authority, Role};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::cluster::{self, Renewals};

const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);

/// What the controller has heard so far, and what it does about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    pub(crate) sessions: u32,
    pub(crate) heartbeats: u32,
    pub(crate) generations: Vec<u64>,
    /// The generations of which the agent said that it has settled on them.
    pub(crate) settled: Vec<u64>,
    /// All reports in order of arrival.
    pub(crate) reports: Vec<TaskReport>,
    pub(crate) answers: BTreeMap<String, Vec<wire::answer_part::Part>>,
    /// Requests whose answer ended, well or not.
    pub(crate) answered: Vec<String>,
    /// Whom those who asked for a session said they had lost.
    pub(crate) lost: Vec<Option<String>>,
    pub(crate) renewals: u32,
    /// What the cluster's controllers are by its word.
    pub(crate) controllers: Vec<String>,
    outbound: Option<mpsc::Sender<Result<wire::ControllerMessage, Status>>>,
    mute: bool,
    deaf: bool,
    lease: Duration,
    leader: Leader,
    set: Option<AssignmentSet>,
}

/// Who leads, as far as a controller knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Leader {
    #[default]
    Me,
    Unknown,
    At(String),
}

impl Heard {
    pub(crate) fn last(&self, task: &TaskId) -> Option<&TaskStatus> {
        self.reports.iter().rev().find(|report| report.task == *task).map(|report| &report.status)
    }
}

pub(crate) struct Controller {
    path: Option<PathBuf>,
    address: String,
    heard: Arc<watch::Sender<Heard>>,
    shutdown: CancellationToken,
}

impl Controller {
    /// On a unix socket, for agents of this machine.
    pub(crate) fn listen(directory: &Path) -> Self {
        let path = directory.join("controller.sock");
        _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let new = Self::new(Some(path), String::new());
        let service = DispatchServer::new(Service { heard: new.heard.clone() });
        new.serve(Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener)));
        new
    }

    /// By TLS, for the agents of its cluster.
    pub(crate) async fn of_cluster(authority: &Arc<Authority>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let new = Self::new(None, listener.local_addr().unwrap().to_string());
        let identity = cluster::identity(authority, Role::Controller, "c", Duration::ZERO);
        let dispatch = DispatchServer::new(Service { heard: new.heard.clone() });
        let enroll = EnrollServer::new(Renewals { authority: authority.clone(), heard: new.heard.clone() });
        let connections = cluster::connections(listener, &identity, new.shutdown.clone());
        new.serve(Server::builder().add_service(dispatch).add_service(enroll).serve_with_incoming(connections));
        new
    }

    fn new(path: Option<PathBuf>, address: String) -> Self {
        let heard = Heard { lease: 3 * HEARTBEAT, ..Heard::default() };
        let heard = Arc::new(watch::Sender::new(heard));
        Self { path, address, heard, shutdown: CancellationToken::new() }
    }

    fn serve(&self, server: impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static) {
        let closed = self.shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                served = server => served.unwrap(),
                () = closed.cancelled() => {}
            }
        });
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn url(directory: &Path) -> String {
        format!("unix://{}", directory.join("controller.sock").display())
    }

    /// Sends the set to the session there is, or else to the next. A set before it becomes an increment.
    pub(crate) fn want(&self, set: AssignmentSet) {
        self.heard.send_modify(|heard| {
            let message = match &heard.set {
                None => controller_message::Message::Set(set.clone().into()),
                Some(before) => controller_message::Message::Diff(before.diff_to(&set).into()),
            };
            heard.set = Some(set);
            heard.say(message);
        });
    }

    pub(crate) fn send_diff(&self, diff: AssignmentDiff) {
        self.heard.send_modify(|heard| heard.say(controller_message::Message::Diff(diff.into())));
    }

    pub(crate) fn ask(&self, id: &str, request: wire::request::Request) {
        let request = wire::Request { id: id.to_owned(), request: Some(request) };
        self.heard.send_modify(|heard| heard.say(controller_message::Message::Request(request)));
    }

    pub(crate) fn cancel(&self, id: &str) {
        self.heard.send_modify(|heard| heard.say(controller_message::Message::Cancel(id.to_owned())));
    }

    /// From now on statuses are heard but not acknowledged, or are again.
    pub(crate) fn mute(&self, mute: bool) {
        self.heard.send_modify(|heard| heard.mute = mute);
    }

    /// From now on heartbeats are heard but not answered, or are again.
    pub(crate) fn deafen(&self, deaf: bool) {
        self.heard.send_modify(|heard| heard.deaf = deaf);
    }

    /// What heartbeats are answered with.
    pub(crate) fn promise(&self, lease: Duration) {
        self.heard.send_modify(|heard| heard.lease = lease);
    }

    /// Sessions there are stay.
    pub(crate) fn know_leader(&self, leader: Leader) {
        self.heard.send_modify(|heard| heard.leader = leader);
    }

    /// Tells the agent, and those that renew later.
    pub(crate) fn introduce(&self, addresses: &[&str], authorities: &[&[u8]]) {
        let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
        let authorities = authorities.iter().map(|authority| authority.to_vec().into()).collect();
        self.heard.send_modify(|heard| {
            heard.controllers = addresses.clone();
            heard.say(controller_message::Message::Controllers(wire::Controllers { addresses, authorities }));
        });
    }

    pub(crate) fn hang_up(&self) {
        self.hang_up_with(Status::unavailable("hung up"));
    }

    pub(crate) fn hang_up_with(&self, status: Status) {
        self.heard.send_modify(|heard| {
            if let Some(outbound) = heard.outbound.take() {
                _ = outbound.try_send(Err(status));
            }
        });
    }

    pub(crate) fn heard(&self) -> Heard {
        self.heard.borrow().clone()
    }

    pub(crate) async fn until(&self, what: &str, reached: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = self.heard.subscribe();
        let result = tokio::time::timeout(DEADLINE, heard.wait_for(|heard| reached(heard))).await;
        match result {
            Ok(heard) => heard.expect("the sender is here").clone(),
            Err(_) => panic!("not in time: {what}; heard {:#?}", self.heard.borrow()),
        }
    }

    /// Waits for the task's last report to be so.
    pub(crate) async fn until_task(&self, task: &TaskId, reached: impl Fn(&TaskStatus) -> bool) -> TaskStatus {
        let heard = self.until(&format!("status of {task}"), |heard| heard.last(task).is_some_and(&reached)).await;
        heard.last(task).expect("waited for").clone()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.shutdown.cancel();
        // Connections outlive their listener, sessions do not.
        self.heard.send_modify(|heard| heard.outbound = None);
        if let Some(path) = &self.path {
            _ = std::fs::remove_file(path);
        }
    }
}

/// Waits for anything else, looking again and again.
pub(crate) async fn until<T: Debug>(what: &str, mut look: impl FnMut() -> Result<(), T>) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        match look() {
            Ok(()) => return,
            Err(last) if tokio::time::Instant::now() > deadline => panic!("not in time: {what}; at last {last:#?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

impl Heard {
    fn say(&mut self, message: controller_message::Message) {
        if let Some(outbound) = &self.outbound {
            _ = outbound.try_send(Ok(wire::ControllerMessage { message: Some(message) }));
        }
    }
}

pub(crate) fn elsewhere(address: &str) -> Status {
    let mut status = Status::unavailable("this controller does not lead");
    status.metadata_mut().insert(call::LEADER, address.parse().unwrap());
    status
}

struct Service {
    heard: Arc<watch::Sender<Heard>>,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Dispatch for Service {
    type SessionStream = Messages<wire::ControllerMessage>;
    type UploadStream = Messages<wire::Chunk>;

    async fn session(
        &self,
        request: Request<Streaming<wire::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let lost = request.metadata().get(call::LOST).map(|lost| lost.to_str().unwrap().to_owned());
        self.heard.send_modify(|heard| heard.lost.push(lost));
        let mut news = self.heard.subscribe();
        let leader = news.wait_for(|heard| heard.leader != Leader::Unknown).await.unwrap().leader.clone();
        if let Leader::At(address) = leader {
            return Err(elsewhere(&address));
        }
        let mut inbound = request.into_inner();
        let (outbound, messages) = mpsc::channel(64);
        let heard = self.heard.clone();
        heard.send_modify(|heard| {
            heard.sessions += 1;
            heard.outbound = Some(outbound);
            let heartbeat_period = HEARTBEAT.as_micros() as u64;
            heard.say(controller_message::Message::Welcome(wire::Welcome { heartbeat_period }));
            if let Some(set) = heard.set.clone() {
                heard.say(controller_message::Message::Set(set.into()));
            }
        });
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                heard.send_modify(|heard| match message.message.unwrap() {
                    agent_message::Message::Hello(hello) => heard.generations.push(hello.generation),
                    agent_message::Message::Heartbeat(beat) => {
                        heard.heartbeats += 1;
                        if !heard.deaf {
                            let lease = heard.lease.as_micros() as u64;
                            let ack = wire::HeartbeatAck { number: beat.number, lease };
                            heard.say(controller_message::Message::HeartbeatAck(ack));
                        }
                    }
                    agent_message::Message::Settled(settled) => heard.settled.push(settled.generation),
                    agent_message::Message::Statuses(batch) => {
                        let reports = batch.reports.into_iter().map(|report| TaskReport::try_from(report).unwrap());
                        heard.reports.extend(reports);
                        if !heard.mute {
                            let ack = wire::StatusAck { number: batch.number };
                            heard.say(controller_message::Message::StatusAck(ack));
                        }
                    }
                });
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn upload(&self, _: Request<wire::UploadRequest>) -> Result<Response<Self::UploadStream>, Status> {
        let chunks = ["abc", "defgh"].map(|data| Ok(wire::Chunk { data: data.into(), input: None }));
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn answer(&self, request: Request<Streaming<wire::AnswerPart>>) -> Result<Response<wire::AnswerAck>, Status> {
        let mut inbound = request.into_inner();
        let mut id = String::new();
        while let Ok(Some(part)) = inbound.message().await {
            match part.part.unwrap() {
                wire::answer_part::Part::RequestId(request) => id = request,
                part => {
                    self.heard.send_modify(|heard| heard.answers.entry(id.clone()).or_default().push(part));
                }
            }
        }
        self.heard.send_modify(|heard| heard.answered.push(id));
        Ok(Response::new(wire::AnswerAck {}))
    }
}
