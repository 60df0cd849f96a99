//! Until when singletons may run on this host: one small file, written by the agent, read by the shims.
//!
//! The shim of a singleton goes by this file and its own timer alone, so that the promise holds also while the agent is
//! stopped, stuck or dead. A file that cannot be read or makes no sense is no lease.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::clock::BootTime;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFile(pub PathBuf);

impl LeaseFile {
    pub fn within(run_dir: &Path) -> Self {
        Self(run_dir.join("lease"))
    }

    /// `None`: there is no lease.
    pub fn read(&self) -> Option<BootTime> {
        let text = fs::read_to_string(&self.0).ok()?;
        text.trim_end().parse().ok().map(|nanos| BootTime(Duration::from_nanos(nanos)))
    }

    /// A reader sees the old one or the new one, whole.
    pub fn write(&self, until: BootTime) -> io::Result<()> {
        let fresh = self.0.with_extension("new");
        fs::write(&fresh, format!("{}\n", until.0.as_nanos()))?;
        fs::rename(fresh, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nonsense_is_no_lease() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = LeaseFile::within(dir.path());
        assert_eq!(file.read(), None);
        let until = BootTime::now().plus(Duration::from_secs(3));
        file.write(until).expect("written");
        assert_eq!(file.read(), Some(until));
        for nonsense in ["", "soon", "-1", "99999999999999999999999"] {
            fs::write(&file.0, nonsense).expect("written");
            assert_eq!(file.read(), None, "{nonsense:?}");
        }
    }
}
