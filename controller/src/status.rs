//! The one place that turns typed errors into gRPC statuses. The codes mean what `control.proto` says.

use std::collections::BTreeSet;

use roster_proto::{call, convert::ConvertError, id::InvalidId, wire};
use roster_tls::EnrollError;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    api::{filter::FilterError, live::TargetError, validate::InvalidSpec},
    cluster::ChangeError,
    dispatch::broker::AskError,
    local::{FoundError, LocalError},
    peers::IncomingError,
    raft::{MembersError, ProposeError, ReadError, StepError},
    state::command::Refusal,
};

impl From<ChangeError> for Status {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Refused(refusal) => refusal.into(),
            ChangeError::Propose(error) => error.into(),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::Stale { .. } => Code::Aborted,
            Refusal::NoSuchStack(_) | Refusal::NoSuchService(_) | Refusal::NoSuchNode(_) => Code::NotFound,
            Refusal::NoSuchLabel { .. } | Refusal::NoSuchTask(_) => Code::NotFound,
            Refusal::NoSuchController(_) | Refusal::NoSuchToken(_) | Refusal::NoSuchUser(_) => Code::NotFound,
            Refusal::GlobalService(_)
            | Refusal::Singleton(..)
            | Refusal::BeingRemoved(_)
            | Refusal::OneOff(_)
            | Refusal::Replaced { .. }
            | Refusal::PausedSingleton(_)
            | Refusal::PortTaken { .. }
            | Refusal::NodeBusy { .. }
            | Refusal::NotFenced { .. }
            | Refusal::AlreadyInitialised(_)
            | Refusal::NotInitialised
            | Refusal::LastVoter => Code::FailedPrecondition,
            Refusal::ControllerExists { .. }
            | Refusal::TokenExists(_)
            | Refusal::NameTaken(_)
            | Refusal::ServiceExists(_) => Code::AlreadyExists,
            Refusal::InvalidLabel { .. } | Refusal::OutOfRange { .. } | Refusal::NoAuthority => Code::InvalidArgument,
            Refusal::UnknownToken | Refusal::TokenExpired { .. } | Refusal::TokenUsedUp(_) | Refusal::Removed(_) => {
                Code::Unauthenticated
            }
            Refusal::NoFreePort { .. } | Refusal::Limit(_) => Code::ResourceExhausted,
        };
        Status::new(code, refusal.to_string())
    }
}

impl From<ProposeError> for Status {
    fn from(error: ProposeError) -> Self {
        let words = chain(&error);
        match error {
            ProposeError::TooLarge { .. } => Status::resource_exhausted(words),
            ProposeError::NotLeader { .. } => retry_safe(words),
            ProposeError::LeadershipLost { .. } | ProposeError::ShuttingDown | ProposeError::Failed(_) => {
                retry_same_id(words)
            }
        }
    }
}

/// UNAVAILABLE; nothing was done.
pub fn retry_safe(words: impl Into<String>) -> Status {
    unavailable(words, call::RETRY_SAFE)
}

/// UNAVAILABLE; it may have been done, and under the same request id it is done once.
pub fn retry_same_id(words: impl Into<String>) -> Status {
    unavailable(words, call::RETRY_SAME_ID)
}

/// FAILED_PRECONDITION, for what this controller is; another one may do it.
pub fn retry_elsewhere(words: impl Into<String>) -> Status {
    let mut status = Status::failed_precondition(words);
    status.metadata_mut().insert(call::RETRY, MetadataValue::from_static(call::RETRY_ELSEWHERE));
    status
}

fn unavailable(words: impl Into<String>, retry: &'static str) -> Status {
    let mut status = Status::unavailable(words);
    status.metadata_mut().insert(call::RETRY, MetadataValue::from_static(retry));
    status
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Self {
        retry_safe(chain(&error))
    }
}

impl From<MembersError> for Status {
    fn from(error: MembersError) -> Self {
        let words = chain(&error);
        match error {
            MembersError::NotLeader { .. } => retry_safe(words),
            MembersError::Lost { .. }
            | MembersError::NotTaken { .. }
            | MembersError::ShuttingDown
            | MembersError::Failed(_) => retry_same_id(words),
            MembersError::UnderWay => Status::aborted(words),
            MembersError::Unknown { .. } => Status::not_found(words),
            MembersError::Twice { .. } => Status::invalid_argument(words),
            MembersError::AlreadySo { .. }
            | MembersError::NotCaughtUp { .. }
            | MembersError::LosesQuorum { .. }
            | MembersError::Unreachable { .. } => Status::failed_precondition(words),
        }
    }
}

impl From<StepError> for Status {
    fn from(error: StepError) -> Self {
        let code = match error {
            StepError::Malformed(_) => Code::InvalidArgument,
            StepError::NotForUs { .. } | StepError::Undecodable(_) => Code::FailedPrecondition,
            StepError::Ended => Code::Unavailable,
        };
        Status::new(code, chain(&error))
    }
}

impl From<IncomingError> for Status {
    fn from(error: IncomingError) -> Self {
        let code = match error {
            IncomingError::File { .. } => Code::Unavailable,
            IncomingError::TooLarge { .. } | IncomingError::TooMuch { .. } => Code::ResourceExhausted,
            IncomingError::Gap { .. } => Code::Aborted,
            IncomingError::Damaged => Code::DataLoss,
        };
        Status::new(code, chain(&error))
    }
}

impl From<LocalError> for Status {
    fn from(error: LocalError) -> Self {
        let code = match &error {
            LocalError::Change(_) | LocalError::Found(FoundError::Change(_)) => Code::Unknown,
            LocalError::Enroll(EnrollError::Refused(status)) => status.code(),
            LocalError::Name(_)
            | LocalError::HostName(_)
            | LocalError::NoAddress
            | LocalError::BadAddress(_)
            | LocalError::OtherAddress { .. }
            | LocalError::Token(_)
            | LocalError::AgentToken
            | LocalError::Backup(_)
            | LocalError::OtherLost(_) => Code::InvalidArgument,
            LocalError::Member { .. }
            | LocalError::NotBlank { .. }
            | LocalError::NoMember
            | LocalError::NoPeer
            | LocalError::LastVoter
            | LocalError::HasLeader(_) => Code::FailedPrecondition,
            LocalError::Busy | LocalError::Enroll(_) | LocalError::NotTold(_) | LocalError::Stream(_) => {
                Code::Unavailable
            }
            LocalError::TooLarge(_) => Code::ResourceExhausted,
            LocalError::Found(_)
            | LocalError::Home(_)
            | LocalError::Open(_)
            | LocalError::Store(_)
            | LocalError::Broke(_) => Code::Internal,
        };
        match error {
            LocalError::Change(error) | LocalError::Found(FoundError::Change(error)) => error.into(),
            error => Status::new(code, chain(&error)),
        }
    }
}

/// For `map_err`: both types belong to other crates.
pub fn malformed(error: ConvertError) -> Status {
    Status::invalid_argument(error.to_string())
}

pub fn invalid_id(error: InvalidId) -> Status {
    Status::invalid_argument(error.to_string())
}

impl From<InvalidSpec> for Status {
    fn from(error: InvalidSpec) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

impl From<FilterError> for Status {
    fn from(error: FilterError) -> Self {
        let code = match error {
            FilterError::Invalid(_) | FilterError::Ambiguous { .. } | FilterError::Contradiction { .. } => {
                Code::InvalidArgument
            }
            FilterError::NotFound { .. } => Code::NotFound,
        };
        Status::new(code, error.to_string())
    }
}

impl From<TargetError> for Status {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Filter(error) => error.into(),
            TargetError::NotRunning(_) | TargetError::NoneRuns { .. } => Status::failed_precondition(error.to_string()),
        }
    }
}

impl From<AskError> for Status {
    fn from(error: AskError) -> Self {
        Status::new(ask_code(&error), error.to_string())
    }
}

/// Several nodes' errors as one: the gravest code, and every message once: a node may have been asked for many tasks.
pub fn of_nodes(errors: &[AskError]) -> Status {
    let gravity = |code: &Code| match code {
        Code::InvalidArgument => 5,
        Code::FailedPrecondition => 4,
        Code::ResourceExhausted => 3,
        Code::Unavailable => 2,
        Code::NotFound => 1,
        _ => 0,
    };
    let code = errors.iter().map(ask_code).max_by_key(gravity).unwrap_or(Code::Unknown);
    let messages: BTreeSet<String> = errors.iter().map(ToString::to_string).collect();
    Status::new(code, messages.into_iter().collect::<Vec<_>>().join("; "))
}

fn ask_code(error: &AskError) -> Code {
    match error {
        AskError::NoSession(_) | AskError::Lost(_) | AskError::Stalled(_) => Code::Unavailable,
        AskError::TooMany => Code::ResourceExhausted,
        AskError::Failed { kind, .. } => match kind {
            wire::failure::Kind::NotFound => Code::NotFound,
            wire::failure::Kind::Invalid => Code::InvalidArgument,
            wire::failure::Kind::Precondition => Code::FailedPrecondition,
            wire::failure::Kind::Unavailable => Code::Unavailable,
            wire::failure::Kind::Unspecified => Code::Unknown,
        },
    }
}

/// The error and what lies beneath it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_many_tasks_of_a_node_have_in_common_is_said_once() {
        let away = |node: &str| AskError::NoSession(node.parse().unwrap());
        let status = of_nodes(&[away("vm1"), away("vm2"), away("vm1")]);
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), format!("{}; {}", away("vm1"), away("vm2")));
    }
}
