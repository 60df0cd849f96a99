//! System calls that neither std nor nix wraps: mounting by descriptor, processes by descriptor, clone3.
//!
//! Every function here is one system call with types: no policy, no retries. Descriptors are always close-on-exec.
//! Sources: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2), clone3(2), pidfd_open(2).

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::{NixPath, libc};

pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x4;
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 0x8;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// A file system in the making: configured by key and value, then turned into a mount that is attached nowhere yet.
#[derive(Debug)]
pub(crate) struct FsContext(OwnedFd);

impl FsContext {
    pub(crate) fn open(kind: &str) -> io::Result<Self> {
        let kind = c_string(kind)?;
        // SAFETY: `kind` is a terminated string that outlives the call.
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> io::Result<()> {
        let (key, value) = (c_string(key)?, c_string(value)?);
        self.configure(FSCONFIG_SET_STRING, Some(&key), Some(&value))
    }

    pub(crate) fn set_flag(&self, key: &str) -> io::Result<()> {
        self.configure(FSCONFIG_SET_FLAG, Some(&c_string(key)?), None)
    }

    /// Makes the file system and its detached mount with the given `MOUNT_ATTR_*`.
    pub(crate) fn mount(self, attributes: u64) -> io::Result<OwnedFd> {
        self.configure(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: plain integers.
        descriptor(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
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
pub(crate) fn clone_mount(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    open_tree(None, path, recursive)
}

/// As [`clone_mount`], of what an open descriptor shows.
pub(crate) fn clone_mount_of(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open_tree(Some(fd), Path::new(""), false)
}

/// A detached copy of the mount of one device, which lets nobody change the node itself: a container's root may
/// otherwise chmod(2) the host's. Reading and writing the device are not affected by `ro`.
pub(crate) fn clone_device(path: &Path) -> io::Result<OwnedFd> {
    let mount = clone_mount(path, false)?;
    set_mount_attributes(&mount, MOUNT_ATTR_RDONLY, 0, false)?;
    Ok(mount)
}

/// The host's `/dev/null` for reading, through such a mount: fchmod(2) works on any descriptor.
pub(crate) fn open_null() -> io::Result<File> {
    let mount = clone_device(Path::new("/dev/null"))?;
    File::open(format!("/proc/self/fd/{}", mount.as_raw_fd()))
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
pub(crate) fn attach_mount(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
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

/// Adds `MOUNT_ATTR_*` to a mount, and sets its propagation (`MS_PRIVATE`, ...) unless that is 0.
pub(crate) fn set_mount_attributes(mount: impl AsFd, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    let attr = MountAttr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
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

/// Who returned from [`fork_into`].
#[derive(Debug)]
pub(crate) enum Forked {
    Parent { child: u32, pidfd: OwnedFd },
    Child,
}

/// Forks with `CLONE_*` flags, into a cgroup v2 directory where one is given.
///
/// # Safety
/// The calling process must have one thread only: the child is a copy of this thread alone.
pub(crate) unsafe fn fork_into(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let mut flags = flags as u64 | libc::CLONE_PIDFD as u64;
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let mut args = libc::clone_args {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: without a stack and without CLONE_VM this is fork(2); the caller has one thread; `args` is whole.
    let child = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if child == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: CLONE_PIDFD stored a new descriptor here that only we own.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent { child: u32::try_from(child).map_err(io::Error::other)?, pidfd })
}

/// Wider than the `c_int` that libc declares it as.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

pub(crate) fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed: the kernel fills it as kill(2) does.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, info, 0) }).map(drop)
}

/// Enters all the given namespaces of the process behind `pidfd` at once.
pub(crate) fn enter_namespaces(pidfd: impl AsFd, namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: a descriptor and flags.
    check(unsafe { libc::setns(pidfd.as_fd().as_raw_fd(), namespaces) }.into()).map(drop)
}

pub(crate) fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: only options with one integer argument are used with this function.
    check(unsafe { libc::prctl(option, argument, 0, 0, 0) }.into()).map(drop)
}

/// What `ps` shows as the process's name: at most 15 bytes.
pub(crate) fn set_process_name(name: &CStr) -> io::Result<()> {
    // SAFETY: PR_SET_NAME reads a terminated string.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }.into()).map(drop)
}

/// What `/proc/PID/cmdline` shows. The arguments the process was started with are overwritten.
///
/// A last byte other than NUL tells the kernel that the area holds a title, of which it shows the part up to the first
/// NUL: get_mm_cmdline() in fs/proc/base.c.
pub(crate) fn set_command_line(title: &CStr) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let misread = || io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat is not understood");
    // arg_start and arg_end, fields 48 and 49; the one after the name in parentheses is field 3: proc_pid_stat(5).
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let mut fields = fields.split_ascii_whitespace().skip(48 - 3).map(str::parse::<usize>);
    let (Some(Ok(start)), Some(Ok(end))) = (fields.next(), fields.next()) else { return Err(misread()) };
    let length = end.checked_sub(start).filter(|length| start != 0 && *length > title.count_bytes() + 1);
    let length = length.ok_or_else(misread)?;
    let area = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel keeps the arguments of this process there, on its stack, where it may write. This program
    // reads them only at its start, as copies, and has one thread.
    unsafe {
        area.write_bytes(0, length);
        area.copy_from_nonoverlapping(title.as_ptr().cast(), title.count_bytes());
        area.add(length - 1).write(b'.');
    }
    Ok(())
}

/// A new, empty session keyring: the container must not see its maker's keys.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    let name: *const libc::c_char = std::ptr::null();
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name) }).map(drop)
}

/// Closes every descriptor from `first` on.
///
/// # Safety
/// No value that owns one of these descriptors may be used or dropped afterwards.
pub(crate) unsafe fn close_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: promised by the caller.
    check(unsafe { libc::close_range(first, libc::c_uint::MAX, 0) }.into()).map(drop)
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitStatus {
    Code(i32),
    Signal(i32),
}

impl WaitStatus {
    /// What a shell makes of it.
    pub(crate) fn shell_code(self) -> i32 {
        match self {
            WaitStatus::Code(code) => code,
            WaitStatus::Signal(signal) => 128 + signal,
        }
    }

    /// For a pipe between two processes; the kernel gives both numbers a byte, wait(2).
    pub(crate) fn to_bytes(self) -> [u8; 2] {
        match self {
            WaitStatus::Code(code) => [b'c', code as u8],
            WaitStatus::Signal(signal) => [b's', signal as u8],
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [b'c', code] => Some(WaitStatus::Code(code.into())),
            [b's', signal] => Some(WaitStatus::Signal(signal.into())),
            _ => None,
        }
    }
}

/// Waits for the child behind `pidfd` and reaps it.
pub(crate) fn wait(pidfd: impl AsFd) -> io::Result<WaitStatus> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus as Nix, waitid};
    loop {
        match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Ok(Nix::Exited(_, code)) => return Ok(WaitStatus::Code(code)),
            Ok(Nix::Signaled(_, signal, _)) => return Ok(WaitStatus::Signal(signal as i32)),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Moves `fd` to the number `target`, where it survives exec.
pub(crate) fn place_at(fd: impl AsFd, target: RawFd) -> io::Result<()> {
    // SAFETY: dup2 onto a standard stream's number, whose old descriptor no Rust value owns.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) }.into()).map(drop)
}

/// Brings loopback up in the calling process's network namespace: netdevice(7).
pub(crate) fn raise_loopback() -> io::Result<()> {
    // SAFETY: plain integers.
    let socket = descriptor(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: ifreq is a C struct of integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into()).map(drop)
}

/// Past libc, which keeps two real-time signals to itself: ignored ones of those would be inherited too.
pub(crate) fn set_default_disposition(signal: i32) -> io::Result<()> {
    if signal == libc::SIGKILL || signal == libc::SIGSTOP {
        return Ok(());
    }
    // Zero is SIG_DFL without flags, restorer or mask, in the kernel's own layout of four words.
    let default = [0u64; 4];
    let old: *mut libc::c_void = std::ptr::null_mut();
    // SAFETY: `default` is as large as the kernel's struct sigaction; the set's size is the kernel's 8 bytes.
    check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, 8usize) }).map(drop)
}

/// Blocks until any signal that the caller has blocked arrives; returns its number.
pub(crate) fn wait_for_signal() -> io::Result<i32> {
    // SAFETY: sigset_t is a C struct of integers, filled by sigfillset before it is read.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    let info: *mut libc::siginfo_t = std::ptr::null_mut();
    // SAFETY: `set` is ours; a null siginfo is allowed.
    check(
        unsafe {
            libc::sigfillset(&raw mut set);
            libc::sigwaitinfo(&raw const set, info)
        }
        .into(),
    )
    .and_then(|signal| i32::try_from(signal).map_err(io::Error::other))
}

/// Waits for a pidfd's process to end; `false` at the timeout.
pub(crate) fn wait_readable(fd: impl AsFd, timeout: std::time::Duration) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut polled, timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
