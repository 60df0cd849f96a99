//! The log as raft reads it.
//!
//! A snapshot that raft is given to send is metadata only: the driver adds the machine.

use ::raft::{
    GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata},
};

use super::{disk::Disk, log::Log, record::Head};

impl<D: Disk> Storage for Log<D> {
    fn initial_state(&self) -> ::raft::Result<RaftState> {
        let Head { term, vote, commit, .. } = *self.head();
        let hard_state = HardState { term, vote, commit, ..HardState::default() };
        Ok(RaftState { hard_state, conf_state: self.conf_state().clone() })
    }

    /// At least one, and then as many as `max_size` bytes allow.
    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> ::raft::Result<Vec<Entry>> {
        if low < self.first_index()? {
            return Err(StorageError::Compacted.into());
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut entries = Vec::new();
        let mut size = 0;
        for index in low..high {
            let link = self.link(index).ok_or(StorageError::Unavailable)?;
            size += link.length as u64;
            if size > limit && !entries.is_empty() {
                break;
            }
            entries.push(link.entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> ::raft::Result<u64> {
        let (before, term) = self.tail.before();
        if index == before {
            return Ok(term);
        }
        match self.link(index) {
            Some(link) => Ok(link.entry.term),
            None if index < before => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> ::raft::Result<u64> {
        Ok(self.tail.before().0 + 1)
    }

    fn last_index(&self) -> ::raft::Result<u64> {
        Ok(self.end().0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> ::raft::Result<Snapshot> {
        let reach = self.tail.before().0;
        // One whose index the log no longer reaches, or that does not know the peer, would be of no use to it.
        let fits = |metadata: &&SnapshotMetadata| {
            metadata.index >= reach.max(request_index) && contains(metadata.get_conf_state(), to)
        };
        let (sent, current) = (self.offers.sent.as_ref(), self.offers.current.as_ref());
        let metadata = sent.filter(fits).or(current.filter(fits));
        let metadata = metadata.ok_or(StorageError::SnapshotTemporarilyUnavailable)?.clone();
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        Ok(snapshot)
    }
}

pub(super) fn contains(conf_state: &ConfState, peer: u64) -> bool {
    let ConfState { voters, learners, voters_outgoing, .. } = conf_state;
    voters.contains(&peer) || learners.contains(&peer) || voters_outgoing.contains(&peer)
}
