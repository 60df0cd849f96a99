//! What an operator does to a cluster that goes on working.

use nix::sys::signal::Signal;
use roster_tests::{
    drive::{Drive, is_running},
    lab::{Daemon, trial::Trial},
    wait,
};

use super::{by_node, node, pids, sleepers, until_running_elsewhere};

#[test]
fn a_drained_node_is_emptied_and_an_active_one_filled() {
    let trial = Trial::up(3, 1);
    trial.apply(&sleepers("a", 6));
    trial.until_running(6);
    trial.ok(&["node", "drain", "h2"]);
    until_running_elsewhere(&trial, 6, &["h2"]);
    wait::until("h2 to be empty", || {
        let left = trial.done(trial.host("h2").running());
        if left.is_empty() { Ok(()) } else { Err(left) }
    });

    trial.ok(&["node", "pause", "h3"]);
    trial.ok(&["node", "activate", "h2"]);
    trial.ok(&["scale", "--detach", "s=9"]);
    let count = by_node(&trial.until_running(9));
    assert_eq!((count["h2"], count["h3"]), (3, 3), "a paused node keeps what it has and gets no more: {count:?}");
    trial.down();
}

#[test]
fn every_daemon_is_restarted_in_turn_and_no_task_notices() {
    let trial = Trial::up(5, 3);
    trial.apply(&sleepers("a", 10));
    let before = pids(&trial.until_running(10));
    for (number, host) in trial.lab.hosts.iter().enumerate() {
        if host.has_controller {
            trial.signal(&host.name, Daemon::Controller, Signal::SIGTERM);
            trial.start_daemon(&host.name, Daemon::Controller);
        }
        trial.signal(&host.name, Daemon::Agent, Signal::SIGTERM);
        trial.start_daemon(&host.name, Daemon::Agent);
        // Changes go on being taken in the middle of it.
        let file = trial.spec(&sleepers(&format!("turn{number}"), 1));
        trial.ok(&["apply", "--detach", &file.to_string_lossy()]);
        wait::until(&format!("{} to be back", host.name), || {
            let status = trial.status().unwrap_or_default();
            let all = status["controllers"].as_array().cloned().unwrap_or_default();
            let reachable = all.len() == 3 && all.iter().all(|controller| controller["reachable"] == true);
            let ready = trial.nodes("Ready").len();
            if reachable && ready == 5 { Ok(()) } else { Err((status, ready)) }
        });
    }
    let tasks = trial.until_running(15);
    let first: Vec<_> = tasks.iter().filter(|task| task["stack"] == "a").cloned().collect();
    assert_eq!(pids(&first), before);
    trial.down();
}

#[test]
fn any_controller_takes_any_request() {
    let trial = Trial::up(3, 3);
    for (number, name) in ["h1", "h2", "h3"].into_iter().enumerate() {
        let file = trial.spec(&sleepers(&format!("by-{name}"), 1));
        trial.on(name).ok(&["apply", "--timeout=60s", &file.to_string_lossy()]);
        for other in ["h1", "h2", "h3"] {
            let tasks = trial.on(other).tasks();
            assert_eq!(tasks.len(), number + 1, "{other} answers with what {name} acknowledged");
            assert!(tasks.iter().all(is_running) && tasks.iter().all(|task| !node(task).is_empty()));
        }
    }
    trial.down();
}
