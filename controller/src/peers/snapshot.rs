//! Sends a snapshot: in pieces, by a connection of its own, from where the peer has it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use protobuf::Message as _;
use roster_proto::{
    id::PeerId,
    wire::{self, raft_client::RaftClient},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{ANSWER_WITHIN, Shared, Unreachable};
use crate::{
    raft::{EncodedMachine, Message},
    status::chain,
};

const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait for the network.
const PIECES_AHEAD: usize = 2;
/// A peer that takes no piece for so long is given up.
const STALLED: Duration = Duration::from_secs(10);
/// To check it, decode it and put it on the disk.
const INSTALLED_WITHIN: Duration = Duration::from_secs(120);
/// Attempts, each from where the one before was cut off, before raft is told that it failed.
const ATTEMPTS: usize = 20;
const BETWEEN: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error("{}", .0.message())]
    Refused(#[from] Status),
    #[error("it takes nothing any more")]
    Stalled,
}

/// Sends it until it is there or hopeless, and tells raft which.
pub(super) async fn send(shared: Arc<Shared>, message: Message, machine: Arc<EncodedMachine>) {
    let peer = PeerId(message.to);
    let stopping = shared.stopping.clone();
    let ok = stopping.run_until_cancelled(attempts(&shared, &message, machine)).await.unwrap_or(false);
    if let Some(store) = shared.store.get() {
        store.report_snapshot(peer, ok).await;
    }
}

async fn attempts(shared: &Shared, message: &Message, machine: Arc<EncodedMachine>) -> bool {
    let peer = PeerId(message.to);
    let encoded = tokio::task::spawn_blocking(move || {
        let bytes = machine.bytes();
        let crc = crc32fast::hash(&bytes);
        (bytes, crc)
    });
    let Ok((bytes, crc)) = encoded.await else { return false };
    let metadata = message.get_snapshot().get_metadata();
    let id = wire::SnapshotId {
        from: shared.me.id.0,
        index: metadata.index,
        term: metadata.term,
        length: bytes.len() as u64,
        crc,
    };
    for _ in 0..ATTEMPTS {
        match attempt(shared, peer, message, &id, &bytes).await {
            Ok(()) => {
                tracing::info!(%peer, index = id.index, bytes = id.length, "sent a snapshot");
                return true;
            }
            Err(error) => tracing::warn!(%peer, error = chain(&error), "a snapshot could not be sent to its end"),
        }
        if !shared.store.get().is_some_and(|store| store.leadership().borrow().is_self) {
            return false;
        }
        tokio::time::sleep(BETWEEN).await;
    }
    false
}

async fn attempt(
    shared: &Shared,
    peer: PeerId,
    message: &Message,
    id: &wire::SnapshotId,
    bytes: &Bytes,
) -> Result<(), SendError> {
    let mut client = RaftClient::new(shared.dial_any(peer).await?);
    let mut request = tonic::Request::new(*id);
    request.set_timeout(ANSWER_WITHIN);
    let from = client.snapshot_progress(request).await?.into_inner().offset.min(id.length);
    if from > 0 {
        tracing::info!(%peer, index = id.index, from, of = id.length, "a snapshot goes on from where it was cut off");
    }
    let (pieces, body) = mpsc::channel(PIECES_AHEAD);
    let message = message.write_to_bytes().expect("raft's messages have no required fields");
    let feed = async {
        let mut piece = wire::SnapshotPart { id: Some(*id), message: message.into(), offset: from, data: Bytes::new() };
        loop {
            let begin = usize::try_from(piece.offset).expect("within bytes that are in memory");
            let end = bytes.len().min(begin + PIECE_BYTES);
            piece.data = bytes.slice(begin..end);
            match pieces.send_timeout(piece, STALLED).await {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(SendError::Stalled),
                // The call has ended, and says why.
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return Ok(()),
            }
            if end == bytes.len() {
                drop(pieces);
                return Ok(());
            }
            piece = wire::SnapshotPart { offset: end as u64, ..wire::SnapshotPart::default() };
        }
    };
    let call = async {
        let mut request = tonic::Request::new(ReceiverStream::new(body));
        request.set_timeout(INSTALLED_WITHIN);
        Ok(client.snapshot(request).await.map(drop)?)
    };
    tokio::try_join!(feed, call).map(drop)
}
