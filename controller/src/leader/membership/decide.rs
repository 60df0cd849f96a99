//! What to change next among the controllers. Pure.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use imbl::OrdMap;
use roster_proto::id::PeerId;

use crate::{
    peers::Announced,
    raft::{MemberChange, RaftStatus},
    state::{command::Command, controllers::ControllerInfo},
};

/// A controller that was not heard for so long is reported.
pub(super) const SILENT: Duration = Duration::from_secs(3);

/// What the leader sees.
pub(super) struct View<'a> {
    pub(super) me: PeerId,
    pub(super) controllers: &'a OrdMap<PeerId, Arc<ControllerInfo>>,
    pub(super) raft: &'a RaftStatus,
    /// How long each other member was not heard, where that is known.
    pub(super) silent: &'a BTreeMap<PeerId, Duration>,
    /// What was committed a moment ago. Who has that is caught up, however fast the log grows.
    pub(super) settled: u64,
    pub(super) announced: &'a BTreeMap<PeerId, Announced>,
    pub(super) replace_after: Option<Duration>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Move {
    Propose(Command),
    /// All at once.
    Change(Vec<MemberChange>),
    /// The leader is to lose its vote: another one has to see to that.
    HandOver(PeerId),
}

/// The next move, or `None` while all is as it should be or has to wait.
pub(super) fn next(view: &View) -> Option<Move> {
    // A controller that was never made a cluster has no members to change; and one change at a time.
    if view.controllers.is_empty() || !view.raft.outgoing.is_empty() {
        return None;
    }
    view.moved()
        .or_else(|| view.reported())
        .or_else(|| view.gone())
        .or_else(|| view.newcomer())
        .or_else(|| view.change_of_votes())
        .or_else(|| view.replacement())
}

impl View<'_> {
    fn is_voter(&self, peer: PeerId) -> bool {
        self.raft.voters.contains(&peer)
    }

    fn is_learner(&self, peer: PeerId) -> bool {
        self.raft.learners.contains(&peer)
    }

    /// A controller is elsewhere, or runs another release, than is written down.
    fn moved(&self) -> Option<Move> {
        self.controllers.values().find_map(|known| {
            let said = self.announced.get(&known.id)?;
            let address = if said.address.is_empty() { &known.address } else { &said.address };
            let same = *address == known.address && said.release == known.release && said.protocol == known.protocol;
            if same {
                return None;
            }
            Some(Move::Propose(Command::PutController {
                id: known.id,
                name: known.name.clone(),
                address: address.clone(),
                release: said.release.clone(),
                protocol: said.protocol,
                spare: known.spare,
            }))
        })
    }

    /// A controller fell silent, or is heard again.
    fn reported(&self) -> Option<Move> {
        self.controllers.values().find_map(|known| {
            let silence = if known.id == self.me { Duration::ZERO } else { *self.silent.get(&known.id)? };
            let silent = silence >= SILENT;
            (silent != known.silent_since.is_some())
                .then_some(Move::Propose(Command::SetControllerSilent { id: known.id, silent }))
        })
    }

    /// A controller that was to leave is out of the configuration.
    fn gone(&self) -> Option<Move> {
        let gone =
            |known: &&Arc<ControllerInfo>| known.leaving && !self.is_voter(known.id) && !self.is_learner(known.id);
        self.controllers.values().find(gone).map(|known| Move::Propose(Command::RemoveController { id: known.id }))
    }

    fn newcomer(&self) -> Option<Move> {
        let new =
            |known: &&Arc<ControllerInfo>| !known.leaving && !self.is_voter(known.id) && !self.is_learner(known.id);
        self.controllers.values().find(new).map(|known| Move::Change(vec![MemberChange::AddLearner(known.id)]))
    }

    fn is_caught_up(&self, peer: PeerId) -> bool {
        self.raft
            .progress
            .get(&peer)
            .is_some_and(|progress| progress.active && !progress.snapshotting && progress.matched >= self.settled)
    }

    /// Votes given and taken, in one step: a spare that stands in has its vote when the other one loses it.
    fn change_of_votes(&self) -> Option<Move> {
        let mut changes = Vec::new();
        for learner in &self.raft.learners {
            match self.controllers.get(learner) {
                Some(known) if known.votes() && self.is_caught_up(*learner) => {
                    changes.push(MemberChange::Promote(*learner));
                }
                Some(known) if !known.leaving => {}
                _ => changes.push(MemberChange::Remove(*learner)),
            }
        }
        let promoted = changes.iter().filter(|change| matches!(change, MemberChange::Promote(_))).count();
        let (mut taken, mut own) = (Vec::new(), false);
        for voter in &self.raft.voters {
            let change = match self.controllers.get(voter) {
                Some(known) if known.votes() => continue,
                Some(known) if !known.leaving => MemberChange::Demote(*voter),
                _ => MemberChange::Remove(*voter),
            };
            if *voter == self.me {
                own = true;
            } else {
                taken.push(change);
            }
        }
        // Somebody has to keep the vote.
        if taken.len() + usize::from(own) < self.raft.voters.len() + promoted {
            changes.extend(taken);
        }
        match changes.is_empty() {
            false => Some(Move::Change(changes)),
            true if own => self.successor().map(Move::HandOver),
            true => None,
        }
    }

    /// The voter that is furthest and is to keep its vote.
    fn successor(&self) -> Option<PeerId> {
        let keeps = |peer: &&PeerId| {
            **peer != self.me
                && self.controllers.get(*peer).is_some_and(|known| known.votes())
                && self.is_caught_up(**peer)
        };
        let furthest = |peer: &&PeerId| self.raft.progress.get(*peer).map(|progress| progress.matched);
        self.raft.voters.iter().filter(keeps).max_by_key(furthest).copied()
    }

    /// A spare for the voter that was silent for the longest, when it was for too long.
    fn replacement(&self) -> Option<Move> {
        let after = self.replace_after?;
        let is_dead = |peer: &PeerId| self.silent.get(peer).is_some_and(|silence| *silence >= after);
        let dead =
            self.raft.voters.iter().copied().filter(is_dead).max_by_key(|peer| self.silent.get(peer).copied())?;
        self.controllers.get(&dead).filter(|known| known.votes())?;
        let spare = |peer: &&PeerId| {
            let known = self.controllers.get(*peer);
            known.is_some_and(|known| known.spare && !known.leaving) && self.is_caught_up(**peer)
        };
        let spare = self.raft.learners.iter().find(spare)?;
        Some(Move::Propose(Command::SetSpares { spares: [(dead, true), (*spare, false)].into() }))
    }
}

impl Move {
    /// A person should look into it.
    pub(super) fn is_grave(&self) -> bool {
        match self {
            Self::Propose(Command::SetControllerSilent { silent, .. }) => *silent,
            Self::Propose(Command::SetSpares { .. }) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HandOver(to) => write!(f, "hand over to {to}"),
            Self::Change(changes) => {
                for (at, change) in changes.iter().enumerate() {
                    let (verb, peer) = match change {
                        MemberChange::AddLearner(peer) => ("take in", peer),
                        MemberChange::Promote(peer) => ("give a vote to", peer),
                        MemberChange::Demote(peer) => ("take the vote of", peer),
                        MemberChange::Remove(peer) => ("take out", peer),
                    };
                    write!(f, "{}{verb} {peer}", if at > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
            Self::Propose(Command::PutController { name, address, .. }) => {
                write!(f, "note that {name} is at {address}")
            }
            Self::Propose(Command::SetControllerSilent { id, silent: true }) => write!(f, "report that {id} is silent"),
            Self::Propose(Command::SetControllerSilent { id, .. }) => write!(f, "report that {id} answers again"),
            Self::Propose(Command::RemoveController { id }) => write!(f, "forget {id}"),
            Self::Propose(Command::SetSpares { .. }) => f.write_str("let a spare stand in for a dead voter"),
            Self::Propose(_) => f.write_str("write it down"),
        }
    }
}
