//! A singleton ends by itself when its node's lease does, with or without an agent.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use roster_agent::{
    clock::BootTime,
    runtime::{
        Exit, Phase,
        linux::{
            bundle::Network,
            containers::{Containers, RootImage},
        },
    },
};
use roster_proto::spec::TaskSpec;

use crate::harness::{self, Host, sh, task};

const LEASE: Duration = Duration::from_millis(400);
/// What this machine may be late by when others keep it busy; far below the deadlines of the harness.
const LATE: Duration = Duration::from_secs(5);
const DIR: &str = "ROSTER_TEST_DIR";
const CGROUP_PARENT: &str = "ROSTER_TEST_CGROUP_PARENT";

fn singleton(script: &str) -> TaskSpec {
    TaskSpec { singleton: true, ..sh(script) }
}

fn extend(host: &Host) -> Instant {
    host.containers.extend_lease(BootTime::now().plus(LEASE)).expect("written");
    Instant::now() + LEASE
}

#[tokio::test]
async fn without_a_lease_no_singleton_starts() {
    let host = Host::new();
    let error = host.start("none", singleton("sleep 1000")).await.expect_err("there was never a lease");
    let words = "cannot start: look at the node's lease: it is over: this node has lost touch with the leader";
    assert_eq!(error.to_string(), words);
    host.containers.extend_lease(BootTime::now()).expect("written");
    let error = host.start("over", singleton("sleep 1000")).await.expect_err("it is over");
    assert_eq!(error.to_string(), words);
    assert_eq!(host.leftovers("over"), Vec::<PathBuf>::new());
    // Others need none.
    assert_eq!(host.script("other", sh("exit 3")).await.0, Exit::Code(3));
}

#[tokio::test]
async fn a_singleton_ends_with_its_lease_and_not_before() {
    let host = Host::new();
    extend(&host);
    host.start("one", singleton("trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.01; done"))
        .await
        .expect("runs");
    host.start("other", sh("sleep 1000")).await.expect("runs");
    let mut over = extend(&host);
    // For several leases.
    for _ in 0..12 {
        tokio::time::sleep(LEASE / 4).await;
        if Instant::now() < over {
            over = extend(&host);
        }
    }
    assert!(matches!(host.phase("one"), Some(Phase::Running(_))), "{:?}", host.phase("one"));
    assert_eq!(host.ended("one").await.how, Exit::LeaseLost);
    assert!(Instant::now() >= over, "it ended too early");
    assert!(Instant::now() < over + LATE, "it ended too late");
    assert!(host.log("one").await.contains("told"), "the stop signal came first");
    assert!(matches!(host.phase("other"), Some(Phase::Running(_))));
}

#[tokio::test]
async fn a_singleton_that_ignores_its_stop_signal_is_killed_after_its_grace() {
    let host = Host::new();
    let grace = Duration::from_millis(500);
    let script = "trap 'echo ignored' USR1; echo up; while :; do sleep 0.01; done";
    let stop_signal = Some("USR1".to_owned());
    let over = extend(&host);
    let spec = TaskSpec { stop_grace_period: grace, stop_signal, init: true, ..singleton(script) };
    host.start("one", spec).await.expect("runs");
    host.said("one", "ignored").await;
    // Too late: what has begun to end ends.
    extend(&host);
    assert_eq!(host.ended("one").await.how, Exit::LeaseLost);
    assert!(Instant::now() >= over + grace && Instant::now() < over + grace + LATE);
}

/// The agent that the test below runs as a process of its own.
#[tokio::test]
#[ignore = "is a part of the test beside it"]
async fn life_of_an_agent_with_a_singleton() {
    let variable = |name| std::env::var(name).expect("set by the test");
    let dir = PathBuf::from(variable(DIR));
    let containers = Containers::open(harness::config(&dir, variable(CGROUP_PARENT)));
    let (containers, image) = (Arc::new(containers.expect("opens")), harness::image());
    let layers = [dir.join("layer")];
    let root = RootImage { config: &image, layers: &layers };
    let lease = || containers.extend_lease(BootTime::now().plus(LEASE)).expect("written");
    lease();
    let assignment = harness::assignment("one", TaskSpec { init: true, ..singleton("sleep 1000") });
    containers.start(&assignment, root, Network::None).await.expect("starts");
    println!("runs");
    loop {
        lease();
        tokio::time::sleep(LEASE / 4).await;
    }
}

#[tokio::test]
async fn a_singleton_ends_also_when_its_agent_is_stopped_or_dead() {
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        let host = Host::new();
        let mut agent = Command::new(std::env::current_exe().expect("own path"))
            .args(["--ignored", "--exact", "leases::life_of_an_agent_with_a_singleton", "--nocapture"])
            .env(DIR, host.dir.path())
            .env(CGROUP_PARENT, &host.config.cgroup_parent)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(agent.stdout.take().expect("piped")).lines();
        let runs = lines.any(|line| line.is_ok_and(|line| line.ends_with("runs")));
        tokio::time::sleep(2 * LEASE).await;
        let before = host.phase("one");
        kill(Pid::from_raw(agent.id() as i32), signal).expect("signalled");
        let struck = Instant::now();
        let ended = host.ended("one").await;
        let took = struck.elapsed();
        agent.kill().expect("killed");
        agent.wait().expect("reaped");
        assert!(runs && matches!(before, Some(Phase::Running(_))), "{before:?}");
        assert_eq!(ended.how, Exit::LeaseLost, "{signal}");
        assert!(took < LEASE + LATE, "{signal}: it ran on for {took:?}");
        host.containers.remove(&task("one")).await.expect("removed");
    }
}

/// As on a host that slept: what counts is when the lease was over, not when the shim came to see it.
#[tokio::test]
async fn a_shim_that_comes_late_kills_at_once() {
    let host = Host::new();
    let grace = Duration::from_millis(300);
    let over = extend(&host);
    let spec =
        TaskSpec { stop_grace_period: grace, ..singleton("trap 'echo told' TERM; while :; do sleep 0.01; done") };
    let started = host.start("one", spec).await.expect("runs");
    let status = std::fs::read_to_string(format!("/proc/{}/status", started.pid)).expect("status");
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).expect("parent").parse().expect("pid");
    kill(Pid::from_raw(shim), Signal::SIGSTOP).expect("stopped");
    tokio::time::sleep_until((over + 2 * grace).into()).await;
    assert!(matches!(host.phase("one"), Some(Phase::Running(_))), "nobody ends it meanwhile");
    kill(Pid::from_raw(shim), Signal::SIGCONT).expect("woken");
    let woken = Instant::now();
    assert_eq!(host.ended("one").await.how, Exit::LeaseLost);
    assert!(woken.elapsed() < LATE, "{:?}", woken.elapsed());
}
