//! The data directory: what it says this controller is, and the changes of that which a crash may interrupt.
//!
//! ```text
//! lock journal/ log/ witness   the store's
//! identity/                    the certificate and its key, once this controller is of a cluster
//! incoming/                    a snapshot that is being received
//! joining/ join.json           while it joins: the new identity (before, the key to be signed), and how far it got
//! emptying                     while it is emptied
//! ```
//!
//! Guarantees: joining and emptying go on where they were cut off, whatever the moment. A store that is gone although
//! the identity is there is not begun anew: a voter that forgot its vote could break the cluster's promises.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use roster_proto::id::PeerId;
use roster_tls::{Identity, IdentityDir, IdentityError};
use serde::{Deserialize, Serialize};

use crate::config::Config;

const JOIN: &str = "join.json";
const EMPTYING: &str = "emptying";
/// In the order in which they go; the lock stays.
const STORE: [&str; 6] = ["witness", "witness.new", "journal", "journal.new", "log", "log.new"];

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("cannot {verb} {path}")]
    File { verb: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{path} is damaged ({why}): remove it, and join again with `rctl cluster join`")]
    Join { path: PathBuf, why: String },
    #[error("cut off at {0:?}")]
    CutOff(Step),
    #[error(
        "{dir} says that this controller is of cluster {cluster}, but what it knew of it is gone: it must not come back \
         with an empty log. Bring the whole directory back; or remove this controller from the cluster on another one \
         (`rctl cluster remove`), empty the directory and join again"
    )]
    StoreGone { dir: PathBuf, cluster: String },
}

/// What the directory makes of the controller.
#[derive(Debug)]
pub(crate) enum Standing {
    /// Nothing yet.
    Blank,
    /// It has a store and was never part of a cluster, or is just about to get its first identity.
    Alone,
    Joining(Box<Identity>, Join),
    Member(Box<Identity>),
}

/// A join that is under way: written once the cluster has admitted this controller, removed once its log is begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Join {
    /// HOST:PORT, as the cluster was told.
    pub(crate) address: String,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// What the directory held before may still be there.
    Admitted,
    /// What it holds is the new cluster's.
    Emptied,
}

impl Join {
    pub(crate) fn peer(identity: &Identity) -> Option<PeerId> {
        identity.peer.map(PeerId)
    }
}

/// A moment at which a crash would leave something half done. Tests have one happen there ([`Config::cut_off_at`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    ControllerWritten,
    ClusterFounded,
    ControllersToken,
    JoinKeyKept,
    JoinAdmitted,
    JoinWritten,
    JoinStoreGone,
    JoinIdentityTaken,
    JoinEmptied,
    JoinLogBegun,
    LeaveTold,
    EmptyingBegun,
    EmptyingIdentityGone,
    RestoreEmptied,
    RestoreWritten,
    Recovered,
}

#[derive(Clone, Debug)]
pub(crate) struct Home {
    dir: PathBuf,
    cut_off_at: Option<Step>,
}

impl Home {
    pub(crate) fn of(config: &Config) -> Self {
        Self { dir: config.data_dir.clone(), cut_off_at: config.cut_off_at }
    }

    /// To be passed when what comes before the step is done. What follows an error is what follows a crash: nothing.
    pub(crate) fn pass(&self, step: Step) -> Result<(), HomeError> {
        if self.cut_off_at == Some(step) { Err(HomeError::CutOff(step)) } else { Ok(()) }
    }

    pub(crate) fn identity(&self) -> IdentityDir {
        IdentityDir(self.dir.join("identity"))
    }

    /// Where a snapshot is received.
    pub(crate) fn incoming(&self) -> PathBuf {
        self.dir.join("incoming")
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Finishes what was interrupted, and says what there is.
    pub(crate) fn standing(&self) -> Result<Standing, HomeError> {
        if self.dir.join(EMPTYING).exists() {
            self.empty()?;
        }
        if let Some(join) = self.read_join()? {
            return self.go_on_joining(join);
        }
        match (self.identity().load()?, self.holds_store()) {
            (None, false) => Ok(Standing::Blank),
            (None, true) => Ok(Standing::Alone),
            (Some(identity), true) => Ok(Standing::Member(Box::new(identity))),
            (Some(identity), false) => Err(HomeError::StoreGone { dir: self.dir.clone(), cluster: identity.cluster }),
        }
    }

    fn holds_store(&self) -> bool {
        self.dir.join("log").exists()
    }

    /// From now on this controller is one that joins, whatever happens to it.
    pub(crate) fn begin_join(&self, identity: &Identity, address: &str) -> Result<(), HomeError> {
        // Beside the key, which a call that is made again needs for as long as this is not written down.
        identity.write(&self.joining().path())?;
        self.pass(Step::JoinAdmitted)?;
        self.write_join(&Join { address: address.to_owned(), stage: Stage::Admitted })?;
        self.pass(Step::JoinWritten)
    }

    fn go_on_joining(&self, mut join: Join) -> Result<Standing, HomeError> {
        let path = self.dir.join(JOIN);
        if join.stage == Stage::Admitted {
            // Still there when a former attempt got this far and no further.
            if let Some(identity) = self.joining().load()? {
                self.remove_store()?;
                self.pass(Step::JoinStoreGone)?;
                self.identity().save(&identity)?;
                self.pass(Step::JoinIdentityTaken)?;
            }
            join.stage = Stage::Emptied;
            self.write_join(&join)?;
            self.pass(Step::JoinEmptied)?;
        }
        self.remove(&self.dir.join("joining"))?;
        let identity = self.identity().load()?;
        let identity = identity.ok_or_else(|| HomeError::Join { path, why: "the identity is missing".to_owned() })?;
        Ok(Standing::Joining(Box::new(identity), join))
    }

    /// The log is begun; what is missing now is missing for good.
    pub(crate) fn end_join(&self) -> Result<(), HomeError> {
        self.pass(Step::JoinLogBegun)?;
        self.remove(&self.dir.join(JOIN))?;
        self.sync()
    }

    /// Makes the directory blank. The store must be closed.
    pub(crate) fn empty(&self) -> Result<(), HomeError> {
        let mark = self.dir.join(EMPTYING);
        self.write(&mark, b"")?;
        self.pass(Step::EmptyingBegun)?;
        for name in [JOIN, "joining", "identity", "incoming"] {
            self.remove(&self.dir.join(name))?;
        }
        self.pass(Step::EmptyingIdentityGone)?;
        self.remove_store()?;
        self.remove(&mark)?;
        self.sync()
    }

    fn remove_store(&self) -> Result<(), HomeError> {
        for name in STORE {
            self.remove(&self.dir.join(name))?;
        }
        self.sync()
    }

    /// Where the identity of a controller that joins is kept until it is its own.
    pub(crate) fn joining(&self) -> IdentityDir {
        IdentityDir(self.dir.join("joining"))
    }

    fn read_join(&self) -> Result<Option<Join>, HomeError> {
        let path = self.dir.join(JOIN);
        match fs::read(&path) {
            Ok(bytes) => {
                let join = serde_json::from_slice(&bytes);
                join.map(Some).map_err(|error| HomeError::Join { path, why: error.to_string() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed_to("read", &path)(error)),
        }
    }

    fn write_join(&self, join: &Join) -> Result<(), HomeError> {
        let bytes = serde_json::to_vec(join).expect("plain data has a JSON form");
        self.write(&self.dir.join(JOIN), &bytes)
    }

    /// The file is there whole, for good, or not at all.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), HomeError> {
        let new = path.with_extension("new");
        let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
        let written = written.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
        written.map_err(failed_to("write", &new))?;
        fs::rename(&new, path).map_err(failed_to("write", path))?;
        self.sync()
    }

    /// Whatever is there, or nothing.
    fn remove(&self, path: &Path) -> Result<(), HomeError> {
        let removed = match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed_to("remove", path)(error)),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), HomeError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed_to("flush", &self.dir))
    }
}

fn failed_to(verb: &'static str, path: &Path) -> impl Fn(io::Error) -> HomeError + use<> {
    let path = path.to_owned();
    move |source| HomeError::File { verb, path: path.clone(), source }
}
