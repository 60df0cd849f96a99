//! A directory that nothing below reaches out of.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{FileStat, SFlag, fstat},
};

/// How often the kernel may say that the tree changed while it looked.
const TRIES: usize = 128;

#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// Symbolic links are followed, as if the root were `/`; else a path that needs one leads nowhere.
    follows: bool,
}

impl Root {
    /// As if it were `/`: for a file system whose links are meant within it.
    pub fn whole(directory: impl Into<OwnedFd>) -> Self {
        Self { fd: directory.into(), follows: true }
    }

    /// Without any link below it: for what comes from somebody who could have made them.
    pub fn strict(directory: impl Into<OwnedFd>) -> Self {
        Self { fd: directory.into(), follows: false }
    }

    pub(crate) fn open(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let mut resolve = ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let relative: PathBuf;
        let path = if self.follows {
            resolve |= ResolveFlag::RESOLVE_IN_ROOT;
            path
        } else {
            resolve |= ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
            relative = Path::new(".").join(path);
            &relative
        };
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        for _ in 1..TRIES {
            match openat2(&self.fd, path, how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                opened => return opened,
            }
        }
        openat2(&self.fd, path, how)
    }
}

pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

pub(crate) fn is_dir(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFDIR
}

pub(crate) fn stat(fd: impl AsFd) -> nix::Result<FileStat> {
    fstat(fd)
}

/// To read from, what an O_PATH descriptor is of: the very same, whatever has its name by now.
pub(crate) fn reopen(fd: &OwnedFd, flags: OFlag) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = flags | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    Ok(nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).map(File::from)?)
}
