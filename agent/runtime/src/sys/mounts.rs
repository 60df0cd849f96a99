//! Mounting by descriptor: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2).

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{NixPath, libc};

use super::{c_string, check, descriptor};

pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;
pub const MOUNT_ATTR_ATIME: u64 = 0x70;
pub const MOUNT_ATTR_RELATIME: u64 = 0;
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
pub const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
pub const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
pub const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;

/// A file system in the making: configured by key and value, then turned into a mount that is attached nowhere yet.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    pub fn open(kind: &str) -> io::Result<Self> {
        let kind = c_string(kind)?;
        // SAFETY: `kind` is a terminated string that outlives the call.
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    pub fn set(&self, key: &str, value: &str) -> io::Result<()> {
        let (key, value) = (c_string(key)?, c_string(value)?);
        self.configure(FSCONFIG_SET_STRING, Some(&key), Some(&value))
    }

    pub fn set_flag(&self, key: &str) -> io::Result<()> {
        self.configure(FSCONFIG_SET_FLAG, Some(&c_string(key)?), None)
    }

    /// Makes the file system and its detached mount with the given `MOUNT_ATTR_*`.
    pub fn mount(&self, attributes: u64) -> io::Result<OwnedFd> {
        self.configure(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: plain integers.
        descriptor(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
    }

    /// What the kernel said about this context since the last time, one message a line: fsopen(2).
    pub fn messages(&self) -> String {
        let mut lines = Vec::new();
        let mut message = [0; 512];
        // Each read gives one message, and fails when there is none.
        while let Ok(length) = nix::unistd::read(&self.0, &mut message) {
            let text = String::from_utf8_lossy(&message[..length]);
            // How grave it is comes first: a letter.
            let words = ["e ", "w ", "i "].into_iter().find_map(|level| text.strip_prefix(level));
            lines.push(words.unwrap_or(&text).trim().to_owned());
        }
        lines.join("\n")
    }

    fn configure(&self, command: libc::c_uint, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: both strings are terminated, or null where the command wants none, and outlive the call.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, pointer(key), pointer(value), 0)
        })
        .map(drop)
    }
}

/// A detached copy of the mount at `path`, with all below it when `recursive`.
pub fn clone_mount(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    open_tree(None, path, recursive)
}

/// As [`clone_mount`], of what an open descriptor shows.
pub fn clone_mount_of(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open_tree(Some(fd), Path::new(""), false)
}

/// A detached copy of the mount of one device, which lets nobody change the node itself: a container's root may
/// otherwise chmod(2) the host's. Reading and writing the device are not affected by `ro`.
pub fn clone_device(path: &Path) -> io::Result<OwnedFd> {
    let mount = clone_mount(path, false)?;
    set_mount_attributes(&mount, MOUNT_ATTR_RDONLY, 0, false)?;
    Ok(mount)
}

/// The host's `/dev/null` for reading and writing, through such a mount: fchmod(2) works on any descriptor.
pub fn open_null() -> io::Result<File> {
    let mount = clone_device(Path::new("/dev/null"))?;
    File::options().read(true).write(true).open(format!("/proc/self/fd/{}", mount.as_raw_fd()))
}

fn open_tree(at: Option<BorrowedFd<'_>>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    if at.is_some() {
        flags |= libc::AT_EMPTY_PATH as libc::c_uint;
    }
    let at = at.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    path.with_nix_path(|path| {
        // SAFETY: `path` is a terminated string that outlives the call.
        descriptor(unsafe { libc::syscall(libc::SYS_open_tree, at, path.as_ptr(), flags) })
    })?
}

/// Attaches a detached mount onto what `target` shows.
pub fn attach_mount(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    // SAFETY: both paths are empty terminated strings; the descriptors are borrowed for the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            target.as_fd().as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .map(drop)
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What mount_setattr(2) may do to a mount at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountChange<'a> {
    pub set: u64,
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave it.
    pub propagation: u64,
    /// The user namespace through which owners are seen.
    pub id_map: Option<BorrowedFd<'a>>,
}

pub fn change_mount(mount: impl AsFd, change: MountChange<'_>, recursive: bool) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: change.set | change.id_map.map_or(0, |_| MOUNT_ATTR_IDMAP),
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: change.id_map.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` has the layout of struct mount_attr (first version) and its size is passed along.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// As [`clone_mount_of`], with all that is mounted below.
pub fn clone_tree_of(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open_tree(Some(fd), Path::new(""), true)
}

/// Adds `MOUNT_ATTR_*` to a mount, and sets its propagation (`MS_PRIVATE`, ...) unless that is 0.
pub fn set_mount_attributes(mount: impl AsFd, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    change_mount(mount, MountChange { set, propagation, ..MountChange::default() }, recursive)
}
