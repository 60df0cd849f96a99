//! The benchmarks behind `deploy/bench`: the real binaries in release, beside a peer in the same run where there is one.
//!
//! What runs is counted from the kernel's process list, never from anybody's store. Absolute times drift with the
//! machine; the ratio to a peer of the same run is what to compare.

pub mod agents;
pub mod bare;
pub mod clusters;
pub mod etcd;
pub mod failover;
pub mod plans;
pub mod report;
pub mod roster;
pub mod runtimes;
pub mod swarm;
pub mod swarms;
pub mod weight;
pub mod wire;
pub mod writes;

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// While many containers start they need every core: between two looks so many times what the last one took.
const REST: u32 = 4;
const MANY: usize = 10;

/// Counts the containers of one benchmark in the kernel's process list.
///
/// Looking takes processor time from what is measured, so the processes that are there already, which are nobody's
/// containers, are asked for their command lines only once.
#[derive(Debug)]
pub struct Census {
    wanted: Vec<u8>,
    others: BTreeSet<u32>,
}

impl Census {
    /// To be taken just before what is measured begins.
    pub fn new(marker: &str) -> Self {
        let mut census = Self { wanted: command_line(marker), others: BTreeSet::new() };
        census.others = census.candidates().filter(|pid| !census.is_ours(*pid)).collect();
        census
    }

    /// The pids of all processes whose command line is `sleep MARKER`, whoever made them.
    pub fn count(&self) -> BTreeSet<u32> {
        self.candidates().filter(|pid| self.is_ours(*pid)).collect()
    }

    fn candidates(&self) -> impl Iterator<Item = u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| !self.others.contains(pid))
    }

    /// A process that ended meanwhile does not run.
    fn is_ours(&self, pid: u32) -> bool {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| cmdline == self.wanted)
    }

    pub fn wait_for(&self, count: usize) -> Result<BTreeSet<u32>, String> {
        let rest = if count > MANY { REST } else { 0 };
        wait_resting(rest, || Some(self.count()).filter(|pids| pids.len() == count))
            .ok_or_else(|| format!("{} of {count} containers run after {PATIENCE:?}", self.count().len()))
    }
}

/// The count of one moment.
pub fn sleepers(marker: &str) -> BTreeSet<u32> {
    Census { wanted: command_line(marker), others: BTreeSet::new() }.count()
}

fn command_line(marker: &str) -> Vec<u8> {
    format!("sleep\0{marker}\0").into_bytes()
}

/// Waits until `look` gives something; `None` when patience ends.
pub fn wait_for<T>(look: impl FnMut() -> Option<T>) -> Option<T> {
    wait_resting(0, look)
}

fn wait_resting<T>(rest: u32, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let began = Instant::now();
        match look() {
            Some(found) => return Some(found),
            None if Instant::now() > deadline => return None,
            None => std::thread::sleep(LOOK_EVERY.max(began.elapsed() * rest)),
        }
    }
}

pub fn wait_for_count(marker: &str, count: usize) -> Result<BTreeSet<u32>, String> {
    Census::new(marker).wait_for(count)
}

/// From SIGKILL of one container's process to another one's being there in its place.
pub fn kill_to_replacement(marker: &str) -> Result<Duration, String> {
    let census = Census::new(marker);
    let before = census.count();
    let victim = *before.first().ok_or("no container runs")?;
    let began = Instant::now();
    kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL).map_err(|error| format!("kill {victim}: {error}"))?;
    wait_for(|| {
        let now = census.count();
        (now.len() == before.len() && !now.contains(&victim)).then(|| began.elapsed())
    })
    .ok_or_else(|| format!("no replacement of process {victim} after {PATIENCE:?}"))
}

pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Runs a command to its end; its error output is the error.
pub fn run(command: &mut std::process::Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
