//! Causes and rejections.

use super::{ConvertError, enumeration, list, name, port};
use crate::{
    cause::{Cause, RejectReason, Rejection},
    time::Timestamp,
    wire,
};

/// A cause holds at most the one before it; deeper nesting can only be a malformed message.
const MAX_NESTING: usize = 4;

impl From<Cause> for wire::Cause {
    fn from(cause: Cause) -> Self {
        use wire::cause::{self as w, Kind};
        let kind = match cause {
            Cause::Backoff { until, failures, last } => Kind::Backoff(Box::new(w::Backoff {
                until: until.into(),
                failures,
                last: Some(Box::new((*last).into())),
            })),
            Cause::NoNode { rejections } => {
                Kind::NoNode(w::NoNode { rejections: rejections.into_iter().map(Into::into).collect() })
            }
            Cause::Predecessor { task } => Kind::Predecessor(task),
            Cause::Partner { task } => Kind::Partner(task),
            Cause::NodeDown { node, since } => Kind::NodeDown(w::NodeDown { node: node.into(), since: since.into() }),
            Cause::Pulling { image } => Kind::Pulling(image),
            Cause::Stopping { reason, kill_at } => {
                Kind::Stopping(w::Stopping { reason: wire::StopReason::from(reason).into(), kill_at: kill_at.into() })
            }
            Cause::Exited { code } => Kind::Exited(code),
            Cause::Signaled { signal } => Kind::Signaled(signal),
            Cause::OomKilled { limit } => Kind::OomKilled(w::OomKilled { limit }),
            Cause::Unhealthy { failures, output } => Kind::Unhealthy(w::Unhealthy { failures, output }),
            Cause::Stopped { reason } => Kind::Stopped(wire::StopReason::from(reason).into()),
            Cause::ImageUnavailable { image, reason } => Kind::ImageUnavailable(w::ImageUnavailable { image, reason }),
            Cause::Impossible { what, reason } => Kind::Impossible(w::Impossible { what, reason }),
            Cause::StartFailed { step, error } => Kind::StartFailed(w::StartFailed { step, error }),
            Cause::ShimLost => Kind::ShimLost(w::ShimLost {}),
            Cause::NodeLost { node } => Kind::NodeLost(node.into()),
            Cause::LeaseLost => Kind::LeaseLost(w::LeaseLost {}),
            Cause::AwaitsAttach { until } => Kind::AwaitsAttach(until.into()),
            Cause::Unattended => Kind::Unattended(w::Unattended {}),
            Cause::NotRun { what, reason, code } => Kind::NotRun(w::NotRun { what, reason, code }),
            Cause::Braked { node, since, until } => {
                Kind::Braked(w::Braked { node: node.into(), since: since.into(), until: until.map(Into::into) })
            }
            Cause::WaitsForLease { node, since } => {
                Kind::WaitsForLease(w::WaitsForLease { node: node.into(), since: since.into() })
            }
            Cause::GaveUp { attempts, last } => {
                Kind::GaveUp(Box::new(w::GaveUp { attempts, last: Some(Box::new((*last).into())) }))
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::Cause> for Cause {
    type Error = ConvertError;
    fn try_from(cause: wire::Cause) -> Result<Self, ConvertError> {
        from_wire(cause, MAX_NESTING)
    }
}

fn last(cause: Option<Box<wire::Cause>>, depth: usize) -> Result<Box<Cause>, ConvertError> {
    let cause = cause.ok_or_else(|| ConvertError::missing("last"))?;
    let depth = depth.checked_sub(1).ok_or_else(|| ConvertError::new("last", "is nested too deeply"))?;
    from_wire(*cause, depth).map(Box::new)
}

fn from_wire(cause: wire::Cause, depth: usize) -> Result<Cause, ConvertError> {
    use wire::cause::Kind;
    Ok(match cause.kind.ok_or_else(|| ConvertError::missing("kind"))? {
        Kind::Backoff(w) => {
            Cause::Backoff { until: Timestamp(w.until), failures: w.failures, last: last(w.last, depth)? }
        }
        Kind::NoNode(w) => Cause::NoNode { rejections: list("rejections", w.rejections)? },
        Kind::Predecessor(task) => Cause::Predecessor { task },
        Kind::Partner(task) => Cause::Partner { task },
        Kind::NodeDown(w) => Cause::NodeDown { node: name("node", &w.node)?, since: Timestamp(w.since) },
        Kind::Pulling(image) => Cause::Pulling { image },
        Kind::Stopping(w) => Cause::Stopping {
            reason: enumeration::<wire::StopReason, _>("reason", w.reason)?,
            kill_at: Timestamp(w.kill_at),
        },
        Kind::Exited(code) => Cause::Exited { code },
        Kind::Signaled(signal) => Cause::Signaled { signal },
        Kind::OomKilled(w) => Cause::OomKilled { limit: w.limit },
        Kind::Unhealthy(w) => Cause::Unhealthy { failures: w.failures, output: w.output },
        Kind::Stopped(reason) => Cause::Stopped { reason: enumeration::<wire::StopReason, _>("stopped", reason)? },
        Kind::ImageUnavailable(w) => Cause::ImageUnavailable { image: w.image, reason: w.reason },
        Kind::Impossible(w) => Cause::Impossible { what: w.what, reason: w.reason },
        Kind::StartFailed(w) => Cause::StartFailed { step: w.step, error: w.error },
        Kind::ShimLost(_) => Cause::ShimLost,
        Kind::Braked(w) => {
            Cause::Braked { node: name("node", &w.node)?, since: Timestamp(w.since), until: w.until.map(Timestamp) }
        }
        Kind::WaitsForLease(w) => Cause::WaitsForLease { node: name("node", &w.node)?, since: Timestamp(w.since) },
        Kind::LeaseLost(_) => Cause::LeaseLost,
        Kind::AwaitsAttach(until) => Cause::AwaitsAttach { until: Timestamp(until) },
        Kind::Unattended(_) => Cause::Unattended,
        Kind::NotRun(w) => Cause::NotRun { what: w.what, reason: w.reason, code: w.code },
        Kind::NodeLost(node) => Cause::NodeLost { node: name("node_lost", &node)? },
        Kind::GaveUp(w) => Cause::GaveUp { attempts: w.attempts, last: last(w.last, depth)? },
    })
}

impl From<Rejection> for wire::Rejection {
    fn from(rejection: Rejection) -> Self {
        use wire::rejection::{Down, Draining, HostPort, Paused, Reason, Shortage};
        let reason = match rejection.reason {
            RejectReason::Down => Reason::Down(Down {}),
            RejectReason::Paused => Reason::Paused(Paused {}),
            RejectReason::Draining => Reason::Draining(Draining {}),
            RejectReason::Cpu { wanted, free } => Reason::Cpu(Shortage { wanted, free }),
            RejectReason::Memory { wanted, free } => Reason::Memory(Shortage { wanted, free }),
            RejectReason::HostPort { port, protocol, holder } => Reason::HostPort(HostPort {
                port: port.into(),
                protocol: wire::Protocol::from(protocol).into(),
                holder,
            }),
            RejectReason::NoRuntime { runtime } => Reason::NoRuntime(runtime),
        };
        Self { node: rejection.node.into(), reason: Some(reason) }
    }
}

impl TryFrom<wire::Rejection> for Rejection {
    type Error = ConvertError;
    fn try_from(rejection: wire::Rejection) -> Result<Self, ConvertError> {
        use wire::rejection::Reason;
        let reason = match rejection.reason.ok_or_else(|| ConvertError::missing("reason"))? {
            Reason::Down(_) => RejectReason::Down,
            Reason::Paused(_) => RejectReason::Paused,
            Reason::Draining(_) => RejectReason::Draining,
            Reason::Cpu(w) => RejectReason::Cpu { wanted: w.wanted, free: w.free },
            Reason::Memory(w) => RejectReason::Memory { wanted: w.wanted, free: w.free },
            Reason::HostPort(w) => RejectReason::HostPort {
                port: port("port", w.port)?,
                protocol: enumeration::<wire::Protocol, _>("protocol", w.protocol)?,
                holder: w.holder,
            },
            Reason::NoRuntime(runtime) => RejectReason::NoRuntime { runtime },
        };
        Ok(Self { node: name("node", &rejection.node)?, reason })
    }
}
