//! The handle to the log: what the rest of the controller asks of it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use protobuf::Message as _;
use roster_proto::id::{PeerId, Version};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    MAX_COMMAND_BYTES, Machine, Message,
    disk::Disk,
    driver::Driver,
    error::{End, Fault, MembersError, OpenError, ProposeError, ReadError, StepError, Undecodable},
    members::MemberChange,
    open::{StoreConfig, open_driver},
    serve::{Arrival, QUEUED_MESSAGES, QUEUED_REQUESTS, Queues, Request, run},
    snapshots::Received,
    status::RaftStatus,
    transport::Transport,
};

/// How many bytes of commands may be waiting or under way before proposing waits.
const QUEUED_BYTES: usize = 4 * MAX_COMMAND_BYTES;
/// What a command counts at least, so that there cannot be too many small ones either.
const LEAST_BYTES: usize = 4 << 10;
/// How many readers may wait for their round before reading waits.
const QUEUED_READS: usize = 4096;

/// Who leads, as far as this peer knows. One that leads names itself only once it is ready to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    pub leader: Option<PeerId>,
    pub term: u64,
    /// This peer leads, and has applied everything that was acknowledged before it did.
    pub is_self: bool,
}

/// A handle to the replicated machine. Clones are cheap and share everything.
pub struct Store<M: Machine> {
    requests: mpsc::Sender<Request<M>>,
    arrivals: mpsc::Sender<Arrival<M>>,
    budget: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    published: watch::Receiver<Arc<M>>,
    leadership: watch::Receiver<Leadership>,
    status: watch::Receiver<RaftStatus>,
    pub(super) ended: Arc<OnceLock<End>>,
}

impl<M: Machine> Clone for Store<M> {
    fn clone(&self) -> Self {
        Self {
            requests: self.requests.clone(),
            arrivals: self.arrivals.clone(),
            budget: self.budget.clone(),
            readers: self.readers.clone(),
            published: self.published.clone(),
            leadership: self.leadership.clone(),
            status: self.status.clone(),
            ended: self.ended.clone(),
        }
    }
}

impl<M: Machine> std::fmt::Debug for Store<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

/// The driver's task.
#[derive(Debug)]
pub struct StoreTask(JoinHandle<Result<(), Arc<Fault>>>);

impl StoreTask {
    /// Waits until the driver has ended: well after `shutdown` or once every [`Store`] is gone, otherwise with what
    /// made it stop. The directory is free again then.
    pub async fn ended(self) -> Result<(), Arc<Fault>> {
        // It ends without a word only by a panic.
        self.0.await.unwrap_or_else(|_| Err(Arc::new(Fault::Ended)))
    }
}

impl<M: Machine> Store<M> {
    /// Opens the store, or makes an empty one. A sole voter leads on return and has applied everything that was ever
    /// acknowledged; another peer has applied what it knows to be committed. Runs until `shutdown`.
    pub async fn open(
        config: StoreConfig,
        transport: impl Transport,
        shutdown: CancellationToken,
    ) -> Result<(Self, StoreTask), OpenError> {
        let dir = config.dir.clone();
        let opened = tokio::task::spawn_blocking(move || open_driver(&config, Box::new(transport))).await;
        let driver = opened.map_err(|_| OpenError::Replay { dir, source: Arc::new(Fault::Ended) })??;
        let (store, queues) = connect(&driver);
        let task = tokio::spawn(run(driver, queues, shutdown, store.ended.clone()));
        Ok((store, StoreTask(task)))
    }

    /// Logs the command and applies it. Returns once it is committed (flushed to disk by a majority of the voters) and
    /// applied here, with its version and what applying it returned; [`Self::read`] shows it from then on.
    ///
    /// Only the leader does this. Waits while too much is under way. When the returned future is dropped the command
    /// may still be applied.
    pub async fn propose(&self, command: M::Command) -> Result<(Version, M::Output), ProposeError> {
        let command = M::encode_command(&command);
        if command.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge { bytes: command.len(), limit: MAX_COMMAND_BYTES });
        }
        let size = u32::try_from(command.len().max(LEAST_BYTES)).expect("a command is far smaller than 4 GiB");
        // Given back when the answer is there.
        let Ok(_budget) = self.budget.acquire_many(size).await else { return Err(self.why_ended().into()) };
        self.ask(|answer| Request::Propose { command, answer }).await
    }

    /// The machine as of the last applied batch of commands. On the leader that is everything it has answered.
    pub fn read(&self) -> Arc<M> {
        self.published.borrow().clone()
    }

    /// A machine that holds everything any peer has acknowledged before this call: a round of ReadIndex, which those
    /// who ask at the same time share. On any peer.
    pub async fn read_index(&self) -> Result<Arc<M>, ReadError> {
        let Ok(_place) = self.readers.acquire().await else { return Err(self.why_ended().into()) };
        self.ask(|answer| Request::Read { answer }).await
    }

    /// Changes who belongs to the cluster; returns once that is in force. Several changes at once happen together, by
    /// way of a joint configuration. Only the leader does this.
    pub async fn change_members(&self, changes: Vec<MemberChange>) -> Result<(), MembersError> {
        self.ask(|answer| Request::ChangeMembers { changes, answer }).await
    }

    /// Hands the leadership to another voter; returns once that one leads.
    pub async fn transfer_leadership(&self, to: PeerId) -> Result<(), MembersError> {
        self.ask(|answer| Request::TransferLeadership { to, answer }).await
    }

    /// Changes once for every applied batch of commands.
    pub fn watch(&self) -> watch::Receiver<Arc<M>> {
        self.published.clone()
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }

    /// Takes a message that another peer's [`Transport::send`] was given. Waits while too many are queued, which is to
    /// hold up the stream it came by.
    pub async fn step(&self, message: &[u8]) -> Result<(), StepError> {
        let message = self.decode(message)?;
        self.arrive(Arrival::Message(message)).await
    }

    /// Takes what another peer's [`Transport::send_snapshot`] was given, `data` being the machine's bytes. Returns once
    /// it is on disk and in force, or was found to be of no use.
    pub async fn receive_snapshot(&self, message: &[u8], data: Bytes) -> Result<(), StepError> {
        let message = self.decode(message)?;
        // As long as the machine is large.
        let received = tokio::task::spawn_blocking(move || Received::decode(data).map(Box::new));
        let received = received.await.map_err(|panic| StepError::Undecodable(Undecodable::new(panic)))??;
        let (done, installed) = oneshot::channel();
        self.arrive(Arrival::Snapshot { message, received, done }).await?;
        installed.await.map_err(|_| StepError::Ended)
    }

    /// The transport could not reach the peer. Not to be waited for: it will fail again.
    pub fn report_unreachable(&self, peer: PeerId) {
        drop(self.arrivals.try_send(Arrival::Unreachable { peer: peer.0 }));
    }

    /// What became of a snapshot that [`Transport::send_snapshot`] was given.
    pub async fn report_snapshot(&self, peer: PeerId, ok: bool) {
        // Once the driver has ended nothing waits for it.
        drop(self.arrive(Arrival::SnapshotSent { peer: peer.0, ok }).await);
    }

    fn decode(&self, message: &[u8]) -> Result<Message, StepError> {
        let message = Message::parse_from_bytes(message).map_err(|error| StepError::Malformed(error.into()))?;
        let (to, id) = (PeerId(message.to), self.status.borrow().id);
        if to == id { Ok(message) } else { Err(StepError::NotForUs { to }) }
    }

    async fn arrive(&self, arrival: Arrival<M>) -> Result<(), StepError> {
        self.arrivals.send(arrival).await.map_err(|_| StepError::Ended)
    }

    async fn ask<T, E: From<End>>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Request<M>,
    ) -> Result<T, E> {
        let (answer, outcome) = oneshot::channel();
        if self.requests.send(request(answer)).await.is_err() {
            return Err(self.why_ended().into());
        }
        outcome.await.unwrap_or_else(|_| Err(self.why_ended().into()))
    }

    fn why_ended(&self) -> End {
        self.ended.get().cloned().unwrap_or_else(|| End::Failed(Arc::new(Fault::Ended)))
    }
}

pub(super) fn connect<M: Machine, D: Disk>(driver: &Driver<M, D>) -> (Store<M>, Queues<M>) {
    let (request, requests) = mpsc::channel(QUEUED_REQUESTS);
    let (arrival, arrivals) = mpsc::channel(QUEUED_MESSAGES);
    let store = Store {
        requests: request,
        arrivals: arrival,
        budget: Arc::new(Semaphore::new(QUEUED_BYTES)),
        readers: Arc::new(Semaphore::new(QUEUED_READS)),
        published: driver.published(),
        leadership: driver.leadership(),
        status: driver.status(),
        ended: Arc::new(OnceLock::new()),
    };
    (store, Queues { requests, arrivals })
}
