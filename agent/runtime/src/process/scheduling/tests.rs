use std::fs;

use super::*;
use crate::process::in_child::{failure, in_child, status};

fn scheduler(value: serde_json::Value) -> Scheduler {
    serde_json::from_value(value).unwrap()
}

fn refused(value: serde_json::Value) -> String {
    failure(attributes(&scheduler(value)).map(drop))
}

#[test]
fn a_scheduler_is_read_as_the_kernel_wants_it() {
    let attr = attributes(&scheduler(serde_json::json!({
        "policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3,
        "flags": ["SCHED_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"],
    })))
    .unwrap();
    assert_eq!((attr.sched_policy, attr.sched_flags), (6, 3));
    assert_eq!((attr.sched_runtime, attr.sched_deadline, attr.sched_period), (1, 2, 3));
    let attr = attributes(&scheduler(serde_json::json!({"policy": "SCHED_RR", "priority": 7, "nice": -3}))).unwrap();
    assert_eq!((attr.sched_policy, attr.sched_priority, attr.sched_nice), (2, 7, -3));
}

#[test]
fn a_scheduler_the_kernel_would_bend_is_refused() {
    assert!(refused(serde_json::json!({"policy": "SCHED_OTHER", "nice": 20})).contains("nice must be"));
    assert!(refused(serde_json::json!({"policy": "SCHED_OTHER", "priority": 1})).contains("have a priority"));
    assert!(refused(serde_json::json!({"policy": "SCHED_FIFO"})).contains("from 1 to 99"));
    assert!(refused(serde_json::json!({"policy": "SCHED_FIFO", "priority": 100})).contains("from 1 to 99"));
    assert!(refused(serde_json::json!({"policy": "SCHED_BATCH", "runtime": 1})).contains("only SCHED_DEADLINE"));
    assert!(refused(serde_json::json!({"policy": "SCHED_ISO"})).contains("no kernel has it"));
    let clamp = serde_json::json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]});
    assert!(refused(clamp).contains("no field for the value"));
}

#[test]
fn a_scheduler_holds_for_the_process() {
    let seen = in_child(|| {
        set_scheduler(&scheduler(serde_json::json!({"policy": "SCHED_BATCH", "nice": 5}))).unwrap();
        // SAFETY: plain integers.
        let (policy, nice) = unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
        format!("{policy} {nice}")
    });
    assert_eq!(seen, format!("{} 5", libc::SCHED_BATCH));
}

#[test]
fn an_io_priority_holds_for_the_process() {
    let priority = |level: i64| -> LinuxIOPriority {
        serde_json::from_value(serde_json::json!({"class": "IOPRIO_CLASS_BE", "priority": level})).unwrap()
    };
    let seen = in_child(|| {
        set_io_priority(&priority(6)).unwrap();
        // SAFETY: plain integers; 1 is IOPRIO_WHO_PROCESS.
        unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) }.to_string()
    });
    assert_eq!(seen, (2 << 13 | 6).to_string());
    assert!(failure(io_priority(&priority(8))).contains("from 0 to 7"));
}

#[test]
fn a_personality_holds_for_the_process_and_takes_no_flags() {
    let mut personality: LinuxPersonality = serde_json::from_value(serde_json::json!({"domain": "LINUX32"})).unwrap();
    let seen = in_child(|| {
        set_personality(&personality).unwrap();
        // SAFETY: this value only asks, personality(2).
        unsafe { libc::personality(0xffff_ffff) }.to_string()
    });
    assert_eq!(seen, PER_LINUX32.to_string());
    personality.set_flags(Some(vec!["ADDR_NO_RANDOMIZE".to_owned()]));
    assert!(failure(set_personality(&personality)).contains("no flags"));
}

#[test]
fn cpus_are_listed_as_in_cpusets() {
    assert_eq!(cpu_mask("0-3,7").unwrap(), [0b1000_1111]);
    assert_eq!(cpu_mask("64,0").unwrap(), [1, 1]);
    for wrong in ["", "3-1", "a", "1,", "-1", "1-", "0-99999999"] {
        assert!(cpu_mask(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn cpus_hold_for_the_process() {
    let seen = in_child(|| {
        set_cpu_affinity("0").unwrap();
        status("Cpus_allowed_list")
    });
    assert_eq!(seen, "0");
}

#[test]
fn the_oom_score_is_the_process_own() {
    let before = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let seen = in_child(|| {
        set_oom_score_adj(700).unwrap();
        fs::read_to_string("/proc/self/oom_score_adj").unwrap()
    });
    assert_eq!(seen.trim(), "700");
    assert_eq!(fs::read_to_string("/proc/self/oom_score_adj").unwrap(), before);
    assert!(failure(set_oom_score_adj(1001)).contains("from -1000 to 1000"));
}
