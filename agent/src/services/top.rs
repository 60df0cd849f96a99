//! Who runs in a container.

use std::{collections::BTreeMap, fs, io};

use nix::unistd::{SysconfVar, sysconf};
use roster_proto::wire::{self, container_answer::Answer};
use tokio::sync::mpsc;

use super::{
    of_each,
    processes::{Process, all, command, is_of, passwd, uid_inside, user_name},
};
use crate::{
    clock::BootTime,
    runtime::linux::{LinuxRuntime, Seen},
    session::Failure,
};

pub(super) async fn list(
    runtime: &LinuxRuntime,
    tasks: Vec<String>,
    answers: mpsc::Sender<wire::ContainerAnswer>,
) -> Result<(), Failure> {
    of_each(runtime, tasks, answers, |seen| look(seen).map(Answer::Processes)).await
}

fn look(seen: &Seen) -> io::Result<wire::Processes> {
    let (found, count) = all(seen)?;
    // A container without a passwd file has users without names.
    let passwd = passwd(seen).unwrap_or_default();
    let ids = fs::read_to_string(format!("/proc/{}/uid_map", seen.init.pid)).unwrap_or_default();
    let inside: BTreeMap<u32, u32> = found.iter().map(|process| (process.pid, process.inside)).collect();
    let units = Units::of_host();
    let told = |process: &Process| {
        let uid = uid_inside(&ids, process.uid).unwrap_or(process.uid);
        let told = wire::Process {
            pid: process.inside,
            parent: inside.get(&process.parent).copied().unwrap_or(0),
            uid,
            user: user_name(&passwd, uid).map(str::to_owned),
            state: process.stat.state.to_string(),
            cpu_time: units.micros(process.stat.own_time),
            age: units.since_boot.saturating_sub(units.micros(process.stat.start)),
            memory: process.stat.resident_pages.saturating_mul(units.page),
            threads: process.stat.threads,
            command: command(process).into(),
        };
        // Its command line was read after it was found to be the container's.
        is_of(seen, process.pid).then_some(told)
    };
    let processes: Vec<wire::Process> = found.iter().filter_map(told).collect();
    let more = u32::try_from(count.saturating_sub(found.len())).unwrap_or(u32::MAX);
    Ok(wire::Processes { processes, more: if count > super::processes::MAX_PROCESSES { more } else { 0 } })
}

/// What the kernel counts in.
pub(super) struct Units {
    ticks: u64,
    page: u64,
    /// Microseconds.
    since_boot: u64,
}

impl Units {
    pub(super) fn of_host() -> Self {
        let value =
            |name, usual: u64| sysconf(name).ok().flatten().and_then(|v| u64::try_from(v).ok()).unwrap_or(usual);
        Self {
            ticks: value(SysconfVar::CLK_TCK, 100).max(1),
            page: value(SysconfVar::PAGE_SIZE, 4096),
            since_boot: u64::try_from(BootTime::now().0.as_micros()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn micros(&self, ticks: u64) -> u64 {
        ticks.saturating_mul(1_000_000) / self.ticks
    }
}
