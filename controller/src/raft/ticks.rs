//! What the driver does as time passes.

use ::raft::{StateRole, eraftpb::ConfState};

use super::{Machine, disk::Disk, driver::Driver};

/// Between two attempts to find out whether the others would vote.
const ASK_AGAIN_TICKS: usize = 2;

impl<M: Machine, D: Disk> Driver<M, D> {
    /// One step of raft's clock; [`Self::settle`] is to follow.
    pub(super) fn tick(&mut self) {
        self.now += 1;
        self.node.tick();
        self.ask_again_for_votes();
        let commit = self.node.raft.raft_log.committed;
        if self.told < commit {
            self.told = commit;
            self.node.ping();
        }
        self.reads.expire(self.now);
        self.drop_offer_when_idle();
        self.status_due = true;
        self.after_input();
    }

    /// Another voter whose clock is a little behind still holds to the leader that is gone, and says nothing. To ask
    /// whether it would vote binds nobody: it is asked again soon, not after a whole election timeout.
    fn ask_again_for_votes(&mut self) {
        let raft = &mut self.node.raft;
        if raft.state == StateRole::PreCandidate && raft.election_elapsed >= ASK_AGAIN_TICKS {
            raft.election_elapsed = 0;
            // What fails here fails again at the next message, where it is told; raft's own tick does the same.
            let _ = self.node.campaign();
        }
    }

    /// Whether the clock matters: there is anybody to hear from, or this one, left alone, has yet to stand for election,
    /// or somebody waits to read.
    pub(super) fn needs_ticks(&self) -> bool {
        let ConfState { voters, learners, voters_outgoing, .. } = &self.conf;
        let is_other = |peer: &u64| *peer != self.id();
        let knows_others = voters.iter().chain(learners).chain(voters_outgoing).any(is_other);
        // One that joins knows of nobody but its leader, and votes for another only once that one is silent.
        let may_stand = !self.is_leader() && (!voters.is_empty() || self.leader().is_some());
        knows_others || may_stand || self.reads.are_awaited()
    }
}
