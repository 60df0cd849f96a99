//! A host in a few maps, an agent that may crash at any step, and a world that does as it likes. Whatever happened,
//! once it stops happening the plan converges, and on the way certain things were never done.

use proptest::prelude::*;

use super::*;
use crate::{
    reconcile::local::Done,
    runtime::{Ended, Exit, Prepared, RuntimeError, Started},
};

const TASKS: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Event {
    Want(usize, Desired),
    Leave(usize),
    /// As `Leave`, and if it failed it is to be kept.
    LeaveForInspection(usize),
    /// It is to be kept no longer.
    Drop(usize),
    Pause(usize, bool),
    /// The controller is there, and its set is in force.
    Connect,
    /// The node holds a lease, or no longer.
    Lease(bool),
    Exit(usize),
    Sicken(usize),
    Acknowledge(usize),
    Pass(u64),
    /// The n-th step of the plan, counted around.
    Step(usize, How),
    Crash,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Succeeds,
    Fails {
        transient: bool,
    },
    /// Has its effect, but the agent dies before it knows.
    KillsAgent,
}

#[derive(Debug, Default)]
struct Host {
    // The kernel.
    containers: BTreeMap<TaskId, Phase>,
    frozen: BTreeSet<TaskId>,
    leads_to: BTreeSet<Ipv4Addr>,
    starts: BTreeMap<TaskId, u32>,
    // The disk.
    journal: BTreeMap<TaskId, (Option<Timestamp>, Option<TaskStatus>)>,
    // The agent.
    set: AssignmentSet,
    authoritative: bool,
    leased: bool,
    tasks: BTreeMap<TaskId, Local>,
    published: Option<Vec<Publication>>,
    now: u64,
}

impl Host {
    fn plan(&self) -> Plan {
        plan(View {
            set: Some(&self.set),
            footing: Footing { authoritative: self.authoritative, leased: self.leased, ..Footing::default() },
            tasks: &self.tasks,
            published: self.published.as_deref(),
            now: at(self.now),
        })
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Want(task, desired) => {
                let name = TASKS[*task];
                // A stop is never taken back, and what left the set does not return.
                let stopping = self.set.tasks.get(&id(name)).is_some_and(|old| old.desired != Desired::Run);
                let returns = !self.set.tasks.contains_key(&id(name)) && self.starts.contains_key(&id(name));
                if !stopping && !returns {
                    let mut wanted = assignment(name, desired.clone());
                    Arc::make_mut(&mut wanted.spec).singleton = *task == 0;
                    wanted.shares_with = (*task == 2).then(|| id(TASKS[1]));
                    self.set.tasks.insert(id(name), wanted);
                    self.ensure(&id(name));
                }
            }
            Event::Pause(task, paused) => {
                if let Some(assignment) = self.set.tasks.get_mut(&id(TASKS[*task])) {
                    assignment.paused = *paused;
                }
            }
            Event::Leave(task) => _ = self.set.tasks.remove(&id(TASKS[*task])),
            Event::LeaveForInspection(task) => {
                let task = id(TASKS[*task]);
                let failed =
                    self.tasks.get(&task).is_some_and(|local| local.facts.acknowledged && local.facts.has_failed());
                if self.set.tasks.remove(&task).is_some() && failed {
                    self.set.kept.insert(task);
                }
            }
            Event::Drop(task) => _ = self.set.kept.remove(&id(TASKS[*task])),
            Event::Connect => self.authoritative = true,
            Event::Lease(leased) => self.leased = *leased,
            Event::Exit(task) => self.exit(&id(TASKS[*task]), Exit::Code(1)),
            Event::Sicken(task) => self.sicken(&id(TASKS[*task])),
            Event::Acknowledge(task) => self.acknowledge(&id(TASKS[*task])),
            Event::Pass(millis) => self.now += millis,
            Event::Step(nth, how) => {
                let steps = self.plan().steps;
                if let Some(step) = steps.get(nth % steps.len().max(1)) {
                    self.carry_out(step, *how);
                }
            }
            Event::Crash => self.crash(),
        }
    }

    fn ensure(&mut self, task: &TaskId) {
        let (started, outcome) = self.journal.get(task).cloned().unwrap_or_default();
        let facts = Facts { started, outcome, ..Facts::default() };
        self.tasks.entry(task.clone()).or_insert(Local { phase: None, facts });
    }

    fn exit(&mut self, task: &TaskId, how: Exit) {
        if let Some(phase @ Phase::Running(_)) = self.containers.get_mut(task) {
            *phase = Phase::Ended(Ended { how, at: at(self.now) });
            self.frozen.remove(task);
            let phase = phase.clone();
            if let Some(local) = self.tasks.get_mut(task) {
                local.observe(Some(phase));
            }
        }
    }

    fn sicken(&mut self, task: &TaskId) {
        if let Some(local) = self.tasks.get_mut(task).filter(|local| matches!(local.phase, Some(Phase::Running(_)))) {
            local.facts.health = roster_proto::task::Health::Unhealthy;
            local.facts.unhealthy = Some(local::Unhealthy { failures: 1, output: String::new() });
        }
    }

    fn acknowledge(&mut self, task: &TaskId) {
        if let Some(local) = self.tasks.get_mut(task).filter(|local| local.facts.outcome.is_some()) {
            local.facts.acknowledged = true;
        }
    }

    fn crash(&mut self) {
        self.tasks.clear();
        self.published = None;
        self.authoritative = false;
        self.leased = false;
        for task in self.set.tasks.keys().chain(self.containers.keys()).cloned().collect::<Vec<_>>() {
            self.ensure(&task);
        }
        for (task, phase) in &self.containers {
            let local = self.tasks.get_mut(task).expect("ensured above");
            local.facts.frozen = self.frozen.contains(task);
            match phase {
                Phase::Running(started) => {
                    self.journal.entry(task.clone()).or_default().0.get_or_insert(started.at);
                    local.take_back(started.clone());
                }
                other => local.observe(Some(other.clone())),
            }
        }
    }

    fn carry_out(&mut self, step: &Step, how: How) {
        self.check(step);
        let now = at(self.now);
        if let Some(local) = step.task().and_then(|task| self.tasks.get_mut(task)) {
            local.begin(step, now);
        }
        let result = match how {
            How::Fails { transient } if !matches!(step, Step::Settle { .. } | Step::Forget { .. }) => {
                let cause = Cause::StartFailed { step: "model".into(), error: "as it likes".into() };
                if let Step::Start { assignment } = step {
                    self.containers.insert(assignment.task.clone(), Phase::Broken);
                }
                Err(RuntimeError { cause, transient })
            }
            _ => Ok(self.effect(step)),
        };
        match how {
            How::KillsAgent => self.crash(),
            _ => self.learn(step, &result),
        }
    }

    /// What must never be done.
    fn check(&self, step: &Step) {
        let Some(task) = step.task() else { return };
        let wanted = self.set.tasks.get(task);
        assert!(wanted.is_some() || self.authoritative, "{step:?} outside the set, without the controller's word");
        let address = |task| match self.containers.get(task) {
            Some(Phase::Running(started)) => started.address,
            _ => None,
        };
        match step {
            Step::Start { assignment } => {
                assert!(self.leased || !assignment.spec.singleton, "{step:?} without a lease");
                if let Some(partner) = &assignment.shares_with {
                    let runs = matches!(self.containers.get(partner), Some(Phase::Running(_)));
                    assert!(runs, "{step:?} with nobody to share with");
                }
                assert!(!self.containers.contains_key(task), "{step:?} beside a container");
                assert_eq!(self.starts.get(task), None, "{step:?} for the second time");
                assert_eq!(self.journal.get(task), None, "{step:?} though its end is on record");
            }
            Step::Stop { .. } | Step::Kill { .. } | Step::Freeze { .. } => {
                assert!(address(task).is_none_or(|it| !self.leads_to.contains(&it)), "{step:?} while ports lead to it");
            }
            Step::Keep { .. } => {
                let runs = matches!(self.containers.get(task), Some(Phase::Running(_)));
                assert!(!runs, "{step:?} of what runs");
                let failed = self
                    .journal
                    .get(task)
                    .and_then(|(_, outcome)| outcome.as_ref())
                    .is_some_and(|outcome| outcome.state == TaskState::Failed);
                assert!(failed, "{step:?} of what did not fail");
            }
            Step::Remove { .. } if wanted.is_some() && matches!(self.containers.get(task), Some(Phase::Ended(_))) => {
                let facts = &self.tasks[task].facts;
                assert!(facts.acknowledged && self.journal[task].1.is_some(), "{step:?} before its end is on record");
            }
            _ => {}
        }
    }

    fn effect(&mut self, step: &Step) -> Done {
        match step {
            Step::Prepare { .. } => return Done::Prepared(Prepared::default()),
            Step::Start { assignment } => {
                let number = self.starts.len() as u8 + 2;
                let started = Started { pid: 1, address: Some(Ipv4Addr::new(10, 0, 0, number)), at: at(self.now) };
                *self.starts.entry(assignment.task.clone()).or_default() += 1;
                self.containers.insert(assignment.task.clone(), Phase::Running(started.clone()));
                return Done::Started(started);
            }
            Step::Publish { ports, .. } => {
                self.leads_to =
                    ports.iter().flat_map(|port| port.backends.iter().map(|(address, _)| *address)).collect();
            }
            Step::Freeze { task } => {
                let runs = matches!(self.containers.get(task), Some(Phase::Running(_)));
                self.frozen.extend(runs.then(|| task.clone()));
            }
            Step::Thaw { task } => _ = self.frozen.remove(task),
            Step::Kill { task } => self.exit(task, Exit::Signal(9)),
            Step::Settle { task, status } => {
                self.journal.insert(task.clone(), (status.started, Some(status.clone())));
            }
            Step::Remove { task } => _ = self.containers.remove(task),
            Step::Keep { task } => {
                let kept = matches!(self.containers.remove(task), Some(Phase::Ended(_) | Phase::Kept));
                self.containers.extend(kept.then(|| (task.clone(), Phase::Kept)));
                return Done::Kept(kept);
            }
            // Programs of the model ignore the stop signal.
            Step::Stop { task, .. } => _ = self.frozen.remove(task),
            Step::Abandon { .. } | Step::Forget { .. } => {}
        }
        Done::Nothing
    }

    fn learn(&mut self, step: &Step, result: &Result<Done, RuntimeError>) {
        if let Step::Publish { ports, behind } = step {
            self.published = result.is_ok().then(|| ports.clone());
            if result.is_ok() {
                for (task, local) in &mut self.tasks {
                    local.facts.exposed = behind.contains(task);
                }
            }
            return;
        }
        let Some(task) = step.task() else { return };
        let Some(local) = self.tasks.get_mut(task) else { return };
        match (step, result) {
            (Step::Forget { .. }, _) => _ = self.tasks.remove(task),
            (Step::Settle { status, .. }, _) => local.settle(status.clone()),
            (Step::Abandon { .. }, _) => local.abandoned(),
            (step, result) => {
                let exited = matches!(self.containers.get(task), Some(Phase::Ended(_)));
                local.finish(step.verb(), result, at(self.now), 0.5);
                if let Ok(Done::Started(started)) = result {
                    self.journal.entry(task.clone()).or_default().0 = Some(started.at);
                }
                if exited {
                    local.observe(self.containers.get(task).cloned());
                }
            }
        }
    }

    /// Nothing happens any more but what the plan says.
    fn come_to_rest(&mut self) {
        self.happen(&Event::Connect);
        self.happen(&Event::Lease(true));
        for _ in 0..1000 {
            for task in TASKS {
                self.acknowledge(&id(task));
            }
            let Plan { steps, wake } = self.plan();
            match (steps.first(), wake) {
                (Some(step), _) => self.carry_out(&step.clone(), How::Succeeds),
                (None, Some(wake)) => self.now = wake.0 / 1000 + 1,
                (None, None) => return,
            }
        }
        panic!("no rest: {:#?}", self.plan());
    }

    fn check_rest(&self) {
        for task in TASKS.map(id) {
            let container = self.containers.get(&task);
            let local = self.tasks.get(&task);
            let Some(wanted) = self.set.tasks.get(&task) else {
                let to_keep = self.set.kept.contains(&task);
                if to_keep && matches!(container, Some(Phase::Kept)) {
                    continue;
                }
                assert_eq!((container, local), (None, None), "{task} left the set");
                continue;
            };
            let outcome = local.and_then(|local| local.facts.outcome.as_ref());
            match container {
                Some(Phase::Running(_)) => {
                    assert!(wanted.desired == Desired::Run && outcome.is_none(), "{task} runs: {local:?}");
                    let partner = wanted.shares_with.as_ref().map(|partner| self.containers.get(partner));
                    let runs = partner.is_none_or(|partner| matches!(partner, Some(Phase::Running(_))));
                    assert!(runs, "{task} runs beside {partner:?}: {local:?}");
                    assert_eq!(wanted.paused, self.frozen.contains(&task), "{task}: {local:?}");
                }
                None => assert!(outcome.is_some_and(|outcome| outcome.cause.is_some()), "{task}: {local:?}"),
                Some(Phase::Kept) => {
                    assert!(local.is_some_and(|local| local.facts.has_failed()), "{task} is kept: {local:?}");
                }
                Some(other) => panic!("{task} is left as {other:?}"),
            }
        }
        let up = self.containers.iter().filter_map(|(task, phase)| match phase {
            Phase::Running(started) if self.tasks[task].facts.is_serving() && !self.frozen.contains(task) => {
                started.address
            }
            _ => None,
        });
        assert_eq!(self.leads_to, up.collect());
    }
}

fn event() -> impl Strategy<Value = Event> {
    let task = || 0..TASKS.len();
    let how = prop_oneof![
        6 => Just(How::Succeeds),
        1 => any::<bool>().prop_map(|transient| How::Fails { transient }),
        1 => Just(How::KillsAgent),
    ];
    prop_oneof![
        3 => task().prop_map(|task| Event::Want(task, Desired::Run)),
        1 => task().prop_map(|task| Event::Want(task, Desired::Stop(StopReason::Updated))),
        1 => task().prop_map(Event::Leave),
        1 => task().prop_map(Event::LeaveForInspection),
        1 => task().prop_map(Event::Drop),
        2 => (task(), any::<bool>()).prop_map(|(task, paused)| Event::Pause(task, paused)),
        1 => Just(Event::Connect),
        1 => any::<bool>().prop_map(Event::Lease),
        1 => task().prop_map(Event::Exit),
        1 => task().prop_map(Event::Sicken),
        2 => task().prop_map(Event::Acknowledge),
        2 => (0_u64..3000).prop_map(Event::Pass),
        12 => (0_usize..8, how).prop_map(|(nth, how)| Event::Step(nth, how)),
        1 => Just(Event::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_host_comes_to_what_is_wanted(events in prop::collection::vec(event(), 0..60)) {
        let mut host = Host::default();
        for event in &events {
            host.happen(event);
        }
        host.come_to_rest();
        host.check_rest();
        prop_assert_eq!(host.plan(), Plan::default());
        prop_assert!(is_settled(&host.set, &host.tasks));
    }
}
