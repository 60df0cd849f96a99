//! The benchmarks of whole clusters: each system in a lab of its own, one after the other, on the same disk.

use super::{
    agents,
    etcd::{self, Etcd},
    failover::{self, Rounds},
    plans,
    report::{Aim, Row},
    swarm,
    swarms::Swarms,
    wire::Load,
    writes,
};
use crate::lab::trial::Trial;

/// How often each thing is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub kills: usize,
    pub cuts: usize,
    /// Swarm takes long to come back.
    pub peer: usize,
    pub with_peers: bool,
}

impl Effort {
    pub fn full(with_peers: bool) -> Self {
        Self { kills: 20, cuts: 5, peer: 5, with_peers }
    }

    /// Fewer rounds, to see whether the benchmark works at all.
    pub fn at_most(self, rounds: usize) -> Self {
        let [kills, cuts, peer] = [self.kills, self.cuts, self.peer].map(|all| all.min(rounds));
        Self { kills, cuts, peer, ..self }
    }
}

const CONTROLLERS: u8 = 3;
const HOSTS: u8 = 5;
const REPLICAS: usize = 20;

/// From SIGKILL of the leader to the next acknowledged change.
pub fn failover(effort: Effort) -> Result<Vec<Row>, String> {
    let Effort { kills, peer, with_peers, .. } = effort;
    let ours = in_lab(CONTROLLERS, Trial::up, |trial| failover::roster(trial, kills))?;
    let alone = [
        Row::new("failover", "leader's SIGKILL to next write, median", (ours.median()?, "s"), None, Aim::AtMost(1.0)),
        Row::new("failover", "the same, longest", (ours.most(), "s"), None, Aim::AtMost(2.0)),
    ];
    let mut rows = Vec::new();
    let mut beside = |name: &'static str, theirs: &Rounds| -> Result<(), String> {
        rows.push(alone[0].beside(name, theirs.median()?));
        rows.push(alone[1].beside(name, theirs.most()));
        Ok(())
    };
    if with_peers && swarm::is_installed() {
        let theirs = in_lab(CONTROLLERS, Trial::hosts, |trial| failover::swarm(&mut Swarms::start(trial)?, peer))?;
        beside("swarm", &theirs)?;
    }
    if with_peers && etcd::is_installed() {
        let theirs = in_lab(CONTROLLERS, Trial::hosts, |trial| failover::etcd(&mut Etcd::start(trial)?, kills))?;
        beside("etcd", &theirs)?;
    }
    Ok(if rows.is_empty() { alone.into() } else { rows })
}

/// From the moment a host is cut off to all of its tasks running elsewhere.
pub fn cut(effort: Effort) -> Result<Vec<Row>, String> {
    let Effort { cuts, peer, with_peers, .. } = effort;
    let ours = in_lab(HOSTS, Trial::up, |trial| failover::roster_cut(trial, "770021", REPLICAS, cuts))?;
    let mut rows = vec![
        Row::new("cut", "host cut off to its tasks elsewhere, median", (ours.median()?, "s"), None, Aim::AtMost(3.5)),
        Row::new("cut", "the same, longest", (ours.most(), "s"), None, Aim::AtMost(5.0)),
    ];
    if with_peers && swarm::is_installed() {
        let theirs = in_lab(HOSTS, Trial::hosts, |trial| {
            failover::swarm_cut(trial, &Swarms::start(trial)?, "770022", REPLICAS, peer)
        })?;
        rows = vec![rows[0].beside("swarm", theirs.median()?), rows[1].beside("swarm", theirs.most())];
    }
    Ok(rows)
}

/// Writes by clients that do nothing else.
pub fn writes(effort: Effort) -> Result<Vec<Row>, String> {
    let measure = |measure: &dyn Fn(usize) -> Result<Load, String>| -> Result<Vec<Load>, String> {
        writes::CLIENTS.iter().map(|clients| measure(*clients)).collect()
    };
    let ours = in_lab(CONTROLLERS, Trial::up, |trial| measure(&|clients| writes::roster(trial, clients)))?;
    let theirs = if effort.with_peers && etcd::is_installed() {
        let theirs = in_lab(CONTROLLERS, Trial::hosts, |trial| {
            let etcd = Etcd::start(trial)?;
            measure(&|clients| writes::etcd(trial, &etcd, clients))
        })?;
        theirs.into_iter().map(Some).collect()
    } else {
        vec![None; ours.len()]
    };
    let names = [
        ("writes a second, 1 client", "p99, 1 client"),
        ("writes a second, 16 clients", "p99, 16 clients"),
        ("writes a second, 128 clients", "p99, 128 clients"),
    ];
    let rows = names.into_iter().zip(ours).zip(theirs).flat_map(|(((rate, p99), ours), theirs)| {
        let peer = |pick: fn(&Load) -> f64| theirs.as_ref().map(|load| ("etcd", pick(load)));
        [
            Row::more("writes", rate, (ours.per_second, "/s"), peer(|load| load.per_second), 1.2),
            Row::new("writes", p99, (ours.p99, "ms"), peer(|load| load.p99), Aim::Times(1.2)),
        ]
    });
    Ok(rows.collect())
}

/// A thousand agents and twenty thousand tasks.
pub fn agents() -> Result<Vec<Row>, String> {
    let figures = in_lab(CONTROLLERS, Trial::without_agents, agents::measure)?;
    let row = |metric, value, unit, most| Row::new("agents", metric, (value, unit), None, Aim::AtMost(most));
    Ok(vec![
        row("20,000 tasks placed and acknowledged", figures.placed, "s", 10.0),
        row("one dead agent's tasks re-placed, longest plan", figures.longest_plan, "ms", 100.0),
        row("the same, from its silence to running", figures.replaced, "s", 5.0),
        row("the leader's resident memory", figures.memory, "MiB", 300.0),
    ])
}

/// In this process: how one plan grows with the cluster.
pub fn plan() -> Result<Vec<Row>, String> {
    const NAMES: [&str; 6] = [
        "a node lost of 10, 200 tasks",
        "of 100, 2,000 tasks",
        "of 500, 10,000 tasks",
        "of 1,000, 20,000 tasks",
        "of 2,500, 50,000 tasks",
        "of 5,000, 50,000 tasks",
    ];
    let mut rows = Vec::new();
    let mut took = Vec::new();
    for (name, (nodes, tasks_each)) in NAMES.into_iter().zip(plans::SIZES) {
        let measured = plans::measure(nodes, tasks_each)?;
        took.push((nodes, measured.node_lost));
        let aim = if nodes == 1_000 { Aim::AtMost(100.0) } else { Aim::Stated };
        rows.push(Row::new("plan", name, (measured.node_lost, "ms"), None, aim));
        if nodes == 5_000 {
            rows.push(Row::new("plan", "nothing to do, 5,000 nodes", (measured.at_rest, "ms"), None, Aim::Stated));
        }
    }
    let growth = plans::growth(took[1], took[4]);
    rows.push(Row::new("plan", "growth from 100 to 2,500: nodes to the power", (growth, ""), None, Aim::Stated));
    Ok(rows)
}

fn in_lab<T>(
    hosts: u8,
    make: impl FnOnce(u8, u8) -> Trial,
    measure: impl FnOnce(&Trial) -> Result<T, String>,
) -> Result<T, String> {
    let trial = make(hosts, CONTROLLERS);
    let measured = measure(&trial)?;
    trial.down();
    Ok(measured)
}
