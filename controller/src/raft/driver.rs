//! The driver: raft's `RawNode`, the machine it drives, and who waits for what. Synchronous: [`super::store`] gives it
//! a thread.
//!
//! Guarantees: within one `Ready`, first the disk, then the machine, then the readers, then the answers. A proposal is
//! known by the random-based id in its entry's context, so that an entry of an earlier run answers nobody.

use std::{collections::HashMap, sync::Arc};

use ::raft::{
    Config, RawNode, StateRole,
    eraftpb::{Entry, EntryType},
};
use roster_proto::id::Version;
use tokio::sync::{oneshot, watch};

use super::{
    Machine,
    disk::Disk,
    error::{Fault, ProposeError},
    log::Log,
    logger,
    store::Leadership,
};

/// Raft's clock is not driven for a sole voter; the ratio is what raft asks for.
const HEARTBEAT_TICKS: usize = 2;
const ELECTION_TICKS: usize = 10 * HEARTBEAT_TICKS;

pub(super) type Answer<M> = oneshot::Sender<Result<(Version, <M as Machine>::Output), ProposeError>>;

/// When to take a snapshot: whichever comes first since the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct SnapshotPolicy {
    pub(super) entries: u64,
    pub(super) bytes: usize,
}

pub(super) struct Driver<M: Machine, D: Disk> {
    node: RawNode<Log<D>>,
    machine: M,
    applied: u64,
    waiting: HashMap<u64, Answer<M>>,
    next_id: u64,
    published: watch::Sender<Arc<M>>,
    leadership: watch::Sender<Leadership>,
    policy: SnapshotPolicy,
    encoding: bool,
}

/// A machine to be encoded, off the driver's thread, and given back by [`Driver::store_snapshot`].
pub(super) struct SnapshotWork<M> {
    pub(super) index: u64,
    pub(super) machine: M,
}

impl<M: Machine, D: Disk> Driver<M, D> {
    /// `machine` is as of the log's snapshot; the entries after it are applied by [`Self::start`].
    pub(super) fn new(log: Log<D>, machine: M, first_id: u64, policy: SnapshotPolicy) -> Result<Self, Fault> {
        let config = Config {
            id: log.head().peer,
            heartbeat_tick: HEARTBEAT_TICKS,
            election_tick: ELECTION_TICKS,
            applied: log.snapshot_index(),
            pre_vote: true,
            check_quorum: true,
            ..Config::default()
        };
        let applied = log.snapshot_index();
        let leadership = Leadership { leader: None, term: log.head().term, is_self: false };
        Ok(Self {
            node: RawNode::new(&config, log, &logger::logger())?,
            published: watch::Sender::new(Arc::new(machine.clone())),
            machine,
            applied,
            waiting: HashMap::new(),
            next_id: first_id,
            leadership: watch::Sender::new(leadership),
            policy,
            encoding: false,
        })
    }

    pub(super) fn published(&self) -> watch::Receiver<Arc<M>> {
        self.published.subscribe()
    }

    pub(super) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Stands for election, which a sole voter wins at once, and applies the whole log: all that was ever acknowledged
    /// lies before the entry with which the new term begins.
    pub(super) fn start(&mut self) -> Result<(), Fault> {
        self.node.campaign()?;
        self.settle()
    }

    /// Adds the command to the log's next batch.
    pub(super) fn propose(&mut self, command: Vec<u8>, answer: Answer<M>) -> Result<(), Fault> {
        if self.node.raft.state != StateRole::Leader {
            send(answer, Err(ProposeError::NotLeader { leader: self.leader() }));
            return Ok(());
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        match self.node.propose(id.to_be_bytes().to_vec(), command) {
            Ok(()) => {
                self.waiting.insert(id, answer);
                Ok(())
            }
            // While the leadership is being handed over.
            Err(::raft::Error::ProposalDropped) => {
                send(answer, Err(ProposeError::NotLeader { leader: None }));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deals with everything raft has ready; a snapshot that is being stored goes along. When nothing is ready, that
    /// gets a batch of its own.
    pub(super) fn settle(&mut self) -> Result<(), Fault> {
        if !self.node.has_ready() && self.has_work() {
            self.node.mut_store().write(Vec::new(), None)?;
        }
        while self.node.has_ready() {
            self.take_ready()?;
        }
        Ok(())
    }

    /// Whether [`Self::settle`] has more to do although nothing new arrives.
    pub(super) fn has_work(&self) -> bool {
        self.node.store().is_writing_snapshot()
    }

    /// One `Ready`, in the order of raft's contract. A sole voter's has no messages and no snapshot.
    fn take_ready(&mut self) -> Result<(), Fault> {
        let mut ready = self.node.ready();
        let entries = ready.take_entries();
        match ready.hs() {
            hard_state if ready.must_sync() => {
                let hard_state = hard_state.cloned();
                self.node.mut_store().write(entries, hard_state.as_ref())?;
            }
            // Only the commit index moved, which raft finds again by itself.
            Some(hard_state) => {
                let commit = hard_state.commit;
                self.node.mut_store().set_commit(commit);
            }
            None => {}
        }
        let role = ready.ss().map(|soft| soft.raft_state);
        let mut committed = ready.take_committed_entries();
        let mut light = self.node.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.node.mut_store().set_commit(commit);
        }
        committed.append(&mut light.take_committed_entries());
        self.apply(committed)?;
        self.node.advance_apply_to(self.applied);
        if let Some(role) = role {
            self.change_role(role);
        }
        Ok(())
    }

    /// Applies a batch, publishes the state once, and answers whoever proposed its commands.
    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), Fault> {
        let mut answers = Vec::new();
        for entry in entries {
            if entry.get_entry_type() != EntryType::EntryNormal {
                return Err(Fault::UnknownKind { index: entry.index });
            }
            self.applied = entry.index;
            // A new leader's first entry.
            if entry.data.is_empty() && entry.context.is_empty() {
                continue;
            }
            let version = Version(entry.index);
            let output = self
                .machine
                .apply(version, &entry.data)
                .map_err(|source| Fault::Undecodable { index: entry.index, source })?;
            let id = <[u8; 8]>::try_from(&entry.context[..]).ok().map(u64::from_be_bytes);
            let answer = id.and_then(|id| self.waiting.remove(&id));
            answers.push((answer, Ok((version, output))));
        }
        if !answers.is_empty() {
            self.published.send_replace(Arc::new(self.machine.clone()));
        }
        for (answer, outcome) in answers {
            if let Some(answer) = answer {
                send(answer, outcome);
            }
        }
        Ok(())
    }

    fn change_role(&mut self, role: StateRole) {
        let leader = self.leader();
        let is_self = role == StateRole::Leader;
        if !is_self {
            self.fail_waiting(&ProposeError::LeadershipLost { leader });
        }
        self.leadership.send_replace(Leadership { leader, term: self.node.raft.term, is_self });
    }

    /// What a peer would send.
    #[cfg(test)]
    pub(super) fn step(&mut self, message: ::raft::eraftpb::Message) -> Result<(), Fault> {
        Ok(self.node.step(message)?)
    }

    fn leader(&self) -> Option<u64> {
        Some(self.node.raft.leader_id).filter(|leader| *leader != ::raft::INVALID_ID)
    }

    /// Answers every proposal that is still waiting.
    pub(super) fn fail_waiting(&mut self, error: &ProposeError) {
        for (_, answer) in self.waiting.drain() {
            send(answer, Err(error.clone()));
        }
    }

    /// The machine to encode, when it is time for a snapshot. One at a time.
    pub(super) fn snapshot_due(&mut self) -> Option<SnapshotWork<M>> {
        let log = self.node.store();
        let entries = self.applied - log.snapshot_index();
        let due = entries >= self.policy.entries || (entries > 0 && log.size() >= self.policy.bytes);
        if !due || self.encoding || log.is_writing_snapshot() {
            return None;
        }
        self.encoding = true;
        Some(SnapshotWork { index: self.applied, machine: self.machine.clone() })
    }

    /// Takes the encoded machine back; the next writes store it.
    pub(super) fn store_snapshot(&mut self, index: u64, machine: Vec<u8>) {
        self.encoding = false;
        self.node.mut_store().take_snapshot(index, machine);
    }
}

/// Whoever asked may have gone.
fn send<T>(answer: oneshot::Sender<T>, value: T) {
    drop(answer.send(value));
}
