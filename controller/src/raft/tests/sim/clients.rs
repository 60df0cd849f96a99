//! The clients: they write, read and change the members wherever they think they should, and hold every answer against
//! what had been answered before they asked.

use std::sync::Arc;

use ::raft::eraftpb::ConfState;
use rand::{Rng, seq::IndexedRandom};
use roster_proto::id::{PeerId, Version};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{
    ledger::{Ledger, Mark},
    peer::Peer,
    world::{Event, World},
};
use crate::raft::{
    Machine,
    error::{MembersError, ProposeError, ReadError},
    log::Beginning,
    members::MemberChange,
};

/// How many proposals may share a step.
const GROUP: usize = 4;

/// Members and learners at most.
const MOST_PEERS: usize = 7;

type Receiver<T, E> = oneshot::Receiver<Result<T, E>>;

/// A question under way. `known` is the highest version that had been answered to anyone when it was asked.
pub(super) enum Ask {
    Write { number: u64, known: u64, answer: Receiver<(Version, usize), ProposeError> },
    Read { known: u64, answer: Receiver<Arc<Ledger>, ReadError> },
    Change { added: Vec<u64>, removed: Vec<u64>, answer: Receiver<(), MembersError> },
    Transfer { answer: Receiver<(), MembersError> },
}

/// What became of an [`Ask`].
enum Heard {
    Write { number: u64, known: u64, outcome: Result<(Version, usize), ProposeError> },
    Read { known: u64, outcome: Result<Arc<Ledger>, ReadError> },
    Change { added: Vec<u64>, removed: Vec<u64>, outcome: Result<(), MembersError> },
    Transfer(Result<(), MembersError>),
}

/// `None` as long as there is no answer. Nobody is left without one by a driver that runs.
fn poll<T, E>(answer: &mut Receiver<T, E>) -> Option<Result<T, E>> {
    match answer.try_recv() {
        Ok(outcome) => Some(outcome),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Closed) => panic!("somebody was left without an answer"),
    }
}

impl Ask {
    fn poll(&mut self) -> Option<Heard> {
        Some(match self {
            Self::Write { number, known, answer } => {
                Heard::Write { number: *number, known: *known, outcome: poll(answer)? }
            }
            Self::Read { known, answer } => Heard::Read { known: *known, outcome: poll(answer)? },
            Self::Change { added, removed, answer } => {
                let outcome = poll(answer)?;
                Heard::Change { added: std::mem::take(added), removed: std::mem::take(removed), outcome }
            }
            Self::Transfer { answer } => Heard::Transfer(poll(answer)?),
        })
    }
}

impl World {
    /// A client asks something of a peer, mostly of one that thinks it leads.
    pub(super) fn request(&mut self) {
        let (leaders, running) = (self.leaders(), self.running());
        let among = if !leaders.is_empty() && self.rng.random_bool(0.8) { &leaders } else { &running };
        let Some(peer) = among.choose(&mut self.rng).copied() else { return };
        if self.rng.random_ratio(self.plan.changes, 100) {
            self.change(peer);
        } else if self.rng.random_bool(0.3) {
            // Readers ask anybody.
            let peer = *running.choose(&mut self.rng).expect("one is");
            self.read(peer);
        } else {
            let count = if self.rng.random_bool(0.2) { self.rng.random_range(2..=GROUP) } else { 1 };
            self.write(peer, count);
        }
    }

    pub(super) fn write(&mut self, peer: u64, count: usize) {
        let known = self.oracle.known();
        let mut group = Vec::new();
        for _ in 0..count {
            let number = self.next_number;
            self.next_number += 1;
            let ballast = if self.plan.ballast == 0 { 0 } else { self.rng.random_range(0..self.plan.ballast) };
            let (tell, answer) = oneshot::channel();
            self.ask(peer, Ask::Write { number, known, answer });
            group.push((Ledger::encode_command(&Mark { number, ballast }), tell));
        }
        self.act(peer, &format!("is asked to write {count} up to {}", self.next_number - 1), |driver| {
            for (command, tell) in group {
                driver.propose(command, tell);
            }
            Ok(())
        });
    }

    fn read(&mut self, peer: u64) {
        let known = self.oracle.known();
        let (tell, answer) = oneshot::channel();
        self.ask(peer, Ask::Read { known, answer });
        self.act(peer, "is asked to read", |driver| {
            driver.read_index(tell);
            Ok(())
        });
    }

    pub(super) fn transfer(&mut self, peer: u64, to: u64) {
        let (tell, answer) = oneshot::channel();
        self.ask(peer, Ask::Transfer { answer });
        self.act(peer, &format!("is asked to hand over to {to}"), |driver| {
            driver.transfer_leadership(PeerId(to), tell);
            Ok(())
        });
    }

    /// Proposes a change of the members, which may be a foolish one.
    fn change(&mut self, peer: u64) {
        let Some(driver) = self.peers[&peer].driver.as_ref().filter(|driver| driver.is_leader()) else { return };
        let (voters, learners) = (driver.conf.voters.clone(), driver.conf.learners.clone());
        let members = voters.len() + learners.len();
        let mut changes = Vec::new();
        let newcomers = self.rng.random_range(0..=2);
        if members + newcomers <= MOST_PEERS && self.rng.random_bool(0.5) {
            changes.extend((0..newcomers).map(|_| MemberChange::AddLearner(PeerId(self.join()))));
        }
        for learner in learners {
            match self.rng.random_range(0..10) {
                0..6 => changes.push(MemberChange::Promote(PeerId(learner))),
                6 => changes.push(MemberChange::Remove(PeerId(learner))),
                _ => {}
            }
        }
        for voter in voters {
            match self.rng.random_range(0..10) {
                0 => changes.push(MemberChange::Demote(PeerId(voter))),
                1 | 2 => changes.push(MemberChange::Remove(PeerId(voter))),
                _ => {}
            }
        }
        if !changes.is_empty() {
            self.change_members(peer, changes);
        }
    }

    pub(super) fn change_members(&mut self, peer: u64, changes: Vec<MemberChange>) {
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for change in &changes {
            match change {
                MemberChange::AddLearner(peer) => added.push(peer.0),
                MemberChange::Remove(peer) => removed.push(peer.0),
                MemberChange::Promote(_) | MemberChange::Demote(_) => {}
            }
        }
        let (tell, answer) = oneshot::channel();
        self.ask(peer, Ask::Change { added, removed, answer });
        self.act(peer, &format!("is asked for {changes:?}"), |driver| driver.change_members(&changes, tell));
    }

    /// A new peer, that waits to be contacted.
    pub(super) fn join(&mut self) -> u64 {
        self.create(Beginning::Joining)
    }

    pub(super) fn create(&mut self, beginning: Beginning) -> u64 {
        let id = self.peers.len() as u64 + 1;
        let tick = self.rng.random_range(46..54);
        self.peers.insert(id, Peer::new(id, beginning, tick));
        self.start(id);
        id
    }

    fn ask(&mut self, peer: u64, ask: Ask) {
        self.peers.get_mut(&peer).expect("peers stay").asks.push(ask);
    }

    /// Takes the answers that have come. With `voters`, those who must have agreed are known for sure.
    pub(super) fn hear_answers(&mut self, peer: u64, voters: Option<&ConfState>) {
        let asks = &mut self.peers.get_mut(&peer).expect("peers stay").asks;
        let mut heard = Vec::new();
        asks.retain_mut(|ask| {
            let outcome = ask.poll();
            let is_open = outcome.is_none();
            heard.extend(outcome);
            is_open
        });
        for heard in heard {
            self.hear(peer, heard, voters);
        }
    }

    fn hear(&mut self, peer: u64, heard: Heard, voters: Option<&ConfState>) {
        match heard {
            Heard::Write { number, known, outcome: Ok((version, position)) } => {
                self.note(|_| format!("peer {peer} answers that {number} is written at {version}"));
                self.tally.writes += 1;
                self.oracle.acknowledge(number, version.0, position, known);
                if let Some(voters) = voters {
                    self.oracle.check_majority(version.0, voters, |peer| &self.peers[peer].medium);
                }
            }
            Heard::Read { known, outcome: Ok(ledger) } => {
                self.note(|_| format!("peer {peer} answers a reader with {}", ledger.version()));
                self.tally.reads += 1;
                self.oracle.check_read(peer, ledger.version(), known);
            }
            Heard::Change { removed, outcome: Ok(()), .. } => {
                self.note(|_| format!("peer {peer} answers that the members are changed, without {removed:?}"));
                self.tally.changes += 1;
                for peer in removed {
                    let delay = if self.rng.random() { 0 } else { self.rng.random_range(1..3_000) };
                    self.schedule(delay, Event::Retire { peer });
                }
            }
            Heard::Transfer(Ok(())) => self.tally.transfers += 1,
            Heard::Write { number, outcome: Err(error), .. } => {
                self.note(|_| format!("peer {peer} answers the writer of {number}: {error:?}"));
                self.tally.failures += 1;
                if matches!(error, ProposeError::NotLeader { .. } | ProposeError::TooLarge { .. }) {
                    self.oracle.refuse(number);
                }
            }
            Heard::Read { outcome: Err(_), .. } => self.tally.failures += 1,
            Heard::Change { added, outcome: Err(error), .. } => {
                self.note(|_| format!("peer {peer} answers: {error:?}"));
                self.tally.failures += 1;
                if !matches!(error, MembersError::Lost { .. }) {
                    added.into_iter().for_each(|peer| self.retire(peer));
                }
            }
            Heard::Transfer(Err(_)) => self.tally.failures += 1,
        }
    }
}
