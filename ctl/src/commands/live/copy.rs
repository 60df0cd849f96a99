//! `cp`: files into a container and out of it.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{self, Path, PathBuf},
};

use bytes::{Buf, Bytes};
use roster_proto::{
    live::INPUT_WINDOW,
    wire::{self, live_client::LiveClient, live_input::Input, live_output::Output, live_work::Work},
};
use roster_tree::{Root, Target, TreeError, pack, pack::means_contents, unpack};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tonic::Streaming;

use super::session::{Call, grant, next, say};
use crate::{
    cli::{Cp, Place},
    client::Transport,
    commands::file,
    error::{Ending, Error},
};

/// Of an archive that is sent, and on its way to where it is unpacked.
const PIECE: u32 = 64 * 1024;
const PIECES: usize = 8;

pub(in crate::commands) async fn run(args: Cp, mut client: LiveClient<Transport>) -> Result<Ending, Error> {
    let Cp { follow_link: follow, failed, source, destination } = args;
    match (source, destination) {
        (Place::Inside { target, path }, Place::Inside { .. }) => Err(Error::Usage(format!(
            "one of the two must be here: copy {target}:{path} to a folder first, or pipe one `rctl cp` with - into \
             another"
        ))),
        (Place::Inside { target, path }, to) => {
            let contents = means_contents(Path::new(&path));
            let work = Work::CopyOut(wire::CopyOut { path, follow });
            let call = Call::open(&mut client, target, failed, work).await?;
            match to {
                Place::Here(to) => unpacked(call.replies, to, contents).await,
                _ => streamed(call.replies).await,
            }
        }
        (from, Place::Inside { target, path }) => {
            let (archive, contents) = match &from {
                Place::Here(from) => (false, means_contents(from)),
                _ => (true, false),
            };
            let work = Work::CopyIn(wire::CopyIn { path, archive, contents });
            // What is not here is told before anything happens there.
            let packed = match from {
                Place::Here(from) => Some(packed(&from, follow || contents)?),
                _ => None,
            };
            let call = Call::open(&mut client, target, failed, work).await?;
            sent(call, packed).await
        }
        _ => {
            Err(Error::Usage("neither of the two is in a container: write TARGET:PATH for the one that is".to_owned()))
        }
    }
}

fn done(exit: &wire::LiveExit) -> Ending {
    if !exit.message.is_empty() {
        anstream::eprintln!("{}", exit.message);
    }
    Ending::Done
}

fn told(error: TreeError) -> Error {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    Error::Refused(text)
}

fn broke(error: tokio::task::JoinError) -> Error {
    Error::io("the copying broke", io::Error::other(error))
}

/// To standard output.
async fn streamed(mut replies: Streaming<wire::LiveResponse>) -> Result<Ending, Error> {
    let mut stdout = tokio::io::stdout();
    loop {
        match next(&mut replies).await? {
            Output::Stdout(data) => {
                stdout.write_all(&data).await.map_err(|error| Error::io("cannot write the archive", error))?;
            }
            Output::Exit(exit) => {
                stdout.flush().await.map_err(|error| Error::io("cannot write the archive", error))?;
                return Ok(done(&exit));
            }
            Output::Stderr(_) | Output::Taken(_) | Output::Detached(_) => {}
        }
    }
}

/// Where it goes here. A container's files may be anything: no link is followed on the way.
fn place(to: &Path, contents: bool) -> Result<(Root, Target), Error> {
    let open = |dir: &Path| {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir).map_err(|error| Error::io(format!("cannot open {}", dir.display()), error))
    };
    if to.is_dir() {
        return Ok((Root::strict(open(to)?), Target::Copy { path: PathBuf::new(), contents }));
    }
    let to = &file::meant(to, "write - for an archive on standard output")?;
    let Some(name) = to.file_name() else {
        return Err(Error::Usage(format!("there is no directory {}", to.display())));
    };
    let parent = to.parent().unwrap_or(Path::new(""));
    // With its slash, which says that it is to be a directory.
    let mut path = name.to_owned();
    if to.as_os_str().as_encoded_bytes().ends_with(b"/") {
        path.push("/");
    }
    Ok((Root::strict(open(parent)?), Target::Copy { path: path.into(), contents }))
}

async fn unpacked(mut replies: Streaming<wire::LiveResponse>, to: PathBuf, contents: bool) -> Result<Ending, Error> {
    let (root, target) = place(&to, contents)?;
    let (pieces, archive) = mpsc::channel(PIECES);
    let archive = Receiver { pieces: archive, current: Bytes::new(), ended: false };
    let mut unpacking = tokio::task::spawn_blocking(move || unpack(&root, &target, archive));
    let mut received = Box::pin(async {
        loop {
            match next(&mut replies).await? {
                // When nobody takes it, the unpacking says why.
                Output::Stdout(data) => _ = pieces.send(Some(data)).await,
                Output::Exit(exit) => {
                    let _ = pieces.send(None).await;
                    return Ok::<_, Error>(exit);
                }
                Output::Stderr(_) | Output::Taken(_) | Output::Detached(_) => {}
            }
        }
    });
    tokio::select! {
        unpacked = &mut unpacking => match unpacked.map_err(broke)? {
            // Why it is not whole is the other end's to say.
            Err(error @ (TreeError::Archive(_) | TreeError::BrokenOff(_))) => {
                received.await?;
                Err(told(error))
            }
            Err(error) => Err(told(error)),
            Ok(()) => Err(Error::Refused("more came than the archive".to_owned())),
        },
        received = &mut received => {
            let exit = received?;
            unpacking.await.map_err(broke)?.map_err(told)?;
            Ok(done(&exit))
        }
    }
}

type Packed = (mpsc::Receiver<Bytes>, JoinHandle<Result<(), TreeError>>);

/// The archive of what is here, as it is made.
fn packed(from: &Path, follow: bool) -> Result<Packed, Error> {
    let cannot = |error| Error::io(format!("cannot copy {}", from.display()), error);
    from.symlink_metadata().map_err(cannot)?;
    let whole = Root::whole(File::open("/").map_err(cannot)?);
    let absolute = path::absolute(from).map_err(cannot)?;
    let (pieces, archive) = mpsc::channel(PIECES);
    let packing = tokio::task::spawn_blocking(move || {
        let left_out = pack(&whole, &absolute, follow, BufWriter::with_capacity(PIECE as usize, Sender(pieces)))?;
        if let Some(words) = left_out.words() {
            anstream::eprintln!("{words}");
        }
        Ok(())
    });
    Ok((archive, packing))
}

/// The archive, or standard input, as far as there is room for it.
async fn sent(mut call: Call, mut packed: Option<Packed>) -> Result<Ending, Error> {
    let credit = Semaphore::new(INPUT_WINDOW as usize);
    let requests = call.requests;
    let sending = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; PIECE as usize];
        loop {
            let data = match &mut packed {
                Some((archive, _)) => archive.recv().await.unwrap_or_default(),
                None => {
                    let read = stdin.read(&mut buffer).await;
                    let read = read.map_err(|error| Error::io("cannot read standard input", error))?;
                    Bytes::copy_from_slice(&buffer[..read])
                }
            };
            if data.is_empty() {
                break;
            }
            let Ok(room) = credit.acquire_many(u32::try_from(data.len()).unwrap_or(PIECE)).await else { break };
            room.forget();
            if !say(&requests, Input::Data(data)).await {
                break;
            }
        }
        if let Some((_, packing)) = &mut packed {
            // Half an archive must not look like a whole one.
            packing.await.map_err(broke)?.map_err(told)?;
        }
        say(&requests, Input::End(wire::LiveEnd {})).await;
        std::future::pending::<Result<std::convert::Infallible, Error>>().await
    };
    let answered = async {
        loop {
            match next(&mut call.replies).await? {
                Output::Taken(taken) => grant(&credit, &taken),
                Output::Exit(exit) => return Ok(done(&exit)),
                Output::Stdout(_) | Output::Stderr(_) | Output::Detached(_) => {}
            }
        }
    };
    tokio::select! {
        answered = answered => answered,
        failed = sending => match failed? {},
    }
}

/// From a thread that may block.
struct Sender(mpsc::Sender<Bytes>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE as usize)];
        let sent = self.0.blocking_send(Bytes::copy_from_slice(piece));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// On a thread that may block; `None` is the end.
struct Receiver {
    pieces: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Some(data)) => self.current = data,
                Some(None) => self.ended = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let length = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
