//! Our side of each benchmark: a cluster as the tests make it, with the binaries beside this one.

use std::time::{Duration, Instant};

use super::{Census, kill_to_replacement, median, run, wait_for, wait_for_count};
use crate::{cluster::Cluster, drive::Drive};

fn spec(marker: &str, replicas: usize, extra: &str) -> String {
    format!(
        "name: bench\nservices:\n  s:\n    image: roster-hello\n    network_mode: none\n    \
         command: [sleep, '{marker}']\n    stop_grace_period: 0s\n{extra}    \
         deploy: {{replicas: {replicas}, restart_policy: {{delay: 0s}}}}\n"
    )
}

fn apply(cluster: &Cluster, marker: &str, replicas: usize, extra: &str) -> Result<(), String> {
    let file = cluster.spec(&spec(marker, replicas, extra));
    run(&mut cluster.rctl_command(&["apply", "--detach", "--quiet", &file.to_string_lossy()])).map(drop)
}

fn remove(cluster: &Cluster, marker: &str) -> Result<(), String> {
    run(&mut cluster.rctl_command(&["rm", "bench"]))?;
    wait_for_count(marker, 0)?;
    wait_for_quiet(cluster, 0)
}

/// From the command's start to so many running containers, in seconds.
pub fn apply_to_running(cluster: &Cluster, marker: &str, replicas: usize, rounds: usize) -> Result<f64, String> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let census = Census::new(marker);
        let began = Instant::now();
        apply(cluster, marker, replicas, "")?;
        census.wait_for(replicas)?;
        times.push(began.elapsed().as_secs_f64());
        remove(cluster, marker)?;
    }
    median(times).ok_or_else(|| "no rounds".to_owned())
}

pub fn scale(cluster: &Cluster, marker: &str, from: usize, to: usize, rounds: usize) -> Result<f64, String> {
    let mut times = Vec::new();
    apply(cluster, marker, from, "")?;
    for _ in 0..rounds {
        wait_for_count(marker, from)?;
        wait_for_quiet(cluster, from)?;
        let census = Census::new(marker);
        let began = Instant::now();
        run(&mut cluster.rctl_command(&["scale", "--detach", &format!("s={to}")]))?;
        census.wait_for(to)?;
        times.push(began.elapsed().as_secs_f64());
        run(&mut cluster.rctl_command(&["scale", &format!("s={from}")]))?;
    }
    remove(cluster, marker)?;
    median(times).ok_or_else(|| "no rounds".to_owned())
}

/// Until the last round's containers are cleared away, as Swarm's rounds begin too: no round pays for another.
fn wait_for_quiet(cluster: &Cluster, containers: usize) -> Result<(), String> {
    let entries = |folder: &str| std::fs::read_dir(cluster.path(folder)).map_or(0, Iterator::count);
    wait_for(|| (entries("agent/containers") == containers && entries("agent/trash") == 0).then_some(()))
        .ok_or_else(|| "removed containers are not cleared away".to_owned())
}

pub fn restart(cluster: &Cluster, marker: &str, rounds: usize) -> Result<f64, String> {
    apply(cluster, marker, 3, "")?;
    wait_for_count(marker, 3)?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        times.push(kill_to_replacement(marker)?.as_secs_f64());
    }
    remove(cluster, marker)?;
    median(times).ok_or_else(|| "no rounds".to_owned())
}

/// The first failure of a service with all defaults, whose task has run for a healthy window.
pub fn first_restart(cluster: &Cluster, marker: &str) -> Result<f64, String> {
    let file = cluster.spec(&format!(
        "name: bench\nservices:\n  s: {{image: roster-hello, network_mode: none, command: [sleep, '{marker}'], \
         stop_grace_period: 0s}}\n"
    ));
    run(&mut cluster.rctl_command(&["apply", "--quiet", &file.to_string_lossy()]))?;
    wait_for_count(marker, 1)?;
    std::thread::sleep(Duration::from_secs(11));
    let took = kill_to_replacement(marker)?.as_secs_f64();
    remove(cluster, marker)?;
    Ok(took)
}

/// From the moment the probe would fail to the replacement's running.
pub fn health(cluster: &Cluster, marker: &str, flag: &std::path::Path, rounds: usize) -> Result<f64, String> {
    let folder = flag.parent().ok_or("the flag lies in a folder")?;
    let extra = format!(
        "    volumes: ['{}:/flags:ro']\n    \
         healthcheck: {{test: [CMD, test, '!', -e, /flags/sick], interval: 1s, retries: 1}}\n",
        folder.display()
    );
    apply(cluster, marker, 1, &extra)?;
    let took = sick_to_replaced(marker, flag, rounds, || {
        run(&mut cluster.rctl_command(&["ps"])).is_ok_and(|text| text.contains("(healthy)"))
    });
    remove(cluster, marker)?;
    took
}

/// The flag is removed as soon as the sick container is gone, so that its replacement is well.
pub fn sick_to_replaced(
    marker: &str,
    flag: &std::path::Path,
    rounds: usize,
    mut healthy: impl FnMut() -> bool,
) -> Result<f64, String> {
    let io = |error: std::io::Error| format!("{}: {error}", flag.display());
    let mut times = Vec::new();
    for _ in 0..rounds {
        let before = wait_for_count(marker, 1)?;
        wait_for(|| healthy().then_some(())).ok_or("the container never became healthy")?;
        let census = Census::new(marker);
        let began = Instant::now();
        std::fs::write(flag, "").map_err(io)?;
        wait_for(|| census.count().is_disjoint(&before).then_some(())).ok_or("it was never stopped")?;
        std::fs::remove_file(flag).map_err(io)?;
        wait_for(|| (!census.count().is_empty()).then_some(())).ok_or("it was never replaced")?;
        times.push(began.elapsed().as_secs_f64());
    }
    median(times).ok_or_else(|| "no rounds".to_owned())
}
