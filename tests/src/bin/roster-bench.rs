//! `deploy/bench`: runs the benchmarks and prints what came out beside the aims.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use roster_tests::{
    bench::{
        clusters, etcd,
        report::{Aim, Better, Row, print},
        roster,
        runtimes::{self, Starts},
        swarm::{self, Swarm},
        wait_for_count, weight,
    },
    cluster::Cluster,
    drive::Drive,
};

const BENCHES: [&str; 11] =
    ["apply", "scale", "restart", "health", "weight", "container", "failover", "cut", "writes", "agents", "plan"];
/// The first so many need one host only.
const ON_ONE_HOST: usize = 5;
/// The peer gets one where it takes seconds.
const ROUNDS: usize = 5;
const ONE_ROUNDS: usize = 7;
const RESTARTS: usize = 20;

/// Roster's benchmarks, beside Docker Swarm where dockerd is installed
#[derive(Debug, Parser)]
struct Arguments {
    /// Which of them [default: all]
    #[arg(value_parser = BENCHES)]
    names: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Leave the peers out
    #[arg(long)]
    no_peers: bool,
    /// At most so many rounds of what concerns clusters, to see that it works
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match bench(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<(), String> {
    if !arguments.no_peers {
        for (name, is_there) in [("dockerd", swarm::is_installed()), ("etcd", etcd::is_installed())] {
            if !is_there {
                eprintln!("bench: {name} is not installed, so it is not compared with (deploy/bench --peers)");
            }
        }
    }
    let (on_one_host, of_clusters) = BENCHES.split_at(ON_ONE_HOST);
    let wanted = |names: &[&'static str]| -> Vec<&'static str> {
        let wanted = |name: &&'static str| arguments.names.is_empty() || arguments.names.iter().any(|n| n == name);
        names.iter().copied().filter(wanted).collect()
    };
    if !wanted(on_one_host).is_empty() {
        on_host(&wanted(on_one_host), arguments)?;
    }
    let full = clusters::Effort::full(!arguments.no_peers);
    let effort = arguments.rounds.map_or(full, |rounds| full.at_most(rounds.into()));
    for name in wanted(of_clusters) {
        eprintln!("bench: {name}");
        let rows = match name {
            "container" => container(!arguments.no_peers)?,
            "failover" => clusters::failover(effort)?,
            "cut" => clusters::cut(effort)?,
            "writes" => clusters::writes(effort)?,
            "agents" => clusters::agents()?,
            _ => clusters::plan()?,
        };
        print(&rows, arguments.json);
    }
    Ok(())
}

/// How often it must be as fast as each peer.
const TIMES: [(&str, f64); 2] = [("runc", 6.0), ("crun", 2.0)];
const RATE_TIMES: [(&str, f64); 2] = [("runc", 5.0), ("crun", 2.0)];

fn container(with_peers: bool) -> Result<Vec<Row>, String> {
    let measured = runtimes::measure(with_peers)?;
    let ours = &measured.ours;
    let aim =
        |times: [(&str, f64); 2], name: &str| times.iter().find(|(peer, _)| *peer == name).map_or(1.0, |aim| aim.1);
    let starts = |beside: &'static str, theirs: &Starts, times: f64| {
        let row = |metric, ours: &[f64], theirs: &[f64]| {
            Row::in_turns("container", metric, (ours, "ms"), (beside, theirs), Better::Less, times)
        };
        [
            row("run /bin/true", &ours.starts.back_to_back, &theirs.back_to_back),
            row("the same after an idle pause", &ours.starts.after_idling, &theirs.after_idling),
        ]
    };
    let mut rows = Vec::new();
    for peer in &measured.peers {
        rows.extend(starts(peer.name, &peer.starts, aim(TIMES, peer.name)));
        rows.push(Row::in_turns(
            "container",
            "200 with 8 workers",
            (&ours.rates, "/s"),
            (peer.name, &peer.rates),
            Better::More,
            aim(RATE_TIMES, peer.name),
        ));
    }
    rows.extend(starts("bare", &measured.floor, 0.5));
    let peak = (ours.peak_memory, "MB");
    let row = |peer| Row::new("container", "peak memory of the runtime", peak, peer, Aim::AtMost(3.0));
    match &measured.peers[..] {
        [] => rows.push(row(None)),
        peers => rows.extend(peers.iter().map(|peer| row(Some((peer.name, peer.peak_memory))))),
    }
    Ok(rows)
}

fn on_host(names: &[&str], arguments: &Arguments) -> Result<(), String> {
    let peer = if arguments.no_peers || !swarm::is_installed() { None } else { Some(Swarm::start()?) };
    let cluster = Cluster::start();
    let mut rows = Vec::new();
    for name in names {
        eprintln!("bench: {name}");
        rows.extend(one(name, &cluster, peer.as_ref())?);
    }
    // First what was measured: taking everything down may fail.
    print(&rows, arguments.json);
    cluster.down();
    Ok(())
}

fn one(name: &str, cluster: &Cluster, peer: Option<&Swarm>) -> Result<Vec<Row>, String> {
    match name {
        "apply" => apply(cluster, peer),
        "scale" => scale(cluster, peer),
        "restart" => restart(cluster, peer),
        "health" => health(cluster, peer),
        _ => weigh(cluster, peer),
    }
}

fn beside(
    peer: Option<&Swarm>,
    measure: impl FnOnce(&Swarm) -> Result<f64, String>,
) -> Result<Option<(&'static str, f64)>, String> {
    peer.map(|swarm| Ok(("swarm", measure(swarm)?))).transpose()
}

fn apply(cluster: &Cluster, peer: Option<&Swarm>) -> Result<Vec<Row>, String> {
    [
        ("1 replica to running", 1, ONE_ROUNDS, ONE_ROUNDS),
        ("100 replicas to running", 100, ROUNDS, 1),
        ("200 replicas to running", 200, ROUNDS, 1),
    ]
    .into_iter()
    .map(|(metric, replicas, rounds, peer_rounds)| {
        let ours = roster::apply_to_running(cluster, "770001", replicas, rounds)?;
        let theirs = beside(peer, |swarm| swarm.create_to_running("770002", replicas, peer_rounds))?;
        Ok(Row::new("apply", metric, (ours, "s"), theirs, Aim::Times(10.0)))
    })
    .collect()
}

fn scale(cluster: &Cluster, peer: Option<&Swarm>) -> Result<Vec<Row>, String> {
    let ours = roster::scale(cluster, "770003", 10, 100, ROUNDS)?;
    let theirs = beside(peer, |swarm| swarm.scale("770004", 10, 100, 1))?;
    Ok(vec![Row::new("scale", "10 to 100 replicas", (ours, "s"), theirs, Aim::Times(10.0))])
}

fn restart(cluster: &Cluster, peer: Option<&Swarm>) -> Result<Vec<Row>, String> {
    let ours = roster::restart(cluster, "770005", RESTARTS)? * 1000.0;
    let theirs = beside(peer, |swarm| Ok(swarm.restart("770006", 5)? * 1000.0))?;
    let first = roster::first_restart(cluster, "770007")? * 1000.0;
    Ok(vec![
        Row::new("restart", "SIGKILL to replacement, delay 0", (ours, "ms"), theirs, Aim::AtMost(30.0)),
        Row::new("restart", "the same with all defaults, once", (first, "ms"), None, Aim::AtMost(30.0)),
    ])
}

fn health(cluster: &Cluster, peer: Option<&Swarm>) -> Result<Vec<Row>, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("a folder: {error}"))?;
    let flag = folder.path().join("sick");
    let ours = roster::health(cluster, "770008", &flag, 5)?;
    let theirs = beside(peer, |swarm| swarm.health("770009", &flag, 3))?;
    Ok(vec![Row::new("health", "sick to replacement, interval 1 s", (ours, "s"), theirs, Aim::AtMost(1.2))])
}

fn weigh(cluster: &Cluster, peer: Option<&Swarm>) -> Result<Vec<Row>, String> {
    const REPLICAS: usize = 100;
    let file = cluster.spec(
        "name: bench\nservices:\n  s: {image: roster-hello, network_mode: none, command: [sleep, '770010'], \
         stop_grace_period: 0s, deploy: {replicas: 100}}\n",
    );
    cluster.ok(&["apply", "--quiet", &file.to_string_lossy()]);
    wait_for_count("770010", REPLICAS)?;
    let daemons: Vec<u32> = cluster.controller_pid().into_iter().chain(cluster.agent_pid()).collect();
    // What the apply stirred up must settle before idling is measured.
    std::thread::sleep(Duration::from_secs(3));
    let rss = weight::rss(&daemons);
    let cpu = weight::cpu_percent(&daemons, Duration::from_secs(20));
    let shim = weight::pss_each(&weight::named("roster-shim")).ok_or("no shim runs")?;
    cluster.ok(&["rm", "bench"]);

    let theirs = peer
        .map(|swarm| {
            swarm.with_running("770011", REPLICAS, |swarm| {
                let daemons = swarm.daemons();
                std::thread::sleep(Duration::from_secs(3));
                (
                    weight::rss(&daemons),
                    weight::cpu_percent(&daemons, Duration::from_secs(20)),
                    weight::pss_each(&weight::named("containerd-shim")).unwrap_or(f64::NAN),
                )
            })
        })
        .transpose()?;
    let with = |pick: fn(&(f64, f64, f64)) -> f64, name| theirs.as_ref().map(|figures| (name, pick(figures)));
    Ok(vec![
        Row::new("weight", "daemons' RSS with 100 tasks", (rss, "MiB"), with(|f| f.0, "docker"), Aim::AtMost(60.0)),
        Row::new("weight", "daemons' idle CPU with 100 tasks", (cpu, "%"), with(|f| f.1, "docker"), Aim::AtMost(0.5)),
        Row::new("weight", "PSS of each shim", (shim, "MiB"), with(|f| f.2, "docker"), Aim::AtMost(1.0)),
    ])
}
