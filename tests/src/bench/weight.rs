//! What daemons and shims weigh, from `/proc` (proc_pid_smaps_rollup(5), proc_pid_stat(5)).

use std::{
    fs,
    time::{Duration, Instant},
};

const MIB: f64 = 1024.0 * 1024.0;

fn rollup(pid: u32, field: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib * 1024.0 / MIB)
}

/// Resident memory of these processes together, in MiB.
pub fn rss(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|pid| rollup(*pid, "Rss")).sum()
}

/// Proportional memory per process, in MiB.
pub fn pss_each(pids: &[u32]) -> Option<f64> {
    let each: Vec<f64> = pids.iter().filter_map(|pid| rollup(*pid, "Pss")).collect();
    (!each.is_empty()).then(|| each.iter().sum::<f64>() / each.len() as f64)
}

/// Processes by the name of their program.
pub fn named(name: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_string_lossy().parse().ok()?;
            let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
            (comm.trim_end() == name).then_some(pid)
        })
        .collect()
}

fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// The share of one core, in percent, that these processes use over so long a time.
pub fn cpu_percent(pids: &[u32], over: Duration) -> f64 {
    const USER_HZ: f64 = 100.0;
    let total = || pids.iter().filter_map(|pid| ticks(*pid)).sum::<u64>();
    let (began, first) = (Instant::now(), total());
    std::thread::sleep(over);
    (total() - first) as f64 / USER_HZ / began.elapsed().as_secs_f64() * 100.0
}
