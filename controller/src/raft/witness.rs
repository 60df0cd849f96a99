//! The witness: a small file beside the log that says up to which write sled is known to have everything.
//!
//! sled recovers what it can: a log whose tail is gone opens as a shorter, consistent one, and nothing inside it can
//! tell an acknowledged tail from one that was still being written. The witness can. It is flushed after sled is, so at
//! any crash the log, with what the journal holds after it, is at the witness's write or a later one.
//!
//! Two slots are written in turn, each in a block of its own, so that a torn write leaves the one before. The blocks
//! are written over in place: nothing but data is flushed.

use super::{
    error::Damage,
    record::{Fields, Head, seal, unseal},
};

/// The distance of the slots: no write to one touches the other's block.
pub(super) const SLOT_BYTES: usize = 4096;
pub(super) const FILE_BYTES: usize = 2 * SLOT_BYTES;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) store: u64,
    /// Of the last batch that sled had flushed; 0 before the first.
    pub(super) sequence: u64,
    pub(super) last_index: u64,
    /// CRC-32 of that batch's head.
    pub(super) head: u32,
}

impl Witness {
    pub(super) fn of(head: &Head) -> Self {
        Self {
            store: head.store,
            sequence: head.sequence,
            last_index: head.last_index,
            head: super::record::checksum(0, &head.to_bytes()),
        }
    }

    /// Where in the file its slot begins.
    pub(super) fn offset(&self) -> u64 {
        (self.sequence % 2) * SLOT_BYTES as u64
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(28);
        for field in [self.store, self.sequence, self.last_index] {
            payload.extend(field.to_be_bytes());
        }
        payload.extend(self.head.to_be_bytes());
        seal(b"witness", &payload)
    }

    /// The later of a file's slots that are whole.
    pub(super) fn from_file(file: &[u8]) -> Result<Self, Damage> {
        let slot = |at: usize| Self::from_slot(file.get(at..)?);
        [slot(0), slot(SLOT_BYTES)]
            .into_iter()
            .flatten()
            .max_by_key(|witness| witness.sequence)
            .ok_or(Damage::WitnessUnreadable)
    }

    fn from_slot(slot: &[u8]) -> Option<Self> {
        let mut fields = Fields(unseal(b"witness", slot.get(..32)?)?);
        Some(Self { store: fields.u64()?, sequence: fields.u64()?, last_index: fields.u64()?, head: fields.u32()? })
    }

    /// Whether the log's head is one that may follow this witness: the attested one, or a later one.
    pub(super) fn check(&self, head: Option<&Head>) -> Result<(), Damage> {
        let Some(head) = head else {
            return match self.sequence {
                0 => Ok(()),
                sequence => Err(Damage::Emptied { sequence, last_index: self.last_index }),
            };
        };
        if head.store != self.store {
            return Err(Damage::WitnessDiffers { sequence: self.sequence });
        }
        if head.sequence < self.sequence {
            return Err(Damage::Lost {
                acknowledged: self.sequence,
                last_index: self.last_index,
                found: head.sequence,
                found_index: head.last_index,
            });
        }
        if head.sequence == self.sequence && Self::of(head) != *self {
            return Err(Damage::WitnessDiffers { sequence: self.sequence });
        }
        Ok(())
    }
}
