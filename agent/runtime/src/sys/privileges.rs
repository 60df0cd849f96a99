//! What a process may do and how it is scheduled: capget(2), prctl(2), sched_setattr(2), ioprio_set(2), seccomp(2), and
//! programs for a cgroup's devices, bpf(2).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::libc;

use super::{check, descriptor, prctl};

/// Three of a thread's capability sets; bit N is capability number N: capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapabilitySets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words a set, capget(2).
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    /// 0 is the calling thread.
    pid: libc::c_int,
}

/// One half of the three sets; the low words come first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityWords {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

pub fn capabilities() -> io::Result<CapabilitySets> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut words = [CapabilityWords::default(); 2];
    // SAFETY: with this version the kernel fills exactly two such structs.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) })?;
    let join = |of: fn(&CapabilityWords) -> u32| u64::from(of(&words[1])) << 32 | u64::from(of(&words[0]));
    Ok(CapabilitySets {
        effective: join(|half| half.effective),
        permitted: join(|half| half.permitted),
        inheritable: join(|half| half.inheritable),
    })
}

pub fn set_capabilities(sets: CapabilitySets) -> io::Result<()> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let half = |shift: u32| CapabilityWords {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let words = [half(0), half(32)];
    // SAFETY: with this version the kernel reads exactly two such structs.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) }).map(drop)
}

/// EINVAL for a number the kernel has no capability for.
pub fn in_bounding_set(capability: u32) -> io::Result<bool> {
    // SAFETY: plain integers.
    let answer = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) };
    check(answer.into()).map(|answer| answer == 1)
}

pub fn clear_ambient_set() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong)
}

pub fn raise_ambient(capability: u32) -> io::Result<()> {
    let (raise, capability) = (libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, libc::c_ulong::from(capability));
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, capability, 0, 0) }.into()).map(drop)
}

/// For the calling thread, as are the three that follow.
pub fn set_scheduler(attributes: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the struct says its own size and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(attributes), 0) }).map(drop)
}

pub fn set_io_priority(priority: libc::c_int) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) }).map(drop)
}

/// Bit N of the words, counted through, is CPU N. Unlike libc's `cpu_set_t`, not bounded at 1024 of them.
pub fn set_cpu_affinity(mask: &[u64]) -> io::Result<()> {
    // SAFETY: the size is that of the slice, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) }).map(drop)
}

pub fn set_personality(persona: libc::c_ulong) -> io::Result<()> {
    // SAFETY: a plain integer.
    check(unsafe { libc::personality(persona) }.into()).map(drop)
}

/// Gives the kernel a program that decides about devices (`BPF_PROG_TYPE_CGROUP_DEVICE`): bpf(2).
pub fn load_device_program(program: &[crate::cgroup::device_program::Instruction]) -> io::Result<OwnedFd> {
    /// The beginning of union bpf_attr for BPF_PROG_LOAD; the kernel takes the rest for zero.
    #[repr(C)]
    struct Load {
        program_type: u32,
        instructions: u32,
        program: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    // Without helpers of the kernel, the license only has to be a string.
    let license = c"Apache-2.0";
    let load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instructions: u32::try_from(program.len()).map_err(io::Error::other)?,
        program: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `load` has the layout above and its size is passed along; its pointers outlive the call, and the program
    // has as many instructions as it says, each in the kernel's layout.
    descriptor(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) })
}

/// Has `program` asked for the processes of the cgroup v2 directory `group`, beside programs that are there already.
pub fn attach_device_program(program: impl AsFd, group: impl AsFd) -> io::Result<()> {
    /// The beginning of union bpf_attr for BPF_PROG_ATTACH.
    #[repr(C)]
    struct Attach {
        target: i32,
        program: i32,
        attach_type: u32,
        flags: u32,
    }
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let attach = Attach {
        target: group.as_fd().as_raw_fd(),
        program: program.as_fd().as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` has the layout above and its size is passed along.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) }).map(drop)
}

/// Puts a filter before every further system call of the calling thread and of what it executes, for good:
/// seccomp(2). `flags` are `SECCOMP_FILTER_FLAG_*` that return no descriptor and no thread number.
pub fn set_seccomp_filter(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` describes instructions that outlive the call; the kernel only reads them, and checks them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
        .map(drop)
}
