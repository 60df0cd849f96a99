//! Linearizable reads: who waits for which round of ReadIndex.
//!
//! A round proves that its leader still led after it began, and says how far the log was committed then; whoever has
//! applied that much may read. Readers that come while a round is under way share the next. A round whose answer is
//! overdue is followed by another, for any message may be lost; its answer, if it still comes, counts.
//!
//! [`Reads`] is pure but for the answers: the driver, whose part in this is here too, asks raft and gives the time, in
//! ticks.

use std::{collections::VecDeque, sync::Arc};

use ::raft::ReadState;
use tokio::sync::oneshot;

use super::{
    Machine,
    disk::Disk,
    driver::{Driver, send},
    error::ReadError,
};

pub(super) type ReadAnswer<M> = oneshot::Sender<Result<Arc<M>, ReadError>>;

/// How long a reader waits for a leader and its answer: longer than an election takes.
pub(super) const READ_TICKS: u64 = 40;
/// After so many ticks a round is overdue.
const OVERDUE_TICKS: u64 = 2;

struct Reader<M> {
    answer: ReadAnswer<M>,
    until: u64,
}

struct Round<M> {
    id: u64,
    readers: Vec<Reader<M>>,
}

pub(super) struct Reads<M> {
    /// For the next round.
    queued: Vec<Reader<M>>,
    /// Those asked for, oldest first.
    rounds: VecDeque<Round<M>>,
    asked_at: u64,
    /// Those answered, with the index that must be applied.
    confirmed: Vec<(u64, Vec<Reader<M>>)>,
}

impl<M> Default for Reads<M> {
    fn default() -> Self {
        Self { queued: Vec::new(), rounds: VecDeque::new(), asked_at: 0, confirmed: Vec::new() }
    }
}

impl<M> Reads<M> {
    pub(super) fn queue(&mut self, answer: ReadAnswer<M>, now: u64) {
        self.queued.push(Reader { answer, until: now + READ_TICKS });
    }

    /// Whether anybody waits; with time, each is answered.
    pub(super) fn are_awaited(&self) -> bool {
        !(self.queued.is_empty() && self.rounds.is_empty() && self.confirmed.is_empty())
    }

    /// Whether it is time to ask for a round.
    pub(super) fn wants_round(&self, now: u64) -> bool {
        if self.rounds.is_empty() { !self.queued.is_empty() } else { now >= self.asked_at + OVERDUE_TICKS }
    }

    /// The rounds under way may have gone with their leader.
    pub(super) fn leader_changed(&mut self) {
        self.asked_at = 0;
    }

    pub(super) fn begin_round(&mut self, id: u64, now: u64) {
        let readers = std::mem::take(&mut self.queued);
        self.rounds.push_back(Round { id, readers });
        self.asked_at = now;
    }

    /// Round `id` was answered; with it all before it, which began earlier.
    pub(super) fn confirm(&mut self, id: u64, index: u64) {
        let Some(at) = self.rounds.iter().position(|round| round.id == id) else { return };
        let readers = self.rounds.drain(..=at).flat_map(|round| round.readers).collect();
        self.confirmed.push((index, readers));
    }

    /// Answers everybody whose index is applied.
    pub(super) fn answer(&mut self, applied: u64, machine: impl Fn() -> Arc<M>) {
        for (_, readers) in self.confirmed.extract_if(.., |(index, _)| *index <= applied) {
            for Reader { answer, .. } in readers {
                // Whoever asked may have gone.
                drop(answer.send(Ok(machine())));
            }
        }
    }

    /// Gives up on those that have waited for too long.
    pub(super) fn expire(&mut self, now: u64) {
        let rounds = self.rounds.iter_mut().map(|round| &mut round.readers);
        let confirmed = self.confirmed.iter_mut().map(|(_, readers)| readers);
        for readers in rounds.chain(confirmed).chain([&mut self.queued]) {
            for Reader { answer, .. } in readers.extract_if(.., |reader| reader.until <= now) {
                drop(answer.send(Err(ReadError::NoLeader)));
            }
        }
        while self.rounds.front().is_some_and(|round| round.readers.is_empty()) {
            self.rounds.pop_front();
        }
        self.confirmed.retain(|(_, readers)| !readers.is_empty());
    }

    pub(super) fn fail(&mut self, error: &ReadError) {
        let Self { queued, rounds, confirmed, .. } = std::mem::take(self);
        let rounds = rounds.into_iter().flat_map(|round| round.readers);
        let confirmed = confirmed.into_iter().flat_map(|(_, readers)| readers);
        for Reader { answer, .. } in rounds.chain(confirmed).chain(queued) {
            drop(answer.send(Err(error.clone())));
        }
    }
}

impl<M: Machine, D: Disk> Driver<M, D> {
    /// Answers with a machine that holds everything that was acknowledged, by any peer, before now.
    pub(super) fn read_index(&mut self, answer: ReadAnswer<M>) {
        if !self.needs_ticks() && !self.is_leader() {
            return send(answer, Err(ReadError::NoLeader));
        }
        self.reads.queue(answer, self.now);
    }

    /// Begins a round of ReadIndex when one is due and raft would not drop it.
    pub(super) fn ask_reads(&mut self) {
        let answers = match self.leader() {
            None => false,
            Some(_) => !self.is_leader() || self.node.raft.commit_to_current_term(),
        };
        if answers && self.reads.wants_round(self.now) {
            let id = self.mint_id();
            self.reads.begin_round(id, self.now);
            self.node.read_index([self.id().to_be_bytes(), id.to_be_bytes()].concat());
        }
    }

    pub(super) fn confirm_reads(&mut self, states: &[ReadState]) {
        for ReadState { index, request_ctx } in states {
            if let Some(id) = request_ctx.last_chunk() {
                self.reads.confirm(u64::from_be_bytes(*id), *index);
            }
        }
    }
}
