//! Watching a container's own program, by its shim.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSliceMut},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, connect, recvmsg, socket},
};
use roster_proto::{
    id::TaskId,
    wire::{self, live_output::Output},
};

use super::{Feeding, LiveError, LiveInput, LiveOutput, Recipient, cannot, cells, said, stream::Stream};
use crate::runtime::{
    Ended, Exit, Phase,
    linux::{
        containers::Containers,
        shim::attach::{END, Last, STDERR, STDOUT, TERMINAL, address_in},
    },
};

/// Larger than any packet of a shim's.
const PACKET: usize = 64 * 1024;

pub(in crate::runtime::linux) async fn attach(
    containers: Arc<Containers>,
    task: &TaskId,
    bundle: &Path,
    wanted: wire::Attach,
    input: LiveInput,
    output: LiveOutput,
) -> Result<(), LiveError> {
    let shim = connected(bundle)?;
    let (tag, reads) = greeting(&shim).await.map_err(cannot("hear from the shim"))?;
    let reads = reads.map(Stream::new).transpose().map_err(cannot("use the container's input"))?.map(Arc::new);
    let terminal = reads.clone().filter(|_| tag == TERMINAL);
    if let (Some(terminal), Some(size)) = (&terminal, &wanted.terminal) {
        // Twice, so that it changes and a program that fills the screen draws it anew.
        let (rows, columns) = cells(size);
        let resized = terminal.resize(rows, columns.saturating_sub(1)).and_then(|()| terminal.resize(rows, columns));
        resized.map_err(cannot("resize the terminal"))?;
    }
    let feeding = Feeding {
        sink: reads.filter(|_| wanted.input),
        terminal,
        recipient: Recipient::Container(containers.clone(), task.clone()),
        // The program goes on when its watchers leave, and may have others.
        ends: false,
        may_detach: true,
        waiting: VecDeque::new(),
        queued: 0,
        taken: 0,
        closed: false,
    };
    let shown = async {
        let mut packet = vec![0; PACKET];
        loop {
            let length = shim.read(&mut packet).await.map_err(cannot("hear from the shim"))?;
            let (tag, bytes) = match packet[..length].split_first() {
                Some((tag, bytes)) => (*tag, Bytes::copy_from_slice(bytes)),
                None => return Ok::<_, LiveError>(None),
            };
            let said = match tag {
                STDOUT => said(Output::Stdout(bytes)),
                STDERR => said(Output::Stderr(bytes)),
                END => return Ok(Some(serde_json::from_slice::<Last>(&bytes).map_err(|_| LiveError::ShimDied)?)),
                _ => return Err(LiveError::ShimDied),
            };
            if output.send(said).await.is_err() {
                // Nobody is left to tell.
                return std::future::pending().await;
            }
        }
    };
    let last = tokio::select! {
        shown = shown => shown?,
        detached = feeding.feed(input, &output) => {
            detached?;
            return super::detached(&output).await;
        }
    };
    // The shim ends the conversation when the end is on record; what is on record may be gone by now.
    let last = match (last, containers.phase(task)) {
        (Some(last), _) => last,
        (None, Ok(Phase::Ended(ended))) => Last { ended, words: String::new() },
        (None, _) => return Err(LiveError::TooSlow),
    };
    let mut exit = exit(&last.ended);
    if !last.words.is_empty() {
        exit.message = last.words;
    }
    // Nobody is left to tell when this fails.
    let _ = output.send(said(Output::Exit(exit))).await;
    Ok(())
}

fn exit(ended: &Ended) -> wire::LiveExit {
    let (code, message) = match ended.how {
        Exit::Code(code) => (code, String::new()),
        Exit::Signal(signal) => (signal.saturating_add(128), String::new()),
        Exit::OutOfMemory { .. } => (137, "it was killed: out of memory".to_owned()),
        Exit::ShimLost => (137, "it was killed: its shim died".to_owned()),
        Exit::Severed => (137, "the container whose namespaces it shares ended".to_owned()),
        Exit::Unattended => (137, "nobody had attached to it in time".to_owned()),
        Exit::LeaseLost => (137, "it was ended: its node lost touch with the cluster".to_owned()),
    };
    wire::LiveExit { code: code.unsigned_abs(), message }
}

fn connected(bundle: &Path) -> Result<Stream, LiveError> {
    let doing = || cannot("connect to the container's shim");
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket =
        socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(|error| doing()(error.into()))?;
    let folder = File::open(bundle).map_err(doing())?;
    match connect(socket.as_raw_fd(), &address_in(&folder).map_err(doing())?) {
        Ok(()) => Stream::new(socket).map_err(doing()),
        Err(Errno::ENOENT) => Err(LiveError::CannotAttach),
        Err(error) => Err(doing()(error.into())),
    }
}

async fn greeting(shim: &Stream) -> io::Result<(u8, Option<OwnedFd>)> {
    shim.read_with(|fd| {
        let (mut tag, mut space) = ([0], cmsg_space!(RawFd));
        let mut parts = [IoSliceMut::new(&mut tag)];
        let message = recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let length = message.bytes;
        let mut received = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // SAFETY: the kernel just made it for us; there is room for one.
                received = numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).next();
            }
        }
        match length {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            _ => Ok((tag[0], received)),
        }
    })
    .await
}
