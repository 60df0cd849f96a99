//! The containers of the command line: a folder each below the root folder, which only root may enter.
//!
//! ```text
//! ROOT/ID/config.json  the bundle's, as it was when the container was created
//! ROOT/ID/state.json   the record, once the first process exists
//! ROOT/ID/start        a socket, until the container is started
//! ROOT/ID/mount.json   its root on the host, for one without a mount namespace of its own
//! ```
//!
//! Whether a container runs is asked of the kernel each time, never remembered.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::{cgroup::Hierarchies, channel::Channel, config, error::StartError, identity::Identity, rootfs::HostMount};

/// The socket's name.
pub const START: &str = "start";
const STATE: &str = "state.json";
const MOUNT: &str = "mount.json";
const CONFIG: &str = "config.json";
/// As long as a file name may be.
const LONGEST_ID: usize = 255;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("container {0} does not exist")]
    NotFound(String),
    #[error("container with id {0} exists already: delete it or choose another id")]
    Exists(String),
    #[error("{0:?} is no container id: write 1 to 255 of the characters a-z A-Z 0-9 _ + - .")]
    BadId(String),
    #[error("cannot {doing} {}: {source}", path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { doing, path, source }
}

#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// Below the root of each hierarchy.
    pub cgroup: PathBuf,
    pub init: Identity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its first process is not there yet, or whoever made it was killed before it was.
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub dir: PathBuf,
}

impl Store {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// A new container's folder.
    pub fn reserve(&self, id: &str, config: &[u8]) -> Result<Container, StoreError> {
        let container = self.named(id)?;
        let folder = |recursive| {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(recursive).mode(0o700);
            builder
        };
        folder(true).create(&self.root).map_err(failed("make", &self.root))?;
        match folder(false).create(&container.dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Exists(id.to_owned()));
            }
            Err(error) => return Err(failed("make", &container.dir)(error)),
        }
        let path = container.dir.join(CONFIG);
        fs::write(&path, config).map_err(failed("write", &path))?;
        Ok(container)
    }

    pub fn find(&self, id: &str) -> Result<Container, StoreError> {
        let container = self.named(id)?;
        match fs::metadata(&container.dir) {
            Ok(_) => Ok(container),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::NotFound(id.to_owned())),
            Err(error) => Err(failed("look at", &container.dir)(error)),
        }
    }

    /// In order of their ids.
    pub fn list(&self) -> Result<Vec<Container>, StoreError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &self.root)(error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.root))?;
            // What has no id's name is not ours.
            all.extend(entry.file_name().into_string().ok().and_then(|id| self.named(&id).ok()));
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    fn named(&self, id: &str) -> Result<Container, StoreError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if id.is_empty() || id.len() > LONGEST_ID || !id.chars().all(fits) || id == "." || id == ".." {
            return Err(StoreError::BadId(id.to_owned()));
        }
        Ok(Container { id: id.to_owned(), dir: self.root.join(id) })
    }
}

impl Container {
    /// `None`: there is no process yet.
    pub fn record(&self) -> Result<Option<Record>, StoreError> {
        let path = self.dir.join(STATE);
        match fs::read(&path) {
            Ok(bytes) => {
                let record = serde_json::from_slice(&bytes);
                record.map(Some).map_err(|error| failed("understand", &path)(error.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Whole or not at all.
    pub fn write(&self, record: &Record) -> Result<(), StoreError> {
        let (path, temporary) = (self.dir.join(STATE), self.dir.join(".state.json"));
        let written = serde_json::to_vec(record)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(failed("write", &path))
    }

    pub fn spec(&self) -> Result<Spec, StoreError> {
        let path = self.dir.join(CONFIG);
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        config::parse(&bytes).map_err(|error| failed("understand", &path)(error.into()))
    }

    pub fn status(&self, record: Option<&Record>, hierarchies: &Hierarchies) -> Result<Status, StartError> {
        let Some(record) = record else { return Ok(Status::Creating) };
        if !record.init.is_running() {
            return Ok(Status::Stopped);
        }
        if hierarchies.is_frozen(&record.cgroup)? {
            return Ok(Status::Paused);
        }
        Ok(if self.dir.join(START).exists() { Status::Created } else { Status::Running })
    }

    /// The process that waits to be started, when there is one.
    pub fn knock(&self) -> Result<Option<Channel>, StoreError> {
        Channel::to(&self.dir, START).map_err(failed("connect to", &self.dir.join(START)))
    }

    /// It waits no longer.
    pub fn started(&self) -> Result<(), StoreError> {
        let path = self.dir.join(START);
        fs::remove_file(&path).map_err(failed("remove", &path))
    }

    /// Written down before it is there.
    pub fn write_mount(&self, mount: &HostMount) -> Result<(), StoreError> {
        let path = self.dir.join(MOUNT);
        let written = serde_json::to_vec(mount).map_err(io::Error::from).and_then(|text| fs::write(&path, text));
        written.map_err(failed("write", &path))
    }

    /// Its processes must have ended.
    pub fn remove(&self) -> Result<(), StoreError> {
        let path = self.dir.join(MOUNT);
        match fs::read(&path) {
            Ok(bytes) => {
                let mount: HostMount =
                    serde_json::from_slice(&bytes).map_err(|error| failed("understand", &path)(error.into()))?;
                mount.remove().map_err(failed("unmount what is written down in", &path))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read", &path)(error)),
        }
        // All there is in most: without looking. Whatever goes wrong, goes wrong again below.
        let _ = fs::remove_file(self.dir.join(STATE)).and_then(|()| fs::remove_file(self.dir.join(CONFIG)));
        match fs::remove_dir(&self.dir).or_else(|_| fs::remove_dir_all(&self.dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.dir)(error)),
            _ => Ok(()),
        }
    }
}

impl Record {
    /// `None`: it has ended.
    pub fn init(&self) -> Result<Option<OwnedFd>, StoreError> {
        self.init.pidfd().map_err(failed("open", Path::new("/proc")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_within_their_folder() {
        let store = Store::new("/run/none".into());
        for id in ["", ".", "..", "a/b", "../x", "a b", "a\0", &"x".repeat(256)] {
            assert!(matches!(store.find(id), Err(StoreError::BadId(_))), "{id:?}");
        }
        assert!(matches!(store.find("web-1_2.3+4"), Err(StoreError::NotFound(_))));
    }

    #[test]
    fn a_container_is_there_once() {
        let root = tempfile::tempdir().expect("a folder");
        let store = Store::new(root.path().join("root"));
        let one = store.reserve("one", b"{}").expect("reserved");
        assert!(matches!(store.reserve("one", b"{}"), Err(StoreError::Exists(_))));
        assert_eq!(one.record().expect("readable"), None);
        let init = Identity::of(std::process::id()).expect("itself");
        let record = Record {
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-11-21T00:00:00Z".to_owned(),
            cgroup: "/c".into(),
            init,
        };
        one.write(&record).expect("written");
        assert_eq!(store.find("one").expect("there").record().expect("readable"), Some(record));
        assert_eq!(store.list().expect("listed").len(), 1);
        one.remove().expect("removed");
        assert!(matches!(store.find("one"), Err(StoreError::NotFound(_))));
    }
}
