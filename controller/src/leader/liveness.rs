//! Who was heard of when, and the loop that calls silent nodes Down, and fenced once nothing can hold a lease there.
//!
//! Guarantees: a node is called Down only after it was silent for [`MISSED_HEARTBEATS`] whole periods in a row while
//! this controller led and was itself running; a fresh leader, and one that was itself stopped for a while, gives every
//! node that time anew, and the time until it is fenced as well. When most nodes fall silent at about the same time,
//! they are called Down together, so that the brake engages before anything is moved. Absent: who is Ready, which a node
//! becomes by settling; and sessions: that one ended means nothing here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use imbl::OrdMap;
use roster_proto::{
    id::NodeId,
    node::{Node, NodeState},
};
use tokio::{sync::watch, time::Instant};

use super::{Stopped, deposed, leads};
use crate::{
    cluster::{ChangeError, Cluster},
    config::MISSED_HEARTBEATS,
    state::{
        ClusterState,
        command::{Command, Refusal},
        too_many,
    },
    status::chain,
};

/// Before trying again to write down what could not be written.
const RETRY: Duration = Duration::from_millis(100);

/// Beyond a node's last lease and the longest time that a singleton may take to stop: for the clocks' different pace,
/// and for the last processes to die.
const FENCE_MARGIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Liveness {
    period: Duration,
    heard: Mutex<BTreeMap<NodeId, Instant>>,
}

/// A node as it is to be watched.
struct Watched<'a> {
    node: &'a Node,
    /// The longest time that one of its singletons may take to stop once its lease is over.
    longest_stop: Duration,
}

impl Liveness {
    pub fn new(period: Duration) -> Self {
        Self { period, heard: Mutex::default() }
    }

    /// How often agents must let themselves be heard.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// How long a node may stay silent; also how long the lease is that each of its heartbeats is answered with.
    pub fn grace(&self) -> Duration {
        self.period * MISSED_HEARTBEATS
    }

    pub fn heard(&self, node: &NodeId) {
        let now = Instant::now();
        let mut heard = self.lock();
        match heard.get_mut(node) {
            Some(last) => *last = now,
            None => {
                heard.insert(node.clone(), now);
            }
        }
    }

    /// For as long as the store runs, whenever this controller leads.
    pub async fn watch_over(&self, cluster: &Cluster) {
        let mut leadership = cluster.leadership();
        while leads(&mut leadership).await.is_ok() {
            let led = tokio::select! {
                biased;
                lost = deposed(leadership.clone()) => lost,
                stopped = self.watch_as_leader(cluster) => stopped,
            };
            if led.is_err() {
                return;
            }
        }
    }

    async fn watch_as_leader(&self, cluster: &Cluster) -> Result<(), Stopped> {
        let mut states = cluster.watch();
        let mut since = Instant::now();
        loop {
            let now = Instant::now();
            let state = states.borrow_and_update().clone();
            let watched = state.nodes.values().map(|node| Watched::of(&state, node));
            let judgement = self.judge(watched, since, now);
            let next = if write_down(cluster, &judgement).await { Some(now + RETRY) } else { judgement.next };
            tokio::select! {
                () = sleep_until(next) => {}
                // A node that joined may have the nearest deadline.
                turned = nodes_turned(&mut states, &state.nodes) => turned?,
            }
            // Woken long after the alarm: this process, not the nodes, was away.
            if next.is_some_and(|next| Instant::now() > next + self.period) {
                tracing::warn!("the controller was stopped for a while: every node gets its time anew");
                since = Instant::now();
            }
        }
    }

    /// What is no longer true of the nodes (all, in order of their names) at `now`, and when to look again. A node not heard of since `since` counts as
    /// heard then.
    fn judge<'a>(&self, nodes: impl Iterator<Item = Watched<'a>>, since: Instant, now: Instant) -> Judgement {
        let nodes: Vec<Watched<'_>> = nodes.collect();
        let mut heard = self.lock();
        // Nodes that have just joined may not be in this state yet.
        let known = |id: &NodeId| nodes.binary_search_by(|watched| watched.node.id.cmp(id)).is_ok();
        heard.retain(|id, last| known(id) || *last + self.grace() > now);
        let mut judgement = Judgement::default();
        let mut deadlines = Vec::new();
        for Watched { node, longest_stop } in nodes {
            let last = heard.get(&node.id).map_or(since, |last| since.max(*last));
            let deadline = last + self.grace();
            match node.state {
                NodeState::Ready => deadlines.push((deadline, node.id.clone())),
                NodeState::Down if node.fenced => {}
                NodeState::Down if deadline + longest_stop + FENCE_MARGIN <= now => {
                    judgement.fenced.push(node.id.clone());
                }
                NodeState::Down => judgement.wake_at(deadline + longest_stop + FENCE_MARGIN),
            }
        }
        drop(heard);
        deadlines.sort();
        self.judge_ready(&deadlines, now, &mut judgement);
        judgement
    }

    /// The deadlines are in order.
    fn judge_ready(&self, deadlines: &[(Instant, NodeId)], now: Instant, judgement: &mut Judgement) {
        let expired = deadlines.partition_point(|(deadline, _)| *deadline <= now);
        if let Some((deadline, _)) = deadlines.get(expired) {
            judgement.wake_at(*deadline);
        }
        let Some((first, _)) = deadlines.first().filter(|_| expired > 0) else { return };
        // Silent for more than a heartbeat, and soon to be given up as well.
        let suspects = deadlines.partition_point(|(deadline, _)| *deadline <= now + self.period);
        let together = suspects > expired && too_many(suspects, deadlines.len() - suspects);
        if together && now < *first + self.period {
            judgement.wake_at(*first + self.period);
            return;
        }
        judgement.down.extend(deadlines[..expired].iter().map(|(_, node)| node.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Instant>> {
        // No code that holds the lock can panic half-way through a change.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Judgement {
    down: Vec<NodeId>,
    fenced: Vec<NodeId>,
    next: Option<Instant>,
}

impl Judgement {
    fn wake_at(&mut self, moment: Instant) {
        self.next = Some(self.next.map_or(moment, |next| next.min(moment)));
    }

    fn commands(&self) -> impl Iterator<Item = Command> {
        let down = (!self.down.is_empty()).then(|| Command::SetNodesDown { nodes: self.down.clone() });
        let fenced = self.fenced.iter().map(|node| Command::SetNodeFenced { node: node.clone() });
        down.into_iter().chain(fenced)
    }
}

impl<'a> Watched<'a> {
    fn of(state: &ClusterState, node: &'a Node) -> Self {
        let specs = state.tasks_on(&node.id).filter_map(|task| state.task_spec(task));
        let watched = || specs.filter(|spec| spec.singleton).map(|spec| spec.stop_grace_period).max();
        // Asked only where it matters: a healthy node may have many tasks.
        let unfenced = node.state == NodeState::Down && !node.fenced;
        Self { node, longest_stop: unfenced.then(watched).flatten().unwrap_or_default() }
    }
}

/// True when something could not be written and must be tried again.
async fn write_down(cluster: &Cluster, judgement: &Judgement) -> bool {
    let mut failed = false;
    for command in judgement.commands() {
        tracing::info!(?command, "nodes have been silent for too long");
        match cluster.change(command).await {
            Ok(_) | Err(ChangeError::Refused(Refusal::NoSuchNode(_))) => {}
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot write down what became of silent nodes");
                failed = true;
            }
        }
    }
    failed
}

/// Returns once a node was added or removed, or one is Ready, Down or fenced that was not so `before`.
async fn nodes_turned(
    states: &mut watch::Receiver<Arc<ClusterState>>,
    before: &OrdMap<NodeId, Arc<Node>>,
) -> Result<(), Stopped> {
    let turned = |now: &OrdMap<NodeId, Arc<Node>>| {
        let facts = |nodes: &OrdMap<NodeId, Arc<Node>>| {
            nodes.values().map(|node| (node.id.clone(), node.state, node.fenced)).collect::<Vec<_>>()
        };
        !now.ptr_eq(before) && facts(now) != facts(before)
    };
    states.wait_for(|state| turned(&state.nodes)).await.map(|_| ()).map_err(|_| Stopped)
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod singletons;
#[cfg(test)]
mod tests;
