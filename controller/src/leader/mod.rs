//! What only the leader does: the loop that plans and proposes, and the watch over the nodes' heartbeats.
//!
//! Level-triggered: a change of the state, a moment the last plan named, or leadership itself only wakes the loop; it
//! then plans against everything there is. While a plan is on its way to the disk, changes gather and the next pass
//! sees them all. Idle, nothing runs. Absent: any decision, which is [`crate::plan`]'s.

pub mod liveness;
pub mod membership;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use roster_proto::time::Timestamp;
use tokio::sync::watch;

use crate::{
    cluster::{ChangeError, Cluster},
    metrics::Metrics,
    plan::plan,
    raft::Leadership,
    state::{
        ClusterState,
        command::{Command, Refusal},
    },
    status::chain,
};

/// Between a failed pass and the next: the first, and the longest.
const RETRY: std::ops::RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(5);

/// Plans and proposes for as long as the store runs, whenever this controller leads.
#[derive(Debug)]
pub struct Reconciler {
    cluster: Cluster,
    metrics: Arc<Metrics>,
    states: watch::Receiver<Arc<ClusterState>>,
    leadership: watch::Receiver<Leadership>,
}

/// The store stopped; there is nothing left to reconcile.
struct Stopped;

/// When a pass left nothing to do.
struct Settled {
    next_wake: Option<Timestamp>,
}

impl Reconciler {
    pub fn new(cluster: Cluster, metrics: Arc<Metrics>) -> Self {
        let (states, leadership) = (cluster.watch(), cluster.leadership());
        Self { cluster, metrics, states, leadership }
    }

    pub async fn run(mut self) {
        while leads(&mut self.leadership).await.is_ok() {
            let led = tokio::select! {
                biased;
                lost = deposed(self.leadership.clone()) => lost,
                stopped = self.reconcile() => stopped,
            };
            if led.is_err() {
                return;
            }
        }
    }

    /// Passes, one after the other, until the store stops.
    async fn reconcile(&mut self) -> Result<(), Stopped> {
        let mut retry = *RETRY.start();
        self.states.mark_changed();
        let mut next_wake = None;
        loop {
            self.wake(next_wake).await?;
            match self.pass().await {
                Ok(settled) => {
                    next_wake = settled.next_wake;
                    retry = *RETRY.start();
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), again_in = ?retry, "a pass failed");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(*RETRY.end());
                    self.states.mark_changed();
                }
            }
        }
    }

    async fn wake(&mut self, next_wake: Option<Timestamp>) -> Result<(), Stopped> {
        let now = self.cluster.now();
        tokio::select! {
            changed = self.states.changed() => changed.map_err(|_| Stopped),
            () = sleep_until(next_wake, now) => Ok(()),
        }
    }

    /// Plans and proposes until a plan is empty or applied. What an applied plan leaves to do wakes the next pass.
    async fn pass(&mut self) -> Result<Settled, ChangeError> {
        loop {
            let state = self.states.borrow_and_update().clone();
            let begun = Instant::now();
            let now = self.cluster.now();
            // Over thousands of tasks it takes long enough to hold up everybody else.
            let planned = tokio::task::spawn_blocking(move || plan(&state, now, rand::random())).await;
            let plan = planned.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
            self.metrics.planned(begun.elapsed());
            if plan.changes.is_empty() {
                return Ok(Settled { next_wake: plan.next_wake });
            }
            tracing::debug!(base = %plan.base, changes = plan.changes.len(), "proposing a plan");
            let command = Command::ApplyPlan { base: plan.base, changes: plan.changes };
            match self.cluster.change(command).await {
                Ok(_) => return Ok(Settled { next_wake: plan.next_wake }),
                Err(ChangeError::Refused(Refusal::Stale { .. })) => self.metrics.stale_plan(),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns once this controller leads.
async fn leads(leadership: &mut watch::Receiver<Leadership>) -> Result<(), Stopped> {
    leadership.wait_for(|now| now.is_self).await.map(|_| ()).map_err(|_| Stopped)
}

/// Returns once this controller leads no longer.
async fn deposed(mut leadership: watch::Receiver<Leadership>) -> Result<(), Stopped> {
    leadership.wait_for(|now| !now.is_self).await.map(|_| ()).map_err(|_| Stopped)
}

async fn sleep_until(moment: Option<Timestamp>, now: Timestamp) {
    match moment {
        Some(moment) => tokio::time::sleep(moment.since(now)).await,
        None => std::future::pending().await,
    }
}
