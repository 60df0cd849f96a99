//! Probes: one loop for each running container that has a healthcheck.
//!
//! [`verdict`] decides what probes amount to; here they are run, one at a time and exactly when due. The loop ends by
//! itself when the container is found unhealthy; who owns it ends it otherwise.

pub mod verdict;

use std::{sync::Arc, time::Duration};

use roster_proto::{id::TaskId, task::Health, time::Timestamp};
use tokio::sync::mpsc;

pub use self::verdict::{Check, resolve};
use self::verdict::{Finding, OUTPUT_LIMIT, Verdict};
use crate::{
    clock,
    metrics::Metrics,
    runtime::{Probed, Runtime},
};

/// A container's health changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub task: TaskId,
    pub health: Health,
    /// In a row, and what the last of them wrote; of meaning when unhealthy.
    pub failures: u32,
    pub output: String,
}

/// A container to be probed.
#[derive(Clone, Debug)]
pub struct Subject {
    pub task: TaskId,
    pub check: Check,
    pub started: Timestamp,
    /// It ran before this agent did: the first probe comes at once, for what it was judged before is not known.
    pub taken_back: bool,
}

/// Probes until the container is unhealthy or nobody listens any more.
pub async fn probe_until_unhealthy<R: Runtime>(
    runtime: Arc<R>,
    subject: Subject,
    changes: mpsc::Sender<Change>,
    metrics: Arc<Metrics>,
) {
    let Subject { task, check, started, taken_back } = subject;
    let mut verdict = Verdict::new(started);
    let mut pause = if taken_back {
        Duration::ZERO
    } else {
        let now = clock::now();
        verdict.pause(&check, now).saturating_sub(now.since(started))
    };
    loop {
        tokio::time::sleep(pause).await;
        let finding = probe(&*runtime, &task, &check, &metrics).await;
        let now = clock::now();
        if verdict.observe(&check, finding, now) {
            let health = verdict.health();
            let output = verdict.output().to_owned();
            let change = Change { task: task.clone(), health, failures: verdict.failures(), output };
            if changes.send(change).await.is_err() || health == Health::Unhealthy {
                return;
            }
        }
        pause = verdict.pause(&check, now);
    }
}

async fn probe<R: Runtime>(runtime: &R, task: &TaskId, check: &Check, metrics: &Metrics) -> Finding {
    let (result, finding) = match runtime.probe(task, &check.command, check.timeout).await {
        Ok(Probed { code: Some(0), output }) => ("passed", Finding { passed: true, output }),
        Ok(Probed { code: Some(code), output }) if output.trim().is_empty() => {
            ("failed", Finding { passed: false, output: format!("exit code {code}") })
        }
        Ok(Probed { code: Some(_), output }) => ("failed", Finding { passed: false, output }),
        Ok(Probed { code: None, output }) => {
            let output = format!("no result within {:?} {output}", check.timeout);
            ("timeout", Finding { passed: false, output })
        }
        // As in Docker, a probe that cannot be run is one that failed.
        Err(error) => ("error", Finding { passed: false, output: error.to_string() }),
    };
    metrics.probed(result);
    Finding { output: last_bytes(finding.output, OUTPUT_LIMIT), ..finding }
}

/// The end of `text`, at most `limit` bytes of it.
fn last_bytes(text: String, limit: usize) -> String {
    if text.len() <= limit {
        return text;
    }
    let from = (text.len() - limit..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[from..].to_owned()
}

#[cfg(test)]
mod tests;
