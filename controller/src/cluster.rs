//! The handle on the replicated state that the effects hold: read, watch, change.
//!
//! The one place where commands get their moment, so that nothing that is applied reads a clock.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use roster_proto::{
    id::{PeerId, Version},
    time::Timestamp,
};
use tokio::sync::watch;

use crate::{
    metrics::Metrics,
    raft::{Leadership, Machine, MemberChange, MembersError, ProposeError, RaftStatus, ReadError, Store, Undecodable},
    state::{
        Applied, ClusterState,
        command::{Command, Entry, Outcome, Refusal},
    },
};

/// Clones share everything.
#[derive(Clone, Debug)]
pub struct Cluster {
    store: Store<ClusterState>,
    metrics: Arc<Metrics>,
}

/// A command took effect, or nothing had to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Of the change; the present one when nothing had to change.
    pub version: Version,
}

#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

impl Cluster {
    pub fn new(store: Store<ClusterState>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    pub fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }

    /// What this controller has, at once: it may lack what others acknowledged.
    pub fn read(&self) -> Arc<ClusterState> {
        self.store.read()
    }

    /// All that was acknowledged, by whomever, before this was called. Waits a while for a leader when there is none.
    pub async fn read_linearizable(&self) -> Result<Arc<ClusterState>, ReadError> {
        self.store.read_index().await
    }

    pub fn watch(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.store.watch()
    }

    /// This controller.
    pub fn me(&self) -> PeerId {
        self.store.status().borrow().id
    }

    pub fn raft_status(&self) -> RaftStatus {
        self.store.status().borrow().clone()
    }

    pub async fn change_members(&self, changes: Vec<MemberChange>) -> Result<(), MembersError> {
        self.store.change_members(changes).await
    }

    pub async fn transfer_leadership(&self, to: PeerId) -> Result<(), MembersError> {
        self.store.transfer_leadership(to).await
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.store.leadership()
    }

    /// Returns once the command is durable and applied: a read that follows sees it.
    pub async fn change(&self, command: Command) -> Result<Changed, ChangeError> {
        self.propose(Entry::new(self.now(), command)).await
    }

    /// The same, for a client that may ask again: what became of its first request is the answer to every later one.
    pub async fn change_for(&self, request: String, command: Command) -> Result<Changed, ChangeError> {
        self.propose(Entry { at: self.now(), request: Some(request), command }).await
    }

    async fn propose(&self, entry: Entry) -> Result<Changed, ChangeError> {
        let begun = Instant::now();
        let (_, applied) = self.store.propose(entry).await?;
        self.metrics.proposed(begun.elapsed());
        match applied.outcome {
            Outcome::Applied | Outcome::Unchanged => Ok(Changed { version: applied.version }),
            Outcome::Refused(refusal) => Err(refusal.into()),
        }
    }
}

impl Machine for ClusterState {
    type Command = Entry;
    type Output = Applied;

    fn encode_command(command: &Entry) -> Vec<u8> {
        command.encode()
    }

    fn apply(&mut self, version: Version, command: &[u8]) -> Result<Applied, Undecodable> {
        let entry = Entry::decode(command).map_err(Undecodable::new)?;
        Ok(self.apply(version, &entry))
    }

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }

    fn decode(snapshot: &[u8]) -> Result<Self, Undecodable> {
        Self::decode(snapshot).map_err(Undecodable::new)
    }
}
