//! The default profile: which system calls a container may make whose configuration says nothing else.
//!
//! A list of what is allowed, equal in effect to Docker's default for 64-bit programs; all else is refused with EPERM,
//! or with ENOSYS where it is newer than this list (see `compile.rs`). What takes a capability is allowed to
//! containers that have it: the kernel checks that capability itself, and the filter keeps its code out of reach of
//! those that lack it. Names of calls that only 32-bit programs make are absent, as those do not run under a filter.
//!
//! Refused to everybody, for these reasons:
//! - `add_key`, `keyctl`, `request_key`: keyrings belong to users, not to containers;
//! - `io_uring_*`: has its own path to files and sockets, past every filter, and a history of holes;
//! - `userfaultfd`: stops the kernel in the middle of a copy, which makes its races easy to win;
//! - `kexec_*`, `swapon`, `swapoff`, `nfsservctl`, `pivot_root`: are the host's affair;
//! - `migrate_pages`, `move_pages`: reach into the memory of others;
//! - `create_module`, `uselib`, `ustat`, `sysfs`, `_sysctl` and the like: obsolete, used by nothing alive.

use std::collections::HashSet;

use nix::libc;
use oci_spec::runtime::{
    Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};

use super::program::NATIVE;

/// Harmless, or checked by the kernel against the caller's own rights. Every list is of names between spaces.
const ALLOWED: &[&str] = &[
    FILES,
    DIRECTORIES,
    ATTRIBUTES,
    WAITING,
    ASYNCHRONOUS,
    MEMORY,
    PROCESSES,
    IDENTITY,
    SCHEDULING,
    LIMITS,
    SIGNALS,
    TIME,
    IPC,
    SOCKETS,
    CONFINEMENT,
    SYSTEM,
    TRACING,
    MACHINE,
];

const FILES: &str = "\
    cachestat close close_range copy_file_range creat dup dup2 dup3 fadvise64 fallocate fcntl fdatasync flock fsync \
    ftruncate ioctl lseek memfd_create memfd_secret name_to_handle_at open openat openat2 pread64 preadv preadv2 \
    pwrite64 pwritev pwritev2 read readahead readv sendfile splice sync sync_file_range syncfs tee truncate umask \
    vmsplice write writev";
const DIRECTORIES: &str = "\
    chdir fchdir getcwd getdents getdents64 link linkat mkdir mkdirat mknod mknodat readlink readlinkat rename \
    renameat renameat2 rmdir symlink symlinkat unlink unlinkat";
const ATTRIBUTES: &str = "\
    access chmod chown faccessat faccessat2 fchmod fchmodat fchmodat2 fchown fchownat fgetxattr flistxattr \
    fremovexattr fsetxattr fstat fstatfs futimesat getxattr getxattrat lchown lgetxattr listmount listxattr \
    listxattrat llistxattr lremovexattr lsetxattr lstat newfstatat removexattr removexattrat setxattr setxattrat \
    stat statfs statmount statx utime utimensat utimes";
const WAITING: &str = "\
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
    eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch poll ppoll pselect6 select";
/// The old kind, which works through the caller's own descriptors like read and write.
const ASYNCHRONOUS: &str = "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit";
const MEMORY: &str = "\
    brk madvise map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock \
    munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages";
const PROCESSES: &str = "\
    execve execveat exit exit_group fork get_robust_list get_thread_area getpgid getpgrp getpid getppid getsid \
    gettid pidfd_open restart_syscall rseq set_robust_list set_thread_area set_tid_address setpgid setsid vfork \
    wait4 waitid";
const IDENTITY: &str = "\
    capget capset getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgid setgroups \
    setregid setresgid setresuid setreuid setuid";
const SCHEDULING: &str = "\
    getcpu getpriority ioprio_get ioprio_set sched_get_priority_max sched_get_priority_min sched_getaffinity \
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield setpriority";
const LIMITS: &str = "getrlimit getrusage prlimit64 setrlimit";
const SIGNALS: &str = "\
    kill pause pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
    rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4 tgkill tkill";
/// adjtimex and clock_adjtime also read; to write they take CAP_SYS_TIME.
const TIME: &str = "\
    adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep \
    setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create \
    timerfd_gettime timerfd_settime times";
const IPC: &str = "\
    futex futex_requeue futex_wait futex_waitv futex_wake mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 semctl semget semop semtimedop shmat shmctl shmdt \
    shmget";
/// But for `socket` itself: see [`families`].
const SOCKETS: &str = "\
    accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg \
    sendto setsockopt shutdown socketpair";
/// By which a process takes rights from itself.
const CONFINEMENT: &str = "landlock_add_rule landlock_create_ruleset landlock_restrict_self prctl seccomp";
const SYSTEM: &str = "getrandom sysinfo uname";
/// Until Linux 4.8 a tracer could change a system call after the filter had seen it; we need a newer one anyway.
const TRACING: &str = "process_vm_readv process_vm_writev ptrace";
/// Of x86-64.
const MACHINE: &str = "arch_prctl modify_ldt uretprobe";

/// What a container with the capability may call besides.
const BY_CAPABILITY: &[(Capability, &str)] = &[
    (Capability::Bpf, "bpf"),
    (Capability::DacReadSearch, "open_by_handle_at"),
    (Capability::Perfmon, "perf_event_open"),
    (Capability::SysAdmin, ADMINISTRATION),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module"),
    (Capability::SysNice, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "ioperm iopl"),
    (Capability::SysTime, "clock_settime settimeofday"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::Syslog, "syslog"),
];

/// Mounts, namespaces, and what else the kernel puts under CAP_SYS_ADMIN. In a user namespace of its own any process
/// has that, with much code to attack: so without it, no namespace may be made.
const ADMINISTRATION: &str = "\
    bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
    lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
    sethostname setns syslog umount2 unshare";

/// CLONE_NEWTIME is not among them: clone(2) has its bit in the exit signal.
const NAMESPACES: libc::c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// AF_MCTP, the last of the kernel's include/linux/socket.h.
const LAST_FAMILY: libc::c_int = 45;

/// Linux and 32-bit Linux, both also with UNAME26, a version number for old programs; and the question what is set.
/// Others weaken the layout of memory: personality(2).
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile for a container whose bounding set is this.
pub fn default_profile(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let granted = BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(capability));
    let lists = ALLOWED.iter().chain(granted.map(|(_, names)| names));
    let names = lists.flat_map(|names| names.split_ascii_whitespace()).map(str::to_owned).collect();
    let mut calls = vec![allow(names, None)];
    calls.extend(PERSONALITIES.map(|persona| allow_if("personality", equal(persona))));
    calls.extend(families());
    if !capabilities.contains(&Capability::SysAdmin) {
        calls.extend(threads_only());
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM as u32))
        .set_architectures(Some(vec![NATIVE]))
        .set_syscalls(Some(calls));
    profile
}

/// Sockets of all families but two: AF_ALG, the kernel's cryptography, which programs have libraries for and whose
/// bugs have made root of users; and AF_VSOCK, which talks to the hypervisor past every network namespace.
///
/// The family is an int to the kernel and 64 bits to the filter: those above are listed one by one, as "greater than"
/// would let AF_VSOCK pass with a high bit set.
fn families() -> impl Iterator<Item = LinuxSyscall> {
    let below = arg(0, LinuxSeccompOperator::ScmpCmpLt, libc::AF_ALG as u64);
    let others = [libc::AF_NFC].into_iter().chain(libc::AF_VSOCK + 1..=LAST_FAMILY);
    let conditions = std::iter::once(below).chain(others.map(|family| equal(family as u64)));
    conditions.map(|condition| allow_if("socket", condition))
}

/// The flags of clone3 lie in memory, where a filter cannot see them: C libraries fall back to clone at ENOSYS.
fn threads_only() -> [LinuxSyscall; 2] {
    let no_namespace = arg(0, LinuxSeccompOperator::ScmpCmpMaskedEq, NAMESPACES as u64);
    let mut clone3 = LinuxSyscall::default();
    clone3
        .set_names(vec!["clone3".to_owned()])
        .set_action(LinuxSeccompAction::ScmpActErrno)
        .set_errno_ret(Some(libc::ENOSYS as u32));
    [allow_if("clone", no_namespace), clone3]
}

fn allow_if(name: &str, condition: LinuxSeccompArg) -> LinuxSyscall {
    allow(vec![name.to_owned()], Some(vec![condition]))
}

fn allow(names: Vec<String>, args: Option<Vec<LinuxSeccompArg>>) -> LinuxSyscall {
    let mut call = LinuxSyscall::default();
    call.set_names(names).set_action(LinuxSeccompAction::ScmpActAllow).set_args(args);
    call
}

fn equal(value: u64) -> LinuxSeccompArg {
    arg(0, LinuxSeccompOperator::ScmpCmpEq, value)
}

fn arg(index: usize, op: LinuxSeccompOperator, value: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default().index(index).op(op).value(value).build().expect("every field is given")
}
