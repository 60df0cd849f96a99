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
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
}

pub(super) fn events(context: &Context, events: &Events) -> Outcome {
    let (_, record) = context.found(&events.id, "watch", &[Status::Created, Status::Running, Status::Paused])?;
    print(context, events, &record)?;
    if events.stats {
        return Ok(0);
    }
    let Some(init) = record.init()? else { return Ok(0) };
    let interval = Duration::from_secs(events.interval);
    while !sys::wait_readable(&init, interval).doing(|| "watch the container".to_owned())? {
        print(context, events, &record)?;
    }
    Ok(0)
}

fn print(context: &Context, events: &Events, record: &Record) -> Result<(), Error> {
    let data = context.hierarchies.dirs(&record.cgroup)?.stats();
    let event = json!({ "type": "stats", "id": events.id, "data": data });
    writeln!(std::io::stdout(), "{event}").doing(|| "write to standard output".to_owned())
}
