//! The container's file system: mounted in its own mount namespace, every target reached by descriptor.
//!
//! The image is a stranger's: any path in it may be a link. So no target is ever named to mount(2); each is opened
//! with openat2(2) below the new root, where even an absolute link stays inside, and mounts are attached to what was
//! opened. Layers are passed to overlayfs as `/proc/self/fd/N`, which keeps a hundred of them within mount(2)'s one
//! page of options and needs no escaping.
//!
//! Every mount is `nodev` except the six harmless devices, bound one by one, and `/dev/pts`: a container that may
//! make device nodes (Docker's default capabilities let it) still cannot open one. The six are the host's own nodes
//! and therefore bound read-only.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    libc,
    mount::{MntFlags, MsFlags, umount2},
    sys::stat::{Mode, SFlag, fstat, mkdirat},
    unistd::{fchdir, pivot_root},
};
use oci_spec::runtime::{Mount, Spec};

use super::sys;
use crate::runtime::linux::{
    record::BundleDir,
    report::{StartError, Step},
};

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
];
/// Links that are followed in turn while a missing mount target is made.
const MOST_LINKS: u32 = 16;

/// Mounts all the bundle wants and makes it the root of the calling process, which must have a new mount namespace.
pub(super) fn enter(bundle: &BundleDir, spec: &Spec) -> Result<(), StartError> {
    let no_mounts = Vec::new();
    let mounts = spec.mounts().as_ref().unwrap_or(&no_mounts);
    // Copied while they still have the host's propagation, which `rslave` and `rshared` carry on.
    let sources = mounts.iter().map(bind_source).collect::<Result<Vec<_>, _>>()?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .step(|| "make the mounts private".to_owned())?;
    let Some((root_mount, rest)) = mounts.split_first().filter(|(first, _)| first.destination() == Path::new("/"))
    else {
        return Err(StartError::impossible("a bundle without a mount on /", "the first mount must be the root's"));
    };
    let root = Root::mount(bundle, root_mount)?;
    for (mount, source) in rest.iter().zip(sources.into_iter().skip(1)) {
        root.mount_on(mount, source)?;
    }
    if let Some(process) = spec.process() {
        root.directory(process.cwd()).step(|| format!("make the working directory {}", process.cwd().display()))?;
    }
    if let Some(linux) = spec.linux() {
        root.make_readonly(linux.readonly_paths().as_deref().unwrap_or_default())?;
        root.mask(linux.masked_paths().as_deref().unwrap_or_default())?;
    }
    if spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true) {
        sys::set_mount_attributes(&root.0, sys::MOUNT_ATTR_RDONLY, 0, false)
            .step(|| "make the root read-only".to_owned())?;
    }
    root.pivot()
}

fn bind_source(mount: &Mount) -> Result<Option<OwnedFd>, StartError> {
    if !is_bind(mount) {
        return Ok(None);
    }
    let source = mount.source().as_deref().unwrap_or(Path::new("/"));
    let recursive = options(mount).any(|option| option == "rbind");
    match sys::clone_mount(source, recursive) {
        Ok(tree) => Ok(Some(tree)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StartError::impossible(
            format!("the bind mount on {}", mount.destination().display()),
            format!("its source {} does not exist on this node", source.display()),
        )),
        Err(error) => Err(error).step(|| format!("open the bind mount's source {}", source.display())),
    }
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// What mount options mean to the kernel: attributes, propagation, and the file system's own words.
#[derive(Default)]
struct Flags<'a> {
    attributes: u64,
    propagation: u64,
    recursive: bool,
    data: Vec<&'a str>,
}

impl<'a> Flags<'a> {
    fn of(mount: &'a Mount) -> Self {
        let mut flags = Self::default();
        for option in options(mount) {
            match option {
                "ro" => flags.attributes |= sys::MOUNT_ATTR_RDONLY,
                "nosuid" => flags.attributes |= sys::MOUNT_ATTR_NOSUID,
                "nodev" => flags.attributes |= sys::MOUNT_ATTR_NODEV,
                "noexec" => flags.attributes |= sys::MOUNT_ATTR_NOEXEC,
                "private" | "rprivate" => flags.propagation = MsFlags::MS_PRIVATE.bits(),
                "shared" | "rshared" => flags.propagation = MsFlags::MS_SHARED.bits(),
                "slave" | "rslave" => flags.propagation = MsFlags::MS_SLAVE.bits(),
                "rbind" => flags.recursive = true,
                "bind" | "rw" => {}
                other => flags.data.push(other),
            }
        }
        flags
    }
}

/// The mounted root, before it is anybody's.
struct Root(OwnedFd);

impl Root {
    fn mount(bundle: &BundleDir, mount: &Mount) -> Result<Self, StartError> {
        let target = bundle.rootfs();
        let overlay = Overlay::open(mount).step(|| "open the image's layers".to_owned())?;
        nix::mount::mount(Some("overlay"), &target, Some("overlay"), MsFlags::MS_NODEV, Some(overlay.data().as_str()))
            .step(|| "mount the image's layers".to_owned())?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(&target, flags, Mode::empty()).step(|| "open the new root".to_owned())?;
        Ok(Self(root))
    }

    fn mount_on(&self, mount: &Mount, source: Option<OwnedFd>) -> Result<(), StartError> {
        let step = || format!("mount {} on {}", mount.typ().as_deref().unwrap_or("?"), mount.destination().display());
        let flags = Flags::of(mount);
        let (tree, is_directory) = match source {
            Some(tree) => {
                sys::set_mount_attributes(&tree, flags.attributes, flags.propagation, flags.recursive).step(step)?;
                let mode = fstat(&tree).step(step)?.st_mode;
                (tree, SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
            }
            None => (new_file_system(mount, &flags).step(step)?, true),
        };
        let target = if is_directory { self.directory(mount.destination()) } else { self.file(mount.destination()) };
        let target = target.step(step)?;
        if same_file(&target, &self.0).step(step)? {
            return Err(StartError::impossible(step(), "a mount on the container's root would hide the image"));
        }
        sys::attach_mount(&tree, &target).step(step)?;
        // A /dev that the user binds is as the user wants it, and may be the host's own.
        if mount.destination() == Path::new("/dev") && !is_bind(mount) {
            fill_dev(&tree).step(|| "fill /dev".to_owned())?;
        }
        Ok(())
    }

    /// Opens what `path` is within this root.
    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.0, path, how)
    }

    fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_or_make(path, true, MOST_LINKS)
    }

    fn file(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_or_make(path, false, MOST_LINKS)
    }

    /// Makes the missing parts: directories, and at the end a directory or an empty file.
    fn open_or_make(&self, path: &Path, directory: bool, links: u32) -> io::Result<OwnedFd> {
        match self.open(path) {
            Err(Errno::ENOENT) => {}
            result => return Ok(result?),
        }
        let path = without_dots(path);
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
            Ok(()) => Ok(self.open(&path)?),
            // A link to nowhere: make what it points to.
            Err(Errno::EEXIST) if links > 0 => {
                let link = nix::fcntl::readlinkat(&parent_fd, name)?;
                self.open_or_make(&parent.join(link), directory, links - 1)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn make_readonly(&self, paths: &[String]) -> Result<(), StartError> {
        for path in paths {
            let step = || format!("make {path} read-only");
            let Some(target) = self.existing(path).step(step)? else { continue };
            let tree = sys::clone_mount_of(target.as_fd()).step(step)?;
            sys::set_mount_attributes(&tree, sys::MOUNT_ATTR_RDONLY, 0, false).step(step)?;
            sys::attach_mount(&tree, &target).step(step)?;
        }
        Ok(())
    }

    /// Covers directories with an empty read-only file system and files with /dev/null.
    fn mask(&self, paths: &[String]) -> Result<(), StartError> {
        let mut empty = None;
        for path in paths {
            let step = || format!("mask {path}");
            let Some(target) = self.existing(path).step(step)? else { continue };
            let mode = SFlag::from_bits_truncate(fstat(&target).step(step)?.st_mode) & SFlag::S_IFMT;
            let cover = if mode != SFlag::S_IFDIR {
                sys::clone_device(Path::new("/dev/null")).step(step)?
            } else if let Some(first) = &empty {
                sys::clone_mount_of(OwnedFd::as_fd(first)).step(step)?
            } else {
                let attributes = sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOSUID;
                sys::FsContext::open("tmpfs").and_then(|context| context.mount(attributes)).step(step)?
            };
            sys::attach_mount(&cover, &target).step(step)?;
            // Copied from where it is attached: before Linux 6.15 a detached mount cannot be.
            if mode == SFlag::S_IFDIR {
                empty.get_or_insert(cover);
            }
        }
        Ok(())
    }

    fn existing(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        match self.open(Path::new(path)) {
            Ok(target) => Ok(Some(target)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts the old root under the new one and takes it off again: no directory for it is needed, pivot_root(2).
    fn pivot(self) -> Result<(), StartError> {
        let step = || "change the root".to_owned();
        fchdir(&self.0).step(step)?;
        pivot_root(".", ".").step(step)?;
        umount2(".", MntFlags::MNT_DETACH).step(step)?;
        std::env::set_current_dir("/").step(step)
    }
}

/// Without `.` and `..`, the latter taken by name as a shell would: these paths come from the spec.
fn without_dots(path: &Path) -> PathBuf {
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

fn same_file(a: &OwnedFd, b: &OwnedFd) -> io::Result<bool> {
    let (a, b) = (fstat(a)?, fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// The open layers of an overlay.
struct Overlay {
    lower: Vec<File>,
    upper: File,
    work: File,
}

impl Overlay {
    fn open(mount: &Mount) -> io::Result<Self> {
        let all = |key: &str| {
            options(mount)
                .filter_map(|option| option.strip_prefix(key)?.strip_prefix('='))
                .map(|path| File::open(path).map_err(|error| io::Error::other(format!("{path}: {error}"))))
                .collect::<io::Result<Vec<_>>>()
        };
        let one = |key: &str| all(key)?.pop().ok_or_else(|| io::Error::other(format!("the overlay has no {key}")));
        Ok(Self { lower: all("lowerdir")?, upper: one("upperdir")?, work: one("workdir")? })
    }

    /// `volatile`: nothing of a container is meant to survive the host, so unmounting need not flush the disk.
    fn data(&self) -> String {
        let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        let lower: Vec<_> = self.lower.iter().map(path).collect();
        format!("volatile,lowerdir={},upperdir={},workdir={}", lower.join(":"), path(&self.upper), path(&self.work))
    }
}

fn new_file_system(mount: &Mount, flags: &Flags<'_>) -> io::Result<OwnedFd> {
    let context = sys::FsContext::open(mount.typ().as_deref().unwrap_or_default())?;
    for option in &flags.data {
        match option.split_once('=') {
            Some((key, value)) => context.set(key, value)?,
            None => context.set_flag(option)?,
        }
    }
    context.mount(flags.attributes)
}

/// Fills the tmpfs that is `/dev`. It must be attached: before Linux 6.15 nothing can be mounted on a detached mount.
fn fill_dev(dev: &OwnedFd) -> io::Result<()> {
    for device in DEVICES {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let target = nix::fcntl::openat(dev, device, flags, Mode::from_bits_truncate(0o666))?;
        let host = Path::new("/dev").join(device);
        if !is_character_device(&host)? {
            return Err(io::Error::other(format!("{} of the host is not a device", host.display())));
        }
        sys::attach_mount(sys::clone_device(&host)?, target)?;
    }
    for (to, name) in DEVICE_LINKS {
        nix::unistd::symlinkat(to, dev, name)?;
    }
    Ok(())
}

fn is_character_device(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.mode() & libc::S_IFMT == libc::S_IFCHR)
}
