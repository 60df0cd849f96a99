//! A file, or a directory with all that is in it, as a tar archive.

use std::{
    ffi::{CStr, OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag},
};
use tar::{Builder, EntryType, Header};

use crate::{
    MAX_DEPTH, TreeError,
    root::{Root, kind, reopen, stat},
};

/// What an archive cannot hold, or a copy should not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    pub devices: u64,
    pub sockets: u64,
}

/// Writes what is at `path`, under its own name. With `follow`, a symbolic link there stands for what it leads to.
pub fn pack<W: Write>(root: &Root, path: &Path, follow: bool, to: W) -> Result<LeftOut, TreeError> {
    let text = path.as_os_str().as_bytes();
    let means_directory = text.ends_with(b"/") || text.ends_with(b"/.");
    let mut flags = OFlag::O_PATH;
    flags.set(OFlag::O_NOFOLLOW, !follow && !means_directory);
    let found = root.open(path, flags).map_err(|error| match error {
        Errno::ENOENT => TreeError::NotFound(path.to_owned()),
        Errno::ENOTDIR => TreeError::NotADirectory(path.to_owned()),
        error => cannot("open", path)(error.into()),
    })?;
    let archive = Builder::new(Valve { to, shut: false });
    let mut packing = Packing { archive, left_out: LeftOut::default() };
    // The root, and what ends in `..`, has no name.
    let name = path.file_name().unwrap_or(OsStr::new("."));
    let packed = match packing.add(found, Path::new(name), 0) {
        Ok(false) => Err(TreeError::Unfit(path.to_owned())),
        added => added,
    };
    if packed.is_err() {
        packing.archive.get_mut().shut = true;
    }
    packed?;
    let mut to = packing.archive.into_inner().map_err(TreeError::BrokenOff)?.to;
    to.flush().map_err(TreeError::BrokenOff)?;
    Ok(packing.left_out)
}

/// A builder that is dropped writes an archive's end, which would make a broken one look whole.
struct Valve<W> {
    to: W,
    shut: bool,
}

impl<W: Write> Write for Valve<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shut {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.to_owned();
    move |source| TreeError::Io { action, path, source }
}

struct Packing<W: Write> {
    archive: Builder<Valve<W>>,
    left_out: LeftOut,
}

impl<W: Write> Packing<W> {
    /// False: it was left out.
    fn add(&mut self, found: OwnedFd, name: &Path, depth: usize) -> Result<bool, TreeError> {
        let stat = stat(&found).map_err(|error| cannot("look at", name)(error.into()))?;
        match kind(&stat) {
            SFlag::S_IFREG => self.add_file(&found, name, &stat)?,
            SFlag::S_IFDIR => self.add_directory(&found, name, &stat, depth)?,
            SFlag::S_IFLNK => {
                let target = readlinkat(&found, "").map_err(|error| cannot("read the link", name)(error.into()))?;
                let mut header = header(&stat, EntryType::Symlink);
                self.archive.append_link(&mut header, name, Path::new(&target)).map_err(TreeError::BrokenOff)?;
            }
            SFlag::S_IFIFO => self.append(header(&stat, EntryType::Fifo), name, io::empty())?,
            SFlag::S_IFSOCK => {
                self.left_out.sockets += 1;
                return Ok(false);
            }
            _ => {
                self.left_out.devices += 1;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn append(&mut self, mut header: Header, name: &Path, content: impl Read) -> Result<(), TreeError> {
        self.archive.append_data(&mut header, name, content).map_err(TreeError::BrokenOff)
    }

    fn add_file(&mut self, found: &OwnedFd, name: &Path, stat: &FileStat) -> Result<(), TreeError> {
        let file = reopen(found, OFlag::O_NONBLOCK).map_err(cannot("read", name))?;
        let mut header = header(stat, EntryType::Regular);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        header.set_size(size);
        let mut failed = None;
        let content = Exactly { file, left: size, failed: &mut failed };
        let appended = self.append(header, name, content);
        match failed {
            Some(error) => Err(cannot("read", name)(error)),
            None => appended,
        }
    }

    fn add_directory(&mut self, found: &OwnedFd, name: &Path, stat: &FileStat, depth: usize) -> Result<(), TreeError> {
        if depth >= MAX_DEPTH {
            return Err(TreeError::TooDeep(name.to_owned()));
        }
        self.append(header(stat, EntryType::Directory), name, io::empty())?;
        let opened = reopen(found, OFlag::O_DIRECTORY).map_err(cannot("read", name))?;
        let failed = |error: Errno| cannot("read", name)(error.into());
        let mut directory = Dir::from_fd(opened.into()).map_err(failed)?;
        for entry in directory.iter() {
            let entry = entry.map_err(failed)?;
            let Some(child) = child_name(entry.file_name()) else { continue };
            let path = name.join(&child);
            match openat(found, child.as_os_str(), OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
            {
                Ok(found) => _ = self.add(found, &path, depth + 1)?,
                // It went while we looked.
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(cannot("open", &path)(error.into())),
            }
        }
        Ok(())
    }
}

fn child_name(name: &CStr) -> Option<OsString> {
    let name = name.to_bytes();
    (name != b"." && name != b"..").then(|| OsStr::from_bytes(name).to_owned())
}

fn header(stat: &FileStat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

/// As many bytes as were promised: a file that grows is cut, one that shrinks is filled up, as tar does it.
struct Exactly<'a> {
    file: File,
    left: u64,
    /// Told apart from a failure to write.
    failed: &'a mut Option<io::Error>,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = match self.file.read(&mut buffer[..most]) {
            Ok(0) => {
                buffer[..most].fill(0);
                most
            }
            Ok(read) => read,
            Err(error) => {
                let kind = error.kind();
                if kind != io::ErrorKind::Interrupted {
                    *self.failed = Some(error);
                }
                return Err(kind.into());
            }
        };
        self.left -= read as u64;
        Ok(read)
    }
}

/// Of a path as people write it: where it ends in `/.`, what is in the directory is meant, not the directory.
pub fn means_contents(path: &Path) -> bool {
    let text = path.as_os_str().as_bytes();
    text == b"." || text.ends_with(b"/.")
}

impl LeftOut {
    /// For a message, when there is something.
    pub fn words(self) -> Option<String> {
        let Self { devices, sockets } = self;
        (devices + sockets > 0).then(|| format!("left out: {devices} devices, {sockets} sockets"))
    }
}
