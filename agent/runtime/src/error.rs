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
}

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
