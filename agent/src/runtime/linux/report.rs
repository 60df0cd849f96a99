//! What a shim tells its agent, as one JSON document over the pipe that is its standard error.
//!
//! A shim that panics writes its panic to the same pipe, where it does not parse and is passed on as it is.

use roster_proto::cause::Cause;
use roster_runtime::error::StartError;
use serde::{Deserialize, Serialize};

use super::record::Running;

/// The answer of `roster-shim run`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartReport {
    Running(Running),
    Failed(StartError),
}

/// The answer of `roster-shim exec`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecReport {
    /// As a shell counts: 128 and the signal's number for a command that a signal ended.
    Exited(i32),
    TimedOut,
    Failed(StartError),
}

/// What `roster-shim live` is to run; the first line it is sent. Every byte after that is a signal for the program,
/// or [`DETACH`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub args: Vec<String>,
    /// NAME=VALUE, over the container's own.
    pub env: Vec<String>,
    pub user: Option<String>,
    pub working_dir: Option<String>,
    pub input: bool,
    /// Rows and columns.
    pub terminal: Option<(u16, u16)>,
    pub privileged: bool,
    /// With the host's programs in the place of the container's.
    pub tools: bool,
    /// What it writes, other than to its terminal, goes to /dev/null.
    pub detached: bool,
}

/// In the place of a signal: the program goes on when the socket is closed. kill(2) sends nothing by this number.
pub const DETACH: u8 = 0;

/// What `roster-shim live` says, one to a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LiveReport {
    /// With it come the other ends of the program's streams: its terminal's master; or those it writes to, then the
    /// one it reads from, if it reads.
    Running,
    /// As a shell counts.
    Exited(i32),
    Failed(StartError),
}

/// For the task that could not start.
pub fn cause(error: StartError) -> Cause {
    match error {
        StartError::Step { step, error } => Cause::StartFailed { step, error },
        StartError::Impossible { what, reason } => Cause::Impossible { what, reason },
        StartError::NotRun { what, reason, code } => Cause::NotRun { what, reason, code },
    }
}
