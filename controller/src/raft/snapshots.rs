//! The driver's part in snapshots: taking them for the log, giving them to peers that lack what is gone from it, and
//! installing those of a leader.
//!
//! Guarantees: a snapshot is the machine between two entries with the members as of then; one that is installed replaces
//! log and machine as a whole; a peer that needs one is sent the machine as it is, or what it was sent before while the
//! log still goes on from that.

use std::sync::Arc;

use ::raft::eraftpb::{HardState, Message, MessageType, SnapshotMetadata};
use bytes::Bytes;

use super::{
    Machine,
    disk::Disk,
    driver::Driver,
    error::{Fault, Undecodable},
    transport::EncodedMachine,
};

/// How long a snapshot that a peer was sent is kept for it while nothing is heard of that peer.
const OFFER_TICKS: u64 = 200;

/// Kept for peers: the one that is sent now, and the one before.
const OFFERS: usize = 2;

/// When to take a snapshot: whichever comes first since the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct SnapshotPolicy {
    pub(super) entries: u64,
    pub(super) bytes: usize,
}

/// A machine to be encoded, on a thread of its own, and given back by [`Driver::store_snapshot`].
pub(super) struct SnapshotWork<M> {
    pub(super) index: u64,
    pub(super) machine: M,
}

/// A snapshot of another peer.
pub(super) struct Received<M> {
    pub(super) bytes: Bytes,
    pub(super) machine: M,
}

impl<M: Machine> Received<M> {
    pub(super) fn decode(bytes: Bytes) -> Result<Self, Undecodable> {
        Ok(Self { machine: M::decode(&bytes)?, bytes })
    }
}

impl<M: Machine, D: Disk> Driver<M, D> {
    /// A MsgSnapshot whose machine is decoded already. On return it is in force, unless raft had no use for it.
    pub(super) async fn receive_snapshot(&mut self, message: Message, received: Received<M>) -> Result<(), Fault> {
        if message.get_msg_type() != MessageType::MsgSnapshot || message.to != self.id() {
            return Ok(());
        }
        // One given before is dealt with before its data goes.
        self.settle().await?;
        self.received = Some(received);
        self.give(message)?;
        self.settle().await?;
        self.received = None;
        Ok(())
    }

    /// Replaces log and machine by the snapshot that raft has just been given.
    pub(super) async fn install(
        &mut self,
        metadata: SnapshotMetadata,
        hard_state: Option<&HardState>,
    ) -> Result<(), Fault> {
        let index = metadata.index;
        let Some(Received { bytes, machine }) = self.received.take() else {
            return Err(Fault::Undecodable {
                index,
                source: Undecodable::new("raft kept a snapshot without its data"),
            });
        };
        let head = self.node.store().head();
        let (term, vote) = hard_state.map_or((head.term, head.vote), |hs| (hs.term, hs.vote));
        self.conf = metadata.get_conf_state().clone();
        self.node.mut_store().install(metadata, bytes, term, vote).await?;
        self.machine = machine;
        self.applied = index;
        self.offer_current();
        self.published.send_replace(Arc::new(self.machine.clone()));
        self.status_due = true;
        Ok(())
    }

    /// The machine to encode, when it is time for a snapshot. One at a time. A large machine is encoded less often.
    pub(super) fn snapshot_due(&mut self) -> Option<SnapshotWork<M>> {
        let log = self.node.store();
        let entries = self.applied - log.snapshot_index();
        let bytes = self.policy.bytes.max(log.snapshot_size());
        let due = entries >= self.policy.entries || (entries > 0 && log.size() >= bytes);
        if !due || self.encoding.is_some() || log.is_writing_snapshot() {
            return None;
        }
        self.encoding = Some(self.conf.clone());
        Some(SnapshotWork { index: self.applied, machine: self.machine.clone() })
    }

    /// Takes the encoded machine back; the next writes store it.
    pub(super) fn store_snapshot(&mut self, index: u64, machine: Vec<u8>) {
        let conf = self.encoding.take().expect("only what was due is given back");
        self.node.mut_store().take_snapshot(index, conf, machine);
    }

    /// Lets raft send the machine as it is now.
    pub(super) fn offer_current(&mut self) {
        let (applied, conf) = (self.applied, self.conf.clone());
        let log = self.node.mut_store();
        let mut metadata = SnapshotMetadata { index: applied, ..SnapshotMetadata::default() };
        metadata.set_conf_state(conf);
        metadata.term = ::raft::Storage::term(log, applied).expect("what is applied is in the log");
        log.offers.current = Some(metadata);
    }

    /// The machine of a snapshot that raft sends: one that was sent before, or the present one.
    pub(super) fn offered(&mut self, metadata: &SnapshotMetadata) -> Arc<EncodedMachine> {
        if let Some((_, machine)) = self.offers.iter().find(|(index, _)| *index == metadata.index) {
            return machine.clone();
        }
        assert_eq!(metadata.index, self.applied, "raft is offered the machine as it is");
        let machine = self.machine.clone();
        let machine = Arc::new(EncodedMachine::new(move || machine.encode()));
        // Among the messages of one moment there may be others with the one sent before, to peers that it fits.
        if self.offers.len() == OFFERS {
            self.offers.remove(0);
        }
        self.offers.push((metadata.index, machine.clone()));
        self.node.mut_store().offers.sent = Some(metadata.clone());
        machine
    }

    /// Nobody needs the snapshot any more whom the log itself serves.
    pub(super) fn drop_offer_when_idle(&mut self) {
        if self.offers.is_empty() {
            return;
        }
        let reach = self.node.store().tail.before().0;
        let needs_it = |(peer, progress): (&u64, &::raft::Progress)| {
            let heard = self.heard.get(peer).is_some_and(|heard| self.now - heard < OFFER_TICKS);
            *peer != self.id() && progress.matched < reach && heard
        };
        if !self.is_leader() || !self.node.raft.prs().iter().any(needs_it) {
            self.offers.clear();
            self.node.mut_store().offers.sent = None;
        }
    }
}
