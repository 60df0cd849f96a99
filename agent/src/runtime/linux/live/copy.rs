//! Files into a container and out of it, as tar archives.
//!
//! The tree is read and made by the agent, from outside: the container needs no tar, and its processes, which may change
//! the tree meanwhile, can mislead it to nothing but other files of the same container ([`roster_tree::Root`]).

use std::{
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use bytes::{Buf, Bytes};
use futures::StreamExt;
use roster_proto::{
    live::INPUT_WINDOW,
    wire::{self, live_input::Input, live_output::Output},
};
use roster_tree::{LeftOut, Root, Target, TreeError, pack, unpack};
use tokio::sync::mpsc;

use super::{LiveError, LiveInput, LiveOutput, said};

/// Of an archive that is sent.
const PIECE: usize = 64 * 1024;

pub(in crate::runtime::linux) async fn copy_out(
    root: Root,
    wanted: wire::CopyOut,
    output: LiveOutput,
) -> Result<(), LiveError> {
    let archive = BufWriter::with_capacity(PIECE, Sender(output.clone()));
    let left_out = blocking(move || pack(&root, Path::new(&wanted.path), wanted.follow, archive)).await?;
    end(left_out, &output).await
}

pub(in crate::runtime::linux) async fn copy_in(
    root: Root,
    wanted: wire::CopyIn,
    mut input: LiveInput,
    output: LiveOutput,
) -> Result<(), LiveError> {
    // As many pieces as there are; their bytes are bounded by the caller's credit.
    let (pieces, archive) = mpsc::channel(1024);
    let archive = Receiver { pieces: archive, current: Bytes::new(), ended: false, taken: 0, output: output.clone() };
    let path = PathBuf::from(wanted.path);
    let target = match wanted.archive {
        true => Target::Within(path),
        false => Target::Copy { path, contents: wanted.contents },
    };
    let unpacked = blocking(move || unpack(&root, &target, archive));
    let fed = async {
        loop {
            match input.next().await {
                Some(Ok(Input::Data(data))) => _ = pieces.send(Piece::Data(data)).await,
                Some(Ok(Input::End(_))) => _ = pieces.send(Piece::End).await,
                Some(Ok(Input::Resize(_) | Input::Signal(_) | Input::Detach(_))) => {}
                Some(Err(why)) => return LiveError::BrokenOff(why),
                None => return LiveError::BrokenOff("it said nothing more".to_owned()),
            }
        }
    };
    tokio::select! {
        unpacked = unpacked => unpacked?,
        broken = fed => return Err(broken),
    }
    end(LeftOut::default(), &output).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TreeError> + Send + 'static,
) -> Result<T, LiveError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(LiveError::Io { doing: "run on a blocking thread", source: io::Error::other(error) }),
    }
}

async fn end(left_out: LeftOut, output: &LiveOutput) -> Result<(), LiveError> {
    let exit = wire::LiveExit { code: 0, message: left_out.words().unwrap_or_default() };
    // Nobody is left to tell when this fails.
    let _ = output.send(said(Output::Exit(exit))).await;
    Ok(())
}

/// To the caller, at the pace at which that reads. On a thread that may block.
struct Sender(LiveOutput);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        let sent = self.0.blocking_send(said(Output::Stdout(Bytes::copy_from_slice(piece))));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Piece {
    Data(Bytes),
    End,
}

/// From the caller, who is told what was taken. On a thread that may block.
struct Receiver {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
    /// Not told yet.
    taken: u64,
    output: LiveOutput,
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                // The caller broke off: half an archive must not look like a whole one.
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let length = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        self.taken += length as u64;
        if self.taken >= INPUT_WINDOW / 4 {
            let taken = wire::LiveTaken { bytes: std::mem::take(&mut self.taken), closed: false };
            let sent = self.output.blocking_send(said(Output::Taken(taken)));
            sent.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        }
        Ok(length)
    }
}
