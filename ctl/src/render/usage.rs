//! What containers use, and who runs in them.

use std::{collections::BTreeMap, time::Duration};

use roster_proto::{cause::Brief, wire};
use serde::Serialize;

use super::{
    list::bytes,
    table::{Cell, Table},
};

#[derive(Debug, Serialize)]
pub struct ProcessView {
    pub name: String,
    pub task: String,
    pub pid: u32,
    pub parent: u32,
    pub uid: u32,
    pub user: Option<String>,
    pub state: String,
    pub threads: u32,
    pub memory: u64,
    pub cpu_percent: f64,
    pub cpu_seconds: f64,
    pub age_seconds: f64,
    pub command: String,
}

impl ProcessView {
    pub fn new(task: &wire::TaskName, process: wire::Process) -> Self {
        let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
        let (cpu, age) = (seconds(process.cpu_time), seconds(process.age));
        Self {
            name: task.name.clone(),
            task: task.task.clone(),
            pid: process.pid,
            parent: process.parent,
            uid: process.uid,
            user: process.user,
            state: process.state,
            threads: process.threads,
            memory: process.memory,
            cpu_percent: if age > 0.0 { tenths(cpu / age * 100.0) } else { 0.0 },
            cpu_seconds: cpu,
            age_seconds: age,
            command: escaped(&process.command),
        }
    }
}

/// `named`: of several containers.
pub fn processes(views: &[ProcessView], named: bool) -> Table {
    let mut table = match named {
        true => Table::new(["TASK", "USER", "PID", "PPID", "STATE", "CPU", "MEMORY", "FOR", "TIME", "COMMAND"]),
        false => Table::new(["USER", "PID", "PPID", "STATE", "CPU", "MEMORY", "FOR", "TIME", "COMMAND"]),
    };
    for view in views {
        let brief = |seconds: f64| Brief(Duration::try_from_secs_f64(seconds).unwrap_or_default()).to_string();
        let user = view.user.as_deref().map_or_else(|| view.uid.to_string(), |user| escaped(user.as_bytes()));
        let cells = [
            user,
            view.pid.to_string(),
            view.parent.to_string(),
            escaped(view.state.as_bytes()),
            percent(view.cpu_percent),
            bytes(view.memory),
            brief(view.age_seconds),
            brief(view.cpu_seconds),
            view.command.clone(),
        ];
        let name = named.then(|| Cell::from(view.name.as_str()));
        table.row(name.into_iter().chain(cells.map(Cell::from)));
    }
    table
}

#[derive(Debug, Serialize)]
pub struct UsageView {
    pub name: String,
    pub id: String,
    pub stack: String,
    pub service: String,
    pub node: String,
    /// 100 is one processor; absent before there are two looks.
    pub cpu_percent: Option<f64>,
    pub cpu_nanoseconds: Option<u64>,
    pub memory: Option<u64>,
    pub memory_limit: u64,
    pub network_received: Option<u64>,
    pub network_sent: Option<u64>,
    pub disk_read: Option<u64>,
    pub disk_written: Option<u64>,
    /// Of its own files, where their disk is limited.
    pub files_size: Option<u64>,
    pub files_limit: Option<u64>,
    pub pids: Option<u64>,
    pub pids_limit: Option<u64>,
    pub pressure: Option<PressureView>,
}

/// Per cent of the last ten seconds.
#[derive(Debug, Serialize)]
pub struct PressureView {
    pub cpu: Option<f64>,
    pub memory: Option<f64>,
    pub disk: Option<f64>,
}

impl UsageView {
    /// `before`: the look before this one, by task.
    pub fn new(task: &wire::TaskUsage, before: &BTreeMap<String, wire::Usage>) -> Self {
        let name = task.task.clone().unwrap_or_default();
        let usage = task.usage.unwrap_or_default();
        let (stack, service) = task.service.split_once('/').unwrap_or_default();
        let some = |pressure: Option<wire::usage::Pressure>| pressure.map(|pressure| pressure.some);
        let pressures = [some(usage.cpu_pressure), some(usage.memory_pressure), some(usage.io_pressure)];
        let pressure = pressures.iter().any(Option::is_some).then(|| {
            let [cpu, memory, disk] = pressures;
            PressureView { cpu, memory, disk }
        });
        Self {
            cpu_percent: before.get(&name.task).and_then(|before| cpu_percent(before, &usage)),
            cpu_nanoseconds: usage.cpu,
            name: name.name,
            id: name.task,
            stack: stack.to_owned(),
            service: service.to_owned(),
            node: task.node.clone(),
            memory: usage.memory,
            memory_limit: usage.memory_limit,
            network_received: usage.network.map(|network| network.r#in),
            network_sent: usage.network.map(|network| network.out),
            disk_read: usage.block.map(|block| block.r#in),
            disk_written: usage.block.map(|block| block.out),
            files_size: usage.files.map(|files| files.used),
            files_limit: usage.files.map(|files| files.limit),
            pids: usage.pids,
            pids_limit: usage.pids_limit,
            pressure,
        }
    }
}

fn cpu_percent(before: &wire::Usage, now: &wire::Usage) -> Option<f64> {
    let used = now.cpu?.saturating_sub(before.cpu?);
    let passed = now.at.checked_sub(before.at).filter(|passed| *passed > 0)?;
    Some(tenths(used as f64 / (passed as f64 * 1000.0) * 100.0))
}

pub fn stats(views: &[UsageView], wide: bool) -> Table {
    let mut table = match wide {
        true => Table::new([
            "STACK", "TASK", "ID", "NODE", "CPU", "MEMORY", "", "NETWORK", "DISK", "FILES", "PIDS", "PRESSURE",
        ]),
        false => {
            Table::new(["STACK", "TASK", "NODE", "CPU", "MEMORY", "", "NETWORK", "DISK", "FILES", "PIDS", "PRESSURE"])
        }
    };
    let dash = || "-".to_owned();
    let pair = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => format!("{} / {}", bytes(a), bytes(b)),
        _ => dash(),
    };
    for view in views {
        let share = |used: u64| used as f64 / view.memory_limit.max(1) as f64 * 100.0;
        let pressure = view.pressure.as_ref().map(|pressure| {
            let one = |share: Option<f64>| share.map_or_else(dash, |share| format!("{share:.0}"));
            format!("{} / {} / {} %", one(pressure.cpu), one(pressure.memory), one(pressure.disk))
        });
        let pids = match (view.pids, view.pids_limit) {
            (Some(pids), Some(limit)) => format!("{pids} / {limit}"),
            (Some(pids), None) => pids.to_string(),
            (None, _) => dash(),
        };
        let head = [Some(view.stack.clone()), Some(view.name.clone()), wide.then(|| view.id.clone())];
        let rest = [
            view.node.clone(),
            view.cpu_percent.map_or_else(dash, percent),
            pair(view.memory, Some(view.memory_limit)),
            view.memory.map_or_else(dash, |used| percent(tenths(share(used)))),
            pair(view.network_received, view.network_sent),
            pair(view.disk_read, view.disk_written),
            pair(view.files_size, view.files_limit),
            pids,
            pressure.unwrap_or_else(dash),
        ];
        table.row(head.into_iter().flatten().chain(rest).map(Cell::from));
    }
    table
}

fn percent(share: f64) -> String {
    format!("{share:.1} %")
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// What a container chose, so that it neither steers the terminal nor looks like something else: control characters,
/// those that change the direction of writing, and what is not UTF-8, as in a string of C.
pub fn escaped(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() || is_invisible(c) => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out
}

pub fn escaped_lines(lines: &[String]) -> String {
    lines.iter().map(|line| escaped(line.as_bytes())).collect::<Vec<_>>().join("\n")
}

/// Marks of direction and of joining, and the separators of lines and paragraphs.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A line of a table without its colours.
pub fn unstyled(line: &str) -> String {
    anstream::adapter::strip_str(line).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_chose_steers_nothing() {
        assert_eq!(escaped(b"sh -c true"), "sh -c true");
        assert_eq!(escaped("größe".as_bytes()), "größe");
        assert_eq!(escaped(b"a\nb\x1b[2J\x9b\xff\\"), "a\\nb\\u{1b}[2J\\x9b\\xff\\\\");
        assert_eq!(escaped("\u{202e}exe.\u{9b}31m".as_bytes()), "\\u{202e}exe.\\u{9b}31m");
    }

    #[test]
    fn two_looks_make_a_rate() {
        let look = |at, cpu| wire::Usage { at, cpu, ..wire::Usage::default() };
        let second = 1_000_000;
        assert_eq!(cpu_percent(&look(0, Some(0)), &look(second, Some(500_000_000))), Some(50.0));
        assert_eq!(cpu_percent(&look(0, Some(0)), &look(second / 2, Some(1_000_000_000))), Some(200.0));
        // Another container under the same name, a clock that stands still, and nothing known.
        assert_eq!(cpu_percent(&look(0, Some(9)), &look(second, Some(0))), Some(0.0));
        assert_eq!(cpu_percent(&look(5, Some(0)), &look(5, Some(9))), None);
        assert_eq!(cpu_percent(&look(0, None), &look(5, Some(9))), None);
    }
}
