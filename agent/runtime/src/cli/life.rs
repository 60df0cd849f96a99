//! What is done with a container once it is made.

use std::{
    borrow::Cow,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use clap::{Args, ValueEnum};
use nix::{errno::Errno, libc};
use oci_spec::runtime::{ContainerState, Spec};
use serde::Serialize;

use super::{Context, Doing, Error, Outcome, make::cgroup_path, print, warn};
use crate::{
    channel::await_exec,
    container::{self, stage_of},
    hooks, signal,
    store::{Container, Record, Status},
    sys,
};

/// A process in the middle of a slow call to the kernel is frozen after it.
const FREEZING: Duration = Duration::from_secs(10);
/// How long what was half made may take to end.
const ENDING: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Id {
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct Kill {
    /// The container
    #[arg(value_name = "ID")]
    id: String,
    /// A signal's name or number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    signal: String,
    /// To every process of the container
    #[arg(short, long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The container
    #[arg(value_name = "ID")]
    id: String,
    /// Kill it first when it still runs; one that does not exist is fine
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// The container
    #[arg(value_name = "ID")]
    id: String,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Arguments for the host's ps
    #[arg(value_name = "PS-ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Only the ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

/// The standard's state, and what other runtimes add to it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    oci_version: String,
    id: String,
    /// 0: there is no process.
    pid: u32,
    status: &'static str,
    bundle: String,
    rootfs: String,
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<std::collections::BTreeMap<String, String>>,
    owner: &'static str,
}

pub(super) fn state(context: &Context, id: &str) -> Outcome {
    print(&shown(context, &context.store.find(id)?)?)
}

fn shown(context: &Context, container: &Container) -> Result<Shown, Error> {
    let record = container.record()?;
    let status = context.status(container, record.as_ref())?;
    let spec = container.spec()?;
    let text = |path: &Path| path.display().to_string();
    let alive = record.as_ref().filter(|_| status != Status::Stopped);
    Ok(Shown {
        oci_version: spec.version().clone(),
        id: container.id.clone(),
        pid: alive.map_or(0, |record| record.init.pid),
        status: status.word(),
        bundle: record.as_ref().map_or_else(String::new, |record| text(&record.bundle)),
        rootfs: record.as_ref().map_or_else(String::new, |record| text(&record.rootfs)),
        created: record.as_ref().map_or_else(String::new, |record| record.created.clone()),
        annotations: spec.annotations().clone().map(|all| all.into_iter().collect()),
        owner: "root",
    })
}

pub(super) fn list(context: &Context, list: &List) -> Outcome {
    let all = context.store.list()?;
    let mut out = std::io::stdout();
    let failed = || "write to standard output".to_owned();
    if list.quiet {
        all.iter().try_for_each(|container| writeln!(out, "{}", container.id)).doing(failed)?;
        return Ok(0);
    }
    let shown = all.iter().map(|container| shown(context, container)).collect::<Result<Vec<_>, _>>()?;
    if list.format == Format::Json {
        return print(&shown);
    }
    let width = shown.iter().map(|one| one.id.len()).max().unwrap_or(0).max(2);
    writeln!(out, "{:width$}  {:>7}  {:8}  {:30}  BUNDLE", "ID", "PID", "STATUS", "CREATED").doing(failed)?;
    for one in shown {
        writeln!(out, "{:width$}  {:>7}  {:8}  {:30}  {}", one.id, one.pid, one.status, one.created, one.bundle)
            .doing(failed)?;
    }
    Ok(0)
}

pub(super) fn start(context: &Context, id: &str) -> Outcome {
    let (container, record) = context.found(id, "start", &[Status::Created])?;
    let gone = || Error::Refused(format!("cannot start container {id}: its first process is gone"));
    let channel = container.knock()?.ok_or_else(gone)?;
    // No other call may knock from now on; the process listens once only.
    container.started()?;
    await_exec(&channel, |words| warn(&words))?;
    after_start(&container, &record, &container.spec()?);
    Ok(0)
}

/// Hooks that come too late to stop the container: what goes wrong with them is only said, as the standard has it.
pub(super) fn after_start(container: &Container, record: &Record, spec: &Spec) {
    warn_of_hooks(container, record, spec, "poststart", ContainerState::Running);
}

fn warn_of_hooks(container: &Container, record: &Record, spec: &Spec, stage: &str, status: ContainerState) {
    let all = stage_of(spec, stage);
    if all.is_empty() {
        return;
    }
    let pid = if status == ContainerState::Stopped { 0 } else { record.init.pid };
    let state = container::state(spec, &container.id, &record.bundle, status, pid);
    for error in hooks::run_all(all, stage, &state) {
        warn(&error.to_string());
    }
}

pub(super) fn kill(context: &Context, kill: &Kill) -> Outcome {
    let number = signal::parse(&kill.signal)
        .ok_or_else(|| Error::Refused(format!("{:?} is no signal: write SIGTERM, TERM or 15", kill.signal)))?;
    let doing = || format!("send signal {number} to container {}", kill.id);
    if kill.all {
        // Also of a container whose first process has ended: in a shared pid namespace the others go on.
        let Some(record) = context.store.find(&kill.id)?.record()? else { return Ok(0) };
        let dirs = context.hierarchies.dirs(&record.cgroup)?;
        for pid in dirs.processes().doing(doing)? {
            // SAFETY: plain integers.
            match Errno::result(unsafe { libc::kill(pid, number) }) {
                // It ended meanwhile.
                Ok(_) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).doing(doing),
            }
        }
        return Ok(0);
    }
    let (_, record) = context.found(&kill.id, "kill", &[Status::Created, Status::Running, Status::Paused])?;
    let gone = || Error::Refused(format!("cannot kill container {}: container not running", kill.id));
    let init = record.init()?.ok_or_else(gone)?;
    sys::pidfd_send_signal(init, number).doing(doing)?;
    // A paused container's processes do not even die.
    if number == libc::SIGKILL && context.hierarchies.is_frozen(&record.cgroup)? {
        context.hierarchies.thaw(&record.cgroup)?;
    }
    Ok(0)
}

pub(super) fn delete(context: &Context, delete: &Delete) -> Outcome {
    let container = match context.store.find(&delete.id) {
        Err(crate::store::StoreError::NotFound(_)) if delete.force => return Ok(0),
        found => found?,
    };
    let record = container.record()?;
    let status = context.status(&container, record.as_ref())?;
    match status {
        Status::Stopped => {}
        _ if delete.force => {}
        _ => {
            return Err(Error::Refused(format!(
                "cannot delete container {} that is not stopped: it is {} (--force kills it first)",
                delete.id,
                status.word()
            )));
        }
    }
    remove(context, &container, record.as_ref().map(|record| (record, None)))?;
    Ok(0)
}

/// Ends whatever is left of it, and removes every trace; goes on past errors and returns them all. Its spec is read
/// where the caller has none.
pub(super) fn remove(
    context: &Context,
    container: &Container,
    record: Option<(&Record, Option<&Spec>)>,
) -> Result<(), Error> {
    let mut errors = Vec::new();
    if let Some((record, spec)) = record {
        errors.extend(context.hierarchies.release(&record.cgroup).err().map(|error| error.to_string()));
        let emptied = match context.hierarchies.dirs(&record.cgroup) {
            Ok(dirs) => dirs.remove().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        errors.extend(emptied.err());
        // What ended it is told to the hooks once it is gone, and before nothing is known of it.
        match spec.map_or_else(|| container.spec().map(Cow::Owned), |spec| Ok(Cow::Borrowed(spec))) {
            Ok(spec) => warn_of_hooks(container, record, &spec, "poststop", ContainerState::Stopped),
            Err(error) => errors.push(error.to_string()),
        }
    } else if let Ok(spec) = container.spec() {
        // One that cannot be read was being written, and groups come after it.
        let removed = cgroup_path(&spec, &container.id).and_then(|cgroup| remove_half_made(context, &cgroup));
        errors.extend(removed.err().map(|error| error.to_string()));
    }
    if errors.is_empty() {
        errors.extend(container.remove().err().map(|error| error.to_string()));
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Error::Several(format!("cannot delete container {}: {}", container.id, errors.join("; ")))),
    }
}

/// Who made it was killed before there was a record. Its group may be another's, who has processes in it.
fn remove_half_made(context: &Context, cgroup: &Path) -> Result<(), Error> {
    let dirs = context.hierarchies.dirs(cgroup)?;
    let doing = || format!("remove the cgroup {}", cgroup.display());
    for pid in dirs.processes().doing(doing)? {
        // A first process that finds its maker gone ends at once.
        let ended = u32::try_from(pid).is_ok_and(|pid| match sys::pidfd_open(pid) {
            Ok(process) => sys::wait_readable(&process, ENDING).unwrap_or(false),
            Err(_) => true,
        });
        if !ended {
            return Err(Error::Refused(format!(
                "the cgroup {} has process {pid} in it: end it first",
                cgroup.display()
            )));
        }
    }
    let released = context.hierarchies.release(cgroup);
    dirs.remove().doing(doing)?;
    Ok(released?)
}

pub(super) fn pause(context: &Context, id: &str) -> Outcome {
    let (_, record) = context.found(id, "pause", &[Status::Created, Status::Running])?;
    context.hierarchies.freeze(&record.cgroup, FREEZING)?;
    Ok(0)
}

pub(super) fn resume(context: &Context, id: &str) -> Outcome {
    let (_, record) = context.found(id, "resume", &[Status::Paused])?;
    context.hierarchies.thaw(&record.cgroup)?;
    Ok(0)
}

pub(super) fn ps(context: &Context, ps: &Ps) -> Outcome {
    let (_, record) = context.found(&ps.id, "look into", &[Status::Created, Status::Running, Status::Paused])?;
    let doing = || format!("list the processes of container {}", ps.id);
    let pids = context.hierarchies.dirs(&record.cgroup)?.processes().doing(doing)?;
    if ps.format == Format::Json {
        return print(&pids);
    }
    let arguments = if ps.arguments.is_empty() { vec!["-ef".to_owned()] } else { ps.arguments.clone() };
    let output = Command::new("ps").args(&arguments).stderr(Stdio::inherit()).output();
    let output = output.doing(|| "run the host's ps".to_owned())?;
    if !output.status.success() {
        return Err(Error::Refused(format!("ps {} failed: {}", arguments.join(" "), output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let of_container = rows_of(&text, &pids).ok_or_else(|| {
        Error::Refused(format!("ps {} shows no PID column, by which the container's are told", arguments.join(" ")))
    })?;
    std::io::stdout().write_all(of_container.as_bytes()).doing(|| "write to standard output".to_owned())?;
    Ok(0)
}

/// The heading, and the rows of these processes.
fn rows_of(table: &str, pids: &[i32]) -> Option<String> {
    let mut lines = table.lines();
    let heading = lines.next()?;
    let column = heading.split_whitespace().position(|word| word == "PID")?;
    let is_one = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    let rows = std::iter::once(heading).chain(lines.filter(is_one));
    Some(rows.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_processes_are_shown() {
        let table = "UID PID PPID CMD\nroot 1 0 init\nroot 12 1 sh\nroot 112 1 sleep 12\n";
        assert_eq!(rows_of(table, &[12]).as_deref(), Some("UID PID PPID CMD\nroot 12 1 sh\n"));
        assert_eq!(rows_of("USER CMD\nroot sh\n", &[12]), None);
    }
}
