//! Serves the agents: one session per node, and beside it the streams that carry what callers ask of a node.
//!
//! Only the leader does; any other controller says who that is ([`leader`]).
//!
//! Guarantees: the node name of a session's Hello is the only one its statuses are applied to; a status is
//! acknowledged only once it is durable, and in the order sent; the assignment set is sent whole first, then as
//! increments that chain. Absent: deciding whether a node is alive ([`crate::leader::liveness`]) and what it should run
//! ([`crate::plan`]).

pub mod broker;
mod leader;
mod session;
mod sessions;

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::Stream;
use roster_proto::{
    call,
    wire::{self, dispatch_server::Dispatch},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use self::leader::Rounds;
pub use self::sessions::Sessions;
use self::{
    broker::{Broker, Part, Piece, Said},
    session::SessionTask,
};
use crate::{cluster::Cluster, forward::Origin, leader::liveness::Liveness};

/// Messages waiting for the agent to read them: increments, acknowledgements, requests.
const OUTBOUND_QUEUE: usize = 64;
/// In which a stream must say what it is.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);

/// The gRPC service.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    pub(crate) cluster: Cluster,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) broker: Arc<Broker>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) rounds: Rounds,
    pub(crate) shutdown: CancellationToken,
}

type ReplyStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Dispatch for Dispatcher {
    type SessionStream = ReceiverStream<Result<wire::ControllerMessage, Status>>;
    type UploadStream = ReplyStream<wire::Chunk>;

    async fn session(
        &self,
        request: Request<Streaming<wire::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let lost = request.metadata().get(call::LOST).and_then(|lost| lost.to_str().ok());
        self.lead(lost).await?;
        let origin = request.extensions().get::<Origin>().cloned();
        // Answered before Hello was read: a client that waits for the stream before it speaks is served as well.
        let (outbound, messages) = mpsc::channel(OUTBOUND_QUEUE);
        tokio::spawn(SessionTask::new(self.clone(), origin, request.into_inner(), outbound).run());
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn upload(&self, request: Request<wire::UploadRequest>) -> Result<Response<Self::UploadStream>, Status> {
        let id = request.into_inner().request_id;
        let pieces = self.broker.claim_upload(&id).ok_or_else(|| no_request(&id))?;
        Ok(Response::new(Box::pin(chunks(pieces))))
    }

    async fn answer(&self, request: Request<Streaming<wire::AnswerPart>>) -> Result<Response<wire::AnswerAck>, Status> {
        let mut parts = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE, parts.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the first part did not come: it must name the request"))??;
        let Some(wire::answer_part::Part::RequestId(id)) = first.and_then(|first| first.part) else {
            return Err(Status::invalid_argument("the first part must name the request"));
        };
        let said = self.broker.claim_answer(&id).ok_or_else(|| no_request(&id))?;
        loop {
            let next = tokio::select! {
                next = parts.message() => next?,
                () = said.closed() => return Err(caller_gone()),
            };
            let last = next.is_none();
            if last {
                not_cancelled().await;
            }
            let next = match next.map(|part| part.part) {
                None => Said::End,
                Some(Some(wire::answer_part::Part::Lines(lines))) => Said::Part(Part::Lines(lines.lines)),
                Some(Some(wire::answer_part::Part::Images(images))) => Said::Part(Part::Images(images.images)),
                Some(Some(wire::answer_part::Part::Container(answer))) => Said::Part(Part::Container(answer)),
                Some(Some(wire::answer_part::Part::Live(output))) => Said::Part(Part::Live(output)),
                Some(Some(wire::answer_part::Part::Failure(failure))) => Said::Failure(failure),
                Some(Some(wire::answer_part::Part::RequestId(_)) | None) => {
                    return Err(Status::invalid_argument("a part after the first must be an answer or a failure"));
                }
            };
            let last = last || matches!(next, Said::Failure(_));
            said.send(next).await.map_err(|_| caller_gone())?;
            if last {
                return Ok(Response::new(wire::AnswerAck {}));
            }
        }
    }
}

/// To be awaited before the end of a caller's stream is believed.
///
/// tonic reports a stream that its sender reset as one that ended. But a call whose stream was reset is dropped as soon
/// as it waits: this waits.
pub(crate) async fn not_cancelled() {
    tokio::task::yield_now().await;
}

fn no_request(id: &str) -> Status {
    Status::not_found(format!("request {id:?} is not open: its caller went away, or it was taken up before"))
}

fn caller_gone() -> Status {
    Status::cancelled("the caller went away")
}

/// What a caller sends along, as the agent reads it. Ends in an error when the caller broke off.
fn chunks(pieces: mpsc::Receiver<Piece>) -> impl Stream<Item = Result<wire::Chunk, Status>> {
    futures::stream::unfold(Some(pieces), |pieces| async move {
        let mut pieces = pieces?;
        match pieces.recv().await {
            Some(Piece::Data(data)) => Some((Ok(wire::Chunk { data, input: None }), Some(pieces))),
            Some(Piece::Input(input)) => {
                Some((Ok(wire::Chunk { data: Bytes::new(), input: Some(input) }), Some(pieces)))
            }
            Some(Piece::End) => None,
            None => Some((Err(Status::aborted("the caller broke off: the rest is missing")), None)),
        }
    })
}
