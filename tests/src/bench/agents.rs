//! A thousand agents that carry everything out at once, against one real group of controllers.
//!
//! They speak the agents' protocol on the leader's socket and report every task as running as soon as they are told of
//! it. What is measured is the controllers' part: placing, sending, taking in the reports.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use roster_proto::{
    AGENT_PROTOCOLS,
    assignment::{AssignmentDiff, AssignmentSet},
    cause::Cause,
    id::TaskId,
    node::{Capacity, NodeDescription},
    task::{Desired, TaskReport, TaskState, TaskStatus},
    time::Timestamp,
    wire::{
        self, AgentMessage, agent_message::Message as Said, controller_message::Message as Told,
        dispatch_client::DispatchClient,
    },
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{weight, wire as connect};
use crate::{
    drive::Drive,
    lab::{Daemon, trial::Trial},
    netns::Netns,
};

const AGENTS: usize = 1_000;
/// Many sessions share a connection, as they never do outside of a benchmark: this machine has two cores.
const CONNECTIONS: usize = 20;
/// Of two services, each as large as may be.
const TASKS: usize = 20_000;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The agents stand still while rctl is waited for.
const ASK_EVERY: Duration = Duration::from_millis(500);
const QUEUE: usize = 64;

/// What came out.
#[derive(Debug)]
pub struct Figures {
    /// Seconds from the apply to the last report's acknowledgement.
    pub placed: f64,
    /// Seconds from an agent's silence to the last of its tasks running elsewhere.
    pub replaced: f64,
    /// Milliseconds: no plan that was made meanwhile took longer.
    pub longest_plan: f64,
    /// Of the leader, MiB.
    pub memory: f64,
}

/// How many tasks run, by what the controllers have acknowledged.
type Running = Arc<AtomicUsize>;

struct Agent {
    node: String,
    set: AssignmentSet,
    reported: BTreeMap<TaskId, TaskState>,
    /// What each batch that is under way adds.
    pending: BTreeMap<u64, usize>,
    next_batch: u64,
    mine: usize,
    running: Running,
    messages: mpsc::Sender<AgentMessage>,
}

impl Drop for Agent {
    /// One that dies takes its tasks along.
    fn drop(&mut self) {
        self.running.fetch_sub(self.mine, Ordering::Relaxed);
    }
}

impl Agent {
    async fn say(&self, message: Said) -> Result<(), String> {
        let sent = self.messages.send(AgentMessage { message: Some(message) }).await;
        sent.map_err(|_| format!("the session of {} ended", self.node))
    }

    async fn live(channel: Channel, node: String, running: Running) -> Result<(), String> {
        let (messages, stream) = mpsc::channel(QUEUE);
        let mut agent = Self {
            node,
            set: AssignmentSet::default(),
            reported: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_batch: 1,
            mine: 0,
            running,
            messages,
        };
        agent.say(Said::Hello(hello(&agent.node))).await?;
        let opened = DispatchClient::new(channel).session(ReceiverStream::new(stream)).await;
        let mut session = opened.map_err(|status| format!("{}: {status}", agent.node))?.into_inner();
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        let mut number = 0;
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    number += 1;
                    agent.say(Said::Heartbeat(wire::Heartbeat { number })).await?;
                }
                told = session.message() => {
                    let told = told.map_err(|status| format!("{}: {status}", agent.node))?;
                    let told = told.and_then(|message| message.message).ok_or("the controller ended a session")?;
                    agent.hear(told).await?;
                }
            }
        }
    }

    async fn hear(&mut self, told: Told) -> Result<(), String> {
        match told {
            Told::Set(set) => {
                self.set = set.try_into().map_err(|error| format!("a set: {error}"))?;
                self.settle().await
            }
            Told::Diff(diff) => {
                let diff = AssignmentDiff::try_from(diff).map_err(|error| format!("an increment: {error}"))?;
                self.set.apply(diff).map_err(|error| format!("an increment: {error}"))?;
                self.carry_out().await
            }
            Told::StatusAck(ack) => {
                let added = self.pending.remove(&ack.number).unwrap_or_default();
                self.mine += added;
                self.running.fetch_add(added, Ordering::Relaxed);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn settle(&mut self) -> Result<(), String> {
        self.carry_out().await?;
        self.say(Said::Settled(wire::Settled { generation: self.set.generation.0 })).await
    }

    async fn carry_out(&mut self) -> Result<(), String> {
        let now = Timestamp::from(SystemTime::now());
        let mut reports = Vec::new();
        let mut started = 0;
        for (id, assignment) in &self.set.tasks {
            let state = match assignment.desired {
                Desired::Run => TaskState::Running,
                Desired::Stop(_) => TaskState::Shutdown,
            };
            if self.reported.get(id).is_some_and(|reported| *reported >= state) {
                continue;
            }
            let mut status = TaskStatus::new(state, now);
            status.started = Some(now);
            if let Desired::Stop(reason) = &assignment.desired {
                status.cause = Some(Cause::Stopped { reason: reason.clone() });
            } else {
                started += 1;
            }
            self.reported.insert(id.clone(), state);
            reports.push(TaskReport { task: id.clone(), status }.into());
        }
        if reports.is_empty() {
            return Ok(());
        }
        let number = self.next_batch;
        self.next_batch += 1;
        self.pending.insert(number, started);
        self.say(Said::Statuses(wire::StatusBatch { number, reports })).await
    }
}

fn hello(node: &str) -> wire::Hello {
    let description = NodeDescription {
        hostname: node.to_owned(),
        capacity: Capacity { nano_cpus: 4_000_000_000, memory: 8 << 30 },
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    wire::Hello {
        node: node.to_owned(),
        description: Some(description.into()),
        generation: 0,
        protocol: *AGENT_PROTOCOLS.end(),
    }
}

/// In a lab whose controllers run and have no agents.
pub fn measure(trial: &Trial) -> Result<Figures, String> {
    let text = |error: crate::lab::Error| error.to_string();
    let leader = trial.lab.host(&trial.leader()).map_err(text)?.clone();
    let leader_pid = leader.pid(Daemon::Controller).map_err(text)?.ok_or("the leader does not run")?;
    let on_leader = leader.here().map_err(text)?;
    let spec = trial.spec(&format!(
        "name: bench\nservices:\n  s: &s {{image: roster-hello, network_mode: none, deploy: {{replicas: {}}}}}\n  t: *s\n",
        TASKS / 2
    ));
    let apply = || trial.rctl(&["apply", "--detach", "--quiet", &spec.to_string_lossy()]);
    let operator = trial.lab.operator().map_err(text)?;
    connect::inside(&operator, async || {
        let running = Running::default();
        let mut agents = JoinSet::new();
        let mut handles: Vec<AbortHandle> = Vec::new();
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(connect::unix(&leader.socket()).await?);
        }
        for number in 0..AGENTS {
            let channel = channels[number % CONNECTIONS].clone();
            handles.push(agents.spawn(Agent::live(channel, format!("sim{number}"), running.clone())));
        }
        until("all agents to be Ready", ASK_EVERY, &mut agents, || trial.nodes("Ready").len() == AGENTS).await?;

        let began = Instant::now();
        let applied = apply();
        if applied.code != 0 {
            return Err(format!("rctl apply: {}", applied.stderr));
        }
        until("all tasks to run", LOOK_EVERY, &mut agents, || running.load(Ordering::Relaxed) == TASKS).await?;
        let placed = began.elapsed().as_secs_f64();

        let before = plans(&on_leader)?;
        let began = Instant::now();
        handles[0].abort();
        until("the dead agent's tasks to be gone", LOOK_EVERY, &mut agents, || running.load(Ordering::Relaxed) < TASKS)
            .await?;
        until("them to run elsewhere", LOOK_EVERY, &mut agents, || running.load(Ordering::Relaxed) == TASKS).await?;
        let replaced = began.elapsed().as_secs_f64();
        let longest_plan = longest_since(&before, &plans(&on_leader)?) * 1000.0;
        Ok(Figures { placed, replaced, longest_plan, memory: weight::rss(&[leader_pid]) })
    })
}

/// The agents go on working while it is waited for; one that fails ends the benchmark.
async fn until(
    what: &str,
    every: Duration,
    agents: &mut JoinSet<Result<(), String>>,
    mut done: impl FnMut() -> bool,
) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > deadline {
            return Err(format!("waited {PATIENCE:?} for {what}"));
        }
        while let Some(ended) = agents.try_join_next() {
            // A join that fails is of the one that was told to die.
            if let Ok(Err(error)) = ended {
                return Err(error);
            }
        }
        tokio::time::sleep(every).await;
    }
    Ok(())
}

/// Upper bounds of the histogram's buckets, with how many plans took at most so long.
fn plans(netns: &Netns) -> Result<Vec<(f64, u64)>, String> {
    let text = netns.get("http://127.0.0.1:9640/metrics")?;
    let buckets = text.lines().filter_map(|line| {
        let (name, count) = line.rsplit_once(' ')?;
        let bound = name.split_once("plan_seconds_bucket{le=\"")?.1.split('"').next()?;
        Some((bound.parse().unwrap_or(f64::INFINITY), count.parse().ok()?))
    });
    let found: Vec<(f64, u64)> = buckets.collect();
    if found.is_empty() { Err("the controller's metrics have no plan_seconds".to_owned()) } else { Ok(found) }
}

/// The bound of the highest bucket into which a plan fell between two looks.
fn longest_since(before: &[(f64, u64)], after: &[(f64, u64)]) -> f64 {
    // The counts are cumulative: the first bucket that has all of the new ones is the highest that got any.
    let new: Vec<u64> = before.iter().zip(after).map(|((_, before), (_, after))| after - before).collect();
    let all = new.last().copied().unwrap_or_default();
    let highest = new.iter().position(|count| *count == all);
    highest.map_or(f64::INFINITY, |number| after[number].0)
}
