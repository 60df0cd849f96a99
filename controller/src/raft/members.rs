//! Who belongs to the cluster: the changes that may be asked for, and which of them are refused.
//!
//! Pure; the driver proposes what is found well and says when it is in force.

use std::collections::{BTreeMap, BTreeSet};

use ::raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use roster_proto::id::PeerId;

use super::{error::MembersError, status::PeerProgress};

/// How many entries a learner may lack when it is promoted: as a voter it would hold up every command until it had
/// caught up. One that keeps up with a busy log lacks what is under way.
const PROMOTION_LAG: u64 = 8192;

/// One peer's part in a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A peer that receives the log and has no vote.
    AddLearner(PeerId),
    /// A learner becomes a voter.
    Promote(PeerId),
    /// A voter becomes a learner.
    Demote(PeerId),
    /// Also of a peer that is dead, and of the leader, which then hands over.
    Remove(PeerId),
}

impl MemberChange {
    fn peer(self) -> PeerId {
        match self {
            Self::AddLearner(peer) | Self::Promote(peer) | Self::Demote(peer) | Self::Remove(peer) => peer,
        }
    }

    fn kind(self) -> ConfChangeType {
        match self {
            Self::AddLearner(_) | Self::Demote(_) => ConfChangeType::AddLearnerNode,
            Self::Promote(_) => ConfChangeType::AddNode,
            Self::Remove(_) => ConfChangeType::RemoveNode,
        }
    }
}

/// The members as their leader sees them.
pub(super) struct Members<'a> {
    pub(super) leader: PeerId,
    /// Not joint.
    pub(super) conf: &'a ConfState,
    pub(super) progress: &'a BTreeMap<PeerId, PeerProgress>,
    pub(super) commit: u64,
}

impl Members<'_> {
    /// The change as raft takes it, or why it must not be made. Several at once go by way of a joint configuration.
    pub(super) fn check(&self, changes: &[MemberChange]) -> Result<ConfChangeV2, MembersError> {
        let mut voters: BTreeSet<_> = self.conf.voters.iter().copied().map(PeerId).collect();
        let before = voters.clone();
        let mut named = BTreeSet::new();
        let mut singles = Vec::new();
        for change in changes {
            let peer = change.peer();
            if !named.insert(peer) {
                return Err(MembersError::Twice { peer });
            }
            self.check_one(*change)?;
            if matches!(change, MemberChange::Promote(_)) {
                voters.insert(peer);
            } else {
                voters.remove(&peer);
            }
            let mut single = ConfChangeSingle { node_id: peer.0, ..ConfChangeSingle::default() };
            single.set_change_type(change.kind());
            singles.push(single);
        }
        // The present ones have to agree to it, and those after it have to be able to agree on anything.
        for voters in [&before, &voters] {
            self.check_quorum(voters)?;
        }
        Ok(ConfChangeV2 { changes: singles.into(), ..ConfChangeV2::default() })
    }

    fn check_one(&self, change: MemberChange) -> Result<(), MembersError> {
        let peer = change.peer();
        let role = match () {
            () if self.conf.voters.contains(&peer.0) => Some("voter"),
            () if self.conf.learners.contains(&peer.0) => Some("learner"),
            () => None,
        };
        match (change, role) {
            (MemberChange::AddLearner(_), Some(role)) => Err(MembersError::AlreadySo { peer, role }),
            (MemberChange::Promote(_), Some(role @ "voter")) => Err(MembersError::AlreadySo { peer, role }),
            (MemberChange::Demote(_), Some(role @ "learner")) => Err(MembersError::AlreadySo { peer, role }),
            (MemberChange::AddLearner(_), None) if peer.0 == 0 => Err(MembersError::Unknown { peer }),
            (MemberChange::AddLearner(_), None) => Ok(()),
            (_, None) => Err(MembersError::Unknown { peer }),
            (MemberChange::Promote(_), Some(_)) => {
                let progress = self.progress.get(&peer);
                let behind = self.commit.saturating_sub(progress.map_or(0, |progress| progress.matched));
                // One that has nothing yet is behind however short the log is.
                let ready = progress.is_some_and(|pr| pr.active && !pr.snapshotting && pr.matched > 0);
                if ready && behind <= PROMOTION_LAG { Ok(()) } else { Err(MembersError::NotCaughtUp { peer, behind }) }
            }
            (MemberChange::Demote(_) | MemberChange::Remove(_), Some(_)) => Ok(()),
        }
    }

    fn check_quorum(&self, voters: &BTreeSet<PeerId>) -> Result<(), MembersError> {
        let is_alive =
            |peer: &&PeerId| **peer == self.leader || self.progress.get(*peer).is_some_and(|progress| progress.active);
        let (alive, voters) = (voters.iter().filter(is_alive).count(), voters.len());
        if 2 * alive > voters { Ok(()) } else { Err(MembersError::LosesQuorum { voters, alive }) }
    }
}
