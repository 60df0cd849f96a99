//! Processes: clone3(2), pidfd_open(2), pidfd_send_signal(2), waiting, signals, names, descriptors.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::libc;

use super::{check, descriptor};

/// Who returned from [`fork_into`].
#[derive(Debug)]
pub enum Forked {
    Parent { child: u32, pidfd: OwnedFd },
    Child,
}

/// Forks with `CLONE_*` flags, into a cgroup v2 directory where one is given.
///
/// # Safety
/// The calling process must have one thread only: the child is a copy of this thread alone.
pub unsafe fn fork_into(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
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
        // A sibling's is the caller's own, clone(2).
        exit_signal: if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 },
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

pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// The process's number in the pid namespace that `/proc` shows: proc_pid_fdinfo(5).
pub fn pid_of(pidfd: impl AsFd) -> io::Result<u32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd()))?;
    // -1 for one that has ended.
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed: the kernel fills it as kill(2) does.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, info, 0) }).map(drop)
}

/// Enters all the given namespaces of the process behind `pidfd` at once.
pub fn enter_namespaces(pidfd: impl AsFd, namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: a descriptor and flags.
    check(unsafe { libc::setns(pidfd.as_fd().as_raw_fd(), namespaces) }.into()).map(drop)
}

pub fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: only options with one integer argument are used with this function.
    check(unsafe { libc::prctl(option, argument, 0, 0, 0) }.into()).map(drop)
}

/// What `ps` shows as the process's name: at most 15 bytes.
pub fn set_process_name(name: &CStr) -> io::Result<()> {
    // SAFETY: PR_SET_NAME reads a terminated string.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }.into()).map(drop)
}

/// What `/proc/PID/cmdline` shows. The arguments the process was started with are overwritten.
///
/// A last byte other than NUL tells the kernel that the area holds a title, of which it shows the part up to the first
/// NUL: get_mm_cmdline() in fs/proc/base.c.
pub fn set_command_line(title: &CStr) -> io::Result<()> {
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
pub fn new_session_keyring() -> io::Result<()> {
    let name: *const libc::c_char = std::ptr::null();
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name) }).map(drop)
}

/// Closes every descriptor from `first` to `last`.
///
/// # Safety
/// No value that owns one of these descriptors may be used or dropped afterwards.
pub unsafe fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: promised by the caller.
    check(unsafe { libc::close_range(first as libc::c_uint, last as libc::c_uint, 0) }.into()).map(drop)
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStatus {
    Code(i32),
    Signal(i32),
}

impl WaitStatus {
    /// What a shell makes of it.
    pub fn shell_code(self) -> i32 {
        match self {
            WaitStatus::Code(code) => code,
            WaitStatus::Signal(signal) => 128 + signal,
        }
    }

    /// For a pipe between two processes; the kernel gives both numbers a byte, wait(2).
    pub fn to_bytes(self) -> [u8; 2] {
        match self {
            WaitStatus::Code(code) => [b'c', code as u8],
            WaitStatus::Signal(signal) => [b's', signal as u8],
        }
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [b'c', code] => Some(WaitStatus::Code(code.into())),
            [b's', signal] => Some(WaitStatus::Signal(signal.into())),
            _ => None,
        }
    }
}

/// Waits for the child behind `pidfd` and reaps it.
pub fn wait(pidfd: impl AsFd) -> io::Result<WaitStatus> {
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
pub fn place_at(fd: impl AsFd, target: RawFd) -> io::Result<()> {
    // SAFETY: dup2 onto a standard stream's number, whose old descriptor no Rust value owns.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) }.into()).map(drop)
}

/// Past libc, which keeps two real-time signals to itself: ignored ones of those would be inherited too.
pub fn set_default_disposition(signal: i32) -> io::Result<()> {
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
pub fn wait_for_signal() -> io::Result<i32> {
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
pub fn wait_readable(fd: impl AsFd, timeout: std::time::Duration) -> io::Result<bool> {
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

/// Marks every descriptor from `first` on as to be closed by exec.
pub fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: nothing is closed here; exec ends this program and all that it owns.
    let result = unsafe { libc::close_range(first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    check(result.into()).map(drop)
}
