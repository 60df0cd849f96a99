//! The whole state as of one version, while everything goes on. A caller who does without all that was acknowledged gets
//! what this controller has: where no majority is left, that is what can be saved.

use roster_proto::wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{ClusterApi, Reply, ReplyStream};
use crate::{api::read, local::write_backup};

const PIECE_BYTES: usize = 256 << 10;
/// Pieces waiting for a caller to read them.
const PIECES_AHEAD: usize = 4;

impl ClusterApi {
    pub(super) async fn back_up(&self, request: Request<wire::BackupRequest>) -> Reply<ReplyStream<wire::Piece>> {
        let (state, now) = (read(&self.cluster, &request).await?, self.cluster.now());
        let encoded = tokio::task::spawn_blocking(move || write_backup(&state, now)).await;
        let mut rest = encoded.map_err(|error| Status::internal(format!("the backup broke: {error}")))?;
        let (pieces, stream) = mpsc::channel(PIECES_AHEAD);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            while !rest.is_empty() {
                let data = rest.split_to(rest.len().min(PIECE_BYTES));
                let piece = if shutdown.is_cancelled() {
                    Err(Status::unavailable("the controller is stopping: try again"))
                } else {
                    Ok(wire::Piece { data })
                };
                let over = piece.is_err();
                if pieces.send(piece).await.is_err() || over {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
