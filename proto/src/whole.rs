//! Answers that come in several messages, so that no message grows with the cluster: put together again.

use tonic::{Response, Status, Streaming};

use crate::{replay::Again, wire};

/// How often a listing whose connection breaks is begun anew.
const TRIES: usize = 5;

/// One of the messages that make an answer.
pub trait Part: Default {
    /// What follows it.
    fn join(&mut self, next: Self);
}

impl Part for wire::ListServicesResponse {
    fn join(&mut self, next: Self) {
        self.services.extend(next.services);
        self.version = next.version;
    }
}

impl Part for wire::ListTasksResponse {
    fn join(&mut self, next: Self) {
        self.tasks.extend(next.tasks);
        self.version = next.version;
    }
}

impl Part for wire::ListNodesResponse {
    fn join(&mut self, next: Self) {
        self.nodes.extend(next.nodes);
        self.load.extend(next.load);
        self.brake = self.brake.take().or(next.brake);
        self.version = next.version;
    }
}

/// The whole listing that `ask` begins, which is begun again when it breaks off.
pub async fn listing<T: Part>(ask: impl AsyncFn() -> Result<Response<Streaming<T>>, Status>) -> Result<T, Status> {
    let mut broken = Status::internal("a listing that was never asked for");
    for _ in 0..TRIES {
        match to_the_end(ask().await?.into_inner()).await {
            Err(status) if Again::of_status(&status) != Again::Never => broken = status,
            done => return done,
        }
    }
    Err(broken)
}

async fn to_the_end<T: Part>(mut parts: Streaming<T>) -> Result<T, Status> {
    let mut whole = T::default();
    while let Some(part) = parts.message().await? {
        whole.join(part);
    }
    Ok(whole)
}

/// What a watch tells of, version by version.
#[derive(Debug)]
pub struct Versions {
    parts: Streaming<wire::WatchResponse>,
    /// What came of the next version.
    partial: wire::WatchResponse,
}

impl Versions {
    pub fn new(watch: Streaming<wire::WatchResponse>) -> Self {
        Self { parts: watch, partial: wire::WatchResponse::default() }
    }

    /// The next one; `None` when the watch has ended. Nothing is lost when this is dropped before it returns.
    pub async fn next(&mut self) -> Result<Option<wire::WatchResponse>, Status> {
        while let Some(part) = self.parts.message().await? {
            self.partial.version = part.version;
            self.partial.services.extend(part.services);
            self.partial.tasks.extend(part.tasks);
            if !part.more {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
        }
        Ok(None)
    }
}
