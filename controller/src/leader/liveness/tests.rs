use roster_proto::{
    id::Version,
    node::{Availability, NodeDescription},
    time::Timestamp,
};

use super::*;

const PERIOD: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

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
        joined: Timestamp(0),
    }
}

fn ready<const N: usize>(ids: [&str; N]) -> Vec<Node> {
    ids.map(|id| node(id, NodeState::Ready)).into()
}

struct Told {
    down: Vec<String>,
    fenced: Vec<String>,
    /// From now.
    next: Option<Duration>,
}

fn judge(liveness: &Liveness, nodes: &[Node], since: Instant, longest_stop: Duration) -> Told {
    let now = Instant::now();
    let judgement = liveness.judge(nodes.iter().map(|node| Watched { node, longest_stop }), since, now);
    let names = |ids: &[NodeId]| ids.iter().map(ToString::to_string).collect();
    Told { down: names(&judgement.down), fenced: names(&judgement.fenced), next: judgement.next.map(|next| next - now) }
}

fn silent(liveness: &Liveness, nodes: &[Node], since: Instant) -> Told {
    judge(liveness, nodes, since, Duration::ZERO)
}

#[tokio::test(start_paused = true)]
async fn three_missed_heartbeats_and_not_before() {
    let (liveness, nodes) = (Liveness::new(PERIOD), ready(["vm1"]));
    let since = Instant::now();
    tokio::time::advance(Duration::from_secs(10)).await;
    liveness.heard(&nodes[0].id);
    tokio::time::advance(Duration::from_millis(2999)).await;
    let told = silent(&liveness, &nodes, since);
    assert_eq!((told.down.len(), told.next), (0, Some(MILLI)));
    tokio::time::advance(MILLI).await;
    assert_eq!(silent(&liveness, &nodes, since).down, ["vm1"]);
}

#[tokio::test(start_paused = true)]
async fn a_fresh_leader_gives_every_node_its_time() {
    let (liveness, nodes) = (Liveness::new(PERIOD), ready(["vm1", "vm2"]));
    liveness.heard(&nodes[0].id);
    tokio::time::advance(Duration::from_secs(60)).await;
    let since = Instant::now();
    let told = silent(&liveness, &nodes, since);
    assert_eq!((told.down.len(), told.next), (0, Some(3 * PERIOD)));
    tokio::time::advance(3 * PERIOD).await;
    assert_eq!(silent(&liveness, &nodes, since).down, ["vm1", "vm2"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_down_is_ready_only_by_settling() {
    let (liveness, nodes) = (Liveness::new(PERIOD), [node("vm1", NodeState::Down)]);
    let since = Instant::now();
    liveness.heard(&nodes[0].id);
    let told = silent(&liveness, &nodes, since);
    assert!(told.down.is_empty() && told.fenced.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_is_fenced_when_its_lease_the_longest_stop_and_a_margin_are_over() {
    let (liveness, mut nodes) = (Liveness::new(PERIOD), [node("vm1", NodeState::Down)]);
    let stop = Duration::from_secs(100);
    let since = Instant::now();
    tokio::time::advance(Duration::from_secs(500)).await;
    liveness.heard(&nodes[0].id);
    assert_eq!(judge(&liveness, &nodes, since, stop).next, Some(3 * PERIOD + stop + FENCE_MARGIN));
    tokio::time::advance(3 * PERIOD + stop + FENCE_MARGIN - MILLI).await;
    assert!(judge(&liveness, &nodes, since, stop).fenced.is_empty());
    // Another leader knows of no heartbeat, and counts from its own beginning.
    let later = Instant::now();
    tokio::time::advance(MILLI).await;
    assert_eq!(judge(&liveness, &nodes, since, stop).fenced, ["vm1"]);
    assert!(judge(&liveness, &nodes, later, stop).fenced.is_empty());
    nodes[0].fenced = true;
    let told = judge(&liveness, &nodes, since, stop);
    assert!(told.fenced.is_empty() && told.next.is_none());
}

#[tokio::test(start_paused = true)]
async fn nodes_that_vanish_together_are_called_down_together() {
    let (liveness, nodes) = (Liveness::new(PERIOD), ready(["vm1", "vm2", "vm3"]));
    let since = Instant::now();
    liveness.heard(&nodes[0].id);
    tokio::time::advance(Duration::from_millis(700)).await;
    liveness.heard(&nodes[1].id);
    tokio::time::advance(Duration::from_millis(2300)).await;
    liveness.heard(&nodes[2].id);
    // The first is due, the second will be in 700 ms, unless it is heard of after all.
    let told = silent(&liveness, &nodes, since);
    assert_eq!((told.down.len(), told.next), (0, Some(Duration::from_millis(700))));
    tokio::time::advance(Duration::from_millis(700)).await;
    assert_eq!(silent(&liveness, &nodes, since).down, ["vm1", "vm2"]);
}

#[tokio::test(start_paused = true)]
async fn one_of_many_is_called_down_at_once_and_suspicions_hold_it_up_for_a_period_at_most() {
    let (liveness, nodes) = (Liveness::new(PERIOD), ready(["vm1", "vm2", "vm3"]));
    let since = Instant::now();
    tokio::time::advance(1500 * MILLI).await;
    liveness.heard(&nodes[1].id);
    tokio::time::advance(PERIOD).await;
    liveness.heard(&nodes[2].id);
    tokio::time::advance(500 * MILLI).await;
    assert_eq!(silent(&liveness, &nodes, since).down, ["vm1"]);
    // Before that could be written down, a second of three has been silent for more than a heartbeat.
    tokio::time::advance(600 * MILLI).await;
    let told = silent(&liveness, &nodes, since);
    assert_eq!((told.down.len(), told.next), (0, Some(400 * MILLI)));
    tokio::time::advance(400 * MILLI).await;
    assert_eq!(silent(&liveness, &nodes, since).down, ["vm1"]);
}
