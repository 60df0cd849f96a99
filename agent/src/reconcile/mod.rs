//! The loop that makes this host what the assignment set says.
//!
//! Flow: something happens (a new set, a step or a container ended, a health or a moment was reached) and marks the
//! tasks it concerns; for each of these [`plan`] gives the next step, which is carried out beside the loop, one at a
//! time for each task, with a bound for each kind of step over all tasks.
//!
//! Guarantees:
//! * Level-triggered. An event says only where to look. The kernel is listed when the agent starts and again every
//!   [`FULL_PASS`], so a lost event costs time, never correctness.
//! * A step that fails is tried again with a growing pause ([`local::RETRY`]); nothing fails silently.
//! * A report leaves before the work that can wait: a task's last status goes out before its container is removed.
//!
//! Deliberately absent: stopping containers when the agent stops. They belong to their shims and are taken back.

mod absorb;
pub mod backoff;
mod execute;
mod leader;
pub mod local;
mod permits;
pub mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use roster_proto::{
    assignment::{Assignment, AssignmentSet},
    id::TaskId,
    task::{Desired, Health, TaskStatus},
    time::Timestamp,
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{
    execute::execute,
    local::{Done, Local, RETRY},
    permits::Permits,
    plan::{Footing, Partner, Step, Wish},
};
use crate::{
    clock::{self, BootTime},
    health::{self, Change, Subject},
    ledger::{Journal, LedgerError, SetFile},
    metrics::Metrics,
    runtime::{Ended, Observed, Phase, Publication, Runtime, RuntimeError},
    status::Board,
    telemetry::Chain,
};

/// Between two listings of everything that exists: the net under lost events.
pub const FULL_PASS: Duration = Duration::from_secs(30);
/// Health changes on their way to the loop.
const CHANGES: usize = 256;

/// What is wanted of this host, and on whose word.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub set: Option<Arc<AssignmentSet>>,
    /// From the controller, in this life of the agent; otherwise from the ledger.
    pub authoritative: bool,
}

/// The last set from the controller of which it is true that what it does not want has ended.
#[derive(Clone, Debug, Default)]
pub struct Settled(pub Option<Arc<AssignmentSet>>);

/// What the loop is built from.
#[derive(Debug)]
pub struct Parts<R> {
    pub runtime: Arc<R>,
    pub board: Arc<Board>,
    pub metrics: Arc<Metrics>,
    pub journal: Journal,
    pub set_file: SetFile,
    pub wanted: watch::Receiver<Wanted>,
    /// Until when singletons may run, by the leader's word.
    pub lease: watch::Receiver<Option<BootTime>>,
    pub settled: watch::Sender<Settled>,
}

#[derive(Debug)]
pub struct Reconciler<R> {
    parts: Parts<R>,
    current: Wanted,
    /// Until when singletons may run, as the runtime was told.
    leased: Option<BootTime>,
    tasks: BTreeMap<TaskId, Local>,
    /// For each of `tasks`, what is under way for it.
    upkeep: BTreeMap<TaskId, Upkeep>,
    dirty: BTreeSet<TaskId>,
    /// For each task of the set, those that share its namespaces.
    sharers: BTreeMap<TaskId, Vec<TaskId>>,
    /// Grows with every change to a task; a listing is older than the changes made since it began.
    moment: u64,
    ports: Ports,
    /// The set the ledger holds, or is being given.
    writing: bool,
    written: Option<Arc<AssignmentSet>>,
    work: JoinSet<Event>,
    changes: (mpsc::Sender<Change>, mpsc::Receiver<Change>),
    permits: Permits,
}

#[derive(Debug, Default)]
struct Upkeep {
    reported: Option<TaskStatus>,
    step: Option<AbortHandle>,
    /// Tells the end of the step under way from that of one given up.
    step_number: u64,
    end_watch: Option<AbortHandle>,
    begin_watch: Option<AbortHandle>,
    probes: Option<AbortHandle>,
    wake: Option<Timestamp>,
    changed: u64,
}

#[derive(Debug, Default)]
struct Ports {
    published: Option<Vec<Publication>>,
    busy: bool,
    failures: u32,
    retry_at: Option<Timestamp>,
}

#[derive(Debug)]
enum Event {
    Finished { step: Step, number: u64, took: Duration, result: Result<Done, RuntimeError> },
    Published { step: Step, result: Result<(), RuntimeError> },
    Ended { task: TaskId, ended: Ended },
    Begun { task: TaskId },
    Listed { began: u64, result: Result<Vec<Observed>, RuntimeError> },
    Written { set: Arc<AssignmentSet>, result: Result<(), LedgerError> },
}

impl<R: Runtime> Reconciler<R> {
    pub fn new(mut parts: Parts<R>) -> Self {
        let current = parts.wanted.borrow_and_update().clone();
        Self {
            written: current.set.clone(),
            current,
            leased: None,
            parts,
            tasks: BTreeMap::new(),
            upkeep: BTreeMap::new(),
            dirty: BTreeSet::new(),
            sharers: BTreeMap::new(),
            moment: 0,
            ports: Ports::default(),
            writing: false,
            work: JoinSet::new(),
            changes: mpsc::channel(CHANGES),
            permits: Permits::default(),
        }
    }

    /// Reconciles until shut down. Steps under way are then given up; they can be begun again.
    pub async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.take_back() => {}
            () = shutdown.cancelled() => return,
        }
        self.adopt_lease();
        self.mark_all();
        let mut full_pass = tokio::time::interval_at(Instant::now() + FULL_PASS, FULL_PASS);
        full_pass.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.turn_all();
            self.tell_settled();
            let wake = self.next_wake();
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = self.parts.wanted.changed() => match changed {
                    Ok(()) => self.adopt_set(),
                    // The session, which brings sets, only ends when the agent does.
                    Err(_) => return,
                },
                Some(result) = self.work.join_next() => self.absorb(result),
                Some(change) = self.changes.1.recv() => self.absorb_health(change),
                Ok(()) = self.parts.lease.changed() => self.adopt_lease(),
                confirmed = self.parts.board.confirmed() => self.absorb_confirmed(confirmed),
                () = clock::sleep_until(wake) => self.mark_due(),
                _ = full_pass.tick() => {
                    self.list();
                    self.write_set();
                }
            }
        }
    }

    /// The first listing: what already runs is taken as it is.
    async fn take_back(&mut self) {
        let mut failures = 0;
        let found = loop {
            match self.parts.runtime.list().await {
                Ok(found) => break found,
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        error!("cannot list the containers of this host: {}; trying again", Chain(&error));
                    }
                    tokio::time::sleep(RETRY.delay(failures, rand::random())).await;
                }
            }
        };
        let mut running = 0;
        for Observed { task, phase, frozen } in found {
            self.ensure(&task);
            let local = self.tasks.entry(task.clone()).or_default();
            local.facts.frozen = frozen;
            match phase {
                Phase::Running(started) => {
                    running += 1;
                    let at = started.at;
                    local.take_back(started);
                    self.journal_started(&task, at);
                }
                other => local.observe(Some(other)),
            }
        }
        if running > 0 {
            info!(running, "took back the containers that were running");
        }
    }

    /// Makes the entries of a task, with what the journal knows of it.
    fn ensure(&mut self, task: &TaskId) {
        if self.tasks.contains_key(task) {
            return;
        }
        let mut local = Local::default();
        if let Some(record) = self.parts.journal.record(task) {
            local.facts.started = record.started;
            local.facts.outcome = record.outcome.clone();
        }
        self.tasks.insert(task.clone(), local);
        self.upkeep.insert(task.clone(), Upkeep::default());
    }

    fn mark_all(&mut self) {
        if let Some(set) = self.current.set.clone() {
            self.sharers.clear();
            for (task, assignment) in &set.tasks {
                self.ensure(task);
                if let Some(partner) = &assignment.shares_with {
                    self.sharers.entry(partner.clone()).or_default().push(task.clone());
                }
            }
        }
        self.dirty.extend(self.tasks.keys().cloned());
    }

    fn adopt_set(&mut self) {
        self.current = self.parts.wanted.borrow_and_update().clone();
        if let Some(set) = &self.current.set {
            self.parts.metrics.generation(set.generation.0);
            debug!(generation = set.generation.0, tasks = set.tasks.len(), "a new assignment set");
        }
        self.adopt_lease();
        self.mark_all();
        self.write_set();
    }

    /// Brings the ledger up to date, beside everything else; several sets in quick succession are one write.
    fn write_set(&mut self) {
        let Some(set) = &self.current.set else { return };
        if self.writing || self.written.as_ref().is_some_and(|written| Arc::ptr_eq(written, set)) {
            return;
        }
        self.writing = true;
        let (file, set) = (self.parts.set_file.clone(), set.clone());
        self.work.spawn_blocking(move || {
            let result = file.write(&set);
            Event::Written { set, result }
        });
    }

    fn list(&mut self) {
        let (runtime, began) = (self.parts.runtime.clone(), self.moment);
        self.work.spawn(async move { Event::Listed { began, result: runtime.list().await } });
    }

    fn next_wake(&self) -> Option<Timestamp> {
        self.upkeep.values().filter_map(|upkeep| upkeep.wake).chain(self.ports.retry_at).min()
    }

    fn mark_due(&mut self) {
        let now = clock::now();
        let due = |upkeep: &Upkeep| upkeep.wake.is_some_and(|at| at <= now);
        self.dirty.extend(self.upkeep.iter().filter(|(_, upkeep)| due(upkeep)).map(|(task, _)| task.clone()));
        if self.ports.retry_at.is_some_and(|at| at <= now) {
            self.ports.retry_at = None;
        }
    }

    /// Plans for every marked task, and for the ports, until nothing is marked.
    fn turn_all(&mut self) {
        loop {
            while let Some(task) = self.dirty.pop_first() {
                self.turn(&task);
                // It may be what they waited for.
                self.dirty.extend(self.sharers.get(&task).into_iter().flatten().cloned());
            }
            self.publish();
            if self.dirty.is_empty() {
                return;
            }
        }
    }

    fn turn(&mut self, task: &TaskId) {
        let set = self.current.set.clone();
        let wanted = set.as_ref().and_then(|set| set.tasks.get(task));
        let partner = Partner::of(wanted, &self.tasks);
        let Some(local) = self.tasks.get_mut(task) else { return };
        if let Some(assignment) = wanted {
            local.facts.grace = assignment.spec.stop_grace_period;
        }
        let footing = Footing {
            authoritative: self.current.authoritative,
            leased: self.leased.is_some_and(|until| until > BootTime::now()),
            partner,
        };
        let wish = Wish { assignment: wanted, kept: set.as_ref().is_some_and(|set| set.kept.contains(task)) };
        let next = plan::next(task, wish, footing, local, clock::now());
        if let Some(upkeep) = self.upkeep.get_mut(task) {
            upkeep.wake = next.wake;
        }
        if let Some(step) = next.step {
            self.dispatch(task, step);
        }
        if let Some(assignment) = wanted {
            self.attend(assignment);
            self.report(assignment);
        } else {
            self.watch_end(task);
        }
    }

    fn dispatch(&mut self, task: &TaskId, step: Step) {
        let (Some(local), Some(upkeep)) = (self.tasks.get_mut(task), self.upkeep.get_mut(task)) else { return };
        self.moment += 1;
        upkeep.changed = self.moment;
        match step {
            Step::Settle { status, .. } => self.settle(task, status),
            Step::Abandon { .. } => {
                upkeep.step.take().inspect(AbortHandle::abort);
                upkeep.step_number += 1;
                local.abandoned();
                self.dirty.insert(task.clone());
            }
            Step::Forget { .. } => self.forget(task),
            step => {
                local.begin(&step, clock::now());
                upkeep.step_number += 1;
                let number = upkeep.step_number;
                debug!(%task, step = %step.verb(), "begins");
                let (runtime, permits) = (self.parts.runtime.clone(), self.permits.of(step.verb()));
                upkeep.step = Some(self.work.spawn(async move {
                    let _permit = permits.acquire_owned().await;
                    let began = Instant::now();
                    let result = execute(&*runtime, &step).await;
                    Event::Finished { step, number, took: began.elapsed(), result }
                }));
                // To look at it again should it take long.
                self.dirty.insert(task.clone());
            }
        }
    }

    fn settle(&mut self, task: &TaskId, status: TaskStatus) {
        if let Err(error) = self.parts.journal.ended(task, &status) {
            error!("{}; {task} may be started once more when the agent restarts", Chain(&error));
        }
        if let Some(cause) = &status.cause {
            info!(%task, state = %status.state, "ended: {cause}");
        }
        if let Some(local) = self.tasks.get_mut(task) {
            local.settle(status);
        }
        self.dirty.insert(task.clone());
    }

    fn forget(&mut self, task: &TaskId) {
        self.tasks.remove(task);
        if let Some(upkeep) = self.upkeep.remove(task) {
            upkeep.probes.inspect(AbortHandle::abort);
            upkeep.end_watch.inspect(AbortHandle::abort);
            upkeep.begin_watch.inspect(AbortHandle::abort);
            self.parts.metrics.task_moved(upkeep.reported.map(|status| status.state), None);
        }
        self.parts.board.forget(task);
    }

    fn journal_started(&mut self, task: &TaskId, at: Timestamp) {
        if let Err(error) = self.parts.journal.started(task, at) {
            error!("{}; {task} may be started once more if the host restarts", Chain(&error));
        }
    }

    fn report(&mut self, assignment: &Assignment) {
        let (Some(local), Some(upkeep)) = (self.tasks.get(&assignment.task), self.upkeep.get_mut(&assignment.task))
        else {
            return;
        };
        let Some(status) = local::status(assignment, local, clock::now()) else { return };
        if upkeep.reported.as_ref() == Some(&status) {
            return;
        }
        self.parts.metrics.task_moved(upkeep.reported.as_ref().map(|status| status.state), Some(status.state));
        upkeep.reported = Some(status.clone());
        self.parts.board.report(&assignment.task, status);
    }

    /// Sees to it that what runs is watched and probed, and nothing else is.
    fn attend(&mut self, assignment: &Assignment) {
        let task = &assignment.task;
        self.watch_end(task);
        self.watch_begin(assignment);
        let (Some(local), Some(upkeep)) = (self.tasks.get_mut(task), self.upkeep.get_mut(task)) else { return };
        let facts = &mut local.facts;
        let moves = !assignment.paused && !facts.frozen;
        let wanted =
            assignment.desired == Desired::Run && moves && facts.stopping.is_none() && facts.unhealthy.is_none();
        let (Some(Phase::Running(started)), true) = (&local.phase, wanted) else {
            upkeep.probes.take().inspect(AbortHandle::abort);
            return;
        };
        let Some(prepared) = facts.prepared.as_ref().filter(|_| upkeep.probes.is_none()) else { return };
        let spec = assignment.spec.healthcheck.as_ref();
        let Some(check) = health::resolve(spec, prepared.healthcheck.as_ref()) else { return };
        // What was judged before it was paused is as it was.
        let judged = facts.health != Health::None;
        if !judged {
            facts.health = Health::Starting;
        }
        let taken_back = facts.taken_back || judged;
        let subject = Subject { task: task.clone(), check, started: started.at, taken_back };
        let (runtime, changes, metrics) =
            (self.parts.runtime.clone(), self.changes.0.clone(), self.parts.metrics.clone());
        upkeep.probes =
            Some(tokio::spawn(health::probe_until_unhealthy(runtime, subject, changes, metrics)).abort_handle());
    }

    fn watch_end(&mut self, task: &TaskId) {
        let (Some(local), Some(upkeep)) = (self.tasks.get(task), self.upkeep.get_mut(task)) else { return };
        if !matches!(local.phase, Some(Phase::Running(_))) {
            upkeep.end_watch.take().inspect(AbortHandle::abort);
        } else if upkeep.end_watch.is_none() {
            let watch = await_end(self.parts.runtime.clone(), task.clone());
            upkeep.end_watch = Some(self.work.spawn(watch));
        }
    }

    /// Of one that begins only when somebody attaches.
    fn watch_begin(&mut self, assignment: &Assignment) {
        let task = &assignment.task;
        let (Some(local), Some(upkeep)) = (self.tasks.get(task), self.upkeep.get_mut(task)) else { return };
        let runs = matches!(local.phase, Some(Phase::Running(_)));
        if assignment.spec.attended && runs && !local.facts.begun && upkeep.begin_watch.is_none() {
            let (runtime, task) = (self.parts.runtime.clone(), task.clone());
            let watch = self.work.spawn(async move {
                runtime.begun(&task).await;
                Event::Begun { task }
            });
            upkeep.begin_watch = Some(watch);
        }
    }

    /// Sets the ports right unless that is under way; its end leads here again.
    fn publish(&mut self) {
        let Some(set) = &self.current.set else { return };
        if self.ports.busy || self.ports.retry_at.is_some() {
            return;
        }
        let Some(step) = plan::publish(set, &self.tasks, self.ports.published.as_deref()) else { return };
        let Step::Publish { behind, .. } = &step else { return };
        self.ports.busy = true;
        for task in behind {
            if let Some(local) = self.tasks.get_mut(task) {
                local.facts.exposed = true;
            }
        }
        let runtime = self.parts.runtime.clone();
        self.work.spawn(async move {
            let result = execute(&*runtime, &step).await.map(|_| ());
            Event::Published { step, result }
        });
    }
}

/// The runtime's word is waited for as long as it takes; a runtime that cannot tell is asked again.
async fn await_end<R: Runtime>(runtime: Arc<R>, task: TaskId) -> Event {
    let mut failures = 0;
    loop {
        match runtime.ended(&task).await {
            Ok(ended) => return Event::Ended { task, ended },
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    warn!(%task, "cannot wait for its end: {}; trying again", Chain(&error));
                }
                tokio::time::sleep(RETRY.delay(failures, rand::random())).await;
            }
        }
    }
}

impl<R> Drop for Reconciler<R> {
    fn drop(&mut self) {
        // The rest of the work is dropped with its JoinSet.
        for upkeep in self.upkeep.values() {
            upkeep.probes.as_ref().inspect(|probes| probes.abort());
        }
    }
}
