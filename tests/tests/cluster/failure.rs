//! Hosts and controllers that die, vanish and come back.

use std::time::Duration;

use nix::sys::signal::Signal;
use roster_tests::{
    bench::sleepers as processes_of,
    drive::Drive,
    lab::{Daemon, trial::Trial},
    wait,
};

use super::{by_node, id, node, of_stack, pids, sleepers, until_running_elsewhere};

const ALL: [&str; 5] = ["h1", "h2", "h3", "h4", "h5"];

#[test]
fn tasks_of_a_host_that_loses_power_run_elsewhere() {
    let trial = Trial::up(5, 3);
    trial.apply(&sleepers("a", 10));
    let tasks = trial.until_running(10);
    assert_eq!(by_node(&tasks).values().collect::<Vec<_>>(), [&2; 5], "spread over the hosts: {:?}", by_node(&tasks));

    trial.kill("h5");
    until_running_elsewhere(&trial, 10, &["h5"]);
    assert_eq!(trial.nodes("Down").into_iter().collect::<Vec<_>>(), ["h5"]);
    let kept = trial.tasks().iter().filter(|task| tasks.iter().any(|before| id(before) == id(task))).count();
    assert_eq!(kept, 8, "only the tasks of the dead host are replaced");

    trial.start("h5");
    trial.until_nodes("Ready", &ALL);
    trial.apply(&sleepers("b", 5));
    let tasks = trial.until_running(15);
    assert!(of_stack(&tasks, "b").iter().any(|task| node(task) == "h5"), "a host that is back gets tasks again");
    trial.ok(&["rm", "a", "b"]);
    trial.until_no_traces();
    trial.down();
}

#[test]
fn a_killed_leader_loses_nothing_and_no_node_counts_as_down() {
    let trial = Trial::up(5, 3);
    trial.apply(&sleepers("first", 5));
    let before = pids(&trial.until_running(5));
    for round in 0..3 {
        let leader = trial.leader();
        trial.signal(&leader, Daemon::Controller, Signal::SIGKILL);
        // Acknowledged by the two that are left.
        let file = trial.spec(&sleepers(&format!("round{round}"), 1));
        trial.ok(&["apply", "--detach", &file.to_string_lossy()]);
        trial.until_running(6 + round);
        assert_ne!(trial.leader(), leader);
        assert_eq!(trial.nodes("Down").len(), 0, "a leader change counts no node as down");
        trial.start_daemon(&leader, Daemon::Controller);
        wait::until("the old leader to answer", || {
            let answer = trial.on(&leader).rctl(&["ps", "-o", "json"]);
            if answer.code == 0 && answer.stdout.contains(&format!("round{round}")) { Ok(()) } else { Err(answer) }
        });
    }
    let after = pids(&trial.until_running(8));
    assert!(before.is_subset(&after), "no task of the first stack was touched: {before:?} {after:?}");
    trial.down();
}

#[test]
fn a_host_cut_off_keeps_its_tasks_and_stops_them_before_it_is_ready_again() {
    let trial = Trial::up(5, 3);
    trial.apply(&sleepers("a", 10));
    let tasks = trial.until_running(10);
    let old: Vec<String> = tasks.iter().filter(|task| node(task) == "h5").map(id).collect();
    assert_eq!(old.len(), 2);

    trial.cut("h5");
    until_running_elsewhere(&trial, 10, &["h5"]);
    let running = trial.running();
    assert!(old.iter().all(|task| running.contains_key(task)), "an agent on its own keeps its tasks: {running:?}");

    trial.heal();
    wait::until("h5 to be Ready", || {
        if !trial.nodes("Ready").contains("h5") {
            return Err("Down".to_owned());
        }
        // From the first moment on in which it counts as Ready.
        let running = trial.running();
        assert!(!old.iter().any(|task| running.contains_key(task)), "Ready with tasks of before: {running:?}");
        Ok(())
    });
    assert_eq!(trial.running().len(), 10);
    trial.ok(&["rm", "a"]);
    trial.until_no_traces();
    trial.down();
}

#[test]
fn a_singleton_never_runs_twice() {
    const MARKER: &str = "880001";
    let trial = Trial::up(5, 3);
    let spec = format!(
        "name: one\nservices:\n  s:\n    image: roster-hello\n    command: [sleep, '{MARKER}']\n    \
         network_mode: none\n    stop_grace_period: 1s\n    x-singleton: true\n    \
         deploy: {{replicas: 1, restart_policy: {{delay: 0s}}}}\n"
    );
    trial.apply(&spec);
    for _ in 0..2 {
        let host = node(&trial.until_running(1)[0]);
        // Its agent cannot even see that it is cut off: what holds the container stops it by itself.
        trial.signal(&host, Daemon::Agent, Signal::SIGSTOP);
        trial.cut(&host);
        let mut most = 0;
        let mut least = 1;
        wait::within(Duration::from_secs(60), "the singleton to run elsewhere", || {
            let processes = processes_of(MARKER).len();
            most = most.max(processes);
            least = least.min(processes);
            assert!(most <= 1, "two at once");
            let running = trial.running();
            let there = running.values().flatten().find(|name| **name != host).cloned();
            if processes == 1 { there.ok_or(running) } else { Err(running) }
        });
        assert_eq!((least, most), (0, 1), "it ended before another began");
        trial.signal(&host, Daemon::Agent, Signal::SIGCONT);
        trial.heal();
        trial.until_nodes("Ready", &ALL);
        assert_eq!(processes_of(MARKER).len(), 1);
    }
    trial.down();
}

#[test]
fn when_most_nodes_vanish_at_once_nothing_moves_until_the_brake_is_released() {
    let trial = Trial::up(5, 3);
    trial.apply(&sleepers("a", 10));
    let before: Vec<String> = trial.until_running(10).iter().map(id).collect();
    // Two controllers stay together, so that there is somebody to decide.
    for name in ["h3", "h4", "h5"] {
        trial.cut(name);
    }
    trial.until_nodes("Down", &["h3", "h4", "h5"]);
    let status = wait::until("the brake", || {
        let status = trial.status().unwrap_or_default();
        if status["brake"].is_null() { Err(status) } else { Ok(status) }
    });
    assert!(status["brake"].to_string().contains("h4"), "it says which nodes: {status:#}");
    let after: Vec<String> = trial.tasks().iter().map(id).collect();
    assert_eq!(before, after, "nothing is moved");

    trial.ok(&["cluster", "release"]);
    until_running_elsewhere(&trial, 10, &["h3", "h4", "h5"]);
    trial.heal();
    trial.until_nodes("Ready", &ALL);
    wait::until("ten tasks, each once", || if trial.running().len() == 10 { Ok(()) } else { Err(trial.running()) });
    trial.down();
}
