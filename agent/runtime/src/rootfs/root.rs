//! The container's root while it is being made, and how anything beneath it is reached.
//!
//! The image is a stranger's: any path in it may be a link, and another container with the same files may change it
//! at any time. So nothing beneath the root is ever named to mount(2); it is opened with openat2(2) below the root,
//! where even an absolute link stays inside, and mounts are attached to what was opened.
//!
//! What lies below `/proc` or `/sys` is looked up from the mount there and not from the root. So it does not matter
//! what becomes of the directory that it is mounted on: a path below `/proc` is on the container's procfs.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{Mode, SFlag, fstat, mkdirat},
};

use crate::{
    error::{StartError, Step},
    sys,
};

/// Links that are followed in turn while a missing mount target is made.
const MOST_LINKS: u32 = 16;

/// The mounted root, before it is anybody's.
#[derive(Debug)]
pub struct Root {
    pub(super) top: OwnedFd,
    /// The mounts on `/proc` and `/sys`: of one place, the last is uppermost.
    pub(super) kernels_own: Vec<(PathBuf, OwnedFd)>,
    /// Mounts that become read-only when the container is complete: others still have to find places in them.
    pub(super) sealed_at_last: Vec<(PathBuf, OwnedFd)>,
}

impl Root {
    pub(super) fn new(top: OwnedFd) -> Self {
        Self { top, kernels_own: Vec::new(), sealed_at_last: Vec::new() }
    }

    /// Opens what `path` is within this root. Magic links are not followed.
    pub fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        Ok(self.resolve(&without_dots(path), flags, ResolveFlag::empty())?)
    }

    /// What `path` is, or `None` where there is nothing.
    pub(super) fn existing(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        match self.resolve(&without_dots(path), OFlag::O_PATH, ResolveFlag::empty()) {
            Ok(target) => Ok(Some(target)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory at `path`, or whatever else is there; made with all its parents where there is nothing.
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_or_make(&without_dots(path), true, MOST_LINKS)
    }

    /// As [`Self::directory`], but makes an empty file.
    pub fn file(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_or_make(&without_dots(path), false, MOST_LINKS)
    }

    /// As [`Self::directory`], but neither it nor any of its parents may be a link.
    pub(super) fn ordinary_directory(&self, path: &Path) -> Result<OwnedFd, StartError> {
        let path = without_dots(path);
        let step = || format!("open {}", path.display());
        let open = || self.resolve(&path, OFlag::O_PATH, ResolveFlag::RESOLVE_NO_SYMLINKS);
        let opened = match open() {
            // Looked at again: what is there by then must be no link either.
            Err(Errno::ENOENT) => self.directory(&path).step(step).and_then(|_| open().step(step)),
            Err(Errno::ELOOP) => {
                Err(StartError::impossible(step(), "it is or lies behind a symbolic link of the image"))
            }
            result => result.step(step),
        }?;
        if !is_directory(&opened).step(step)? {
            return Err(StartError::impossible(step(), "it is not a directory"));
        }
        Ok(opened)
    }

    /// Attaches a detached mount onto something opened beneath this root.
    pub fn attach(&self, mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
        if same_file(&target, &self.top)? {
            return Err(io::Error::other("a mount on the container's root would hide the image"));
        }
        sys::attach_mount(mount, target)
    }

    /// `path` has no dots.
    fn resolve(&self, path: &Path, flags: OFlag, how: ResolveFlag) -> Result<OwnedFd, Errno> {
        let own = self.kernels_own.iter().rev();
        let (from, path) = own
            .filter_map(|(place, mount)| Some((mount, path.strip_prefix(place).ok()?)))
            .next()
            .unwrap_or((&self.top, path));
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(how | ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        loop {
            match openat2(from, path, how) {
                // A rename on the host happened meanwhile, and a path went through `..`: openat2(2).
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Makes the missing parts: directories, and at the end a directory or an empty file.
    fn open_or_make(&self, path: &Path, directory: bool, links: u32) -> io::Result<OwnedFd> {
        match self.resolve(path, OFlag::O_PATH, ResolveFlag::empty()) {
            Err(Errno::ENOENT) => {}
            result => return Ok(result?),
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::ENOENT.into());
        };
        let parent_fd = self.open_or_make(parent, true, links)?;
        let made = if directory {
            mkdirat(&parent_fd, name, Mode::from_bits_truncate(0o755))
        } else {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            nix::fcntl::openat(&parent_fd, name, flags, Mode::from_bits_truncate(0o644)).map(drop)
        };
        match made {
            Ok(()) => Ok(self.resolve(path, OFlag::O_PATH, ResolveFlag::empty())?),
            // A link to nowhere: make what it points to.
            Err(Errno::EEXIST) if links > 0 => {
                let link = match nix::fcntl::readlinkat(&parent_fd, name) {
                    // Not a link: somebody else made it first.
                    Err(Errno::EINVAL) => return Ok(self.resolve(path, OFlag::O_PATH, ResolveFlag::empty())?),
                    link => link?,
                };
                self.open_or_make(&without_dots(&parent.join(link)), directory, links - 1)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Absolute and without `.` and `..`, the latter taken by name as a shell would: these paths come from the spec.
pub(super) fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

fn same_file(a: impl AsFd, b: impl AsFd) -> io::Result<bool> {
    let (a, b) = (fstat(a)?, fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

pub(super) fn file_type(fd: impl AsFd) -> io::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT)
}

pub(super) fn is_directory(fd: impl AsFd) -> io::Result<bool> {
    Ok(file_type(fd)? == SFlag::S_IFDIR)
}
