//! Who is to be a member, made so: the leader brings raft's configuration in line with the controllers in the state.
//!
//! Level-triggered, like everything the leader does: the wish is in the state, so whoever leads next carries on. One
//! change at a time; what fails is tried again. Besides, it writes down where controllers say they are and what they
//! run, and who fell silent; and it gives the vote of a voter that was not heard for long to a spare.
//!
//! Absent: any decision, which is [`decide`]'s, and what a change must not do, which is raft's own to refuse.

mod decide;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use roster_proto::id::PeerId;
use tokio::time::Instant;

use self::decide::{Move, SILENT, View, next};
use super::{Stopped, deposed, leads};
use crate::{
    cluster::Cluster,
    peers::{Announced, Peers},
    raft::RaftStatus,
    status::chain,
};

/// How often to look, where there is anybody else: the others come and go without a word.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After a change that failed.
const RETRY: Duration = Duration::from_millis(500);
/// What was committed so long ago a member that keeps up has: several round trips, and flushes.
const SETTLES: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Membership {
    cluster: Cluster,
    peers: Peers,
}

/// What one term of leading remembers.
struct Term {
    /// When each member was first seen as one: until then it was not missed.
    members: BTreeMap<PeerId, Instant>,
    /// What was committed when, oldest first, for [`SETTLES`].
    commits: VecDeque<(Instant, u64)>,
    /// Why the last change failed: told once.
    trouble: Option<String>,
}

impl Membership {
    pub fn new(cluster: Cluster, peers: Peers) -> Self {
        Self { cluster, peers }
    }

    /// For as long as the store runs, whenever this controller leads.
    pub async fn run(self) {
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

    async fn keep(&self) -> Result<(), Stopped> {
        let mut term = Term { members: BTreeMap::new(), commits: VecDeque::new(), trouble: None };
        let mut states = self.cluster.watch();
        loop {
            let pause = match self.step(&mut term).await {
                Ok(true) => continue,
                Ok(false) => LOOK_EVERY,
                Err(words) => {
                    if term.trouble.as_ref() != Some(&words) {
                        tracing::warn!(error = words, tried_every = ?RETRY, "the controllers could not be changed");
                    }
                    term.trouble = Some(words);
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
    async fn step(&self, term: &mut Term) -> Result<bool, String> {
        let (state, raft) = (self.cluster.read(), self.cluster.raft_status());
        let me = self.peers.me();
        let mut announced = self.peers.announced();
        announced.insert(me.id, Announced::of(me));
        let now = Instant::now();
        let silent = self.silences(term, &raft, now);
        let replace_after = Some(state.settings.replace_controller_after).filter(|micros| *micros > 0);
        let view = View {
            me: me.id,
            controllers: &state.controllers,
            raft: &raft,
            silent: &silent,
            settled: term.settled(now, raft.commit),
            announced: &announced,
            replace_after: replace_after.map(Duration::from_micros),
        };
        let Some(step) = next(&view) else { return Ok(false) };
        let made = match &step {
            Move::Propose(command) => {
                self.cluster.change(command.clone()).await.map(drop).map_err(|error| chain(&error))
            }
            Move::Change(changes) => self.cluster.change_members(changes.clone()).await.map_err(|error| chain(&error)),
            Move::HandOver(to) => self.cluster.transfer_leadership(*to).await.map_err(|error| chain(&error)),
        };
        made.map_err(|words| format!("{step}: {words}"))?;
        term.trouble = None;
        if step.is_grave() {
            tracing::warn!(%step, "changed the controllers");
        } else {
            tracing::info!(%step, "changed the controllers");
        }
        Ok(true)
    }

    /// How long each other member was not heard, while this controller led and it was one. Absent: not yet known.
    fn silences(&self, term: &mut Term, raft: &RaftStatus, now: Instant) -> BTreeMap<PeerId, Duration> {
        let others = raft.voters.iter().chain(&raft.learners).copied().filter(|peer| *peer != raft.id);
        let before = std::mem::take(&mut term.members);
        term.members = others.map(|peer| (peer, before.get(&peer).copied().unwrap_or(now))).collect();
        let silence = |(peer, since): (&PeerId, &Instant)| {
            let heard = self.peers.heard(*peer).map(|(heard, _)| Instant::from_std(heard));
            let heard = heard.filter(|heard| heard >= since);
            let silence = now.saturating_duration_since(heard.unwrap_or(*since));
            (heard.is_some() || silence >= SILENT).then_some((*peer, silence))
        };
        term.members.iter().filter_map(silence).collect()
    }
}

impl Term {
    fn settled(&mut self, now: Instant, commit: u64) -> u64 {
        self.commits.push_back((now, commit));
        while self.commits.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= SETTLES) {
            self.commits.pop_front();
        }
        self.commits.front().map_or(commit, |(_, commit)| *commit)
    }
}
