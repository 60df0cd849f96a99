//! What probes say about a container. Pure: probes and the clock come from outside.
//!
//! The rules are Docker's (Dockerfile reference, HEALTHCHECK): a probe follows `interval` after the one before it has
//! ended; `retries` failures in a row make a container unhealthy; one success makes it healthy at once. Failures
//! within `start_period` of a container that was not yet healthy do not count, and there probes come every
//! `start_interval`.

use std::time::Duration;

use roster_proto::{
    spec::{HealthTest, Healthcheck},
    task::Health,
    time::Timestamp,
};

/// The number of bytes kept of what a probe wrote.
pub const OUTPUT_LIMIT: usize = 4096;

/// A healthcheck with every blank filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub retries: u32,
    pub start_period: Duration,
    pub start_interval: Duration,
}

/// The spec's healthcheck over the image's, over Docker's defaults. `None`: the container is not probed.
///
/// As in Docker, zero stands for "not said".
pub fn resolve(spec: Option<&Healthcheck>, image: Option<&Healthcheck>) -> Option<Check> {
    let command = spec.and_then(|check| words(&check.test));
    let command = match (spec.map(|check| &check.test), command) {
        (Some(HealthTest::Disabled), _) => return None,
        (_, Some(command)) => command,
        (_, None) => image.and_then(|check| words(&check.test))?,
    };
    let pick = |field: fn(&Healthcheck) -> Option<Duration>, default: Duration| {
        let said = |check: Option<&Healthcheck>| check.and_then(field).filter(|value| !value.is_zero());
        said(spec).or_else(|| said(image)).unwrap_or(default)
    };
    let retries = |check: Option<&Healthcheck>| check.and_then(|check| check.retries).filter(|count| *count > 0);
    Some(Check {
        command,
        interval: pick(|check| check.interval, Duration::from_secs(30)),
        timeout: pick(|check| check.timeout, Duration::from_secs(30)),
        retries: retries(spec).or_else(|| retries(image)).unwrap_or(3),
        start_period: pick(|check| check.start_period, Duration::ZERO),
        start_interval: pick(|check| check.start_interval, Duration::from_secs(5)),
    })
}

fn words(test: &HealthTest) -> Option<Vec<String>> {
    match test {
        HealthTest::Inherit | HealthTest::Disabled => None,
        HealthTest::Command(words) if words.is_empty() => None,
        HealthTest::Command(words) => Some(words.clone()),
        HealthTest::Shell(line) => Some(vec!["/bin/sh".into(), "-c".into(), line.clone()]),
    }
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub passed: bool,
    pub output: String,
}

/// What all probes of one container so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    started: Timestamp,
    health: Health,
    failures: u32,
    output: String,
}

impl Verdict {
    /// Of a container that started at `started` and was not probed yet.
    pub fn new(started: Timestamp) -> Self {
        Self { started, health: Health::Starting, failures: 0, output: String::new() }
    }

    pub fn health(&self) -> Health {
        self.health
    }

    /// Counted failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Of the last probe that failed.
    pub fn output(&self) -> &str {
        &self.output
    }

    /// How long after the last probe's end (at first, after the start) the next one is due.
    pub fn pause(&self, check: &Check, now: Timestamp) -> Duration {
        if self.in_start_period(check, now) { check.start_interval } else { check.interval }
    }

    /// Takes in a probe that ended at `now`; true when the health changed.
    pub fn observe(&mut self, check: &Check, finding: Finding, now: Timestamp) -> bool {
        let before = self.health;
        if finding.passed {
            self.failures = 0;
            self.health = Health::Healthy;
        } else if !self.in_start_period(check, now) {
            self.failures = self.failures.saturating_add(1);
            self.output = finding.output;
            if self.failures >= check.retries {
                self.health = Health::Unhealthy;
            }
        }
        before != self.health
    }

    fn in_start_period(&self, check: &Check, now: Timestamp) -> bool {
        self.health == Health::Starting && now.since(self.started) < check.start_period
    }
}

#[cfg(test)]
mod tests;
