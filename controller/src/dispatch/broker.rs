//! Requests to agents on behalf of callers: logs, images, containers.
//!
//! The request travels in the node's session and names an id; the agent answers in an Answer stream of its own and
//! fetches what comes with it through Upload. Whoever knows the id may answer, so it is 128 random bits.
//!
//! Guarantees: every queue is bounded, so a slow caller slows the agent down and a slow agent the caller; a caller that
//! goes away cancels the request; a session that ends, an answer that breaks off and an upload that breaks off are
//! errors, never a clean end. Absent: retries, deadlines; the caller has them or waits for its user.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use roster_proto::{id::NodeId, wire};
use tokio::sync::mpsc;

use super::sessions::{Session, Sessions};

/// Answer parts between the agent's stream and the caller's.
const ANSWER_QUEUE: usize = 4;
/// Chunks between the caller's stream and the agent's.
const UPLOAD_QUEUE: usize = 2;
/// Over all nodes and callers.
const MAX_OPEN: usize = 16_384;
/// An agent that does not take a request from its session in this time counts as gone.
const HAND_OVER: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(
        "node {0} has no session: its agent is not running or cannot reach the controller; `rctl node ls` tells more"
    )]
    NoSession(NodeId),
    #[error("node {0} went away before the answer was complete: try again")]
    Lost(NodeId),
    #[error("node {0} does not take requests now: try again")]
    Stalled(NodeId),
    #[error("{MAX_OPEN} requests to agents are open already: wait for some to end, or narrow this one")]
    TooMany,
    #[error("node {node}: {message}")]
    Failed { node: NodeId, kind: wire::failure::Kind, message: String },
}

/// What an agent said in one part of its answer.
#[derive(Debug)]
pub enum Part {
    Lines(Vec<wire::LogLine>),
    Images(Vec<wire::ImageInfo>),
    Container(wire::ContainerAnswer),
    Live(wire::LiveOutput),
}

#[derive(Debug)]
pub(super) enum Said {
    Part(Part),
    Failure(wire::Failure),
    End,
}

/// A piece of what a caller sends along.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    Input(wire::LiveInput),
    End,
}

/// The caller's side of what is sent along. Dropped without [`Upload::finish`] it tells the agent that the rest is
/// missing.
#[derive(Debug)]
pub struct Upload(mpsc::Sender<Piece>);

/// The agent takes no more: its answer says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl Upload {
    /// Waits until the agent has room.
    pub async fn send(&self, data: Bytes) -> Result<(), Refused> {
        self.0.send(Piece::Data(data)).await.map_err(|_| Refused)
    }

    pub async fn send_input(&self, input: wire::LiveInput) -> Result<(), Refused> {
        self.0.send(Piece::Input(input)).await.map_err(|_| Refused)
    }

    pub async fn finish(self) -> Result<(), Refused> {
        self.0.send(Piece::End).await.map_err(|_| Refused)
    }
}

#[derive(Debug)]
struct Open {
    said: Option<mpsc::Sender<Said>>,
    upload: Option<mpsc::Receiver<Piece>>,
}

/// The requests that are open.
#[derive(Debug)]
pub struct Broker {
    sessions: Arc<Sessions>,
    open: Mutex<HashMap<String, Open>>,
}

impl Broker {
    pub fn new(sessions: Arc<Sessions>) -> Self {
        Self { sessions, open: Mutex::default() }
    }

    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub async fn ask(self: &Arc<Self>, node: &NodeId, request: wire::request::Request) -> Result<Answer, AskError> {
        self.open_request(node, request, None).await
    }

    /// A request whose data the agent fetches while the caller sends it.
    pub async fn ask_with_upload(
        self: &Arc<Self>,
        node: &NodeId,
        request: wire::request::Request,
    ) -> Result<(Answer, Upload), AskError> {
        let (pieces, upload) = mpsc::channel(UPLOAD_QUEUE);
        let answer = self.open_request(node, request, Some(upload)).await?;
        Ok((answer, Upload(pieces)))
    }

    async fn open_request(
        self: &Arc<Self>,
        node: &NodeId,
        request: wire::request::Request,
        upload: Option<mpsc::Receiver<Piece>>,
    ) -> Result<Answer, AskError> {
        let session = self.sessions.get(node).ok_or_else(|| AskError::NoSession(node.clone()))?;
        let id = format!("{:032x}", rand::random::<u128>());
        let (said, parts) = mpsc::channel(ANSWER_QUEUE);
        {
            let mut open = self.lock();
            if open.len() >= MAX_OPEN {
                return Err(AskError::TooMany);
            }
            open.insert(id.clone(), Open { said: Some(said), upload });
        }
        let answer = Answer { broker: self.clone(), session, id: id.clone(), parts, complete: false };
        let message = wire::controller_message::Message::Request(wire::Request { id, request: Some(request) });
        let message = wire::ControllerMessage { message: Some(message) };
        match answer.session.outbound().send_timeout(Ok(message), HAND_OVER).await {
            Ok(()) => Ok(answer),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(AskError::Stalled(node.clone())),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(AskError::Lost(node.clone())),
        }
    }

    /// For the agent's Answer stream: once per request.
    pub(super) fn claim_answer(&self, id: &str) -> Option<mpsc::Sender<Said>> {
        self.lock().get_mut(id)?.said.take()
    }

    /// For the agent's Upload call: once per request.
    pub(super) fn claim_upload(&self, id: &str) -> Option<mpsc::Receiver<Piece>> {
        self.lock().get_mut(id)?.upload.take()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        // No code that holds the lock can panic half-way through a change.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer as it arrives. Dropped early, it cancels the request.
#[derive(Debug)]
pub struct Answer {
    broker: Arc<Broker>,
    session: Arc<Session>,
    id: String,
    parts: mpsc::Receiver<Said>,
    complete: bool,
}

impl Answer {
    pub fn node(&self) -> &NodeId {
        &self.session.node
    }

    /// The next part; `None` once the agent said all. Safe to cancel.
    pub async fn next(&mut self) -> Option<Result<Part, AskError>> {
        if self.complete {
            return None;
        }
        let said = tokio::select! {
            biased;
            said = self.parts.recv() => said,
            // The answer that is still being sent belongs to an agent that has forgotten it.
            () = self.session.closed().cancelled() => None,
        };
        match said {
            Some(Said::Part(part)) => Some(Ok(part)),
            Some(Said::Failure(failure)) => {
                self.complete = true;
                let (kind, node) = (failure.kind(), self.node().clone());
                Some(Err(AskError::Failed { node, kind, message: failure.message }))
            }
            Some(Said::End) => {
                self.complete = true;
                None
            }
            None => {
                self.complete = true;
                Some(Err(AskError::Lost(self.node().clone())))
            }
        }
    }

    /// The next part of what was asked of containers.
    pub async fn next_container(&mut self) -> Option<Result<wire::ContainerAnswer, AskError>> {
        Some(match self.next().await? {
            Ok(Part::Container(answer)) => Ok(answer),
            Ok(Part::Lines(_) | Part::Images(_) | Part::Live(_)) => Err(self.answered_otherwise("containers")),
            Err(error) => Err(error),
        })
    }

    fn answered_otherwise(&self, asked: &str) -> AskError {
        let message = format!("the agent answered with something else where {asked} were asked for");
        AskError::Failed { node: self.node().clone(), kind: wire::failure::Kind::Invalid, message }
    }

    /// The images of the whole answer.
    pub async fn images(mut self) -> Result<Vec<wire::ImageInfo>, AskError> {
        let mut images = Vec::new();
        while let Some(part) = self.next().await {
            match part? {
                Part::Images(more) => images.extend(more),
                Part::Lines(_) | Part::Container(_) | Part::Live(_) => return Err(self.answered_otherwise("images")),
            }
        }
        // The agent may leave its name out; the session knows it.
        for image in &mut images {
            image.node = self.node().to_string();
        }
        Ok(images)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.broker.lock().remove(&self.id);
        if self.complete || self.session.closed().is_cancelled() {
            return;
        }
        let cancel = wire::controller_message::Message::Cancel(std::mem::take(&mut self.id));
        let cancel = wire::ControllerMessage { message: Some(cancel) };
        match self.session.outbound().try_send(Ok(cancel)) {
            Err(mpsc::error::TrySendError::Full(cancel)) => {
                // A drop cannot wait. There are never more of these than open requests.
                let (session, runtime) = (self.session.clone(), tokio::runtime::Handle::try_current());
                if let Ok(runtime) = runtime {
                    runtime.spawn(async move {
                        tokio::select! {
                            _ = session.outbound().send(cancel) => {}
                            () = session.closed().cancelled() => {}
                        }
                    });
                }
            }
            // Sent, or nobody is left to tell.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests;
