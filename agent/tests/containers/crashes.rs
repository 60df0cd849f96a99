//! An agent that is killed at any moment while it starts containers leaves nothing that the next one cannot remove.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use roster_agent::runtime::{
    Phase,
    linux::{
        bundle::Network,
        containers::{Containers, RootImage},
    },
};
use roster_proto::spec::TaskSpec;

use crate::harness::{self, Host, eventually, sh};

const ROUNDS: u32 = 30;
/// Containers that one life of an agent starts at the same time.
const STARTS: usize = 12;
const DIR: &str = "ROSTER_TEST_DIR";
const CGROUP_PARENT: &str = "ROSTER_TEST_CGROUP_PARENT";

/// The agent that the test below runs as a process of its own and kills.
#[tokio::test]
#[ignore = "is a part of the test beside it"]
async fn life_of_an_agent() {
    let variable = |name| std::env::var(name).expect("set by the test");
    let dir = PathBuf::from(variable(DIR));
    let containers = Containers::open(harness::config(&dir, variable(CGROUP_PARENT)));
    let (containers, image) = (Arc::new(containers.expect("opens")), harness::image());
    let layers = [dir.join("layer")];
    println!("begins");
    let starts = (0..STARTS).map(|number| {
        let spec = TaskSpec { init: number % 2 == 0, ..sh("sleep 1000 & sleep 1000") };
        let assignment = harness::assignment(&format!("t{number}"), spec);
        let (containers, root) = (&containers, RootImage { config: &image, layers: &layers });
        async move { containers.start(&assignment, root, Network::None).await.expect("starts") }
    });
    futures::future::join_all(starts).await;
    println!("done");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn an_agent_killed_while_it_starts_containers_leaves_nothing() {
    let mut host = Host::new();
    let whole = live_and_die(&host, None);
    let (mut running, mut unfinished) = (0, 0);
    for round in 0..ROUNDS {
        host.restart();
        let what = format!("round {round}");
        for observed in host.containers.list().expect("list") {
            match observed.phase {
                Phase::Running(_) => running += 1,
                _ => unfinished += 1,
            }
        }
        remove_everything(&host, &what).await;
        live_and_die(&host, Some(whole.mul_f64(1.1 * rand::random::<f64>())));
    }
    remove_everything(&host, "the end").await;
    assert!(running > STARTS && unfinished > 0, "kills found {running} running, {unfinished} half made containers");
}

async fn remove_everything(host: &Host, when: &str) {
    for observed in host.containers.list().expect("list") {
        let removed = host.containers.remove(&observed.task).await;
        removed.unwrap_or_else(|error| panic!("{when}: {error}"));
    }
    // A shim that had only begun notices a moment later.
    eventually(&format!("nothing is left, {when}"), || {
        let left = (host.containers.list().expect("list"), shims(host), host.trash());
        (left.0.is_empty() && left.1.is_empty() && left.2.is_empty(), left)
    })
    .await;
    for cgroup in host.cgroups() {
        let dirs = std::fs::read_dir(cgroup).expect("cgroup").flatten().filter(|entry| entry.path().is_dir());
        assert_eq!(dirs.map(|entry| entry.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new(), "{when}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(&*host.dir.path().to_string_lossy()), "{when}: {mounts}");
}

/// Kills after `life`, or once everything runs; says how long that took.
fn live_and_die(host: &Host, life: Option<Duration>) -> Duration {
    let mut agent = Command::new(std::env::current_exe().expect("own path"))
        .args(["--ignored", "--exact", "crashes::life_of_an_agent", "--nocapture"])
        .env(DIR, host.dir.path())
        .env(CGROUP_PARENT, &host.config.cgroup_parent)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(agent.stdout.take().expect("piped")).lines();
    let mut said = |word: &str| lines.any(|line| line.is_ok_and(|line| line.ends_with(word)));
    let begun = said("begins");
    let at = Instant::now();
    let done = life.is_some() || said("done");
    std::thread::sleep(life.unwrap_or_default());
    let lived = at.elapsed();
    agent.kill().expect("killed");
    agent.wait().expect("reaped");
    assert!(begun && done, "the agent did not begin, or not start everything");
    lived
}

/// Command lines of shims of this host's containers.
fn shims(host: &Host) -> Vec<String> {
    let dir = host.dir.path().to_string_lossy();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .filter(|line| line.starts_with("roster-shim") && line.contains(&*dir))
        .collect()
}
