//! Makes files beneath one directory, for names that an attacker chose.
//!
//! Guarantees: a path reaches nothing outside the root. It is taken apart here ([`EntryPath`]: no `..`, no leading
//! slash), its directory is opened by openat2(2) with `RESOLVE_BENEATH` and without following any symbolic link, and
//! the last part is made or removed relative to that directory by calls that do not follow links either.
//!
//! Overlayfs' own notation (kernel documentation, filesystems/overlayfs.rst): a whiteout is a character device 0/0, an
//! opaque directory has the attribute `trusted.overlay.opaque` = `y`.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, makedev, mkdirat, mknodat},
    unistd::{UnlinkatFlags, unlinkat},
};
use roster_tree::read::printable;
use xattr::FileExt;

use super::{error::ImageError, limits::Limits};

pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// A path from an archive: at least one plain name, none of them `.` or `..`. The root itself is [`None`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntryPath {
    path: PathBuf,
}

impl EntryPath {
    /// `Ok(None)` for the root. The error says what is wrong with the path.
    pub(super) fn parse(bytes: &[u8], limits: &Limits) -> Result<Option<Self>, String> {
        let wrong = |what: &str| Err(format!("the path {} {what}", printable(bytes)));
        if bytes.is_empty() {
            return wrong("is empty");
        }
        if bytes.starts_with(b"/") {
            return wrong("is absolute");
        }
        if bytes.contains(&0) {
            return wrong("contains a zero byte");
        }
        if bytes.len() > limits.path_bytes {
            return wrong("is too long");
        }
        let mut path = PathBuf::new();
        let mut depth = 0;
        for name in bytes.split(|&b| b == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return wrong("leads out of its directory by '..'"),
                name if name.len() > limits.name_bytes => return wrong("has a name that is too long"),
                name => path.push(OsStr::from_bytes(name)),
            }
            depth += 1;
        }
        match depth {
            0 => Ok(None),
            depth if depth > limits.path_depth => wrong("is nested too deep"),
            _ => Ok(Some(Self { path })),
        }
    }

    pub(super) fn as_path(&self) -> &Path {
        &self.path
    }

    pub(super) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    pub(super) fn parent(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}

/// A directory that nothing below reaches out of.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let fd = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| ImageError::io("open", path, errno))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// The directory itself, for its attributes.
    pub(crate) fn dir(&self, path: &Path) -> nix::Result<File> {
        self.resolve(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map(File::from)
    }

    /// The directory as a place to make things in.
    pub(crate) fn at(&self, path: &Path) -> nix::Result<OwnedFd> {
        self.resolve(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
        openat2(&self.fd, path, how)
    }

    /// An error of the host's, not of the archive.
    pub(super) fn error(&self, action: &'static str, path: &Path, errno: Errno) -> ImageError {
        ImageError::io(action, &self.path.join(path), errno)
    }
}

pub(crate) fn stat_at(dir: &OwnedFd, name: &OsStr) -> nix::Result<Option<FileStat>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

pub(crate) fn is_dir(stat: &FileStat) -> bool {
    file_type(stat) == SFlag::S_IFDIR
}

pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    file_type(stat) == SFlag::S_IFCHR && stat.st_rdev == makedev(0, 0)
}

pub(super) fn make_whiteout(dir: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    mknodat(dir, name, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))
}

pub(super) fn make_opaque(dir: &File) -> io::Result<()> {
    dir.set_xattr(OPAQUE, b"y")
}

/// Removes whatever has that name, with all that is in it.
pub(super) fn remove_at(dir: &OwnedFd, name: &OsStr, stat: &FileStat) -> io::Result<()> {
    if !is_dir(stat) {
        return Ok(unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?);
    }
    // Through the open directory: no other path is walked. remove_dir_all does not follow the links it meets.
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    std::fs::remove_dir_all(path)
}

/// A directory of mode 0700 that `dir` holds afterwards under that name. Instead of a whiteout it is opaque: what it
/// hid stays hidden. Anything else but a directory is in the way: `Err(EEXIST)`.
pub(super) fn make_dir(dir: &OwnedFd, name: &OsStr) -> io::Result<Made> {
    let mut opaque = false;
    match stat_at(dir, name)? {
        Some(stat) if is_dir(&stat) => return Ok(Made::WasThere),
        Some(stat) if is_whiteout(&stat) => {
            remove_at(dir, name, &stat)?;
            opaque = true;
        }
        Some(_) => return Err(Errno::EEXIST.into()),
        None => {}
    }
    mkdirat(dir, name, Mode::S_IRWXU)?;
    if opaque {
        make_opaque(&open_dir_at(dir, name)?)?;
    }
    Ok(Made::New)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    New,
    WasThere,
}

pub(crate) fn open_dir_at(dir: &OwnedFd, name: &OsStr) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::openat(dir, name, flags, Mode::empty()).map(File::from)
}

pub(super) fn stat(file: &impl AsFd) -> nix::Result<FileStat> {
    fstat(file)
}
