//! `events`: a container's figures, once or at intervals, a JSON document a line.

use std::{io::Write, time::Duration};

use clap::Args;
use serde_json::json;

use super::{Context, Doing, Error, Outcome};
use crate::{
    store::{Record, Status},
    sys,
};

#[derive(Debug, Args)]
pub(super) struct Events {
    /// The container
    #[arg(value_name = "ID")]
    id: String,
    /// Once, not until the container ends
    #[arg(long)]
    stats: bool,
    /// Between two
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = interval)]
    interval: Duration,
}

/// As containerd's callers write it, 5s or 500ms, or in seconds.
fn interval(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let milliseconds = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        _ => 0,
    };
    let time = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(milliseconds));
    let time = time.filter(|time| *time > 0).map(Duration::from_millis);
    time.ok_or_else(|| "write a number of seconds, or one with ms, s or m behind it".to_owned())
}

pub(super) fn events(context: &Context, events: &Events) -> Outcome {
    let (_, record) = context.found(&events.id, "watch", &[Status::Created, Status::Running, Status::Paused])?;
    print(context, events, &record)?;
    if events.stats {
        return Ok(0);
    }
    let Some(init) = record.init()? else { return Ok(0) };
    while !sys::wait_readable(&init, events.interval).doing(|| "watch the container".to_owned())? {
        print(context, events, &record)?;
    }
    Ok(0)
}

fn print(context: &Context, events: &Events, record: &Record) -> Result<(), Error> {
    let data = context.hierarchies.dirs(&record.cgroup)?.stats();
    let event = json!({ "type": "stats", "id": events.id, "data": data });
    writeln!(std::io::stdout(), "{event}").doing(|| "write to standard output".to_owned())
}
