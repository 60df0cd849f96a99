//! What a peer knows about its cluster, for those who watch over it.

use std::collections::BTreeMap;

use ::raft::ProgressState;
use roster_proto::id::PeerId;

/// As of the last change of roles or members; positions and progress are at most a tick old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This peer.
    pub id: PeerId,
    pub term: u64,
    pub leader: Option<PeerId>,
    pub commit: u64,
    pub applied: u64,
    /// In order, as are the others. Empty: this peer waits to be contacted.
    pub voters: Vec<PeerId>,
    /// The voters before the change under way, whose majority is needed too. Empty: there is none.
    pub outgoing: Vec<PeerId>,
    pub learners: Vec<PeerId>,
    /// It leads for less than a second or so: that it has not heard somebody says nothing yet.
    pub new_to_lead: bool,
    /// The other peers as their leader sees them; empty where another one leads.
    pub progress: BTreeMap<PeerId, PeerProgress>,
}

impl RaftStatus {
    /// The other voter to hand over to: one that is heard, and has most of the log. Of use where this peer leads.
    pub fn successor(&self) -> Option<PeerId> {
        let others = self.voters.iter().filter(|voter| **voter != self.id);
        others.max_by_key(|peer| self.progress.get(peer).map(|peer| (peer.active, peer.matched))).copied()
    }

    /// Before anything is known.
    pub(super) fn unknown(id: PeerId) -> Self {
        let (voters, outgoing, learners) = (Vec::new(), Vec::new(), Vec::new());
        let progress = BTreeMap::new();
        let (leader, new_to_lead) = (None, false);
        Self { id, term: 0, leader, commit: 0, applied: 0, voters, outgoing, learners, new_to_lead, progress }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// The last entry it is known to have on disk.
    pub matched: u64,
    /// It was heard within the shortest election timeout.
    pub active: bool,
    /// It is being sent a snapshot.
    pub snapshotting: bool,
}

impl PeerProgress {
    pub(super) fn new(progress: &::raft::Progress, active: bool) -> Self {
        let snapshotting = progress.state == ProgressState::Snapshot;
        Self { matched: progress.matched, active, snapshotting }
    }
}

/// In order.
pub(super) fn peers(ids: &[u64]) -> Vec<PeerId> {
    let mut peers: Vec<_> = ids.iter().copied().map(PeerId).collect();
    peers.sort();
    peers
}
