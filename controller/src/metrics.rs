//! What Prometheus can scrape, in the OpenMetrics text format.
//!
//! Latencies are recorded as they happen; whatever the state tells is counted when somebody asks, so that nobody
//! asking costs nothing.

use std::{
    collections::BTreeMap,
    fmt,
    future::IntoFuture,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{
        counter::Counter,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{cluster::Cluster, dispatch::Sessions, listen::ACCEPT_PAUSE};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The controller's own measurements.
#[derive(Debug)]
pub struct Metrics {
    propose_seconds: Histogram,
    plan_seconds: Histogram,
    stale_plans: Counter,
    registry: OnceLock<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            // 100 µs to 3.3 s: memory, a fast disk, a slow disk, a sick one.
            propose_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            // 10 µs to 0.3 s.
            plan_seconds: Histogram::new(exponential_buckets(0.00001, 2.0, 16)),
            stale_plans: Counter::default(),
            registry: OnceLock::new(),
        }
    }
}

impl Metrics {
    /// From proposing a command to its being durable and applied.
    pub fn proposed(&self, took: Duration) {
        self.propose_seconds.observe(took.as_secs_f64());
    }

    pub fn planned(&self, took: Duration) {
        self.plan_seconds.observe(took.as_secs_f64());
    }

    pub fn stale_plan(&self) {
        self.stale_plans.inc();
    }

    fn registry(&self, cluster: &Cluster, sessions: &Arc<Sessions>) -> &Registry {
        self.registry.get_or_init(|| {
            let mut registry = Registry::with_prefix("roster");
            registry.register(
                "propose_seconds",
                "From proposing a command to its being durable and applied",
                self.propose_seconds.clone(),
            );
            registry.register("plan_seconds", "Computing one plan", self.plan_seconds.clone());
            registry.register("stale_plans", "Plans refused because the state had moved on", self.stale_plans.clone());
            registry.register_collector(Box::new(Observed { cluster: cluster.clone(), sessions: sessions.clone() }));
            registry
        })
    }
}

/// What is counted afresh at every scrape.
#[derive(Debug)]
struct Observed {
    cluster: Cluster,
    sessions: Arc<Sessions>,
}

impl Collector for Observed {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let state = self.cluster.read();
        let leadership = *self.cluster.leadership().borrow();
        gauge(&mut encoder, "raft_term", "The present term", leadership.term)?;
        gauge(&mut encoder, "raft_leader", "1 when this controller leads", u64::from(leadership.is_self))?;
        gauge(&mut encoder, "raft_applied", "Log position of the last command applied", state.version.0)?;
        gauge(&mut encoder, "sessions", "Agents connected now", self.sessions.count() as u64)?;
        gauge(&mut encoder, "services", "Services", state.services.len() as u64)?;
        let tasks = state.tasks.values().map(|task| task.status.state.to_string());
        by_state(&mut encoder, "tasks", "Tasks that are kept, by state", tasks)?;
        let nodes = state.nodes.values().map(|node| node.state.to_string());
        by_state(&mut encoder, "nodes", "Nodes by state", nodes)
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
    use prometheus_client::metrics::TypedMetric;

    let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    value.encode(encoder.encode_descriptor(name, help, None, <ConstGauge<i64> as TypedMetric>::TYPE)?)
}

fn by_state(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    states: impl Iterator<Item = String>,
) -> Result<(), fmt::Error> {
    use prometheus_client::metrics::TypedMetric;

    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for state in states {
        *counts.entry(state).or_default() += 1;
    }
    let mut family = encoder.encode_descriptor(name, help, None, <ConstGauge<i64> as TypedMetric>::TYPE)?;
    for (state, count) in counts {
        ConstGauge::new(count).encode(family.encode_family(&[("state", state)])?)?;
    }
    Ok(())
}

#[derive(Clone)]
struct Scrape {
    metrics: Arc<Metrics>,
    cluster: Cluster,
    sessions: Arc<Sessions>,
}

/// A listener that goes on after the server.
struct Shared(Arc<TcpListener>);

impl axum::serve::Listener for Shared {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the metrics");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// `GET /metrics`, until `shutdown`.
pub(crate) async fn serve(
    listener: Arc<TcpListener>,
    metrics: Arc<Metrics>,
    cluster: Cluster,
    sessions: Arc<Sessions>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new().route("/metrics", get(scrape)).with_state(Scrape { metrics, cluster, sessions });
    tokio::select! {
        served = axum::serve(Shared(listener), app).into_future() => served,
        () = shutdown.cancelled() => Ok(()),
    }
}

async fn scrape(State(scrape): State<Scrape>) -> impl IntoResponse {
    let mut text = String::new();
    encode(&mut text, scrape.metrics.registry(&scrape.cluster, &scrape.sessions))
        .expect("a String takes whatever is written");
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text)
}
