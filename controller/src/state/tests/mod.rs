//! What the scenarios of the planner do not reach: the codec against damage, bases, bounds, all-or-none.

use std::{collections::BTreeMap, time::Duration};

use roster_proto::{
    id::{NodeId, ServiceId, Version},
    node::{Capacity, NodeDescription},
    spec::{Port, Protocol, ServiceSpec, StackSpec},
    task::{TaskReport, TaskState, TaskStatus},
    time::Timestamp,
};

use super::{
    ClusterState, CodecError, EVENTS_KEPT, MAX_REPLICAS,
    command::{Command, Entry, Outcome, Refusal},
};
use crate::plan::plan;

mod cluster;
mod controllers;
mod kept;
mod nodes;

fn id(name: &str) -> ServiceId {
    format!("s/{name}").parse().expect("a service id")
}

fn node() -> NodeId {
    "a".parse().expect("a node name")
}

fn put(services: &[(&str, ServiceSpec)]) -> Command {
    let services = services.iter().map(|(name, spec)| (id(name).name, spec.clone())).collect();
    Command::PutStack { stack: StackSpec { name: id("x").stack, services }, prune: false, base: None }
}

fn web(replicas: u32) -> ServiceSpec {
    ServiceSpec::of_image("app:1", replicas)
}

fn publishing(published: Option<u16>, host_ip: Option<&str>) -> ServiceSpec {
    let host_ip = host_ip.map(|ip| ip.parse().expect("an address"));
    let mut spec = web(1);
    spec.task.ports = vec![Port { target: 80, published, host_ip, protocol: Protocol::Tcp }];
    spec
}

fn apply(state: &mut ClusterState, command: Command) -> Outcome {
    let version = Version(state.version.0 + 1);
    state.apply(version, &Entry::new(Timestamp(version.0), command)).outcome
}

fn register() -> Command {
    let capacity = Capacity { nano_cpus: 4_000_000_000, memory: 1 << 30 };
    Command::RegisterNode {
        node: node(),
        description: NodeDescription { capacity, ..NodeDescription::default() }.into(),
    }
}

fn settle(state: &ClusterState) -> Command {
    Command::SettleNode { node: node(), generation: state.nodes[&node()].generation }
}

/// A node with a running service.
fn running() -> ClusterState {
    let mut state = ClusterState::default();
    apply(&mut state, register());
    let settled = settle(&state);
    apply(&mut state, settled);
    apply(&mut state, put(&[("web", web(2))]));
    let plan = plan(&state, Timestamp(9), 1);
    assert_eq!(apply(&mut state, Command::ApplyPlan { base: plan.base, changes: plan.changes }), Outcome::Applied);
    state
}

fn report_all(state: &mut ClusterState, task_state: TaskState) -> Outcome {
    let status = TaskStatus::new(task_state, Timestamp(50));
    let reports =
        state.tasks_on(&node()).map(|task| TaskReport { task: task.id.clone(), status: status.clone() }).collect();
    apply(state, Command::Report { node: node(), reports })
}

#[test]
fn every_truncation_of_a_snapshot_is_told() {
    let bytes = running().encode();
    for length in 0..bytes.len() {
        assert!(ClusterState::decode(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    let longer = [bytes.as_slice(), b"x"].concat();
    assert!(matches!(ClusterState::decode(&longer), Err(CodecError::TrailingBytes { extra: 1, .. })));
}

#[test]
fn another_format_is_told_apart_from_damage() {
    let mut bytes = Entry::new(Timestamp(1), register()).encode();
    bytes[0] = 9;
    assert!(matches!(Entry::decode(&bytes), Err(CodecError::UnknownFormat { found: 9, .. })));
    assert!(matches!(ClusterState::decode(&bytes), Err(CodecError::NotASnapshot { .. })));
    assert!(Entry::decode(&[]).is_err());
}

#[test]
fn a_snapshot_that_contradicts_itself_is_refused() {
    let mut state = running();
    state.services.clear();
    let refused = ClusterState::decode(&state.encode());
    assert!(matches!(refused, Err(CodecError::Inconsistent(_))), "{refused:?}");
}

#[test]
fn an_unchanged_spec_raises_nothing() {
    let mut state = running();
    let before = state.clone();
    assert_eq!(apply(&mut state, put(&[("web", web(2))])), Outcome::Unchanged);
    assert_eq!(state.plan_base, before.plan_base);
    assert_eq!(state.services, before.services);
}

#[test]
fn only_a_new_task_spec_outdates_tasks() {
    let mut state = running();
    let spec_version = state.services[&id("web")].spec_version;
    apply(&mut state, put(&[("web", web(3))]));
    assert_eq!(state.services[&id("web")].spec_version, spec_version);
    assert_eq!(state.services[&id("web")].version, state.version);
    let mut changed = web(3);
    changed.task.environment.insert("A".to_owned(), "1".to_owned());
    apply(&mut state, put(&[("web", changed)]));
    assert_eq!(state.services[&id("web")].spec_version, state.version);
    assert_eq!(state.services[&id("web")].specs.len(), 2);
}

#[test]
fn a_users_base_outlives_plans_and_reports_but_not_specs_and_nodes() {
    let mut state = running();
    let base = state.plan_base;
    let with_base = |services: &[(&str, ServiceSpec)]| match put(services) {
        Command::PutStack { stack, prune, .. } => Command::PutStack { stack, prune, base: Some(base) },
        other => other,
    };
    assert_eq!(report_all(&mut state, TaskState::Failed), Outcome::Applied);
    let plan = plan(&state, Timestamp(60), 2);
    assert_eq!(apply(&mut state, Command::ApplyPlan { base: plan.base, changes: plan.changes }), Outcome::Applied);
    assert_eq!(apply(&mut state, with_base(&[("web", web(3))])), Outcome::Applied);
    let outcome = apply(&mut state, with_base(&[("web", web(4))]));
    assert!(matches!(outcome, Outcome::Refused(Refusal::Stale { .. })), "{outcome:?}");
}

#[test]
fn reports_leave_a_plan_fresh_and_specs_make_it_stale() {
    let mut state = running();
    report_all(&mut state, TaskState::Failed);
    let plan = plan(&state, Timestamp(60), 2);
    let apply_plan = Command::ApplyPlan { base: plan.base, changes: plan.changes };
    let mut reported = state.clone();
    report_all(&mut reported, TaskState::Failed);
    assert_eq!(apply(&mut reported, apply_plan.clone()), Outcome::Applied);
    apply(&mut state, put(&[("web", web(1))]));
    let before = state.encode();
    let outcome = apply(&mut state, apply_plan);
    assert!(matches!(outcome, Outcome::Refused(Refusal::Stale { .. })), "{outcome:?}");
    state.version = Version(state.version.0 - 1);
    assert_eq!(state.encode(), before, "a refusal leaves no trace");
}

#[test]
fn a_generation_grows_exactly_with_its_set() {
    let mut state = running();
    let set = state.assignment_set(&node());
    assert_eq!(set.tasks.len(), 2);
    report_all(&mut state, TaskState::Running);
    assert_eq!(state.assignment_set(&node()), set, "progress is not a change of the set");
    report_all(&mut state, TaskState::Complete);
    let ended = state.assignment_set(&node());
    assert!(ended.tasks.is_empty());
    assert_eq!(ended.generation, state.version);
}

#[test]
fn scaling_is_all_or_none() {
    let mut state = running();
    let replicas = BTreeMap::from([(id("web"), 5), (id("zzz"), 1)]);
    let outcome = apply(&mut state, Command::Scale { replicas });
    assert_eq!(outcome, Outcome::Refused(Refusal::NoSuchService(id("zzz"))));
    assert_eq!(state.services[&id("web")].spec, web(2));
}

#[test]
fn too_much_is_refused_with_its_bound() {
    let mut state = ClusterState::default();
    let outcome = apply(&mut state, put(&[("web", web(MAX_REPLICAS + 1))]));
    let Outcome::Refused(refusal) = outcome else { panic!("{outcome:?}") };
    assert_eq!(refusal.to_string(), "service s/web asks for 10001 replicas, 10000 are allowed: ask for fewer");
    let six: Vec<String> = (0..6).map(|n| format!("s{n}")).collect();
    let six: Vec<(&str, ServiceSpec)> = six.iter().map(|name| (name.as_str(), web(MAX_REPLICAS))).collect();
    assert!(matches!(apply(&mut state, put(&six)), Outcome::Refused(Refusal::Limit(_))));
    assert!(state.services.is_empty());
}

#[test]
fn one_port_on_two_addresses_is_two_ports() {
    let mut state = ClusterState::default();
    let first = publishing(Some(80), Some("127.0.0.1"));
    assert_eq!(
        apply(&mut state, put(&[("a", first), ("b", publishing(Some(80), Some("127.0.0.2")))])),
        Outcome::Applied
    );
    let outcome = apply(&mut state, put(&[("c", publishing(Some(80), None))]));
    assert!(matches!(outcome, Outcome::Refused(Refusal::PortTaken { .. })), "{outcome:?}");
}

#[test]
fn an_open_port_gives_way_to_a_named_one_and_stays_otherwise() {
    let mut state = ClusterState::default();
    apply(&mut state, put(&[("a", publishing(None, None)), ("b", publishing(Some(30_000), None))]));
    assert_eq!(state.services[&id("a")].ports[0].published, 30_001);
    let mut changed = publishing(None, None);
    changed.task.image = "app:2".to_owned();
    apply(&mut state, Command::RemoveService { service: id("b") });
    apply(&mut state, put(&[("a", changed)]));
    assert_eq!(state.services[&id("a")].ports[0].published, 30_001);
}

#[test]
fn events_are_kept_up_to_their_bound() {
    let mut state = running();
    for n in 0..EVENTS_KEPT {
        let command = if n % 2 == 0 { Command::SetNodesDown { nodes: vec![node()] } } else { settle(&state) };
        apply(&mut state, command);
    }
    assert_eq!(state.events().len(), EVENTS_KEPT);
    assert_eq!(state.events().next_back().expect("the newest").version, state.version);
}

#[test]
fn the_tasks_of_a_slot_keep_their_order_when_a_leaders_clock_is_behind() {
    let mut state = running();
    let slot = state.slots_of(&id("web")).next().expect("a slot").clone();
    report_all(&mut state, TaskState::Failed);
    let plan = plan(&state, Timestamp(0).plus(Duration::from_secs(60)), 3);
    let entry = Entry::new(Timestamp(0), Command::ApplyPlan { base: plan.base, changes: plan.changes });
    state.apply(Version(state.version.0 + 1), &entry);
    let tasks: Vec<_> = state.tasks_in(&id("web"), &slot).cloned().collect();
    assert_eq!(tasks.len(), 2);
    assert_eq!(tasks[1].replaces.as_ref(), Some(&tasks[0].id));
    let reloaded = ClusterState::decode(&state.encode()).expect("a good snapshot");
    assert_eq!(reloaded.tasks_in(&id("web"), &slot).cloned().collect::<Vec<_>>(), tasks);
}
