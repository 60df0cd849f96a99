//! The files of one container, by the layers of its root file system: what it shows, and what was changed in it.
//!
//! The layers are read as they lie on the host's disk, with the meaning that overlayfs gives them (the kernel's
//! Documentation/filesystems/overlayfs.rst): the uppermost entry of a name counts, a whiteout hides those below, an
//! opaque directory or what is no directory hides whole directories below. So nothing need be mounted, and a container
//! need not run.
//!
//! Guarantees: no path leads out of a layer and no link is followed ([`beneath`]); nothing but plain files is opened
//! for reading; memory is bounded, whatever trees a container makes. What changes meanwhile is seen before or after.
//! Containers are mounted without `redirect_dir` and `metacopy`, whose meaning is unknown here.

mod diff;
mod export;
mod tar;
mod upper;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, btree_map},
    ffi::OsString,
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, sys::stat::FileStat};
use xattr::FileExt;

use crate::image::beneath::{self, Root};

/// Names in one directory. Each is some hundred bytes of memory.
const MAX_NAMES: usize = 500_000;
/// PATH_MAX, which is also the longest that images may have.
const MAX_PATH: usize = 4096;

/// Uppermost first.
#[derive(Debug)]
pub(crate) struct Layers(Vec<Root>);

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Added,
    Changed,
    Deleted,
}

/// A directory of the whole that is being walked through.
struct Level<T> {
    path: PathBuf,
    /// Layers in which its directories are to be looked for.
    among: Vec<usize>,
    names: btree_map::IntoIter<OsString, T>,
}

impl Layers {
    pub(crate) fn open(paths: &[PathBuf]) -> io::Result<Self> {
        paths.iter().map(|path| Ok(Root::open(path)?)).collect::<io::Result<_>>().map(Self)
    }

    fn all(&self) -> Vec<usize> {
        (0..self.0.len()).collect()
    }

    /// The directories that together are the one at `path`, uppermost first, of those layers.
    fn directories(&self, path: &Path, among: &[usize]) -> io::Result<Vec<(usize, File)>> {
        if path.as_os_str().len() >= MAX_PATH {
            let text = format!("directories are nested too deep: a path has more than {MAX_PATH} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let mut found = Vec::new();
        for layer in among {
            match self.0[*layer].dir(path) {
                Ok(dir) => {
                    let opaque = is_opaque(&dir)?;
                    found.push((*layer, dir));
                    if opaque {
                        break;
                    }
                }
                Err(Errno::ENOENT) => {}
                // Something else, also a whiteout, hides what is below.
                Err(Errno::ENOTDIR | Errno::ELOOP) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(found)
    }
}

fn is_opaque(dir: &File) -> io::Result<bool> {
    Ok(dir.get_xattr(beneath::OPAQUE)?.is_some_and(|value| value == b"y"))
}

/// The names in these directories with the uppermost entry of each, whiteouts too.
fn names(dirs: &[(usize, File)]) -> io::Result<BTreeMap<OsString, (usize, FileStat)>> {
    let mut found = BTreeMap::new();
    for (layer, dir) in dirs {
        let fd = OwnedFd::from(dir.try_clone()?);
        // Through the open directory: its path is not walked again.
        for entry in fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd()))? {
            let name = entry?.file_name();
            if found.contains_key(&name) {
                continue;
            }
            // Gone again, or there.
            let Some(stat) = beneath::stat_at(&fd, &name)? else { continue };
            if found.len() >= MAX_NAMES {
                let text = format!("a directory has more than {MAX_NAMES} names");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
            }
            found.insert(name, (*layer, stat));
        }
    }
    Ok(found)
}
