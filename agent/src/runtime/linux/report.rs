//! What a shim tells its agent, as one JSON document over the pipe that is its standard error.
//!
//! A shim that panics writes its panic to the same pipe, where it does not parse and is passed on as it is.

use std::io;

use roster_proto::cause::Cause;
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

/// Why a process could not be started in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum StartError {
    #[error("{step}: {error}")]
    Step { step: String, error: String },
    /// Trying again cannot help.
    #[error("{what}: {reason}")]
    Impossible { what: String, reason: String },
}

impl StartError {
    pub fn impossible(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Impossible { what: what.into(), reason: reason.into() }
    }
}

impl From<StartError> for Cause {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Step { step, error } => Cause::StartFailed { step, error },
            StartError::Impossible { what, reason } => Cause::Impossible { what, reason },
        }
    }
}

/// Names the step that a system call belonged to.
pub(crate) trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StartError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StartError> {
        self.map_err(|error| StartError::Step { step: step(), error: error.into().to_string() })
    }
}
