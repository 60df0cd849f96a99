//! Opening a store, and what is done to one that nobody has open: restoring a backup into an empty directory, and going
//! on alone after the majority is lost for good. All of it blocks.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ::raft::eraftpb::{ConfState, EntryType, SnapshotMetadata};
use bytes::Bytes;
use futures::executor::block_on;
use roster_proto::id::{PeerId, Version};

use super::{
    Machine,
    disk::{Disk, ReadError},
    driver::Driver,
    error::{DiskError, Fault, OpenError},
    log::{Beginning, Found, Log},
    record::FORMAT,
    sled_disk::{Pace, SledDisk},
    snapshots::SnapshotPolicy,
    transport::Transport,
};

/// What an empty directory becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The store of a new cluster, whose only voter this peer is.
    Alone,
    /// The empty store of a peer that waits until the leader of a cluster contacts it.
    Joining,
}

#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The store's own directory; made when it is missing.
    pub dir: PathBuf,
    /// This peer. A store remembers the one it was made with; by itself a new one draws it.
    pub peer: Option<PeerId>,
    pub begin: Begin,
    /// A snapshot is taken, and the entries it covers go, after so many entries ...
    pub snapshot_entries: u64,
    /// ... or after so many bytes of them, and no fewer than the last snapshot has. As many bytes of those before it
    /// stay in memory for peers that lag behind.
    pub snapshot_bytes: usize,
}

impl StoreConfig {
    pub const SNAPSHOT_ENTRIES: u64 = 16384;
    pub const SNAPSHOT_BYTES: usize = 8 << 20;

    /// Of a peer that begins alone.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            peer: None,
            begin: Begin::Alone,
            snapshot_entries: Self::SNAPSHOT_ENTRIES,
            snapshot_bytes: Self::SNAPSHOT_BYTES,
        }
    }
}

pub(super) fn open_driver<M: Machine>(
    config: &StoreConfig,
    transport: Box<dyn Transport>,
) -> Result<Driver<M, SledDisk>, OpenError> {
    start_driver(config, SledDisk::open(&config.dir, rand::random(), Pace::default())?, transport, rand::random())
}

/// A driver that has applied what the disk knows to be committed; a sole voter's leads.
pub(super) fn start_driver<M: Machine, D: Disk>(
    config: &StoreConfig,
    disk: D,
    transport: Box<dyn Transport>,
    seed: u64,
) -> Result<Driver<M, D>, OpenError> {
    let dir = config.dir.as_path();
    let (log, machine) = match read(dir, disk)? {
        Found::Log { log, machine } => {
            let machine = decode(dir, &log, &machine)?;
            (*log, machine)
        }
        Found::Nothing(disk) => {
            let machine = M::default();
            let beginning = match config.begin {
                Begin::Alone => Beginning::Alone { index: 0 },
                Begin::Joining => Beginning::Joining,
            };
            let peer = config.peer.unwrap_or_else(|| draw(seed));
            let log = block_on(Log::create(disk, peer.0, beginning, machine.encode()));
            (log.map_err(failed_in(dir))?, machine)
        }
    };
    let found = PeerId(log.head().peer);
    if let Some(wanted) = config.peer.filter(|wanted| *wanted != found) {
        return Err(OpenError::OtherPeer { dir: dir.to_owned(), found, wanted });
    }
    let policy = SnapshotPolicy { entries: config.snapshot_entries, bytes: config.snapshot_bytes };
    let mut driver = Driver::new(log, machine, transport, seed, policy).map_err(replay(dir))?;
    block_on(driver.start()).map_err(replay(dir))?;
    Ok(driver)
}

/// Makes a store, of a sole voter, that begins with `machine`, whose last command had `version`. Returns its peer.
pub fn restore<M: Machine>(
    dir: &Path,
    peer: Option<PeerId>,
    version: Version,
    machine: &[u8],
) -> Result<PeerId, OpenError> {
    restore_to::<M, _>(dir, SledDisk::open(dir, rand::random(), Pace::default())?, peer, version, machine)
}

pub(super) fn restore_to<M: Machine, D: Disk>(
    dir: &Path,
    disk: D,
    peer: Option<PeerId>,
    version: Version,
    machine: &[u8],
) -> Result<PeerId, OpenError> {
    let Found::Nothing(disk) = read(dir, disk)? else { return Err(OpenError::Exists { dir: dir.to_owned() }) };
    M::decode(machine).map_err(|source| replay(dir)(Fault::Undecodable { index: version.0, source }))?;
    let peer = peer.unwrap_or_else(|| draw(rand::random()));
    let log = Log::create(disk, peer.0, Beginning::Alone { index: version.0 }, machine.to_vec());
    block_on(log).map_err(failed_in(dir))?;
    Ok(peer)
}

/// What [`recover`] does to the machine besides: given the peer and the version of the last command, it says which version
/// the machine then has, no lower one; or why nothing is to be done at all.
pub type Edit<'a, M> = Box<dyn FnOnce(&mut M, PeerId, Version) -> Result<Version, EditError> + Send + 'a>;
pub type EditError = Box<dyn std::error::Error + Send + Sync>;

/// Makes the store's own peer the sole voter of its log, and all that is in the log committed: what a majority has
/// acknowledged and this peer was told is in there. Only for when the others are gone for good: they must never meet
/// this log again. All of it, `edit` included, is done in one step or, after a crash, not at all.
pub fn recover<M: Machine>(dir: &Path, edit: Edit<M>) -> Result<(PeerId, Version), OpenError> {
    recover_on(dir, SledDisk::open(dir, rand::random(), Pace::default())?, edit)
}

pub(super) fn recover_on<M: Machine, D: Disk>(
    dir: &Path,
    disk: D,
    edit: Edit<M>,
) -> Result<(PeerId, Version), OpenError> {
    let nothing = || OpenError::Nothing { dir: dir.to_owned() };
    let Found::Log { mut log, machine } = read(dir, disk)? else { return Err(nothing()) };
    let mut machine: M = decode(dir, &log, &machine)?;
    let (index, term, _) = log.end();
    if index == 0 {
        return Err(nothing());
    }
    let is_command =
        |kind, data: &[u8], context: &[u8]| kind == EntryType::EntryNormal && !(data.is_empty() && context.is_empty());
    for entry in log.entries_since_snapshot() {
        if is_command(entry.get_entry_type(), &entry.data, &entry.context) {
            let index = entry.index;
            let applied = machine.apply(Version(index), &entry.data);
            applied.map_err(|source| replay(dir)(Fault::Undecodable { index, source }))?;
        }
    }
    let peer = log.head().peer;
    let version = edit(&mut machine, PeerId(peer), Version(index))
        .map_err(|source| OpenError::NotEdited { dir: dir.to_owned(), source })?;
    assert!(version.0 >= index, "versions never go back");
    let mut metadata = SnapshotMetadata { index: version.0, term, ..SnapshotMetadata::default() };
    metadata.set_conf_state(ConfState { voters: vec![peer], ..ConfState::default() });
    let later_term = log.head().term + 1;
    let installed = log.install(metadata, Bytes::from(machine.encode()), later_term, peer);
    block_on(installed).map_err(failed_in(dir))?;
    Ok((PeerId(peer), version))
}

fn read<D: Disk>(dir: &Path, disk: D) -> Result<Found<D>, OpenError> {
    let dir = || dir.to_owned();
    Log::open(disk).map_err(|error| match error {
        ReadError::Disk(source) => OpenError::Disk { dir: dir(), source },
        ReadError::Damage(damage) => OpenError::Damaged { dir: dir(), damage },
        ReadError::Format { found } => OpenError::Format { dir: dir(), found, known: FORMAT },
    })
}

fn decode<M: Machine, D: Disk>(dir: &Path, log: &Log<D>, machine: &[u8]) -> Result<M, OpenError> {
    let index = log.snapshot_index();
    M::decode(machine).map_err(|source| replay(dir)(Fault::Undecodable { index, source }))
}

fn replay(dir: &Path) -> impl Fn(Fault) -> OpenError + use<'_> {
    |fault| OpenError::Replay { dir: dir.to_owned(), source: Arc::new(fault) }
}

fn failed_in(dir: &Path) -> impl Fn(DiskError) -> OpenError + use<'_> {
    |source| OpenError::Disk { dir: dir.to_owned(), source }
}

/// A new peer's id.
fn draw(seed: u64) -> PeerId {
    PeerId(seed.max(1))
}
