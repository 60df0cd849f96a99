//! Limits that bite.

use std::time::{Duration, Instant};

use roster_agent::runtime::{Exit, Phase};
use roster_proto::spec::{Limits, TaskSpec};

use crate::harness::{Host, eventually, sh, task};

fn limited(script: &str, limits: Limits) -> TaskSpec {
    let mut spec = sh(script);
    spec.resources.limits = limits;
    spec
}

#[tokio::test]
async fn a_memory_hog_is_killed_and_told_apart() {
    let host = Host::new();
    let limits = Limits { memory: Some(32 << 20), ..Limits::default() };
    // As process 1, and as a child whose parent lives on to report it.
    for (name, script) in [("first", "exec tail /dev/zero"), ("child", "tail /dev/zero; exit $?")] {
        let (how, _) = host.script(name, limited(script, limits.clone())).await;
        assert_eq!(how, Exit::OutOfMemory { limit: Some(32 << 20) }, "{name}");
    }
    assert_eq!(host.script("modest", limited("exit 137", limits)).await.0, Exit::Code(137));
}

/// Where the JVM and others look for them, on either version.
#[tokio::test]
async fn a_container_reads_its_own_limits_and_cannot_change_them() {
    let host = Host::new();
    let limits = Limits { memory: Some(32 << 20), ..Limits::default() };
    let script = "cd /sys/fs/cgroup; file=memory.max; [ -e $file ] || file=memory/memory.limit_in_bytes; cat $file; \
                  (echo 1 > $file) 2>/dev/null || echo kept";
    let (how, log) = host.script("one", limited(script, limits)).await;
    assert_eq!((how, log.as_str()), (Exit::Code(0), "33554432\nkept\n"));
}

#[tokio::test]
async fn a_cpu_limit_holds() {
    let host = Host::new();
    let limits = Limits { nano_cpus: Some(200_000_000), ..Limits::default() };
    let started = host.start("t1", limited("while :; do :; done", limits)).await.expect("runs");
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", started.pid)).expect("stat");
        let fields: Vec<i64> =
            stat.rsplit(')').next().expect("fields").split(' ').filter_map(|f| f.parse().ok()).collect();
        // utime and stime, fields 14 and 15: proc_pid_stat(5); the state is not a number.
        fields[10] + fields[11]
    };
    let (begin, before) = (Instant::now(), ticks());
    eventually("a second of CPU quota used", || (ticks() - before >= 20, ticks() - before)).await;
    let share = (ticks() - before) as f64 / 100.0 / begin.elapsed().as_secs_f64();
    assert!(share < 0.26, "used {share} of a core with a limit of 0.2");
}

#[tokio::test]
async fn a_fork_bomb_is_stopped_and_can_be_killed() {
    let host = Host::new();
    let limits = Limits { pids: Some(40), ..Limits::default() };
    host.start("t1", limited("(while :; do sleep 1000 & done) & exec sleep 1000", limits)).await.expect("runs");
    let processes = || -> usize {
        let of = |dir: std::path::PathBuf| {
            std::fs::read_to_string(dir.join("t1/cgroup.procs")).map(|text| text.lines().count()).unwrap_or_default()
        };
        host.cgroups().into_iter().map(of).max().unwrap_or_default()
    };
    let mut most = 0;
    eventually("the bomb reaches its limit", || {
        most = most.max(processes());
        (most >= 35 || matches!(host.phase("t1"), Some(Phase::Ended(_))), most)
    })
    .await;
    assert!((35..=40).contains(&most), "{most} processes");
    let begin = Instant::now();
    host.containers.kill(&task("t1")).await.expect("killed");
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(processes(), 0);
    host.containers.remove(&task("t1")).await.expect("removed");
}

#[tokio::test]
async fn an_impossible_limit_is_told() {
    let host = Host::new();
    let limits = Limits { memory: Some(1), ..Limits::default() };
    let result = host.start("t1", limited("true", limits)).await;
    assert!(result.is_err(), "{result:?}");
    assert_eq!(host.leftovers("t1"), Vec::<std::path::PathBuf>::new());
}
