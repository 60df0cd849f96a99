//! Who is to be a member, made so: the leader brings raft's configuration in line with the controllers in the state.
//!
//! Level-triggered, like everything the leader does: the wish is in the state, so whoever leads next carries on. One
//! change at a time; what fails is tried again. Besides, it writes down where controllers say they are and what they
//! run, and gives the vote of a voter that was not heard for long to a spare.
//!
//! Absent: any decision, which is [`decide`]'s, and what a change must not do, which is raft's own to refuse.

mod decide;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use roster_proto::id::PeerId;
use tokio::time::Instant;

use self::decide::{Move, View, next};
use super::{Stopped, deposed, leads};
use crate::{cluster::Cluster, peers::Peers, status::chain};

/// How often to look, where there is anybody else: the others come and go without a word.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After a change that failed.
const RETRY: Duration = Duration::from_millis(500);
/// A voter that was not heard for so long is told of in the log.
const SILENT: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub struct Membership {
    cluster: Cluster,
    peers: Peers,
    /// Told of as silent.
    told: BTreeMap<PeerId, Instant>,
}

impl Membership {
    pub fn new(cluster: Cluster, peers: Peers) -> Self {
        Self { cluster, peers, told: BTreeMap::new() }
    }

    /// For as long as the store runs, whenever this controller leads.
    pub async fn run(mut self) {
        let mut leadership = self.cluster.leadership();
        while leads(&mut leadership).await.is_ok() {
            let led = tokio::select! {
                biased;
                lost = deposed(leadership.clone()) => lost,
                stopped = self.keep() => stopped,
            };
            if led.is_err() {
                return;
            }
        }
    }

    async fn keep(&mut self) -> Result<(), Stopped> {
        let since = Instant::now();
        let mut states = self.cluster.watch();
        loop {
            let pause = match self.step(since).await {
                Ok(true) => continue,
                Ok(false) => LOOK_EVERY,
                Err(words) => {
                    tracing::warn!(error = words, again_in = ?RETRY, "the controllers could not be changed");
                    RETRY
                }
            };
            let alone = states.borrow_and_update().controllers.len() <= 1;
            tokio::select! {
                changed = states.changed(), if alone => changed.map_err(|_| Stopped)?,
                () = tokio::time::sleep(pause), if !alone => {}
            }
        }
    }

    /// One move, if there is one to make.
    async fn step(&mut self, since: Instant) -> Result<bool, String> {
        let (state, raft) = (self.cluster.read(), self.cluster.raft_status());
        let me = self.peers.me().clone();
        let silent = self.silences(&raft.voters, since);
        let mut announced = self.peers.announced();
        if let Some(address) = &me.address {
            let own =
                crate::peers::Announced { address: address.clone(), release: env!("CARGO_PKG_VERSION").to_owned() };
            announced.insert(me.id, own);
        }
        let replace_after = Some(state.settings.replace_controller_after).filter(|micros| *micros > 0);
        let view = View {
            me: me.id,
            controllers: &state.controllers,
            raft: &raft,
            silent: &silent,
            announced: &announced,
            replace_after: replace_after.map(Duration::from_micros),
        };
        let Some(step) = next(&view) else { return Ok(false) };
        tracing::info!(%step, "changing the controllers");
        let made = match step {
            Move::Propose(command) => self.cluster.change(command).await.map(drop).map_err(|error| chain(&error)),
            Move::Change(changes) => self.cluster.change_members(changes).await.map_err(|error| chain(&error)),
            Move::HandOver(to) => self.cluster.transfer_leadership(to).await.map_err(|error| chain(&error)),
        };
        made.map(|()| true)
    }

    /// How long each other voter was not heard, while this controller led; tells of it.
    fn silences(&mut self, voters: &[PeerId], since: Instant) -> BTreeMap<PeerId, Duration> {
        let now = Instant::now();
        let mut silent = BTreeMap::new();
        for peer in voters.iter().copied().filter(|peer| *peer != self.peers.me().id) {
            let heard = self.peers.heard(peer).map(|(heard, _)| Instant::from_std(heard));
            let silence = now.saturating_duration_since(heard.unwrap_or(since).max(since));
            if silence >= SILENT && !self.told.contains_key(&peer) {
                tracing::warn!(%peer, ?silence, "a controller does not answer");
                self.told.insert(peer, now);
            } else if silence < SILENT && self.told.remove(&peer).is_some() {
                tracing::info!(%peer, "a controller answers again");
            }
            silent.insert(peer, silence);
        }
        silent
    }
}
