//! A container's files as a tar stream.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat, major, minor},
    unistd::{Whence, lseek64},
};
use tar::EntryType;
use xattr::FileExt as _;

use super::{
    Layers, Level, names,
    tar::{Head, Stretch, TarWriter},
};
use crate::image::beneath::{file_type, is_dir, is_whiteout};

const BUFFER: usize = 128 << 10;
/// The holes of a smaller file are written as the zeros they read as.
const WORTH_IT: u64 = 1 << 20;
/// Stretches of data in one file that are told apart; behind them it is written whole.
const MAX_STRETCHES: usize = 10_000;
/// Files with several names that are remembered; further ones are written once for each name.
const MAX_LINKED: usize = 100_000;

impl Layers {
    /// All files, as the container sees them without what is mounted over them. Sockets are left out, as tar has no
    /// place for them; of a file that shrinks meanwhile the rest is zeros.
    pub(crate) fn export(&self, out: impl Write) -> io::Result<()> {
        let mut export = Export::new(self, out);
        let mut levels: Vec<Level<(usize, FileStat)>> = vec![self.level(PathBuf::new(), &self.all())?];
        while let Some(level) = levels.last_mut() {
            let Some((name, (layer, stat))) = level.names.next() else {
                levels.pop();
                continue;
            };
            let path = level.path.join(name);
            export.add(layer, &path, &stat)?;
            if is_dir(&stat) {
                let among = level.among.clone();
                levels.push(self.level(path, &among)?);
            }
        }
        export.tar.finish()?;
        Ok(())
    }

    fn level(&self, path: PathBuf, among: &[usize]) -> io::Result<Level<(usize, FileStat)>> {
        let dirs = self.directories(&path, among)?;
        let mut found = names(&dirs)?;
        found.retain(|_, (_, stat)| !is_whiteout(stat));
        Ok(Level { path, among: dirs.iter().map(|(layer, _)| *layer).collect(), names: found.into_iter() })
    }
}

pub(super) struct Export<'a, W> {
    layers: &'a Layers,
    pub(super) tar: TarWriter<W>,
    /// Holes are written as the zeros they read as.
    pub(super) dense: bool,
    /// By layer, device and inode: the first name.
    linked: HashMap<(usize, u64, u64), PathBuf>,
}

impl<'a, W: Write> Export<'a, W> {
    pub(super) fn new(layers: &'a Layers, out: W) -> Self {
        Self { layers, tar: TarWriter::new(out), dense: false, linked: HashMap::new() }
    }

    pub(super) fn add(&mut self, layer: usize, path: &Path, stat: &FileStat) -> io::Result<()> {
        let kind = match file_type(stat) {
            SFlag::S_IFREG => EntryType::Regular,
            SFlag::S_IFDIR => EntryType::Directory,
            SFlag::S_IFLNK => EntryType::Symlink,
            SFlag::S_IFIFO => EntryType::Fifo,
            SFlag::S_IFCHR => EntryType::Char,
            SFlag::S_IFBLK => EntryType::Block,
            _ => return Ok(()),
        };
        let mut head = Head {
            kind,
            path: path.as_os_str().as_bytes().to_vec(),
            link: Vec::new(),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: u64::try_from(stat.st_mtime).unwrap_or(0),
            device: (0, 0),
            xattrs: Vec::new(),
        };
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        match kind {
            EntryType::Regular => return self.add_file(layer, path, stat, head),
            EntryType::Directory => {
                head.path.push(b'/');
                head.xattrs = self.layers.0[layer].dir(path).map(|dir| attributes(&dir)).unwrap_or_default();
            }
            EntryType::Symlink => match self.link(layer, path) {
                Ok(target) => head.link = target,
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(error),
            },
            EntryType::Char | EntryType::Block => {
                head.device = (number(major(stat.st_rdev)), number(minor(stat.st_rdev)));
            }
            _ => {}
        }
        self.tar.head(&head, 0).map(drop)
    }

    fn add_file(&mut self, layer: usize, path: &Path, stat: &FileStat, mut head: Head) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let key = (layer, stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&key) {
                let link = first.as_os_str().as_bytes().to_vec();
                return self.tar.head(&Head { kind: EntryType::Link, link, ..head }, 0).map(drop);
            }
            if self.linked.len() < MAX_LINKED {
                self.linked.insert(key, path.to_owned());
            }
        }
        let file = match self.open(layer, path) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        head.xattrs = attributes(&file);
        let size = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
        let has_holes =
            !self.dense && size >= WORTH_IT && u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        if has_holes {
            let stretches = stretches(&file, size)?;
            let stored = self.tar.sparse(&head, size, &stretches)?;
            for (at, length) in stretches {
                copy(&file, at, length, self.tar.out())?;
            }
            return self.tar.pad(stored);
        }
        copy(&file, 0, size, self.tar.head(&head, size)?)?;
        self.tar.pad(size)
    }

    /// `None` for what is no plain file by now. Looked at before it is opened: opening a device or a fifo does things.
    fn open(&self, layer: usize, path: &Path) -> io::Result<Option<File>> {
        let dir = self.parent(layer, path)?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = openat(&dir, path.file_name().unwrap_or_default(), flags, Mode::empty())?;
        if file_type(&fstat(&found)?) != SFlag::S_IFREG {
            return Ok(None);
        }
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map(Some)
    }

    fn link(&self, layer: usize, path: &Path) -> io::Result<Vec<u8>> {
        let dir = self.parent(layer, path)?;
        Ok(readlinkat(&dir, path.file_name().unwrap_or_default())?.as_bytes().to_vec())
    }

    fn parent(&self, layer: usize, path: &Path) -> io::Result<OwnedFd> {
        Ok(self.layers.0[layer].at(path.parent().unwrap_or(Path::new("")))?)
    }
}

/// Exactly so many bytes.
fn copy(file: &File, mut at: u64, length: u64, out: &mut impl Write) -> io::Result<()> {
    let end = at + length;
    let mut buffer = vec![0; BUFFER];
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
        let read = file.read_at(&mut buffer[..most], at)?;
        if read == 0 {
            io::copy(&mut io::repeat(0).take(end - at), out)?;
            break;
        }
        out.write_all(&buffer[..read])?;
        at += read as u64;
    }
    Ok(())
}

/// Where the file has data; at its end an empty one, so that its length is kept.
fn stretches(file: &File, size: u64) -> io::Result<Vec<Stretch>> {
    let mut file = file.try_clone()?;
    let offset = |number: u64| i64::try_from(number).map_err(io::Error::other);
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match lseek64(&file, offset(at)?, Whence::SeekData) {
            Ok(data) => u64::try_from(data).unwrap_or(0),
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        if data >= size {
            break;
        }
        let hole = match found.len() < MAX_STRETCHES {
            true => u64::try_from(lseek64(&file, offset(data)?, Whence::SeekHole)?).unwrap_or(size).min(size),
            false => size,
        };
        if hole <= data {
            break;
        }
        found.push((data, hole - data));
        at = hole;
    }
    if found.last().is_none_or(|(from, length)| from + length < size) {
        found.push((size, 0));
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(found)
}

/// Those that are the file's, not the layer's.
fn attributes(file: &File) -> Vec<(Vec<u8>, Vec<u8>)> {
    let ours = |name: &[u8]| name == b"security.capability" || name.starts_with(b"user.");
    let Ok(names) = file.list_xattr() else { return Vec::new() };
    let found = names.filter(|name| ours(name.as_bytes())).filter_map(|name| {
        let value = file.get_xattr(&name).ok().flatten()?;
        Some((name.as_bytes().to_vec(), value))
    });
    found.collect()
}

/// Removed, or replaced by something else, since it was listed.
fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP, Errno::EINVAL];
    error.raw_os_error().is_some_and(|number| gone.contains(&Errno::from_raw(number)))
}
