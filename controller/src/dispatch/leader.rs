//! Agents belong to the leader: what a controller that does not lead tells them, and what one that does may promise.
//!
//! A controller that does not lead keeps a session waiting until it knows who does, so that a thousand agents that have
//! lost their leader need not ask again and again: each learns of the next one as soon as it is elected.
//!
//! A lease is given only by a leader that a majority has confirmed after the heartbeat had come, and only to a node that
//! is Ready in the state confirmed. So a node that others have called Down, or that a newer leader counts anew, gets
//! none before it is Ready again, which is after all that it must no longer run has ended.

use std::time::Duration;

use roster_proto::{call, id::NodeId, node::NodeState};
use tokio::time::Instant;
use tonic::{Status, metadata::AsciiMetadataValue};

use super::Dispatcher;
use crate::{raft::Leadership, status::retry_safe};

/// How long an agent's session waits for somebody to lead.
const PATIENCE: Duration = Duration::from_secs(10);
/// Heartbeats that come within this part of a period share one round of confirmation.
const ROUNDS_PER_PERIOD: u32 = 20;

/// The moments at which leadership is confirmed, the same for all sessions.
#[derive(Clone, Debug)]
pub(crate) struct Rounds {
    origin: Instant,
    every: Duration,
}

impl Rounds {
    pub(crate) fn new(heartbeat_period: Duration) -> Self {
        Self { origin: Instant::now(), every: (heartbeat_period / ROUNDS_PER_PERIOD).max(Duration::from_millis(1)) }
    }

    /// Waits for the next one.
    pub(super) async fn next(&self) {
        let passed = self.origin.elapsed().as_micros() / self.every.as_micros();
        let next = u32::try_from(passed + 1).map_or(self.every, |rounds| self.every * rounds);
        tokio::time::sleep_until(self.origin + next).await;
    }
}

impl Dispatcher {
    /// Returns once this controller leads; refuses once it knows another that does. `lost` is where the agent has just
    /// found that nobody leads any more.
    pub(super) async fn lead(&self, lost: Option<&str>) -> Result<(), Status> {
        let mut leadership = self.cluster.leadership();
        let asked_in = leadership.borrow().term;
        let decided = |now: &Leadership| {
            now.is_self || self.address(now).is_some_and(|leader| now.term > asked_in || Some(&*leader) != lost)
        };
        let decision = async { leadership.wait_for(decided).await.map(|now| now.is_self) };
        let waited = tokio::select! {
            waited = tokio::time::timeout(PATIENCE, decision) => waited,
            () = self.shutdown.cancelled() => return Err(stopping()),
        };
        match waited {
            Ok(Ok(true)) => Ok(()),
            Ok(Err(_)) => Err(stopping()),
            Ok(Ok(false)) | Err(_) => Err(self.elsewhere()),
        }
    }

    /// Returns once this controller leads no longer, with what its agents are to be told.
    pub(super) async fn deposed(&self) -> Status {
        let deposed = self.cluster.leadership().wait_for(|now| !now.is_self).await.is_ok();
        if deposed { self.elsewhere() } else { stopping() }
    }

    /// What a controller that does not lead says.
    fn elsewhere(&self) -> Status {
        let Some(leader) = self.address(&self.cluster.leadership().borrow()) else {
            return retry_safe("no controller leads at present: try again");
        };
        let mut status = retry_safe(format!("this controller does not lead, the one at {leader} does"));
        if let Ok(leader) = AsciiMetadataValue::try_from(leader) {
            status.metadata_mut().insert(call::LEADER, leader);
        }
        status
    }

    /// Where the leader can be reached, as far as this controller knows of one.
    fn address(&self, leadership: &Leadership) -> Option<String> {
        let leader = leadership.leader?;
        let state = self.cluster.read();
        state.controllers.get(&leader).map(|leader| leader.address.clone()).filter(|address| !address.is_empty())
    }

    /// For how long a heartbeat that has come before this was called lets the node's singletons run on; zero for a node
    /// that is not Ready. `None`: there is no telling, for the majority did not answer.
    pub(super) async fn lease(&self, node: &NodeId) -> Option<Duration> {
        let leads = || {
            let leadership = self.cluster.leadership();
            let now = leadership.borrow();
            now.is_self.then_some(now.term)
        };
        let term = leads()?;
        let state = self.cluster.read_linearizable().await.ok()?;
        // Another leader may have answered through this one; it does not know of the heartbeat.
        if leads() != Some(term) {
            return None;
        }
        let ready = state.nodes.get(node).is_some_and(|node| node.state == NodeState::Ready);
        Some(if ready { self.liveness.grace() } else { Duration::ZERO })
    }
}

fn stopping() -> Status {
    retry_safe("the controller is stopping: connect again")
}
