//! What a container uses, by its cgroup and its network namespace.
//!
//! On v1 a container has no groups for processor time and disks where nothing limits them (see
//! [`roster_runtime::cgroup`]): then its processes are counted one by one, each with its children that have ended.

use std::{fs, io, path::Path};

use roster_proto::wire::{self, container_answer::Answer, usage};
use roster_runtime::cgroup::Stats;
use tokio::sync::mpsc;

use super::{
    of_each,
    processes::{Process, all},
    top::Units,
};
use crate::{
    clock::BootTime,
    runtime::linux::{LinuxRuntime, Seen},
    session::Failure,
};

const KIB: u64 = 1024;

pub(super) async fn measure(
    runtime: &LinuxRuntime,
    tasks: Vec<String>,
    answers: mpsc::Sender<wire::ContainerAnswer>,
) -> Result<(), Failure> {
    of_each(runtime, tasks, answers, |seen| look(seen).map(|usage| Answer::Usage(usage.into()))).await
}

fn look(seen: &Seen) -> io::Result<wire::Usage> {
    let stats = seen.cgroup.stats();
    let counts = (stats.cpu.usage.total, blocks(&stats));
    // Asked for only where the groups do not know.
    let processes = if counts.0.is_none() || counts.1.is_none() { all(seen)?.0 } else { Vec::new() };
    let limit = stats.memory.usage.limit.unwrap_or(u64::MAX);
    let pressure = |psi: &Option<roster_runtime::cgroup::Pressure>| {
        psi.as_ref().map(|psi| usage::Pressure { some: psi.some.avg10, full: psi.full.avg10 })
    };
    Ok(wire::Usage {
        cpu: counts.0.or_else(|| Some(times(&processes))),
        memory: used(&stats),
        memory_limit: limit.min(host_memory()),
        network: network(seen),
        block: counts.1.or_else(|| blocks_of(&processes)),
        pids: stats.pids.current,
        pids_limit: stats.pids.limit,
        cpu_pressure: pressure(&stats.cpu.psi),
        memory_pressure: pressure(&stats.memory.psi),
        io_pressure: pressure(&stats.blkio.psi),
        files: seen.disk.as_deref().and_then(space),
        at: u64::try_from(BootTime::now().0.as_micros()).unwrap_or(u64::MAX),
    })
}

/// Files that were not looked at for long are given back before anything is short of memory.
fn used(stats: &Stats) -> Option<u64> {
    let usage = stats.memory.usage.usage?;
    let raw = stats.memory.raw.as_ref();
    let idle = raw.and_then(|raw| raw.get("total_inactive_file").or_else(|| raw.get("inactive_file")));
    Some(usage.saturating_sub(idle.copied().unwrap_or(0)))
}

fn blocks(stats: &Stats) -> Option<usage::Traffic> {
    let entries = stats.blkio.io_service_bytes_recursive.as_ref()?;
    let sum =
        |op: &str| entries.iter().filter(|entry| entry.op.eq_ignore_ascii_case(op)).map(|entry| entry.value).sum();
    Some(usage::Traffic { r#in: sum("read"), out: sum("write") })
}

/// `None`: it is being removed.
fn space(disk: &Path) -> Option<usage::Space> {
    let stat = nix::sys::statvfs::statvfs(disk).ok()?;
    let (size, free) = (stat.blocks(), stat.blocks_free());
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    Some(usage::Space { used: bytes(size.saturating_sub(free)), limit: bytes(size) })
}

/// Nanoseconds.
fn times(processes: &[Process]) -> u64 {
    let ticks = processes.iter().map(|process| process.stat.own_time + process.stat.children_time).sum();
    Units::of_host().micros(ticks).saturating_mul(1000)
}

/// proc_pid_io(5), which counts children that have ended too.
fn blocks_of(processes: &[Process]) -> Option<usage::Traffic> {
    let mut sum = None;
    for process in processes {
        let Ok(text) = fs::read_to_string(format!("/proc/{}/io", process.pid)) else { continue };
        let number = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
        let sum = sum.get_or_insert(usage::Traffic { r#in: 0, out: 0 });
        sum.r#in += number("read_bytes:").unwrap_or(0);
        sum.out += number("write_bytes:").unwrap_or(0);
    }
    sum
}

/// `None` in the host's network, whose traffic is not the container's.
fn network(seen: &Seen) -> Option<usage::Traffic> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let pid = seen.init.pid.to_string();
    if namespace(&pid)? == namespace("self")? {
        return None;
    }
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    // Else it was another process's by then.
    seen.init.is_running().then(|| traffic(&text))
}

fn traffic(dev: &str) -> usage::Traffic {
    let mut sum = usage::Traffic { r#in: 0, out: 0 };
    for line in dev.lines() {
        let Some((name, counters)) = line.split_once(':').filter(|(name, _)| name.trim() != "lo") else { continue };
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        if let [received, _, _, _, _, _, _, _, sent, ..] = counters[..] {
            sum.r#in = sum.r#in.saturating_add(received);
            sum.out = sum.out.saturating_add(sent);
        } else {
            tracing::debug!(interface = name, "its counters are not understood");
        }
    }
    sum
}

fn host_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    total.map_or(u64::MAX, |kib: u64| kib.saturating_mul(KIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_added_up() {
        let dev = "Inter-|   Receive                            |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop\n    \
            lo:    9000      10    0    0    0     0          0         0     9000      10    0    0    0     0       0  0\n  \
            eth0:     100       1    0    0    0     0          0         0      200       2    0    0    0     0       0  0\n  \
            eth1:       7       1    0    0    0     0          0         0        9       2    0    0    0     0       0  0\n";
        assert_eq!(traffic(dev), usage::Traffic { r#in: 107, out: 209 });
        assert_eq!(traffic("eth0: many\n"), usage::Traffic { r#in: 0, out: 0 });
    }
}
