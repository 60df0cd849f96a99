//! Waiting until the cluster is as wanted, showing how it gets there, and saying why when it does not.

use std::{
    collections::BTreeSet,
    fmt::Write,
    io,
    time::{Duration, Instant},
};

use roster_proto::{
    cause::Brief,
    id::{ServiceId, Version},
    report::{LogLine, ServiceView},
    task::{Health, Task},
    time::Timestamp,
    whole::Versions,
    wire,
};

use super::{all, follow::Patience, now, target, write_out};
use crate::{
    cli::Waiting,
    client::Client,
    error::{Ending, Error},
    render::{list, progress::Progress, style::GOOD, table::clean},
};

/// Of each task that is not up, when the wait ends in vain.
const LAST_LINES: u64 = 10;
/// Tasks whose trouble is told in full.
const TASKS_TOLD: usize = 3;

/// What is waited for.
#[derive(Debug)]
pub(super) struct Goal {
    /// Views older than the change say nothing about it.
    pub version: Version,
    pub services: BTreeSet<ServiceId>,
    pub gone: BTreeSet<ServiceId>,
}

#[derive(Debug, Default)]
struct Seen {
    services: Vec<ServiceView>,
    tasks: Vec<Task>,
}

enum Verdict {
    Reached,
    /// It cannot get there by itself.
    Stuck,
    NotYet,
}

impl Goal {
    fn judge(&self, version: Version, seen: &Seen) -> Verdict {
        if version < self.version {
            return Verdict::NotYet;
        }
        let present = |id: &ServiceId| seen.services.iter().find(|view| view.id == *id);
        let reached = self.services.iter().all(|id| present(id).is_some_and(|view| view.converged && !view.removing))
            && self.gone.iter().all(|id| present(id).is_none());
        if reached {
            Verdict::Reached
        } else if seen.services.iter().any(|view| self.services.contains(&view.id) && list::has_failed_for_good(view)) {
            // Of a service that is to go, a replica that had failed before is no matter.
            Verdict::Stuck
        } else {
            Verdict::NotYet
        }
    }

    fn concerns(&self, id: &ServiceId) -> bool {
        self.services.contains(id) || self.gone.contains(id)
    }

    /// The narrowest filter that shows all of it.
    fn filter(&self) -> wire::Filter {
        let stacks: BTreeSet<_> = self.services.iter().chain(&self.gone).map(|id| &id.stack).collect();
        match stacks.into_iter().collect::<Vec<_>>()[..] {
            [stack] => target::by_stack(Some(stack.to_string())),
            _ => wire::Filter::default(),
        }
    }
}

pub(super) fn say_detached(version: Version) {
    anstream::println!("Accepted as version {version}; `rctl ps` shows how far it is.");
}

pub(super) async fn wait(
    client: &mut Client,
    goal: Goal,
    Waiting { timeout, settle, .. }: Waiting,
    quiet: bool,
) -> Result<Ending, Error> {
    let began = Instant::now();
    let mut progress = (!quiet).then(Progress::on_stderr);
    let mut seen = Seen::default();
    let outcome = {
        let watching = watch(client.clone(), &goal, settle, &mut seen, progress.as_mut());
        let patience = async {
            match timeout {
                Duration::ZERO => std::future::pending().await,
                timeout => tokio::time::sleep(timeout).await,
            }
        };
        tokio::select! {
            result = watching => Some(result?),
            () = patience => Some(Verdict::NotYet),
            interrupt = tokio::signal::ctrl_c() => {
                interrupt.map_err(|error| Error::io("cannot listen for Ctrl-C", error))?;
                None
            }
        }
    };
    if let Some(progress) = &mut progress {
        progress.erase().map_err(|error| Error::io("cannot write to the terminal", error))?;
    }
    match outcome {
        None => {
            anstream::eprintln!("Detached: the change is applied and goes on. `rctl ps` shows how far it is.");
            Ok(Ending::Detached)
        }
        Some(Verdict::Reached) => {
            if !quiet {
                write_out(&format!("{}\n", reached(&goal, &seen, began.elapsed())))?;
            }
            Ok(Ending::Done)
        }
        Some(verdict) => Err(Error::NotConverged(explain(client, &goal, &seen, &verdict, timeout).await)),
    }
}

async fn watch(
    mut client: Client,
    goal: &Goal,
    settle: Duration,
    seen: &mut Seen,
    mut progress: Option<&mut Progress>,
) -> Result<Verdict, Error> {
    let Some(mut stream) = begin(&mut client, goal, 0).await? else { return Ok(Verdict::Reached) };
    let mut patience = Patience::default();
    let mut last = 0;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut current = false;
    let mut settled = None;
    loop {
        tokio::select! {
            () = until(settled) => return Ok(Verdict::Reached),
            message = stream.next() => {
                let message = match message {
                    Ok(Some(message)) => message,
                    Ok(None) => {
                        return Err(Error::Refused(
                            "the controller ended the stream; the change is applied, `rctl ps` shows how it goes".into(),
                        ));
                    }
                    // Another controller goes on where this one left off.
                    Err(status) => {
                        patience.broke(status).await?;
                        match begin(&mut client, goal, last).await? {
                            Some(again) => stream = again,
                            None => return Ok(Verdict::Reached),
                        }
                        continue;
                    }
                };
                patience.renew();
                last = message.version;
                let services: Vec<ServiceView> = all(message.services)?;
                let tasks: Vec<Task> = all(message.tasks)?;
                seen.services = services.into_iter().filter(|view| goal.concerns(&view.id)).collect();
                seen.tasks = tasks.into_iter().filter(|task| goal.concerns(&task.service)).collect();
                let version = Version(message.version);
                current = version >= goal.version;
                settled = match goal.judge(version, seen) {
                    Verdict::NotYet => None,
                    Verdict::Stuck => return Ok(Verdict::Stuck),
                    Verdict::Reached => Some(Instant::now() + left_to_settle(&seen.tasks, settle, now())),
                };
            }
            // Durations on the screen go on counting while nothing else happens.
            _ = tick.tick() => {}
        }
        if let Some(progress) = progress.as_deref_mut().filter(|_| current) {
            progress
                .draw(&seen.services, &seen.tasks, now())
                .map_err(|error: io::Error| Error::io("cannot write to the terminal", error))?;
        }
    }
}

/// `None`: what was to go has gone before it could be watched.
async fn begin(client: &mut Client, goal: &Goal, after: u64) -> Result<Option<Versions>, Error> {
    let request = wire::WatchRequest { filter: Some(goal.filter()), after };
    match client.watch(request).await {
        Ok(stream) => Ok(Some(Versions::new(stream.into_inner()))),
        Err(status) if status.code() == tonic::Code::NotFound && goal.services.is_empty() => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// A healthcheck says whether a replica is up; one without has only its running to show for it.
fn left_to_settle(tasks: &[Task], settle: Duration, now: Timestamp) -> Duration {
    tasks
        .iter()
        .filter(|task| task.is_up() && task.status.health == Health::None)
        .filter_map(|task| task.status.started)
        .map(|started| settle.saturating_sub(now.since(started)))
        .max()
        .unwrap_or_default()
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

fn reached(goal: &Goal, seen: &Seen, took: Duration) -> String {
    let up: u32 = seen.services.iter().map(|view| view.up).sum();
    let finished: u32 = seen.services.iter().map(|view| view.finished).sum();
    let mut parts = Vec::new();
    if !goal.services.is_empty() && (up > 0 || finished == 0) {
        parts.push(format!("{up} up"));
    }
    if finished > 0 {
        parts.push(format!("{finished} finished"));
    }
    if !goal.gone.is_empty() {
        parts.push(format!("{} removed", goal.gone.len()));
    }
    format!("{GOOD}Done{GOOD:#} in {}: {}.", Brief(took), parts.join(", "))
}

/// Which task, why, and the last it said.
async fn explain(client: &mut Client, goal: &Goal, seen: &Seen, verdict: &Verdict, timeout: Duration) -> String {
    let mut out = match verdict {
        Verdict::Stuck => "applied, but a replica failed and its restart policy is used up:\n".to_owned(),
        _ => format!("applied, but not all is up after {} (it goes on; --timeout waits longer):\n", Brief(timeout)),
    };
    for view in seen.services.iter().filter(|view| !view.converged) {
        let _ = writeln!(out, "  {}", list::service_line(view));
    }
    let waiting = in_the_way(seen);
    for task in waiting.iter().take(TASKS_TOLD) {
        let why = task.status.cause.as_ref().map(|cause| format!(": {}", list::cause(cause, now())));
        let why = clean(&why.unwrap_or_default());
        let _ = writeln!(out, "  {} ({}) is {}{why}", task.name(), task.id, list::state(task));
        // A task that waits has said nothing; the one before it in the slot may have.
        let spoke = task.status.started.map(|_| &task.id).or(task.replaces.as_ref()).unwrap_or(&task.id);
        for line in last_lines(client, spoke.as_str()).await {
            let _ = writeln!(out, "    | {}", clean(&String::from_utf8_lossy(&line.line)));
        }
    }
    match waiting.len().saturating_sub(TASKS_TOLD) {
        0 => {}
        1 => out.push_str("  and one more task: `rctl ps` lists it\n"),
        more => {
            let _ = writeln!(out, "  and {more} more tasks: `rctl ps` lists them");
        }
    }
    if seen.services.is_empty() && goal.gone.is_empty() {
        out.push_str("  the controller has not said anything about it yet\n");
    }
    out.truncate(out.trim_end().len());
    out
}

/// The tasks that keep their services from being as wanted: first those that ended, then those that say why they wait.
fn in_the_way(seen: &Seen) -> Vec<&Task> {
    let unfinished: BTreeSet<_> = seen.services.iter().filter(|view| !view.converged).map(|view| &view.id).collect();
    let mut tasks: Vec<_> =
        seen.tasks.iter().filter(|task| !task.is_up() && unfinished.contains(&task.service)).collect();
    tasks.sort_by_key(|task| (!task.status.state.is_terminal(), task.status.cause.is_none()));
    tasks
}

/// The end of a task's log. It only adds to an explanation, so what cannot be read is left out.
async fn last_lines(client: &mut Client, task: &str) -> Vec<LogLine> {
    let request = wire::LogsRequest {
        filter: Some(target::by_task(task)),
        query: Some(wire::LogQuery { tail: Some(LAST_LINES), ..Default::default() }),
        ..Default::default()
    };
    let mut lines = Vec::new();
    if let Ok(answer) = client.logs(request).await {
        let mut stream = answer.into_inner();
        while let Ok(Some(line)) = stream.message().await {
            lines.extend(LogLine::try_from(line));
        }
    }
    lines
}

#[cfg(test)]
mod tests;
