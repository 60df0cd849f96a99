//! What a profile means: from `linux.seccomp` to the answer to every system call's number. Pure.
//!
//! The OCI specification leaves open what rules mean together; this is what runc makes of it with libseccomp:
//! - a name that this architecture does not have is skipped, as profiles are written for many;
//! - a rule whose action is the default action adds nothing;
//! - the conditions of a rule must all hold, unless two are on the same argument: then each is a rule of its own;
//! - a rule without conditions beats those with, and an earlier one beats a later one;
//! - where the default action is a refusal, numbers beyond the last that the profile names get ENOSYS: their author
//!   could not know them, and a C library asks new calls first and falls back only on that error.
//!
//! Arguments are compared in all of their 64 bits, whatever the kernel then takes of them.

use std::str::FromStr;

use nix::libc;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use seccompiler::{BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use syscalls::Sysno;

use super::program::{Answer, Plan, Range, Verdict};
use crate::error::StartError;

/// Those that [`action`] knows.
pub(super) const ACTIONS: [LinuxSeccompAction; 8] = [
    LinuxSeccompAction::ScmpActKill,
    LinuxSeccompAction::ScmpActKillThread,
    LinuxSeccompAction::ScmpActKillProcess,
    LinuxSeccompAction::ScmpActTrap,
    LinuxSeccompAction::ScmpActErrno,
    LinuxSeccompAction::ScmpActTrace,
    LinuxSeccompAction::ScmpActLog,
    LinuxSeccompAction::ScmpActAllow,
];

/// Those that [`operator`] knows: all there are.
pub(super) const OPERATORS: [LinuxSeccompOperator; 7] = [
    LinuxSeccompOperator::ScmpCmpNe,
    LinuxSeccompOperator::ScmpCmpLt,
    LinuxSeccompOperator::ScmpCmpLe,
    LinuxSeccompOperator::ScmpCmpEq,
    LinuxSeccompOperator::ScmpCmpGe,
    LinuxSeccompOperator::ScmpCmpGt,
    LinuxSeccompOperator::ScmpCmpMaskedEq,
];

/// What the kernel is told for each flag. There is one thread, so there are none to synchronize.
pub(super) const FLAGS: [(LinuxSeccompFilterFlag, libc::c_ulong); 3] = [
    (LinuxSeccompFilterFlag::SeccompFilterFlagTsync, 0),
    (LinuxSeccompFilterFlag::SeccompFilterFlagLog, libc::SECCOMP_FILTER_FLAG_LOG),
    (LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
];

/// What the crate `syscalls` lacks: calls newer than it, and two that it names otherwise than the kernel.
pub(super) const UNLISTED: &[(&str, u32)] = &[
    #[cfg(target_arch = "x86_64")]
    ("uretprobe", 335),
    #[cfg(target_arch = "aarch64")]
    ("newfstatat", 79),
    #[cfg(target_arch = "aarch64")]
    ("sync_file_range", 84),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// The numbers of the x32 calling convention carry this bit and come with the native architecture's name.
#[cfg(target_arch = "x86_64")]
const X32_BIT: Option<u32> = Some(0x4000_0000);
#[cfg(target_arch = "aarch64")]
const X32_BIT: Option<u32> = None;
/// The number -1: a tracer puts it in place of a call that is not to be made.
const NO_CALL: u32 = u32::MAX;

const EPERM: u32 = libc::EPERM as u32;
/// The kernel's MAX_ERRNO, to which it would cut a larger one down.
const MOST_ERRNO: u32 = 4095;

/// One of the profile's, for all the calls that it names.
struct Entry {
    answer: Answer,
    /// None without conditions.
    rules: Vec<SeccompRule>,
    /// It says what holds anyhow.
    is_redundant: bool,
}

pub(super) fn refused(field: &str, reason: impl Into<String>) -> StartError {
    StartError::impossible(format!("`linux.seccomp.{field}` in config.json"), reason)
}

/// As runc, which asks for fast memory loads unless the profile has a list of flags, be it an empty one.
pub(super) fn flags(profile: &LinuxSeccomp) -> Result<libc::c_ulong, StartError> {
    let Some(wanted) = profile.flags() else { return Ok(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) };
    wanted.iter().try_fold(0, |flags, wanted| {
        let known = FLAGS.iter().find(|(flag, _)| flag == wanted);
        let (_, flag) = known.ok_or_else(|| refused("flags", format!("{wanted} is not supported: remove it")))?;
        Ok(flags | flag)
    })
}

pub(super) fn plan(profile: &LinuxSeccomp) -> Result<Plan, StartError> {
    if profile.listener_path().is_some() {
        let reason = "telling a listener of system calls (SCMP_ACT_NOTIFY) is not supported: remove it";
        return Err(refused("listenerPath", reason));
    }
    let default = action("defaultAction", profile.default_action(), profile.default_errno_ret())?;
    let foreign = Answer::from(if permits(&default) { SeccompAction::Errno(EPERM) } else { default.clone() });
    let entries: Vec<Entry> =
        profile.syscalls().iter().flatten().map(|one| entry(one, &default)).collect::<Result<_, _>>()?;
    Ok(Plan { foreign, ranges: ranges(&entries, &named(profile), &default, foreign) })
}

fn entry(entry: &LinuxSyscall, default: &SeccompAction) -> Result<Entry, StartError> {
    let action = action("syscalls", entry.action(), entry.errno_ret())?;
    let is_redundant = action == *default;
    let rules = rules(entry.args().as_deref().unwrap_or_default())?;
    Ok(Entry { answer: Answer::from(action), rules, is_redundant })
}

/// Each call with each entry that names it, in the order of their numbers.
fn named(profile: &LinuxSeccomp) -> Vec<(u32, usize)> {
    let mut named = Vec::new();
    for (at, entry) in profile.syscalls().iter().flatten().enumerate() {
        named.extend(entry.names().iter().filter_map(|name| number(name)).map(|number| (number, at)));
    }
    named.sort_unstable();
    named
}

fn ranges(entries: &[Entry], named: &[(u32, usize)], default: &SeccompAction, foreign: Answer) -> Vec<Range> {
    let otherwise = Answer::from(default.clone());
    let mut ranges = Vec::new();
    extend(&mut ranges, 0, Verdict::Answer(otherwise));
    // A call that only redundant entries name is known to the profile all the same.
    for of_one in named.chunk_by(|(one, _), (other, _)| one == other) {
        let number = of_one[0].0;
        extend(&mut ranges, number, verdict(of_one.iter().map(|(_, at)| &entries[*at]), otherwise));
        extend(&mut ranges, number + 1, Verdict::Answer(otherwise));
    }
    if let Some((newest, _)) = named.last().filter(|_| !permits(default)) {
        extend(&mut ranges, newest + 1, Verdict::Answer(SeccompAction::Errno(libc::ENOSYS as u32).into()));
    }
    if let Some(first) = X32_BIT {
        extend(&mut ranges, first, Verdict::Answer(foreign));
    }
    extend(&mut ranges, NO_CALL, Verdict::Answer(otherwise));
    ranges
}

/// What the entries say of a call that they name.
fn verdict<'a>(entries: impl Iterator<Item = &'a Entry> + Clone, otherwise: Answer) -> Verdict {
    let telling = entries.filter(|entry| !entry.is_redundant);
    if let Some(always) = telling.clone().find(|entry| entry.rules.is_empty()) {
        return Verdict::Answer(always.answer);
    }
    if telling.clone().next().is_none() {
        return Verdict::Answer(otherwise);
    }
    let with_answer = |entry: &'a Entry| entry.rules.iter().map(|rule| (rule.clone(), entry.answer));
    Verdict::ByArguments { rules: telling.flat_map(with_answer).collect(), otherwise }
}

/// From the number `from` on, which is no lower than any before it, calls get this verdict.
fn extend(ranges: &mut Vec<Range>, from: u32, verdict: Verdict) {
    ranges.pop_if(|last| last.from == from);
    if ranges.last().is_none_or(|last| last.verdict != verdict) {
        ranges.push(Range { from, verdict });
    }
}

/// Whether a call may happen all the same.
fn permits(action: &SeccompAction) -> bool {
    matches!(action, SeccompAction::Allow | SeccompAction::Log | SeccompAction::Trace(_))
}

pub(super) fn number(name: &str) -> Option<u32> {
    let unlisted = || UNLISTED.iter().find(|(unlisted, _)| *unlisted == name).map(|(_, number)| *number);
    Sysno::from_str(name).ok().and_then(|call| u32::try_from(call.id()).ok()).or_else(unlisted)
}

fn action(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<SeccompAction, StartError> {
    // Beyond, the kernel would take another value than the profile says.
    let within = |most: u32| match errno.unwrap_or(EPERM) {
        errno if errno <= most => Ok(errno),
        errno => Err(refused(field, format!("{action} cannot return {errno}: give it at most {most}"))),
    };
    let plain = match action {
        LinuxSeccompAction::ScmpActErrno => return Ok(SeccompAction::Errno(within(MOST_ERRNO)?)),
        LinuxSeccompAction::ScmpActTrace => return Ok(SeccompAction::Trace(within(libc::SECCOMP_RET_DATA)?)),
        LinuxSeccompAction::ScmpActNotify => {
            return Err(refused(field, format!("{action} is not supported: use another action")));
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => SeccompAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => SeccompAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => SeccompAction::Trap,
        LinuxSeccompAction::ScmpActLog => SeccompAction::Log,
        LinuxSeccompAction::ScmpActAllow => SeccompAction::Allow,
    };
    match errno {
        None => Ok(plain),
        Some(errno) => Err(refused(field, format!("{action} returns no error, but is given {errno}: remove it"))),
    }
}

/// None if there are no conditions.
fn rules(args: &[LinuxSeccompArg]) -> Result<Vec<SeccompRule>, StartError> {
    if args.is_empty() {
        return Ok(Vec::new());
    }
    let conditions: Vec<SeccompCondition> = args.iter().map(condition).collect::<Result<_, _>>()?;
    let repeated = args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|other| other.index() == arg.index()));
    let rules = if repeated {
        conditions.into_iter().map(|condition| SeccompRule::new(vec![condition])).collect()
    } else {
        SeccompRule::new(conditions).map(|rule| vec![rule])
    };
    rules.map_err(|error: BackendError| refused("syscalls.args", error.to_string()))
}

fn condition(arg: &LinuxSeccompArg) -> Result<SeccompCondition, StartError> {
    let index = u8::try_from(arg.index()).unwrap_or(u8::MAX);
    let (operator, value) = operator(arg);
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)
        .map_err(|_| refused("syscalls.args", format!("system calls have no argument {}, only 0 to 5", arg.index())))
}

/// How to compare, and with what.
fn operator(arg: &LinuxSeccompArg) -> (SeccompCmpOp, u64) {
    let plain = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => SeccompCmpOp::Ne,
        LinuxSeccompOperator::ScmpCmpLt => SeccompCmpOp::Lt,
        LinuxSeccompOperator::ScmpCmpLe => SeccompCmpOp::Le,
        LinuxSeccompOperator::ScmpCmpEq => SeccompCmpOp::Eq,
        LinuxSeccompOperator::ScmpCmpGe => SeccompCmpOp::Ge,
        LinuxSeccompOperator::ScmpCmpGt => SeccompCmpOp::Gt,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            return (SeccompCmpOp::MaskedEq(arg.value()), arg.value_two().unwrap_or_default());
        }
    };
    (plain, arg.value())
}
