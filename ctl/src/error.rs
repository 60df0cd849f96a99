//! How a command can fail, and with which exit code.

use std::io;

use roster_proto::convert::ConvertError;

use crate::compose;

/// A failure is printed once, by `main`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Spec(#[from] compose::Problems),
    #[error(
        "cannot reach a controller at {endpoint}: {reason}\n\
         Start one (`systemctl start roster-controller`, or `deploy/quickstart` in a checkout), or name a cluster with \
         --context or --endpoint."
    )]
    Unreachable { endpoint: String, reason: String },
    #[error("cannot reach any controller:\n  {}", .0.join("\n  "))]
    NoneReachable(Vec<String>),
    #[error("the controller at {endpoint} listens to root only: use sudo")]
    NotRoot { endpoint: String },
    #[error("{0}")]
    Refused(String),
    #[error("it broke off, and what it ran in the container has ended with it: {0}")]
    BrokenOff(String),
    /// The controller said that what was asked for does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The cluster changed between the plan and the apply.
    #[error("{0}")]
    Stale(String),
    #[error(
        "the controller's answer makes no sense to this rctl ({0}); are both of the same version? See `rctl version`"
    )]
    Answer(#[from] ConvertError),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{0}")]
    Usage(String),
    /// Applied, but not as wanted in time; the text says which tasks and why.
    #[error("{0}")]
    NotConverged(String),
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Done,
    /// `plan` found something to do.
    Changes,
    /// Ctrl-C stopped the watching, not the work.
    Detached,
    /// As the program in the container did.
    Program(u8),
}

impl Error {
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::NotConverged(_) => 3,
            _ => 1,
        }
    }

    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Error::Io { what: what.into(), source }
    }
}

impl Ending {
    pub fn exit_code(self) -> u8 {
        match self {
            Ending::Done => 0,
            Ending::Changes => 2,
            Ending::Detached => 130,
            Ending::Program(code) => code,
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            tonic::Code::NotFound => Error::NotFound(message),
            tonic::Code::Aborted => Error::Stale(message),
            tonic::Code::Unavailable => Error::Refused(format!("not available now: {message}; try again")),
            _ if message.is_empty() => Error::Refused(format!("the controller refused: {}", status.code())),
            _ => Error::Refused(message),
        }
    }
}
