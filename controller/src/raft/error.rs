//! What can go wrong, each with what, where and what to do.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use roster_proto::id::PeerId;

/// The bytes are not what this version of the controller writes.
#[derive(Debug, thiserror::Error)]
#[error("cannot be decoded")]
pub struct Undecodable(#[source] pub Box<dyn std::error::Error + Send + Sync>);

impl Undecodable {
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

/// An operation of the file system or of sled that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct DiskError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl DiskError {
    pub(super) fn failed_to<E>(action: &'static str, path: &Path) -> impl Fn(E) -> Self + use<E>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = path.to_owned();
        move |source| Self { action, path: path.clone(), source: source.into() }
    }
}

/// What is wrong with a store whose bytes are not those that were acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("there is a log but the file `witness`, which says how far it was acknowledged, is missing")]
    WitnessMissing,
    #[error("both halves of the file `witness`, which says how far the log was acknowledged, are unreadable")]
    WitnessUnreadable,
    #[error(
        "the log is empty, but it was acknowledged up to entry {last_index} (write {sequence}): the files in `log` were removed or cut"
    )]
    Emptied { sequence: u64, last_index: u64 },
    #[error(
        "the log goes back to entry {found_index} (write {found}), but it was acknowledged up to entry {last_index} (write {acknowledged}): the files in `log` were cut, overwritten or replaced by older ones"
    )]
    Lost { acknowledged: u64, last_index: u64, found: u64, found_index: u64 },
    #[error("the directory `journal`, which holds the last writes, is missing")]
    JournalMissing,
    #[error(
        "write {sequence} in `journal` does not match its checksum, and a later one does: the files there were damaged"
    )]
    Journal { sequence: u64 },
    #[error("`log` ends at write {log} and `journal` begins with write {journal}: what was between them is missing")]
    JournalGap { log: u64, journal: u64 },
    #[error("`log` and the file `witness` disagree about write {sequence}: they come from different stores or times")]
    WitnessDiffers { sequence: u64 },
    #[error("the record {record} is missing from `log`")]
    Missing { record: String },
    #[error("the record {record} in `log` does not match its checksum")]
    Checksum { record: String },
    #[error("the record {record} in `log` is malformed: {reason}")]
    Malformed { record: String, reason: String },
    #[error("the record {record} in `log` does not belong to this log")]
    Stray { record: String },
    #[error("sled cannot recover `log`: {0}")]
    Sled(String),
}

/// Why a store could not be opened. Nothing of it is being served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "another controller uses the store in {}: stop it, or choose another data directory",
        dir.display()
    )]
    InUse { dir: PathBuf },
    #[error(
        "the store in {} is damaged: {damage}. Restore the whole directory from a backup; or, to give up what it held and begin empty, move it away and start again",
        dir.display()
    )]
    Damaged { dir: PathBuf, damage: Damage },
    #[error(
        "the store in {} is of format {found}, this controller reads format {known}: use the version that wrote it",
        dir.display()
    )]
    Format { dir: PathBuf, found: u32, known: u32 },
    #[error(
        "the store in {} belongs to peer {found}, not to peer {wanted}: correct the peer id or the data directory",
        dir.display()
    )]
    OtherPeer { dir: PathBuf, found: PeerId, wanted: PeerId },
    #[error("there is no store in {}: check the data directory", dir.display())]
    Nothing { dir: PathBuf },
    #[error("there is a store in {} already: choose an empty data directory, or move that one away", dir.display())]
    Exists { dir: PathBuf },
    #[error("cannot start the log's thread")]
    Thread(#[source] std::io::Error),
    #[error("cannot open the store in {}", dir.display())]
    Disk {
        dir: PathBuf,
        #[source]
        source: DiskError,
    },
    #[error("cannot replay the log in {}", dir.display())]
    Replay {
        dir: PathBuf,
        #[source]
        source: Arc<Fault>,
    },
    #[error("the store in {} is left as it is", dir.display())]
    NotEdited {
        dir: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why the driver ended by itself. Everything that was pending has been answered with it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("the log could not be written; start the controller again once the disk is well")]
    Disk(#[from] DiskError),
    #[error("entry {index} of the log, or the snapshot there, is not understood; use the version that wrote it")]
    Undecodable {
        index: u64,
        #[source]
        source: Undecodable,
    },
    #[error("entry {index} of the log has a kind this version does not know; use the version that wrote it")]
    UnknownKind { index: u64 },
    #[error(
        "the leader knows that this controller had the log up to entry {known}, but it ends at entry {last}: its data directory was replaced by an older one. Remove this controller from the cluster and let it join again, empty"
    )]
    Forgotten { known: u64, last: u64 },
    #[error("raft refused to go on")]
    Raft(#[from] ::raft::Error),
    #[error("cannot start a thread to encode a snapshot")]
    Thread(#[source] std::io::Error),
    #[error("the log's driver ended unexpectedly: this is a defect, please report it with the messages before it")]
    Ended,
}

/// Why a proposal was not answered with an outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was logged.
    #[error("the command is {bytes} bytes long; the limit is {limit}: apply in smaller parts")]
    TooLarge { bytes: usize, limit: usize },
    /// Nothing was logged.
    #[error("this controller does not lead the cluster; {}", Leader(.leader))]
    NotLeader { leader: Option<PeerId> },
    /// It may yet be applied, by the new leader.
    #[error("this controller lost the leadership before the command was decided; {}", Leader(.leader))]
    LeadershipLost { leader: Option<PeerId> },
    /// What was not answered before may or may not be in the log.
    #[error("the controller is shutting down: try again once it is back")]
    ShuttingDown,
    /// It may or may not be in the log.
    #[error("the controller's store has failed")]
    Failed(#[source] Arc<Fault>),
}

/// Why a linearizable read was not answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("no leader at present that most controllers follow: try again, or read what this one has with --stale")]
    NoLeader,
    #[error("the controller is shutting down: try again once it is back")]
    ShuttingDown,
    #[error("the controller's store has failed")]
    Failed(#[source] Arc<Fault>),
}

/// Why the members were not changed, or the leadership not handed over.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MembersError {
    #[error("this controller does not lead the cluster; {}", Leader(.leader))]
    NotLeader { leader: Option<PeerId> },
    #[error("another change of the controllers is under way: try again once it is done")]
    UnderWay,
    #[error("controller {peer} is a {role} already")]
    AlreadySo { peer: PeerId, role: &'static str },
    #[error("there is no controller {peer} in the cluster, or it has no vote")]
    Unknown { peer: PeerId },
    #[error("controller {peer} is named twice in one change")]
    Twice { peer: PeerId },
    #[error("controller {peer} has not caught up, it lacks {behind} entries of the log: try again once it has")]
    NotCaughtUp { peer: PeerId, behind: u64 },
    #[error(
        "the change is refused because nothing could be decided: of {voters} voters only {alive} answer. Bring one back, or change those that do not answer"
    )]
    LosesQuorum { voters: usize, alive: usize },
    #[error("controller {peer} does not answer")]
    Unreachable { peer: PeerId },
    #[error("controller {peer} did not take the leadership over in time: try again")]
    NotTaken { peer: PeerId },
    /// It may yet come into force, by the new leader.
    #[error("this controller lost the leadership before the change was in force; {}", Leader(.leader))]
    Lost { leader: Option<PeerId> },
    #[error("the controller is shutting down: try again once it is back")]
    ShuttingDown,
    #[error("the controller's store has failed")]
    Failed(#[source] Arc<Fault>),
}

/// Why a message of another peer was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("the message cannot be decoded")]
    Malformed(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the message is for controller {to}, not for this one")]
    NotForUs { to: PeerId },
    #[error("the snapshot is not understood: use the same release on all controllers")]
    Undecodable(#[from] Undecodable),
    #[error("the controller's store has ended")]
    Ended,
}

/// Why whoever waits is not answered any more.
#[derive(Debug, Clone)]
pub(super) enum End {
    ShuttingDown,
    Failed(Arc<Fault>),
}

macro_rules! from_end {
    ($($error:ident),*) => {$(
        impl From<End> for $error {
            fn from(end: End) -> Self {
                match end {
                    End::ShuttingDown => Self::ShuttingDown,
                    End::Failed(fault) => Self::Failed(fault),
                }
            }
        }
    )*};
}

from_end!(ProposeError, ReadError, MembersError);

struct Leader<'a>(&'a Option<PeerId>);

impl fmt::Display for Leader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(leader) => write!(f, "ask controller {leader}"),
            None => f.write_str("no leader is known yet: try again"),
        }
    }
}
