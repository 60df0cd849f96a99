//! What the agent knows of one task on this host, and how that changes. Pure.
//!
//! Two of the facts outlive the agent, in the ledger's journal: that a task was started, and how it ended. With them
//! a task stays one-shot over any restart of the agent or the host. Everything else is found out anew.

use std::{collections::BTreeMap, time::Duration};

use roster_proto::{
    assignment::Assignment,
    cause::Cause,
    spec::STOP_GRACE_PERIOD,
    task::{Health, StopReason, TaskState, TaskStatus},
    time::Timestamp,
};

use super::{
    backoff::Backoff,
    plan::{Step, Verb},
};
use crate::runtime::{ATTACH_DEADLINE, Ended, Exit, Phase, Prepared, RuntimeError, Started};

/// Waits between tries of a failed step.
pub const RETRY: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(10) };
/// Transient failures after which a task is given up. The controller's restart policy takes over from there.
pub const PREPARE_TRIES: u32 = 5;
pub const START_TRIES: u32 = 3;
/// A step that takes less than this is not reported: most tasks go straight from Assigned to Running.
pub const QUIET: Duration = Duration::from_millis(25);
/// Between a kill that did not end the container and the next one.
pub const KILL_AGAIN: Duration = Duration::from_secs(1);

/// One task on this host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Local {
    /// What the runtime has of it; `None`: nothing.
    pub phase: Option<Phase>,
    pub facts: Facts,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// When the container started, once it did.
    pub started: Option<Timestamp>,
    /// Its container was found running when this agent started.
    pub taken_back: bool,
    /// Of one that begins only when somebody attaches: that has been so.
    pub begun: bool,
    pub prepared: Option<Prepared>,
    pub preparing_since: Option<Timestamp>,
    pub starting_since: Option<Timestamp>,
    /// The step under way, and since when. There is at most one.
    pub busy: Option<(Verb, Timestamp)>,
    pub troubles: BTreeMap<Verb, Trouble>,
    /// Its processes stand still.
    pub frozen: bool,
    /// Published ports lead to it, or may.
    pub exposed: bool,
    pub health: Health,
    pub unhealthy: Option<Unhealthy>,
    pub stopping: Option<Stopping>,
    /// How it ended. Never changes again.
    pub outcome: Option<TaskStatus>,
    /// The controller has the outcome on disk.
    pub acknowledged: bool,
    /// Of the last assignment seen: what a task that has left the set is stopped with.
    pub grace: Duration,
}

/// A step that failed and may be tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Trouble {
    pub cause: Cause,
    pub transient: bool,
    pub failures: u32,
    pub retry_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Unhealthy {
    pub failures: u32,
    pub output: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Stopping {
    pub why: Why,
    pub kill_at: Timestamp,
    /// The stop signal was delivered.
    pub signaled: bool,
    pub killed: Option<Timestamp>,
}

/// Why this agent stops a container.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    Told(StopReason),
    Unhealthy,
    /// Its task has left the set.
    Unwanted,
}

/// What a step that succeeded brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Done {
    Prepared(Prepared),
    Started(Started),
    /// Whether there was anything to keep, and room for it.
    Kept(bool),
    Nothing,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            started: None,
            taken_back: false,
            begun: false,
            prepared: None,
            preparing_since: None,
            starting_since: None,
            busy: None,
            troubles: BTreeMap::new(),
            frozen: false,
            exposed: false,
            health: Health::None,
            unhealthy: None,
            stopping: None,
            outcome: None,
            acknowledged: false,
            grace: STOP_GRACE_PERIOD,
        }
    }
}

impl Local {
    /// A step goes off.
    pub fn begin(&mut self, step: &Step, now: Timestamp) {
        let facts = &mut self.facts;
        match step {
            Step::Prepare { .. } => _ = facts.preparing_since.get_or_insert(now),
            Step::Start { .. } => _ = facts.starting_since.get_or_insert(now),
            Step::Stop { why, grace, .. } if facts.stopping.is_none() => {
                let kill_at = now.plus(*grace);
                facts.stopping = Some(Stopping { why: why.clone(), kill_at, signaled: false, killed: None });
            }
            _ => {}
        }
        facts.busy = Some((step.verb(), now));
    }

    /// The step under way ended. `jitter` spreads the retries, see [`Backoff::delay`].
    pub fn finish(&mut self, verb: Verb, result: &Result<Done, RuntimeError>, now: Timestamp, jitter: f64) {
        self.facts.busy = None;
        match result {
            Ok(done) => {
                self.facts.troubles.remove(&verb);
                self.succeed(verb, done.clone(), now);
            }
            Err(error) => {
                if verb == Verb::Start {
                    // Whatever was half made is taken away before the next try.
                    self.phase = Some(Phase::Broken);
                }
                let failures = self.facts.troubles.get(&verb).map_or(0, |trouble| trouble.failures) + 1;
                let retry_at = now.plus(RETRY.delay(failures, jitter));
                let (cause, transient) = (error.cause.clone(), error.transient);
                self.facts.troubles.insert(verb, Trouble { cause, transient, failures, retry_at });
            }
        }
    }

    fn succeed(&mut self, verb: Verb, done: Done, now: Timestamp) {
        let facts = &mut self.facts;
        match (verb, done) {
            (_, Done::Prepared(prepared)) => facts.prepared = Some(prepared),
            (_, Done::Started(started)) => {
                facts.started = Some(started.at);
                self.phase = Some(Phase::Running(started));
            }
            (Verb::Freeze, Done::Nothing) => facts.frozen = true,
            (Verb::Thaw, Done::Nothing) => facts.frozen = false,
            (Verb::Stop, Done::Nothing) => {
                facts.frozen = false;
                if let Some(stopping) = &mut facts.stopping {
                    stopping.signaled = true;
                }
            }
            (Verb::Kill, Done::Nothing) => {
                if let Some(stopping) = &mut facts.stopping {
                    stopping.killed = Some(now);
                }
            }
            (Verb::Remove, Done::Nothing) => self.gone(None),
            (_, Done::Kept(kept)) => self.gone(kept.then_some(Phase::Kept)),
            _ => {}
        }
    }

    fn gone(&mut self, left: Option<Phase>) {
        self.phase = left;
        self.facts.exposed = false;
        self.facts.frozen = false;
    }

    /// The step under way was given up before it had an effect.
    pub fn abandoned(&mut self) {
        self.facts.busy = None;
    }

    /// The runtime, listed afresh, says otherwise than expected.
    pub fn observe(&mut self, phase: Option<Phase>) {
        if let Some(Phase::Running(started)) = &phase {
            self.facts.started = Some(started.at);
        }
        self.phase = phase;
    }

    pub fn take_back(&mut self, started: Started) {
        self.facts.taken_back = true;
        // The ports of the agent before this one may lead to it.
        self.facts.exposed = true;
        self.observe(Some(Phase::Running(started)));
    }

    pub fn ended(&mut self, ended: Ended) {
        self.phase = Some(Phase::Ended(ended));
    }

    pub fn settle(&mut self, status: TaskStatus) {
        self.facts.busy = None;
        self.facts.outcome.get_or_insert(status);
    }
}

impl Facts {
    pub fn is_serving(&self) -> bool {
        match self.health {
            Health::None | Health::Healthy => true,
            // It answered before the agent restarted; only a failed check takes it out.
            Health::Starting => self.taken_back,
            Health::Unhealthy => false,
        }
    }

    /// It ran, and its outcome is a failure.
    pub fn has_failed(&self) -> bool {
        let failed = |outcome: &TaskStatus| outcome.state == TaskState::Failed && outcome.started.is_some();
        self.outcome.as_ref().is_some_and(failed)
    }

    /// The failure that ends the task, if trying again makes no sense any more.
    pub fn fatal(&self) -> Option<&Trouble> {
        [(Verb::Prepare, PREPARE_TRIES), (Verb::Start, START_TRIES)].into_iter().find_map(|(verb, tries)| {
            self.troubles.get(&verb).filter(|trouble| !trouble.transient || trouble.failures >= tries)
        })
    }
}

/// What to report of a task now; `None`: nothing beyond what the controller knows.
pub fn status(assignment: &Assignment, local: &Local, now: Timestamp) -> Option<TaskStatus> {
    let facts = &local.facts;
    if let Some(outcome) = &facts.outcome {
        return Some(outcome.clone());
    }
    match &local.phase {
        Some(Phase::Running(started)) => Some(running(assignment, facts, started)),
        Some(Phase::Ended(_) | Phase::Kept) => None,
        Some(Phase::Broken) | None => underway(assignment, facts, now),
    }
}

fn running(assignment: &Assignment, facts: &Facts, started: &Started) -> TaskStatus {
    let waits = assignment.spec.attended && !facts.begun && !facts.taken_back;
    let waits = waits.then(|| Cause::AwaitsAttach { until: started.at.plus(ATTACH_DEADLINE) });
    let cause = facts.stopping.as_ref().and_then(|stopping| match &stopping.why {
        Why::Told(reason) => Some(Cause::Stopping { reason: reason.clone(), kill_at: stopping.kill_at }),
        Why::Unhealthy | Why::Unwanted => None,
    });
    TaskStatus {
        cause: cause.or_else(|| facts.unhealthy.as_ref().map(Unhealthy::cause)).or(waits),
        health: facts.health,
        pid: Some(started.pid),
        address: started.address,
        started: Some(started.at),
        paused: facts.frozen,
        ..TaskStatus::new(TaskState::Running, started.at)
    }
}

/// Preparing or Starting, once it takes long enough to be worth a word or has failed before.
fn underway(assignment: &Assignment, facts: &Facts, now: Timestamp) -> Option<TaskStatus> {
    let (state, since, verb) = match (facts.starting_since, facts.preparing_since) {
        (Some(since), _) => (TaskState::Starting, since, Verb::Start),
        (None, Some(since)) => (TaskState::Preparing, since, Verb::Prepare),
        (None, None) => return None,
    };
    let trouble = facts.troubles.get(&verb).map(|trouble| trouble.cause.clone());
    if trouble.is_none() && now < since.plus(QUIET) {
        return None;
    }
    let pulling = (verb == Verb::Prepare).then(|| Cause::Pulling { image: assignment.spec.image.clone() });
    Some(TaskStatus { cause: trouble.or(pulling), ..TaskStatus::new(state, since) })
}

/// The last status of a task whose container ended.
pub fn ended_status(desired_stop: Option<&StopReason>, facts: &Facts, ended: &Ended) -> TaskStatus {
    let told = match &facts.stopping {
        Some(Stopping { why: Why::Told(reason), .. }) => Some(reason),
        Some(Stopping { why: Why::Unhealthy, .. }) => None,
        // An agent restarted in the middle of a stop no longer knows that it gave the signal; the set does.
        Some(Stopping { why: Why::Unwanted, .. }) | None => desired_stop,
    };
    let stopped_unwell = matches!(&facts.stopping, Some(Stopping { why: Why::Unhealthy, .. }));
    let (state, cause) = match (told, &facts.unhealthy) {
        (Some(reason), _) => (TaskState::Shutdown, Cause::Stopped { reason: reason.clone() }),
        (None, Some(unhealthy)) if stopped_unwell => (TaskState::Failed, unhealthy.cause()),
        (None, _) => by_exit(ended.how),
    };
    last_status(state, cause, ended.at, facts)
}

fn by_exit(exit: Exit) -> (TaskState, Cause) {
    match exit {
        Exit::Code(0) => (TaskState::Complete, Cause::Exited { code: 0 }),
        Exit::Code(code) => (TaskState::Failed, Cause::Exited { code }),
        Exit::Signal(signal) => (TaskState::Failed, Cause::Signaled { signal }),
        Exit::OutOfMemory { limit } => (TaskState::Failed, Cause::OomKilled { limit }),
        Exit::ShimLost => (TaskState::Failed, Cause::ShimLost),
        Exit::LeaseLost => (TaskState::Failed, Cause::LeaseLost),
        Exit::Severed => (TaskState::Shutdown, Cause::Stopped { reason: StopReason::Severed }),
        Exit::Unattended => (TaskState::Failed, Cause::Unattended),
    }
}

/// The last status of a task that could not be made.
pub fn failed_status(trouble: &Trouble, facts: &Facts, now: Timestamp) -> TaskStatus {
    let state = match trouble.cause {
        Cause::ImageUnavailable { .. } | Cause::Impossible { .. } | Cause::NotRun { .. } => TaskState::Rejected,
        Cause::Stopped { .. } => TaskState::Shutdown,
        _ => TaskState::Failed,
    };
    last_status(state, trouble.cause.clone(), now, facts)
}

pub fn last_status(state: TaskState, cause: Cause, at: Timestamp, facts: &Facts) -> TaskStatus {
    TaskStatus {
        cause: Some(cause),
        health: facts.health,
        started: facts.started,
        finished: Some(at),
        ..TaskStatus::new(state, at)
    }
}

impl Unhealthy {
    fn cause(&self) -> Cause {
        Cause::Unhealthy { failures: self.failures, output: self.output.clone() }
    }
}
