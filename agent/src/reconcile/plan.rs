//! What is left to do so that this host has what the assignment set says. Pure: the clock is an argument.
//!
//! For every task at most one step, the next one; the step's end leads to the next plan. So the steps of one task
//! come strictly in order, those of different tasks are independent, and a plan made right after one that was carried
//! out is empty.
//!
//! Guarantees:
//! * A task with an outcome is never started, nor is one that was started before.
//! * Published ports lead away from a container before it is told to stop, or to stand still.
//! * Nothing that is outside the set is touched before the controller itself has sent a set: the ledger may be older
//!   than what runs, so it can tell what to start, not what to destroy.
//! * A singleton is started only while the node holds a lease.
//! * What shares another container's namespaces is started only while that one runs, and is stopped when it has ended.
//! * An outcome is recorded before its container is removed, and the container stays until the controller has the
//!   outcome on disk.
//! * What failed is kept for inspection, until the controller's set names the task in none of its two parts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    time::Duration,
};

use roster_proto::{
    assignment::{Assignment, AssignmentSet},
    cause::Cause,
    id::TaskId,
    spec::{HealthTest, NetworkMode},
    task::{Desired, StopReason, TaskState, TaskStatus},
    time::Timestamp,
};

use super::local::{self, Facts, KILL_AGAIN, Local, Stopping, Why};
use crate::runtime::{Phase, Publication};

/// What the agent may go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footing {
    /// The set came from the controller, in this life of the agent.
    pub authoritative: bool,
    /// The node holds a lease: singletons may be started.
    pub leased: bool,
    /// Of the one task that is planned for.
    pub partner: Partner,
}

/// The container on this host whose namespaces a task's is to share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partner {
    /// Or there is none to share with.
    #[default]
    Runs,
    /// It is not there yet, or about to end.
    Waits,
    /// It ran, and does no more.
    Gone,
}

/// Everything a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// `None`: neither the controller nor the ledger has given one.
    pub set: Option<&'a AssignmentSet>,
    pub footing: Footing,
    pub tasks: &'a BTreeMap<TaskId, Local>,
    /// What the host's ports lead to now; `None`: not known.
    pub published: Option<&'a [Publication]>,
    pub now: Timestamp,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// When to plan again though nothing happened.
    pub wake: Option<Timestamp>,
}

/// One idempotent action.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Prepare {
        assignment: Assignment,
    },
    /// Gives up a preparation under way.
    Abandon {
        task: TaskId,
    },
    Start {
        assignment: Assignment,
    },
    Publish {
        ports: Vec<Publication>,
        /// The tasks behind them.
        behind: BTreeSet<TaskId>,
    },
    /// Its processes stand still from then on, or go on.
    Freeze {
        task: TaskId,
    },
    Thaw {
        task: TaskId,
    },
    /// Also thaws.
    Stop {
        task: TaskId,
        why: Why,
        grace: Duration,
    },
    Kill {
        task: TaskId,
    },
    /// Records and reports how the task ended.
    Settle {
        task: TaskId,
        status: TaskStatus,
    },
    Remove {
        task: TaskId,
    },
    /// Removes all of it but what can be looked at later: its files, its log, its figures.
    Keep {
        task: TaskId,
    },
    /// Nothing is left of the task and nobody asks for it.
    Forget {
        task: TaskId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    Prepare,
    Abandon,
    Start,
    Publish,
    Freeze,
    Thaw,
    Stop,
    Kill,
    Settle,
    Remove,
    Keep,
    Forget,
}

/// One task's part of a plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Next {
    pub step: Option<Step>,
    pub wake: Option<Timestamp>,
}

/// The whole plan.
pub fn plan(view: View<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = view.set else { return plan };
    plan.steps.extend(publish(set, view.tasks, view.published));
    let nothing = Local::default();
    let ids: BTreeSet<&TaskId> = set.tasks.keys().chain(view.tasks.keys()).collect();
    for id in ids {
        let local = view.tasks.get(id).unwrap_or(&nothing);
        let footing = Footing { partner: Partner::of(set.tasks.get(id), view.tasks), ..view.footing };
        let next = next(id, Wish::of(set, id), footing, local, view.now);
        plan.steps.extend(next.step);
        plan.wake = earlier(plan.wake, next.wake);
    }
    plan
}

impl Partner {
    pub fn of(assignment: Option<&Assignment>, tasks: &BTreeMap<TaskId, Local>) -> Self {
        let Some(task) = assignment.and_then(|assignment| assignment.shares_with.as_ref()) else { return Self::Runs };
        let Some(Local { phase, facts }) = tasks.get(task) else { return Self::Gone };
        match phase {
            _ if facts.outcome.is_some() => Self::Gone,
            Some(Phase::Running(_)) if facts.stopping.is_none() => Self::Runs,
            Some(Phase::Running(_)) => Self::Waits,
            None | Some(Phase::Broken) if facts.started.is_none() => Self::Waits,
            None | Some(Phase::Broken | Phase::Ended(_) | Phase::Kept) => Self::Gone,
        }
    }
}

/// What the set says of one task.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub assignment: Option<&'a Assignment>,
    /// It failed, and is there for inspection.
    pub kept: bool,
}

impl<'a> Wish<'a> {
    pub fn of(set: &'a AssignmentSet, task: &TaskId) -> Self {
        Self { assignment: set.tasks.get(task), kept: set.kept.contains(task) }
    }
}

/// The next step of one task.
pub fn next(task: &TaskId, wish: Wish<'_>, footing: Footing, local: &Local, now: Timestamp) -> Next {
    let facts = &local.facts;
    let wanted = wish.assignment;
    if let Some((verb, since)) = facts.busy {
        let over = match wanted {
            Some(assignment) => assignment.desired != Desired::Run,
            None => footing.authoritative,
        };
        let over = over || matches!(local.phase, Some(Phase::Ended(_) | Phase::Broken));
        return while_busy(task, over, verb, since, now);
    }
    let step = match wanted {
        None if !footing.authoritative => return Next::default(),
        None => unwanted(task, wish.kept, local, now),
        Some(_) if facts.outcome.is_some() => settled(task, local, now),
        Some(assignment) => toward(assignment, footing, local, now),
    };
    match step {
        Turn::Step(step) => match facts.troubles.get(&step.verb()) {
            Some(trouble) if now < trouble.retry_at => Next { step: None, wake: Some(trouble.retry_at) },
            _ => Next { step: Some(step), wake: None },
        },
        Turn::Wait(until) => Next { step: None, wake: until },
    }
}

/// What is to be done now, or until when nothing is.
enum Turn {
    Step(Step),
    Wait(Option<Timestamp>),
}

const REST: Turn = Turn::Wait(None);

/// `over`: a preparation under way has lost its purpose.
fn while_busy(task: &TaskId, over: bool, verb: Verb, since: Timestamp, now: Timestamp) -> Next {
    if verb == Verb::Prepare && over {
        return Next { step: Some(Step::Abandon { task: task.clone() }), wake: None };
    }
    // To say what takes so long.
    let wake = Some(since.plus(local::QUIET)).filter(|at| matches!(verb, Verb::Prepare | Verb::Start) && *at > now);
    Next { step: None, wake }
}

fn unwanted(task: &TaskId, kept: bool, local: &Local, now: Timestamp) -> Turn {
    let task = task.clone();
    match local.phase {
        None => Turn::Step(Step::Forget { task }),
        Some(Phase::Running(_)) => stop(task, Why::Unwanted, local.facts.grace, &local.facts, now),
        Some(Phase::Ended(_) | Phase::Broken) if kept => Turn::Step(Step::Keep { task }),
        Some(Phase::Kept) if kept => REST,
        Some(Phase::Ended(_) | Phase::Broken | Phase::Kept) => Turn::Step(Step::Remove { task }),
    }
}

fn settled(task: &TaskId, local: &Local, now: Timestamp) -> Turn {
    match local.phase {
        None | Some(Phase::Kept) => REST,
        // Its record says it ended, so this is none of what the controller counts on.
        Some(Phase::Running(_)) => stop(task.clone(), Why::Unwanted, local.facts.grace, &local.facts, now),
        Some(Phase::Ended(_) | Phase::Broken) if local.facts.acknowledged => {
            Turn::Step(match local.facts.has_failed() {
                true => Step::Keep { task: task.clone() },
                false => Step::Remove { task: task.clone() },
            })
        }
        Some(Phase::Ended(_) | Phase::Broken) => REST,
    }
}

fn toward(assignment: &Assignment, footing: Footing, local: &Local, now: Timestamp) -> Turn {
    let facts = &local.facts;
    let task = assignment.task.clone();
    let grace = assignment.spec.stop_grace_period;
    let told = match &assignment.desired {
        Desired::Run => None,
        Desired::Stop(reason) => Some(reason),
    };
    match (&local.phase, told) {
        (Some(Phase::Ended(ended)), told) => settle(task, local::ended_status(told, facts, ended)),
        (Some(Phase::Running(_)), Some(reason)) => stop(task, Why::Told(reason.clone()), grace, facts, now),
        (Some(Phase::Running(_)), None) if facts.unhealthy.is_some() => stop(task, Why::Unhealthy, grace, facts, now),
        (Some(Phase::Running(_)), None) if footing.partner == Partner::Gone => {
            stop(task, Why::Told(StopReason::Severed), grace, facts, now)
        }
        (Some(Phase::Running(_)), None) if assignment.paused != facts.frozen => pause(assignment, facts),
        (Some(Phase::Running(_)), None) => look_up_healthcheck(assignment, facts),
        (Some(Phase::Broken | Phase::Kept) | None, Some(reason)) => settle(task, stopped_status(reason, facts, now)),
        (Some(Phase::Kept), None) => settle(task, local::last_status(TaskState::Failed, Cause::ShimLost, now, facts)),
        (Some(Phase::Broken) | None, None) if facts.started.is_some() => {
            settle(task, local::last_status(TaskState::Failed, Cause::ShimLost, now, facts))
        }
        (Some(Phase::Broken) | None, None) if footing.partner == Partner::Gone => {
            settle(task, stopped_status(&StopReason::Severed, facts, now))
        }
        (Some(Phase::Broken) | None, None) => match facts.fatal() {
            Some(trouble) => settle(task, local::failed_status(trouble, facts, now)),
            None => make(assignment, footing, local),
        },
    }
}

fn make(assignment: &Assignment, footing: Footing, local: &Local) -> Turn {
    Turn::Step(match (&local.phase, &local.facts.prepared) {
        (Some(_), _) => Step::Remove { task: assignment.task.clone() },
        (None, None) => Step::Prepare { assignment: assignment.clone() },
        // A lease that comes leads here again.
        (None, Some(_)) if assignment.spec.singleton && !footing.leased => return REST,
        // So does its partner's running.
        (None, Some(_)) if footing.partner == Partner::Waits => return REST,
        (None, Some(_)) => Step::Start { assignment: assignment.clone() },
    })
}

/// Everything that this host must no longer run has ended.
pub fn is_settled(set: &AssignmentSet, tasks: &BTreeMap<TaskId, Local>) -> bool {
    tasks.iter().all(|(task, local)| {
        let facts = &local.facts;
        let wanted = set.tasks.get(task).is_some_and(|assignment| assignment.desired == Desired::Run);
        // What is half made may have processes, too.
        let runs = matches!(local.phase, Some(Phase::Running(_) | Phase::Broken))
            || matches!(facts.busy, Some((Verb::Start, _)));
        !runs || (wanted && facts.outcome.is_none())
    })
}

/// A container taken back runs already, but its image may have a healthcheck this agent does not know yet.
fn look_up_healthcheck(assignment: &Assignment, facts: &Facts) -> Turn {
    let disabled = assignment.spec.healthcheck.as_ref().is_some_and(|check| check.test == HealthTest::Disabled);
    let hopeless = facts.troubles.get(&Verb::Prepare).is_some_and(|trouble| !trouble.transient);
    if facts.prepared.is_some() || facts.stopping.is_some() || disabled || hopeless {
        return REST;
    }
    Turn::Step(Step::Prepare { assignment: assignment.clone() })
}

fn settle(task: TaskId, status: TaskStatus) -> Turn {
    Turn::Step(Step::Settle { task, status })
}

fn stopped_status(reason: &StopReason, facts: &Facts, now: Timestamp) -> TaskStatus {
    local::last_status(TaskState::Shutdown, Cause::Stopped { reason: reason.clone() }, now, facts)
}

/// What stands still answers nobody, so the published ports lead elsewhere first.
fn pause(assignment: &Assignment, facts: &Facts) -> Turn {
    let task = assignment.task.clone();
    match assignment.paused {
        true if facts.exposed => REST,
        true => Turn::Step(Step::Freeze { task }),
        false => Turn::Step(Step::Thaw { task }),
    }
}

/// Signal, grace, SIGKILL; before all that, the published ports lead elsewhere.
fn stop(task: TaskId, why: Why, grace: Duration, facts: &Facts, now: Timestamp) -> Turn {
    if facts.exposed {
        return REST;
    }
    match &facts.stopping {
        None => Turn::Step(Step::Stop { task, why, grace }),
        Some(stopping) if now >= kill_due(stopping) => Turn::Step(Step::Kill { task }),
        Some(Stopping { signaled: true, .. }) => Turn::Wait(facts.stopping.as_ref().map(kill_due)),
        // The signal did not get through. What was begun goes on under its own name and with its own deadline.
        Some(stopping) => match facts.troubles.get(&Verb::Stop) {
            Some(trouble) if now < trouble.retry_at => Turn::Wait(Some(trouble.retry_at.min(kill_due(stopping)))),
            _ => Turn::Step(Step::Stop { task, why: stopping.why.clone(), grace }),
        },
    }
}

fn kill_due(stopping: &Stopping) -> Timestamp {
    stopping.killed.map_or(stopping.kill_at, |at| at.plus(KILL_AGAIN))
}

/// Sets the host's ports right, if they are not.
pub fn publish(
    set: &AssignmentSet,
    tasks: &BTreeMap<TaskId, Local>,
    published: Option<&[Publication]>,
) -> Option<Step> {
    let mut ports: BTreeMap<_, BTreeSet<(Ipv4Addr, u16)>> = BTreeMap::new();
    let mut behind = BTreeSet::new();
    for (id, assignment) in &set.tasks {
        let Some(address) = tasks.get(id).and_then(|local| serving_address(assignment, local)) else { continue };
        if Partner::of(Some(assignment), tasks) == Partner::Gone {
            continue;
        }
        for port in &assignment.ports {
            let key = (port.host_ip, port.published, port.protocol);
            ports.entry(key).or_default().insert((address, port.target));
            behind.insert(id.clone());
        }
    }
    let ports: Vec<Publication> = ports
        .into_iter()
        .map(|((host_ip, port, protocol), backends)| Publication {
            host_ip,
            port,
            protocol,
            backends: backends.into_iter().collect(),
        })
        .collect();
    (published != Some(ports.as_slice())).then_some(Step::Publish { ports, behind })
}

fn serving_address(assignment: &Assignment, local: &Local) -> Option<Ipv4Addr> {
    let facts = &local.facts;
    let moves = !assignment.paused && !facts.frozen;
    let wanted = assignment.desired == Desired::Run && facts.outcome.is_none() && facts.stopping.is_none() && moves;
    match &local.phase {
        Some(Phase::Running(started))
            if wanted && facts.is_serving() && assignment.spec.network == NetworkMode::Bridge =>
        {
            started.address
        }
        _ => None,
    }
}

pub fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Step {
    pub fn verb(&self) -> Verb {
        match self {
            Step::Prepare { .. } => Verb::Prepare,
            Step::Abandon { .. } => Verb::Abandon,
            Step::Start { .. } => Verb::Start,
            Step::Publish { .. } => Verb::Publish,
            Step::Freeze { .. } => Verb::Freeze,
            Step::Thaw { .. } => Verb::Thaw,
            Step::Stop { .. } => Verb::Stop,
            Step::Kill { .. } => Verb::Kill,
            Step::Settle { .. } => Verb::Settle,
            Step::Remove { .. } => Verb::Remove,
            Step::Keep { .. } => Verb::Keep,
            Step::Forget { .. } => Verb::Forget,
        }
    }

    /// `None` for the one step that concerns the whole host.
    pub fn task(&self) -> Option<&TaskId> {
        match self {
            Step::Prepare { assignment } | Step::Start { assignment } => Some(&assignment.task),
            Step::Publish { .. } => None,
            Step::Abandon { task }
            | Step::Freeze { task }
            | Step::Thaw { task }
            | Step::Stop { task, .. }
            | Step::Kill { task }
            | Step::Settle { task, .. }
            | Step::Remove { task }
            | Step::Keep { task }
            | Step::Forget { task } => Some(task),
        }
    }
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Prepare => "prepare",
            Verb::Abandon => "abandon",
            Verb::Start => "start",
            Verb::Publish => "publish",
            Verb::Freeze => "freeze",
            Verb::Thaw => "thaw",
            Verb::Stop => "stop",
            Verb::Kill => "kill",
            Verb::Settle => "settle",
            Verb::Remove => "remove",
            Verb::Keep => "keep",
            Verb::Forget => "forget",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests;
