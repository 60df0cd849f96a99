//! What users ask of this node through the controller: logs, images and what is done with containers.
//!
//! Each request is answered in an Answer stream of its own, so that a slow reader slows nobody else down. At most
//! [`REQUESTS`] are answered at a time. A request ends with the session it came with: its asker is gone then.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use roster_proto::{
    assignment::Assignment,
    id::TaskId,
    report::{ImageInfo, LogLine},
    task::Desired,
    wire::{self, answer_part, container_request, dispatch_client::DispatchClient, failure, live_work::Work, request},
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{debug, warn};

use super::live;
use crate::{
    image::is_same_reference,
    reconcile::Wanted,
    runtime::linux::live::{LiveInput, LiveOutput},
};

/// Followed logs and image transfers at a time.
const REQUESTS: usize = 256;
/// Parts of an answer between the one who produces it and its stream. A part may be thousands of lines, and there are
/// up to [`REQUESTS`] slow readers.
pub(super) const ANSWER_PARTS: usize = 2;

/// What is sent with an image load: a docker-archive or OCI layout, as it comes.
pub type Archive = BoxStream<'static, io::Result<Bytes>>;

/// Why a request cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    NotFound(String),
    /// The archive, the reference or the name is wrong.
    Invalid(String),
    /// In use, or otherwise not now.
    Precondition(String),
    /// A registry or disk failed: may pass.
    Unavailable(String),
}

/// What a node can do for a user beside running tasks. Dropping a future gives the request up.
pub trait Services: Send + Sync + 'static {
    /// Sends the lines the query asks for, in pieces, then, if it follows, what comes until the container ends. The
    /// lines bear `name`.
    fn logs(
        &self,
        task: &TaskId,
        name: String,
        query: wire::LogQuery,
        lines: mpsc::Sender<Vec<LogLine>>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Sends what there is to say of each container that is asked about; one that cannot does not hold up the others.
    fn containers(
        &self,
        request: container_request::Request,
        answers: mpsc::Sender<wire::ContainerAnswer>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Does what a user wants in the task's container, up to its end, or until he detaches, which is the last that is
    /// said. Dropping the future before that ends it there too.
    fn live(
        &self,
        task: &TaskId,
        work: Work,
        input: LiveInput,
        output: LiveOutput,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Stores every image of the archive and returns them.
    fn load(&self, archive: Archive) -> impl Future<Output = Result<Vec<ImageInfo>, Failure>> + Send;

    fn pull(&self, reference: &str) -> impl Future<Output = Result<Vec<ImageInfo>, Failure>> + Send;

    fn images(&self) -> impl Future<Output = Result<Vec<ImageInfo>, Failure>> + Send;

    /// Returns what was removed. `in_use`: the images, as written in their specs, that tasks of this node may need.
    fn remove(
        &self,
        reference: &str,
        in_use: BTreeSet<String>,
    ) -> impl Future<Output = Result<Vec<ImageInfo>, Failure>> + Send;
}

pub(super) struct Requests<S> {
    client: DispatchClient<Channel>,
    services: Arc<S>,
    wanted: watch::Receiver<Wanted>,
    running: HashMap<String, AbortHandle>,
    tasks: JoinSet<String>,
}

pub(super) type Answer = mpsc::Sender<wire::AnswerPart>;

impl<S: Services> Requests<S> {
    pub(super) fn new(client: DispatchClient<Channel>, services: Arc<S>, wanted: watch::Receiver<Wanted>) -> Self {
        Self { client, services, wanted, running: HashMap::new(), tasks: JoinSet::new() }
    }

    pub(super) fn begin(&mut self, request: wire::Request) {
        let wire::Request { id, request } = request;
        let full = self.running.len() >= REQUESTS;
        if full && self.tasks.len() >= 2 * REQUESTS {
            warn!("more requests than can even be refused; the caller will find this one unanswered");
            return;
        }
        let (client, services, key) = (self.client.clone(), self.services.clone(), id.clone());
        let wanted = self.wanted.borrow().clone();
        let handle = self.tasks.spawn(async move {
            let (answer, parts) = mpsc::channel(ANSWER_PARTS);
            let said = async {
                let uploads = client.clone();
                let result = match request {
                    _ if full => Err(Failure::Precondition(format!("{REQUESTS} requests are being answered already"))),
                    Some(request) => produce(&*services, uploads, &wanted, &id, request, &answer).await,
                    None => Err(unknown_request()),
                };
                if let Err(failure) = result {
                    // Nobody is left to tell when this fails.
                    _ = answer.send(part(answer_part::Part::Failure(failure.into()))).await;
                }
                drop(answer);
                std::future::pending::<()>().await;
            };
            let head = futures::stream::iter([part(answer_part::Part::RequestId(id.clone()))]);
            let mut sender = client.clone();
            // The stream ends when all is said, or earlier when the asker went away.
            let sent = tokio::select! {
                sent = sender.answer(head.chain(ReceiverStream::new(parts))) => sent.map(|_| ()),
                () = said => Ok(()),
            };
            if let Err(status) = sent {
                debug!(request = %id, "the answer was not taken: {}", status.message());
            }
            id
        });
        self.running.insert(key, handle);
    }

    pub(super) fn cancel(&mut self, id: &str) {
        self.running.remove(id).inspect(AbortHandle::abort);
    }

    /// Forgets answers that are complete. For a `select!`: never resolves while there is none.
    pub(super) async fn reap(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(id)) => _ = self.running.remove(&id),
            Some(Err(error)) if error.is_cancelled() => {}
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => std::future::pending().await,
        }
    }
}

async fn produce<S: Services>(
    services: &S,
    uploads: DispatchClient<Channel>,
    wanted: &Wanted,
    id: &str,
    request: request::Request,
    answer: &Answer,
) -> Result<(), Failure> {
    let images = match request {
        request::Request::Logs(logs) => return produce_logs(services, wanted, logs, answer).await,
        request::Request::Container(asked) => return produce_containers(services, asked, answer).await,
        request::Request::Live(live) => return live::produce(services, uploads, id, live, answer).await,
        request::Request::ImageLoad(load) => {
            let lacks = lacks_base(services, &load.base).await?;
            let loaded = services.load(archive(uploads, id).await?).await;
            match lacks {
                // Under another name it may be here all the same.
                Some(lacks) => loaded.map_err(|_| lacks)?,
                None => loaded?,
            }
        }
        request::Request::ImagePull(pull) => services.pull(&pull.reference).await?,
        request::Request::ImageList(_) => services.images().await?,
        request::Request::ImageRemove(remove) => services.remove(&remove.reference, images_in_use(wanted)).await?,
    };
    let images = wire::Images { images: images.into_iter().map(Into::into).collect() };
    _ = answer.send(part(answer_part::Part::Images(images))).await;
    Ok(())
}

/// What the archive leaves out must be here, and is pulled where it is not; else what to say of that.
async fn lacks_base<S: Services>(services: &S, base: &str) -> Result<Option<Failure>, Failure> {
    let is_base = |image: &ImageInfo| image.id == base || image.names.iter().any(|name| is_same_reference(name, base));
    if base.is_empty() || services.images().await?.iter().any(is_base) {
        return Ok(None);
    }
    let (Failure::NotFound(why) | Failure::Invalid(why) | Failure::Precondition(why) | Failure::Unavailable(why)) =
        match services.pull(base).await {
            Ok(_) => return Ok(None),
            Err(failure) => failure,
        };
    let text = format!("it lacks {base}, which the image is made on ({why}): `rctl image load` that there first");
    Ok(Some(Failure::Precondition(text)))
}

fn images_in_use(wanted: &Wanted) -> BTreeSet<String> {
    let tasks = wanted.set.iter().flat_map(|set| set.tasks.values());
    tasks
        .filter(|assignment| assignment.desired == Desired::Run)
        .map(|assignment| assignment.spec.image.clone())
        .collect()
}

async fn produce_logs<S: Services>(
    services: &S,
    wanted: &Wanted,
    logs: wire::TaskLogs,
    answer: &Answer,
) -> Result<(), Failure> {
    let task = TaskId::new(logs.task).map_err(|error| Failure::Invalid(error.to_string()))?;
    // A task that has left the set has its log still, but no name any more.
    let assignment = wanted.set.as_ref().and_then(|set| set.tasks.get(&task));
    let name = assignment.map_or_else(|| task.to_string(), Assignment::name);
    let (lines, mut produced) = mpsc::channel::<Vec<LogLine>>(ANSWER_PARTS);
    let forward = async {
        while let Some(lines) = produced.recv().await {
            let lines = wire::LogLines { lines: lines.into_iter().map(Into::into).collect() };
            if answer.send(part(answer_part::Part::Lines(lines))).await.is_err() {
                return;
            }
        }
    };
    let (result, ()) = tokio::join!(services.logs(&task, name, logs.query.unwrap_or_default(), lines), forward);
    result
}

async fn produce_containers<S: Services>(
    services: &S,
    asked: wire::ContainerRequest,
    answer: &Answer,
) -> Result<(), Failure> {
    let request = asked.request.ok_or_else(unknown_request)?;
    let (answers, mut produced) = mpsc::channel(ANSWER_PARTS);
    let forward = async {
        while let Some(said) = produced.recv().await {
            if answer.send(part(answer_part::Part::Container(said))).await.is_err() {
                return;
            }
        }
    };
    let (result, ()) = tokio::join!(services.containers(request, answers), forward);
    result
}

fn unknown_request() -> Failure {
    Failure::Invalid("this agent does not know such a request: update it".to_owned())
}

/// The bytes the user sends. A stream that breaks off ends with an error, never as if it were complete.
async fn archive(mut uploads: DispatchClient<Channel>, id: &str) -> Result<Archive, Failure> {
    let request = wire::UploadRequest { request_id: id.to_owned() };
    let chunks = uploads
        .upload(request)
        .await
        .map_err(|status| Failure::Unavailable(format!("cannot fetch the archive: {}", status.message())))?
        .into_inner();
    Ok(chunks.map(|chunk| chunk.map(|chunk| chunk.data).map_err(io::Error::other)).boxed())
}

pub(super) fn part(part: answer_part::Part) -> wire::AnswerPart {
    wire::AnswerPart { part: Some(part) }
}

impl From<Failure> for wire::Failure {
    fn from(failure: Failure) -> Self {
        let (kind, message) = match failure {
            Failure::NotFound(message) => (failure::Kind::NotFound, message),
            Failure::Invalid(message) => (failure::Kind::Invalid, message),
            Failure::Precondition(message) => (failure::Kind::Precondition, message),
            Failure::Unavailable(message) => (failure::Kind::Unavailable, message),
        };
        wire::Failure { kind: kind.into(), message }
    }
}
