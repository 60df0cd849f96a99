//! What a container's directory says of it.
//!
//! Records are written to a temporary name and renamed, so that a reader sees a whole one or none.

use std::{
    ffi::OsStr,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use oci_spec::runtime::Spec;
use roster_proto::time::Timestamp;
use roster_runtime::{
    config,
    error::{StartError, Step},
    identity::Identity,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{containers::kept::KeptRecord, foreign::ForeignRuntime};
use crate::runtime::{Ended, Started};

/// The file that makes a directory that of a kept container.
pub const KEPT: &str = "kept.json";

/// Written by the shim once the container's program is executing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub shim: Identity,
    /// The container's first process.
    pub init: Identity,
    pub address: Option<Ipv4Addr>,
    pub at: Timestamp,
}

impl From<Running> for Started {
    fn from(running: Running) -> Self {
        Self { pid: running.init.pid, address: running.address, at: running.at }
    }
}

/// The files of one container under the run directory.
#[derive(Clone, Debug)]
pub struct BundleDir(pub PathBuf);

impl BundleDir {
    pub fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// The mount point, in the container's own mount namespace, of its root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// There for as long as the container waits for somebody to attach.
    pub fn held(&self) -> PathBuf {
        self.0.join("held")
    }

    /// The container's name: its task's.
    pub fn id(&self) -> &str {
        self.0.file_name().and_then(OsStr::to_str).unwrap_or_default()
    }

    pub fn spec(&self) -> Result<Spec, StartError> {
        let config = self.config();
        let text = fs::read(&config).step(|| format!("read {}", config.display()))?;
        config::parse(&text).step(|| format!("read {}", config.display()))
    }

    /// Which other runtime makes the container, where one does.
    pub fn foreign(&self) -> io::Result<Option<ForeignRuntime>> {
        read(&self.0.join("runtime.json"))
    }

    pub fn write_foreign(&self, runtime: &ForeignRuntime) -> io::Result<()> {
        write(&self.0, "runtime.json", runtime)
    }

    pub fn running(&self) -> io::Result<Option<Running>> {
        read(&self.0.join("running.json"))
    }

    pub fn write_running(&self, record: &Running) -> io::Result<()> {
        write(&self.0, "running.json", record)
    }

    pub fn kept(&self) -> io::Result<Option<KeptRecord>> {
        read(&self.0.join(KEPT))
    }

    pub fn write_kept(&self, record: &KeptRecord) -> io::Result<()> {
        write(&self.0, KEPT, record)
    }

    pub fn ended(&self) -> io::Result<Option<Ended>> {
        read(&self.0.join("exit.json"))
    }

    pub fn write_ended(&self, record: &Ended) -> io::Result<()> {
        write(&self.0, "exit.json", record)
    }
}

/// The clock, at the edge.
pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// A record that makes no sense, cut short by a loss of power for instance, is as good as none: one container's must
/// not keep the agent from all others.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "ignored a damaged record"))
            .ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(dir: &Path, name: &str, record: &impl Serialize) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}"));
    fs::write(&temporary, serde_json::to_vec(record)?)?;
    fs::rename(temporary, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let bundle = BundleDir(dir.path().to_owned());
        assert_eq!(bundle.ended().expect("absent"), None);
        let ended = Ended { how: crate::runtime::Exit::OutOfMemory { limit: Some(5) }, at: Timestamp(7) };
        bundle.write_ended(&ended).expect("written");
        assert_eq!(bundle.ended().expect("read"), Some(ended));
    }
}
