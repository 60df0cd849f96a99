//! The commands about the cluster itself: controllers, whom it trusts, nodes by hand, the brake, requests.

use std::collections::BTreeMap;

use roster_proto::{
    cause::Cause,
    id::{ClusterId, NodeId, PeerId, Version},
    node::{Availability, NodeDescription, NodeState},
    task::TaskState,
    time::Timestamp,
};

use super::{apply, id, put, web};
use crate::{
    plan::plan,
    state::{
        AuthorityRecord, ClusterState, Grant, Holder, MAX_CONTROLLERS, MAX_NODE_LABELS, MAX_REQUEST_ID, MAX_REVOKED,
        MAX_TOKENS, REQUESTS_KEPT, Secret, TokenRole, UserRole,
        command::{Change, Command, Entry, Outcome, Refusal},
        controllers::Settings,
    },
};

fn cluster_id() -> ClusterId {
    "abcdefghij234567".parse().expect("a cluster's id")
}

fn authority(key: Option<&[u8]>, since: u64) -> AuthorityRecord {
    AuthorityRecord { certificate: vec![1, 2, 3], key: key.map(Secret::new), since: Timestamp(since), cross: None }
}

fn founded() -> ClusterState {
    let mut state = ClusterState::default();
    let init = Command::InitCluster { cluster: cluster_id(), authority: authority(Some(b"key"), 1) };
    assert_eq!(apply(&mut state, init), Outcome::Applied);
    state
}

fn controller(id: u64, name: &str) -> Command {
    Command::PutController {
        id: PeerId(id),
        name: name.parse().expect("a controller's name"),
        address: format!("10.0.0.{id}:7640"),
        release: "0.1.0".to_owned(),
        protocol: 1,
        spare: false,
    }
}

fn token(id: &str, uses: u32, expires: u64) -> Command {
    let (digest, expires) = (Secret::new(*b"digest"), Timestamp(expires));
    Command::PutToken { id: id.to_owned(), role: TokenRole::Agent, digest, expires, uses }
}

/// Of a signing request, until a moment.
fn grant(request: u8, expires: u64) -> Grant {
    Grant {
        serial: format!("{request:02x}"),
        request: [request; 32],
        authority: [1; 32],
        issued: Timestamp(0),
        expires: Timestamp(expires),
    }
}

fn use_token_as(id: &str, name: &str, request: u8) -> Command {
    let (digest, grant) = (Secret::new(*b"digest"), grant(request, 1_000));
    Command::UseToken { id: id.to_owned(), digest, name: name.to_owned(), grant }
}

fn use_token(id: &str, digest: &[u8], name: &str) -> Command {
    let (digest, grant) = (Secret::new(digest), grant(1, 1_000));
    Command::UseToken { id: id.to_owned(), digest, name: name.to_owned(), grant }
}

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
        apply(state, Command::RegisterNode { node: node.clone(), description });
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

fn last_event(state: &ClusterState) -> String {
    state.events().next_back().map(|event| event.message.clone()).unwrap_or_default()
}

fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_cluster_is_founded_once() {
    let mut state = founded();
    let again = Command::InitCluster { cluster: cluster_id(), authority: authority(Some(b"key"), 1) };
    assert_eq!(apply(&mut state, again), Outcome::Refused(Refusal::AlreadyInitialised(cluster_id())));
    let keyless = Command::InitCluster { cluster: cluster_id(), authority: authority(None, 1) };
    assert_eq!(apply(&mut ClusterState::default(), keyless), Outcome::Refused(Refusal::NoAuthority));
    let early = apply(&mut ClusterState::default(), token("a", 1, 99));
    assert_eq!(early, Outcome::Refused(Refusal::NotInitialised));
}

#[test]
fn secrets_are_shown_nowhere_and_kept_in_the_snapshot() {
    let mut state = founded();
    apply(&mut state, token("a", 1, 99));
    let shown = format!("{state:?} {:?} {:?}", token("a", 1, 99), state.security);
    for secret in [b"key".as_slice(), b"digest"] {
        let numbers = format!("{secret:?}");
        assert!(!shown.contains(numbers.trim_matches(['[', ']'])), "{shown}");
    }
    let restored = ClusterState::decode(&state.encode()).expect("a good snapshot");
    assert_eq!(restored.security.signing().and_then(|a| a.key.clone()), Some(Secret::new(*b"key")));
    assert_eq!(restored, state);
}

#[test]
fn a_snapshot_from_before_there_were_clusters_is_read() {
    #[derive(serde::Serialize)]
    struct Old {
        version: Version,
        plan_base: Version,
        intent_base: Version,
        services: [(); 0],
        tasks: [(); 0],
        nodes: [(); 0],
        events: [(); 0],
    }
    let version = Version(3);
    let old = Old { version, plan_base: version, intent_base: version, services: [], tasks: [], nodes: [], events: [] };
    let mut bytes = b"roster-state\x01".to_vec();
    rmp_serde::encode::write_named(&mut bytes, &old).expect("memory");
    let state = ClusterState::decode(&bytes).expect("a good snapshot");
    assert_eq!((state.version, state.settings.clone()), (version, Settings::default()));

    #[derive(serde::Serialize)]
    struct OldEntry {
        at: Timestamp,
        command: Command,
    }
    let mut bytes = vec![1];
    let command = put(&[("web", web(1))]);
    rmp_serde::encode::write_named(&mut bytes, &OldEntry { at: Timestamp(1), command: command.clone() })
        .expect("memory");
    assert_eq!(Entry::decode(&bytes).expect("a good entry"), Entry::new(Timestamp(1), command));
}

#[test]
fn a_controller_that_left_is_refused_until_it_joins_anew() {
    let mut state = founded();
    assert_eq!(apply(&mut state, controller(1, "c1")), Outcome::Applied);
    assert_eq!(apply(&mut state, controller(1, "c1")), Outcome::Unchanged);
    apply(&mut state, controller(2, "c2"));
    assert_eq!(apply(&mut state, Command::RemoveController { id: PeerId(2) }), Outcome::Applied);
    let holder = Holder::Controller("c2".to_owned());
    assert!(state.security.is_revoked(&holder, Timestamp(state.version.0)));
    assert!(!state.security.is_revoked(&holder, Timestamp(state.version.0 + 1)));
    assert!(!state.security.is_revoked(&Holder::Agent("c2".to_owned()), Timestamp(1)));
    for n in 2..=MAX_CONTROLLERS as u64 {
        assert_eq!(apply(&mut state, controller(n + 100, &format!("d{n}"))), Outcome::Applied);
    }
    assert!(matches!(refused(apply(&mut state, controller(999, "e"))), Refusal::Limit(_)));
}

#[test]
fn tokens_admit_as_often_and_as_long_as_they_say() {
    let mut state = founded();
    apply(&mut state, token("a", 2, 1_000));
    assert_eq!(apply(&mut state, token("a", 2, 1_000)), Outcome::Refused(Refusal::TokenExists("a".to_owned())));
    assert_eq!(apply(&mut state, use_token("a", b"guessed", "vm1")), Outcome::Refused(Refusal::UnknownToken));
    assert_eq!(apply(&mut state, use_token("b", b"digest", "vm1")), Outcome::Refused(Refusal::UnknownToken));
    assert_eq!(apply(&mut state, use_token("a", b"digest", "vm1")), Outcome::Applied);
    assert_eq!(last_event(&state), "agent vm1 is admitted by join token a (uses left: 1)");
    assert_eq!(apply(&mut state, use_token("a", b"digest", "vm2")), Outcome::Applied);
    let used_up = Refusal::TokenUsedUp("a".to_owned());
    assert_eq!(apply(&mut state, use_token("a", b"digest", "vm3")), Outcome::Refused(used_up));

    apply(&mut state, token("late", 1, 2));
    let expired = Refusal::TokenExpired { id: "late".to_owned(), at: Timestamp(2) };
    assert_eq!(apply(&mut state, use_token("late", b"digest", "vm3")), Outcome::Refused(expired));

    let revoke = || Command::RevokeToken { id: "a".to_owned() };
    assert_eq!(apply(&mut state, revoke()), Outcome::Applied);
    assert_eq!(apply(&mut state, revoke()), Outcome::Refused(Refusal::NoSuchToken("a".to_owned())));
    assert_eq!(apply(&mut state, use_token("a", b"digest", "vm3")), Outcome::Refused(Refusal::UnknownToken));
}

#[test]
fn nobody_joins_under_the_name_of_another() {
    let mut state = founded();
    apply(&mut state, token("a", 9, 10_000));
    let left = |state: &ClusterState| state.security.tokens["a"].uses_left;
    assert_eq!(apply(&mut state, use_token_as("a", "vm1", 1)), Outcome::Applied);
    let vm1 = Holder::Agent("vm1".to_owned());
    assert_eq!(refused(apply(&mut state, use_token_as("a", "vm1", 2))), Refusal::NameTaken(vm1.clone()));
    // An answer that was lost is asked for again.
    assert_eq!(apply(&mut state, use_token_as("a", "vm1", 1)), Outcome::Applied);
    assert_eq!(left(&state), 8);
    // Whoever let the certificate expire may come anew.
    let late = Entry::new(Timestamp(5_000), use_token_as("a", "vm1", 2));
    assert_eq!(state.apply(Version(state.version.0 + 1), &late).outcome, Outcome::Applied);
    assert_eq!((left(&state), state.security.grants[&vm1].request), (7, [2; 32]));
    assert_eq!(ClusterState::decode(&state.encode()).expect("a good snapshot"), state);
}

#[test]
fn who_was_removed_does_not_renew() {
    let mut state = founded();
    let ann = Holder::User("ann".to_owned());
    let add = |request| Command::PutUser { name: "ann".to_owned(), role: UserRole::Viewer, grant: grant(request, 99) };
    let renew = |request, expires| Command::PutGrant { holder: ann.clone(), grant: grant(request, expires) };
    apply(&mut state, add(1));
    assert_eq!(apply(&mut state, renew(2, 199)), Outcome::Applied);
    assert_eq!(state.security.users["ann"].expires, Timestamp(199));
    apply(&mut state, Command::RemoveUser { name: "ann".to_owned() });
    let removed = Timestamp(state.version.0);
    assert_eq!(refused(apply(&mut state, renew(3, 299))), Refusal::Removed(ann.clone()));
    assert!(state.security.refuses(&ann, removed, "03"));

    // Added again: what was granted last counts even if it says the second of the removal, everything older does not.
    apply(&mut state, add(4));
    assert!(!state.security.refuses(&ann, Timestamp(0), "04"));
    assert!(state.security.refuses(&ann, Timestamp(0), "02"));
    assert_eq!(apply(&mut state, renew(5, 399)), Outcome::Applied);
}

#[test]
fn who_is_behind_in_a_rotation() {
    let mut state = founded();
    apply(&mut state, token("a", 9, 10_000));
    apply(&mut state, use_token_as("a", "vm1", 1));
    let names = |state: &ClusterState, signer, now| {
        state.security.behind(signer, Timestamp(now)).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&state, [1; 32], 9), Vec::<String>::new());
    assert_eq!(names(&state, [2; 32], 9), ["node vm1"]);
    assert_eq!(names(&state, [2; 32], 1_000), Vec::<String>::new(), "its certificate has expired");
}

#[test]
fn tokens_are_bounded_and_old_ones_make_room() {
    let mut state = founded();
    for n in 0..MAX_TOKENS {
        assert_eq!(apply(&mut state, token(&format!("t{n}"), 1, 2)), Outcome::Applied);
    }
    assert!(matches!(refused(apply(&mut state, token("more", 1, 99))), Refusal::Limit(_)));
    let two_days = Timestamp(2 * 24 * 3_600_000_000);
    let version = Version(state.version.0 + 1);
    let applied = state.apply(version, &Entry::new(two_days, token("more", 1, u64::MAX)));
    assert_eq!(applied.outcome, Outcome::Applied);
    assert_eq!(state.security.tokens.keys().collect::<Vec<_>>(), ["more"]);
}

#[test]
fn a_removed_user_is_refused_until_given_a_new_certificate() {
    let mut state = founded();
    let add = |role| Command::PutUser { name: "ann".to_owned(), role, grant: grant(1, 99) };
    assert_eq!(apply(&mut state, add(UserRole::Viewer)), Outcome::Applied);
    assert_eq!(apply(&mut state, add(UserRole::Admin)), Outcome::Applied);
    assert_eq!(last_event(&state), "user ann is admin instead of viewer now");
    let issued = Timestamp(state.version.0);
    let remove = || Command::RemoveUser { name: "ann".to_owned() };
    assert_eq!(apply(&mut state, remove()), Outcome::Applied);
    assert_eq!(apply(&mut state, remove()), Outcome::Refused(Refusal::NoSuchUser("ann".to_owned())));
    assert!(state.security.is_revoked(&Holder::User("ann".to_owned()), issued));
    apply(&mut state, add(UserRole::Viewer));
    assert!(state.security.is_revoked(&Holder::User("ann".to_owned()), issued));
    assert!(!state.security.is_revoked(&Holder::User("ann".to_owned()), Timestamp(state.version.0)));
}

#[test]
fn a_rotation_forgets_the_refusals_it_makes_superfluous() {
    let mut state = founded();
    for n in 0..MAX_REVOKED {
        apply(&mut state, Command::PutUser { name: format!("u{n}"), role: UserRole::Viewer, grant: grant(1, 9) });
        assert_eq!(apply(&mut state, Command::RemoveUser { name: format!("u{n}") }), Outcome::Applied);
    }
    apply(&mut state, Command::PutUser { name: "ann".to_owned(), role: UserRole::Viewer, grant: grant(1, 9) });
    let remove = || Command::RemoveUser { name: "ann".to_owned() };
    assert!(matches!(refused(apply(&mut state, remove())), Refusal::Limit(_)));
    let both = vec![authority(Some(b"new"), 1_000_000), authority(None, 1)];
    assert_eq!(apply(&mut state, Command::SetAuthorities { authorities: both }), Outcome::Applied);
    assert_eq!(state.security.revoked.len(), MAX_REVOKED);
    let one = vec![authority(Some(b"new"), 1_000_000)];
    assert_eq!(apply(&mut state, Command::SetAuthorities { authorities: one.clone() }), Outcome::Applied);
    assert_eq!(apply(&mut state, Command::SetAuthorities { authorities: one }), Outcome::Unchanged);
    assert!(state.security.revoked.is_empty());
    assert_eq!(apply(&mut state, remove()), Outcome::Applied);
    let none = apply(&mut state, Command::SetAuthorities { authorities: vec![authority(None, 1)] });
    assert_eq!(none, Outcome::Refused(Refusal::NoAuthority));
}

#[test]
fn settings_have_bounds() {
    let mut state = ClusterState::default();
    let forever = Settings { brake_for: 0, replace_controller_after: 0, ..Settings::default() };
    assert_eq!(apply(&mut state, Command::Configure { settings: forever.clone() }), Outcome::Applied);
    assert_eq!(apply(&mut state, Command::Configure { settings: forever }), Outcome::Unchanged);
    for wrong in [
        Settings { certificate_lifetime: 1_000_000, ..Settings::default() },
        Settings { certificate_lifetime: u64::MAX, ..Settings::default() },
        Settings { brake_for: 1, ..Settings::default() },
    ] {
        let refusal = refused(apply(&mut state, Command::Configure { settings: wrong }));
        assert!(matches!(refusal, Refusal::OutOfRange { .. }), "{refusal}");
    }
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
    apply(&mut state, label(&[("row", "2")], &["disk", "unknown"]));
    assert_eq!(state.nodes[&node].labels, BTreeMap::from([("row".to_owned(), "2".to_owned())]));
    assert!(matches!(refused(apply(&mut state, label(&[("no spaces", "")], &[]))), Refusal::InvalidLabel { .. }));
    assert!(matches!(refused(apply(&mut state, label(&[("a", "b\n")], &[]))), Refusal::InvalidLabel { .. }));
    let many: Vec<String> = (0..MAX_NODE_LABELS).map(|n| n.to_string()).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "")).collect();
    assert!(matches!(refused(apply(&mut state, label(&many, &[]))), Refusal::Limit(_)));

    let remove = |force| Command::RemoveNode { node: node_id("n0"), force };
    apply(&mut state, Command::SetAvailability { node: node.clone(), availability: Availability::Active });
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
    let register = || Command::RegisterNode { node: node_id("a"), description: NodeDescription::default() };
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

#[test]
fn a_request_that_comes_again_is_answered_and_not_done_again() {
    let mut state = ClusterState::default();
    let mut ask = |request: &str, replicas: u32| {
        let version = Version(state.version.0 + 1);
        let request = Some(request.to_owned());
        let entry = Entry { at: Timestamp(version.0), request, command: put(&[("web", web(replicas))]) };
        let applied = state.apply(version, &entry);
        assert_eq!(state.version, version);
        (applied.version, applied.outcome, state.services.get(&id("web")).map(|s| s.version))
    };
    assert_eq!(ask("a", 1), (Version(1), Outcome::Applied, Some(Version(1))));
    assert_eq!(ask("b", 1), (Version(2), Outcome::Unchanged, Some(Version(1))));
    assert_eq!(ask("c", 3), (Version(3), Outcome::Applied, Some(Version(3))));
    assert_eq!(ask("a", 1), (Version(1), Outcome::Applied, Some(Version(3))));
    assert_eq!(ask("b", 1), (Version(2), Outcome::Unchanged, Some(Version(3))));
    let (version, refusal, _) = ask("d", u32::MAX);
    assert!(matches!(refusal, Outcome::Refused(Refusal::Limit(_))));
    assert_eq!(ask("d", 1).0, version);
    let long = "x".repeat(MAX_REQUEST_ID + 1);
    let first = ask(&long, 4).0;
    assert!(ask(&long, 4).0 > first, "too long to be remembered");

    for n in 0..REQUESTS_KEPT {
        ask(&n.to_string(), 4);
    }
    assert!(ask("a", 4).0 > Version(9), "forgotten");
    let restored = ClusterState::decode(&state.encode()).expect("a good snapshot");
    assert_eq!(restored, state);
}
