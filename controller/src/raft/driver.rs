//! The driver: raft's `RawNode`, the machine it drives, and who waits for what. It waits for nothing but the disk, and
//! has no clock: [`super::serve`] gives it a task and ticks, the simulation gives it what it likes. All its randomness
//! comes from a seed.
//!
//! Its futures must not be dropped halfway: no later call may follow.
//!
//! Guarantees: within one `Ready`, a leader's messages may leave first (raft's thesis, 10.2.1: the followers flush
//! while the leader does), everybody else's after the disk; then the machine, then the readers, then the answers. A
//! proposal is known by the random-based id in its entry's context, so that an entry of another peer or of an earlier
//! run answers nobody.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ::raft::{
    Config, RawNode, SnapshotStatus, StateRole,
    eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType},
};
use roster_proto::id::{PeerId, Version};
use tokio::sync::{oneshot, watch};

pub(super) use super::snapshots::SnapshotPolicy;
use super::{
    Machine,
    chance::{election_timeout, mix},
    disk::Disk,
    error::{End, Fault, MembersError, ProposeError},
    log::Log,
    logger,
    reads::Reads,
    reconfigure::Reconfiguration,
    snapshots::Received,
    status::RaftStatus,
    store::Leadership,
    transport::{EncodedMachine, Transport},
};

pub(super) const HEARTBEAT_TICKS: usize = 2;
/// The shortest election timeout; the longest is just under twice as long.
pub(super) const ELECTION_TICKS: usize = 10;
/// An append carries at least one entry and otherwise no more bytes than this ...
const MESSAGE_BYTES: u64 = 1 << 20;
/// ... and so many appends may be on their way to a peer.
const INFLIGHT_MESSAGES: usize = 64;
/// What may be logged and not yet committed; proposing is bounded well below, but callers may give up waiting.
const UNCOMMITTED_BYTES: u64 = 64 << 20;

pub(super) type Answer<M> = oneshot::Sender<Result<(Version, <M as Machine>::Output), ProposeError>>;

pub(super) struct Driver<M: Machine, D: Disk> {
    pub(super) node: RawNode<Log<D>>,
    pub(super) transport: Box<dyn Transport>,
    pub(super) machine: M,
    pub(super) applied: u64,
    /// The members as of `applied`.
    pub(super) conf: ConfState,
    /// For raft, with the next `Ready`.
    proposed: Vec<Entry>,
    /// By id: the proposals of this leadership.
    waiting: BTreeMap<u64, Answer<M>>,
    /// The term of that leadership.
    leading_term: u64,
    /// In ticks.
    pub(super) leading_since: u64,
    pub(super) reads: Reads<M>,
    pub(super) reconfiguration: Reconfiguration,
    next_id: u64,
    seed: u64,
    /// In ticks.
    pub(super) now: u64,
    /// When each member was last heard.
    pub(super) heard: HashMap<u64, u64>,
    /// The commit index that the followers were told at the last tick.
    pub(super) told: u64,
    pub(super) published: watch::Sender<Arc<M>>,
    leadership: watch::Sender<Leadership>,
    pub(super) status: watch::Sender<RaftStatus>,
    pub(super) status_due: bool,
    pub(super) policy: SnapshotPolicy,
    /// The members as of the snapshot that is being encoded.
    pub(super) encoding: Option<ConfState>,
    /// The last snapshots that peers were sent, by index.
    pub(super) offers: Vec<(u64, Arc<EncodedMachine>)>,
    /// The data of the snapshot that raft was given last.
    pub(super) received: Option<Received<M>>,
}

impl<M: Machine, D: Disk> Driver<M, D> {
    /// `machine` is as of the log's snapshot; the entries after it are applied by [`Self::start`].
    pub(super) fn new(
        mut log: Log<D>,
        machine: M,
        transport: Box<dyn Transport>,
        seed: u64,
        policy: SnapshotPolicy,
    ) -> Result<Self, Fault> {
        log.tail_bytes = policy.bytes;
        let config = Config {
            id: log.head().peer,
            heartbeat_tick: HEARTBEAT_TICKS,
            election_tick: ELECTION_TICKS,
            applied: log.snapshot_index(),
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: INFLIGHT_MESSAGES,
            max_uncommitted_size: UNCOMMITTED_BYTES,
            pre_vote: true,
            check_quorum: true,
            // Followers hear it with the next entries, or with the next tick.
            skip_bcast_commit: true,
            ..Config::default()
        };
        let applied = log.snapshot_index();
        let conf = log.conf_state().clone();
        let node = RawNode::new(&config, log, &logger::logger())?;
        let leadership = Leadership { leader: None, term: node.raft.term, is_self: false };
        let mut driver = Self {
            transport,
            published: watch::Sender::new(Arc::new(machine.clone())),
            machine,
            applied,
            proposed: Vec::new(),
            waiting: BTreeMap::new(),
            leading_term: 0,
            leading_since: 0,
            reads: Reads::default(),
            reconfiguration: Reconfiguration::default(),
            next_id: mix(seed),
            seed,
            now: 0,
            heard: HashMap::new(),
            told: 0,
            leadership: watch::Sender::new(leadership),
            status: watch::Sender::new(RaftStatus::unknown(PeerId(node.raft.id))),
            status_due: true,
            node,
            conf,
            policy,
            encoding: None,
            offers: Vec::new(),
            received: None,
        };
        driver.offer_current();
        driver.after_input();
        driver.publish_status();
        Ok(driver)
    }

    pub(super) fn published(&self) -> watch::Receiver<Arc<M>> {
        self.published.subscribe()
    }

    pub(super) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    pub(super) fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.subscribe()
    }

    /// Applies what the log is known to be committed to. A sole voter then stands for election, which it wins at once,
    /// and applies the whole log: all that was ever acknowledged lies before the entry with which the new term begins.
    pub(super) async fn start(&mut self) -> Result<(), Fault> {
        self.settle().await?;
        if self.conf.voters == [self.id()] && self.conf.voters_outgoing.is_empty() {
            self.node.campaign()?;
            self.after_input();
            self.settle().await?;
        }
        Ok(())
    }

    /// A message of another peer; [`Self::settle`] is to follow. One that makes no sense here is dropped. A MsgSnapshot
    /// has its data in it, or comes by [`Self::receive_snapshot`].
    pub(super) async fn step(&mut self, mut message: Message) -> Result<(), Fault> {
        let (kind, from) = (message.get_msg_type(), message.from);
        if message.to != self.id() || from == self.id() || from == ::raft::INVALID_ID {
            return Ok(());
        }
        match kind {
            // Nobody forwards these.
            MessageType::MsgPropose | MessageType::MsgTransferLeader => return Ok(()),
            MessageType::MsgSnapshot => {
                return match Received::decode(message.mut_snapshot().take_data()) {
                    Ok(received) => self.receive_snapshot(message, received).await,
                    Err(error) => {
                        tracing::warn!(from, error = crate::status::chain(&error), "a snapshot is not understood");
                        Ok(())
                    }
                };
            }
            // Raft drops what is of an earlier term, but who refuses also says what is committed, which is true in any
            // term. It may be all that is missing to do without that peer's vote.
            MessageType::MsgRequestPreVoteResponse | MessageType::MsgRequestVoteResponse
                if message.reject && message.term < self.node.raft.term =>
            {
                message.term = self.node.raft.term;
            }
            // It must not refuse to stand because it has not yet applied what came just before.
            MessageType::MsgTimeoutNow => self.settle().await?,
            MessageType::MsgHeartbeat => {
                let last = self.node.raft.raft_log.last_index();
                if message.term >= self.node.raft.term && message.commit > last {
                    return Err(Fault::Forgotten { known: message.commit, last });
                }
            }
            _ => {}
        }
        self.give(message)
    }

    pub(super) fn give(&mut self, message: Message) -> Result<(), Fault> {
        let from = message.from;
        if super::storage::contains(&self.conf, from) {
            self.heard.insert(from, self.now);
        }
        match self.node.step(message) {
            Ok(()) => {}
            Err(::raft::Error::Store(error)) => return Err(::raft::Error::Store(error).into()),
            // From somebody who is no member, or late.
            Err(error) => tracing::debug!(from, %error, "a peer's message is dropped"),
        }
        self.after_input();
        Ok(())
    }

    /// The peer may have missed some messages.
    pub(super) fn report_unreachable(&mut self, peer: u64) {
        self.node.report_unreachable(peer);
        self.after_input();
    }

    /// What became of a snapshot given to [`Transport::send_snapshot`].
    pub(super) fn report_snapshot(&mut self, peer: u64, ok: bool) {
        let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node.report_snapshot(peer, status);
        self.after_input();
    }

    /// Adds the command to the log's next batch.
    pub(super) fn propose(&mut self, command: Vec<u8>, answer: Answer<M>) {
        if !self.is_leader() {
            return send(answer, Err(ProposeError::NotLeader { leader: self.leader() }));
        }
        let id = self.mint_id();
        let context = id.to_be_bytes().to_vec().into();
        self.proposed.push(Entry { data: command.into(), context, ..Entry::default() });
        self.waiting.insert(id, answer);
    }

    /// Deals with everything raft has ready; a snapshot that is being stored goes along. When nothing is ready, that
    /// gets a batch of its own.
    pub(super) async fn settle(&mut self) -> Result<(), Fault> {
        self.log_proposed()?;
        self.ask_reads();
        if !self.node.has_ready() && self.has_work() {
            self.node.mut_store().write(Vec::new(), None).await?;
        }
        while self.node.has_ready() {
            self.take_ready().await?;
            self.after_input();
            self.ask_reads();
        }
        self.publish_status();
        Ok(())
    }

    /// Whether [`Self::settle`] has more to do although nothing new arrives.
    pub(super) fn has_work(&self) -> bool {
        self.node.store().is_writing_snapshot()
    }

    /// In one message, so that each follower is sent one.
    fn log_proposed(&mut self) -> Result<(), Fault> {
        if self.proposed.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.proposed);
        let ids: Vec<_> = entries.iter().filter_map(id_of).collect();
        let mut message = Message { from: self.id(), entries: entries.into(), ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        match self.node.raft.step(message) {
            Ok(()) => Ok(()),
            // While the leadership is being handed over, or far too much is not yet committed.
            Err(::raft::Error::ProposalDropped) => {
                let leader = self.node.raft.lead_transferee.map(PeerId);
                for answer in ids.iter().filter_map(|id| self.waiting.remove(id)) {
                    send(answer, Err(ProposeError::NotLeader { leader }));
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One `Ready`, in the order of raft's contract.
    async fn take_ready(&mut self) -> Result<(), Fault> {
        let mut ready = self.node.ready();
        let hard_state = ready.hs().cloned();
        let head = self.node.store().head();
        // One that became leader by its own vote alone must not be heard before that vote is on disk.
        let votes = hard_state.as_ref().is_some_and(|hs| (hs.term, hs.vote) != (head.term, head.vote));
        let (early, late) =
            if votes { (Vec::new(), ready.take_messages()) } else { (ready.take_messages(), Vec::new()) };
        self.send(early);
        if !ready.snapshot().is_empty() {
            self.install(ready.snapshot().get_metadata().clone(), hard_state.as_ref()).await?;
        }
        let mut committed = ready.take_committed_entries();
        let must_sync = (ready.must_sync() && ready.snapshot().is_empty()) || changes_members(&committed);
        self.persist(ready.take_entries(), hard_state, must_sync).await?;
        self.send(late);
        self.send(ready.take_persisted_messages());
        self.confirm_reads(&ready.take_read_states());
        let is_role_new = ready.ss().is_some();
        let mut light = self.node.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.node.mut_store().set_commit(commit);
        }
        if changes_members(light.committed_entries()) {
            self.node.mut_store().write(Vec::new(), None).await?;
        }
        self.send(light.take_messages());
        committed.append(&mut light.take_committed_entries());
        self.apply(committed)?;
        let last = self.node.raft.raft_log.last_index();
        self.node.advance_apply_to(self.applied);
        // The entry that leaves a joint configuration, which raft itself would send with the next heartbeat only.
        if self.is_leader() && self.node.raft.raft_log.last_index() > last {
            self.node.raft.bcast_append();
        }
        if is_role_new {
            self.reads.leader_changed();
            self.status_due = true;
        }
        self.publish_leadership();
        let published = &self.published;
        self.reads.answer(self.applied, || published.borrow().clone());
        Ok(())
    }

    async fn persist(
        &mut self,
        entries: Vec<Entry>,
        hard_state: Option<HardState>,
        must_sync: bool,
    ) -> Result<(), Fault> {
        let log = self.node.mut_store();
        match hard_state {
            hard_state if must_sync || !entries.is_empty() => log.write(entries, hard_state.as_ref()).await?,
            // Only the commit index moved, which raft finds again by itself among the same members.
            Some(hard_state) => log.set_commit(hard_state.commit),
            None => {}
        }
        Ok(())
    }

    /// Applies a batch, publishes the state once, and answers whoever proposed its commands.
    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), Fault> {
        if entries.is_empty() {
            return Ok(());
        }
        // The machine is between two of raft's indices meanwhile.
        self.node.mut_store().offers.current = None;
        let mut answers = Vec::new();
        for entry in entries {
            self.applied = entry.index;
            if entry.get_entry_type() != EntryType::EntryNormal {
                self.apply_members(&entry)?;
                continue;
            }
            // A new leader's first entry.
            if entry.data.is_empty() && entry.context.is_empty() {
                continue;
            }
            let version = Version(entry.index);
            let output = self
                .machine
                .apply(version, &entry.data)
                .map_err(|source| Fault::Undecodable { index: entry.index, source })?;
            let answer = id_of(&entry).and_then(|id| self.waiting.remove(&id));
            answers.push((answer, Ok((version, output))));
        }
        self.offer_current();
        if answers.is_empty() {
            return Ok(());
        }
        // Whoever is answered must find it. Those who only watch are woken after, for they would be served first.
        let mut machine = Arc::new(self.machine.clone());
        self.published.send_if_modified(|published| {
            std::mem::swap(published, &mut machine);
            false
        });
        for (answer, outcome) in answers {
            if let Some(answer) = answer {
                send(answer, outcome);
            }
        }
        self.published.send_modify(|_| {});
        Ok(())
    }

    /// What follows from whatever raft was just given.
    pub(super) fn after_input(&mut self) {
        let raft = &mut self.node.raft;
        // Raft draws a new one at each change of role.
        let timeout = election_timeout(&self.conf, raft.id, raft.term, self.seed);
        raft.set_randomized_election_timeout(timeout);
        if !self.is_leader() || self.node.raft.term != self.leading_term {
            let leader = self.leader();
            self.proposed.clear();
            self.fail_waiting(&ProposeError::LeadershipLost { leader });
            self.reconfiguration.fail(&MembersError::Lost { leader });
            self.leading_term = self.node.raft.term;
            self.leading_since = self.now;
        }
        self.watch_transfer();
        self.watch_change();
    }

    pub(super) fn id(&self) -> u64 {
        self.node.raft.id
    }

    pub(super) fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    pub(super) fn leader(&self) -> Option<PeerId> {
        Some(self.node.raft.leader_id).filter(|leader| *leader != ::raft::INVALID_ID).map(PeerId)
    }

    pub(super) fn mint_id(&mut self) -> u64 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// One that leads says so only once it has applied everything that was acknowledged before it did.
    fn publish_leadership(&mut self) {
        let raft = &self.node.raft;
        let is_self = raft.state == StateRole::Leader && raft.apply_to_current_term();
        let leader = self.leader().filter(|_| is_self || raft.state != StateRole::Leader);
        let now = Leadership { leader, term: raft.term, is_self };
        self.leadership.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }

    fn fail_waiting(&mut self, error: &ProposeError) {
        while let Some((_, answer)) = self.waiting.pop_first() {
            send(answer, Err(error.clone()));
        }
    }

    /// Answers everybody who is still waiting.
    pub(super) fn end(&mut self, end: &End) {
        self.fail_waiting(&end.clone().into());
        self.reads.fail(&end.clone().into());
        self.reconfiguration.end(end);
    }

    fn send(&mut self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        let is_snapshot = |message: &Message| message.get_msg_type() == MessageType::MsgSnapshot;
        let (snapshots, messages): (Vec<_>, Vec<_>) = messages.into_iter().partition(is_snapshot);
        if !messages.is_empty() {
            self.transport.send(messages);
        }
        for message in snapshots {
            let machine = self.offered(message.get_snapshot().get_metadata());
            self.transport.send_snapshot(message, machine);
        }
    }
}

/// Whoever knows that such an entry is committed must know it for good: the members before it, who could tell, may be
/// gone for good right after.
fn changes_members(committed: &[Entry]) -> bool {
    committed.iter().any(|entry| entry.get_entry_type() != EntryType::EntryNormal)
}

/// A proposal's.
fn id_of(entry: &Entry) -> Option<u64> {
    <[u8; 8]>::try_from(&entry.context[..]).ok().map(u64::from_be_bytes)
}

/// Whoever asked may have gone.
pub(super) fn send<T>(answer: oneshot::Sender<T>, value: T) {
    drop(answer.send(value));
}
