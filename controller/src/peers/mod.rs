//! The other controllers: how raft's messages and snapshots get to them and from them.
//!
//! One outbound stream to each peer carries the messages ([`link`]); what the peer answers comes by its own stream
//! ([`service`]). A snapshot travels by a connection of its own, in pieces that are kept where it was cut off
//! ([`snapshot`], [`incoming`]), so that neither it nor anything else that grows with the cluster stands before a
//! heartbeat. Where a peer is, [`book`] knows: from the replicated state, from what the peer said when it called, and
//! from what it said to others, which pass it on.
//!
//! Guarantees: sending never blocks and never queues more than [`link::QUEUED_BYTES`]; what cannot go at once is
//! dropped, which raft copes with. A peer that returns is used within [`link::ATTEMPT_EVERY`] of the moment it can be
//! reached. A stranger's stream, another cluster's, one for another controller and one of another protocol version
//! are refused with words.
//!
//! Absent: who may open a stream at all, which the doors decide by its certificate.

mod book;
mod incoming;
mod link;
mod service;
mod snapshot;

use std::{
    collections::BTreeMap,
    fmt,
    ops::RangeInclusive,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use protobuf::Message as _;
use roster_proto::{call, id::PeerId, wire};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

pub(crate) use self::incoming::IncomingError;
pub use self::{book::Announced, service::RaftService};
use self::{book::Book, incoming::Incoming, link::Link};
use crate::{
    forward,
    raft::{EncodedMachine, Message, Store, Transport},
    state::{ClusterState, MAX_CONTROLLERS},
    status::chain,
};

/// The versions of the controllers' protocol that this release speaks.
///
/// Raise the last when a message or a command that older controllers do not know, or understand otherwise, would break a
/// promise. Keep the one before for one release, so that controllers can be upgraded one after the other; until every
/// controller in the state speaks the new one, propose nothing that only it knows.
pub const PROTOCOLS: RangeInclusive<u32> = 1..=2;

/// This controller, as it introduces itself.
#[derive(Clone, Debug)]
pub struct Me {
    pub id: PeerId,
    /// The cluster's id.
    pub cluster: String,
    /// HOST:PORT; `None` when it says nothing about where it is.
    pub address: Option<String>,
    /// [`PROTOCOLS`], except where tests have another release.
    pub protocols: RangeInclusive<u32>,
}

/// Whether there is a version that both sides speak; the other one's oldest is 0 when it speaks `newest` alone.
pub(crate) fn speaks(own: &RangeInclusive<u32>, newest: u32, oldest: u32) -> bool {
    let oldest = if oldest == 0 { newest } else { oldest };
    oldest <= *own.end() && newest >= *own.start()
}

/// Says which of the two is to be upgraded.
pub(crate) fn misfit(own: &RangeInclusive<u32>, who: &str, release: &str, newest: u32, oldest: u32) -> String {
    let versions = |oldest, newest| match oldest {
        oldest if oldest == 0 || oldest == newest => format!("version {newest}"),
        oldest => format!("versions {oldest} to {newest}"),
    };
    let what = if newest > *own.end() {
        "upgrade the older controllers first, by one release at a time"
    } else {
        "upgrade that one first"
    };
    format!(
        "{who} (release {release:?}) speaks {} of the controllers' protocol, this controller (release {}) {}: {what}",
        versions(oldest, newest),
        env!("CARGO_PKG_VERSION"),
        versions(*own.start(), *own.end()),
    )
}

/// Why there is no way to a controller.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    #[error("nobody knows where controller {0} is")]
    NoAddress(PeerId),
    #[error("cannot connect")]
    Connect(#[from] roster_tls::ConnectError),
}

/// Connects to the controller at HOST:PORT.
pub type Dial = Arc<dyn Fn(String) -> BoxFuture<'static, Result<Channel, roster_tls::ConnectError>> + Send + Sync>;

/// Clones share everything.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("me", &self.0.me).finish_non_exhaustive()
    }
}

struct Shared {
    me: Me,
    dial: Dial,
    book: Book,
    links: Mutex<BTreeMap<PeerId, Link>>,
    /// For calls, which are passed on to the leader.
    channels: tokio::sync::Mutex<BTreeMap<PeerId, Channel>>,
    incoming: Incoming,
    /// Known once it is open, which takes the transport.
    store: OnceLock<Store<ClusterState>>,
    /// Another controller said so.
    removed: AtomicBool,
    runtime: tokio::runtime::Handle,
    stopping: CancellationToken,
}

impl Peers {
    /// Its links end with `stopping`. What is received of snapshots is kept in `incoming`.
    pub fn new(me: Me, dial: Dial, incoming: PathBuf, stopping: CancellationToken) -> Self {
        Self(Arc::new(Shared {
            me,
            dial,
            book: Book::default(),
            links: Mutex::default(),
            channels: tokio::sync::Mutex::default(),
            incoming: Incoming::new(incoming),
            store: OnceLock::new(),
            removed: AtomicBool::new(false),
            runtime: tokio::runtime::Handle::current(),
            stopping,
        }))
    }

    /// What raft is to send by.
    pub fn outbox(&self) -> Outbox {
        Outbox(self.0.clone())
    }

    /// From now on what peers send goes to `store`.
    pub fn attach(&self, store: Store<ClusterState>) {
        assert!(self.0.store.set(store).is_ok(), "the store is attached once");
    }

    pub fn service(&self) -> RaftService {
        RaftService::new(self.clone())
    }

    pub fn me(&self) -> &Me {
        &self.0.me
    }

    /// Whether this controller was taken out of the cluster, by another one's word: it refused the certificate for that.
    pub fn is_removed(&self) -> bool {
        self.0.removed.load(Ordering::Acquire)
    }

    /// When the peer last said anything, and by the clock on the wall.
    pub fn heard(&self, peer: PeerId) -> Option<(Instant, std::time::SystemTime)> {
        self.0.book.heard_at(peer)
    }

    /// Where the peers said they are and what they run, since this controller started.
    pub fn announced(&self) -> BTreeMap<PeerId, Announced> {
        self.0.book.announced()
    }

    /// A channel for calls to the peer: the present one, or a new one.
    pub async fn connect(&self, peer: PeerId) -> Result<Channel, Unreachable> {
        let mut channels = self.0.channels.lock().await;
        if let Some(channel) = channels.get(&peer) {
            return Ok(channel.clone());
        }
        let channel = self.0.dial_any(peer).await?;
        channels.insert(peer, channel.clone());
        Ok(channel)
    }

    /// A call by the channel failed: the next ones get a new one.
    pub fn disconnect(&self, peer: PeerId) {
        let shared = self.0.clone();
        self.0.runtime.spawn(async move { shared.channels.lock().await.remove(&peer) });
    }

    /// To be told what another controller answered to a call.
    pub(crate) fn learn(&self, answer: &Status) {
        self.0.learn(answer);
    }
}

/// For calls that are passed on to the leader.
impl forward::Peers for Peers {
    fn connect(&self, peer: u64) -> BoxFuture<'static, Result<Channel, forward::Unreachable>> {
        let peers = self.clone();
        Box::pin(async move {
            let connected = Peers::connect(&peers, PeerId(peer)).await;
            connected.map_err(|error| match error {
                Unreachable::NoAddress(_) => forward::Unreachable::NoAddress(peer),
                Unreachable::Connect(error) => {
                    let state = peers.0.store.get().map(Store::read);
                    let known = state.as_ref().and_then(|state| state.controllers.get(&PeerId(peer)));
                    forward::Unreachable::Connect {
                        name: known.map_or_else(|| PeerId(peer).to_string(), |known| known.name.to_string()),
                        address: peers.0.addresses(PeerId(peer)).join(" or "),
                        reason: chain(&error),
                    }
                }
            })
        })
    }

    fn failed(&self, peer: u64) {
        self.disconnect(PeerId(peer));
    }

    fn refused(&self, answer: &Status) {
        self.learn(answer);
    }

    fn is_removed(&self) -> bool {
        Peers::is_removed(self)
    }
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, BTreeMap<PeerId, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every place where the peer may be, the likeliest first.
    fn addresses(&self, peer: PeerId) -> Vec<String> {
        let state = self.store.get().map(Store::read);
        let known = state.as_ref().and_then(|state| state.controllers.get(&peer));
        self.book.addresses(peer, known.map(|controller| controller.address.as_str()))
    }

    /// Another controller says where others are. They are no more than places to try: who answers there must show that
    /// it is a controller of this cluster, and, before raft speaks to it, which one.
    fn hear(&self, from: PeerId, whereabouts: Vec<wire::Whereabouts>) {
        let told = whereabouts.into_iter().filter(|told| told.address.len() <= MAX_ADDRESS).take(MAX_CONTROLLERS);
        self.book.hear(from, told.map(|told| (PeerId(told.controller), told.address)).collect());
    }

    /// Where this controller is, by its own word or else as the cluster has it: one that has only just joined knows
    /// nobody's address but by what it is told.
    fn own_address(&self) -> String {
        let known = || self.store.get()?.read().controllers.get(&self.me.id).map(|known| known.address.clone());
        self.me.address.clone().or_else(known).unwrap_or_default()
    }

    /// What another controller answered may tell that this one was removed.
    fn learn(&self, answer: &Status) {
        let removed = answer.code() == Code::Unauthenticated && answer.metadata().contains_key(call::REMOVED);
        if removed && !self.removed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "another controller says that this one was removed from the cluster: `rctl cluster leave` on this host \
                 empties it"
            );
        }
    }

    async fn dial_any(&self, peer: PeerId) -> Result<Channel, Unreachable> {
        let mut failed = Unreachable::NoAddress(peer);
        for address in self.addresses(peer) {
            match (self.dial)(address).await {
                Ok(channel) => return Ok(channel),
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }
}

/// Raft's side of it.
#[derive(Clone)]
pub struct Outbox(Arc<Shared>);

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Transport for Outbox {
    fn send(&mut self, messages: Vec<Message>) {
        let mut links = self.0.links();
        for message in messages {
            let peer = PeerId(message.to);
            let link = links.entry(peer).or_insert_with(|| Link::start(self.0.clone(), peer));
            let bytes = message.write_to_bytes().expect("raft's messages have no required fields");
            link.offer(bytes.into());
        }
    }

    fn send_snapshot(&mut self, message: Message, machine: Arc<EncodedMachine>) {
        self.0.runtime.spawn(snapshot::send(self.0.clone(), message, machine));
    }
}

/// The longest HOST:PORT: a name of 253 characters.
const MAX_ADDRESS: usize = 260;

/// How long to wait for what should take no time.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
