//! `kill -9` of anything at any moment: the count comes back, what ran under a daemon that died keeps running, and
//! nothing is left when all is taken down.

use std::collections::BTreeSet;

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use roster_tests::{
    cluster::Cluster,
    dice::Dice,
    drive::{Drive, is_running, pid},
    wait,
};
use serde_json::Value;

const ROUNDS: usize = 50;
const REPLICAS: usize = 6;

const SPEC: &str = "name: chaos\nservices:\n  s:\n    image: roster-hello\n    init: true\n    \
    command: sleep inf\n    stop_grace_period: 1s\n    deploy: {replicas: 6, restart_policy: {delay: 0s}}\n";

#[derive(Debug, PartialEq)]
enum Fault {
    Container,
    Shim,
    Agent,
    Controller,
}

#[test]
fn fifty_rounds_of_kill_nine() {
    let mut dice = Dice::seeded(0x5eed);
    let mut cluster = Cluster::start();
    cluster.apply(SPEC);
    for round in 0..ROUNDS {
        let tasks = cluster.until_running(REPLICAS);
        let before: BTreeSet<u32> = tasks.iter().map(pid).collect();
        let victim = &tasks[dice.roll(REPLICAS)];
        let fault = match round % 4 {
            0 => Fault::Container,
            1 => Fault::Shim,
            2 => Fault::Agent,
            _ => Fault::Controller,
        };
        // Sometimes in the middle of other work.
        let busy = dice.roll(2) == 0;
        if busy {
            cluster.ok(&["scale", "--detach", if dice.roll(2) == 0 { "s=8" } else { "s=4" }]);
        }
        match &fault {
            Fault::Container => kill_one(Some(pid(victim)), pid(victim)),
            Fault::Shim => kill_one(shim_of(pid(victim)), pid(victim)),
            Fault::Agent => {
                cluster.kill_agent();
                cluster.start_agent();
            }
            Fault::Controller => {
                cluster.kill_controller();
                cluster.start_controller();
            }
        }
        if busy {
            cluster.ok(&["scale", "--detach", "s=6"]);
        }
        let after: BTreeSet<u32> = settled(&cluster, round, &fault).iter().map(pid).collect();
        let kept = before.intersection(&after).count();
        match fault {
            Fault::Agent | Fault::Controller if !busy => {
                assert_eq!(before, after, "round {round}: a daemon's death restarted a container");
            }
            // Slots beyond the fourth may have been scaled away and back.
            _ => assert!(kept >= 3, "round {round}, {fault:?}: only {kept} of {before:?} still run: {after:?}"),
        }
    }
    cluster.ok(&["rm", "chaos"]);
    cluster.until_no_traces();
    cluster.down();
}

/// All slots run, and each process that is said to run really does.
fn settled(cluster: &Cluster, round: usize, fault: &Fault) -> Vec<Value> {
    wait::until(&format!("round {round} ({fault:?}) to settle"), || {
        let tasks = cluster.tasks();
        let alive = |task: &Value| is_running(task) && task["pid"].as_u64().is_some_and(is_alive);
        if tasks.len() == REPLICAS && tasks.iter().all(alive) { Ok(tasks) } else { Err(tasks) }
    })
}

fn is_alive(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
}

/// Kills a process and waits until the container that falls with it has gone, so that nobody takes it for a live one.
/// It may have gone already, when the cluster scaled down meanwhile.
fn kill_one(target: Option<u32>, container: u32) {
    let Some(target) = target else { return };
    match kill(Pid::from_raw(target.cast_signed()), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("kill {target}: {error}"),
    }
    wait::until(
        "the container's process to be gone",
        || if is_alive(container.into()) { Err(container) } else { Ok(()) },
    );
}

/// The container's parent process, unless the container has gone.
fn shim_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok()
}
