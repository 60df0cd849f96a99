//! Carries bytes from async code to a blocking reader, with bounded memory.
//!
//! A sender that goes away without saying that it was the end is an error for the reader: half an archive must not
//! look like a whole one.

use std::{
    io::{self, Read},
    pin::pin,
};

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;

use super::error::ImageError;

/// Chunks under way; each is as large as its source makes it, 64 KiB for an upload.
const CHUNKS: usize = 4;

enum Piece {
    Bytes(Bytes),
    Failed(ImageError),
    End,
}

#[derive(Debug)]
pub(super) struct PipeWriter(mpsc::Sender<Piece>);

#[derive(Debug)]
pub(super) struct PipeReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

pub(super) fn pipe() -> (PipeWriter, PipeReader) {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    (PipeWriter(sender), PipeReader { pieces: receiver, current: Bytes::new(), ended: false })
}

impl PipeWriter {
    /// Sends a whole stream; returns early when the reader has gone, for whatever reason: it will tell.
    pub(super) async fn send(self, stream: impl Stream<Item = Result<Bytes, ImageError>>) {
        let mut stream = pin!(stream);
        loop {
            let next = tokio::select! {
                next = stream.next() => next,
                () = self.0.closed() => return,
            };
            let (piece, last) = match next {
                Some(Ok(bytes)) => (Piece::Bytes(bytes), false),
                Some(Err(error)) => (Piece::Failed(error), true),
                None => (Piece::End, true),
            };
            if self.0.send(piece).await.is_err() || last {
                return;
            }
        }
    }
}

impl Read for PipeReader {
    /// Blocks: not for async code.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(error)) => return Err(error.into()),
                None => return Err(ImageError::Interrupted { source: None }.into()),
            }
        }
        let n = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}
