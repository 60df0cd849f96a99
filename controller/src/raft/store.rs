//! The handle to the log, and the thread behind it.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    thread,
};

use roster_proto::id::Version;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    MAX_COMMAND_BYTES, Machine,
    disk::{Disk, ReadError},
    driver::{Answer, Driver, SnapshotPolicy, SnapshotWork},
    error::{Fault, OpenError, ProposeError},
    log::{Found, Log},
    record::FORMAT,
    sled_disk::{Pace, SledDisk},
};

/// How many proposals wait for the driver before proposing waits; also the most that share a flush.
const QUEUED_PROPOSALS: usize = 1024;

/// How many bytes of commands may be waiting or under way before proposing waits.
const QUEUED_BYTES: usize = 4 * MAX_COMMAND_BYTES;

#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The store's own directory; made when it is missing.
    pub dir: PathBuf,
    /// This peer's raft id, not 0. A store remembers the one it was made with.
    pub peer: u64,
    /// A snapshot is taken, and the entries it covers go, after so many entries ...
    pub snapshot_entries: u64,
    /// ... or after so many bytes of them.
    pub snapshot_bytes: usize,
}

impl StoreConfig {
    pub const SNAPSHOT_ENTRIES: u64 = 4096;
    pub const SNAPSHOT_BYTES: usize = 8 << 20;

    /// For the only voter of a cluster.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            peer: 1,
            snapshot_entries: Self::SNAPSHOT_ENTRIES,
            snapshot_bytes: Self::SNAPSHOT_BYTES,
        }
    }
}

/// Who leads, as far as this peer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    pub leader: Option<u64>,
    pub term: u64,
    pub is_self: bool,
}

/// A handle to the replicated machine. Clones are cheap and share everything.
#[derive(Debug)]
pub struct Store<M: Machine> {
    requests: mpsc::Sender<Proposal<M>>,
    budget: Arc<Semaphore>,
    published: watch::Receiver<Arc<M>>,
    leadership: watch::Receiver<Leadership>,
    pub(super) ended: Arc<OnceLock<Option<Arc<Fault>>>>,
}

impl<M: Machine> Clone for Store<M> {
    fn clone(&self) -> Self {
        Self {
            requests: self.requests.clone(),
            budget: self.budget.clone(),
            published: self.published.clone(),
            leadership: self.leadership.clone(),
            ended: self.ended.clone(),
        }
    }
}

pub(super) struct Proposal<M: Machine> {
    command: Vec<u8>,
    answer: Answer<M>,
    budget: OwnedSemaphorePermit,
}

/// The driver's thread.
#[derive(Debug)]
pub struct StoreTask {
    ended: oneshot::Receiver<Result<(), Arc<Fault>>>,
}

impl StoreTask {
    /// Waits until the driver has ended: well after `shutdown` or once every [`Store`] is gone, otherwise with what
    /// made it stop. The directory is free again then.
    pub async fn ended(self) -> Result<(), Arc<Fault>> {
        // The thread ends without a word only by a panic.
        self.ended.await.unwrap_or_else(|_| Err(Arc::new(Fault::Ended)))
    }
}

impl<M: Machine> Store<M> {
    /// Opens the store, or makes an empty one, and returns once this peer leads and everything that was ever
    /// acknowledged is applied. Runs until `shutdown`.
    pub async fn open(config: StoreConfig, shutdown: CancellationToken) -> Result<(Self, StoreTask), OpenError> {
        let (opened, open) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let dir = config.dir.clone();
        let body = move || match open_driver(&config) {
            Ok(driver) => {
                let (store, requests) = connect(&driver);
                let reason = store.ended.clone();
                // Without a handle the loop finds the channel closed and ends.
                drop(opened.send(Ok(store)));
                let result = run(driver, requests, &shutdown, &reason);
                drop(end.send(result));
            }
            Err(error) => drop(opened.send(Err(error))),
        };
        thread::Builder::new().name("raft".to_owned()).spawn(body).map_err(OpenError::Thread)?;
        match open.await {
            Ok(store) => Ok((store?, StoreTask { ended })),
            Err(_) => Err(OpenError::Replay { dir, source: Arc::new(Fault::Ended) }),
        }
    }

    /// Logs the command and applies it. Returns once it is committed, flushed to disk and applied, with its version
    /// and what applying it returned; [`Self::read`] shows it from then on.
    ///
    /// Waits while too much is under way. When the returned future is dropped the command may still be applied.
    pub async fn propose(&self, command: M::Command) -> Result<(Version, M::Output), ProposeError> {
        let command = M::encode_command(&command);
        if command.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge { bytes: command.len(), limit: MAX_COMMAND_BYTES });
        }
        let size = u32::try_from(command.len()).expect("a command is far smaller than 4 GiB");
        let Ok(budget) = self.budget.clone().acquire_many_owned(size).await else { return Err(self.why_ended()) };
        let (answer, outcome) = oneshot::channel();
        let proposal = Proposal { command, answer, budget };
        if self.requests.send(proposal).await.is_err() {
            return Err(self.why_ended());
        }
        outcome.await.unwrap_or_else(|_| Err(self.why_ended()))
    }

    /// The machine as of the last applied batch of commands. On the leader that is everything it has answered.
    pub fn read(&self) -> Arc<M> {
        self.published.borrow().clone()
    }

    /// Changes once for every applied batch of commands.
    pub fn watch(&self) -> watch::Receiver<Arc<M>> {
        self.published.clone()
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    fn why_ended(&self) -> ProposeError {
        match self.ended.get() {
            Some(None) => ProposeError::ShuttingDown,
            Some(Some(fault)) => ProposeError::Failed(fault.clone()),
            None => ProposeError::Failed(Arc::new(Fault::Ended)),
        }
    }
}

pub(super) fn connect<M: Machine, D: Disk>(driver: &Driver<M, D>) -> (Store<M>, mpsc::Receiver<Proposal<M>>) {
    let (requests, queue) = mpsc::channel(QUEUED_PROPOSALS);
    let store = Store {
        requests,
        budget: Arc::new(Semaphore::new(QUEUED_BYTES)),
        published: driver.published(),
        leadership: driver.leadership(),
        ended: Arc::new(OnceLock::new()),
    };
    (store, queue)
}

fn open_driver<M: Machine>(config: &StoreConfig) -> Result<Driver<M, SledDisk>, OpenError> {
    start_driver(config, SledDisk::open(&config.dir, rand::random(), Pace::default())?)
}

/// A driver that leads and has applied everything the disk holds.
pub(super) fn start_driver<M: Machine, D: Disk>(config: &StoreConfig, disk: D) -> Result<Driver<M, D>, OpenError> {
    let dir = || config.dir.clone();
    let found = Log::open(disk).map_err(|error| match error {
        ReadError::Disk(source) => OpenError::Disk { dir: dir(), source },
        ReadError::Damage(damage) => OpenError::Damaged { dir: dir(), damage },
        ReadError::Format { found } => OpenError::Format { dir: dir(), found, known: FORMAT },
    })?;
    let replay = |fault| OpenError::Replay { dir: dir(), source: Arc::new(fault) };
    let (log, machine) = match found {
        Found::Log { log, machine } => {
            let index = log.snapshot_index();
            let machine = M::decode(&machine).map_err(|source| replay(Fault::Undecodable { index, source }))?;
            (*log, machine)
        }
        Found::Nothing(disk) => {
            let machine = M::default();
            let log = Log::create(disk, config.peer, machine.encode())
                .map_err(|source| OpenError::Disk { dir: dir(), source })?;
            (log, machine)
        }
    };
    if log.head().peer != config.peer {
        return Err(OpenError::OtherPeer { dir: dir(), found: log.head().peer, wanted: config.peer });
    }
    if log.voters() != [config.peer] {
        return Err(OpenError::OtherVoters { dir: dir(), voters: log.voters().to_vec() });
    }
    let policy = SnapshotPolicy { entries: config.snapshot_entries, bytes: config.snapshot_bytes };
    let mut driver = Driver::new(log, machine, rand::random(), policy).map_err(replay)?;
    driver.start().map_err(replay)?;
    Ok(driver)
}

/// The thread: runs the driver until the end and leaves nobody without an answer. The directory is free on return.
pub(super) fn run<M: Machine, D: Disk>(
    mut driver: Driver<M, D>,
    mut requests: mpsc::Receiver<Proposal<M>>,
    shutdown: &CancellationToken,
    ended: &OnceLock<Option<Arc<Fault>>>,
) -> Result<(), Arc<Fault>> {
    // Not a runtime's thread: it blocks on the disk.
    let result = futures::executor::block_on(serve(&mut driver, &mut requests, shutdown)).map_err(Arc::new);
    let error = match &result {
        Ok(()) => ProposeError::ShuttingDown,
        Err(fault) => ProposeError::Failed(fault.clone()),
    };
    ended.set(result.as_ref().err().cloned()).expect("only this thread sets it, once");
    requests.close();
    driver.fail_waiting(&error);
    while let Ok(proposal) = requests.try_recv() {
        drop(proposal.answer.send(Err(error.clone())));
    }
    result
}

async fn serve<M: Machine, D: Disk>(
    driver: &mut Driver<M, D>,
    requests: &mut mpsc::Receiver<Proposal<M>>,
    shutdown: &CancellationToken,
) -> Result<(), Fault> {
    let mut batch = Vec::new();
    let mut encoding = None;
    loop {
        if let Some(work) = driver.snapshot_due() {
            encoding = Some(encode(work)?);
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            snapshot = encoded(&mut encoding) => {
                let (index, machine) = snapshot?;
                driver.store_snapshot(index, machine);
            }
            received = requests.recv_many(&mut batch, QUEUED_PROPOSALS) => if received == 0 { return Ok(()) },
            () = std::future::ready(()), if driver.has_work() => {}
        }
        let mut budgets = Vec::with_capacity(batch.len());
        for Proposal { command, answer, budget } in batch.drain(..) {
            driver.propose(command, answer)?;
            budgets.push(budget);
        }
        driver.settle()?;
    }
}

type Encoding = oneshot::Receiver<(u64, Vec<u8>)>;

/// Encodes the machine on a thread of its own: a large one would hold up the proposals.
fn encode<M: Machine>(SnapshotWork { index, machine }: SnapshotWork<M>) -> Result<Encoding, Fault> {
    let (done, encoding) = oneshot::channel();
    // The driver may have ended meanwhile.
    let body = move || drop(done.send((index, machine.encode())));
    thread::Builder::new().name("raft-snapshot".to_owned()).spawn(body).map_err(Fault::Thread)?;
    Ok(encoding)
}

/// Never, while nothing is being encoded.
async fn encoded(encoding: &mut Option<Encoding>) -> Result<(u64, Vec<u8>), Fault> {
    let Some(receiver) = encoding else { return std::future::pending().await };
    let result = receiver.await.map_err(|_| Fault::Ended);
    *encoding = None;
    result
}
