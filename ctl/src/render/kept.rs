//! What is known of a failed container that is kept.

use std::time::Duration;

use roster_proto::{cause::Brief, time::Timestamp, wire};
use serde::Serialize;

use super::{inspect::line, list};

#[derive(Debug, Serialize)]
pub struct KeptView {
    pub name: String,
    pub task: String,
    pub node: String,
    pub failure: String,
    #[serde(serialize_with = "moment")]
    pub started: Timestamp,
    #[serde(serialize_with = "moment")]
    pub ended: Timestamp,
    pub cpu_seconds: Option<f64>,
    pub memory_peak: Option<u64>,
    pub memory_limit: Option<u64>,
    pub oom_kills: u64,
    pub pids_peak: Option<u64>,
    pub block_read: Option<u64>,
    pub block_written: Option<u64>,
}

/// As other views have it.
fn moment<S: serde::Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(at)
}

impl KeptView {
    pub fn new(kept: wire::KeptResponse) -> Self {
        let task = kept.task.unwrap_or_default();
        let figures = kept.figures.unwrap_or_default();
        Self {
            name: task.name,
            task: task.task,
            node: kept.node,
            failure: kept.failure,
            started: Timestamp(figures.started),
            ended: Timestamp(figures.ended),
            cpu_seconds: figures.cpu.map(|nanos| Duration::from_nanos(nanos).as_secs_f64()),
            memory_peak: figures.memory_peak,
            memory_limit: figures.memory_limit,
            oom_kills: figures.oom_kills,
            pids_peak: figures.pids_peak,
            block_read: figures.block.map(|block| block.r#in),
            block_written: figures.block.map(|block| block.out),
        }
    }
}

/// As `inspect` has it.
pub fn words(view: &KeptView, now: Timestamp) -> String {
    let mut lines = vec![
        ("Task", format!("{} ({})", view.name, view.task)),
        ("Node", view.node.clone()),
        ("Failure", view.failure.clone()),
        ("Ended", format!("{} ago, after {}", list::ago(now, view.ended), Brief(view.ended.since(view.started)))),
    ];
    let seconds = |seconds: f64| Brief(Duration::try_from_secs_f64(seconds).unwrap_or_default()).to_string();
    let limit = view.memory_limit.map(|limit| format!(" of {}", list::bytes(limit))).unwrap_or_default();
    lines.extend(view.cpu_seconds.map(|time| ("Processor", seconds(time))));
    lines.extend(view.memory_peak.map(|peak| ("Memory", format!("{}{limit} at the most", list::bytes(peak)))));
    if view.oom_kills > 0 {
        lines.push(("Killed", format!("{} for memory", view.oom_kills)));
    }
    lines.extend(view.pids_peak.map(|peak| ("Processes", format!("{peak} at the most"))));
    let moved = |(read, written)| format!("{} read, {} written", list::bytes(read), list::bytes(written));
    lines.extend(view.block_read.zip(view.block_written).map(|both| ("Disk", moved(both))));
    let mut out = String::new();
    for (key, value) in lines {
        line(&mut out, key, value);
    }
    out
}
