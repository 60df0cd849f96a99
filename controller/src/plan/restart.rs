//! When a slot whose task ended gets its next one.

use std::time::Duration;

use roster_proto::{
    cause::Cause,
    spec::{RestartCondition, RestartPolicy},
    task::{Desired, StopReason, Task, TaskState},
    time::Timestamp,
};

use crate::state::Service;

/// A task that ran this long was healthy, where its policy does not say.
pub const DEFAULT_WINDOW: Duration = Duration::from_secs(10);

/// The longest backoff of a policy without a delay.
pub const LONGEST_DEFAULT_DELAY: Duration = Duration::from_secs(60);

/// The longest backoff of a policy with a delay, unless that delay is itself longer.
pub const LONGEST_SET_DELAY: Duration = Duration::from_secs(300);

/// The base of a policy without a delay.
const DEFAULT_DELAY: Duration = Duration::from_secs(1);

/// What could not be made will hardly be possible an instant later.
const SHORTEST_AFTER_REJECTION: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    Now {
        attempt: u32,
    },
    At {
        until: Timestamp,
        attempt: u32,
        cause: Cause,
    },
    /// The slot has done what it was for, or its policy forbids another try.
    Finished,
    GiveUp {
        cause: Cause,
    },
}

/// Decides for a wanted slot whose newest task is `last`, which has ended.
pub(super) fn decide(service: &Service, last: &Task, now: Timestamp) -> Restart {
    if service.one_off.is_some() {
        return Restart::Finished;
    }
    let stopped = last.desired != Desired::Run;
    let severed = Cause::Stopped { reason: StopReason::Severed };
    if last.spec_version == service.spec_version && last.status.cause == Some(severed) {
        return Restart::Now { attempt: last.attempt };
    }
    if last.spec_version != service.spec_version || (stopped && last.status.state != TaskState::Orphaned) {
        return Restart::Now { attempt: 0 };
    }
    // Neither was its own fault.
    if last.status.state == TaskState::Orphaned || last.status.cause == Some(Cause::LeaseLost) {
        return Restart::Now { attempt: last.attempt };
    }
    let policy = &service.spec.restart;
    if finished(policy, last.status.state) {
        return Restart::Finished;
    }
    let failures = if ran_well(policy, last) { 1 } else { last.attempt.saturating_add(1) };
    let why = original(last);
    if policy.max_attempts.is_some_and(|most| failures > most) {
        let gave_up = matches!(last.status.cause, Some(Cause::GaveUp { .. }));
        let cause = Cause::GaveUp { attempts: failures - 1, last: Box::new(why) };
        return if gave_up { Restart::Finished } else { Restart::GiveUp { cause } };
    }
    let ended = last.status.finished.unwrap_or(last.status.since).min(now);
    let until = ended.plus(delay(policy, failures, last.status.state));
    if until <= now {
        return Restart::Now { attempt: failures };
    }
    Restart::At { until, attempt: failures, cause: Cause::Backoff { until, failures, last: Box::new(why) } }
}

/// Whether the slot stays as it ended.
pub(super) fn finished(policy: &RestartPolicy, state: TaskState) -> bool {
    match policy.condition {
        RestartCondition::Never => true,
        RestartCondition::OnFailure => state == TaskState::Complete,
        RestartCondition::Always => false,
    }
}

/// From the end of the task to its replacement. `failures` counts from 1: ends in a row without a healthy window.
fn delay(policy: &RestartPolicy, failures: u32, state: TaskState) -> Duration {
    let delay = match policy.delay {
        None if failures <= 1 => Duration::ZERO,
        None => doubled(DEFAULT_DELAY, failures - 2).min(LONGEST_DEFAULT_DELAY),
        Some(base) => doubled(base, failures.saturating_sub(1)).min(base.max(LONGEST_SET_DELAY)),
    };
    if state == TaskState::Rejected { delay.max(SHORTEST_AFTER_REJECTION) } else { delay }
}

fn doubled(base: Duration, times: u32) -> Duration {
    base.saturating_mul(2_u32.saturating_pow(times.min(31)))
}

fn ran_well(policy: &RestartPolicy, task: &Task) -> bool {
    match (task.status.started, task.status.finished) {
        (Some(started), Some(finished)) => finished.since(started) >= policy.window.unwrap_or(DEFAULT_WINDOW),
        _ => false,
    }
}

/// Why the task itself ended, before anyone gave it up.
fn original(task: &Task) -> Cause {
    match &task.status.cause {
        Some(Cause::GaveUp { last, .. }) => Cause::clone(last),
        Some(cause) => cause.clone(),
        None => Cause::Exited { code: 0 },
    }
}
