//! The connection to the controller that leads: brings the assignment set and leases, takes statuses away, lets itself
//! be heard.
//!
//! Guarantees:
//! * Whatever the controller's stream does not allow (an increment that does not fit, a message out of order, a value
//!   that cannot be) ends the session; the next one begins with a whole set. Nothing half understood is acted on.
//! * A status leaves as soon as the stream has room, and is kept until the controller says that it is on disk.
//! * A controller that leads no longer, or is cut off, is left within one and a half heartbeats ([`pulse`]); the new
//!   leader is found as soon as it is known to any other ([`search`]).
//! * A node that has joined a cluster speaks to its controllers by TLS and to nobody else ([`crate::membership`]); one
//!   that has not, to the controller of its own machine. Joining takes effect without a restart.

mod live;
mod pulse;
mod requests;
mod search;

use std::{sync::Arc, time::Duration};

use rand::seq::SliceRandom;
use roster_proto::{
    AGENT_PROTOCOLS,
    assignment::{AssignmentDiff, AssignmentSet, DiffMismatch},
    convert::ConvertError,
    id::{NodeId, Version},
    node::NodeDescription,
    wire::{self, agent_message, controller_message, dispatch_client::DispatchClient},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};
use tracing::{info, warn};

pub use self::requests::{Archive, Failure, Services};
use self::{
    pulse::Pulse,
    requests::Requests,
    search::{Opened, Search, Way},
};
use crate::{
    capacity,
    clock::BootTime,
    membership::{Member, Membership},
    metrics::Metrics,
    reconcile::{Settled, Wanted, backoff::Backoff},
    status::Board,
    telemetry::Chain,
};

/// Between sessions that end as soon as they have begun.
const RECONNECT: Backoff = Backoff { base: Duration::from_millis(10), cap: Duration::from_secs(1) };
/// Between two looks whether this node has joined a cluster meanwhile.
const JOIN_CHECK: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages between the session and its stream.
const OUTBOX: usize = 8;
/// Largest message taken: a set of some ten thousand tasks.
const MESSAGE_LIMIT: usize = 64 << 20;
/// For uploads and log streams not to wait for a window update at every turn.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot reach it: {0}")]
    Unreachable(#[from] tonic::transport::Error),
    #[error(transparent)]
    Connect(#[from] roster_tls::ConnectError),
    #[error("it says: {}", .0.message())]
    Refused(tonic::Status),
    #[error("it closed the session")]
    Closed,
    #[error("it did not answer the greeting within {0:?}")]
    Silent(Duration),
    #[error("it did not answer a heartbeat")]
    Lost,
    #[error("it sent {0}")]
    Unexpected(&'static str),
    #[error("it sent what cannot be: {0}")]
    Malformed(#[from] ConvertError),
    #[error("its changes do not fit together: {0}")]
    Mismatch(#[from] DiffMismatch),
    #[error("this node's identity has changed")]
    NewIdentity,
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        SessionError::Refused(status)
    }
}

/// Everything a session needs, for one after the other.
#[derive(Debug)]
pub struct Sessions<S> {
    /// The controller of this machine, as the operator wrote it; for a node that has joined no cluster.
    pub controller: String,
    pub endpoint: Endpoint,
    pub membership: Membership,
    pub node: NodeId,
    /// As it was when the agent began, but for its addresses: a host gets some only after it has booted, or others later.
    pub description: NodeDescription,
    /// Of the containers' own, which is nobody's way to this host.
    pub bridge: String,
    pub board: Arc<Board>,
    pub wanted: watch::Sender<Wanted>,
    pub lease: watch::Sender<Option<BootTime>>,
    pub settled: watch::Receiver<Settled>,
    pub services: Arc<S>,
    pub metrics: Arc<Metrics>,
}

/// What the next search begins with.
#[derive(Debug, Default)]
struct Trail {
    /// Said to lead, or did when it was last heard.
    leader: Option<String>,
    /// Led, and does no longer or cannot be reached.
    lost: Option<String>,
    failures: u32,
    told: Option<String>,
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
        let mut trail = Trail::default();
        let hold = async {
            loop {
                self.hold(&mut trail).await;
                tokio::time::sleep(RECONNECT.delay(trail.failures, rand::random())).await;
            }
        };
        tokio::select! {
            () = hold => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// One search, and one session.
    async fn hold(&self, trail: &mut Trail) {
        let member = match self.membership.look() {
            Ok(member) => member,
            Err(error) => {
                trail.failures += 1;
                return self.tell(trail, &Chain(&error).to_string());
            }
        };
        let Some(opened) = self.search(member.as_deref(), trail).await else { return };
        let controller = opened.controller.clone();
        self.metrics.session_opened();
        info!(controller, "session with the controller");
        self.board.rewind();
        let begun = Instant::now();
        let channel = opened.channel.clone();
        let mut conversation = Conversation::new(self, opened);
        let certificate = async {
            match &member {
                Some(_) => self.membership.keep_certificate(channel).await,
                None => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            end = conversation.go_on() => end,
            () = certificate => Err(SessionError::NewIdentity),
        };
        self.metrics.session_closed();
        let Err(error) = end;
        trail.follow(&controller, &error, begun.elapsed());
        match error {
            SessionError::NewIdentity => info!(controller, "this node's identity is new: opening a new session"),
            error => self.tell(trail, &format!("{controller}: {}", Chain(&error))),
        }
    }

    /// `None`: this node's identity has changed meanwhile.
    async fn search(&self, member: Option<&Member>, trail: &mut Trail) -> Option<Opened> {
        let (way, addresses) = match member {
            Some(member) => (Way::Tls(member.tls.clone()), trail.order(&member.identity.controllers)),
            None => (Way::Plain(Box::new(self.endpoint.clone())), vec![self.controller.clone()]),
        };
        if addresses.is_empty() {
            self.tell(trail, "this node's identity names no controller: join the cluster again");
        }
        let search = Search::new(way, self.hello(), trail.lost.as_deref());
        let mut hopeless = search.hopeless.subscribe();
        let mut join_check = tokio::time::interval(JOIN_CHECK);
        let mut find = std::pin::pin!(search.find(&addresses));
        loop {
            tokio::select! {
                opened = &mut find => {
                    trail.told = None;
                    return Some(opened);
                }
                Ok(()) = hopeless.changed() => {
                    let troubles = hopeless.borrow_and_update().clone();
                    self.tell(trail, &troubles);
                }
                _ = join_check.tick() => {
                    if self.membership.is_stale() {
                        return None;
                    }
                }
            }
        }
    }

    /// Once for each change.
    fn tell(&self, trail: &mut Trail, problem: &str) {
        if trail.told.as_deref() != Some(problem) {
            warn!("no session with a controller: {problem}; the ledger's set stays in force");
            trail.told = Some(problem.to_owned());
        }
    }

    fn hello(&self) -> wire::AgentMessage {
        let mut description = self.description.clone();
        match capacity::addresses(&self.bridge) {
            Ok(addresses) => description.addresses = addresses,
            Err(error) => warn!("{error}; the controllers are told those of before"),
        }
        search::hello(wire::Hello {
            node: self.node.to_string(),
            description: Some(description.into()),
            generation: self.wanted.borrow().set.as_ref().map_or(0, |set| set.generation.0),
            protocol: *AGENT_PROTOCOLS.end(),
        })
    }
}

impl Trail {
    /// A session that lasts for so long was none that ended as soon as it had begun.
    const LASTING: Duration = Duration::from_secs(5);

    fn follow(&mut self, controller: &str, error: &SessionError, lasted: Duration) {
        self.failures = if lasted >= Self::LASTING || error.leader().is_some() { 0 } else { self.failures + 1 };
        self.leader = Some(error.leader().unwrap_or_else(|| controller.to_owned()));
        let lost = matches!(error, SessionError::Refused(_) | SessionError::Closed | SessionError::Lost);
        self.lost = lost.then(|| controller.to_owned());
    }

    /// The likeliest first, the others in no order, so that many agents do not all ask the same one.
    fn order(&self, controllers: &[String]) -> Vec<String> {
        let mut others: Vec<String> = controllers.to_vec();
        others.shuffle(&mut rand::rng());
        let first = self.leader.clone().filter(|leader| controllers.contains(leader));
        others.retain(|other| Some(other) != first.as_ref());
        first.into_iter().chain(others).collect()
    }
}

/// One session, from its Welcome to its end.
struct Conversation<'a, S> {
    sessions: &'a Sessions<S>,
    inbound: Streaming<wire::ControllerMessage>,
    outbox: mpsc::Sender<wire::AgentMessage>,
    requests: Requests<S>,
    pulse: Pulse,
    set: Option<AssignmentSet>,
    /// The same, as the reconciler was given it.
    given: Option<Arc<AssignmentSet>>,
    settled: watch::Receiver<Settled>,
    /// To be told: nothing runs that this generation does not want.
    settled_at: Option<Version>,
}

impl<'a, S: Services> Conversation<'a, S> {
    fn new(sessions: &'a Sessions<S>, opened: Opened) -> Self {
        let Opened { client, inbound, outbox, period, .. } = opened;
        Self {
            requests: Requests::new(client, sessions.services.clone(), sessions.wanted.subscribe()),
            sessions,
            inbound,
            outbox,
            pulse: Pulse::new(period),
            set: None,
            given: None,
            settled: sessions.settled.clone(),
            settled_at: None,
        }
    }

    /// Ends only with an error.
    async fn go_on(&mut self) -> Result<std::convert::Infallible, SessionError> {
        let outbox = self.outbox.clone();
        loop {
            let errand = self.pulse.is_due() || self.settled_at.is_some();
            let deadline = self.pulse.deadline();
            tokio::select! {
                message = next(&mut self.inbound) => self.hear(message?)?,
                permit = self.sessions.statuses_ready(&outbox) => {
                    let permit = permit?;
                    if let Some(batch) = self.sessions.board.take() {
                        permit.send(statuses(batch));
                    }
                }
                permit = outbox.reserve(), if errand => {
                    let permit = permit.map_err(|_| SessionError::Closed)?;
                    if let Some(message) = self.errand() {
                        permit.send(wire::AgentMessage { message: Some(message) });
                    }
                }
                () = self.pulse.tick() => {
                    if self.sessions.membership.is_stale() {
                        return Err(SessionError::NewIdentity);
                    }
                }
                Ok(()) = self.settled.changed() => self.settle(),
                () = sleep_until(deadline) => return Err(SessionError::Lost),
                () = self.requests.reap() => {}
            }
        }
    }

    fn hear(&mut self, message: controller_message::Message) -> Result<(), SessionError> {
        match message {
            controller_message::Message::StatusAck(ack) => self.sessions.board.acknowledge(ack.number),
            controller_message::Message::Request(request) => self.requests.begin(request),
            controller_message::Message::Cancel(id) => self.requests.cancel(&id),
            controller_message::Message::Set(whole) => self.accept(whole.try_into()?),
            controller_message::Message::Diff(diff) => {
                let mut next = self.set.take().ok_or(SessionError::Unexpected("an increment before any set"))?;
                next.apply(AssignmentDiff::try_from(diff)?)?;
                self.accept(next);
            }
            controller_message::Message::HeartbeatAck(ack) => {
                let until = self.pulse.answered(ack);
                self.sessions.lease.send_if_modified(|lease| {
                    let longer = until > *lease;
                    *lease = until.max(*lease);
                    longer
                });
            }
            controller_message::Message::Controllers(told) => {
                if let Err(error) = self.sessions.membership.learn(told) {
                    warn!("cannot write down what the leader says of the cluster: {}", Chain(&error));
                }
            }
            controller_message::Message::Welcome(_) => return Err(SessionError::Unexpected("a second Welcome")),
        }
        Ok(())
    }

    fn accept(&mut self, next: AssignmentSet) {
        let before = self.sessions.wanted.borrow().set.as_ref().map(|set| set.generation);
        if let Some(before) = before.filter(|before| *before > next.generation) {
            // Within one session generations only grow, so this is a controller whose store begins anew.
            warn!("the controller's set has generation {}, the ledger's {before}: taking it over", next.generation);
        }
        let given = Arc::new(next.clone());
        self.set = Some(next);
        self.given = Some(given.clone());
        self.sessions.wanted.send_replace(Wanted { set: Some(given), authoritative: true });
    }

    /// The reconciler has settled on a set; it may be one that this session did not bring, or no longer the last.
    fn settle(&mut self) {
        let settled = self.settled.borrow_and_update().0.clone();
        let (Some(settled), Some(given)) = (settled, &self.given) else { return };
        if Arc::ptr_eq(&settled, given) {
            self.settled_at = Some(given.generation);
        }
    }

    /// The next small message that is due.
    fn errand(&mut self) -> Option<agent_message::Message> {
        if self.pulse.is_due() {
            return Some(agent_message::Message::Heartbeat(self.pulse.beat()));
        }
        let Version(generation) = self.settled_at.take()?;
        Some(agent_message::Message::Settled(wire::Settled { generation }))
    }
}

impl<S> Sessions<S> {
    /// Room in the stream, once there is something for it. The statuses themselves are taken as late as possible.
    async fn statuses_ready<'a>(
        &self,
        outbox: &'a mpsc::Sender<wire::AgentMessage>,
    ) -> Result<mpsc::Permit<'a, wire::AgentMessage>, SessionError> {
        self.board.ready().await;
        outbox.reserve().await.map_err(|_| SessionError::Closed)
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn client(channel: Channel) -> DispatchClient<Channel> {
    DispatchClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT)
}

async fn next(inbound: &mut Streaming<wire::ControllerMessage>) -> Result<controller_message::Message, SessionError> {
    let message = inbound.message().await?.ok_or(SessionError::Closed)?;
    message.message.ok_or(SessionError::Unexpected("a message of a kind this agent does not know"))
}

fn statuses(batch: crate::status::Batch) -> wire::AgentMessage {
    let reports = batch.reports.into_iter().map(Into::into).collect();
    let batch = wire::StatusBatch { number: batch.number, reports };
    wire::AgentMessage { message: Some(agent_message::Message::Statuses(batch)) }
}
