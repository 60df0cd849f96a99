//! The commands about nodes, and the brake.

use std::collections::BTreeMap;

use roster_proto::{
    cause::Cause,
    id::{NodeId, Version},
    node::{Availability, NodeDescription, NodeState},
    task::TaskState,
    time::Timestamp,
};

use super::{
    apply,
    cluster::{founded, last_event, refused},
    id, put, web,
};
use crate::{
    plan::plan,
    state::{
        ClusterState, Holder, MAX_NODE_LABELS,
        command::{Change, Command, Entry, Outcome, Refusal},
    },
};

fn node_id(name: &str) -> NodeId {
    name.parse().expect("a node name")
}

/// `count` Ready nodes, `n0` first.
fn nodes(state: &mut ClusterState, count: usize) -> Vec<NodeId> {
    let names: Vec<NodeId> = (0..count).map(|n| node_id(&format!("n{n}"))).collect();
    for node in &names {
        let mut description = NodeDescription::default();
        description.capacity.nano_cpus = 4_000_000_000;
        description.capacity.memory = 1 << 30;
        apply(state, Command::RegisterNode { node: node.clone(), description: description.into() });
        settle(state, node);
    }
    names
}

fn settle(state: &mut ClusterState, node: &NodeId) -> Outcome {
    let generation = state.nodes[node].generation;
    apply(state, Command::SettleNode { node: node.clone(), generation })
}

/// At a second counted from the epoch.
fn turn(state: &mut ClusterState, second: u64, node: &NodeId, to: NodeState) {
    let command = match to {
        NodeState::Down => Command::SetNodesDown { nodes: vec![node.clone()] },
        NodeState::Ready => Command::SettleNode { node: node.clone(), generation: state.nodes[node].generation },
    };
    let version = Version(state.version.0 + 1);
    state.apply(version, &Entry::new(Timestamp(second * 1_000_000), command));
}

#[test]
fn a_node_is_drained_labelled_and_removed() {
    let mut state = founded();
    let node = nodes(&mut state, 1).remove(0);
    let drain = || Command::SetAvailability { node: node_id("n0"), availability: Availability::Drain };
    assert_eq!(apply(&mut state, drain()), Outcome::Applied);
    assert_eq!(state.plan_base, state.version);
    assert_eq!(apply(&mut state, drain()), Outcome::Unchanged);
    let label = |put: &[(&str, &str)], remove: &[&str]| Command::SetNodeLabels {
        node: node_id("n0"),
        put: put.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        remove: remove.iter().map(|name| (*name).to_owned()).collect(),
    };
    apply(&mut state, label(&[("disk", "ssd"), ("row", "1")], &[]));
    apply(&mut state, label(&[("row", "2")], &["disk"]));
    let unknown = Refusal::NoSuchLabel { node: node.clone(), label: "disk".to_owned(), own: false };
    assert_eq!(refused(apply(&mut state, label(&[("row", "3")], &["disk"]))), unknown);
    assert_eq!(state.nodes[&node].labels, BTreeMap::from([("row".to_owned(), "2".to_owned())]));
    assert!(matches!(refused(apply(&mut state, label(&[("no spaces", "")], &[]))), Refusal::InvalidLabel { .. }));
    assert!(matches!(refused(apply(&mut state, label(&[("a", "b\n")], &[]))), Refusal::InvalidLabel { .. }));
    let many: Vec<String> = (0..MAX_NODE_LABELS).map(|n| n.to_string()).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "")).collect();
    assert!(matches!(refused(apply(&mut state, label(&many, &[]))), Refusal::Limit(_)));

    let remove = |force| Command::RemoveNode { node: node_id("n0"), force };
    let mut emptied = state.clone();
    assert_eq!(apply(&mut emptied, remove(false)), Outcome::Applied);
    apply(&mut state, Command::SetAvailability { node: node.clone(), availability: Availability::Active });
    assert_eq!(refused(apply(&mut state, remove(false))), Refusal::NodeBusy { node: node.clone(), tasks: 0 });
    apply(&mut state, put(&[("web", web(2))]));
    let plan = plan(&state, Timestamp(9), 1);
    apply(&mut state, Command::ApplyPlan { base: plan.base, changes: plan.changes });
    assert_eq!(refused(apply(&mut state, remove(false))), Refusal::NodeBusy { node: node.clone(), tasks: 2 });
    assert_eq!(apply(&mut state, remove(true)), Outcome::Applied);
    assert!(state.nodes.is_empty());
    assert!(state.security.is_revoked(&Holder::Agent("n0".to_owned()), Timestamp(1)));
    for task in state.tasks.values() {
        assert_eq!(task.status.state, TaskState::Orphaned);
        assert_eq!(task.status.cause, Some(Cause::NodeLost { node: node.clone() }));
    }
    assert_eq!(ClusterState::decode(&state.encode()).expect("a good snapshot"), state);
    assert_eq!(refused(apply(&mut state, remove(true))), Refusal::NoSuchNode(node));
}

#[test]
fn a_node_is_ready_when_it_has_settled_on_its_latest_set() {
    let mut state = ClusterState::default();
    let node = node_id("a");
    let register = || Command::RegisterNode { node: node_id("a"), description: Box::default() };
    apply(&mut state, register());
    assert!(!state.node_is_ready(&node) && state.nodes[&node].fenced, "nothing of it can run there");
    assert_eq!(settle(&mut state, &node), Outcome::Applied);
    assert_eq!(settle(&mut state, &node), Outcome::Unchanged);
    assert!(state.node_is_ready(&node) && !state.nodes[&node].fenced);
    apply(&mut state, put(&[("web", web(1))]));
    let plan = plan(&state, Timestamp(9), 1);
    apply(&mut state, Command::ApplyPlan { base: plan.base, changes: plan.changes });
    let before = state.nodes[&node].generation;
    assert_eq!(apply(&mut state, register()), Outcome::Unchanged);
    assert!(state.node_is_ready(&node), "a new session of a node that is Ready");

    turn(&mut state, 1, &node, NodeState::Down);
    let task = state.tasks_on(&node).next().expect("it is bound").id.clone();
    let orphan = Change::OrphanTask { task, cause: Cause::NodeLost { node: node.clone() } };
    let base = state.plan_base;
    apply(&mut state, Command::ApplyPlan { base, changes: vec![orphan] });
    apply(&mut state, register());
    assert!(!state.node_is_ready(&node));
    let late = Command::SettleNode { node: node.clone(), generation: before };
    assert_eq!(apply(&mut state, late), Outcome::Unchanged, "it does not know yet that the task must end");
    assert_eq!(settle(&mut state, &node), Outcome::Applied);
}

#[test]
fn a_singletons_node_is_removed_only_when_it_cannot_run_there() {
    let mut state = founded();
    let node = nodes(&mut state, 1).remove(0);
    let mut only = web(1);
    only.task.singleton = true;
    apply(&mut state, put(&[("only", only)]));
    let plan = plan(&state, Timestamp(9), 1);
    apply(&mut state, Command::ApplyPlan { base: plan.base, changes: plan.changes });
    turn(&mut state, 1, &node, NodeState::Down);
    let remove = || Command::RemoveNode { node: node_id("n0"), force: false };
    let refusal = Refusal::NotFenced { node: node.clone(), task: "only.1".to_owned() };
    assert_eq!(refused(apply(&mut state, remove())), refusal);
    assert_eq!(apply(&mut state, Command::SetNodeFenced { node: node.clone() }), Outcome::Applied);
    assert_eq!(apply(&mut state, Command::SetNodeFenced { node: node.clone() }), Outcome::Unchanged);
    turn(&mut state, 2, &node, NodeState::Ready);
    assert!(!state.nodes[&node].fenced);
    assert_eq!(apply(&mut state, Command::SetNodeFenced { node: node.clone() }), Outcome::Unchanged);
    turn(&mut state, 3, &node, NodeState::Down);
    apply(&mut state, Command::SetNodeFenced { node });
    assert_eq!(apply(&mut state, remove()), Outcome::Applied);
    assert_eq!(state.tasks_of(&id("only")).count(), 1);
}

#[test]
fn the_brake_engages_when_more_than_half_vanish_within_a_minute() {
    // Nodes, when each of the first goes, and how many must go until it engages.
    let engages = |count: usize, seconds: &[u64]| {
        let mut state = ClusterState::default();
        let nodes = nodes(&mut state, count);
        seconds.iter().zip(&nodes).position(|(second, node)| {
            turn(&mut state, *second, node, NodeState::Down);
            state.brake.is_some()
        })
    };
    assert_eq!(engages(1, &[100]), None);
    assert_eq!(engages(2, &[100]), None);
    assert_eq!(engages(2, &[100, 101]), Some(1));
    assert_eq!(engages(3, &[100, 159]), Some(1));
    assert_eq!(engages(3, &[100, 160]), None);
    assert_eq!(engages(4, &[100, 101]), None);
    assert_eq!(engages(4, &[100, 101, 102]), Some(2));
    assert_eq!(engages(5, &[100, 101, 102]), Some(2));
    // Clocks of two leaders.
    assert_eq!(engages(3, &[100, 40]), Some(1));
}

#[test]
fn the_brake_is_released_by_hand_by_time_or_by_those_who_return() {
    let engaged = || {
        let mut state = ClusterState::default();
        let nodes = nodes(&mut state, 5);
        for node in &nodes[..4] {
            turn(&mut state, 100, node, NodeState::Down);
        }
        (state, nodes)
    };
    let (mut state, nodes) = engaged();
    let brake = state.brake.clone().expect("it engages");
    assert_eq!(brake.until, Some(Timestamp(700_000_000)));
    assert_eq!(brake.nodes, nodes[..4].iter().cloned().collect());
    assert_eq!(ClusterState::decode(&state.encode()).expect("a good snapshot"), state);
    turn(&mut state, 110, &nodes[0], NodeState::Ready);
    assert!(state.brake.is_some(), "three of five are away");
    turn(&mut state, 110, &nodes[1], NodeState::Ready);
    assert_eq!(state.brake, None);
    assert_eq!(last_event(&state), "the brake is released: enough nodes are back");

    let (mut state, _) = engaged();
    assert_eq!(apply(&mut state, Command::ReleaseBrake), Outcome::Applied);
    assert_eq!(state.brake, None);
    assert_eq!(apply(&mut state, Command::ReleaseBrake), Outcome::Unchanged);

    let (mut state, nodes) = engaged();
    for node in &nodes[..2] {
        apply(&mut state, Command::RemoveNode { node: node.clone(), force: false });
    }
    assert!(state.brake.is_some(), "two of three are away");
    apply(&mut state, Command::RemoveNode { node: nodes[2].clone(), force: false });
    assert_eq!(state.brake, None);
}
