//! How long a cluster takes no writes when its leader dies, and how long a lost host's tasks are missing.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Census, etcd::Etcd, median, run, swarms::Swarms, wait_for, wait_for_count};
use crate::{
    drive::{Drive, is_running},
    lab::{Daemon, trial::Trial},
};

/// Between two attempts of a client whose write was refused.
const RETRY: Duration = Duration::from_millis(10);

/// Seconds of each round.
#[derive(Debug)]
pub struct Rounds(pub Vec<f64>);

impl Rounds {
    pub fn median(&self) -> Result<f64, String> {
        median(self.0.clone()).ok_or_else(|| "no rounds".to_owned())
    }

    pub fn most(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }
}

/// From the leader's death to a write's acknowledgement.
fn until_written(began: Instant, mut write: impl FnMut() -> bool) -> Result<f64, String> {
    let written = wait_for(|| {
        if write() {
            return Some(began.elapsed().as_secs_f64());
        }
        std::thread::sleep(RETRY);
        None
    });
    written.ok_or_else(|| "no write was acknowledged any more".to_owned())
}

/// By `rctl apply`, as a user makes a change.
pub fn roster(trial: &Trial, rounds: usize) -> Result<Rounds, String> {
    let text = |error: crate::lab::Error| error.to_string();
    let mut times = Vec::new();
    for round in 0..rounds {
        let leader = trial.leader();
        let host = trial.lab.host(&leader).map_err(text)?;
        let pid = host.pid(Daemon::Controller).map_err(text)?.ok_or("the leader does not run")?;
        let file = trial.spec(&format!(
            "name: bench-failover\nservices:\n  s:\n    image: roster-hello\n    labels: {{round: '{round}'}}\n    \
             deploy: {{replicas: 0}}\n"
        ));
        let file = file.to_string_lossy().into_owned();
        let began = Instant::now();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).map_err(|error| format!("kill {pid}: {error}"))?;
        times.push(until_written(began, || trial.rctl(&["apply", "--detach", "--quiet", &file]).code == 0)?);
        trial.lab.start_daemon(host, Daemon::Controller).map_err(text)?;
        wait_for(|| all_reachable(trial).then_some(())).ok_or("the killed controller did not come back")?;
    }
    run(&mut trial.rctl_command(&["rm", "bench-failover"]))?;
    Ok(Rounds(times))
}

fn all_reachable(trial: &Trial) -> bool {
    let status = trial.status().unwrap_or_default();
    let controllers = status["controllers"].as_array().cloned().unwrap_or_default();
    !controllers.is_empty() && controllers.iter().all(|controller| controller["reachable"] == true)
}

/// By `docker service update` on a manager that is left.
pub fn swarm(swarms: &mut Swarms, rounds: usize) -> Result<Rounds, String> {
    swarms.create("770020", 1)?;
    let mut times = Vec::new();
    for round in 0..rounds {
        wait_for(|| swarms.is_whole().then_some(())).ok_or("a killed manager did not come back")?;
        let leader = swarms.leader()?;
        let began = Instant::now();
        swarms.kill(leader)?;
        times.push(until_written(began, || swarms.write(leader, &round.to_string()))?);
        swarms.start_daemon(leader)?;
    }
    wait_for(|| swarms.is_whole().then_some(())).ok_or("a killed manager did not come back")?;
    swarms.remove("770020")?;
    Ok(Rounds(times))
}

/// By `etcdctl put` to the members that are left.
pub fn etcd(etcd: &mut Etcd, rounds: usize) -> Result<Rounds, String> {
    let mut times = Vec::new();
    for round in 0..rounds {
        let leader = etcd.leader()?;
        let began = Instant::now();
        etcd.kill(leader)?;
        times.push(until_written(began, || etcd.put(Some(leader), &round.to_string()))?);
        etcd.start_member(leader)?;
        wait_for(|| etcd.all_answer().then_some(())).ok_or("a killed member did not come back")?;
    }
    Ok(Rounds(times))
}

/// From the moment a host is cut off until as many processes as before run on the others. Those on the host run on.
fn until_elsewhere(trial: &Trial, name: &str, marker: &str, replicas: usize) -> Result<f64, String> {
    let text = |error: crate::lab::Error| error.to_string();
    let host = trial.lab.host(name).map_err(text)?;
    let there: BTreeSet<u32> = host.processes().map_err(text)?.iter().map(|process| process.pid).collect();
    let census = Census::new(marker);
    let before = census.count();
    let lost = before.intersection(&there).count();
    if lost == 0 {
        return Err(format!("{name} has no task to lose"));
    }
    let began = Instant::now();
    trial.cut(name);
    let elsewhere = || census.count().difference(&there).count() >= replicas;
    let took = wait_for(|| elsewhere().then(|| began.elapsed().as_secs_f64()));
    took.ok_or_else(|| format!("{lost} tasks of {name} do not run elsewhere"))
}

pub fn roster_cut(trial: &Trial, marker: &str, replicas: usize, rounds: usize) -> Result<Rounds, String> {
    let file = trial.spec(&format!(
        "name: bench\nservices:\n  s:\n    image: roster-hello\n    network_mode: host\n    \
         command: [sleep, '{marker}']\n    stop_grace_period: 0s\n    \
         deploy: {{replicas: {replicas}, restart_policy: {{delay: 0s}}}}\n"
    ));
    run(&mut trial.rctl_command(&["apply", "--quiet", &file.to_string_lossy()]))?;
    let hosts = trial.lab.hosts.len();
    let mut times = Vec::new();
    for _ in 0..rounds {
        // The last host has no controller: only its tasks are lost.
        let name = &trial.lab.hosts.last().ok_or("no hosts")?.name;
        times.push(until_elsewhere(trial, name, marker, replicas)?);
        trial.heal();
        wait_for(|| (trial.nodes("Ready").len() == hosts).then_some(())).ok_or("the host did not come back")?;
        wait_for_count(marker, replicas)?;
        // What is there stays where it is; a fresh start spreads it again.
        run(&mut trial.rctl_command(&["scale", "s=0"]))?;
        wait_for_count(marker, 0)?;
        run(&mut trial.rctl_command(&["scale", &format!("s={replicas}")]))?;
        wait_for(|| trial.tasks().iter().all(is_running).then_some(())).ok_or("not all runs again")?;
    }
    run(&mut trial.rctl_command(&["rm", "bench"]))?;
    Ok(Rounds(times))
}

pub fn swarm_cut(
    trial: &Trial,
    swarms: &Swarms,
    marker: &str,
    replicas: usize,
    rounds: usize,
) -> Result<Rounds, String> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        swarms.create(marker, replicas)?;
        let name = &trial.lab.hosts.last().ok_or("no hosts")?.name;
        times.push(until_elsewhere(trial, name, marker, replicas)?);
        trial.heal();
        wait_for(|| swarms.is_whole().then_some(())).ok_or("the host did not come back")?;
        swarms.remove(marker)?;
    }
    Ok(Rounds(times))
}
