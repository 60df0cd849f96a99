//! What the agent counts, for Prometheus on a loopback port.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, http::header, routing::get};
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use roster_proto::task::TaskState;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Label = [(&'static str, &'static str); 1];

pub struct Metrics {
    registry: Registry,
    tasks: Family<Label, Gauge>,
    starts: Family<Label, Counter>,
    start_duration: Histogram,
    failed_steps: Family<Label, Counter>,
    probes: Family<Label, Counter>,
    session_up: Gauge,
    sessions: Counter,
    generation: Gauge,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {source}; choose another address with --metrics, or none")]
pub struct MetricsError {
    address: SocketAddr,
    source: std::io::Error,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("roster_agent"),
            tasks: Family::default(),
            starts: Family::default(),
            start_duration: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            failed_steps: Family::default(),
            probes: Family::default(),
            session_up: Gauge::default(),
            sessions: Counter::default(),
            generation: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("tasks", "Tasks of the assignment set by the state last reported", metrics.tasks.clone());
        registry.register("starts", "Container starts by result", metrics.starts.clone());
        registry.register_with_unit(
            "start_duration",
            "From asking the runtime for a container to its program running",
            Unit::Seconds,
            metrics.start_duration.clone(),
        );
        registry.register("failed_steps", "Steps that failed and are tried again", metrics.failed_steps.clone());
        registry.register("probes", "Health probes by result", metrics.probes.clone());
        registry.register("session_up", "1 while a controller is connected", metrics.session_up.clone());
        registry.register("sessions", "Sessions opened", metrics.sessions.clone());
        registry.register("generation", "Of the assignment set in force", metrics.generation.clone());
        metrics
    }
}

impl Metrics {
    /// A task's reported state changed; `None`: it was not, or is no longer, reported.
    pub fn task_moved(&self, from: Option<TaskState>, to: Option<TaskState>) {
        if let Some(state) = from {
            self.tasks.get_or_create(&[("state", state_label(state))]).dec();
        }
        if let Some(state) = to {
            self.tasks.get_or_create(&[("state", state_label(state))]).inc();
        }
    }

    pub fn start_ended(&self, took: Duration, succeeded: bool) {
        self.starts.get_or_create(&[("result", if succeeded { "ok" } else { "failed" })]).inc();
        if succeeded {
            self.start_duration.observe(took.as_secs_f64());
        }
    }

    pub fn step_failed(&self, verb: &'static str) {
        self.failed_steps.get_or_create(&[("step", verb)]).inc();
    }

    pub fn probed(&self, result: &'static str) {
        self.probes.get_or_create(&[("result", result)]).inc();
    }

    pub fn session_opened(&self) {
        self.sessions.inc();
        self.session_up.set(1);
    }

    pub fn session_closed(&self) {
        self.session_up.set(0);
    }

    pub fn generation(&self, generation: u64) {
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

fn state_label(state: TaskState) -> &'static str {
    match state {
        TaskState::New => "new",
        TaskState::Pending => "pending",
        TaskState::Assigned => "assigned",
        TaskState::Preparing => "preparing",
        TaskState::Starting => "starting",
        TaskState::Running => "running",
        TaskState::Complete => "complete",
        TaskState::Failed => "failed",
        TaskState::Rejected => "rejected",
        TaskState::Shutdown => "shutdown",
        TaskState::Orphaned => "orphaned",
    }
}

pub async fn listen(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    TcpListener::bind(address).await.map_err(|source| MetricsError { address, source })
}

/// Answers `GET /metrics` until shut down.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, shutdown: CancellationToken) -> std::io::Result<()> {
    let answer = move || {
        let text = metrics.text();
        async move { ([(header::CONTENT_TYPE, CONTENT_TYPE)], text) }
    };
    let router = Router::new().route("/metrics", get(answer));
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told() {
        let metrics = Metrics::default();
        metrics.task_moved(None, Some(TaskState::Starting));
        metrics.task_moved(Some(TaskState::Starting), Some(TaskState::Running));
        metrics.start_ended(Duration::from_millis(3), true);
        metrics.probed("failed");
        metrics.session_opened();
        let text = metrics.text();
        for line in [
            "roster_agent_tasks{state=\"running\"} 1",
            "roster_agent_tasks{state=\"starting\"} 0",
            "roster_agent_starts_total{result=\"ok\"} 1",
            "roster_agent_start_duration_seconds_count 1",
            "roster_agent_probes_total{result=\"failed\"} 1",
            "roster_agent_session_up 1",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
