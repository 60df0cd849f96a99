//! Whole agents: the real loop, session and ledger over a runtime in memory, with a controller played by the test.

mod cluster;
mod controller;
mod following;
mod leases;
mod lives;
mod pauses;
mod requests;
mod restarts;

use std::{path::Path, sync::Arc, time::Duration};

use roster_proto::{
    assignment::{Assignment, AssignmentSet, PublishedPort},
    id::{NodeId, Slot, TaskId, Version},
    spec::{HealthTest, Healthcheck, Protocol, TaskSpec},
    task::{Desired, StopReason},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::controller::Controller;
use crate::{
    config::Config,
    run,
    runtime::memory::{MemoryRuntime, MemoryServices},
};

pub(crate) fn id(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

/// What a node of that name holds who has joined some cluster.
pub(crate) fn certified(node: &str) -> roster_tls::Identity {
    cluster::identity(&cluster::authority(), roster_tls::Role::Agent, node, Duration::ZERO)
}

/// A test's directory, host and controller. The agent comes and goes.
struct Bench {
    directory: tempfile::TempDir,
    runtime: Arc<MemoryRuntime>,
    controller: Controller,
}

struct Agent {
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), crate::RunError>>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let controller = Controller::listen(directory.path());
        Self { directory, runtime: Arc::default(), controller }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn agent(&self) -> Agent {
        let config = Config {
            node: NodeId::new("vm1").unwrap(),
            controller: Controller::url(self.path()),
            data_dir: self.path().join("data"),
            labels: Default::default(),
            runtimes: Default::default(),
            bridge: "roster0".into(),
            metrics: None,
        };
        let shutdown = CancellationToken::new();
        let services = Arc::new(MemoryServices::default());
        let running = tokio::spawn(run(config, self.runtime.clone(), services, shutdown.clone()));
        Agent { shutdown, running }
    }

    fn calls(&self, verb: &str) -> Vec<String> {
        self.runtime.calls().into_iter().filter(|call| call.starts_with(verb)).collect()
    }
}

impl Agent {
    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }

    /// As by SIGKILL: whatever was under way breaks off.
    async fn crash(self) {
        self.running.abort();
        assert!(self.running.await.unwrap_err().is_cancelled());
    }
}

fn spec() -> TaskSpec {
    TaskSpec { stop_grace_period: Duration::from_secs(5), ..TaskSpec::of_image("web") }
}

fn command(words: &[&str]) -> TaskSpec {
    TaskSpec { command: Some(words.iter().map(|word| word.to_string()).collect()), ..spec() }
}

/// Probed every 20 ms; one failure is enough.
fn with_healthcheck() -> TaskSpec {
    let check = Healthcheck {
        test: HealthTest::Command(vec!["check".into()]),
        interval: Some(Duration::from_millis(20)),
        retries: Some(1),
        ..Healthcheck::default()
    };
    TaskSpec { healthcheck: Some(check), ..spec() }
}

fn assignment(name: &str, desired: Desired, spec: TaskSpec) -> Assignment {
    Assignment {
        task: id(name),
        service: "shop/web".parse().unwrap(),
        slot: Slot::Replica(1),
        desired,
        spec: Arc::new(spec),
        ports: Vec::new(),
        paused: false,
        shares_with: None,
    }
}

fn run_task(name: &str, spec: TaskSpec) -> Assignment {
    assignment(name, Desired::Run, spec)
}

fn stop_task(name: &str, spec: TaskSpec) -> Assignment {
    assignment(name, Desired::Stop(StopReason::ScaledDown), spec)
}

fn with_port(assignment: Assignment) -> Assignment {
    let ports = vec![PublishedPort { published: 8080, target: 80, protocol: Protocol::Tcp, host_ip: None }];
    Assignment { ports, ..assignment }
}

fn set(generation: u64, tasks: impl IntoIterator<Item = Assignment>) -> AssignmentSet {
    let tasks = tasks.into_iter().map(|assignment| (assignment.task.clone(), assignment)).collect();
    AssignmentSet { generation: Version(generation), tasks, ..AssignmentSet::default() }
}
