//! A disk that is full stops nothing that runs, loses nothing that was acknowledged, and needs no hand once it has room.

use std::fs;

use nix::sys::signal::Signal;
use roster_tests::{
    cluster::{Cluster, signal},
    drive::{Drive, is_running, pid},
    wait,
};
use serde_json::Value;

/// So much that a full disk is met soon.
const TICKS: &str = "x=$$(printf %02000d 0); while :; do echo tick $$x; sleep 0.02; done";

fn service(name: &str, command: &str) -> String {
    format!(
        "  {name}: {{image: roster-hello, network_mode: none, init: true, stop_grace_period: 1s, \
             command: ['sh', '-c', '{command}']}}\n"
    )
}

fn of<'a>(tasks: &'a [Value], name: &str) -> &'a Value {
    tasks.iter().find(|task| task["name"] == name).unwrap_or_else(|| panic!("{name} is missing: {tasks:#?}"))
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_node_whose_disk_is_full_goes_on_and_says_why_new_things_wait() {
    let mut cluster = Cluster::start_on_a_small_disk("agent", "64m");
    let services =
        ["name: full\nservices:\n".to_owned(), service("steady", TICKS), service("mortal", "exec sleep 1000")];
    cluster.apply(&services.concat());
    let tasks = cluster.until_running(2);
    let (steady, agent) = (pid(of(&tasks, "steady.1")), cluster.agent_pid());
    let ticks = || cluster.ok(&["logs", "steady"]).matches("tick").count();

    let filler = cluster.fill();
    signal(pid(of(&tasks, "mortal.1")), Signal::SIGKILL);
    let late = cluster.spec(&[services.concat(), service("late", "exec sleep 1000")].concat());
    cluster.ok(&["apply", "--detach", &late.to_string_lossy()]);
    // What a container that has ended gives back may do for the next.
    let waits =
        |task: &Value| task["cause"]["message"].as_str().is_some_and(|cause| cause.contains("No space left on device"));
    cluster.until_tasks("the reason", 3, |task| {
        cluster.fill();
        waits(task) || is_running(task) && task["name"] != "late.1"
    });
    // What runs is untouched, can be worked with, and its node is there.
    assert!(is_running(of(&cluster.tasks(), "steady.1")) && cluster.ok(&["node", "ls"]).contains("Ready"));
    assert_eq!(cluster.ok(&["exec", "steady", "--", "echo", "inside"]), "inside\n");
    let attempts = cluster.all_tasks().len();
    assert!(attempts < 20, "{attempts} attempts without a pause");

    fs::remove_file(filler).expect("removed");
    let seen = ticks();
    let tasks = cluster.until_running(3);
    assert_eq!((pid(of(&tasks, "steady.1")), cluster.agent_pid()), (steady, agent));
    assert!(is_alive(agent.expect("started")));
    wait::until("the log to go on, and to say what it lost", || {
        let log = cluster.rctl(&["logs", "steady"]);
        let told = [&log.stdout, &log.stderr].into_iter().any(|text| text.contains("bytes of log were lost here"));
        if told && ticks() > seen { Ok(()) } else { Err(log) }
    });
    // What it wrote down meanwhile is whole: another agent finds everything as it is.
    let pids = |tasks: &[Value]| tasks.iter().map(pid).collect::<Vec<_>>();
    cluster.kill_agent();
    cluster.start_agent();
    wait::until("the new agent's session", || {
        let log = cluster.log("roster-agent");
        if log.matches("session with the controller").count() >= 2 { Ok(()) } else { Err(log) }
    });
    assert_eq!(pids(&cluster.until_running(3)), pids(&tasks));
    cluster.down();
}

#[test]
fn a_controller_whose_disk_is_full_loses_nothing_and_comes_back_by_itself() {
    let mut cluster = Cluster::start_on_a_small_disk("controller", "40m");
    cluster.apply(&["name: full\nservices:\n".to_owned(), service("steady", TICKS)].concat());
    let steady = pid(&cluster.until_running(1)[0]);
    let agent = cluster.agent_pid().expect("started");

    let filler = cluster.fill();
    // What is acknowledged meanwhile counts; changes go on until nothing is acknowledged any more.
    let (mut acknowledged, mut deaths, mut number) = (0, 0, 0);
    wait::until("the controller to need more room", || {
        number += 1;
        let big = format!(
            "name: big\nservices:\n  big: {{image: roster-hello, scale: 0, environment: {{NUMBER: 'number-{number}-', BIG: '{}'}}}}\n",
            "x".repeat(60_000)
        );
        let spec = cluster.spec(&big);
        if cluster.rctl(&["--request-timeout=1s", "apply", "--detach", &spec.to_string_lossy()]).code == 0 {
            acknowledged = number;
        }
        cluster.fill();
        deaths += usize::from(cluster.keep_controller());
        if deaths >= 3 { Ok(()) } else { Err((number, acknowledged, deaths)) }
    });
    assert!(acknowledged > 0);
    assert!(is_alive(steady) && is_alive(agent));
    let log = cluster.log("roster-controller");
    assert!(log.contains("No space left on device") && !log.contains("damaged"), "{log}");

    fs::remove_file(filler).expect("removed");
    wait::until("the controller to answer", || {
        cluster.keep_controller();
        let version = cluster.rctl(&["--request-timeout=1s", "version"]);
        if version.code == 0 { Ok(()) } else { Err((version, cluster.log("roster-controller"))) }
    });
    wait::until("the node to be Ready", || {
        let nodes = cluster.rctl(&["node", "ls"]);
        if nodes.stdout.contains("Ready") { Ok(()) } else { Err(nodes) }
    });
    // Of what was never answered, some may have been done.
    let spec = cluster.ok(&["inspect", "big", "-o", "yaml"]);
    let kept = spec.split_once("number-").and_then(|(_, rest)| rest.split('-').next()?.parse::<u32>().ok());
    assert!(kept.is_some_and(|kept| (acknowledged..=number).contains(&kept)), "{kept:?} of {acknowledged}..={number}");
    assert!(cluster.log("roster-controller").matches("damaged").count() == 0);
    cluster.apply(&["name: more\nservices:\n".to_owned(), service("late", "exec sleep 1000")].concat());
    let tasks = cluster.until_running(2);
    assert_eq!((pid(of(&tasks, "steady.1")), cluster.agent_pid()), (steady, Some(agent)));
    assert!(is_alive(agent));
    cluster.down();
}
