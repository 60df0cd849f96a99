//! One layer's tar stream becomes a directory that overlayfs can take as a lower directory.
//!
//! Guarantees: nothing is made outside the directory ([`super::beneath`]); owners, modes with setuid, times, hard
//! links, `security.capability` and `user.*` attributes are as the archive says; whiteouts take overlayfs' form. Where
//! a layer leaves out a directory it puts something into, that directory looks as it does in the layers below. A path
//! that goes through a symbolic link is refused, even one that stays inside: within a layer no builder writes that.
//!
//! Deliberately absent: device nodes. A container gets its `/dev` from the runtime, an image's own would open the
//! host's disks; they are left out with a debug line. The one exception is the character device 0/0, a whiteout.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufReader, Cursor, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, futimens, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, fchownat, linkat, mkfifoat, symlinkat},
};
use roster_tree::read::{Entry, TarReader, Trailer, printable};
use tar::EntryType;
use xattr::FileExt;

use super::{
    beneath::{self, EntryPath, Made, Root},
    digest::{Digest, HashingReader},
    error::ImageError,
    limits::{Limits, ZSTD_WINDOW_LOG},
};

const BUFFER: usize = 64 << 10;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// What aufs kept for itself.
const AUFS_MARK: &[u8] = b".wh..wh.";

/// What a layer turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Of the stream as it came, compressed or not, and its length.
    pub(super) blob: Digest,
    pub(super) blob_size: u64,
    /// Of the tar stream within: the layer's DiffID.
    pub(super) diff: Digest,
    /// Bytes of its files.
    pub(super) size: u64,
}

/// Unpacks a layer (tar; plain, gzip or zstd) into the empty directory `target`. `lowers` are the layers below,
/// lowest first. `budget` is what it may unpack to, and is used up by it.
pub(super) fn unpack(
    input: impl Read,
    place: &str,
    target: &Path,
    lowers: &[PathBuf],
    budget: &mut u64,
    limits: &Limits,
) -> Result<Unpacked, ImageError> {
    let failed = |error| ImageError::reading(place, error);
    let mut blob = HashingReader::new(input);
    let (diff, size) = {
        let plain = decompress(&mut blob).map_err(failed)?;
        let mut plain =
            HashingReader::new(Budgeted { inner: plain, left: budget, limit: limits.unpacked_bytes, place });
        let mut layer = Layer::begin(target, lowers, place, limits)?;
        let mut tar = TarReader::new(&mut plain, Trailer::Optional, limits.tar(limits.layer_entries));
        while let Some(entry) = tar.next_entry().map_err(|error| ImageError::tar(place, error))? {
            layer.add(&entry, &mut tar.content())?;
        }
        let size = layer.finish()?;
        io::copy(&mut plain, &mut io::sink()).map_err(failed)?;
        (plain.finish().0, size)
    };
    io::copy(&mut blob, &mut io::sink()).map_err(failed)?;
    let (blob, blob_size) = blob.finish();
    Ok(Unpacked { blob, blob_size, diff, size })
}

/// Tells gzip, zstd and plain by their first bytes: media types lie.
pub(super) fn decompress<'r>(mut input: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    let mut magic = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut magic)?;
    let is_gzip = magic.starts_with(&[0x1f, 0x8b]);
    let is_zstd = magic == [0x28, 0xb5, 0x2f, 0xfd];
    let whole = Cursor::new(magic).chain(input);
    if is_gzip {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, whole))));
    }
    if is_zstd {
        let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(BUFFER, whole))?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(BufReader::with_capacity(BUFFER, whole)))
}

/// Stops a stream that unpacks to more than it may.
#[derive(Debug)]
pub(super) struct Budgeted<'b, R> {
    pub(super) inner: R,
    pub(super) left: &'b mut u64,
    pub(super) limit: u64,
    pub(super) place: &'b str,
}

impl<R: Read> Read for Budgeted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => *self.left = left,
            None => {
                let what = format!("the unpacked size of {}", self.place);
                return Err(ImageError::TooLarge { what, limit: self.limit }.into());
            }
        }
        Ok(n)
    }
}

/// Owner, permission bits and time of something.
#[derive(Clone, Copy, Debug)]
struct Look {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: (i64, u32),
}

impl Look {
    fn of(entry: &Entry) -> Self {
        Self { uid: entry.uid, gid: entry.gid, mode: entry.mode, mtime: entry.mtime }
    }

    fn time(&self) -> TimeSpec {
        TimeSpec::new(self.mtime.0, i64::from(self.mtime.1))
    }
}

/// A layer being made.
#[derive(Debug)]
struct Layer<'l> {
    root: Root,
    lowers: &'l [PathBuf],
    place: &'l str,
    limits: &'l Limits,
    /// Times of directories: set at the end, for making something in a directory changes them.
    times: Vec<(PathBuf, (i64, u32))>,
    path_bytes: usize,
    size: u64,
    buffer: Box<[u8]>,
}

impl<'l> Layer<'l> {
    fn begin(target: &Path, lowers: &'l [PathBuf], place: &'l str, limits: &'l Limits) -> Result<Self, ImageError> {
        let mut layer = Self {
            root: Root::open(target)?,
            lowers,
            place,
            limits,
            times: Vec::new(),
            path_bytes: 0,
            size: 0,
            buffer: vec![0; BUFFER].into_boxed_slice(),
        };
        let look = layer.look_below(Path::new(""))?;
        layer.dress_dir(Path::new(""), look, &[])?;
        Ok(layer)
    }

    fn add(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), ImageError> {
        let Some(path) = EntryPath::parse(&entry.path, self.limits).map_err(|what| self.bad(what))? else {
            // The root itself. Only its looks can be given.
            return match entry.kind {
                EntryType::Directory => self.dress_dir(Path::new(""), Look::of(entry), &entry.xattrs),
                _ => Err(self.bad("its root is not a directory")),
            };
        };
        let name = path.name().as_bytes();
        if name == OPAQUE_MARK {
            return self.make_opaque(path.parent());
        }
        if name.starts_with(AUFS_MARK) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.add_whiteout(path.parent(), hidden);
        }
        match entry.kind {
            EntryType::Directory => self.add_dir(&path, entry),
            EntryType::Regular | EntryType::Continuous => self.add_file(&path, entry, content),
            EntryType::Symlink => self.add_symlink(&path, entry),
            EntryType::Link => self.add_hard_link(&path, entry),
            EntryType::Fifo => self.add_fifo(&path, entry),
            EntryType::Char if entry.device == (0, 0) => self.add_whiteout(path.parent(), name),
            EntryType::Char | EntryType::Block => {
                tracing::debug!(path = %path.as_path().display(), layer = self.place, "device node left out");
                Ok(())
            }
            kind => Err(self.bad(format!("{} is of a kind no image has ({kind:?})", printable(&entry.path)))),
        }
    }

    /// Sets the times that were put off; returns the bytes of the layer's files.
    fn finish(self) -> Result<u64, ImageError> {
        for (path, mtime) in &self.times {
            // A directory may have been replaced by something else since.
            let Ok(dir) = self.root.dir(path) else { continue };
            let time = TimeSpec::new(mtime.0, i64::from(mtime.1));
            futimens(&dir, &time, &time).map_err(|errno| self.root.error("set the time of", path, errno))?;
        }
        Ok(self.size)
    }

    fn add_dir(&mut self, path: &EntryPath, entry: &Entry) -> Result<(), ImageError> {
        let parent = self.parent(path.parent())?;
        match beneath::make_dir(&parent, path.name()) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {
                self.clear(&parent, path)?;
                beneath::make_dir(&parent, path.name())
                    .and_then(|_| beneath::make_opaque(&beneath::open_dir_at(&parent, path.name())?))
                    .map_err(|error| ImageError::io("make", path.as_path(), error))?;
            }
            Err(error) => return Err(ImageError::io("make", path.as_path(), error)),
        }
        self.dress_dir(path.as_path(), Look::of(entry), &entry.xattrs)
    }

    fn add_file(&mut self, path: &EntryPath, entry: &Entry, content: &mut impl Read) -> Result<(), ImageError> {
        let parent = self.parent(path.parent())?;
        self.clear(&parent, path)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = openat(&parent, path.name(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(File::from)
            .map_err(|errno| self.root.error("make", path.as_path(), errno))?;
        let mut left = entry.size;
        while left > 0 {
            let n = content.read(&mut self.buffer).map_err(|error| ImageError::reading(self.place, error))?;
            file.write_all(&self.buffer[..n]).map_err(|error| ImageError::io("write", path.as_path(), error))?;
            left -= n as u64;
        }
        self.size += entry.size;
        self.dress(&file, path.as_path(), Look::of(entry), &entry.xattrs)?;
        let time = Look::of(entry).time();
        futimens(&file, &time, &time).map_err(|errno| self.root.error("set the time of", path.as_path(), errno))
    }

    fn add_symlink(&mut self, path: &EntryPath, entry: &Entry) -> Result<(), ImageError> {
        if entry.link.is_empty() || entry.link.contains(&0) || entry.link.len() > self.limits.path_bytes {
            return Err(self.bad(format!("the symbolic link {} has an impossible target", printable(&entry.path))));
        }
        let parent = self.parent(path.parent())?;
        self.clear(&parent, path)?;
        symlinkat(OsStr::from_bytes(&entry.link), &parent, path.name())
            .map_err(|errno| self.root.error("make", path.as_path(), errno))?;
        self.dress_special(&parent, path, entry)
    }

    fn add_fifo(&mut self, path: &EntryPath, entry: &Entry) -> Result<(), ImageError> {
        let parent = self.parent(path.parent())?;
        self.clear(&parent, path)?;
        let failed = |errno| self.root.error("make", path.as_path(), errno);
        mkfifoat(&parent, path.name(), Mode::S_IRUSR).map_err(failed)?;
        self.dress_special(&parent, path, entry)?;
        // It is what was just made, so there is no link to follow.
        fchmodat(&parent, path.name(), Mode::from_bits_truncate(entry.mode), FchmodatFlags::FollowSymlink)
            .map_err(failed)
    }

    fn add_hard_link(&mut self, path: &EntryPath, entry: &Entry) -> Result<(), ImageError> {
        let wrong = |what: &str| {
            let (link, target) = (printable(&entry.path), printable(&entry.link));
            self.bad(format!("the hard link {link} to {target}: {what}"))
        };
        let target = EntryPath::parse(&entry.link, self.limits)
            .map_err(|what| wrong(&what))?
            .ok_or_else(|| wrong("a directory cannot be linked"))?;
        let target_dir = self.root.at(target.parent()).map_err(|errno| match errno {
            Errno::ELOOP | Errno::EXDEV => wrong("the way there goes through a symbolic link"),
            _ => wrong("there is no such file in this layer"),
        })?;
        match beneath::stat_at(&target_dir, target.name()) {
            Ok(Some(stat)) if beneath::is_dir(&stat) => return Err(wrong("a directory cannot be linked")),
            Ok(Some(stat)) if !beneath::is_whiteout(&stat) => {}
            Err(errno) => return Err(self.root.error("look up", target.as_path(), errno)),
            _ => return Err(wrong("there is no such file in this layer")),
        }
        if target == *path {
            return Ok(());
        }
        let parent = self.parent(path.parent())?;
        self.clear(&parent, path)?;
        linkat(&target_dir, target.name(), &parent, path.name(), AtFlags::empty()).map_err(|errno| match errno {
            // Clearing the way took the target with it.
            Errno::ENOENT => self.bad(format!("the hard link {} replaces its own target", printable(&entry.path))),
            errno => self.root.error("make", path.as_path(), errno),
        })
    }

    fn add_whiteout(&mut self, parent: &Path, hidden: &[u8]) -> Result<(), ImageError> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(self.bad(format!("a whiteout in {} hides no name", printable(parent.as_os_str().as_bytes()))));
        }
        let name = OsStr::from_bytes(hidden);
        let dir = self.parent(parent)?;
        let path = parent.join(name);
        let failed = |error: io::Error| ImageError::io("make", &path, error);
        // A whiteout hides only what the layers below have; this layer's own stays.
        match beneath::stat_at(&dir, name).map_err(|errno| failed(errno.into()))? {
            None => beneath::make_whiteout(&dir, name).map_err(|errno| failed(errno.into())),
            Some(stat) if beneath::is_dir(&stat) => beneath::open_dir_at(&dir, name)
                .map_err(io::Error::from)
                .and_then(|dir| beneath::make_opaque(&dir))
                .map_err(failed),
            Some(_) => Ok(()),
        }
    }

    fn make_opaque(&mut self, path: &Path) -> Result<(), ImageError> {
        self.parent(path)?;
        let dir = self.root.dir(path).map_err(|errno| self.root.error("open", path, errno))?;
        beneath::make_opaque(&dir).map_err(|error| ImageError::io("make opaque", path, error))
    }

    /// Opens a directory, making it and those above it where the layer left them out.
    fn parent(&mut self, path: &Path) -> Result<OwnedFd, ImageError> {
        match self.root.at(path) {
            Ok(dir) => return Ok(dir),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => return Err(self.way_error(path, errno)),
        }
        let mut reached = PathBuf::new();
        for name in path.iter() {
            let dir = self.root.at(&reached).map_err(|errno| self.way_error(path, errno))?;
            reached.push(name);
            match beneath::make_dir(&dir, name) {
                Ok(Made::WasThere) => {}
                Ok(Made::New) => {
                    let look = self.look_below(&reached)?;
                    self.dress_dir(&reached, look, &[])?;
                }
                Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {
                    return Err(self.way_error(&reached, Errno::ENOTDIR));
                }
                Err(error) => return Err(ImageError::io("make", &reached, error)),
            }
        }
        self.root.at(path).map_err(|errno| self.way_error(path, errno))
    }

    fn way_error(&self, path: &Path, errno: Errno) -> ImageError {
        let shown = printable(path.as_os_str().as_bytes());
        match errno {
            Errno::ELOOP | Errno::EXDEV => self.bad(format!("the way to {shown} goes through a symbolic link")),
            Errno::ENOTDIR => self.bad(format!("the way to {shown} goes through something that is no directory")),
            errno => self.root.error("open", path, errno),
        }
    }

    /// Removes what an entry replaces: the last entry of a name counts.
    fn clear(&mut self, parent: &OwnedFd, path: &EntryPath) -> Result<(), ImageError> {
        beneath::stat_at(parent, path.name())
            .map_err(io::Error::from)
            .and_then(|stat| stat.map_or(Ok(()), |stat| beneath::remove_at(parent, path.name(), &stat)))
            .map_err(|error| ImageError::io("replace", path.as_path(), error))
    }

    /// How a directory this layer does not describe looks in the layers below.
    fn look_below(&self, path: &Path) -> Result<Look, ImageError> {
        for lower in self.lowers.iter().rev() {
            match Root::open(lower)?.dir(path) {
                Ok(dir) => {
                    let stat = beneath::stat(&dir).map_err(|errno| self.root.error("look up", path, errno))?;
                    return Ok(Look {
                        uid: stat.st_uid,
                        gid: stat.st_gid,
                        mode: stat.st_mode & 0o7777,
                        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
                    });
                }
                Err(Errno::ENOENT) => {}
                Err(_) => break,
            }
        }
        Ok(Look { uid: 0, gid: 0, mode: 0o755, mtime: (0, 0) })
    }

    fn dress_dir(&mut self, path: &Path, look: Look, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), ImageError> {
        let dir = self.root.dir(path).map_err(|errno| self.way_error(path, errno))?;
        self.dress(&dir, path, look, xattrs)?;
        self.path_bytes += path.as_os_str().len() + size_of::<(PathBuf, (i64, u32))>();
        if self.path_bytes > self.limits.directory_path_bytes {
            let what = format!("the length of all directories' paths in {}", self.place);
            return Err(ImageError::TooLarge { what, limit: self.limits.directory_path_bytes as u64 });
        }
        self.times.push((path.to_owned(), look.mtime));
        Ok(())
    }

    /// Owner before mode and attributes: chown(2) clears setuid and file capabilities.
    fn dress(&self, file: &File, path: &Path, look: Look, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), ImageError> {
        fchown(file, Some(Uid::from_raw(look.uid)), Some(Gid::from_raw(look.gid)))
            .map_err(|errno| self.root.error("set the owner of", path, errno))?;
        fchmod(file, Mode::from_bits_truncate(look.mode))
            .map_err(|errno| self.root.error("set the mode of", path, errno))?;
        for (name, value) in xattrs {
            if !keeps_attribute(name) {
                tracing::debug!(path = %path.display(), attribute = %printable(name), "attribute left out");
                continue;
            }
            file.set_xattr(OsStr::from_bytes(name), value)
                .map_err(|error| ImageError::io("set an extended attribute of", path, error))?;
        }
        Ok(())
    }

    /// For what cannot be opened: symbolic links and fifos.
    fn dress_special(&self, parent: &OwnedFd, path: &EntryPath, entry: &Entry) -> Result<(), ImageError> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fchownat(parent, path.name(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| self.root.error("set the owner of", path.as_path(), errno))?;
        let time = Look::of(entry).time();
        utimensat(parent, path.name(), &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(|errno| self.root.error("set the time of", path.as_path(), errno))
    }

    fn bad(&self, what: impl Into<String>) -> ImageError {
        ImageError::bad(self.place, what)
    }
}

/// `trusted.*` would speak to overlayfs, `security.*` beyond file capabilities to the host's security module.
fn keeps_attribute(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}
