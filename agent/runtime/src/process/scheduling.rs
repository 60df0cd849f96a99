//! How the kernel schedules a process: policy, disk priority, CPUs, personality, and who dies first without memory.
//!
//! Each is for the calling thread, inherited by fork and kept by exec. They need capabilities in the first user
//! namespace: a container with one of its own must have them set before it enters that. A `SCHED_DEADLINE` process may
//! not fork unless `SCHED_RESET_ON_FORK` is set, so that the policy is best set last. Seccomp filters often forbid
//! these calls, and must come later.

use nix::libc;
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Scheduler,
};

use super::procfs;
use crate::{
    error::{StartError, Step},
    sys,
};

/// More CPUs than any kernel is built for.
const MOST_CPUS: u32 = 1 << 14;

const PER_LINUX: libc::c_ulong = 0;
const PER_LINUX32: libc::c_ulong = 8;

/// sched_setattr(2).
pub fn set_scheduler(scheduler: &Scheduler) -> Result<(), StartError> {
    let result = sys::set_scheduler(&attributes(scheduler)?);
    let realtime = matches!(scheduler.policy(), LinuxSchedulerPolicy::SchedFifo | LinuxSchedulerPolicy::SchedRr);
    match result {
        // A kernel that schedules real-time work by groups says no more.
        Err(error) if realtime && error.raw_os_error() == Some(libc::EPERM) => Err(StartError::impossible(
            format!("setting the scheduler {}", scheduler.policy()),
            "its cgroup has no real-time budget (linux.resources.cpu.realtimeRuntime), or the runtime no CAP_SYS_NICE",
        )),
        result => result.step(|| format!("set the scheduler {}", scheduler.policy())),
    }
}

/// ioprio_set(2).
pub fn set_io_priority(priority: &LinuxIOPriority) -> Result<(), StartError> {
    let value = io_priority(priority)?;
    sys::set_io_priority(value).step(|| format!("set the I/O priority {} {}", priority.class(), priority.priority()))
}

/// personality(2).
pub fn set_personality(personality: &LinuxPersonality) -> Result<(), StartError> {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(StartError::impossible("linux.personality", "no flags are defined for it: leave them out"));
    }
    let persona = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => PER_LINUX,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    };
    sys::set_personality(persona).step(|| format!("set the personality {}", personality.domain()))
}

/// `process.execCPUAffinity`, both of its lists: sched_setaffinity(2).
pub fn set_cpu_affinity(cpus: &str) -> Result<(), StartError> {
    sys::set_cpu_affinity(&cpu_mask(cpus)?).step(|| format!("run on the CPUs {cpus}"))
}

/// While the root is still the host's. Lowering it needs CAP_SYS_RESOURCE.
pub fn set_oom_score_adj(score: i32) -> Result<(), StartError> {
    let what = || format!("set oom_score_adj to {score}");
    if !(-1000..=1000).contains(&score) {
        return Err(StartError::impossible(what(), "it must be from -1000 to 1000"));
    }
    procfs::write_own("oom_score_adj", &score.to_string()).step(what)
}

/// The kernel clamps or ignores some of what it cannot follow; here that is refused.
fn attributes(scheduler: &Scheduler) -> Result<libc::sched_attr, StartError> {
    let policy = scheduler.policy();
    let impossible = |reason: &str| Err(StartError::impossible(format!("the scheduler {policy}"), reason));
    let sched_policy = match policy {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIso => return impossible("no kernel has it"),
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let nice = scheduler.nice().unwrap_or(0);
    let priority = scheduler.priority().unwrap_or(0);
    let [runtime, deadline, period] =
        [scheduler.runtime(), scheduler.deadline(), scheduler.period()].map(|time| time.unwrap_or(0));
    if !(-20..=19).contains(&nice) {
        return impossible("nice must be from -20 to 19");
    }
    match policy {
        LinuxSchedulerPolicy::SchedFifo | LinuxSchedulerPolicy::SchedRr if !(1..=99).contains(&priority) => {
            return impossible("priority must be from 1 to 99");
        }
        LinuxSchedulerPolicy::SchedFifo | LinuxSchedulerPolicy::SchedRr => {}
        _ if priority != 0 => return impossible("only SCHED_FIFO and SCHED_RR have a priority"),
        _ => {}
    }
    let times = [runtime, deadline, period] != [0; 3];
    if times && *policy != LinuxSchedulerPolicy::SchedDeadline {
        return impossible("only SCHED_DEADLINE has runtime, deadline and period");
    }
    Ok(libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: sched_policy as u32,
        sched_flags: flags(scheduler)?,
        sched_nice: nice,
        sched_priority: priority as u32,
        sched_runtime: runtime,
        sched_deadline: deadline,
        sched_period: period,
    })
}

fn flags(scheduler: &Scheduler) -> Result<u64, StartError> {
    let bit = |flag: &LinuxSchedulerFlag| {
        let bit = match flag {
            LinuxSchedulerFlag::SchedResetOnFork => libc::SCHED_FLAG_RESET_ON_FORK,
            LinuxSchedulerFlag::SchedFlagReclaim => libc::SCHED_FLAG_RECLAIM,
            LinuxSchedulerFlag::SchedFlagDLOverrun => libc::SCHED_FLAG_DL_OVERRUN,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => libc::SCHED_FLAG_KEEP_POLICY,
            LinuxSchedulerFlag::SchedFlagKeepParams => libc::SCHED_FLAG_KEEP_PARAMS,
            LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                let reason = "the configuration has no field for the value to clamp to";
                return Err(StartError::impossible(format!("the scheduler flag {flag}"), reason));
            }
        };
        Ok(bit as u64)
    };
    scheduler.flags().iter().flatten().try_fold(0, |bits, flag| Ok(bits | bit(flag)?))
}

/// Class and level in one number, ioprio_set(2).
fn io_priority(priority: &LinuxIOPriority) -> Result<libc::c_int, StartError> {
    const CLASS_SHIFT: libc::c_int = 13;
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = i32::try_from(priority.priority()).ok().filter(|level| (0..=7).contains(level));
    let level = level.ok_or_else(|| {
        StartError::impossible(format!("the I/O priority {}", priority.priority()), "it must be from 0 to 7")
    })?;
    Ok(class << CLASS_SHIFT | level)
}

/// `0-3,7`, as cpuset(7) lists CPUs.
pub(crate) fn cpu_mask(cpus: &str) -> Result<Vec<u64>, StartError> {
    let impossible =
        || StartError::impossible(format!("the CPUs {cpus:?}"), "they are not a list of numbers such as 0-3,7");
    let number = |text: &str| text.parse::<u32>().ok().filter(|cpu| *cpu < MOST_CPUS);
    let mut mask = Vec::new();
    for part in cpus.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else { return Err(impossible()) };
        if first > last {
            return Err(impossible());
        }
        for cpu in first..=last {
            let word = (cpu / u64::BITS) as usize;
            mask.resize(mask.len().max(word + 1), 0);
            mask[word] |= 1 << (cpu % u64::BITS);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests;
