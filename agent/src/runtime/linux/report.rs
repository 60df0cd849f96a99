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

/// For the task that could not start.
pub(crate) fn cause(error: StartError) -> Cause {
    match error {
        StartError::Step { step, error } => Cause::StartFailed { step, error },
        StartError::Impossible { what, reason } => Cause::Impossible { what, reason },
    }
}
