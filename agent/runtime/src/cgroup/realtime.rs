//! cgroup v1's real-time budgets: so many microseconds (`cpu.rt_runtime_us`) of each period (`cpu.rt_period_us`).
//!
//! A new group has none, and a group's children together must have no more than it has; the kernel tells either by
//! EINVAL alone. The groups above a container that are this runtime's own get what those below them need, and give back
//! what they no longer do. Others are their makers' to grant, who may want none there.
//!
//! Nothing is locked: the kernel refuses what does not fit, and who lost to another begins again ([`TRIES`]).
//! Source: the kernel's Documentation/scheduler/sched-rt-group.rst.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::libc;

use super::resources::Write;
use crate::error::{StartError, Step};

pub(super) const RUNTIME: &str = "cpu.rt_runtime_us";
const PERIOD: &str = "cpu.rt_period_us";
/// More than others are likely to be at it at the same moment.
pub(super) const TRIES: u32 = 16;
/// Of a whole period, as the kernel counts shares of it.
const WHOLE: i128 = 1 << 20;

pub(super) fn is_about(write: &Write) -> bool {
    [RUNTIME, PERIOD].contains(&write.file.as_str())
}

/// For the budget that `writes` give the group at `path`, in the groups above it that are `ours`, or below that.
pub(super) fn make_room(root: &Path, ours: &str, path: &Path, writes: &[Write]) -> Result<(), StartError> {
    let wanted = |file| writes.iter().find(|write| write.file == file).and_then(|write| write.value.parse().ok());
    let (runtime, period): (Option<i128>, Option<i128>) = (wanted(RUNTIME), wanted(PERIOD));
    let (ours, group) = (root.join(ours.trim_start_matches('/')), root.join(path));
    if !group.starts_with(&ours) {
        return Ok(());
    }
    let step = || format!("make room for real-time work in {}", ours.display());
    let runtime = runtime.map_or_else(|| read(&group.join(RUNTIME)), Ok).step(step)?;
    let period = period.map_or_else(|| read(&group.join(PERIOD)), Ok).step(step)?;
    // The kernel refuses it by itself.
    if runtime > period {
        return Ok(());
    }
    let (mut group, mut needs) = (group, share(runtime, period));
    let mut raises = Vec::new();
    while group != ours {
        let parent = group.parent().unwrap_or(&ours).to_owned();
        needs += others(&parent, Some(&group)).step(step)?;
        let (budget, period) = budget(&parent).step(step)?;
        if needs > share(budget, period) {
            raises.push((parent.clone(), for_share(needs, period)));
        }
        needs = needs.max(share(budget, period));
        group = parent;
    }
    // From the top down: each must fit into the one above it.
    for (group, needed) in raises.iter().rev() {
        fs::write(group.join(RUNTIME), needed.to_string()).map_err(|error| no_room(group, *needed, error))?;
    }
    Ok(())
}

/// Before the group at `path` is removed: until long after that the kernel counts what it had.
pub(super) fn release(root: &Path, ours: &str, path: &Path) -> Result<(), StartError> {
    let group = root.join(path);
    if !group.starts_with(root.join(ours.trim_start_matches('/'))) {
        return Ok(());
    }
    tolerate(settle(&group), &group)?;
    give_back(root, ours, path)
}

/// When the group at `path` needs less than it did.
pub(super) fn give_back(root: &Path, ours: &str, path: &Path) -> Result<(), StartError> {
    let ours = root.join(ours.trim_start_matches('/'));
    let group = root.join(path);
    if !group.starts_with(&ours) {
        return Ok(());
    }
    for group in group.ancestors().skip(1).take_while(|group| group.starts_with(&ours)) {
        tolerate(settle(group), group)?;
    }
    Ok(())
}

fn tolerate(settled: io::Result<()>, group: &Path) -> Result<(), StartError> {
    match settled {
        // A kernel without such budgets; or the group has just been removed, is still in use, or given to another.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL | libc::EBUSY)) =>
        {
            Ok(())
        }
        settled => settled.step(|| format!("give back the real-time budget of {}", group.display())),
    }
}

fn settle(group: &Path) -> io::Result<()> {
    let budget = read(&group.join(RUNTIME))?;
    // What is rarely asked for must cost those who do not ask little.
    if budget <= 0 {
        return Ok(());
    }
    let needed = for_share(others(group, None)?, read(&group.join(PERIOD))?);
    if needed < budget { fs::write(group.join(RUNTIME), needed.to_string()) } else { Ok(()) }
}

/// What the kernel's refusal of such a budget, or such a period, for the group means.
pub(super) fn refused(group: &Path, write: &Write, error: io::Error) -> StartError {
    let value = write.value.parse().unwrap_or(0);
    let (budget, period) = match (write.file.as_str(), read(&group.join(RUNTIME)), read(&group.join(PERIOD))) {
        (RUNTIME, _, Ok(period)) => (value, period),
        (_, Ok(budget), _) => (budget, value),
        _ => return no_room(group, value, error),
    };
    if budget <= period {
        return no_room(group, budget, error);
    }
    let what = format!("writing {value} to {}", group.join(&write.file).display());
    StartError::impossible(what, format!("a budget of {budget} is more than the whole period, which is {period}"))
}

/// In the groups above it.
fn no_room(group: &Path, budget: i128, error: io::Error) -> StartError {
    let file = |dir: &Path| dir.join(RUNTIME);
    let above = group.ancestors().skip(1).map(file).map_while(|file| Some((read(&file).ok()?, file)));
    let above: Vec<(i128, PathBuf)> = above.collect();
    let without = "or leave linux.resources.cpu.realtimeRuntime out";
    let reason = match (above.iter().rfind(|(budget, _)| *budget == 0), above.first()) {
        _ if error.raw_os_error() != Some(libc::EINVAL) => error.to_string(),
        (Some((_, file)), _) => {
            let file = file.display();
            format!("{file} is 0, and nothing below has more: write there first what it may have, {without}")
        }
        (None, Some((budget, file))) => format!(
            "{} is {budget}, which is for all groups below it together: ask for less, {without}",
            file.display()
        ),
        (None, None) => error.to_string(),
    };
    StartError::impossible(format!("writing {budget} to {}", group.join(RUNTIME).display()), reason)
}

/// What the parent's other children have.
fn others(parent: &Path, but: Option<&Path>) -> io::Result<i128> {
    let mut sum = 0;
    for entry in fs::read_dir(parent)? {
        let dir = entry?.path();
        if but == Some(&dir) || !dir.is_dir() {
            continue;
        }
        match budget(&dir) {
            Ok((runtime, period)) => sum += share(runtime, period),
            // It has just been removed.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound) || error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}

/// Rounded down, as the kernel does before it adds them up; a negative budget is no bound.
fn share(runtime: i128, period: i128) -> i128 {
    match runtime {
        ..0 => WHOLE,
        _ => runtime * WHOLE / period.max(1),
    }
}

/// The budget that has the share.
fn for_share(share: i128, period: i128) -> i128 {
    (share * period + WHOLE - 1) / WHOLE
}

fn budget(group: &Path) -> io::Result<(i128, i128)> {
    Ok((read(&group.join(RUNTIME))?, read(&group.join(PERIOD))?))
}

fn read(file: &Path) -> io::Result<i128> {
    fs::read_to_string(file)?.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_counted_as_the_kernel_does() {
        assert_eq!(share(950_000, 1_000_000), 996_147);
        assert_eq!(share(1_000_000, 1_000_000), WHOLE);
        assert_eq!((share(0, 1_000_000), share(-1, 1_000_000), share(1, 1_000_000)), (0, WHOLE, 1));
    }
}
