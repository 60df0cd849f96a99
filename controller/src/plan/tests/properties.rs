//! Whatever people, agents and crashes do, in any order: the invariants hold, a plan leaves nothing to plan, a stale
//! plan is refused, a replayed log gives the same bytes, and once the world is quiet every service converges.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{collection::vec, prelude::*};
use roster_proto::{
    cause::Cause,
    id::{NodeId, ServiceId, Slot, TaskId, Version},
    node::{Availability, Capacity, NodeState},
    spec::{Mode, PidMode, Port, Protocol, RestartCondition, ServiceSpec, UpdateOrder},
    task::{Desired, Health, StopReason, Task, TaskState, TaskStatus},
    time::Timestamp,
};

use super::world::{World, node_id, service_id, stack_of};
use crate::{
    plan::{check, service_view},
    state::{
        ClusterState,
        command::{Change, Command, Entry, Outcome, Refusal},
    },
};

const NODES: [&str; 3] = ["a", "b", "c"];
/// The first rolls out stop-first, the second start-first, the third is global, the fourth publishes a port, the fifth
/// is a singleton, the sixth
/// shares the namespaces of the first.
const ONE_OFFS: [&str; 3] = ["once", "job", "last"];
const SERVICES: [&str; 6] = ["calm", "eager", "everywhere", "open", "only", "beside"];

#[derive(Clone, Debug)]
enum Act {
    Put {
        service: usize,
        replicas: u32,
        image: u8,
        parallelism: u32,
    },
    Scale {
        service: usize,
        replicas: u32,
    },
    Remove {
        service: usize,
    },
    Restart {
        service: usize,
    },
    RestartTask {
        task: usize,
    },
    /// What runs once, is forgotten at its end or not, and may be there already.
    Once {
        name: usize,
        service: usize,
        remove_when_ended: bool,
    },
    RemoveOnce {
        name: usize,
    },
    Node {
        node: usize,
        up: bool,
    },
    Availability {
        node: usize,
        availability: u8,
    },
    /// Its leases have run out.
    Fence {
        node: usize,
    },
    RemoveNode {
        node: usize,
        force: bool,
    },
    ReleaseBrake,
    /// Planned and applied.
    Plan,
    /// Planned, and the leader crashed before, or after, its proposal went through.
    PlanLost,
    /// Planned, and something else was applied first.
    PlanStale {
        node: usize,
    },
    /// An agent reports any state of one of its tasks.
    Report {
        task: usize,
        state: u8,
        health: u8,
    },
    Obey,
    Advance {
        millis: u64,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..6_usize, 0..5_u32, 0..3_u8, 0..3_u32).prop_map(|(service, replicas, image, parallelism)| {
            Act::Put { service, replicas, image, parallelism }
        }),
        1 => (0..6_usize, 0..6_u32).prop_map(|(service, replicas)| Act::Scale { service, replicas }),
        1 => (0..6_usize).prop_map(|service| Act::Remove { service }),
        1 => (0..6_usize).prop_map(|service| Act::Restart { service }),
        1 => (0..20_usize).prop_map(|task| Act::RestartTask { task }),
        2 => (0..3_usize, 0..6_usize, any::<bool>()).prop_map(|(name, service, remove_when_ended)| {
            Act::Once { name, service, remove_when_ended }
        }),
        1 => (0..3_usize).prop_map(|name| Act::RemoveOnce { name }),
        2 => (0..3_usize, any::<bool>()).prop_map(|(node, up)| Act::Node { node, up }),
        1 => (0..3_usize, 0..3_u8).prop_map(|(node, availability)| Act::Availability { node, availability }),
        1 => (0..3_usize).prop_map(|node| Act::Fence { node }),
        1 => (0..3_usize, any::<bool>()).prop_map(|(node, force)| Act::RemoveNode { node, force }),
        1 => Just(Act::ReleaseBrake),
        6 => Just(Act::Plan),
        1 => Just(Act::PlanLost),
        1 => (0..3_usize).prop_map(|node| Act::PlanStale { node }),
        6 => (0..20_usize, 0..11_u8, 0..4_u8).prop_map(|(task, state, health)| Act::Report { task, state, health }),
        3 => Just(Act::Obey),
        3 => (0..20_000_u64).prop_map(|millis| Act::Advance { millis }),
    ]
}

fn spec(service: usize, replicas: u32, image: u8, parallelism: u32) -> ServiceSpec {
    let mut spec = ServiceSpec::of_image(format!("app:{image}"), replicas);
    spec.update.parallelism = parallelism;
    spec.task.resources.reservations.nano_cpus = Some(100_000_000);
    match service {
        1 => spec.update.order = UpdateOrder::StartFirst,
        2 => spec.mode = Mode::Global,
        3 => {
            spec.restart.condition = RestartCondition::OnFailure;
            let published = (image != 0).then_some(8080);
            spec.task.ports = vec![Port { target: 80, published, host_ip: None, protocol: Protocol::Tcp }];
        }
        4 => {
            spec.task.singleton = true;
            spec.mode = Mode::Replicated { replicas: replicas.min(1) };
        }
        5 => spec.task.rights.pid = PidMode::Service(service_id("calm").name),
        _ => {}
    }
    spec
}

fn perform(world: &mut World, act: &Act) {
    match *act {
        Act::Put { service, replicas, image, parallelism } => {
            world.put(&[(SERVICES[service], spec(service, replicas, image, parallelism))], false);
        }
        Act::Scale { service, replicas } => {
            world.apply(Command::Scale { replicas: BTreeMap::from([(service_id(SERVICES[service]), replicas)]) });
        }
        Act::Remove { service } => {
            world.apply(Command::RemoveService { service: service_id(SERVICES[service]) });
        }
        Act::Restart { service } => {
            let services = BTreeSet::from([service_id(SERVICES[service])]);
            world.apply(Command::Restart { services, tasks: BTreeSet::new() });
        }
        Act::RestartTask { task } => {
            let ids: Vec<TaskId> = world.state.tasks.keys().cloned().collect();
            if let Some(id) = ids.get(task % ids.len().max(1)) {
                let tasks = BTreeSet::from([id.clone()]);
                world.apply(Command::Restart { services: BTreeSet::new(), tasks });
            }
        }
        Act::Once { name, service, remove_when_ended } => {
            world.once(ONE_OFFS[name], SERVICES[service], remove_when_ended);
        }
        Act::RemoveOnce { name } => {
            world.apply(Command::RemoveService { service: service_id(ONE_OFFS[name]) });
        }
        Act::Node { node, up: true } => {
            world.register(NODES[node], Capacity { nano_cpus: 1_000_000_000, memory: 1 << 30 });
        }
        Act::Node { node, up: false } => {
            world.set_node(NODES[node], NodeState::Down);
        }
        Act::Availability { node, availability } => {
            let all = [Availability::Active, Availability::Pause, Availability::Drain];
            world.set_availability(NODES[node], all[usize::from(availability)]);
        }
        Act::Fence { node } => {
            world.apply(Command::SetNodeFenced { node: node_id(NODES[node]) });
        }
        Act::RemoveNode { node, force } => {
            world.apply(Command::RemoveNode { node: node_id(NODES[node]), force });
        }
        Act::ReleaseBrake => {
            world.apply(Command::ReleaseBrake);
        }
        Act::Plan => {
            let before = world.state.clone();
            let changes = world.plan();
            assert_brake_holds(&before, &changes, world.now);
        }
        Act::PlanLost => {
            world.think();
        }
        Act::PlanStale { node } => {
            let plan = world.think();
            let node = NODES[node];
            world.register(node, Capacity { nano_cpus: 1_000_000_000, memory: 2 << 30 });
            world.register(node, Capacity { nano_cpus: 1_000_000_000, memory: 1 << 30 });
            let outcome = world.apply(Command::ApplyPlan { base: plan.base, changes: plan.changes });
            let refused = matches!(outcome, Outcome::Refused(Refusal::Stale { base, .. }) if base == plan.base);
            assert!(refused, "{outcome:?}");
        }
        Act::Report { task, state, health } => report(world, task, state, health),
        Act::Obey => {
            world.obey();
        }
        Act::Advance { millis } => world.advance(Duration::from_millis(millis)),
    }
}

/// Any state, also backwards, of a task that may have ended long ago.
fn report(world: &mut World, task: usize, state: u8, health: u8) {
    let count = world.state.tasks.len();
    let Some(task) = (count > 0).then(|| world.state.tasks.values().nth(task % count)).flatten().cloned() else {
        return;
    };
    let states = [
        TaskState::New,
        TaskState::Pending,
        TaskState::Assigned,
        TaskState::Preparing,
        TaskState::Starting,
        TaskState::Running,
        TaskState::Complete,
        TaskState::Failed,
        TaskState::Rejected,
        TaskState::Shutdown,
        TaskState::Orphaned,
    ];
    let mut status = TaskStatus::new(states[usize::from(state)], world.now);
    status.health = [Health::None, Health::Starting, Health::Healthy, Health::Unhealthy][usize::from(health)];
    world.report_status(&task, status);
}

fn live(state: &ClusterState, service: &str, slot: &Slot) -> Vec<Task> {
    let live = |task: &Task| task.node.is_some() && !task.status.state.is_terminal();
    state.tasks_in(&service_id(service), slot).filter(|task| live(task)).map(|task| Task::clone(task)).collect()
}

/// No task leaves a node that the brake holds, unless people want it stopped.
fn assert_brake_holds(before: &ClusterState, changes: &[Change], now: Timestamp) {
    let Some(brake) = before.brake.as_ref().filter(|brake| !brake.is_over(now)) else { return };
    let stopped: BTreeSet<&TaskId> = changes
        .iter()
        .filter_map(|change| match change {
            Change::StopTask { task, reason } if *reason != StopReason::Moved => Some(task),
            _ => None,
        })
        .collect();
    for change in changes {
        let Change::OrphanTask { task, .. } = change else { continue };
        let Some(known) = before.tasks.get(task) else { continue };
        let held = known.node.as_ref().is_some_and(|node| brake.nodes.contains(node));
        let wanted = known.desired == Desired::Run && !stopped.contains(task);
        assert!(!(held && wanted), "{task} is moved in spite of the brake: {changes:#?}");
    }
}

/// Where singletons may run, as only an onlooker of all nodes could know: from when they are bound until their end is
/// reported, their node is fenced, or it has settled without them.
#[derive(Debug, Default)]
struct Onlooker {
    may_run: BTreeMap<TaskId, NodeId>,
}

impl Onlooker {
    fn look(&mut self, state: &ClusterState) {
        for task in state.tasks_of(&service_id("only")) {
            if let Some(node) = task.node.as_ref().filter(|_| !task.status.state.is_terminal()) {
                self.may_run.insert(task.id.clone(), node.clone());
            }
        }
        self.may_run.retain(|task, node| {
            let Some(host) = state.nodes.get(node) else { return false };
            let ended = state
                .tasks
                .get(task)
                .is_some_and(|task| task.status.state.is_terminal() && task.status.state != TaskState::Orphaned);
            let in_set = state.tasks_on(node).any(|bound| bound.id == *task);
            !ended && !host.fenced && (in_set || host.state == NodeState::Down)
        });
        assert!(self.may_run.len() <= 1, "{:#?}", self.may_run);
    }
}

/// What runs once has one task, from its being wanted to its being forgotten.
#[derive(Debug, Default)]
struct Runs(BTreeMap<(ServiceId, Version), BTreeSet<TaskId>>);

impl Runs {
    fn look(&mut self, state: &ClusterState) {
        for service in ONE_OFFS.iter().filter_map(|name| state.services.get(&service_id(name))) {
            let runs = self.0.entry((service.id.clone(), service.spec_version)).or_default();
            runs.extend(state.tasks_of(&service.id).map(|task| task.id.clone()));
            assert!(runs.len() <= 1, "{} ran twice: {runs:?}", service.id);
        }
    }
}

fn assert_sound(world: &World, last: &Act) {
    assert_eq!(check(&world.state), [], "after {last:?}");
    assert_one_is_kept(&world.state, last);
    for service in SERVICES {
        for slot in world.state.slots_of(&service_id(service)) {
            let live = live(&world.state, service, slot);
            let most = if service == "eager" { 2 } else { 1 };
            assert!(live.len() <= most, "after {last:?}, {} tasks may run in {service}.{slot}: {live:#?}", live.len());
        }
    }
}

/// Of each slot its own node keeps the last container that failed, and nobody keeps any other.
fn assert_one_is_kept(state: &ClusterState, last: &Act) {
    let kept = |node: &'static str| {
        state.assignment_set(&node_id(node)).kept.into_iter().map(move |task| (node_id(node), task))
    };
    let kept: BTreeSet<(NodeId, TaskId)> = NODES.into_iter().flat_map(kept).collect();
    let slots = state.services.keys().cloned().flat_map(|service| {
        let slots: Vec<Slot> = state.slots_of(&service).cloned().collect();
        slots.into_iter().map(move |slot| (service.clone(), slot))
    });
    let failed = |task: &&std::sync::Arc<Task>| task.status.state == TaskState::Failed && task.status.started.is_some();
    let last_failed = slots.filter_map(|(service, slot)| {
        let task = state.tasks_in(&service, &slot).filter(failed).max_by_key(|task| task.created)?;
        Some((task.node.clone()?, task.id.clone()))
    });
    assert_eq!(kept, last_failed.collect(), "after {last:?}");
}

/// All nodes answer, agents obey, time passes: everything must end as it is wanted.
fn assert_converges(world: &mut World) {
    for node in NODES {
        world.register(node, Capacity { nano_cpus: 8_000_000_000, memory: 1 << 30 });
        world.set_availability(node, Availability::Active);
    }
    // As many as those that share with them.
    world.put(&[("calm", spec(0, 6, 0, 1))], false);
    for _ in 0..200 {
        let changes = world.plan();
        let moved = world.obey() | recover(world);
        if changes.is_empty() && !moved {
            match world.think().next_wake {
                Some(wake) => world.now = world.now.max(wake),
                None => break,
            }
        }
    }
    assert!(world.think().changes.is_empty(), "still something to do");
    for id in world.state.services.keys() {
        let view = service_view(&world.state, id, world.now).expect("it is listed");
        let tasks: Vec<_> = world.state.tasks_of(id).collect();
        if let Some(one_off) = &world.state.services[id].one_off {
            let ended = tasks.iter().all(|task| task.status.state.is_terminal());
            assert!(!(ended && one_off.remove_when_ended), "{id} is not forgotten: {tasks:#?}");
            continue;
        }
        assert!(view.converged, "{id} does not converge: {view:#?}\n{tasks:#?}");
    }
}

/// What ran without being well becomes well; true when there was any.
fn recover(world: &mut World) -> bool {
    let unwell = |task: &Task| task.status.state == TaskState::Running && !task.is_up();
    let tasks: Vec<Task> =
        world.state.tasks.values().filter(|task| unwell(task)).map(|task| Task::clone(task)).collect();
    for task in &tasks {
        let mut status = task.status.clone();
        status.health = Health::Healthy;
        world.report_status(task, status);
    }
    !tasks.is_empty()
}

fn replay(mut state: ClusterState, log: &[(Version, Entry)]) -> Vec<u8> {
    for (version, entry) in log {
        let entry = Entry::decode(&entry.encode()).expect("what was encoded can be decoded");
        state.apply(*version, &entry);
    }
    state.encode()
}

/// `PROPTEST_CASES` asks for more.
fn config(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { ProptestConfig { cases, ..config } }
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn holds_whatever_happens(acts in vec(act(), 1..60), snapshot_at in 0..60_usize) {
        let mut world = World::default();
        let mut snapshot = (0, ClusterState::default().encode());
        let (mut onlooker, mut runs) = (Onlooker::default(), Runs::default());
        for (i, act) in acts.iter().enumerate() {
            perform(&mut world, act);
            assert_sound(&world, act);
            onlooker.look(&world.state);
            runs.look(&world.state);
            if i == snapshot_at {
                snapshot = (world.log.len(), world.state.encode());
            }
        }
        assert_converges(&mut world);
        runs.look(&world.state);

        let (position, bytes) = snapshot;
        let restored = ClusterState::decode(&bytes).expect("a good snapshot");
        prop_assert_eq!(restored.encode(), bytes);
        prop_assert_eq!(replay(restored, &world.log[position..]), world.state.encode());
        prop_assert_eq!(replay(ClusterState::default(), &world.log), world.state.encode());
        let reloaded = ClusterState::decode(&world.state.encode()).expect("a good snapshot");
        prop_assert_eq!(reloaded, world.state);
    }

    /// Not even changes that no planner would make do more than nothing, and the indexes stay right.
    #[test]
    fn arbitrary_commands_are_survived(acts in vec(act(), 1..20), changes in vec(wild_change(), 1..40)) {
        let mut world = World::default();
        for chunk in changes.chunks(5) {
            acts.iter().filter(|act| !matches!(act, Act::Plan | Act::PlanLost | Act::PlanStale { .. })).for_each(|act| {
                perform(&mut world, act);
            });
            let base = world.state.plan_base;
            world.apply(Command::ApplyPlan { base, changes: chunk.to_vec() });
        }
        let reloaded = ClusterState::decode(&world.state.encode()).expect("a good snapshot");
        prop_assert_eq!(reloaded, world.state);
    }
}

fn wild_change() -> impl Strategy<Value = Change> {
    let task = || (0..6_u8).prop_map(|n| format!("t{n}").parse::<TaskId>().expect("a task id"));
    let cause = || Just(Cause::Exited { code: 1 });
    prop_oneof![
        4 => (task(), 0..4_usize, 0..4_u32, 0..12_u64, any::<bool>()).prop_map(|(task, service, slot, version, waits)| {
            Change::CreateTask {
                task,
                service: service_id(SERVICES[service]),
                slot: Slot::Replica(slot),
                spec_version: Version(version),
                not_before: waits.then_some(Timestamp(u64::MAX)),
                attempt: u32::MAX,
                replaces: None,
                cause: None,
            }
        }),
        3 => (task(), 0..3_usize).prop_map(|(task, node)| Change::AssignTask {
            task,
            node: node_id(NODES[node]),
            shares_with: None,
        }),
        1 => (task(), cause()).prop_map(|(task, cause)| Change::Explain { task, cause }),
        1 => task().prop_map(|task| Change::StopTask { task, reason: StopReason::Moved }),
        1 => (task(), cause()).prop_map(|(task, cause)| Change::OrphanTask { task, cause }),
        1 => (task(), cause()).prop_map(|(task, cause)| Change::GiveUp { task, cause }),
        1 => task().prop_map(|task| Change::RemoveTask { task }),
        1 => (0..6_usize).prop_map(|service| Change::ForgetService { service: service_id(SERVICES[service]) }),
        1 => Just(Change::EndBrake),
    ]
}

/// However long the causes are that its changes carry.
#[test]
fn a_plan_fits_into_an_entry_of_the_log() {
    let mut world = World::default();
    world.register("a", Capacity { nano_cpus: 1_000_000_000, memory: 1 << 30 });
    world.put(&[("calm", ServiceSpec::of_image("app:1", 1_500))], false);
    world.plan();
    world.obey();
    let tasks: Vec<Task> = world.state.tasks.values().map(|task| Task::clone(task)).collect();
    for task in tasks {
        let cause = Cause::Unhealthy { failures: 3, output: "x".repeat(4_096) };
        world.report(&task, TaskState::Rejected, Some(cause));
    }
    let mut planned = 0;
    loop {
        let plan = world.think();
        if plan.changes.is_empty() {
            break;
        }
        planned += plan.changes.len();
        let command = Command::ApplyPlan { base: plan.base, changes: plan.changes };
        let entry = Entry::new(world.now, command.clone());
        assert!(entry.encode().len() < 2 << 20, "{} bytes", entry.encode().len());
        world.apply(command);
    }
    assert_eq!(planned, 1_500);
}

#[test]
fn thousands_of_tasks_are_planned_in_one_go_each() {
    let mut world = World::default();
    for node in NODES {
        world.register(node, Capacity { nano_cpus: 64_000_000_000, memory: 1 << 40 });
    }
    let services: Vec<(String, ServiceSpec)> =
        (0..20).map(|n| (format!("s{n}"), ServiceSpec::of_image("app:1", 100))).collect();
    let services: Vec<(&str, ServiceSpec)> = services.iter().map(|(n, s)| (n.as_str(), s.clone())).collect();
    let put = Command::PutStack { stack: stack_of(&services), prune: true, base: None };
    assert_eq!(world.apply(put), Outcome::Applied);
    let changes = world.plan();
    assert_eq!(changes.len(), 4_000);
    world.obey();
    assert!(world.plan().is_empty());
    let up = world.state.tasks.values().filter(|task| world.state.is_up(task)).count();
    assert_eq!(up, 2_000);
}
