//! The records the log is stored as, and their bytes.
//!
//! Every record is sealed: the CRC-32 of its key and payload, then the payload. What may be large (an entry, a
//! snapshot) is cut into parts of at most [`PART_BYTES`].
//!
//! An entry also carries the chain: the CRC-32 of itself continued from that of the entry before it. The head carries
//! the last one, so that a record of another time, valid by itself, still does not fit.

use std::fmt;

use ::raft::eraftpb::{Entry, SnapshotMetadata};
use protobuf::Message;

use super::error::Damage;

/// Rises when these bytes change their meaning.
pub(super) const FORMAT: u32 = 2;

/// sled moves a page that outgrows a quarter of a segment (128 KiB) to a file of its own, which it never flushes. A
/// page holds up to 17 records before it is split.
pub(super) const PART_BYTES: usize = 6 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Head,
    Snapshot,
    SnapshotPart { index: u64, part: u32 },
    Entry { index: u64, part: u32 },
}

impl Key {
    /// Ordered as the keys are: parts and entries follow one another.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let (kind, index, part) = match self {
            Key::Head => return vec![b'h'],
            Key::Snapshot => return vec![b's'],
            Key::SnapshotPart { index, part } => (b'p', index, part),
            Key::Entry { index, part } => (b'e', index, part),
        };
        let mut bytes = Vec::with_capacity(13);
        bytes.push(kind);
        bytes.extend(index.to_be_bytes());
        bytes.extend(part.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes {
            b"h" => return Some(Key::Head),
            b"s" => return Some(Key::Snapshot),
            _ => {}
        }
        let (kind, rest) = bytes.split_first()?;
        let (index, part) = rest.split_first_chunk()?;
        let index = u64::from_be_bytes(*index);
        let part = u32::from_be_bytes(part.try_into().ok()?);
        match kind {
            b'p' => Some(Key::SnapshotPart { index, part }),
            b'e' => Some(Key::Entry { index, part }),
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Head => f.write_str("head"),
            Key::Snapshot => f.write_str("snapshot"),
            Key::SnapshotPart { index, part } => write!(f, "snapshot {index}, part {part}"),
            Key::Entry { index, part: 0 } => write!(f, "entry {index}"),
            Key::Entry { index, part } => write!(f, "entry {index}, part {part}"),
        }
    }
}

/// One record per store, rewritten by every batch: what the rest must add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) format: u32,
    /// Random, the same in the witness.
    pub(super) store: u64,
    /// Raft's id of this peer.
    pub(super) peer: u64,
    /// Of the batch that wrote it: one more than the last.
    pub(super) sequence: u64,
    pub(super) term: u64,
    pub(super) vote: u64,
    pub(super) commit: u64,
    /// Of the last entry, or of the snapshot when no entry follows it.
    pub(super) last_index: u64,
    pub(super) last_term: u64,
    pub(super) chain: u32,
}

impl Head {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(72);
        bytes.extend(self.format.to_be_bytes());
        for field in
            [self.store, self.peer, self.sequence, self.term, self.vote, self.commit, self.last_index, self.last_term]
        {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(self.chain.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let head = Self {
            format: fields.u32()?,
            store: fields.u64()?,
            peer: fields.u64()?,
            sequence: fields.u64()?,
            term: fields.u64()?,
            vote: fields.u64()?,
            commit: fields.u64()?,
            last_index: fields.u64()?,
            last_term: fields.u64()?,
            chain: fields.u32()?,
        };
        fields.0.is_empty().then_some(head)
    }
}

/// What the latest complete snapshot is, and how to tell that its parts are whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Snapshot {
    /// Index and term of the last entry it covers, and the voters then.
    pub(super) metadata: SnapshotMetadata,
    pub(super) length: u64,
    pub(super) crc: u32,
    /// Of the last entry it covers.
    pub(super) chain: u32,
}

impl Snapshot {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.length.to_be_bytes());
        bytes.extend(self.crc.to_be_bytes());
        bytes.extend(self.chain.to_be_bytes());
        bytes.extend(message_bytes(&self.metadata));
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Damage> {
        let malformed = |reason: String| Damage::Malformed { record: Key::Snapshot.to_string(), reason };
        let mut fields = Fields(bytes);
        let (Some(length), Some(crc), Some(chain)) = (fields.u64(), fields.u32(), fields.u32()) else {
            return Err(malformed("too short".to_owned()));
        };
        let metadata = SnapshotMetadata::parse_from_bytes(fields.0).map_err(|error| malformed(error.to_string()))?;
        Ok(Self { metadata, length, crc, chain })
    }
}

/// An entry with its place in the chain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Link {
    pub(super) entry: Entry,
    pub(super) chain: u32,
    /// As stored: the chain, then the entry.
    pub(super) length: usize,
}

impl Link {
    /// The entry's link after `before`, and its bytes.
    pub(super) fn forge(before: u32, entry: Entry) -> (Self, Vec<u8>) {
        let message = message_bytes(&entry);
        let chain = checksum(before, &message);
        let mut bytes = Vec::with_capacity(4 + message.len());
        bytes.extend(chain.to_be_bytes());
        bytes.extend(message);
        (Self { entry, chain, length: bytes.len() }, bytes)
    }

    /// The reverse, checked against the link before.
    pub(super) fn check(before: u32, index: u64, bytes: &[u8]) -> Result<Self, Damage> {
        let record = || Key::Entry { index, part: 0 }.to_string();
        let malformed = |reason: &str| Damage::Malformed { record: record(), reason: reason.to_owned() };
        let mut fields = Fields(bytes);
        let chain = fields.u32().ok_or_else(|| malformed("too short"))?;
        if checksum(before, fields.0) != chain {
            return Err(Damage::Stray { record: record() });
        }
        let entry = Entry::parse_from_bytes(fields.0).map_err(|error| malformed(&error.to_string()))?;
        if entry.index != index {
            return Err(Damage::Stray { record: record() });
        }
        Ok(Self { entry, chain, length: bytes.len() })
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + use<> {
        let index = self.entry.index;
        (0..parts(self.length)).map(move |part| Key::Entry { index, part })
    }
}

/// How many parts `length` bytes are stored as: at least one.
pub(super) fn parts(length: usize) -> u32 {
    u32::try_from(length.div_ceil(PART_BYTES).max(1)).expect("what is stored is bounded far below 2^32 parts")
}

/// A part's payload says how many bytes the whole has.
pub(super) fn cut(whole: &[u8], part: u32) -> Vec<u8> {
    let from = part as usize * PART_BYTES;
    let piece = &whole[from..whole.len().min(from + PART_BYTES)];
    let mut payload = Vec::with_capacity(8 + piece.len());
    payload.extend((whole.len() as u64).to_be_bytes());
    payload.extend(piece);
    payload
}

/// Puts the parts together that `read` returns for each part's key.
pub(super) fn join<E: From<Damage>>(
    key: impl Fn(u32) -> Key,
    mut read: impl FnMut(Key) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let mut whole = Vec::new();
    let mut part = 0;
    loop {
        let payload = read(key(part))?;
        let mut fields = Fields(&payload);
        let length = fields.u64().filter(|length| *length <= u64::from(u32::MAX));
        let malformed = || Damage::Malformed { record: key(part).to_string(), reason: "wrong length".to_owned() };
        let length = length.ok_or_else(malformed)? as usize;
        if fields.0.len() != (length - whole.len().min(length)).min(PART_BYTES) {
            return Err(malformed().into());
        }
        whole.extend(fields.0);
        part += 1;
        if part >= parts(length) {
            return Ok(whole);
        }
    }
}

pub(super) fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(4 + payload.len());
    record.extend(checksum(checksum(0, key), payload).to_be_bytes());
    record.extend(payload);
    record
}

/// The payload, when the seal is whole.
pub(super) fn unseal<'a>(key: &[u8], record: &'a [u8]) -> Option<&'a [u8]> {
    let mut fields = Fields(record);
    let crc = fields.u32()?;
    (checksum(checksum(0, key), fields.0) == crc).then_some(fields.0)
}

/// CRC-32 of `bytes`, continued from `before`.
pub(super) fn checksum(before: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(bytes);
    hasher.finalize()
}

fn message_bytes(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().expect("raft's messages have no required fields, and a Vec takes any length")
}

/// Big-endian numbers from the front of some bytes.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn u32(&mut self) -> Option<u32> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*field))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*field))
    }
}
