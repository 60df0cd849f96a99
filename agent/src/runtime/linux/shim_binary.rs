//! The agent's side of the shim: starting it and reading what it reports.
//!
//! The program is executed through a detached read-only mount of its own: whatever a container manages to reach
//! through `/proc/PID/exe`, it cannot write to the host's file.

use std::{
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use roster_runtime::sys;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    containers::failed,
    readiness,
    record::Running,
    report::{ExecReport, StartReport, cause},
    shim::Call,
};
use crate::runtime::{Probed, RuntimeError};

/// A shim that has not made its container by then is stuck, on a network file system for instance.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// What a command run in a container may say: its last bytes are kept.
const OUTPUT_LIMIT: usize = 4096;
/// How long a command's shim may take beyond the command's own timeout.
const EXEC_GRACE: Duration = Duration::from_secs(30);
/// Bytes of a report: an error message and little else.
const REPORT_LIMIT: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct ShimBinary {
    mount: OwnedFd,
}

impl ShimBinary {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mount = sys::clone_mount(path, false)?;
        sys::set_mount_attributes(&mount, sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NODEV, 0, false)?;
        Ok(Self { mount })
    }

    fn command(&self, call: &Call) -> Command {
        // The descriptor is closed by exec, after the kernel has found the program through it.
        let mut command = Command::new(format!("/proc/self/fd/{}", self.mount.as_raw_fd()));
        command.arg0("roster-shim").args(call.to_args()).env_clear().stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Returns once the container runs. Must be called on a thread that may block, of a tokio runtime.
    pub(super) fn run(&self, call: &Call) -> Result<Running, RuntimeError> {
        let mut shim = self
            .command(call)
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| failed("start the shim".to_owned(), error))?;
        let text = read_report(&mut shim).map_err(|error| failed("read the shim's report".to_owned(), error));
        let failure = match text.map(|text| serde_json::from_slice(&text).map_err(|_| text)) {
            Ok(Ok(StartReport::Running(running))) => {
                reap_later(shim)?;
                return Ok(running);
            }
            Ok(Ok(StartReport::Failed(error))) => RuntimeError { cause: cause(error), transient: false },
            Ok(Err(text)) => failed("run the shim".to_owned(), died(&text)),
            Err(error) => error,
        };
        // Killing a shim that has ended already does nothing.
        let ended = shim.kill().and_then(|()| shim.wait());
        ended.map_err(|error| failed("end the shim".to_owned(), error))?;
        Err(failure)
    }

    /// For one program in a container, which ends when the socket is closed, unless it was
    /// detached from. Must be called within a runtime.
    pub(super) fn live(&self, call: &Call) -> Result<LiveShim, RuntimeError> {
        let step = |error: io::Error| failed("start a shim".to_owned(), error);
        let (socket, theirs) = UnixStream::pair().map_err(step)?;
        let mut command = self.command(call);
        // What it says there can only be that it panicked.
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
        reap_later(command.spawn().map_err(step)?)?;
        Ok(LiveShim { socket })
    }

    /// Runs a command in a container; the shim itself kills it at the timeout.
    pub(super) async fn exec(&self, call: &Call, timeout: Duration) -> Result<Probed, RuntimeError> {
        let mut command = self.command(call);
        command.stdout(Stdio::piped());
        let step = |error: io::Error| failed("run a command in the container".to_owned(), error);
        let mut shim = tokio::process::Command::from(command).kill_on_drop(true).spawn().map_err(step)?;
        let mut output = Tail::default();
        let (stdout, stderr) = (shim.stdout.take(), shim.stderr.take());
        let mut report = Vec::new();
        let all = async {
            let copy_output = async {
                match stdout {
                    Some(stdout) => output.fill(stdout).await,
                    None => Ok(()),
                }
            };
            let read_report = async {
                match stderr {
                    Some(stderr) => stderr.take(REPORT_LIMIT as u64).read_to_end(&mut report).await.map(drop),
                    None => Ok(()),
                }
            };
            let (said, told) = tokio::join!(copy_output, read_report);
            said.and(told)?;
            shim.wait().await
        };
        match tokio::time::timeout(timeout + EXEC_GRACE, all).await {
            Ok(ended) => ended.map(drop).map_err(step)?,
            Err(_) => return Err(step(io::Error::new(io::ErrorKind::TimedOut, "its shim does not end"))),
        }
        let output = output.text();
        match serde_json::from_slice(&report) {
            Ok(ExecReport::Exited(code)) => Ok(Probed { code: Some(code), output }),
            Ok(ExecReport::TimedOut) => Ok(Probed { code: None, output }),
            Ok(ExecReport::Failed(error)) => Err(RuntimeError { cause: cause(error), transient: false }),
            Err(_) => Err(failed("run a command in the container".to_owned(), died(&report))),
        }
    }
}

/// A `roster-shim live`, by the socket that it lives for.
#[derive(Debug)]
pub(super) struct LiveShim {
    pub(super) socket: UnixStream,
}

/// All that the shim writes until it closes the pipe, within the deadline.
fn read_report(shim: &mut Child) -> io::Result<Vec<u8>> {
    let Some(mut pipe) = shim.stderr.take() else { return Ok(Vec::new()) };
    let deadline = Instant::now() + START_DEADLINE;
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        if !sys::wait_readable(&pipe, deadline.saturating_duration_since(Instant::now()))? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("none in {START_DEADLINE:?}")));
        }
        match pipe.read(&mut buffer)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&buffer[..length]),
        }
        if text.len() > REPORT_LIMIT {
            return Ok(text);
        }
    }
}

fn died(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    if text.trim().is_empty() { "it died without a word".to_owned() } else { text.trim().to_owned() }
}

/// So that no zombie stays. A shim outlives this agent: then the host's process 1 reaps it.
fn reap_later(mut shim: Child) -> Result<(), RuntimeError> {
    let pidfd = sys::pidfd_open(shim.id()).map_err(|error| failed("watch the shim".to_owned(), error))?;
    tokio::runtime::Handle::current().spawn(async move {
        if let Err(error) = readiness::process_end(pidfd).await.and_then(|()| shim.wait()) {
            tracing::warn!(pid = shim.id(), %error, "cannot reap a shim");
        }
    });
    Ok(())
}

/// The last [`OUTPUT_LIMIT`] bytes of a stream.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    async fn fill(&mut self, mut from: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            self.0.extend_from_slice(&buffer[..length]);
            let excess = self.0.len().saturating_sub(OUTPUT_LIMIT);
            self.0.drain(..excess);
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}
