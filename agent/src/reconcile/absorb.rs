//! What the loop learns: ends of steps and of containers, listings, health, confirmations.
//!
//! Each is only written down and marks the tasks it concerns; what follows from it is [`super::plan`]'s to say.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use roster_proto::{assignment::AssignmentSet, id::TaskId, task::Health};
use tokio::task::JoinError;
use tracing::{debug, error, info, warn};

use super::{
    Event, Reconciler,
    local::{Done, RETRY, Unhealthy},
    plan::{Step, Verb},
};
use crate::{
    clock,
    health::Change,
    ledger::LedgerError,
    runtime::{Ended, Observed, Phase, Runtime, RuntimeError},
    telemetry::Chain,
};

impl<R: Runtime> Reconciler<R> {
    pub(super) fn absorb(&mut self, result: Result<Event, JoinError>) {
        let event = match result {
            Ok(event) => event,
            Err(error) if error.is_cancelled() => return,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        match event {
            Event::Finished { step, number, took, result } => self.absorb_step(&step, number, took, &result),
            Event::Published { step, result } => self.absorb_published(step, result),
            Event::Ended { task, ended } => self.absorb_end(&task, ended),
            Event::Begun { task } => {
                if let Some(local) = self.tasks.get_mut(&task) {
                    local.facts.begun = true;
                    self.dirty.insert(task);
                }
            }
            Event::Listed { began, result } => self.absorb_listing(began, result),
            Event::Written { set, result } => self.absorb_written(set, result),
        }
    }

    fn absorb_step(&mut self, step: &Step, number: u64, took: Duration, result: &Result<Done, RuntimeError>) {
        let Some(task) = step.task() else { return };
        let (Some(local), Some(upkeep)) = (self.tasks.get_mut(task), self.upkeep.get_mut(task)) else { return };
        if upkeep.step_number != number {
            return;
        }
        let verb = step.verb();
        self.moment += 1;
        upkeep.changed = self.moment;
        upkeep.step = None;
        local.finish(verb, result, clock::now(), rand::random());
        self.dirty.insert(task.clone());
        if verb == Verb::Start {
            self.parts.metrics.start_ended(took, result.is_ok());
        }
        match result {
            Ok(Done::Started(started)) => self.journal_started(task, started.at),
            Ok(_) => {}
            Err(error) => {
                self.parts.metrics.step_failed(verb.as_str());
                let failures = local.facts.troubles.get(&verb).map_or(1, |trouble| trouble.failures);
                if failures == 1 {
                    warn!(%task, step = %verb, "{}", Chain(error));
                } else {
                    debug!(%task, step = %verb, failures, "{}", Chain(error));
                }
            }
        }
    }

    fn absorb_published(&mut self, step: Step, result: Result<(), RuntimeError>) {
        let Step::Publish { ports, behind } = step else { return };
        self.ports.busy = false;
        match result {
            Ok(()) => {
                self.ports.failures = 0;
                self.ports.published = Some(ports);
            }
            Err(error) => {
                self.ports.failures += 1;
                self.ports.published = None;
                self.ports.retry_at = Some(clock::now().plus(RETRY.delay(self.ports.failures, rand::random())));
                self.parts.metrics.step_failed(Verb::Publish.as_str());
                if self.ports.failures == 1 {
                    warn!("published ports are not up to date: {}; trying again", Chain(&error));
                }
            }
        }
        // Also after a failure: a container that is to end does not outlive a broken packet filter.
        for (task, local) in &mut self.tasks {
            if local.facts.exposed && !behind.contains(task) {
                local.facts.exposed = false;
                self.dirty.insert(task.clone());
            }
        }
    }

    fn absorb_end(&mut self, task: &TaskId, ended: Ended) {
        let (Some(local), Some(upkeep)) = (self.tasks.get_mut(task), self.upkeep.get_mut(task)) else { return };
        self.moment += 1;
        upkeep.changed = self.moment;
        upkeep.end_watch = None;
        if matches!(local.phase, Some(Phase::Running(_))) {
            local.ended(ended);
            self.dirty.insert(task.clone());
        }
    }

    /// Takes over what differs from what was expected, except where something changed since the listing began.
    fn absorb_listing(&mut self, began: u64, result: Result<Vec<Observed>, RuntimeError>) {
        let found = match result {
            Ok(found) => found,
            Err(error) => {
                warn!("cannot list the containers of this host: {}; trying again", Chain(&error));
                return;
            }
        };
        let frozen: BTreeSet<TaskId> = found.iter().filter(|one| one.frozen).map(|one| one.task.clone()).collect();
        let mut found: BTreeMap<TaskId, Phase> = found.into_iter().map(|one| (one.task, one.phase)).collect();
        for task in found.keys() {
            self.ensure(task);
        }
        for (task, local) in &mut self.tasks {
            let phase = found.remove(task);
            let settled = self.upkeep.get(task).is_some_and(|upkeep| upkeep.changed <= began);
            if settled && local.facts.busy.is_none() && local.phase != phase {
                info!(%task, ?phase, "found otherwise than expected");
                local.observe(phase);
            }
            if settled && local.facts.busy.is_none() {
                local.facts.frozen = frozen.contains(task);
            }
        }
        self.mark_all();
    }

    fn absorb_written(&mut self, set: Arc<AssignmentSet>, result: Result<(), LedgerError>) {
        self.writing = false;
        let current = self.current.set.clone().unwrap_or_default();
        let kept = |task: &TaskId| set.tasks.contains_key(task) || current.tasks.contains_key(task);
        let result = result.and_then(|()| self.parts.journal.compact(kept));
        if let Err(error) = &result {
            error!("{}; the agent goes on, but would not remember this set after a restart", Chain(error));
        }
        self.written = Some(set);
        self.write_set();
        if result.is_err() && !self.writing {
            // Nothing newer to write: this one again, with the next full pass.
            self.written = None;
        }
    }

    pub(super) fn absorb_health(&mut self, change: Change) {
        let Some(local) = self.tasks.get_mut(&change.task) else { return };
        let paused = |set: &Arc<AssignmentSet>| set.tasks.get(&change.task).is_some_and(|assignment| assignment.paused);
        // A probe that was under way when its container came to stand still says nothing.
        if !matches!(local.phase, Some(Phase::Running(_))) || self.current.set.as_ref().is_some_and(paused) {
            return;
        }
        info!(task = %change.task, health = %change.health, "health changed");
        local.facts.health = change.health;
        if change.health == Health::Unhealthy {
            local.facts.unhealthy = Some(Unhealthy { failures: change.failures, output: change.output });
        }
        self.dirty.insert(change.task);
    }

    pub(super) fn absorb_confirmed(&mut self, confirmed: BTreeSet<TaskId>) {
        for task in confirmed {
            if let Some(local) = self.tasks.get_mut(&task) {
                local.facts.acknowledged = true;
                self.dirty.insert(task);
            }
        }
    }
}
