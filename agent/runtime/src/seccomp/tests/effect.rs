//! Filters in the kernel: each in a child, which tells by its exit code.

use nix::{
    libc,
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};
use serde_json::json;

use super::{Filter, filter};
use crate::sys;

/// What a child exits with that could not load its filter: no error number is as large.
const NOT_LOADED: i32 = 200;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Code(i32),
    Signal(i32),
}

/// In a child, which exits with what it returns.
fn in_child(body: impl FnOnce() -> i32) -> Ended {
    // SAFETY: the child runs `body`, which takes no lock that another thread may hold but the allocator's, which
    // fork(3) takes care of, and exits.
    match unsafe { fork() }.unwrap() {
        // SAFETY: ends the child without running what the parent registered for its own end.
        ForkResult::Child => unsafe { libc::_exit(body()) },
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => Ended::Code(code),
            WaitStatus::Signaled(_, signal, _) => Ended::Signal(signal as i32),
            other => panic!("{other:?}"),
        },
    }
}

pub(super) fn under(filter: &Filter, body: impl FnOnce() -> i32) -> Ended {
    in_child(|| match sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).is_ok() && filter.load().is_ok() {
        true => body(),
        false => NOT_LOADED,
    })
}

/// Zero or the error number.
fn code(result: libc::c_long) -> i32 {
    if result < 0 { nix::errno::Errno::last_raw() } else { 0 }
}

/// Exits with the call's error number, or zero.
pub(super) fn outcome(filter: &Filter, call: impl FnOnce() -> libc::c_long) -> Ended {
    under(filter, || code(call()))
}

/// For calls of plain integers.
fn plain(number: libc::c_long, args: [u64; 2]) -> impl FnOnce() -> libc::c_long {
    // SAFETY: promised by the tests: no pointers.
    move || unsafe { libc::syscall(number, args[0], args[1]) }
}

/// Allows all but sched_yield.
fn yielding(action: &str) -> Filter {
    filter(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["sched_yield"], "action": action }],
    }))
}

fn yield_now() -> libc::c_long {
    plain(libc::SYS_sched_yield, [0; 2])()
}

#[test]
fn a_call_gets_its_error_and_others_run() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["sched_yield"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 }],
    }));
    assert_eq!(outcome(&filter, yield_now), Ended::Code(77));
    assert_eq!(outcome(&filter, plain(libc::SYS_getppid, [0; 2])), Ended::Code(0));
}

#[test]
fn only_what_is_listed_runs() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 78,
        "syscalls": [{ "names": ["exit_group", "getppid"], "action": "SCMP_ACT_ALLOW" }],
    }));
    assert_eq!(outcome(&filter, plain(libc::SYS_getppid, [0; 2])), Ended::Code(0));
    assert_eq!(outcome(&filter, yield_now), Ended::Code(78));
}

#[test]
fn arguments_are_compared() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77, "args": [
                { "index": 0, "op": "SCMP_CMP_EQ", "value": 0 },
                { "index": 1, "op": "SCMP_CMP_LT", "value": 1 },
            ]},
            { "names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 78, "args": [
                { "index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0o70, "valueTwo": 0o20 },
            ]},
        ],
    }));
    let cases = [
        (libc::SYS_getpriority, [libc::PRIO_PROCESS.into(), 0], 77),
        (libc::SYS_getpriority, [libc::PRIO_PROCESS.into(), 1], 0),
        (libc::SYS_getpriority, [libc::PRIO_PGRP.into(), 0], 0),
        (libc::SYS_umask, [0o527, 0], 78),
        (libc::SYS_umask, [0o577, 0], 0),
    ];
    for (number, args, expected) in cases {
        assert_eq!(outcome(&filter, plain(number, args)), Ended::Code(expected), "{number} {args:?}");
    }
}

#[test]
fn actions_do_what_they_are_called() {
    for killing in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        assert_eq!(outcome(&yielding(killing), yield_now), Ended::Signal(libc::SIGSYS), "{killing}");
    }
    assert_eq!(outcome(&yielding("SCMP_ACT_LOG"), yield_now), Ended::Code(0));
    assert_eq!(outcome(&yielding("SCMP_ACT_TRACE"), yield_now), Ended::Code(libc::ENOSYS), "no tracer is there");
}

#[test]
fn a_trapped_call_can_be_caught() {
    extern "C" fn caught(_: libc::c_int) {
        // SAFETY: may be called in a signal handler.
        unsafe { libc::_exit(42) }
    }
    let ended = under(&yielding("SCMP_ACT_TRAP"), || {
        // SAFETY: the handler makes one system call.
        unsafe { libc::signal(libc::SIGSYS, caught as *const () as libc::sighandler_t) };
        code(yield_now())
    });
    assert_eq!(ended, Ended::Code(42));
}

/// getpid in the 32-bit convention.
#[cfg(target_arch = "x86_64")]
fn getpid_of_i386() -> libc::c_long {
    let result: i64;
    // SAFETY: the interrupt takes its arguments from registers and changes none but rax; r8 to r11 may be cleared.
    unsafe {
        std::arch::asm!(
            "int 0x80", inlateout("rax") 20i64 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}

#[test]
#[cfg(target_arch = "x86_64")]
fn foreign_calls_get_an_error_and_are_not_taken_for_native_ones() {
    let everything = filter(json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
    let refused =
        |call: fn() -> libc::c_long| under(&everything, || (call() != libc::c_long::from(-libc::EPERM)).into());
    assert_eq!(refused(getpid_of_i386), Ended::Code(0));
    let x32 = libc::SYS_getpid | libc::c_long::from(super::X32_BIT);
    assert_eq!(outcome(&everything, plain(x32, [0; 2])), Ended::Code(libc::EPERM));
}

#[test]
fn the_kernel_takes_every_flag() {
    let flags = super::super::features().supported_flags().clone();
    let filter = filter(json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": flags }));
    assert_eq!(outcome(&filter, yield_now), Ended::Code(0));
}

#[test]
fn loading_without_the_right_to_says_what_it_takes() {
    use caps::{CapSet, Capability};
    let (reader, writer) = std::io::pipe().unwrap();
    let ended = in_child(|| {
        let dropped = caps::drop(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).is_ok();
        let text = yielding("SCMP_ACT_KILL").load().map_err(|error| error.to_string()).err().unwrap_or_default();
        let written = std::io::Write::write_all(&mut &writer, text.as_bytes());
        (!dropped || written.is_err()).into()
    });
    drop(writer);
    assert_eq!(ended, Ended::Code(0));
    let text = std::io::read_to_string(reader).unwrap();
    assert_eq!(
        text,
        "load the seccomp filter (takes noNewPrivileges or CAP_SYS_ADMIN): Permission denied (os error 13)"
    );
}
