//! Why a task is not running: exactly one cause, as data, and in words through `Display`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{id::NodeId, spec::Protocol, task::StopReason, time::Timestamp};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    // It waits.
    /// For the backoff after its predecessor's end.
    Backoff {
        until: Timestamp,
        failures: u32,
        last: Box<Cause>,
    },
    /// For a node that could take it.
    NoNode {
        rejections: Vec<Rejection>,
    },
    /// For its predecessor in the slot to end.
    Predecessor {
        task: String,
    },
    /// For the task whose namespaces it is to share to run.
    Partner {
        task: String,
    },
    /// For its node, which is Down since then, while no other can take it.
    NodeDown {
        node: NodeId,
        since: Timestamp,
    },
    /// For its node, which vanished together with most others: the brake holds, and nothing is moved.
    Braked {
        node: NodeId,
        since: Timestamp,
        until: Option<Timestamp>,
    },
    /// A singleton: for the lease that it may still run by on its node, which no longer answers.
    WaitsForLease {
        node: NodeId,
        since: Timestamp,
    },
    /// For its image.
    Pulling {
        image: String,
    },
    /// A one-off, for whoever wanted it to attach: only then its program begins.
    AwaitsAttach {
        until: Timestamp,
    },
    /// For its processes to end.
    Stopping {
        reason: StopReason,
        kill_at: Timestamp,
    },

    // It ended.
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
    },
    /// The kernel killed it for reaching its own memory limit (bytes), or, with none, the host's.
    OomKilled {
        limit: Option<u64>,
    },
    Unhealthy {
        failures: u32,
        output: String,
    },
    Stopped {
        reason: StopReason,
    },
    ImageUnavailable {
        image: String,
        reason: String,
    },
    /// What the spec asks for cannot be had on this node.
    Impossible {
        what: String,
        reason: String,
    },
    /// The container could not be made: the step, and the error it ended with.
    StartFailed {
        step: String,
        error: String,
    },
    /// The shim was killed, and with it the container.
    ShimLost,
    NodeLost {
        node: NodeId,
    },
    /// A singleton's node lost touch with the leader, so that another may run in its place.
    LeaseLost,
    /// A one-off that nobody attached to in time, so that its program never began.
    Unattended,
    /// There is no such program, or it is none that can be run.
    NotRun {
        what: String,
        reason: String,
        /// As a shell counts: 127 or 126.
        code: i32,
    },
    /// The slot's restart policy is used up.
    GaveUp {
        attempts: u32,
        last: Box<Cause>,
    },
}

/// Why one node cannot take a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    pub node: NodeId,
    pub reason: RejectReason,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RejectReason {
    Down,
    Paused,
    Draining,
    /// Thousand-millionths of a core.
    Cpu {
        wanted: u64,
        free: u64,
    },
    /// Bytes.
    Memory {
        wanted: u64,
        free: u64,
    },
    HostPort {
        port: u16,
        protocol: Protocol,
        holder: String,
    },
    NoRuntime {
        runtime: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Backoff { until, failures, last } => {
                write!(f, "restarts at {until} (failure {failures} in a row: {last})")
            }
            Cause::NoNode { rejections } if rejections.is_empty() => {
                write!(f, "no node has joined yet: start an agent")
            }
            Cause::NoNode { rejections } => {
                write!(f, "no node can take it: ")?;
                for (i, rejection) in rejections.iter().enumerate() {
                    let separator = if i == 0 { "" } else { "; " };
                    write!(f, "{separator}{} {}", rejection.node, rejection.reason)?;
                }
                Ok(())
            }
            Cause::Predecessor { task } => write!(f, "waits for {task} to end"),
            Cause::Partner { task } => write!(f, "waits for {task} to run, whose namespaces it shares"),
            Cause::NodeDown { node, since } => {
                write!(f, "node {node} has been Down since {since} and no other node can take it")
            }
            Cause::Braked { node, since, until } => {
                write!(f, "too many nodes vanished at once, so nothing is moved off node {node} since {since}")?;
                if let Some(until) = until {
                    write!(f, " and until {until}")?;
                }
                write!(f, "; `rctl cluster release` lets it move at once")
            }
            Cause::WaitsForLease { node, since } => {
                write!(
                    f,
                    "node {node} has been Down since {since}, and a singleton is replaced only when its lease there has run out"
                )
            }
            Cause::AwaitsAttach { until } => write!(f, "waits for somebody to attach, until {until}"),
            Cause::Pulling { image } => write!(f, "pulling image {image}"),
            Cause::Stopping { reason, kill_at } => write!(f, "stopping ({reason}), killed at {kill_at}"),
            Cause::Exited { code } => write!(f, "exited with code {code}"),
            Cause::Signaled { signal } => match signal_name(*signal) {
                Some(name) => write!(f, "killed by {name} (signal {signal})"),
                None => write!(f, "killed by signal {signal}"),
            },
            Cause::OomKilled { limit: Some(limit) } => {
                write!(f, "killed by the kernel: out of memory (limit {})", Bytes(*limit))
            }
            Cause::OomKilled { limit: None } => write!(f, "killed by the kernel: the host is out of memory"),
            Cause::Unhealthy { failures, output } => {
                match failures {
                    1 => write!(f, "unhealthy: a probe failed")?,
                    _ => write!(f, "unhealthy: {failures} probes in a row failed")?,
                }
                match output.trim() {
                    "" => Ok(()),
                    output => write!(f, ": {output}"),
                }
            }
            Cause::Stopped { reason } => write!(f, "stopped: {reason}"),
            Cause::ImageUnavailable { image, reason } => write!(f, "image {image} is not to be had: {reason}"),
            Cause::Impossible { what, reason } | Cause::NotRun { what, reason, .. } => {
                write!(f, "{what} is impossible here: {reason}")
            }
            Cause::StartFailed { step, error } => write!(f, "cannot start: {step}: {error}"),
            Cause::ShimLost => write!(f, "its shim was killed, and the container with it"),
            Cause::NodeLost { node } => write!(f, "node {node} was lost"),
            Cause::LeaseLost => write!(f, "its node lost touch with the leader, and a singleton must not run on then"),
            Cause::Unattended => write!(f, "nobody attached to it in time, so its program never began"),
            Cause::GaveUp { attempts, last } => {
                write!(f, "gave up after {attempts} restarts: {last}")
            }
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RejectReason::Down => write!(f, "is down"),
            RejectReason::Paused => write!(f, "is paused"),
            RejectReason::Draining => write!(f, "is being drained"),
            RejectReason::Cpu { wanted, free } => {
                write!(f, "has {} cpus unreserved, {} wanted", Cpus(*free), Cpus(*wanted))
            }
            RejectReason::Memory { wanted, free } => {
                write!(f, "has {} memory unreserved, {} wanted", Bytes(*free), Bytes(*wanted))
            }
            RejectReason::HostPort { port, protocol, holder } => {
                let protocol = if *protocol == Protocol::Tcp { "tcp" } else { "udp" };
                write!(f, "has port {port}/{protocol} taken by {holder}")
            }
            RejectReason::NoRuntime { runtime } => write!(f, "has no runtime {runtime}"),
        }
    }
}

/// Bytes in the largest binary unit that leaves a short number.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut unit = 0;
        let mut value = self.0 as f64;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let text = if value.fract().abs() < 0.05 || unit == 0 {
            format!("{value:.0} {}", UNITS[unit])
        } else {
            format!("{value:.1} {}", UNITS[unit])
        };
        f.pad(&text)
    }
}

/// Thousand-millionths of a core as cores.
#[derive(Clone, Copy, Debug)]
pub struct Cpus(pub u64);

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.3}", self.0 as f64 / 1e9);
        f.pad(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// A duration to the precision a person reads: `850ms`, `4.2s`, `3m10s`, `2h5m`, `3d4h`.
#[derive(Clone, Copy, Debug)]
pub struct Brief(pub Duration);

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let text = match seconds {
            0 => format!("{}ms", self.0.as_millis()),
            1..=9 => format!("{:.1}s", self.0.as_secs_f64()),
            10..=59 => format!("{seconds}s"),
            60..=3599 => format!("{}m{}s", seconds / 60, seconds % 60),
            3600..=86399 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
            _ => format!("{}d{}h", seconds / 86400, seconds % 86400 / 3600),
        };
        f.pad(&text)
    }
}

/// The names of signal(7) on x86-64 and arm64.
fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [&str; 32] = [
        "",
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    usize::try_from(signal).ok().filter(|n| *n > 0).and_then(|n| NAMES.get(n).copied())
}
