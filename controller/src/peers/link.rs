//! The way to one peer: a bounded queue, and the task that empties it into a stream.
//!
//! The task connects while there is something to send, and no longer: a peer that has left the cluster is not called
//! any more. Without an answer it tries anew every [`ATTEMPT_EVERY`] while the earlier attempts go on, for a packet lost
//! on the way to a host that was just unplugged is sent again only after a second.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use roster_proto::{
    id::PeerId,
    wire::{self, raft_client::RaftClient},
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use super::Shared;
use crate::status::chain;

/// Messages that wait for the stream.
const QUEUED_MESSAGES: usize = 4096;
/// The bytes of all of them. More is dropped; raft sends it again.
pub(super) const QUEUED_BYTES: usize = 32 << 20;
/// What is sent in one piece holds messages of so many bytes, or a single larger one.
const FRAME_BYTES: usize = 1 << 20;
/// Frames that wait for the network.
const FRAMES_AHEAD: usize = 2;
/// How often to try a peer that does not answer; as long after a stream has ended.
pub(super) const ATTEMPT_EVERY: Duration = Duration::from_millis(100);
/// After a peer refused what this controller is.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Attempts under way at once.
const ATTEMPTS: usize = 8;
/// Attempts before asking again whether there is anything to send.
const ATTEMPTS_IN_A_ROW: usize = 50;
/// A stream that went on for so long was well: what ends it is news again.
const WELL: Duration = Duration::from_secs(5);
/// Different troubles that are told before it is well again.
const TOLD: usize = 16;

pub(super) struct Link {
    queue: mpsc::Sender<Bytes>,
    flow: Arc<Flow>,
}

/// What both ends of the queue know.
#[derive(Default)]
struct Flow {
    bytes: AtomicUsize,
    /// A stream takes what is offered.
    open: AtomicBool,
    /// Something was dropped since the peer was last said to be unreachable.
    dropped: AtomicBool,
    /// Something is to be sent although no stream is open.
    wanted: Notify,
}

impl Link {
    pub(super) fn start(shared: Arc<Shared>, peer: PeerId) -> Self {
        let (queue, messages) = mpsc::channel(QUEUED_MESSAGES);
        let flow = Arc::new(Flow::default());
        let stopping = shared.stopping.clone();
        let runtime = shared.runtime.clone();
        let task =
            Task { shared, peer, flow: flow.clone(), messages, carried: None, told: BTreeSet::new(), attempt: 0 };
        runtime.spawn(stopping.run_until_cancelled_owned(task.run()));
        Self { queue, flow }
    }

    /// Queues the message, or drops it.
    pub(super) fn offer(&self, message: Bytes) {
        if !self.flow.open.load(Ordering::Acquire) {
            self.flow.wanted.notify_one();
            return;
        }
        let size = message.len();
        let fits = self.flow.bytes.fetch_add(size, Ordering::AcqRel) + size <= QUEUED_BYTES;
        if !fits || self.queue.try_send(message).is_err() {
            self.flow.bytes.fetch_sub(size, Ordering::AcqRel);
            self.flow.dropped.store(true, Ordering::Release);
        }
    }
}

struct Task {
    shared: Arc<Shared>,
    peer: PeerId,
    flow: Arc<Flow>,
    messages: mpsc::Receiver<Bytes>,
    /// Taken from the queue for the next frame.
    carried: Option<Bytes>,
    /// What was said of why there is no stream, so that it is said once.
    told: BTreeSet<String>,
    attempt: usize,
}

impl Task {
    async fn run(mut self) {
        loop {
            self.flow.wanted.notified().await;
            let Some(channel) = self.connect().await else { continue };
            let begun = Instant::now();
            let ended = self.talk(channel).await;
            self.flow.open.store(false, Ordering::Release);
            self.forget_queued();
            self.report_unreachable();
            if begun.elapsed() > WELL {
                self.told.clear();
            }
            self.say(ended.message());
            self.shared.learn(&ended);
            let refused =
                matches!(ended.code(), Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated);
            self.pause(if refused { REFUSED_PAUSE } else { ATTEMPT_EVERY }).await;
        }
    }

    /// A connection to one of the places where the peer may be; `None` when there is none such for now.
    async fn connect(&mut self) -> Option<Channel> {
        let mut attempts = JoinSet::new();
        for _ in 0..ATTEMPTS_IN_A_ROW {
            let addresses = self.shared.addresses(self.peer);
            if !addresses.is_empty() && attempts.len() < ATTEMPTS {
                let address = addresses[self.attempt % addresses.len()].clone();
                self.attempt = self.attempt.wrapping_add(1);
                attempts.spawn((self.shared.dial)(address));
            }
            if addresses.is_empty() {
                return None;
            }
            tokio::select! {
                Some(ended) = attempts.join_next() => match ended {
                    Ok(Ok(channel)) => return Some(channel),
                    Ok(Err(error)) => {
                        self.say(&chain(&error));
                        self.pause(ATTEMPT_EVERY).await;
                    }
                    Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
                },
                () = self.pause(ATTEMPT_EVERY) => {}
            }
        }
        None
    }

    async fn pause(&self, at_most: Duration) {
        tokio::select! {
            () = tokio::time::sleep(at_most) => {}
            () = self.shared.book.somebody_called() => {}
        }
    }

    /// Sends until the stream ends, and says why it did.
    async fn talk(&mut self, channel: Channel) -> Status {
        let (frames, body) = mpsc::channel(FRAMES_AHEAD);
        let hello = wire::RaftMessages { hello: Some(self.hello()), ..Default::default() };
        frames.try_send(hello).expect("nothing is before it");
        let mut client = RaftClient::new(channel);
        let call = client.messages(ReceiverStream::new(body));
        tokio::pin!(call);
        self.flow.open.store(true, Ordering::Release);
        let mut told = 0;
        loop {
            let mut frame = tokio::select! {
                biased;
                ended = &mut call => return over(ended),
                frame = next_frame(&mut self.messages, &mut self.carried, &self.flow) => frame,
            };
            frame.whereabouts = self.news(&mut told);
            tokio::select! {
                biased;
                ended = &mut call => return over(ended),
                _ = frames.send(frame) => {}
            }
            if self.flow.dropped.swap(false, Ordering::AcqRel) {
                self.report_unreachable();
            }
        }
    }

    fn hello(&self) -> wire::RaftHello {
        let me = &self.shared.me;
        wire::RaftHello {
            from: me.id.0,
            to: self.peer.0,
            cluster: me.cluster.clone(),
            address: self.shared.own_address(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: *me.protocols.end(),
            oldest_protocol: *me.protocols.start(),
        }
    }

    /// What the peer was not told yet of where the others are.
    fn news(&self, told: &mut u64) -> Vec<wire::Whereabouts> {
        let news = self.shared.book.news(told).into_iter().filter(|(controller, _)| *controller != self.peer);
        news.map(|(controller, address)| wire::Whereabouts { controller: controller.0, address }).collect()
    }

    /// Raft would only wonder about what is sent so late.
    fn forget_queued(&mut self) {
        let carried = self.carried.take();
        for message in carried.into_iter().chain(std::iter::from_fn(|| self.messages.try_recv().ok())) {
            self.flow.bytes.fetch_sub(message.len(), Ordering::AcqRel);
        }
    }

    fn report_unreachable(&self) {
        if let Some(store) = self.shared.store.get() {
            store.report_unreachable(self.peer);
        }
    }

    /// The same trouble once.
    fn say(&mut self, why: &str) {
        if self.told.len() < TOLD && self.told.insert(why.to_owned()) {
            tracing::warn!(peer = %self.peer, why, "a controller cannot be reached");
        }
    }
}

fn over(ended: Result<tonic::Response<wire::RaftMessagesAck>, Status>) -> Status {
    ended.err().unwrap_or_else(|| Status::unavailable("it ended the stream"))
}

/// As many messages as fit one frame, at least one.
async fn next_frame(
    messages: &mut mpsc::Receiver<Bytes>,
    carried: &mut Option<Bytes>,
    flow: &Flow,
) -> wire::RaftMessages {
    let first = match carried.take() {
        Some(message) => message,
        // The link, which outlives the task, holds the other end.
        None => match messages.recv().await {
            Some(message) => message,
            None => std::future::pending().await,
        },
    };
    let mut bytes = first.len();
    let mut frame = vec![first];
    while let Ok(message) = messages.try_recv() {
        if bytes + message.len() > FRAME_BYTES {
            *carried = Some(message);
            break;
        }
        bytes += message.len();
        frame.push(message);
    }
    flow.bytes.fetch_sub(bytes, Ordering::AcqRel);
    wire::RaftMessages { messages: frame, ..Default::default() }
}
