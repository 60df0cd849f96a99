//! What profiles mean, without the kernel.

use nix::libc;
use oci_spec::runtime::LinuxSeccompAction;
use serde_json::json;

use super::{super::features, Filter, I386, NATIVE, X32_BIT, errno, filter, number, profile, refusal, run};
use crate::seccomp::compile;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// Those of system calls, and some beyond.
const NUMBERS: std::ops::RangeInclusive<u32> = 0..=600;

#[test]
fn every_number_gets_what_the_profile_says() {
    let allowed = ["read", "write", "close", "execve", "exit_group", "openat", "rt_sigreturn", "futex", "statx"];
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            { "names": allowed, "action": "SCMP_ACT_ALLOW" },
            { "names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 },
        ],
    }));
    let newest = number("statx");
    for at in NUMBERS {
        let expected = match at {
            at if allowed.iter().any(|name| number(name) == at) => ALLOW,
            at if at == number("getpid") => errno(77),
            at if at > newest => errno(libc::ENOSYS),
            _ => errno(libc::EPERM),
        };
        assert_eq!(filter.answer(at, [0; 6]), expected, "number {at}");
    }
}

#[test]
fn jumps_reach_over_more_than_a_byte_of_instructions() {
    let names = ["getpid", "getppid", "getuid", "geteuid", "getgid", "getegid", "gettid", "getpgid", "getsid"];
    let rules = (0..20).map(|value| {
        let args = [json!({ "index": value % 6, "op": "SCMP_CMP_EQ", "value": 1000 + value })];
        json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": value, "args": args })
    });
    let filter = filter(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules.collect::<Vec<_>>() }));
    for at in NUMBERS {
        assert_eq!(filter.answer(at, [0; 6]), ALLOW);
        for value in 0..20 {
            let mut args = [0; 6];
            args[value % 6] = 1000 + value as u64;
            let listed = names.iter().any(|name| number(name) == at);
            let expected = if listed { errno(value as i32) } else { ALLOW };
            assert_eq!(filter.answer(at, args), expected, "number {at}, argument {value}");
        }
    }
}

#[test]
fn operators_compare_all_64_bits_without_sign() {
    const VALUE: u64 = 0x8000_0005_8000_0007;
    const MASK: u64 = 0xF000_000F_F000_0000;
    type Holds = fn(u64) -> bool;
    let operators: [(&str, Holds); 7] = [
        ("SCMP_CMP_NE", |arg| arg != VALUE),
        ("SCMP_CMP_LT", |arg| arg < VALUE),
        ("SCMP_CMP_LE", |arg| arg <= VALUE),
        ("SCMP_CMP_EQ", |arg| arg == VALUE),
        ("SCMP_CMP_GE", |arg| arg >= VALUE),
        ("SCMP_CMP_GT", |arg| arg > VALUE),
        ("SCMP_CMP_MASKED_EQ", |arg| arg & MASK == VALUE & MASK),
    ];
    assert_eq!(features().operators(), &Some(operators.map(|(name, _)| name.to_owned()).to_vec()));
    let near = [0, 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX];
    let values = near.iter().flat_map(|by| [VALUE.wrapping_add(*by), VALUE.wrapping_sub(*by), *by, VALUE & !by]);
    for ((name, holds), index) in operators.into_iter().zip((0..6).cycle()) {
        let value = if name == "SCMP_CMP_MASKED_EQ" { MASK } else { VALUE };
        let args = [json!({ "index": index, "op": name, "value": value, "valueTwo": VALUE })];
        let filter = filter(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mmap"], "action": "SCMP_ACT_ERRNO", "args": args }],
        }));
        for arg in values.clone() {
            let mut args = [0; 6];
            args[index] = arg;
            let expected = if holds(arg) { errno(libc::EPERM) } else { ALLOW };
            assert_eq!(filter.answer(number("mmap"), args), expected, "{name} {arg:#x}");
        }
    }
}

#[test]
fn conditions_of_a_rule_all_hold_unless_two_are_on_one_argument() {
    let with = |args: serde_json::Value| {
        filter(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{ "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": args }],
        }))
    };
    let answer = |filter: &super::Filter, args: [u64; 2]| {
        filter.answer(number("socket"), [args[0], args[1], 0, 0, 0, 0]) == ALLOW
    };
    let equal = |index: u32, value: u32| json!({ "index": index, "op": "SCMP_CMP_EQ", "value": value });
    let both = with(json!([equal(0, 1), equal(1, 2)]));
    assert_eq!([[1, 2], [1, 0], [0, 2], [0, 0]].map(|args| answer(&both, args)), [true, false, false, false]);
    let each = with(json!([equal(0, 1), equal(0, 3), equal(1, 2)]));
    assert_eq!([[1, 0], [3, 0], [0, 2], [0, 0]].map(|args| answer(&each, args)), [true, true, true, false]);
    let none = with(json!([]));
    assert!(answer(&none, [5, 5]));
}

#[test]
fn the_first_rule_that_fits_decides_and_one_without_conditions_before_all() {
    let rule = |value: Option<u32>, errno: u32| {
        let args = value.map(|value| json!([{ "index": 0, "op": "SCMP_CMP_LE", "value": value }]));
        json!({ "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args })
    };
    let with = |rules: &[serde_json::Value]| {
        let filter = filter(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules }));
        [0, 5, 9].map(|arg| filter.answer(number("socket"), [arg, 0, 0, 0, 0, 0]))
    };
    assert_eq!(with(&[rule(Some(3), 11), rule(Some(6), 12)]), [errno(11), errno(12), ALLOW]);
    assert_eq!(with(&[rule(Some(6), 12), rule(Some(3), 11)]), [errno(12), errno(12), ALLOW]);
    assert_eq!(with(&[rule(Some(3), 11), rule(None, 13), rule(None, 14)]), [errno(13); 3]);
    assert_eq!(with(&[rule(None, 13), rule(Some(3), 11)]), [errno(13); 3]);
}

#[test]
fn a_rule_with_the_default_action_adds_nothing_and_unknown_names_are_skipped() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 5,
        "syscalls": [
            { "names": ["socket", "statx", "not_a_call", ""], "action": "SCMP_ACT_ERRNO", "errnoRet": 5 },
            { "names": ["socket", "fchown32"], "action": "SCMP_ACT_ALLOW" },
        ],
    }));
    assert_eq!(filter.answer_to("socket"), ALLOW);
    assert_eq!(filter.answer_to("read"), errno(5));
    assert_eq!(filter.answer_to("statx"), errno(5), "named, so known");
    assert_eq!(filter.answer(number("statx") + 1, [0; 6]), errno(libc::ENOSYS));
}

#[test]
fn calls_newer_than_the_profile_are_unknown_where_the_default_refuses() {
    let newest = |default: &str| {
        let syscalls = json!([{ "names": ["close_range"], "action": "SCMP_ACT_TRAP" }]);
        filter(json!({ "defaultAction": default, "syscalls": syscalls })).answer(number("close_range") + 1, [0; 6])
    };
    for refusing in ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS"] {
        assert_eq!(newest(refusing), errno(libc::ENOSYS), "{refusing}");
    }
    assert_eq!(newest("SCMP_ACT_ALLOW"), ALLOW);
    assert_eq!(newest("SCMP_ACT_LOG"), libc::SECCOMP_RET_LOG);
    assert_eq!(newest("SCMP_ACT_TRACE"), libc::SECCOMP_RET_TRACE | 1);
    let empty = filter(json!({ "defaultAction": "SCMP_ACT_ERRNO" }));
    assert!(NUMBERS.into_iter().all(|at| empty.answer(at, [0; 6]) == errno(libc::EPERM)));
}

#[test]
fn foreign_calls_are_refused_whatever_the_native_call_of_that_number_gets() {
    let cases = [
        (json!("SCMP_ACT_ERRNO"), Some(38), errno(38)),
        (json!("SCMP_ACT_KILL_PROCESS"), None, libc::SECCOMP_RET_KILL_PROCESS),
        (json!("SCMP_ACT_ALLOW"), None, errno(libc::EPERM)),
        (json!("SCMP_ACT_LOG"), None, errno(libc::EPERM)),
        (json!("SCMP_ACT_TRACE"), None, errno(libc::EPERM)),
    ];
    for (default, ret, expected) in cases {
        let filter = filter(json!({
            "defaultAction": default,
            "defaultErrnoRet": ret,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [{ "names": ["read", "getpid"], "action": "SCMP_ACT_ALLOW" }],
        }));
        assert!(NUMBERS.into_iter().all(|at| run(&filter.program, I386, at, [0; 6]) == expected), "{default}");
        if cfg!(target_arch = "x86_64") {
            assert!(NUMBERS.into_iter().all(|at| filter.answer(X32_BIT | at, [0; 6]) == expected), "{default}");
            assert_eq!(filter.answer(u32::MAX - 1, [0; 6]), expected, "{default}");
        }
        assert_eq!(filter.answer(u32::MAX, [0; 6]), filter.answer(number("write"), [0; 6]), "{default}: no call");
    }
}

#[test]
fn every_action_of_the_features_returns_its_value_and_no_other_is_taken() {
    let values = [
        ("SCMP_ACT_KILL", libc::SECCOMP_RET_KILL_THREAD),
        ("SCMP_ACT_KILL_THREAD", libc::SECCOMP_RET_KILL_THREAD),
        ("SCMP_ACT_KILL_PROCESS", libc::SECCOMP_RET_KILL_PROCESS),
        ("SCMP_ACT_TRAP", libc::SECCOMP_RET_TRAP),
        ("SCMP_ACT_ERRNO", errno(libc::EPERM)),
        ("SCMP_ACT_TRACE", libc::SECCOMP_RET_TRACE | libc::EPERM as u32),
        ("SCMP_ACT_LOG", libc::SECCOMP_RET_LOG),
        ("SCMP_ACT_ALLOW", ALLOW),
    ];
    let known: Vec<String> = features().actions().iter().flatten().map(LinuxSeccompAction::to_string).collect();
    assert_eq!(known, values.map(|(name, _)| name));
    for (name, value) in values {
        let syscalls = json!([{ "names": ["read"], "action": name }]);
        assert_eq!(filter(json!({ "defaultAction": "SCMP_ACT_LOG", "syscalls": syscalls })).answer_to("read"), value);
    }
    let notify = json!([{ "names": ["read"], "action": "SCMP_ACT_NOTIFY" }]);
    assert_eq!(
        refusal(json!({ "defaultAction": "SCMP_ACT_LOG", "syscalls": notify })),
        "`linux.seccomp.syscalls` in config.json: SCMP_ACT_NOTIFY is not supported: use another action"
    );
    assert_eq!(
        refusal(json!({ "defaultAction": "SCMP_ACT_LOG", "listenerPath": "/run/agent.sock" })),
        "`linux.seccomp.listenerPath` in config.json: telling a listener of system calls (SCMP_ACT_NOTIFY) is not \
         supported: remove it"
    );
}

#[test]
fn the_error_returned_is_the_profiles_and_goes_only_with_actions_that_return_one() {
    let with = |action: &str, ret: u32| {
        let syscalls = json!([{ "names": ["read"], "action": action, "errnoRet": ret }]);
        json!({ "defaultAction": "SCMP_ACT_LOG", "syscalls": syscalls })
    };
    assert_eq!(filter(with("SCMP_ACT_ERRNO", 4095)).answer_to("read"), errno(4095));
    assert_eq!(filter(with("SCMP_ACT_TRACE", 65535)).answer_to("read"), libc::SECCOMP_RET_TRACE | 65535);
    let refusals = [
        (with("SCMP_ACT_ERRNO", 4096), "SCMP_ACT_ERRNO cannot return 4096: give it at most 4095"),
        (with("SCMP_ACT_TRACE", 65536), "SCMP_ACT_TRACE cannot return 65536: give it at most 65535"),
        (with("SCMP_ACT_ALLOW", 1), "SCMP_ACT_ALLOW returns no error, but is given 1: remove it"),
    ];
    for (profile, reason) in refusals {
        assert_eq!(refusal(profile), format!("`linux.seccomp.syscalls` in config.json: {reason}"));
    }
    let default = json!({ "defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 38 });
    assert!(refusal(default).starts_with("`linux.seccomp.defaultAction` in config.json: SCMP_ACT_KILL returns no"));
}

#[test]
fn flags_of_the_features_are_taken_and_no_others() {
    let flags = |flags: serde_json::Value| json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": flags });
    let known = features().known_flags().clone().unwrap();
    assert_eq!(filter(flags(json!(known))).flags, 0x2 | 0x4);
    assert_eq!(filter(flags(json!([]))).flags, 0);
    assert_eq!(filter(flags(json!(null))).flags, 0x4, "as runc");
    assert_eq!(
        refusal(flags(json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]))),
        "`linux.seccomp.flags` in config.json: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is not supported: remove it"
    );
    assert_eq!(features().archs().as_deref(), Some([NATIVE].as_slice()));
}

#[test]
fn what_the_kernel_could_not_take_is_refused() {
    let rule = |index: u32, value: u32| {
        let args = [json!({ "index": index, "op": "SCMP_CMP_EQ", "value": value })];
        json!({ "names": ["read"], "action": "SCMP_ACT_ERRNO", "args": args })
    };
    let with = |rules: Vec<serde_json::Value>| json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules });
    assert_eq!(
        refusal(with(vec![rule(6, 0)])),
        "`linux.seccomp.syscalls.args` in config.json: system calls have no argument 6, only 0 to 5"
    );
    let many = refusal(with((0..1000).map(|value| rule(0, value)).collect()));
    assert!(many.starts_with("`linux.seccomp.syscalls` in config.json: its rules make "), "{many}");
    assert!(compile(&profile(with((0..500).map(|value| rule(0, value)).collect()))).is_ok());
}

/// What that crate has learned goes from our list.
#[test]
fn no_name_is_listed_that_the_crate_knows() {
    use std::str::FromStr;
    for (name, number) in compile::UNLISTED {
        assert!(syscalls::Sysno::from_str(name).is_err(), "{name}");
        assert_eq!(compile::number(name), Some(*number));
    }
}

#[test]
fn a_filter_is_the_same_after_it_was_sent() {
    let sent = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{ "names": ["read", "openat"], "action": "SCMP_ACT_ALLOW" }]
    }));
    let bytes = sent.to_bytes();
    let heard = Filter::from_bytes(&bytes).expect("understood");
    assert_eq!(heard.flags, sent.flags);
    for at in NUMBERS {
        assert_eq!(heard.answer(at, [0; 6]), sent.answer(at, [0; 6]), "number {at}");
    }
    for length in [0, 7, bytes.len() - 1] {
        assert!(Filter::from_bytes(&bytes[..length]).is_none(), "{length} bytes");
    }
}
