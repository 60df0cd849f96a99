//! Whole clusters of several controllers and many hosts, with the real binaries, in a lab.

mod chaos;
mod failure;
mod membership;
mod operations;

use std::collections::{BTreeMap, BTreeSet};

use roster_tests::{
    drive::{Drive, is_running, pid},
    lab::trial::Trial,
    wait,
};
use serde_json::Value;

/// Sleepers: what runs is then easy to find among the kernel's processes.
fn sleepers(stack: &str, replicas: usize) -> String {
    format!(
        "name: {stack}\nservices:\n  s:\n    image: roster-hello\n    init: true\n    command: sleep inf\n    \
         network_mode: none\n    stop_grace_period: 1s\n    \
         deploy: {{replicas: {replicas}, restart_policy: {{delay: 0s}}}}\n"
    )
}

fn of_stack<'a>(tasks: &'a [Value], stack: &str) -> Vec<&'a Value> {
    tasks.iter().filter(|task| task["stack"] == stack).collect()
}

fn node(task: &Value) -> String {
    task["node"].as_str().unwrap_or_default().to_owned()
}

fn id(task: &Value) -> String {
    task["id"].as_str().unwrap_or_else(|| panic!("no id: {task:#}")).to_owned()
}

/// How many of the tasks each node has.
fn by_node(tasks: &[Value]) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for task in tasks {
        *count.entry(node(task)).or_default() += 1;
    }
    count
}

fn pids(tasks: &[Value]) -> BTreeSet<u32> {
    tasks.iter().map(pid).collect()
}

/// Until so many tasks run, none of them on these nodes, and the kernel agrees.
#[track_caller]
fn until_running_elsewhere(trial: &Trial, count: usize, not_on: &[&str]) -> Vec<Value> {
    wait::until(&format!("{count} tasks to run, none on {not_on:?}"), || {
        let tasks = trial.tasks();
        let well = |task: &Value| is_running(task) && !not_on.contains(&node(task).as_str());
        let really = trial.running();
        let runs = |task: &Value| really.get(&id(task)).is_some_and(|hosts| hosts.contains(&node(task)));
        let right = tasks.len() == count && tasks.iter().all(|task| well(task) && runs(task));
        if right { Ok(tasks) } else { Err(tasks) }
    })
}
