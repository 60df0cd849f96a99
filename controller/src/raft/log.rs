//! The log: entries since the last snapshot, that snapshot, and raft's hard state, as raft reads them and as the disk
//! holds them.
//!
//! Guarantees: [`Log::write`] is one atomic, flushed and attested batch; [`Log::open`] returns what such writes add up
//! to, or what does not.
//!
//! The entries since the last snapshot are also in memory, bounded by what makes the driver take the next one, and some
//! before it ([`super::tail`]); the snapshot is not. What raft reads of all this is in [`super::storage`].

use std::collections::VecDeque;

use ::raft::eraftpb::{ConfState, Entry, HardState, SnapshotMetadata};

use bytes::Bytes;

use super::{
    disk::{Batch, Disk, ReadError, read, read_if_any},
    error::{Damage, DiskError},
    record::{self, FORMAT, Fields, Head, Key, Link, Snapshot},
    tail::Tail,
    witness::Witness,
};

/// A log begins with a snapshot of the empty machine here, not with nothing at 0: a peer that joins later then has to
/// be sent it, and so learns who the voters are.
const FIRST_INDEX: u64 = 1;
const FIRST_TERM: u64 = 1;

/// How much of a snapshot, in parts of [`record::PART_BYTES`], goes into one batch: few enough that a proposal which
/// waits for the batch hardly notices.
const PARTS_PER_BATCH: u32 = 32;

/// The same for a snapshot that another peer sent: nobody waits for anything else meanwhile.
const RECEIVED_PARTS_PER_BATCH: u32 = 512;

/// How many outdated records a batch removes, and never fewer than it adds.
const REMOVALS_PER_BATCH: usize = 128;

#[derive(Debug)]
pub(super) struct Log<D> {
    disk: D,
    head: Head,
    snapshot: Snapshot,
    /// Those before the snapshot that are still in memory.
    pub(super) tail: Tail,
    /// How many bytes of those are kept.
    pub(super) tail_bytes: usize,
    /// Those after the snapshot, contiguous.
    links: VecDeque<Link>,
    /// In bytes, of all links.
    size: usize,
    /// A newer snapshot, some of whose parts are written.
    unfinished: Option<Unfinished>,
    /// Records that count no more, to be removed as batches go by.
    outdated: VecDeque<Key>,
    /// What a peer that needs a snapshot may be sent.
    pub(super) offers: Offers,
}

/// Snapshots that are in no log: machines that the driver has, to be encoded when they are sent.
#[derive(Debug, Default)]
pub(super) struct Offers {
    /// The machine as it is; none while entries are being applied.
    pub(super) current: Option<SnapshotMetadata>,
    /// One that was sent and may be needed again.
    pub(super) sent: Option<SnapshotMetadata>,
}

#[derive(Debug)]
struct Unfinished {
    snapshot: Snapshot,
    bytes: Bytes,
    next_part: u32,
    /// It replaces the whole log rather than its beginning.
    received: bool,
}

/// How a new log begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Beginning {
    /// Its only voter is the peer itself; `index` is that of the last command in the machine it begins with.
    Alone { index: u64 },
    /// With nothing, until a leader sends what there is.
    Joining,
}

/// What a disk holds.
pub(super) enum Found<D> {
    /// It has never been written.
    Nothing(D),
    Log {
        log: Box<Log<D>>,
        /// The machine, encoded, as of the log's snapshot.
        machine: Vec<u8>,
    },
}

impl<D: Disk> Log<D> {
    /// What the disk holds, verified.
    pub(super) fn open(disk: D) -> Result<Found<D>, ReadError> {
        let head = read_head(&disk)?;
        disk.witness().check(head.as_ref())?;
        let Some(head) = head else { return Ok(Found::Nothing(disk)) };
        let snapshot = Snapshot::from_bytes(&read(&disk, Key::Snapshot)?)?;
        let machine = read_snapshot(&disk, &snapshot)?;
        let mut log = Self::of(disk, head, snapshot);
        log.read_links()?;
        log.check_head()?;
        log.find_outdated()?;
        Ok(Found::Log { log: Box::new(log), machine })
    }

    /// The log of a new store; `machine` is encoded.
    pub(super) async fn create(disk: D, peer: u64, beginning: Beginning, machine: Vec<u8>) -> Result<Self, DiskError> {
        let (index, term, voters) = match beginning {
            Beginning::Alone { index } => (index.max(FIRST_INDEX), FIRST_TERM, vec![peer]),
            Beginning::Joining => (0, 0, Vec::new()),
        };
        let head = Head { format: FORMAT, store: disk.witness().store, peer, term, commit: index, ..Head::default() };
        let mut metadata = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
        metadata.set_conf_state(ConfState { voters, ..ConfState::default() });
        let mut log = Self::of(disk, head, Snapshot { metadata: metadata.clone(), ..Snapshot::default() });
        log.begin_snapshot(metadata, 0, machine.into(), false);
        // In one batch, however large: a log without a snapshot is none.
        log.write_batch(Vec::new(), None, u32::MAX).await?;
        Ok(log)
    }

    fn of(disk: D, head: Head, snapshot: Snapshot) -> Self {
        let (links, outdated) = (VecDeque::new(), VecDeque::new());
        let tail = Tail::new((snapshot.metadata.index, snapshot.metadata.term));
        let offers = Offers::default();
        Self { disk, head, snapshot, tail, tail_bytes: 0, links, size: 0, unfinished: None, outdated, offers }
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    pub(super) fn snapshot_index(&self) -> u64 {
        self.snapshot.metadata.index
    }

    /// The members as of the snapshot.
    pub(super) fn conf_state(&self) -> &ConfState {
        self.snapshot.metadata.get_conf_state()
    }

    /// In bytes, of the machine in the snapshot.
    pub(super) fn snapshot_size(&self) -> usize {
        self.snapshot.length as usize
    }

    /// The entries since the snapshot.
    pub(super) fn entries_since_snapshot(&self) -> impl Iterator<Item = &Entry> {
        self.links.iter().map(|link| &link.entry)
    }

    /// The entry, when it is in memory.
    pub(super) fn link(&self, index: u64) -> Option<&Link> {
        match index.checked_sub(self.snapshot_index() + 1) {
            Some(at) => self.links.get(usize::try_from(at).ok()?),
            None => self.tail.get(index),
        }
    }

    /// In bytes, of the entries since the snapshot.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Notes how far the log is committed; it goes to the disk with the next batch. Raft finds it out again otherwise.
    pub(super) fn set_commit(&mut self, commit: u64) {
        self.head.commit = commit;
    }

    /// Whether the next writes carry on with a snapshot.
    pub(super) fn is_writing_snapshot(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Begins to store the machine, encoded, as it was after entry `index`; the next writes carry it. One that a
    /// received snapshot has overtaken is dropped.
    pub(super) fn take_snapshot(&mut self, index: u64, conf_state: ConfState, machine: Vec<u8>) {
        if index <= self.snapshot_index() {
            return;
        }
        let link = &self.links[(index - self.snapshot_index() - 1) as usize];
        let mut metadata = SnapshotMetadata { index, term: link.entry.term, ..SnapshotMetadata::default() };
        metadata.set_conf_state(conf_state);
        self.begin_snapshot(metadata, link.chain, machine.into(), false);
    }

    /// Replaces the whole log by a snapshot, all at once however large. `term` and `vote` go with it.
    pub(super) async fn install(
        &mut self,
        metadata: SnapshotMetadata,
        machine: Bytes,
        term: u64,
        vote: u64,
    ) -> Result<(), DiskError> {
        if let Some(Unfinished { snapshot, next_part, .. }) = self.unfinished.take() {
            let index = snapshot.metadata.index;
            self.outdated.extend((0..next_part).map(|part| Key::SnapshotPart { index, part }));
        }
        let commit = metadata.index;
        // The chain begins anew: what was before is unknown here.
        let chain = record::checksum(0, &machine);
        self.begin_snapshot(metadata, chain, machine, true);
        // Parts that nothing names yet count for nothing.
        while self.parts_left() > RECEIVED_PARTS_PER_BATCH {
            self.write_batch(Vec::new(), None, RECEIVED_PARTS_PER_BATCH).await?;
        }
        let hard_state = HardState { term, vote, commit, ..HardState::default() };
        self.write_batch(Vec::new(), Some(&hard_state), RECEIVED_PARTS_PER_BATCH).await
    }

    fn parts_left(&self) -> u32 {
        self.unfinished.as_ref().map_or(0, |unfinished| record::parts(unfinished.bytes.len()) - unfinished.next_part)
    }

    fn begin_snapshot(&mut self, metadata: SnapshotMetadata, chain: u32, bytes: Bytes, received: bool) {
        // Parts that an earlier attempt at the same index left are written over.
        let (index, parts) = (metadata.index, record::parts(bytes.len()));
        self.outdated
            .retain(|key| !matches!(key, Key::SnapshotPart { index: old, part } if *old == index && *part < parts));
        let snapshot = Snapshot { metadata, length: bytes.len() as u64, crc: record::checksum(0, &bytes), chain };
        self.unfinished = Some(Unfinished { snapshot, bytes, next_part: 0, received });
    }

    /// Appends the entries, which may replace some, with the hard state and what else is due: one batch, flushed and
    /// attested. After an error the log is not to be used again.
    pub(super) async fn write(&mut self, entries: Vec<Entry>, hard_state: Option<&HardState>) -> Result<(), DiskError> {
        self.write_batch(entries, hard_state, PARTS_PER_BATCH).await
    }

    async fn write_batch(
        &mut self,
        entries: Vec<Entry>,
        hard_state: Option<&HardState>,
        snapshot_parts: u32,
    ) -> Result<(), DiskError> {
        let mut batch = Batch::default();
        if let Some(first) = entries.first() {
            self.cut_from(first.index, &mut batch);
        }
        for entry in entries {
            self.append(entry, &mut batch);
        }
        if let Some(hard_state) = hard_state {
            self.head.term = hard_state.term;
            self.head.vote = hard_state.vote;
            self.head.commit = hard_state.commit;
        }
        let finished = self.write_snapshot_parts(&mut batch, snapshot_parts);
        let removals = self.outdated.len().min(REMOVALS_PER_BATCH.max(batch.puts.len()));
        for key in self.outdated.drain(..removals) {
            batch.remove(key);
        }
        if let Some(Unfinished { snapshot, received, .. }) = finished {
            batch.put(Key::Snapshot, &snapshot.to_bytes());
            if received {
                self.cut_from(snapshot.metadata.index + 1, &mut batch);
            }
            self.compact(snapshot, received);
        }
        self.head.sequence += 1;
        (self.head.last_index, self.head.last_term, self.head.chain) = self.end();
        batch.put(Key::Head, &self.head.to_bytes());
        self.disk.write(batch, Witness::of(&self.head)).await
    }

    /// Drops entries another leader has overruled.
    fn cut_from(&mut self, index: u64, batch: &mut Batch) {
        let keep = self.links.partition_point(|link| link.entry.index < index);
        for link in self.links.drain(keep..) {
            self.size -= link.length;
            for key in link.keys() {
                batch.remove(key);
            }
        }
    }

    fn append(&mut self, entry: Entry, batch: &mut Batch) {
        let (link, bytes) = Link::forge(self.end().2, entry);
        for key in link.keys() {
            let Key::Entry { part, .. } = key else { unreachable!("an entry's keys are entries'") };
            batch.put(key, &record::cut(&bytes, part));
        }
        self.size += link.length;
        self.links.push_back(link);
    }

    /// The next parts of the snapshot under way; returns it with its last.
    fn write_snapshot_parts(&mut self, batch: &mut Batch, limit: u32) -> Option<Unfinished> {
        let unfinished = self.unfinished.as_mut()?;
        let index = unfinished.snapshot.metadata.index;
        let parts = record::parts(unfinished.bytes.len());
        let until = parts.min(unfinished.next_part.saturating_add(limit));
        for part in unfinished.next_part..until {
            batch.put(Key::SnapshotPart { index, part }, &record::cut(&unfinished.bytes, part));
        }
        unfinished.next_part = until;
        if until < parts {
            return None;
        }
        self.unfinished.take()
    }

    /// Replaces the snapshot; it and the entries the new one covers are outdated.
    fn compact(&mut self, snapshot: Snapshot, received: bool) {
        let old = std::mem::replace(&mut self.snapshot, snapshot);
        let (index, covered) = (old.metadata.index, self.snapshot.metadata.index);
        if index != covered {
            let parts = 0..record::parts(old.length as usize);
            self.outdated.extend(parts.map(|part| Key::SnapshotPart { index, part }));
        }
        let cover = self.links.partition_point(|link| link.entry.index <= covered);
        for link in self.links.drain(..cover) {
            self.size -= link.length;
            self.outdated.extend(link.keys());
            self.tail.push(link);
        }
        if received {
            self.tail = Tail::new((covered, self.snapshot.metadata.term));
        }
        self.tail.trim(self.tail_bytes, self.offers.sent.is_some());
    }

    /// Index, term and chain of the last entry.
    pub(super) fn end(&self) -> (u64, u64, u32) {
        match self.links.back() {
            Some(link) => (link.entry.index, link.entry.term, link.chain),
            None => (self.snapshot.metadata.index, self.snapshot.metadata.term, self.snapshot.chain),
        }
    }

    fn read_links(&mut self) -> Result<(), ReadError> {
        let mut term = self.snapshot.metadata.term;
        for index in self.snapshot_index() + 1..=self.head.last_index {
            let bytes = record::join(|part| Key::Entry { index, part }, |key| read(&self.disk, key))?;
            let link = Link::check(self.end().2, index, &bytes)?;
            if link.entry.term < term || link.entry.term > self.head.term {
                return Err(Damage::Stray { record: Key::Entry { index, part: 0 }.to_string() }.into());
            }
            term = link.entry.term;
            self.size += link.length;
            self.links.push_back(link);
        }
        Ok(())
    }

    fn check_head(&self) -> Result<(), Damage> {
        let Head { last_index, last_term, chain, commit, .. } = self.head;
        let fits =
            (last_index, last_term, chain) == self.end() && (self.snapshot_index()..=last_index).contains(&commit);
        if fits { Ok(()) } else { Err(Damage::Stray { record: Key::Head.to_string() }) }
    }

    /// What a snapshot has outdated and what one that was never finished has left. Nothing else may be there.
    fn find_outdated(&mut self) -> Result<(), ReadError> {
        let current = self.snapshot_index();
        let parts = record::parts(self.snapshot.length as usize);
        let stray = |record: String| ReadError::Damage(Damage::Stray { record });
        for bytes in self.disk.keys()? {
            let key = Key::from_bytes(&bytes).ok_or_else(|| stray(format!("with the key {bytes:02x?}")))?;
            match key {
                Key::Entry { index, .. } if index <= current => self.outdated.push_back(key),
                Key::Entry { index, part } => {
                    let link = self.links.get((index - current - 1) as usize);
                    link.filter(|link| part < record::parts(link.length)).ok_or_else(|| stray(key.to_string()))?;
                }
                Key::SnapshotPart { index, .. } if index != current => self.outdated.push_back(key),
                // Of an earlier attempt at the same index.
                Key::SnapshotPart { part, .. } if part >= parts => self.outdated.push_back(key),
                Key::Head | Key::Snapshot | Key::SnapshotPart { .. } => {}
            }
        }
        Ok(())
    }
}

fn read_head(disk: &impl Disk) -> Result<Option<Head>, ReadError> {
    let Some(payload) = read_if_any(disk, Key::Head)? else { return Ok(None) };
    let malformed = || Damage::Malformed { record: Key::Head.to_string(), reason: "wrong length".to_owned() };
    // Whatever the format, it comes first; the rest may mean anything.
    match Fields(&payload).u32() {
        Some(FORMAT) | None => Ok(Some(Head::from_bytes(&payload).ok_or_else(malformed)?)),
        Some(found) => Err(ReadError::Format { found }),
    }
}

fn read_snapshot(disk: &impl Disk, snapshot: &Snapshot) -> Result<Vec<u8>, ReadError> {
    let index = snapshot.metadata.index;
    let bytes = record::join(|part| Key::SnapshotPart { index, part }, |key| read(disk, key))?;
    if bytes.len() as u64 != snapshot.length || record::checksum(0, &bytes) != snapshot.crc {
        return Err(Damage::Checksum { record: format!("snapshot {index}") }.into());
    }
    Ok(bytes)
}
