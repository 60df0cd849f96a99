//! The connection to the controller: brings the assignment set, takes statuses away, lets itself be heard.
//!
//! Guarantees:
//! * Whatever the controller's stream does not allow (an increment that does not fit, a message out of order, a value
//!   that cannot be) ends the session; the next one begins with a whole set. Nothing half understood is acted on.
//! * A status leaves as soon as the stream has room, and is kept until the controller says that it is on disk.
//! * While no controller answers, it is tried again at most once a second, and the log says so once for each change.
//!
//! Deliberately absent: choosing among several controllers, and TLS. Both come with clusters of several machines.

mod requests;

use std::{sync::Arc, time::Duration};

use roster_proto::{
    AGENT_PROTOCOLS,
    assignment::{AssignmentDiff, AssignmentSet, DiffMismatch},
    convert::ConvertError,
    id::NodeId,
    node::NodeDescription,
    wire::{self, agent_message, controller_message, dispatch_client::DispatchClient},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};
use tracing::{info, warn};

use self::requests::Requests;
pub use self::requests::{Archive, Failure, Services};
use crate::{
    metrics::Metrics,
    reconcile::{Wanted, backoff::Backoff},
    status::Board,
    telemetry::Chain,
};

/// Between two tries to reach the controller: a restarted one is found again within milliseconds.
const RECONNECT: Backoff = Backoff { base: Duration::from_millis(10), cap: Duration::from_secs(1) };
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// From the Hello to the Welcome: the controller writes to its disk in between.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// Messages between the session and its stream.
const OUTBOX: usize = 8;
/// Largest message taken: a set of some ten thousand tasks.
const MESSAGE_LIMIT: usize = 64 << 20;
/// Bounds on what a controller may ask for as heartbeat period.
const HEARTBEAT_MIN: Duration = Duration::from_millis(20);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// For uploads and log streams not to wait for a window update at every turn.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot reach it: {0}")]
    Unreachable(#[source] tonic::transport::Error),
    #[error("it says: {}", .0.message())]
    Refused(tonic::Status),
    #[error("it closed the session")]
    Closed,
    #[error("it did not answer the greeting within {WELCOME_TIMEOUT:?}")]
    Silent,
    #[error("it sent {0}")]
    Unexpected(&'static str),
    #[error("it sent what cannot be: {0}")]
    Malformed(#[from] ConvertError),
    #[error("its changes do not fit together: {0}")]
    Mismatch(#[from] DiffMismatch),
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        SessionError::Refused(status)
    }
}

/// Everything a session needs, for one after the other.
#[derive(Debug)]
pub struct Sessions<S> {
    /// As the operator wrote it, for messages.
    pub controller: String,
    pub endpoint: Endpoint,
    pub node: NodeId,
    pub description: NodeDescription,
    pub board: Arc<Board>,
    pub wanted: watch::Sender<Wanted>,
    pub services: Arc<S>,
    pub metrics: Arc<Metrics>,
}

/// `unix:///path` or `http://address:port`.
pub fn endpoint(controller: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(controller.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5)))
}

impl<S: Services> Sessions<S> {
    /// Holds a session, or tries to, until shut down.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut failures = 0;
        let mut told = None;
        loop {
            let mut welcomed = false;
            let end = tokio::select! {
                end = self.hold(&mut welcomed) => end,
                () = shutdown.cancelled() => return,
            };
            if welcomed {
                self.metrics.session_closed();
                failures = 0;
                told = None;
            }
            let Err(error) = end;
            let problem = Chain(&error).to_string();
            if told.as_ref() != Some(&problem) {
                warn!(
                    "no session with the controller at {}: {problem}; the ledger's set stays in force",
                    self.controller
                );
                told = Some(problem);
            }
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(RECONNECT.delay(failures, rand::random())) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// One session, which ends only with an error.
    async fn hold(&self, welcomed: &mut bool) -> Result<std::convert::Infallible, SessionError> {
        let channel = self.endpoint.connect().await.map_err(SessionError::Unreachable)?;
        let mut client = client(channel);
        let (outbox, outbound) = mpsc::channel(OUTBOX);
        // The channel is new and has room for it.
        outbox.send(self.hello()).await.map_err(|_| SessionError::Closed)?;
        let greeting = async {
            let mut inbound = client.session(ReceiverStream::new(outbound)).await?.into_inner();
            let period = match next(&mut inbound).await? {
                controller_message::Message::Welcome(welcome) => Duration::from_micros(welcome.heartbeat_period),
                _ => return Err(SessionError::Unexpected("something else than a Welcome first")),
            };
            Ok((inbound, period))
        };
        let (inbound, period) =
            tokio::time::timeout(WELCOME_TIMEOUT, greeting).await.map_err(|_| SessionError::Silent)??;
        *welcomed = true;
        self.metrics.session_opened();
        info!(controller = self.controller, "session with the controller");
        self.board.rewind();
        self.converse(inbound, outbox, period, Requests::new(client, self.services.clone(), self.wanted.subscribe()))
            .await
    }

    async fn converse(
        &self,
        mut inbound: Streaming<wire::ControllerMessage>,
        outbox: mpsc::Sender<wire::AgentMessage>,
        period: Duration,
        mut requests: Requests<S>,
    ) -> Result<std::convert::Infallible, SessionError> {
        let mut heartbeat = heartbeat(period);
        let mut set: Option<AssignmentSet> = None;
        loop {
            tokio::select! {
                message = next(&mut inbound) => match message? {
                    controller_message::Message::StatusAck(ack) => self.board.acknowledge(ack.number),
                    controller_message::Message::Request(request) => requests.begin(request),
                    controller_message::Message::Cancel(id) => requests.cancel(&id),
                    controller_message::Message::Set(whole) => self.accept(&mut set, whole.try_into()?),
                    controller_message::Message::Diff(diff) => {
                        let mut next = set.take().ok_or(SessionError::Unexpected("an increment before any set"))?;
                        next.apply(AssignmentDiff::try_from(diff)?)?;
                        self.accept(&mut set, next);
                    }
                    controller_message::Message::HeartbeatAck(_) | controller_message::Message::Controllers(_) => {}
                    controller_message::Message::Welcome(_) => {
                        return Err(SessionError::Unexpected("a second Welcome"));
                    }
                },
                permit = self.statuses_ready(&outbox) => {
                    let permit = permit?;
                    if let Some(batch) = self.board.take() {
                        permit.send(statuses(batch));
                    }
                }
                _ = heartbeat.tick() => {
                    // A full outbox makes itself heard.
                    _ = outbox.try_send(wire::AgentMessage {
                        message: Some(agent_message::Message::Heartbeat(wire::Heartbeat { number: 0 })),
                    });
                }
                () = requests.reap() => {}
            }
        }
    }

    /// Room in the stream, once there is something for it. The statuses themselves are taken as late as possible.
    async fn statuses_ready<'a>(
        &self,
        outbox: &'a mpsc::Sender<wire::AgentMessage>,
    ) -> Result<mpsc::Permit<'a, wire::AgentMessage>, SessionError> {
        self.board.ready().await;
        outbox.reserve().await.map_err(|_| SessionError::Closed)
    }

    fn accept(&self, current: &mut Option<AssignmentSet>, next: AssignmentSet) {
        let before = self.wanted.borrow().set.as_ref().map(|set| set.generation);
        if let Some(before) = before.filter(|before| *before > next.generation) {
            // Within one session generations only grow, so this is a controller whose store begins anew.
            warn!("the controller's set has generation {}, the ledger's {before}: taking it over", next.generation);
        }
        *current = Some(next.clone());
        self.wanted.send_replace(Wanted { set: Some(Arc::new(next)), authoritative: true });
    }

    fn hello(&self) -> wire::AgentMessage {
        let generation = self.wanted.borrow().set.as_ref().map_or(0, |set| set.generation.0);
        let hello = wire::Hello {
            node: self.node.to_string(),
            description: Some(self.description.clone().into()),
            generation,
            protocol: *AGENT_PROTOCOLS.end(),
        };
        wire::AgentMessage { message: Some(agent_message::Message::Hello(hello)) }
    }
}

fn client(channel: Channel) -> DispatchClient<Channel> {
    DispatchClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT)
}

async fn next(inbound: &mut Streaming<wire::ControllerMessage>) -> Result<controller_message::Message, SessionError> {
    let message = inbound.message().await?.ok_or(SessionError::Closed)?;
    message.message.ok_or(SessionError::Unexpected("a message of a kind this agent does not know"))
}

fn heartbeat(period: Duration) -> Interval {
    let period = period.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn statuses(batch: crate::status::Batch) -> wire::AgentMessage {
    let reports = batch.reports.into_iter().map(Into::into).collect();
    let batch = wire::StatusBatch { number: batch.number, reports };
    wire::AgentMessage { message: Some(agent_message::Message::Statuses(batch)) }
}
