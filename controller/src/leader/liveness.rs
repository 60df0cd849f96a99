//! Who was heard of when, and the loop that calls silent nodes Down.
//!
//! Guarantees: a node is called Down only after it was silent for [`MISSED_HEARTBEATS`] whole periods in a row while
//! this controller led and was itself running; a fresh leader, and one that was itself stopped for a while, gives every
//! node that time anew. A node that is heard of again is Ready again. Absent: sessions; that one ended means nothing
//! here.

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
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{Stopped, deposed, leads};
use crate::{
    cluster::{ChangeError, Cluster},
    config::MISSED_HEARTBEATS,
    state::{
        ClusterState,
        command::{Command, Refusal},
    },
    status::chain,
};

/// Before trying again to write down what could not be written.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Liveness {
    period: Duration,
    heard: Mutex<BTreeMap<NodeId, Instant>>,
    recheck: Notify,
}

impl Liveness {
    pub fn new(period: Duration) -> Self {
        Self { period, heard: Mutex::default(), recheck: Notify::new() }
    }

    /// How often agents must let themselves be heard.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// How long a node may stay silent.
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

    /// A node that counts as Down was heard of.
    pub fn recheck(&self) {
        self.recheck.notify_one();
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
            let nodes = states.borrow_and_update().nodes.clone();
            let Judgement { turned, next } = self.judge(nodes.values().map(AsRef::as_ref), since, now);
            let failed = write_down(cluster, turned).await;
            let next = if failed { Some(now + RETRY) } else { next };
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.recheck.notified() => {}
                // A node that joined may have the nearest deadline.
                turned = nodes_turned(&mut states, &nodes) => turned?,
            }
            // Woken long after the alarm: this process, not the nodes, was away.
            if next.is_some_and(|next| Instant::now() > next + self.period) {
                tracing::warn!("the controller was stopped for a while: every node gets its time anew");
                since = Instant::now();
            }
        }
    }

    /// Which nodes' states are no longer true at `now`, and when to look again. A node not heard of since `since`
    /// counts as heard then.
    fn judge<'a>(&self, nodes: impl Iterator<Item = &'a Node>, since: Instant, now: Instant) -> Judgement {
        let mut heard = self.lock();
        let mut judgement = Judgement { turned: Vec::new(), next: None };
        for node in nodes {
            let last = heard.get(&node.id).copied();
            match node.state {
                NodeState::Ready => {
                    let deadline = last.map_or(since, |last| last.max(since)) + self.grace();
                    if deadline <= now {
                        judgement.turned.push((node.id.clone(), NodeState::Down));
                    } else {
                        judgement.next = Some(judgement.next.map_or(deadline, |next| next.min(deadline)));
                    }
                }
                NodeState::Down if last.is_some_and(|last| last + self.grace() > now) => {
                    judgement.turned.push((node.id.clone(), NodeState::Ready));
                }
                NodeState::Down => {
                    heard.remove(&node.id);
                }
            }
        }
        judgement
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Instant>> {
        // No code that holds the lock can panic half-way through a change.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Judgement {
    turned: Vec<(NodeId, NodeState)>,
    next: Option<Instant>,
}

/// True when something could not be written and must be tried again.
async fn write_down(cluster: &Cluster, turned: Vec<(NodeId, NodeState)>) -> bool {
    let mut failed = false;
    for (node, state) in turned {
        tracing::info!(%node, %state, "a node's state turns");
        match cluster.change(Command::SetNodeState { node: node.clone(), state }).await {
            Ok(_) | Err(ChangeError::Refused(Refusal::NoSuchNode(_))) => {}
            Err(error) => {
                tracing::warn!(%node, %state, error = chain(&error), "cannot write down a node's state");
                failed = true;
            }
        }
    }
    failed
}

/// Returns once a node was added or removed, or one's state is another than `before`.
async fn nodes_turned(
    states: &mut watch::Receiver<Arc<ClusterState>>,
    before: &OrdMap<NodeId, Arc<Node>>,
) -> Result<(), Stopped> {
    let turned = |now: &OrdMap<NodeId, Arc<Node>>| {
        !now.ptr_eq(before)
            && !now.values().map(|node| (&node.id, node.state)).eq(before.values().map(|node| (&node.id, node.state)))
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
mod tests {
    use roster_proto::{
        id::Version,
        node::{Availability, NodeDescription},
        time::Timestamp,
    };

    use super::*;

    const PERIOD: Duration = Duration::from_secs(1);

    fn node(id: &str, state: NodeState) -> Node {
        Node {
            id: id.parse().expect("a name"),
            description: NodeDescription::default(),
            state,
            availability: Availability::Active,
            since: Timestamp(0),
            generation: Version(0),
            labels: [].into(),
            fenced: false,
        }
    }

    fn judge(liveness: &Liveness, nodes: &[Node], since: Instant) -> (Vec<(String, NodeState)>, Option<Duration>) {
        let now = Instant::now();
        let judgement = liveness.judge(nodes.iter(), since, now);
        let turned = judgement.turned.into_iter().map(|(id, state)| (id.to_string(), state)).collect();
        (turned, judgement.next.map(|next| next - now))
    }

    #[tokio::test(start_paused = true)]
    async fn three_missed_heartbeats_and_not_before() {
        let (liveness, nodes) = (Liveness::new(PERIOD), [node("vm1", NodeState::Ready)]);
        let since = Instant::now();
        tokio::time::advance(Duration::from_secs(10)).await;
        liveness.heard(&nodes[0].id);
        tokio::time::advance(Duration::from_millis(2999)).await;
        assert_eq!(judge(&liveness, &nodes, since), (vec![], Some(Duration::from_millis(1))));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(judge(&liveness, &nodes, since).0, [("vm1".to_owned(), NodeState::Down)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fresh_leader_gives_every_node_its_time() {
        let (liveness, nodes) = (Liveness::new(PERIOD), [node("vm1", NodeState::Ready), node("vm2", NodeState::Ready)]);
        liveness.heard(&nodes[0].id);
        tokio::time::advance(Duration::from_secs(60)).await;
        let since = Instant::now();
        assert_eq!(judge(&liveness, &nodes, since), (vec![], Some(3 * PERIOD)));
        tokio::time::advance(3 * PERIOD).await;
        assert_eq!(judge(&liveness, &nodes, since).0.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_heard_of_again_is_ready() {
        let (liveness, nodes) = (Liveness::new(PERIOD), [node("vm1", NodeState::Down)]);
        let since = Instant::now();
        assert_eq!(judge(&liveness, &nodes, since), (vec![], None));
        liveness.heard(&nodes[0].id);
        assert_eq!(judge(&liveness, &nodes, since).0, [("vm1".to_owned(), NodeState::Ready)]);
        tokio::time::advance(3 * PERIOD).await;
        assert_eq!(judge(&liveness, &nodes, since), (vec![], None), "heard of long ago");
    }
}
