//! The driver's task: gives it what arrives and ticks, and nobody is left without an answer when it ends.

use std::{
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    Machine, Message,
    disk::Disk,
    driver::{Answer, Driver},
    error::{End, Fault},
    members::MemberChange,
    reads::ReadAnswer,
    reconfigure::MembersAnswer,
    snapshots::{Received, SnapshotWork},
};
use roster_proto::id::PeerId;

/// How many requests wait for the driver before asking waits; also the most that share a flush.
pub(super) const QUEUED_REQUESTS: usize = 1024;
/// How many messages of other peers wait for the driver before their stream waits.
pub(super) const QUEUED_MESSAGES: usize = 256;
/// Raft's unit of time. A peer that is alone has none.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// What this peer's own users ask.
pub(super) enum Request<M: Machine> {
    Propose { command: Vec<u8>, answer: Answer<M> },
    Read { answer: ReadAnswer<M> },
    ChangeMembers { changes: Vec<MemberChange>, answer: MembersAnswer },
    TransferLeadership { to: PeerId, answer: MembersAnswer },
}

/// What comes from other peers, or is known of them.
pub(super) enum Arrival<M: Machine> {
    Message(Message),
    Snapshot { message: Message, received: Box<Received<M>>, done: oneshot::Sender<()> },
    Unreachable { peer: u64 },
    SnapshotSent { peer: u64, ok: bool },
}

/// The driver's ends of the queues.
pub(super) struct Queues<M: Machine> {
    pub(super) requests: mpsc::Receiver<Request<M>>,
    pub(super) arrivals: mpsc::Receiver<Arrival<M>>,
}

/// The task: runs the driver until the end and leaves nobody without an answer. The directory is free on return.
pub(super) async fn run<M: Machine, D: Disk>(
    mut driver: Driver<M, D>,
    mut queues: Queues<M>,
    shutdown: CancellationToken,
    ended: Arc<OnceLock<End>>,
) -> Result<(), Arc<Fault>> {
    let result = serve(&mut driver, &mut queues, &shutdown).await.map_err(Arc::new);
    let end = match &result {
        Ok(()) => End::ShuttingDown,
        Err(fault) => End::Failed(fault.clone()),
    };
    assert!(ended.set(end.clone()).is_ok(), "only this task sets it, once");
    queues.requests.close();
    driver.end(&end);
    while let Ok(request) = queues.requests.try_recv() {
        refuse(request, &end);
    }
    // What the journal holds goes to sled.
    if let Err(panicked) = tokio::task::spawn_blocking(move || drop(driver)).await {
        std::panic::resume_unwind(panicked.into_panic());
    }
    result
}

fn refuse<M: Machine>(request: Request<M>, end: &End) {
    // Whoever asked may have gone.
    match request {
        Request::Propose { answer, .. } => drop(answer.send(Err(end.clone().into()))),
        Request::Read { answer } => drop(answer.send(Err(end.clone().into()))),
        Request::ChangeMembers { answer, .. } | Request::TransferLeadership { answer, .. } => {
            drop(answer.send(Err(end.clone().into())));
        }
    }
}

async fn serve<M: Machine, D: Disk>(
    driver: &mut Driver<M, D>,
    queues: &mut Queues<M>,
    shutdown: &CancellationToken,
) -> Result<(), Fault> {
    let (mut requests, mut arrivals) = (Vec::new(), Vec::new());
    let mut encoding = None;
    let mut clock = Clock(None);
    loop {
        if let Some(work) = driver.snapshot_due() {
            encoding = Some(encode(work)?);
        }
        clock.run(driver.needs_ticks());
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            () = clock.tick() => driver.tick(),
            snapshot = encoded(&mut encoding) => {
                let (index, machine) = snapshot?;
                driver.store_snapshot(index, machine);
            }
            // The store's handles hold both senders.
            received = queues.arrivals.recv_many(&mut arrivals, QUEUED_MESSAGES) => if received == 0 { return Ok(()) },
            received = queues.requests.recv_many(&mut requests, QUEUED_REQUESTS) => if received == 0 { return Ok(()) },
            () = std::future::ready(()), if driver.has_work() => {}
        }
        // Whatever else is there by now shares the flush.
        take_waiting(&mut queues.arrivals, &mut arrivals, QUEUED_MESSAGES);
        take_waiting(&mut queues.requests, &mut requests, QUEUED_REQUESTS);
        for arrival in arrivals.drain(..) {
            take(driver, arrival).await?;
        }
        for request in requests.drain(..) {
            ask(driver, request)?;
        }
        driver.settle().await?;
    }
}

fn take_waiting<T>(queue: &mut mpsc::Receiver<T>, into: &mut Vec<T>, limit: usize) {
    while into.len() < limit {
        match queue.try_recv() {
            Ok(item) => into.push(item),
            Err(_) => return,
        }
    }
}

fn ask<M: Machine, D: Disk>(driver: &mut Driver<M, D>, request: Request<M>) -> Result<(), Fault> {
    match request {
        Request::Propose { command, answer } => driver.propose(command, answer),
        Request::Read { answer } => driver.read_index(answer),
        Request::ChangeMembers { changes, answer } => driver.change_members(&changes, answer)?,
        Request::TransferLeadership { to, answer } => driver.transfer_leadership(to, answer),
    }
    Ok(())
}

async fn take<M: Machine, D: Disk>(driver: &mut Driver<M, D>, arrival: Arrival<M>) -> Result<(), Fault> {
    match arrival {
        Arrival::Message(message) => driver.step(message).await?,
        Arrival::Snapshot { message, received, done } => {
            driver.receive_snapshot(message, *received).await?;
            // Whoever brought it may have gone.
            let _ = done.send(());
        }
        Arrival::Unreachable { peer } => driver.report_unreachable(peer),
        Arrival::SnapshotSent { peer, ok } => driver.report_snapshot(peer, ok),
    }
    Ok(())
}

/// Ticks while there is anybody to hear from.
struct Clock(Option<Interval>);

impl Clock {
    fn run(&mut self, running: bool) {
        if running != self.0.is_some() {
            self.0 = running.then(|| {
                let mut interval = tokio::time::interval_at(Instant::now() + TICK, TICK);
                // After a slow flush the others are not to be thought silent for the time nobody listened.
                interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
                interval
            });
        }
    }

    /// Never, while it stands still.
    async fn tick(&mut self) {
        match &mut self.0 {
            Some(interval) => drop(interval.tick().await),
            None => std::future::pending().await,
        }
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
