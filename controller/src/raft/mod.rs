//! The replicated log under the state.
//!
//! Owns: the order of commands, their durability, and the only copy of the state that changes. [`Store`] is the handle
//! everyone else holds; one driver behind it owns raft's `RawNode` and the log, so nothing here is shared and nothing
//! needs a lock.
//!
//! Guarantees:
//! - A command that [`Store::propose`] answered is on disk on a majority of the voters and applied. It is there after
//!   any crash of any peers, or opening a store fails and says what is missing: never a silent loss.
//! - A proposal is answered once: with what applying it returned, or with why not.
//! - Whoever reads, reads a whole state between two commands; versions never go back. [`Store::read`] may be behind,
//!   [`Store::read_index`] holds everything that was acknowledged before it was asked.
//! - Members change one change at a time, by raft's joint consensus, and never so that the rest could decide nothing.
//! - A failed write or flush ends the driver. What could not be flushed may or may not be on disk, and trying again
//!   cannot tell (the kernel reports a failed write-back once and then forgets it), so only opening anew can.
//!
//! How: per `Ready`, entries and hard state go to the disk in one atomic batch ([`log`]), are flushed and attested
//! ([`disk`]), and only then applied and answered. A leader's messages leave before that, so that all the voters flush
//! at once. Whatever was proposed or came in while a flush ran shares the next one. After enough entries the state is
//! encoded on a thread of its own and stored in slices that ride along with the batches; then the entries it covers
//! go. A peer that needs what is gone is sent the state as it is: the [`Transport`] gets it apart from the message.
//!
//! [`driver`], with [`disk::Disk`] and [`Transport`], is all of this without threads, clocks and randomness of its own:
//! [`serve`] gives it a task and a tick every 50 ms (none to a peer that is alone, which so sleeps until somebody
//! proposes), the simulation gives it what it likes. Only the disk has a thread ([`writer`]): a command crosses between
//! threads for its flush and nowhere else, for waking one costs a good part of what the flush does.
//!
//! Deliberately absent: the network (the transport's), names and addresses of peers, and who ought to be a member when:
//! all of that is the state's and its users'. Proposals are not forwarded: a follower names its leader.

mod chance;
mod checkpoint;
mod disk;
mod driver;
mod error;
mod journal;
mod log;
mod logger;
mod members;
mod open;
mod reads;
mod reconfigure;
mod record;
mod serve;
mod sled_disk;
mod snapshots;
mod status;
mod storage;
mod store;
mod tail;
mod transport;
mod witness;
mod writer;

#[cfg(test)]
mod tests;
mod ticks;

use roster_proto::id::Version;

pub use ::raft::eraftpb::Message;

pub use self::{
    error::{Damage, DiskError, Fault, MembersError, OpenError, ProposeError, ReadError, StepError, Undecodable},
    members::MemberChange,
    open::{Begin, Edit, EditError, StoreConfig, recover, restore},
    status::{PeerProgress, RaftStatus},
    store::{Leadership, Store, StoreTask},
    transport::{Alone, EncodedMachine, Transport},
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
