//! cgroup v1's real-time budgets: so many microseconds (`cpu.rt_runtime_us`) of each period (`cpu.rt_period_us`).
//!
//! A new group has none, and a group's children together must have no more than it has; the kernel tells either by
//! EINVAL alone. The groups above a container that are this runtime's own get what those below them need. Others are
//! their makers' to grant, who may want none there.
//!
//! Source: the kernel's Documentation/scheduler/sched-rt-group.rst.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    libc,
};

use super::resources::Write;
use crate::error::{StartError, Step};

pub(super) const RUNTIME: &str = "cpu.rt_runtime_us";
const PERIOD: &str = "cpu.rt_period_us";
/// Of a whole period, as the kernel counts shares of it.
const WHOLE: i128 = 1 << 20;

/// Held until the container's own budget is written: another's must not take what was made room for.
pub(super) type Room = Flock<File>;

/// For the budget among `writes`, if there is one, in the groups above `path` that are `ours`, or below that.
pub(super) fn make_room(root: &Path, ours: &str, path: &Path, writes: &[Write]) -> Result<Option<Room>, StartError> {
    let wanted = |file| writes.iter().find(|write| write.file == file).and_then(|write| write.value.parse().ok());
    let Some(runtime) = wanted(RUNTIME).filter(|runtime: &i128| *runtime != 0) else { return Ok(None) };
    let ours = root.join(ours.trim_start_matches('/'));
    let group = root.join(path);
    if !group.starts_with(&ours) || !ours.join(RUNTIME).exists() {
        return Ok(None);
    }
    let step = || format!("make room for real-time work in {}", ours.display());
    let room = File::open(&ours).step(step)?;
    let room = Flock::lock(room, FlockArg::LockExclusive).map_err(|(_, error)| error).step(step)?;

    let period = wanted(PERIOD).map_or_else(|| read(&group.join(PERIOD)), Ok).step(step)?;
    let (mut group, mut needs) = (group, share(runtime, period));
    let mut raises = Vec::new();
    while group != ours {
        let parent = group.parent().unwrap_or(&ours).to_owned();
        needs += others(&parent, &group).step(step)?;
        let period = read(&parent.join(PERIOD)).step(step)?;
        let needed = (needs * period + WHOLE - 1) / WHOLE;
        let budget = read(&parent.join(RUNTIME)).step(step)?;
        if needed > budget {
            raises.push((parent.clone(), needed));
        }
        needs = share(needed.max(budget), period);
        group = parent;
    }
    // From the top down: each must fit into the one above it.
    for (group, needed) in raises.iter().rev() {
        fs::write(group.join(RUNTIME), needed.to_string()).map_err(|error| no_room(group, *needed, error))?;
    }
    Ok(Some(room))
}

/// What the kernel's refusal of such a budget for the group means.
pub(super) fn refused(group: &Path, value: &str, error: io::Error) -> StartError {
    let budget = value.parse().unwrap_or(0);
    match read(&group.join(PERIOD)) {
        Ok(period) if budget > period => {
            let reason = format!("it is more than the whole period, which is {period}");
            StartError::impossible(writing(group, budget), reason)
        }
        _ => no_room(group, budget, error),
    }
}

fn writing(group: &Path, budget: i128) -> String {
    format!("writing {budget} to {}", group.join(RUNTIME).display())
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
    StartError::impossible(writing(group, budget), reason)
}

/// What the parent's other children have.
fn others(parent: &Path, but: &Path) -> io::Result<i128> {
    let mut sum = 0;
    for entry in fs::read_dir(parent)? {
        let dir = entry?.path();
        if dir == but || !dir.is_dir() {
            continue;
        }
        match read(&dir.join(RUNTIME)).and_then(|runtime| Ok(share(runtime, read(&dir.join(PERIOD))?))) {
            Ok(share) => sum += share,
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
