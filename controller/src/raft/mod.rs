//! The replicated log under the state.
//!
//! Owns: the order of commands, their durability, and the only copy of the state that changes. [`Store`] is the handle
//! everyone else holds; one driver thread behind it owns raft's `RawNode` and the disk, so nothing here is shared and
//! nothing needs a lock.
//!
//! Guarantees:
//! - A command that [`Store::propose`] answered is on disk (on a majority of the voters, of whom there is one so far)
//!   and applied. It is there after any crash, or opening the store fails and says what is missing: never a silent
//!   loss.
//! - A proposal is answered once: with what applying it returned, or with why not.
//! - Whoever reads, reads a whole state between two commands; versions never go back.
//! - A failed write or flush ends the driver. What could not be flushed may or may not be on disk, and trying again
//!   cannot tell (the kernel reports a failed write-back once and then forgets it), so only opening anew can.
//!
//! How: per `Ready`, entries and hard state go to the disk in one atomic batch ([`log`]), are flushed and attested
//! ([`disk`]), and only then applied and answered. Whatever was proposed while a flush ran shares the next one. After
//! enough entries the state is encoded on a thread of its own and stored in slices that ride along with the batches;
//! then the entries it covers go.
//!
//! Deliberately absent: ticks and a transport. A sole voter has nobody to hear from, lead or time out, so an idle
//! driver sleeps until somebody proposes. The driver refuses a log whose configuration names other voters.

mod checkpoint;
mod disk;
mod driver;
mod error;
mod journal;
mod log;
mod logger;
mod record;
mod sled_disk;
mod store;
mod witness;

#[cfg(test)]
mod tests;

use roster_proto::id::Version;

pub use self::{
    error::{Damage, DiskError, Fault, OpenError, ProposeError, Undecodable},
    store::{Leadership, Store, StoreConfig, StoreTask},
};

/// What the log drives: pure and deterministic, so that every peer that applies the same log holds the same machine.
///
/// Clones must be cheap: each applied batch publishes one.
pub trait Machine: Clone + Default + Send + Sync + 'static {
    type Command: Send + 'static;
    type Output: Send + 'static;

    /// At most [`MAX_COMMAND_BYTES`], or proposing it is refused.
    fn encode_command(command: &Self::Command) -> Vec<u8>;

    /// Applies one logged command. `version` is its index in the log: it rises with every command, with gaps.
    /// Refusing a command is an output; the only error is not understanding it, which ends the driver.
    fn apply(&mut self, version: Version, command: &[u8]) -> Result<Self::Output, Undecodable>;

    /// The whole machine, for a snapshot.
    fn encode(&self) -> Vec<u8>;

    fn decode(snapshot: &[u8]) -> Result<Self, Undecodable>;
}

/// The largest command, in encoded bytes, that can be proposed.
pub const MAX_COMMAND_BYTES: usize = 4 << 20;
