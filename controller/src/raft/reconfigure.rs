//! The driver's part in changes of the members and in handing the leadership over.
//!
//! Guarantees: one change at a time; it is answered well once it is in force, which for several at once is when the
//! joint configuration has been left, and once most of the voters know so for good: those who were removed may then be
//! destroyed, for nobody asks for their vote any more. A leader that takes its own vote cannot wait for that: it hands
//! over to the voter that has most of the log, steps down at once, and answers that it lost the leadership. Whoever
//! wants to know hands over first and asks the next one.

use std::collections::BTreeMap;

use ::raft::{
    INVALID_ID,
    eraftpb::{ConfChangeV2, Entry, EntryType},
};
use protobuf::Message as _;
use roster_proto::id::PeerId;
use tokio::sync::oneshot;

use super::{
    Machine,
    disk::Disk,
    driver::{Driver, ELECTION_TICKS, send},
    error::{End, Fault, MembersError},
    members::{MemberChange, Members},
    status::{PeerProgress, RaftStatus, peers},
};

pub(super) type MembersAnswer = oneshot::Sender<Result<(), MembersError>>;

/// Raft gives a transfer up after one election timeout; the new leader may need a while to be heard.
const TRANSFER_TICKS: u64 = 3 * ELECTION_TICKS as u64;

/// After this time a new leader has heard everybody who can be heard.
const NEW_TICKS: u64 = 2 * ELECTION_TICKS as u64;

#[derive(Default)]
pub(super) struct Reconfiguration {
    change: Option<Change>,
    /// The entry that put the present members in force, until most of them are known to know.
    settling: Option<u64>,
    transfer: Option<Transfer>,
}

struct Change {
    /// In its entry's context.
    id: u64,
    /// Its entry is applied; what is left is to leave the joint configuration.
    is_entered: bool,
    answer: MembersAnswer,
}

struct Transfer {
    to: PeerId,
    until: u64,
    answer: MembersAnswer,
}

impl Reconfiguration {
    /// Ends the change under way.
    pub(super) fn fail(&mut self, error: &MembersError) {
        if let Some(change) = self.change.take() {
            send(change.answer, Err(error.clone()));
        }
    }

    pub(super) fn end(&mut self, end: &End) {
        self.fail(&end.clone().into());
        if let Some(transfer) = self.transfer.take() {
            send(transfer.answer, Err(end.clone().into()));
        }
    }
}

impl<M: Machine, D: Disk> Driver<M, D> {
    /// Proposes the change, which is refused when it must not be made.
    pub(super) fn change_members(&mut self, changes: &[MemberChange], answer: MembersAnswer) -> Result<(), Fault> {
        let change = match self.check_change(changes) {
            Ok(change) => change,
            Err(refused) => {
                send(answer, Err(refused));
                return Ok(());
            }
        };
        let id = self.mint_id();
        match self.node.propose_conf_change(id.to_be_bytes().to_vec(), change) {
            Ok(()) => self.reconfiguration.change = Some(Change { id, is_entered: false, answer }),
            // While the leadership is being handed over.
            Err(::raft::Error::ProposalDropped) => send(answer, Err(MembersError::UnderWay)),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn check_change(&self, changes: &[MemberChange]) -> Result<ConfChangeV2, MembersError> {
        if !self.is_leader() {
            return Err(MembersError::NotLeader { leader: self.leader() });
        }
        let is_joint = !self.conf.voters_outgoing.is_empty();
        if is_joint || self.node.raft.has_pending_conf() || self.reconfiguration.change.is_some() {
            return Err(MembersError::UnderWay);
        }
        let progress = self.progress();
        let commit = self.node.raft.raft_log.committed;
        Members { leader: PeerId(self.id()), conf: &self.conf, progress: &progress, commit }.check(changes)
    }

    /// Applies an entry that changes the members.
    pub(super) fn apply_members(&mut self, entry: &Entry) -> Result<(), Fault> {
        let unknown = || Fault::UnknownKind { index: entry.index };
        if entry.get_entry_type() != EntryType::EntryConfChangeV2 {
            return Err(unknown());
        }
        let change = ConfChangeV2::parse_from_bytes(&entry.data).map_err(|_| unknown())?;
        self.conf = self.node.apply_conf_change(&change)?;
        self.heard.retain(|peer, _| super::storage::contains(&self.conf, *peer));
        self.status_due = true;
        if let Some(change) = &mut self.reconfiguration.change {
            change.is_entered |= entry.context[..] == change.id.to_be_bytes();
        }
        if self.conf.voters_outgoing.is_empty() {
            if self.is_leader() && !self.conf.voters.contains(&self.id()) {
                self.abdicate();
            } else {
                self.reconfiguration.settling = Some(entry.index);
                // The others hear of it at once.
                self.node.ping();
            }
        }
        Ok(())
    }

    /// Ends a change that is in force and that most of the voters will not forget.
    pub(super) fn watch_change(&mut self) {
        let Some(index) = self.reconfiguration.settling.filter(|_| self.is_leader()) else { return };
        // This one applied the entry, and what the others say they know is on their disks.
        let progress = self.node.raft.prs();
        let knows = |peer: &&u64| {
            **peer == self.id() || progress.get(**peer).is_some_and(|progress| progress.committed_index >= index)
        };
        if 2 * self.conf.voters.iter().filter(knows).count() > self.conf.voters.len() {
            self.reconfiguration.settling = None;
            if let Some(change) = self.reconfiguration.change.take_if(|change| change.is_entered) {
                send(change.answer, Ok(()));
            }
        }
    }

    /// Leaves the leadership to the voter that has most of the log: raft would go on leading, and could not.
    fn abdicate(&mut self) {
        let raft = &mut self.node.raft;
        // The others have to know that the change is committed before they may stand.
        raft.bcast_append();
        let voters = self.conf.voters.iter();
        let matched = |peer: &&u64| raft.prs().get(**peer).map_or(0, |progress| progress.matched);
        if let Some(best) = voters.max_by_key(matched).copied() {
            raft.send_timeout_now(best);
        }
        let term = raft.term;
        raft.become_follower(term, INVALID_ID);
    }

    /// Hands the leadership to another voter; answers once that one leads.
    pub(super) fn transfer_leadership(&mut self, to: PeerId, answer: MembersAnswer) {
        if self.leader() == Some(to) {
            return send(answer, Ok(()));
        }
        if let Err(refused) = self.check_transfer(to) {
            return send(answer, Err(refused));
        }
        let until = self.now + TRANSFER_TICKS;
        self.reconfiguration.transfer = Some(Transfer { to, until, answer });
        self.node.transfer_leader(to.0);
    }

    fn check_transfer(&self, to: PeerId) -> Result<(), MembersError> {
        if !self.is_leader() {
            return Err(MembersError::NotLeader { leader: self.leader() });
        }
        if self.reconfiguration.transfer.is_some() {
            return Err(MembersError::UnderWay);
        }
        if !self.conf.voters.contains(&to.0) {
            return Err(MembersError::Unknown { peer: to });
        }
        if self.is_active(to.0) { Ok(()) } else { Err(MembersError::Unreachable { peer: to }) }
    }

    /// Answers a transfer that has come to its end.
    pub(super) fn watch_transfer(&mut self) {
        let Some(Transfer { to, until, .. }) = &self.reconfiguration.transfer else { return };
        let (to, leader) = (*to, self.leader());
        let is_given_up = self.is_leader() && self.node.raft.lead_transferee != Some(to.0);
        let outcome = if leader == Some(to) {
            Ok(())
        } else if is_given_up || self.now >= *until {
            Err(MembersError::NotTaken { peer: to })
        } else {
            return;
        };
        if let Some(transfer) = self.reconfiguration.transfer.take() {
            send(transfer.answer, outcome);
        }
    }

    fn is_active(&self, peer: u64) -> bool {
        self.heard.get(&peer).is_some_and(|heard| self.now - heard < ELECTION_TICKS as u64)
    }

    /// The other members', where this peer leads.
    fn progress(&self) -> BTreeMap<PeerId, PeerProgress> {
        if !self.is_leader() {
            return BTreeMap::new();
        }
        let others = self.node.raft.prs().iter().filter(|(peer, _)| **peer != self.id());
        others.map(|(peer, progress)| (PeerId(*peer), PeerProgress::new(progress, self.is_active(*peer)))).collect()
    }

    pub(super) fn current_status(&self) -> RaftStatus {
        let raft = &self.node.raft;
        RaftStatus {
            id: PeerId(raft.id),
            term: raft.term,
            leader: self.leader(),
            commit: raft.raft_log.committed,
            applied: self.applied,
            voters: peers(&self.conf.voters),
            outgoing: peers(&self.conf.voters_outgoing),
            learners: peers(&[&self.conf.learners[..], &self.conf.learners_next[..]].concat()),
            new_to_lead: self.is_leader() && self.now - self.leading_since < NEW_TICKS,
            progress: self.progress(),
        }
    }

    /// At once what changed the roles or members, the rest with the ticks.
    pub(super) fn publish_status(&mut self) {
        if !std::mem::take(&mut self.status_due) && self.needs_ticks() {
            return;
        }
        let now = self.current_status();
        self.status.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}
