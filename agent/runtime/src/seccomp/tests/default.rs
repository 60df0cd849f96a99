//! The default profile, in words and in the kernel.

use std::{
    collections::HashSet,
    io,
    os::unix::process::CommandExt,
    process::Command,
    time::{Duration, Instant},
};

use nix::libc;
use oci_spec::runtime::Capability;

use super::effect::{Ended, outcome, under};
use crate::{
    seccomp::{Filter, compile, default_profile},
    sys,
};

fn without_capabilities() -> Filter {
    with(&[])
}

fn with(capabilities: &[Capability]) -> Filter {
    compile(&default_profile(&HashSet::from_iter(capabilities.iter().copied()))).unwrap()
}

/// One argument, the others zero.
fn call(number: libc::c_long, arg: u64) -> impl FnOnce() -> libc::c_long {
    // SAFETY: with null pointers and no descriptors the calls used here at most fail.
    move || unsafe { libc::syscall(number, arg, 0u64, 0u64, 0u64, 0u64, 0u64) }
}

/// A misspelt name would be skipped in silence. On x86-64 all names exist.
#[test]
#[cfg(target_arch = "x86_64")]
fn every_name_is_one_of_a_system_call() {
    use oci_spec::runtime::Capability::*;
    let all = [
        Bpf,
        DacReadSearch,
        Perfmon,
        SysAdmin,
        SysBoot,
        SysChroot,
        SysModule,
        SysNice,
        SysPacct,
        SysPtrace,
        SysRawio,
        SysTime,
        SysTtyConfig,
        Syslog,
    ];
    let profile = default_profile(&HashSet::from(all));
    for name in profile.syscalls().iter().flatten().flat_map(|call| call.names()) {
        assert!(crate::seccomp::compile::number(name).is_some(), "{name}");
    }
}

#[test]
fn a_shell_runs() {
    let filter = without_capabilities();
    let mut shell = Command::new("/bin/busybox");
    shell.args(["sh", "-c", "echo one; ls / >/dev/null && sleep 0 && echo two | cat"]);
    let load = move || {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
        filter.load().map_err(io::Error::other)
    };
    // SAFETY: the two system calls of `load` may be made between fork and exec.
    let output = unsafe { shell.pre_exec(load) }.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\ntwo\n");
}

#[test]
fn threads_start_without_clone3() {
    let ended = under(&without_capabilities(), || std::thread::spawn(|| 7).join().unwrap_or(1));
    assert_eq!(ended, Ended::Code(7));
}

#[test]
fn what_leads_out_of_a_container_is_refused() {
    let refused = [
        ("unshare", libc::SYS_unshare, 0),
        ("setns", libc::SYS_setns, u64::MAX),
        ("mount", libc::SYS_mount, 0),
        ("umount2", libc::SYS_umount2, 0),
        ("pivot_root", libc::SYS_pivot_root, 0),
        ("move_mount", libc::SYS_move_mount, u64::MAX),
        ("open_tree", libc::SYS_open_tree, u64::MAX),
        ("fsopen", libc::SYS_fsopen, 0),
        ("chroot", libc::SYS_chroot, 0),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, u64::MAX),
        ("keyctl", libc::SYS_keyctl, 0),
        ("add_key", libc::SYS_add_key, 0),
        ("request_key", libc::SYS_request_key, 0),
        ("io_uring_setup", libc::SYS_io_uring_setup, 0),
        ("userfaultfd", libc::SYS_userfaultfd, 0),
        ("bpf", libc::SYS_bpf, 9999),
        ("perf_event_open", libc::SYS_perf_event_open, 0),
        ("init_module", libc::SYS_init_module, 0),
        ("kexec_load", libc::SYS_kexec_load, 0),
        ("reboot", libc::SYS_reboot, 0),
        ("syslog", libc::SYS_syslog, 9),
        ("a new user namespace", libc::SYS_clone, (libc::CLONE_NEWUSER | libc::SIGCHLD) as u64),
        ("a memory layout that can be guessed", libc::SYS_personality, 0x4_0000),
        ("AF_ALG", libc::SYS_socket, 38),
        ("AF_VSOCK", libc::SYS_socket, 40),
        ("AF_VSOCK in disguise", libc::SYS_socket, 40 | 1 << 32),
    ];
    let filter = without_capabilities();
    for (name, number, arg) in refused {
        assert_eq!(outcome(&filter, call(number, arg)), Ended::Code(libc::EPERM), "{name}");
    }
    assert_eq!(outcome(&filter, call(libc::SYS_clone3, 0)), Ended::Code(libc::ENOSYS));
    assert_eq!(outcome(&filter, call(500, 0)), Ended::Code(libc::ENOSYS), "newer than the profile");
}

#[test]
fn what_programs_use_is_allowed() {
    let allowed = [
        ("asking for the personality", libc::SYS_personality, 0xffff_ffff),
        ("being traced", libc::SYS_ptrace, libc::PTRACE_TRACEME.into()),
        ("membarrier", libc::SYS_membarrier, 0),
    ];
    let filter = without_capabilities();
    for (name, number, arg) in allowed {
        assert_eq!(outcome(&filter, call(number, arg)), Ended::Code(0), "{name}");
    }
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
        // SAFETY: plain integers.
        let socket = move || unsafe { libc::syscall(libc::SYS_socket, family, libc::SOCK_DGRAM, 0) };
        let ended = outcome(&filter, socket);
        // The kernel may be without IPv6.
        assert!([Ended::Code(0), Ended::Code(libc::EAFNOSUPPORT)].contains(&ended), "family {family}: {ended:?}");
    }
}

#[test]
fn a_capability_brings_its_calls() {
    let admin = with(&[Capability::SysAdmin]);
    assert_eq!(outcome(&admin, call(libc::SYS_unshare, 0)), Ended::Code(0));
    assert_eq!(outcome(&admin, call(libc::SYS_clone3, 0)), Ended::Code(libc::EINVAL));
    assert_eq!(outcome(&admin, call(libc::SYS_setns, u64::MAX)), Ended::Code(libc::EBADF));
    assert_eq!(outcome(&admin, call(libc::SYS_chroot, 0)), Ended::Code(libc::EPERM));
    let chroot = with(&[Capability::SysChroot]);
    assert_eq!(outcome(&chroot, call(libc::SYS_chroot, 0)), Ended::Code(libc::EFAULT));
    assert_eq!(outcome(&chroot, call(libc::SYS_unshare, 0)), Ended::Code(libc::EPERM));
}

/// Run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn what_the_default_profile_costs() {
    const ROUNDS: u32 = 1000;
    const CALLS: u32 = 1_000_000;
    let each = |rounds: u32, step: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..rounds).for_each(|_| step());
        start.elapsed() / rounds
    };
    let none = HashSet::new();
    let profile = default_profile(&none);
    let filter = compile(&profile).unwrap();
    println!("{} instructions", filter.program.len());
    println!("the profile is made in {:?}", each(ROUNDS, &mut || drop(default_profile(&none))));
    println!("it is compiled in {:?}", each(ROUNDS, &mut || drop(compile(&profile))));
    println!("its first compilation in a process takes {:?}", first(&mut || drop(compile(&profile))));
    println!("its loading takes {:?}", first(&mut || drop(filter.load())));
    // The argument makes the kernel's cache of allowed numbers useless.
    for (name, number, arg) in [("getppid", libc::SYS_getppid, 0), ("personality", libc::SYS_personality, 0xffff_ffff)]
    {
        let measure = || each(CALLS, &mut || assert!(call(number, arg)() >= 0));
        println!("{name} without the filter: {:?}", measure());
        under(&filter, || {
            println!("{name} with it: {:?}", measure());
            0
        });
    }
}

/// In a process of its own, with no_new_privs.
fn first(step: &mut dyn FnMut()) -> Duration {
    let (reader, writer) = io::pipe().unwrap();
    let open = super::filter(serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
    under(&open, || {
        let start = Instant::now();
        step();
        let took = start.elapsed().as_nanos() as u64;
        i32::from(io::Write::write_all(&mut &writer, &took.to_ne_bytes()).is_err())
    });
    let mut took = [0; 8];
    io::Read::read_exact(&mut &reader, &mut took).unwrap();
    Duration::from_nanos(u64::from_ne_bytes(took))
}
