//! One task in every situation: what the plan does about it and what is reported.

use std::fmt::Write;

use super::*;
use crate::{
    reconcile::local::{Done, START_TRIES, Unhealthy, status},
    runtime::{Ended, Exit, Prepared, RuntimeError, Started},
};

const NOW: u64 = 10_000;

struct Scenario {
    title: &'static str,
    desired: Option<Desired>,
    authoritative: bool,
    kept: bool,
    local: Local,
}

fn scenario(title: &'static str, desired: Desired, change: impl FnOnce(&mut Local)) -> Scenario {
    let mut local = Local::default();
    change(&mut local);
    Scenario { title, desired: Some(desired), authoritative: true, kept: false, local }
}

fn unwanted(title: &'static str, authoritative: bool, phase: Phase) -> Scenario {
    let local = Local { phase: Some(phase), ..Local::default() };
    Scenario { title, desired: None, authoritative, kept: false, local }
}

/// The controller's set names the task as one that is kept.
fn to_keep(title: &'static str, phase: Phase) -> Scenario {
    Scenario { kept: true, ..unwanted(title, true, phase) }
}

const RUN: Desired = Desired::Run;

fn down() -> Desired {
    Desired::Stop(StopReason::ScaledDown)
}

fn running() -> Phase {
    Phase::Running(Started { pid: 42, address: Some(Ipv4Addr::new(10, 0, 0, 2)), at: at(1_000) })
}

fn ended(how: Exit) -> Phase {
    Phase::Ended(Ended { how, at: at(9_000) })
}

fn prepared(local: &mut Local) {
    local.facts.prepared = Some(Prepared::default());
    local.facts.preparing_since = Some(at(500));
}

fn up(local: &mut Local) {
    prepared(local);
    local.observe(Some(running()));
}

fn begun(local: &mut Local, why: Why, kill_at: u64, signaled: bool) {
    up(local);
    local.facts.stopping = Some(Stopping { why, kill_at: at(kill_at), signaled, killed: None });
}

fn failed(local: &mut Local, step: &Step, times: u32, transient: bool, cause: Cause) {
    for _ in 0..times {
        local.begin(step, at(9_000));
        let error = RuntimeError { cause: cause.clone(), transient };
        local.finish(step.verb(), &Err(error), at(NOW - 1), 0.0);
    }
}

fn broke(local: &mut Local, times: u32) {
    prepared(local);
    let cause = Cause::StartFailed { step: "mount".into(), error: "busy".into() };
    failed(local, &Step::Start { assignment: assignment("a", RUN) }, times, true, cause);
}

fn failure(local: &mut Local) {
    let outcome = local.facts.outcome.as_mut().expect("it has one");
    (outcome.state, outcome.cause) = (TaskState::Failed, Some(Cause::Exited { code: 3 }));
    outcome.started = Some(at(1_000));
}

fn outcome(local: &mut Local, acknowledged: bool) {
    local.phase = Some(ended(Exit::Code(1)));
    local.facts.outcome =
        Some(local::last_status(TaskState::Failed, Cause::Exited { code: 1 }, at(9_000), &Facts::default()));
    local.facts.acknowledged = acknowledged;
}

fn unhealthy(local: &mut Local) {
    local.facts.health = roster_proto::task::Health::Unhealthy;
    local.facts.unhealthy = Some(Unhealthy { failures: 3, output: "503".into() });
}

fn making() -> Vec<Scenario> {
    let prepare = || Step::Prepare { assignment: assignment("a", RUN) };
    let absent = || Cause::ImageUnavailable { image: "web".into(), reason: "no such image".into() };
    let offline = || Cause::ImageUnavailable { image: "web".into(), reason: "the registry does not answer".into() };
    vec![
        scenario("new", RUN, |_| {}),
        scenario("preparing, not for long", RUN, |local| local.begin(&prepare(), at(NOW - 5))),
        scenario("preparing for long", RUN, |local| local.begin(&prepare(), at(NOW - 500))),
        scenario("preparing, no longer wanted", down(), |local| local.begin(&prepare(), at(NOW - 500))),
        scenario("the image is absent", RUN, |local| failed(local, &prepare(), 1, false, absent())),
        scenario("the registry is offline", RUN, |local| failed(local, &prepare(), 1, true, offline())),
        scenario("the registry stays offline", RUN, |local| {
            failed(local, &prepare(), local::PREPARE_TRIES, true, offline());
        }),
        scenario("prepared", RUN, prepared),
        scenario("half made by an agent that crashed", RUN, |local| local.phase = Some(Phase::Broken)),
        scenario("a start failed", RUN, |local| broke(local, 1)),
        scenario("a start failed and was cleared away", RUN, |local| {
            broke(local, 1);
            local.finish(Verb::Remove, &Ok(Done::Nothing), at(NOW), 0.0);
        }),
        scenario("starts go on failing", RUN, |local| broke(local, START_TRIES)),
        scenario("started once, and nothing is left", RUN, |local| local.facts.started = Some(at(1_000))),
        scenario("told to stop before anything was made", down(), |_| {}),
    ]
}

fn living() -> Vec<Scenario> {
    vec![
        scenario("running", RUN, up),
        scenario("taken back, its image not looked at yet", RUN, |local| local.observe(Some(running()))),
        scenario("unhealthy, ports lead to it", RUN, |local| {
            up(local);
            unhealthy(local);
            local.facts.exposed = true;
        }),
        scenario("unhealthy, ports lead elsewhere", RUN, |local| {
            up(local);
            unhealthy(local);
        }),
        scenario("told to stop, ports lead to it", down(), |local| {
            up(local);
            local.facts.exposed = true;
        }),
        scenario("told to stop", down(), up),
        scenario("stopping", down(), |local| {
            begun(local, Why::Told(StopReason::ScaledDown), NOW + 500, true);
        }),
        scenario("the stop signal did not get through", down(), |local| {
            begun(local, Why::Told(StopReason::ScaledDown), NOW + 500, false);
        }),
        scenario("the grace is over", down(), |local| {
            begun(local, Why::Told(StopReason::ScaledDown), NOW, true);
        }),
        scenario("killed, and not gone yet", down(), |local| {
            begun(local, Why::Told(StopReason::ScaledDown), NOW - 100, true);
            local.finish(Verb::Kill, &Ok(Done::Nothing), at(NOW - 50), 0.0);
        }),
        unwanted("unknown, by the ledger", false, running()),
        unwanted("unknown, by the controller", true, running()),
        unwanted("a leftover, by the ledger", false, Phase::Broken),
        unwanted("a leftover, by the controller", true, Phase::Broken),
    ]
}

fn ending() -> Vec<Scenario> {
    let exit = |title, how| {
        scenario(title, RUN, move |local| {
            up(local);
            local.phase = Some(ended(how));
        })
    };
    vec![
        exit("ended well", Exit::Code(0)),
        exit("ended with an error", Exit::Code(3)),
        exit("killed by someone", Exit::Signal(9)),
        exit("out of memory", Exit::OutOfMemory { limit: Some(64 << 20) }),
        exit("its shim was killed", Exit::ShimLost),
        scenario("ended after the stop signal", down(), |local| {
            begun(local, Why::Told(StopReason::ScaledDown), NOW, true);
            local.phase = Some(ended(Exit::Signal(15)));
        }),
        scenario("stopped, by an agent that crashed", down(), |local| local.phase = Some(ended(Exit::Signal(15)))),
        scenario("stopped because unhealthy, then told to stop", down(), |local| {
            begun(local, Why::Unhealthy, NOW, true);
            unhealthy(local);
            local.phase = Some(ended(Exit::Signal(15)));
        }),
        scenario("an outcome not acknowledged", RUN, |local| outcome(local, false)),
        scenario("an outcome acknowledged", RUN, |local| outcome(local, true)),
        scenario("nothing left but the outcome", RUN, |local| {
            outcome(local, true);
            local.phase = None;
        }),
        unwanted("ended, no longer in the set", true, ended(Exit::Code(0))),
        Scenario {
            title: "nothing left, no longer in the set",
            desired: None,
            authoritative: true,
            kept: false,
            local: Local::default(),
        },
        scenario("a failure acknowledged", RUN, |local| {
            outcome(local, true);
            failure(local);
        }),
        scenario("a failed start acknowledged", RUN, |local| {
            outcome(local, true);
            failure(local);
            local.facts.outcome.as_mut().expect("it has one").started = None;
        }),
        scenario("a failure, kept", RUN, |local| {
            outcome(local, true);
            failure(local);
            local.finish(Verb::Keep, &Ok(Done::Kept(true)), at(NOW), 0.0);
        }),
        scenario("a failure for which there is no room", RUN, |local| {
            outcome(local, true);
            failure(local);
            local.finish(Verb::Keep, &Ok(Done::Kept(false)), at(NOW), 0.0);
        }),
        scenario("kept, without a record of its end", RUN, |local| local.phase = Some(Phase::Kept)),
        to_keep("a failure that is to be kept, no longer to run", ended(Exit::Code(3))),
        to_keep("half kept by an agent that crashed", Phase::Broken),
        to_keep("kept", Phase::Kept),
        unwanted("kept, and no longer to be, by the controller", true, Phase::Kept),
        unwanted("kept, and no longer to be, by the ledger", false, Phase::Kept),
    ]
}

fn tell(text: &mut String, scenario: &Scenario) {
    let assignment = scenario.desired.clone().map(|desired| assignment("a", desired));
    let footing = Footing { authoritative: scenario.authoritative, ..Footing::default() };
    let wish = Wish { assignment: assignment.as_ref(), kept: scenario.kept };
    let next = next(&id("a"), wish, footing, &scenario.local, at(NOW));
    writeln!(text, "{}", scenario.title).unwrap();
    match &next.step {
        Some(Step::Settle { status, .. }) => {
            let cause = status.cause.as_ref().expect("an outcome has a cause");
            writeln!(text, "    settle: {}, {cause}", status.state).unwrap();
        }
        Some(Step::Stop { why, grace, .. }) => writeln!(text, "    stop: {why:?}, grace {grace:?}").unwrap(),
        Some(step) => writeln!(text, "    {}", step.verb()).unwrap(),
        None => {}
    }
    if let Some(wake) = next.wake {
        writeln!(text, "    looks again in {:?}", wake.since(at(NOW))).unwrap();
    }
    if let Some(status) = assignment.and_then(|assignment| status(&assignment, &scenario.local, at(NOW))) {
        let cause = status.cause.map(|cause| format!(", {cause}")).unwrap_or_default();
        writeln!(text, "    reports {} {}{cause}", status.state, status.health).unwrap();
    }
}

#[test]
fn every_situation_has_its_step() {
    let mut text = String::new();
    for (heading, scenarios) in [("Making", making()), ("Living", living()), ("Ending", ending())] {
        writeln!(text, "== {heading}").unwrap();
        for scenario in &scenarios {
            tell(&mut text, scenario);
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn ports_lead_to_what_is_up_and_stays() {
    let address = |last| Ipv4Addr::new(10, 0, 0, last);
    let mut set = AssignmentSet::default();
    let mut tasks = BTreeMap::new();
    let mut add = |name: &str, last, desired, change: &dyn Fn(&mut Facts)| {
        let mut local = Local::default();
        local.observe(Some(Phase::Running(Started { pid: 1, address: Some(address(last)), at: at(0) })));
        change(&mut local.facts);
        set.tasks.insert(id(name), assignment(name, desired));
        tasks.insert(id(name), local);
    };
    add("c", 4, RUN, &|_| {});
    add("healthy", 2, RUN, &|facts| facts.health = roster_proto::task::Health::Healthy);
    add("taken-back", 3, RUN, &|facts| {
        facts.health = roster_proto::task::Health::Starting;
        facts.taken_back = true;
    });
    add("starting", 5, RUN, &|facts| facts.health = roster_proto::task::Health::Starting);
    add("unhealthy", 6, RUN, &|facts| facts.health = roster_proto::task::Health::Unhealthy);
    add("told", 7, down(), &|_| {});
    let Some(Step::Publish { ports, behind }) = publish(&set, &tasks, None) else { panic!("nothing is published") };
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0].backends, [(address(2), 80), (address(3), 80), (address(4), 80)]);
    assert_eq!(behind, [id("c"), id("healthy"), id("taken-back")].into());
    assert_eq!(publish(&set, &tasks, Some(&ports)), None, "published already");
}

#[test]
fn a_singleton_waits_for_a_lease() {
    let mut singleton = assignment("a", RUN);
    Arc::make_mut(&mut singleton.spec).singleton = true;
    let mut local = Local::default();
    let step = |local: &Local, leased| {
        let footing = Footing { authoritative: true, leased, ..Footing::default() };
        let wish = Wish { assignment: Some(&singleton), kept: false };
        next(&id("a"), wish, footing, local, at(NOW)).step.map(|step| step.verb())
    };
    assert_eq!(step(&local, false), Some(Verb::Prepare), "its image may come before");
    prepared(&mut local);
    assert_eq!(step(&local, false), None);
    assert_eq!(step(&local, true), Some(Verb::Start));
    up(&mut local);
    assert_eq!(step(&local, false), None, "its shim ends it");
}

#[test]
fn what_shares_namespaces_waits_for_their_container_and_ends_with_it() {
    let sharer = Assignment { shares_with: Some(id("db")), ..assignment("a", RUN) };
    let partner = |change: &dyn Fn(&mut Local)| {
        let mut local = Local::default();
        change(&mut local);
        Partner::of(Some(&sharer), &BTreeMap::from([(id("db"), local)]))
    };
    let (runs, fresh) = (partner(&up), partner(&prepared));
    let stopping = partner(&|local| begun(local, Why::Unhealthy, NOW + 500, true));
    let gone = [
        partner(&|local| local.phase = Some(ended(Exit::Code(0)))),
        partner(&|local| outcome(local, true)),
        partner(&|local| local.facts.started = Some(at(1_000))),
        Partner::of(Some(&sharer), &BTreeMap::new()),
    ];
    assert_eq!((runs, fresh, stopping), (Partner::Runs, Partner::Waits, Partner::Waits));
    assert_eq!(gone, [Partner::Gone; 4]);
    assert_eq!(Partner::of(Some(&assignment("a", RUN)), &BTreeMap::new()), Partner::Runs, "with nobody");

    let step = |local: &Local, partner| {
        let footing = Footing { authoritative: true, partner, ..Footing::default() };
        next(&id("a"), Wish { assignment: Some(&sharer), kept: false }, footing, local, at(NOW)).step
    };
    let verb = |local: &Local, partner| step(local, partner).map(|step| step.verb());
    let mut local = Local::default();
    assert_eq!(verb(&local, Partner::Waits), Some(Verb::Prepare), "its image may come before");
    prepared(&mut local);
    assert_eq!(verb(&local, Partner::Waits), None);
    assert_eq!(verb(&local, Partner::Runs), Some(Verb::Start));
    let Some(Step::Settle { status, .. }) = step(&local, Partner::Gone) else { panic!("it waits") };
    assert_eq!(status.state, TaskState::Shutdown);
    assert_eq!(status.cause, Some(Cause::Stopped { reason: StopReason::Severed }));
    up(&mut local);
    assert_eq!(verb(&local, Partner::Waits), None);
    let Some(Step::Stop { why, .. }) = step(&local, Partner::Gone) else { panic!("it runs on") };
    assert_eq!(why, Why::Told(StopReason::Severed));
    let status = local::ended_status(None, &local.facts, &Ended { how: Exit::Severed, at: at(9_000) });
    assert_eq!(status.cause, Some(Cause::Stopped { reason: StopReason::Severed }));
    assert!(!Facts { outcome: Some(status), ..Facts::default() }.has_failed());
}

#[test]
fn a_host_is_settled_once_nothing_runs_that_must_not() {
    let settled = |desired: Option<Desired>, local: &Local| {
        let tasks = desired.map(|desired| (id("a"), assignment("a", desired)));
        let set = AssignmentSet { tasks: tasks.into_iter().collect(), ..AssignmentSet::default() };
        is_settled(&set, &BTreeMap::from([(id("a"), local.clone())]))
    };
    let mut local = Local::default();
    local.begin(&Step::Start { assignment: assignment("a", RUN) }, at(NOW));
    assert!(settled(Some(RUN), &local) && !settled(None, &local), "about to run");
    let mut local = Local::default();
    up(&mut local);
    assert!(settled(Some(RUN), &local));
    assert!(!settled(Some(down()), &local) && !settled(None, &local));
    local.phase = Some(Phase::Broken);
    assert!(!settled(None, &local), "half made");
    local.phase = Some(ended(Exit::Code(0)));
    assert!(settled(Some(down()), &local) && settled(None, &local));
    outcome(&mut local, true);
    local.phase = Some(running());
    assert!(!settled(Some(RUN), &local), "its end is on record");
}
