//! Why a container could not be made or a process not started in it.

use std::io;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum StartError {
    #[error("{step}: {error}")]
    Step { step: String, error: String },
    /// Trying again cannot help.
    #[error("{what}: {reason}")]
    Impossible { what: String, reason: String },
    /// So is this: there is no such program, or it is none that can be run. The code is a shell's for it.
    #[error("{what}: {reason}")]
    NotRun { what: String, reason: String, code: i32 },
}

/// There is no such program.
pub const NOT_FOUND: i32 = 127;
/// There is, and it cannot be run.
pub const NOT_EXECUTABLE: i32 = 126;

impl StartError {
    pub fn impossible(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Impossible { what: what.into(), reason: reason.into() }
    }
}

/// Names the step that a system call belonged to.
pub trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StartError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StartError> {
        self.map_err(|error| StartError::Step { step: step(), error: error.into().to_string() })
    }
}
