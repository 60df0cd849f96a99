//! Who belongs to the cluster: joining, leaving, a majority lost for good, a cluster restored.

use std::{collections::BTreeSet, fs};

use nix::sys::signal::Signal;
use roster_tests::{
    drive::{Drive, is_running},
    lab::{Daemon, trial::Trial},
    wait,
};

use serde_json::Value;

use super::{node, pids, sleepers};

/// Names of the controllers with this role.
fn controllers(status: &Value, role: &str) -> BTreeSet<String> {
    let all = status["controllers"].as_array().cloned().unwrap_or_default();
    let wanted = all.iter().filter(|controller| controller["role"] == role);
    wanted.filter_map(|controller| controller["name"].as_str().map(str::to_owned)).collect()
}

#[track_caller]
fn until_voters(trial: &impl Drive, names: &[&str]) {
    let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    wait::until(&format!("{names:?} to be the voters"), || {
        let answer = trial.rctl(&["cluster", "status", "-o", "json"]);
        let status: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        if controllers(&status, "voter") == wanted { Ok(()) } else { Err(answer) }
    });
}

#[test]
fn a_node_that_joins_gets_its_part() {
    let mut trial = Trial::up(3, 1);
    let global = "name: everywhere\nservices:\n  s:\n    image: roster-hello\n    init: true\n    command: sleep inf\n    \
                  network_mode: none\n    deploy: {mode: global}\n";
    trial.apply(global);
    trial.until_running(3);
    trial.grow(4, 1);
    let tasks = trial.until_running(4);
    assert!(tasks.iter().any(|task| node(task) == "h4"), "{tasks:#?}");
    trial.down();
}

/// The agent may have found the controller of its host before there is a cluster, or just as it begins.
#[test]
fn a_cluster_begins_under_the_agent_of_its_first_host() {
    let trial = Trial::hosts(1, 1);
    let (host, here) = (trial.host("h1"), trial.on("h1"));
    let until_ready = || {
        wait::until("the node to be Ready", || {
            let nodes = here.rctl(&["node", "ls"]);
            if nodes.stdout.contains("Ready") { Ok(()) } else { Err(nodes) }
        });
    };
    let controller = format!("--controller=unix://{}", host.socket().display());
    for round in 0..6 {
        let alone = round % 2 == 1;
        trial.done(host.start(Daemon::Controller, if alone { &[] } else { &["--wait"] }));
        trial.done(host.start(Daemon::Agent, &[&controller]));
        match alone {
            true => until_ready(),
            // `init` takes up no agent that was never there.
            false => wait::until("the agent's folder", || if host.agent_data().is_dir() { Ok(()) } else { Err(()) }),
        }
        if round < 4 {
            let said = here.ok(&["cluster", "init", "--name", "h1"]);
            assert!(said.contains("This host's agent speaks for node h1"), "{said}");
        } else {
            here.ok(&["cluster", "init", "--name", "h1", "--no-agent"]);
            until_ready();
            let token = here.ok(&["token", "create", "--role", "agent", "--quiet"]);
            here.ok(&["cluster", "join", token.trim(), "--agent"]);
        }
        let by_its_certificate = format!("session with the controller controller=\"{}\"", host.peer_address());
        wait::until("the agent to come back as who it is", || {
            let log = host.log(Daemon::Agent);
            if log.contains(&by_its_certificate) { Ok(()) } else { Err(log) }
        });
        until_ready();
        let events = here.ok(&["events"]);
        assert!(!events.contains("Down") && !events.contains("Lost"), "{events}");

        for daemon in [Daemon::Agent, Daemon::Controller] {
            trial.signal("h1", daemon, Signal::SIGTERM);
            fs::remove_file(host.log_file(daemon)).expect("it wrote a log");
        }
        for folder in [host.data.join("controller"), host.agent_data()] {
            fs::remove_dir_all(folder).expect("it was there");
        }
    }
    trial.down();
}

#[test]
fn one_controller_becomes_three_and_a_dead_one_is_removed() {
    let mut trial = Trial::up(3, 1);
    trial.apply(&sleepers("a", 3));
    let before = pids(&trial.until_running(3));
    trial.grow(3, 3);
    until_voters(&trial, &["h1", "h2", "h3"]);

    trial.kill("h3");
    trial.ok(&["cluster", "remove", "h3", "--yes"]);
    until_voters(&trial, &["h1", "h2"]);
    // The leader too can be taken out; it hands over.
    let leader = trial.leader();
    let other = if leader == "h1" { "h2" } else { "h1" };
    trial.on(&leader).ok(&["cluster", "leave", "--yes"]);
    // The one that left waits to be told what to be, and knows nothing.
    let stays = trial.on(other);
    until_voters(&stays, &[other]);
    let after = wait::until("the dead host's task to run elsewhere", || {
        let tasks = stays.tasks();
        let right = |task: &Value| is_running(task) && node(task) != "h3";
        if tasks.len() == 3 && tasks.iter().all(right) { Ok(pids(&tasks)) } else { Err(tasks) }
    });
    assert_eq!(before.intersection(&after).count(), 2, "only the dead host's task was replaced");
    trial.down();
}

#[test]
fn a_survivor_goes_on_alone_when_the_majority_is_lost() {
    let trial = Trial::up(4, 3);
    trial.apply(&sleepers("a", 4));
    let before = pids(&trial.until_running(4));
    trial.kill("h2");
    trial.kill("h3");
    let refused = trial.on("h1").rctl(&["scale", "--detach", "s=5"]);
    let says_why = refused.stderr.contains("no leader") || refused.stderr.contains("the leadership");
    assert!(refused.code != 0 && says_why, "without a majority nothing is taken: {refused:?}");

    trial.on("h1").ok(&["cluster", "recover", "--lost", "h2", "--lost", "h3", "--yes"]);
    trial.on("h1").ok(&["scale", "--detach", "s=5"]);
    wait::until("five tasks on the two hosts that are left", || {
        let running = trial.running();
        if running.len() == 5 { Ok(()) } else { Err(running) }
    });
    until_voters(&trial, &["h1"]);
    let after = pids(&trial.until_running(5));
    assert!(before.intersection(&after).count() >= 2, "what ran on the hosts that are left runs on");
    trial.down();
}

#[test]
fn a_backup_brings_a_lost_cluster_back_under_the_running_tasks() {
    let trial = Trial::up(4, 3);
    trial.apply(&sleepers("a", 8));
    let before = pids(&trial.until_running(8));
    let file = trial.spec_file().with_file_name("cluster.backup");
    let file = file.to_str().expect("a path of ours");
    trial.ok(&["cluster", "backup", file]);
    assert_eq!(fs::metadata(file).expect("it is written").len().min(1), 1);

    // Every controller's disk is gone; the agents and their tasks live on.
    for name in ["h1", "h2", "h3"] {
        trial.signal(name, Daemon::Controller, Signal::SIGKILL);
        fs::remove_dir_all(trial.host(name).data.join("controller")).expect("it was there");
    }
    for name in ["h1", "h2", "h3"] {
        trial.start_daemon(name, Daemon::Controller);
    }
    wait::until("h1 to take the backup", || {
        let restored = trial.on("h1").rctl(&["cluster", "restore", file]);
        if restored.code == 0 { Ok(()) } else { Err(restored) }
    });
    trial.until_nodes("Ready", &["h1", "h2", "h3", "h4"]);
    assert_eq!(pids(&trial.until_running(8)), before, "no task was touched");

    // The others join anew.
    trial.done(trial.lab.up(|what| eprintln!("lab: {what}")));
    until_voters(&trial, &["h1", "h2", "h3"]);
    trial.apply(&sleepers("b", 1));
    trial.until_running(9);
    trial.down();
}

/// `rctl cluster status` of one controller.
fn controller(trial: &Trial, name: &str) -> Value {
    let status = trial.status().unwrap_or_default();
    let all = status["controllers"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|controller| controller["name"] == name).unwrap_or_default()
}

#[test]
fn a_spare_takes_the_place_of_a_dead_controller() {
    let mut trial = Trial::up(4, 3);
    trial.lab.hosts[3].has_controller = true;
    trial.start_daemon("h4", Daemon::Controller);
    let token = trial.ok(&["token", "create", "--role", "controller", "--quiet"]);
    wait::until("h4 to join", || {
        let join = ["cluster", "join", token.trim(), "--controller", "--spare", "--name", "h4"];
        let joined = trial.on("h4").rctl(&join);
        if joined.code == 0 { Ok(()) } else { Err(joined) }
    });
    wait::until("h4 to stand by", || {
        let h4 = controller(&trial, "h4");
        if h4["role"] == "spare" { Ok(()) } else { Err(h4) }
    });
    until_voters(&trial, &["h1", "h2", "h3"]);

    trial.ok(&["cluster", "set", "replace-controller-after=10s"]);
    let leader = trial.leader();
    let dead = if leader == "h2" { "h3" } else { "h2" };
    trial.signal(dead, Daemon::Controller, Signal::SIGKILL);
    let left: Vec<&str> = ["h1", "h2", "h3", "h4"].into_iter().filter(|name| *name != dead).collect();
    until_voters(&trial, &left);
    trial.apply(&sleepers("a", 2));
    trial.start_daemon(dead, Daemon::Controller);
    wait::until("the dead one to be back, without a vote", || {
        let back = controller(&trial, dead);
        if back["role"] == "spare" && back["reachable"] == true { Ok(()) } else { Err(back) }
    });
    trial.down();
}

#[test]
fn a_controller_with_another_address_is_found_again() {
    let mut trial = Trial::up(3, 3);
    trial.signal("h3", Daemon::Controller, Signal::SIGKILL);
    let old = trial.host("h3").address;
    let new = std::net::Ipv4Addr::new(10, 77, 0, 103);
    // In this order: with an address goes what was added beside it.
    for words in [["del", &format!("{old}/24")], ["add", &format!("{new}/24")]] {
        let mut ip = trial.done(trial.host("h3").command("ip"));
        trial.done(roster_tests::lab::run(ip.arg("address").args(words).args(["dev", roster_tests::lab::LINK])));
    }
    trial.lab.hosts[2].address = new;
    trial.start_daemon("h3", Daemon::Controller);
    wait::until("h3 to be found at its new address", || {
        let h3 = controller(&trial, "h3");
        let right = h3["address"] == format!("{new}:7640") && h3["reachable"] == true && h3["role"] == "voter";
        if right { Ok(()) } else { Err(h3) }
    });
    // It counts: with another one gone, two are still a majority.
    trial.signal("h1", Daemon::Controller, Signal::SIGKILL);
    trial.on("h3").ok(&["apply", "--detach", &trial.spec(&sleepers("a", 1)).to_string_lossy()]);
    trial.down();
}
