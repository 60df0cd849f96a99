use std::fmt::Write;

use roster_proto::{
    spec::{ServiceSpec, StackSpec},
    time::Timestamp,
};

use super::*;
use crate::state::command::{Change, Command, Entry, Outcome};

/// Two stacks that share a service's name, two nodes, tasks whose ids share beginnings.
fn cluster() -> ClusterState {
    let mut state = ClusterState::default();
    let mut version = 0;
    let mut apply = |state: &mut ClusterState, command: Command| {
        version += 1;
        let entry = Entry::new(Timestamp(version), command);
        assert_eq!(state.apply(roster_proto::id::Version(version), &entry).outcome, Outcome::Applied);
    };
    for node in ["vm1", "vm2"] {
        let node = node.parse().expect("a name");
        apply(&mut state, Command::RegisterNode { node, description: Box::default() });
    }
    for (stack, services) in [("hello", ["web", "cache"]), ("shop", ["web", "worker"])] {
        let services = services.map(|name| (name.parse().expect("a name"), ServiceSpec::of_image("img", 2)));
        let stack = StackSpec { name: stack.parse().expect("a name"), services: services.into() };
        apply(&mut state, Command::PutStack { stack, prune: false, base: None });
    }
    let tasks = [("ab1", "hello/web", 1, "vm1"), ("ab2", "hello/web", 2, "vm2"), ("ab12", "shop/worker", 1, "vm1")];
    let changes = tasks.into_iter().flat_map(|(id, service, slot, node)| {
        let task: TaskId = id.parse().expect("an id");
        let service: ServiceId = service.parse().expect("an id");
        let create = Change::CreateTask {
            task: task.clone(),
            spec_version: state.services[&service].spec_version,
            service,
            slot: Slot::Replica(slot),
            not_before: None,
            attempt: 0,
            replaces: None,
            cause: None,
        };
        [create, Change::AssignTask { task, node: node.parse().expect("a name"), shares_with: None }]
    });
    let command = Command::ApplyPlan { base: state.plan_base, changes: changes.collect() };
    apply(&mut state, command);
    state
}

fn filter(stack: &str, service: &str, task: &str, node: &str) -> wire::Filter {
    let given = |text: &str| (text != "-").then(|| text.to_owned());
    wire::Filter { stack: given(stack), service: given(service), task: given(task), node: given(node) }
}

/// Services and tasks selected, or the error.
fn told(state: &ClusterState, filter: &wire::Filter) -> String {
    match Selection::resolve(state, filter) {
        Err(error) => format!("{error}"),
        Ok(selection) => {
            let services: Vec<String> =
                state.services.keys().filter(|id| selection.has_service(id)).map(ToString::to_string).collect();
            let tasks: Vec<String> =
                state.tasks.values().filter(|task| selection.has_task(task)).map(|task| task.id.to_string()).collect();
            format!("services {} | tasks {}", services.join(" "), tasks.join(" "))
        }
    }
}

#[test]
fn golden() {
    let state = cluster();
    let cases = [
        ["-", "-", "-", "-"],
        ["hello", "-", "-", "-"],
        ["hallo", "-", "-", "-"],
        ["zzzzzz", "-", "-", "-"],
        ["No", "-", "-", "-"],
        ["-", "cache", "-", "-"],
        ["-", "web", "-", "-"],
        ["hello", "web", "-", "-"],
        ["-", "shop/web", "-", "-"],
        ["hello", "shop/web", "-", "-"],
        ["-", "cashe", "-", "-"],
        ["-", "shop/wrker", "-", "-"],
        ["-", "a/b/c", "-", "-"],
        ["-", "-", "ab1", "-"],
        ["-", "-", "ab12", "-"],
        ["-", "-", "ab", "-"],
        ["shop", "-", "ab", "-"],
        ["-", "-", "zz", "-"],
        ["-", "-", "web", "-"],
        ["-", "-", "../x", "-"],
        ["-", "-", "web.2", "-"],
        ["-", "-", "hello/web.2", "-"],
        ["hello", "-", "web.2", "-"],
        ["-", "-", "worker.1", "-"],
        ["-", "-", "worker.7", "-"],
        ["-", "shop/web", "worker.1", "-"],
        ["-", "-", "-", "vm1"],
        ["-", "-", "-", "vm3"],
        ["hello", "-", "-", "vm1"],
    ];
    let mut text = String::new();
    for [stack, service, task, node] in cases {
        let told = told(&state, &filter(stack, service, task, node));
        writeln!(text, "{stack} {service} {task} {node}\n    {told}").expect("a String takes whatever is written");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn an_empty_cluster_says_so() {
    let state = ClusterState::default();
    assert_eq!(told(&state, &filter("hello", "-", "-", "-")), r#"there is no stack "hello": there are no stacks yet"#);
    assert_eq!(told(&state, &filter("-", "-", "-", "vm1")), r#"there is no node "vm1": there are no nodes yet"#);
}

#[test]
fn many_candidates_are_counted() {
    let names = (0..20).map(|n| format!("t{n}"));
    let error = ambiguous("task", "t", names).to_string();
    assert!(error.contains("t7, and 12 more"), "{error}");
}

#[test]
fn distances() {
    assert_eq!(distance("web", "web"), 0);
    assert_eq!(distance("wbe", "web"), 2);
    assert_eq!(distance("", "web"), 3);
    assert_eq!(distance("cashe", "cache"), 1);
}
