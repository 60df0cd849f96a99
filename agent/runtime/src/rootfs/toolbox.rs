//! The host's programs in the hands of somebody who looks into a container, which may have none of its own.
//!
//! A dynamically linked program finds its interpreter and its libraries by absolute paths, so it works only where
//! `/usr`, `/bin`, `/lib` and their like are those of its own host. But whoever looks into a container wants to say
//! `cat /etc/passwd` and mean the container's. So neither of the two is the root, but a third one that nobody else has:
//!
//! ```text
//! /usr /bin /sbin /lib*       the host's programs and libraries, read-only
//! /etc /proc /app ...         everything else at the top of the container's root, with all that is mounted there
//! /container                  the container's whole root, where its own /usr is too
//! ```
//!
//! It is made in a mount namespace of its own, by a process that the container's processes cannot name yet: it is not
//! born into their pid namespace.
//!
//! Guarantees: of the host nothing is shown but these directories, without what is mounted below them (so neither
//! /etc nor /var nor /run nor /root); nothing can be written to them, by no capability: they are shown through an
//! overlay that has no upper layer, so that even a mount made writable again leads to no file of the host's. Nothing is
//! made, mounted or changed in the container. No path of the container is followed: what is at its top is opened
//! without links, by descriptor.
//!
//! While somebody looks, processes of the container that may trace his can see the host's programs through them.
//! Absent: names that appear at the top of the container's root later; they are below /container.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, mkdirat},
    unistd::symlinkat,
};

use super::{change, root::file_type};
use crate::{
    error::{StartError, Step},
    sys::{self, FsContext, MountChange},
};

/// Where programs and their libraries are, on hosts with one /usr and on others.
const PLACES: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Where the shell may be.
const SHELLS: [&str; 2] = ["/usr/bin/sh", "/bin/sh"];
/// Of the container's root.
const CONTAINER: &str = "container";
/// Entries at the top of a container's root that are shown.
const MOST: usize = 1000;
/// What programs of the host are looked for in.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug)]
enum Place {
    /// As `bin` on a host where it leads to `usr/bin`.
    Link(PathBuf),
    /// A mount that is attached nowhere yet.
    Directory(OwnedFd),
}

/// Taken from the host, to be entered in a container.
#[derive(Debug)]
pub struct Toolbox(Vec<(&'static str, Place)>);

impl Toolbox {
    /// To be called on the host. `empty` is a directory with nothing in it: an overlay needs two layers.
    pub fn of_host(empty: &Path) -> Result<Self, StartError> {
        if !SHELLS.iter().any(|shell| Path::new(shell).exists()) {
            let places = SHELLS.join(" nor ");
            let reason = format!("this node has neither {places}: install a shell there");
            return Err(StartError::impossible("looking into the container with the node's own programs", reason));
        }
        let mut places = Vec::new();
        for name in PLACES {
            let path = Path::new("/").join(name);
            let step = || format!("open {} of the host", path.display());
            match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(found) if found.is_symlink() => {
                    places.push((name, Place::Link(fs::read_link(&path).step(step)?)));
                }
                Ok(found) if found.is_dir() => {
                    let shown = read_only(&path, empty).step(|| format!("show {} of the host", path.display()))?;
                    places.push((name, Place::Directory(shown)));
                }
                found => _ = found.step(step)?,
            }
        }
        Ok(Self(places))
    }

    /// Gives the calling process the root described above. It must be in the container's mount namespace, or in its own
    /// with the container's root.
    pub(crate) fn enter(self) -> Result<(), StartError> {
        let step = || "make a root with the host's programs".to_owned();
        unshare(CloneFlags::CLONE_NEWNS).step(|| "leave the container's mount namespace".to_owned())?;
        // What is mounted here from now on is nobody else's.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).step(step)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let container = open("/", flags, Mode::empty()).step(step)?;
        let tmpfs = FsContext::open("tmpfs").step(step)?;
        tmpfs.set("mode", "755").step(step)?;
        let root = tmpfs.mount(sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV).step(step)?;
        // Before anything is attached to it: what is attached nowhere can have nothing attached to it on older kernels.
        // Its copies are taken first, or they would show it.
        let entries = entries(&container).step(|| "read the top of the container's root".to_owned())?;
        let whole = sys::clone_tree_of(container.as_fd()).step(step)?;
        sys::attach_mount(&root, &container).step(step)?;
        for (name, place) in self.0 {
            let step = || format!("show /{name} of the host");
            match place {
                Place::Link(to) => symlinkat(&to, &root, name).step(step)?,
                Place::Directory(mount) => attach_directory(&root, OsStr::new(name), mount).step(step)?,
            }
        }
        attach_directory(&root, OsStr::new(CONTAINER), whole).step(step)?;
        for (name, entry) in entries {
            match show(&root, &name, entry) {
                // Removed since it was copied: an empty place is left of it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                shown => shown.step(|| format!("show {:?} of the container", Path::new("/").join(&name)))?,
            }
        }
        sys::change_mount(&root, MountChange { set: sys::MOUNT_ATTR_RDONLY, ..MountChange::default() }, false)
            .step(step)?;
        change::pivot(&root)
    }
}

/// One directory of the host's, as an overlay that cannot be written to.
fn read_only(path: &Path, empty: &Path) -> io::Result<OwnedFd> {
    let (top, empty) = (File::open(path)?, File::open(empty)?);
    let context = FsContext::open("overlay")?;
    let layers = format!("/proc/self/fd/{}:/proc/self/fd/{}", top.as_raw_fd(), empty.as_raw_fd());
    let mounted = context
        .set("lowerdir", &layers)
        .and_then(|()| context.mount(sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV));
    mounted.map_err(|error| match context.messages() {
        said if said.is_empty() => error,
        said => io::Error::new(error.kind(), format!("{error}: {said}")),
    })
}

/// What lies at the top of the container's root, but for what the host's programs stand in the place of.
enum Entry {
    Link(OsString),
    /// A mount that is attached nowhere yet, and whether it is a directory.
    Mount(OwnedFd, bool),
}

fn entries(container: &OwnedFd) -> io::Result<Vec<(OsString, Entry)>> {
    let mut found = Vec::new();
    let names = fs::read_dir("/")?.filter_map(|entry| entry.ok().map(|entry| entry.file_name()));
    let ours = |name: &OsString| name == CONTAINER || PLACES.iter().any(|place| name == place);
    for name in names.filter(|name| !ours(name)).take(MOST) {
        match entry(container, &name) {
            Ok(entry) => found.push((name, entry)),
            // Gone again, or another by now: it is below /container, whatever it is.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn entry(container: &OwnedFd, name: &OsStr) -> Result<Entry, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let opened = openat2(container, name, how)?;
    let kind = file_type(&opened).map_err(errno)?;
    if kind == SFlag::S_IFLNK {
        return readlinkat(&opened, "").map(Entry::Link);
    }
    let copy = sys::clone_tree_of(opened.as_fd()).map_err(errno)?;
    Ok(Entry::Mount(copy, kind == SFlag::S_IFDIR))
}

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

fn show(root: &OwnedFd, name: &OsStr, entry: Entry) -> io::Result<()> {
    match entry {
        Entry::Link(to) => Ok(symlinkat(to.as_os_str(), root, name)?),
        Entry::Mount(mount, true) => attach_directory(root, name, mount),
        Entry::Mount(mount, false) => {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let target = openat(root, name, flags, Mode::empty())?;
            sys::attach_mount(mount, target)
        }
    }
}

fn attach_directory(root: &OwnedFd, name: &OsStr, mount: OwnedFd) -> io::Result<()> {
    mkdirat(root, name, Mode::from_bits_truncate(0o755))?;
    let target = openat(root, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    sys::attach_mount(mount, target)
}
