//! Finds the controller that leads.
//!
//! All of them are asked side by side, one a little after the other, and the first session that is welcomed wins. One
//! that does not lead keeps the question until it knows who does and then says so, so that a new leader is found the
//! moment it is elected, without asking again and again. It may still think of the leader that has just died: the
//! question names the one that this agent has lost.
//!
//! Guarantees: nobody is asked more often than once in [`PAUSE`], whatever the others say of him.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use roster_proto::{
    call,
    wire::{self, agent_message, controller_message, dispatch_client::DispatchClient},
};
use rustls::ClientConfig;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

use super::{OUTBOX, SessionError, client, next};
use crate::{reconcile::backoff::Backoff, telemetry::Chain};

/// One is asked so much after the one before: most answer at once, and then the rest need not be asked.
const STAGGER: Duration = Duration::from_millis(50);
/// Between two questions to the same controller.
const PAUSE: Duration = Duration::from_millis(50);
/// The same, after failures in a row: a restarted one is found again soon.
const RETRY: Backoff = Backoff { base: Duration::from_millis(20), cap: Duration::from_secs(1) };
/// The same, to one that will have nothing to do with this agent until somebody acts.
const UNWELCOME: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(10) };
/// From the Hello to the Welcome: a controller may wait for an election, and writes to its disk.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// Controllers asked at a time, those included that others named.
const PURSUITS: usize = 16;

/// How to reach controllers.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// The one of this machine.
    Plain(Box<Endpoint>),
    Tls(Arc<ClientConfig>),
}

/// A session that was welcomed.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) controller: String,
    pub(super) channel: Channel,
    pub(super) client: DispatchClient<Channel>,
    pub(super) inbound: Streaming<wire::ControllerMessage>,
    pub(super) outbox: mpsc::Sender<wire::AgentMessage>,
    pub(super) period: Duration,
}

#[derive(Debug)]
pub(super) struct Search {
    way: Way,
    hello: wire::AgentMessage,
    lost: Option<AsciiMetadataValue>,
    named: watch::Sender<Option<String>>,
    troubles: Mutex<BTreeMap<String, String>>,
    /// Each time all that are asked have failed, in the words of each.
    pub(super) hopeless: watch::Sender<String>,
}

impl Search {
    pub(super) fn new(way: Way, hello: wire::AgentMessage, lost: Option<&str>) -> Self {
        Self {
            way,
            hello,
            lost: lost.and_then(|lost| lost.parse().ok()),
            named: watch::Sender::new(None),
            troubles: Mutex::default(),
            hopeless: watch::Sender::default(),
        }
    }

    /// The first of `addresses` is asked first. Goes on until there is a session.
    pub(super) async fn find(&self, addresses: &[String]) -> Opened {
        let mut named = self.named.subscribe();
        let mut asked: Vec<String> = addresses.iter().take(PURSUITS).cloned().collect();
        let mut pursuits = FuturesUnordered::new();
        for (rank, address) in (0..).zip(&asked) {
            pursuits.push(self.pursue(address.clone(), STAGGER * rank, asked.len()));
        }
        loop {
            tokio::select! {
                Some(opened) = pursuits.next() => return opened,
                Ok(()) = named.changed() => {
                    let address = named.borrow_and_update().clone().unwrap_or_default();
                    if asked.len() < PURSUITS && !asked.contains(&address) {
                        asked.push(address.clone());
                        pursuits.push(self.pursue(address, Duration::ZERO, asked.len()));
                    }
                }
            }
        }
    }

    /// Asks one controller, again and again.
    async fn pursue(&self, address: String, head_start: Duration, count: usize) -> Opened {
        let mut named = self.named.subscribe();
        let (mut channel, mut failures) = (None, 0);
        self.wait(&mut named, &address, head_start).await;
        loop {
            named.mark_unchanged();
            let begun = Instant::now();
            let error = match self.ask(&address, &mut channel).await {
                Ok(opened) => return opened,
                Err(error) => error,
            };
            failures += 1;
            let pace = if error.is_unwelcome() { UNWELCOME } else { RETRY };
            let leader = error.leader();
            self.note(&address, &error, count);
            if let Some(leader) = leader.filter(|leader| *leader != address && matches!(self.way, Way::Tls(_))) {
                self.named.send_replace(Some(leader));
            }
            tokio::time::sleep_until(begun + PAUSE).await;
            self.wait(&mut named, &address, pace.delay(failures, rand::random())).await;
        }
    }

    /// For so long, or until somebody names this one as the leader.
    async fn wait(&self, named: &mut watch::Receiver<Option<String>>, address: &str, at_most: Duration) {
        let is_named = |named: &Option<String>| named.as_deref() == Some(address);
        let called = async {
            while named.changed().await.is_ok() {
                if is_named(&named.borrow_and_update()) {
                    return;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            () = tokio::time::sleep(at_most) => {}
            () = called => {}
        }
    }

    async fn ask(&self, address: &str, kept: &mut Option<Channel>) -> Result<Opened, SessionError> {
        let channel = match kept.take() {
            Some(channel) => channel,
            None => self.connect(address).await?,
        };
        let (outbox, outbound) = mpsc::channel(OUTBOX);
        // The channel is new and has room for it.
        outbox.send(self.hello.clone()).await.map_err(|_| SessionError::Closed)?;
        let mut client = client(channel.clone());
        let mut request = Request::new(ReceiverStream::new(outbound));
        if let Some(lost) = &self.lost {
            request.metadata_mut().insert(call::LOST, lost.clone());
        }
        let greeting = async {
            let mut inbound = client.session(request).await?.into_inner();
            match next(&mut inbound).await? {
                controller_message::Message::Welcome(welcome) => Ok((inbound, welcome.heartbeat_period)),
                _ => Err(SessionError::Unexpected("something else than a Welcome first")),
            }
        };
        match tokio::time::timeout(WELCOME_TIMEOUT, greeting).await {
            Ok(Ok((inbound, period))) => {
                let (controller, period) = (address.to_owned(), Duration::from_micros(period));
                Ok(Opened { controller, channel, client, inbound, outbox, period })
            }
            Ok(Err(error)) => {
                // The connection is good when it is the controller that speaks.
                *kept = error.is_answer().then_some(channel);
                Err(error)
            }
            Err(_) => Err(SessionError::Silent(WELCOME_TIMEOUT)),
        }
    }

    async fn connect(&self, address: &str) -> Result<Channel, SessionError> {
        match &self.way {
            Way::Plain(endpoint) => Ok(endpoint.connect().await?),
            Way::Tls(config) => Ok(roster_tls::connect(&[address.to_owned()], config.clone()).await?),
        }
    }

    fn note(&self, address: &str, error: &SessionError, count: usize) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let mut trouble = Chain(error).to_string();
        if matches!(self.way, Way::Plain(_)) && error.leader().is_some() {
            trouble += "; this node has no certificate to go there with: `rctl cluster join TOKEN --agent` gets it one";
        }
        troubles.insert(address.to_owned(), trouble);
        if troubles.len() >= count {
            let all: Vec<String> = troubles.iter().map(|(address, trouble)| format!("{address}: {trouble}")).collect();
            let all = all.join("; ");
            self.hopeless.send_if_modified(|told| {
                let news = *told != all;
                *told = all;
                news
            });
        }
    }
}

impl SessionError {
    /// Who leads, as far as this one knows.
    pub(super) fn leader(&self) -> Option<String> {
        let SessionError::Refused(status) = self else { return None };
        status.metadata().get(call::LEADER).and_then(|leader| leader.to_str().ok()).map(str::to_owned)
    }

    fn is_answer(&self) -> bool {
        matches!(self, SessionError::Refused(status) if std::error::Error::source(status).is_none())
    }

    fn is_unwelcome(&self) -> bool {
        let unwelcome = |status: &Status| matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated);
        matches!(self, SessionError::Refused(status) if unwelcome(status))
    }
}

pub(super) fn hello(hello: wire::Hello) -> wire::AgentMessage {
    wire::AgentMessage { message: Some(agent_message::Message::Hello(hello)) }
}
