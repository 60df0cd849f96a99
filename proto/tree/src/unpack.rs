//! What a tar archive holds, as files and directories.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat},
};
use tar::EntryType;

use crate::{
    MAX_DEPTH, TreeError,
    read::{Bounds, Entry, TarError, TarReader, Trailer, printable},
    root::{Root, is_dir, kind, stat},
};

/// Entries of one archive.
const MAX_ENTRIES: u64 = 50_000_000;
/// Of one extended header: a path of the kernel's, and a few numbers.
const EXTENSION_BYTES: u64 = 64 * 1024;
/// PATH_MAX.
const MAX_PATH: usize = 4096;

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every entry, as it is called, into a directory that is there.
    Within(PathBuf),
    /// One file or directory. Into a directory that is there under its own name, or what is in it when its `contents` are
    /// meant; else in the place of what is there, or where nothing is yet.
    Copy { path: PathBuf, contents: bool },
}

/// Owners are kept where the caller may give files away.
pub fn unpack(root: &Root, target: &Target, from: impl Read) -> Result<(), TreeError> {
    let bounds = Bounds { entries: MAX_ENTRIES, extension_bytes: EXTENSION_BYTES };
    let mut archive = TarReader::new(from, Trailer::Required, bounds);
    let mut unpacking: Option<Unpacking> = None;
    if let Target::Within(path) = target {
        if !is_directory(root, path)? {
            return Err(TreeError::NoDirectory(path.clone()));
        }
        unpacking = Some(Unpacking::new(root, path.clone(), Renamed::Nothing));
    }
    while let Some(entry) = archive.next_entry()? {
        let name = Name::parse(&entry.path)?;
        let unpacking = match &mut unpacking {
            Some(unpacking) => unpacking,
            None => unpacking.insert(Unpacking::begin(root, target, &entry, &name)?),
        };
        unpacking.add(&entry, &name, &mut archive.content())?;
    }
    match unpacking {
        Some(unpacking) => unpacking.finish(),
        None => return Err(TreeError::Archive("there is nothing in it".to_owned())),
    }?;
    // To its very end: who writes it is not to be cut off.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TreeError::BrokenOff)?;
    Ok(())
}

impl From<TarError> for TreeError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Read(error) => TreeError::BrokenOff(error),
            error => TreeError::Archive(error.to_string()),
        }
    }
}

fn is_directory(root: &Root, path: &Path) -> Result<bool, TreeError> {
    match root.open(path, OFlag::O_PATH) {
        Ok(found) => Ok(is_dir(&stat(&found).map_err(|error| cannot("look at", path)(error.into()))?)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(false),
        Err(error) => Err(cannot("open", path)(error.into())),
    }
}

fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.to_owned();
    move |source| TreeError::Io { action, path, source }
}

/// An entry's path, taken apart: no `..`, not absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name(Vec<OsString>);

impl Name {
    fn parse(bytes: &[u8]) -> Result<Self, TreeError> {
        let wrong = |what: &str| Err(TreeError::Archive(format!("the path {} {what}", printable(bytes))));
        if bytes.is_empty() || bytes.len() > MAX_PATH || bytes.contains(&0) {
            return wrong("is no path");
        }
        if bytes.starts_with(b"/") {
            return wrong("is absolute");
        }
        let mut parts = Vec::new();
        for part in bytes.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return wrong("leads out of its directory by '..'"),
                part => parts.push(OsStr::from_bytes(part).to_owned()),
            }
        }
        if parts.len() > MAX_DEPTH {
            return wrong("is nested too deep");
        }
        Ok(Self(parts))
    }

    fn path(&self) -> PathBuf {
        self.0.iter().collect()
    }
}

/// What becomes of the one that all others are in.
#[derive(Debug)]
enum Renamed {
    Nothing,
    /// It is called so instead.
    Into {
        first: Option<OsString>,
        name: OsString,
    },
    /// What is in it goes where it would have gone.
    Away {
        first: Option<OsString>,
    },
    /// It keeps its name, and is the only one.
    Kept {
        first: Option<OsString>,
    },
}

struct Unpacking<'a> {
    root: &'a Root,
    base: PathBuf,
    renamed: Renamed,
    /// Directories whose times are set when all that is in them is made, each in the one before it.
    open: Vec<(PathBuf, (i64, u32))>,
}

impl<'a> Unpacking<'a> {
    fn new(root: &'a Root, base: PathBuf, renamed: Renamed) -> Self {
        Self { root, base, renamed, open: Vec::new() }
    }

    /// Where a copy goes depends on what it is of and on what is there, as with cp(1) and Docker's.
    fn begin(root: &'a Root, target: &Target, entry: &Entry, name: &Name) -> Result<Self, TreeError> {
        let Target::Copy { path, contents } = target else {
            return Err(TreeError::Archive("there is nowhere for it to go".to_owned()));
        };
        let first = name.0.first().cloned();
        let of_directory = entry.kind == EntryType::Directory;
        if name.0.len() > 1 {
            return Err(TreeError::Archive(format!("{} comes before what it is in", printable(&entry.path))));
        }
        if is_directory(root, path)? {
            let renamed = match *contents && of_directory {
                true => Renamed::Away { first },
                false => Renamed::Kept { first },
            };
            return Ok(Self::new(root, path.clone(), renamed));
        }
        let text = path.as_os_str().as_bytes();
        let Some(new) = path.file_name().filter(|_| of_directory || !text.ends_with(b"/")) else {
            return Err(TreeError::NoDirectory(path.clone()));
        };
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        if !is_directory(root, &parent)? {
            return Err(TreeError::NoDirectory(parent));
        }
        if of_directory && root.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW).is_ok() {
            return Err(TreeError::OntoFile(path.clone()));
        }
        let renamed = Renamed::Into { first, name: new.to_owned() };
        Ok(Self::new(root, parent, renamed))
    }

    /// Below `base`.
    fn place_of(&self, entry: &Name) -> Result<Name, TreeError> {
        let only = |first: &Option<OsString>| match entry.0.first() == first.as_ref() || first.is_none() {
            true => Ok(()),
            false => Err(TreeError::Archive(format!("{} is not part of what is copied", entry.path().display()))),
        };
        Ok(match &self.renamed {
            Renamed::Nothing => entry.clone(),
            Renamed::Kept { first } => {
                only(first)?;
                entry.clone()
            }
            Renamed::Away { first } => {
                only(first)?;
                Name(entry.0.iter().skip(usize::from(first.is_some())).cloned().collect())
            }
            Renamed::Into { first, name } => {
                only(first)?;
                let rest = entry.0.iter().skip(usize::from(first.is_some())).cloned();
                Name(std::iter::once(name.clone()).chain(rest).collect())
            }
        })
    }

    fn add(&mut self, entry: &Entry, name: &Name, content: &mut impl Read) -> Result<(), TreeError> {
        let place = self.place_of(name)?;
        let path = place.path();
        self.close_others(&path)?;
        let Some(last) = place.0.last() else {
            // The directory that all goes into is there already, and stays as it is.
            return Ok(());
        };
        let parent = self.base.join(path.parent().unwrap_or(Path::new("")));
        let parent = self.root.open(&parent, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(|error| match error {
            Errno::ENOENT => TreeError::NoDirectory(parent.clone()),
            Errno::ENOTDIR | Errno::ELOOP => TreeError::InTheWay(parent.clone()),
            error => cannot("open", &parent)(error.into()),
        })?;
        let shown = self.base.join(&path);
        let failed = |action| {
            let shown = shown.clone();
            move |error: Errno| cannot(action, &shown)(error.into())
        };
        match entry.kind {
            EntryType::Directory => {
                self.make_directory(&parent, last, entry, &shown)?;
                self.open.push((path, entry.mtime));
                return Ok(());
            }
            EntryType::Regular | EntryType::Continuous => {
                clear(&parent, last, &shown)?;
                return make_file(&parent, last, entry, content, &shown);
            }
            EntryType::Symlink => {
                clear(&parent, last, &shown)?;
                symlinkat(OsStr::from_bytes(&entry.link), &parent, last.as_os_str())
                    .map_err(failed("make the link"))?;
            }
            EntryType::Fifo => {
                clear(&parent, last, &shown)?;
                mkfifoat(&parent, last.as_os_str(), Mode::S_IRUSR).map_err(failed("make the named pipe"))?;
            }
            EntryType::Link => {
                // To what came before under the name it says, wherever that went.
                let to = self.place_of(&Name::parse(&entry.link)?)?;
                let (Some(name), to) = (to.0.last(), to.path()) else {
                    return Err(TreeError::Archive(format!("{} is a link to nothing", printable(&entry.path))));
                };
                let from = self.base.join(to.parent().unwrap_or(Path::new("")));
                let from = self.root.open(&from, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(failed("link"))?;
                clear(&parent, last, &shown)?;
                linkat(&from, name.as_os_str(), &parent, last.as_os_str(), LinkatFlags::empty())
                    .map_err(failed("link"))?;
                // It looks as the other does.
                return Ok(());
            }
            _ => return Err(TreeError::Unfit(PathBuf::from(OsStr::from_bytes(&entry.path)))),
        }
        let follow_none = AtFlags::AT_SYMLINK_NOFOLLOW;
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        may_not(fchownat(&parent, last.as_os_str(), uid, gid, follow_none)).map_err(failed("give away"))?;
        if entry.kind == EntryType::Fifo {
            set_mode_of_pipe(&parent, last, entry).map_err(cannot("give its mode to", &shown))?;
        }
        let time = time(entry.mtime);
        utimensat(&parent, last.as_os_str(), &time, &time, UtimensatFlags::NoFollowSymlink).map_err(failed("date"))
    }

    fn make_directory(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry, shown: &Path) -> Result<(), TreeError> {
        let failed = |action| move |error: Errno| cannot(action, shown)(error.into());
        match mkdirat(parent, name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed("make the directory")(error)),
        }
        // One that is there may be behind a link, where links are followed.
        let made = self.root.open(shown, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(|error| match error {
            Errno::ENOTDIR | Errno::ELOOP => TreeError::InTheWay(shown.to_owned()),
            error => failed("open")(error),
        })?;
        look(&made, entry).map_err(failed("give its owner and mode to"))
    }

    /// The times of directories that are complete.
    fn close_others(&mut self, next: &Path) -> Result<(), TreeError> {
        while let Some((path, mtime)) = self.open.pop_if(|(path, _)| !next.starts_with(path)) {
            self.date(&path, mtime)?;
        }
        Ok(())
    }

    fn date(&self, path: &Path, mtime: (i64, u32)) -> Result<(), TreeError> {
        let path = self.base.join(path);
        match self.root.open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(directory) => {
                let time = time(mtime);
                futimens(&directory, &time, &time).map_err(|error| cannot("date", &path)(error.into()))
            }
            // Somebody took it away meanwhile.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
            Err(error) => Err(cannot("date", &path)(error.into())),
        }
    }

    fn finish(mut self) -> Result<(), TreeError> {
        while let Some((path, mtime)) = self.open.pop() {
            self.date(&path, mtime)?;
        }
        Ok(())
    }
}

/// Makes room for what is to have that name; a directory stays.
fn clear(parent: &OwnedFd, name: &OsStr, shown: &Path) -> Result<(), TreeError> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => Err(TreeError::OntoDirectory(shown.to_owned())),
        Err(error) => Err(cannot("replace", shown)(error.into())),
    }
}

fn make_file(
    parent: &OwnedFd,
    name: &OsStr,
    entry: &Entry,
    content: &mut impl Read,
    shown: &Path,
) -> Result<(), TreeError> {
    let failed = |action| move |error: Errno| cannot(action, shown)(error.into());
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("make"))?;
    let mut file = File::from(made);
    let mut from = Source { content, failed: None };
    let copied = io::copy(&mut from, &mut file);
    if let Some(error) = from.failed {
        return Err(TreeError::BrokenOff(error));
    }
    copied.map_err(cannot("write", shown))?;
    let made = OwnedFd::from(file);
    look(&made, entry).map_err(failed("give its owner and mode to"))?;
    let time = time(entry.mtime);
    futimens(&made, &time, &time).map_err(failed("date"))
}

/// Of the very one that is looked at: by its name it could be a link by now, to anywhere.
fn set_mode_of_pipe(parent: &OwnedFd, name: &OsStr, entry: &Entry) -> io::Result<()> {
    let found = openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    if kind(&stat(&found)?) != SFlag::S_IFIFO {
        return Ok(());
    }
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    fs::set_permissions(path, fs::Permissions::from_mode(entry.mode))
}

/// Tells a failure to read from one to write.
struct Source<'a, R> {
    content: &'a mut R,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.content.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failed = Some(error);
            }
            kind.into()
        })
    }
}

/// The owner first: giving a file away takes its setuid bit.
fn look(made: &OwnedFd, entry: &Entry) -> nix::Result<()> {
    may_not(fchown(made, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))))?;
    fchmod(made, mode(entry))
}

/// Who is not root keeps what they make, as with tar(1).
fn may_not(given: nix::Result<()>) -> nix::Result<()> {
    match given {
        Err(Errno::EPERM) if !nix::unistd::geteuid().is_root() => Ok(()),
        given => given,
    }
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_bits_truncate(entry.mode)
}

fn time((seconds, nanoseconds): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, nanoseconds.into())
}
