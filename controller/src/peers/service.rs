//! What the other controllers call: the receiving end of their streams.

use std::sync::Arc;

use bytes::Bytes;
use roster_proto::{id::PeerId, wire, wire::raft_server::Raft};
use tonic::{Request, Response, Status, Streaming};

use super::{
    ANSWER_WITHIN, Announced, Peers, Shared,
    incoming::{IncomingError, Partial},
    misfit, speaks,
};
use crate::{raft::Store, state::ClusterState};

/// The gRPC service.
#[derive(Clone, Debug)]
pub struct RaftService {
    peers: Peers,
}

impl RaftService {
    pub(super) fn new(peers: Peers) -> Self {
        Self { peers }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.peers.0
    }

    fn store(&self) -> Result<&Store<ClusterState>, Status> {
        self.shared().store.get().ok_or_else(|| Status::unavailable("the controller is starting: try again"))
    }

    /// By its name, where that is known.
    fn named(&self, peer: PeerId) -> String {
        let state = self.shared().store.get().map(Store::read);
        let known = state.as_ref().and_then(|state| state.controllers.get(&peer));
        known.map_or_else(|| peer.to_string(), |known| known.name.to_string())
    }

    /// Whether this is the right caller at the right place, in the right words.
    fn admit(&self, hello: &wire::RaftHello) -> Result<PeerId, Status> {
        let me = &self.shared().me;
        let refuse = |why: String| Err(Status::failed_precondition(why));
        if !speaks(&me.protocols, hello.protocol, hello.oldest_protocol) {
            let who = format!("controller {}", self.named(PeerId(hello.from)));
            return refuse(misfit(&me.protocols, &who, &hello.release, hello.protocol, hello.oldest_protocol));
        }
        if hello.cluster != me.cluster {
            return refuse(format!("this controller is of cluster {}, not of {}", me.cluster, hello.cluster));
        }
        if hello.to != me.id.0 {
            return refuse(format!("this is controller {}, not {}", me.id, PeerId(hello.to)));
        }
        if hello.from == 0 || hello.from == hello.to {
            return Err(Status::invalid_argument(format!("{} is no other controller's id", PeerId(hello.from))));
        }
        Ok(PeerId(hello.from))
    }
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn messages(
        &self,
        request: Request<Streaming<wire::RaftMessages>>,
    ) -> Result<Response<wire::RaftMessagesAck>, Status> {
        let mut frames = request.into_inner();
        let first = tokio::time::timeout(ANSWER_WITHIN, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let hello = first.and_then(|frame| frame.hello);
        let hello = hello.ok_or_else(|| Status::invalid_argument("the stream must begin with a hello"))?;
        let peer = self.admit(&hello)?;
        let store = self.store()?;
        let book = &self.shared().book;
        book.announce(peer, Announced { address: hello.address, release: hello.release, protocol: hello.protocol });
        tracing::debug!(%peer, "a controller calls");
        let receive = async {
            while let Some(frame) = frames.message().await? {
                book.heard(peer);
                if !frame.whereabouts.is_empty() {
                    self.shared().hear(peer, frame.whereabouts);
                }
                for message in frame.messages {
                    store.step(&message).await?;
                }
            }
            Ok(Response::new(wire::RaftMessagesAck {}))
        };
        tokio::select! {
            ended = receive => ended,
            () = self.shared().stopping.cancelled() => Err(Status::unavailable("the controller is stopping")),
        }
    }

    async fn snapshot_progress(
        &self,
        request: Request<wire::SnapshotId>,
    ) -> Result<Response<wire::SnapshotProgressResponse>, Status> {
        let offset = self.shared().incoming.progress(request.get_ref())?;
        Ok(Response::new(wire::SnapshotProgressResponse { offset }))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotPart>>,
    ) -> Result<Response<wire::SnapshotAck>, Status> {
        let shared = self.shared();
        let Ok(_one) = shared.incoming.busy.try_lock() else {
            return Err(Status::aborted("another snapshot is being received: try again"));
        };
        let mut parts = request.into_inner();
        let mut part = parts.message().await?.ok_or_else(|| Status::invalid_argument("the stream is empty"))?;
        let id = part.id.take().ok_or_else(|| Status::invalid_argument("the stream must begin with an id"))?;
        let message = std::mem::take(&mut part.message);
        let mut partial = shared.incoming.open(&id)?;
        let mut next = Some(part);
        while let Some(part) = next {
            partial = append(partial, part.offset, part.data).await?;
            next = parts.message().await?;
        }
        if !partial.is_whole() {
            return Err(Status::aborted("the snapshot is not whole: go on from where it was cut off"));
        }
        let data = blocking(move || partial.finish()).await?;
        self.store()?.receive_snapshot(&message, data).await?;
        tracing::info!(index = id.index, bytes = id.length, "received a snapshot");
        Ok(Response::new(wire::SnapshotAck {}))
    }
}

async fn append(mut partial: Partial, offset: u64, data: Bytes) -> Result<Partial, Status> {
    blocking(move || partial.append(offset, &data).map(|()| partial)).await
}

/// Off the runtime's threads: it waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IncomingError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Status::internal(format!("receiving a snapshot broke: {error}")))?.map_err(Status::from)
}
