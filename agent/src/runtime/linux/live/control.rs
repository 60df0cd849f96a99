//! The agent's end of the socket to a `roster-shim live`.

use std::{
    io::{self, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream as StdStream,
    },
    sync::Arc,
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use tokio::{io::Interest, net::UnixStream};

use crate::runtime::linux::report::{LiveReport, Order};

/// Bytes of a report: an error message and little else.
const REPORT_LIMIT: usize = 256 * 1024;
/// The descriptors that come with a report.
const MOST: usize = 3;

/// Closed, it ends the program, unless that was detached from.
#[derive(Debug)]
pub(super) struct Control {
    socket: Arc<UnixStream>,
    read: Vec<u8>,
    received: Vec<OwnedFd>,
}

#[derive(Clone, Debug)]
pub(super) struct Signals(Arc<UnixStream>);

impl Control {
    pub(super) fn new(socket: StdStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Arc::new(UnixStream::from_std(socket)?), read: Vec::new(), received: Vec::new() })
    }

    pub(super) async fn order(&self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        write(&self.socket, &line).await
    }

    pub(super) fn signals(&self) -> Signals {
        Signals(self.socket.clone())
    }

    /// The descriptors that came since this was last asked.
    pub(super) fn received(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.received)
    }

    /// `None`: it has died. Safe to cancel.
    pub(super) async fn report(&mut self) -> io::Result<Option<LiveReport>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.read.len() > REPORT_LIMIT {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it says too much"));
            }
            self.socket.readable().await?;
            match self.socket.try_io(Interest::READABLE, || receive(&self.socket)) {
                Ok((bytes, _)) if bytes.is_empty() => return Ok(None),
                Ok((bytes, descriptors)) => {
                    self.read.extend(bytes);
                    self.received.extend(descriptors);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Signals {
    pub(super) async fn send(&self, signal: u8) -> io::Result<()> {
        write(&self.0, &[signal]).await
    }
}

async fn write(socket: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        socket.writable().await?;
        match socket.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn receive(socket: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 4096];
    let mut space = cmsg_space!([RawFd; MOST]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel just made them for us.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    let length = message.bytes;
    bytes.truncate(length);
    Ok((bytes, descriptors))
}
