//! Roster's agent: makes one host's kernel match the node's assignment set.
//!
//! [`session`] brings the wanted set, [`ledger`] keeps it on disk, [`reconcile`] compares it with what the kernel has
//! and carries the difference out through [`runtime`]; [`health`] probes, [`status`] reports back. [`membership`] says
//! which cluster the node is of. [`image`] and [`network`] serve the real runtime.

pub mod capacity;
pub mod clean;
pub mod clock;
pub mod config;
pub mod health;
pub mod image;
mod layers;
pub mod ledger;
pub mod membership;
pub mod metrics;
pub mod network;
pub mod reconcile;
pub mod runtime;
pub mod services;
pub mod session;
pub mod status;
pub mod telemetry;

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    capacity::CapacityError,
    config::Config,
    ledger::LedgerError,
    membership::Membership,
    metrics::{Metrics, MetricsError},
    reconcile::{Parts, Reconciler, Settled, Wanted},
    runtime::Runtime,
    session::{Services, Sessions},
    status::Board,
    telemetry::Chain,
};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    #[error("{0}; check that --data-dir is writable")]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("{controller} is no address of a controller: {source}")]
    Controller { controller: String, source: tonic::transport::Error },
    #[error("the metrics server failed")]
    MetricsServer(#[source] std::io::Error),
}

/// Runs an agent until `shutdown`. Its containers run on; the next one takes them back.
///
/// Returns early only when it cannot begin. `runtime` and `services` may be shared: what they hold belongs to the host,
/// not to this agent.
pub async fn run<R: Runtime, S: Services>(
    config: Config,
    runtime: Arc<R>,
    services: Arc<S>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let description = capacity::describe(config.labels, config.runtimes, &config.bridge)?;
    let endpoint = session::endpoint(&config.controller)
        .map_err(|source| RunError::Controller { controller: config.controller.clone(), source })?;
    let metrics = Arc::new(Metrics::default());
    let listener = match config.metrics {
        Some(address) => Some(metrics::listen(address).await?),
        None => None,
    };
    let (set_file, journal, set) = open_ledger(config.data_dir.join("ledger"))?;
    info!(node = %config.node, controller = %config.controller, "agent {} starts", env!("CARGO_PKG_VERSION"));

    let board = Arc::new(Board::default());
    let (wanted, wanted_here) = watch::channel(Wanted { set: set.map(Arc::new), authoritative: false });
    let (lease, lease_here) = watch::channel(None);
    let (settled_here, settled) = watch::channel(Settled::default());
    let reconciler = Reconciler::new(Parts {
        runtime,
        board: board.clone(),
        metrics: metrics.clone(),
        journal,
        set_file,
        wanted: wanted_here,
        lease: lease_here,
        settled: settled_here,
    });
    let sessions = Sessions {
        controller: config.controller,
        endpoint,
        membership: Membership::new(&config.data_dir, config.node.clone()),
        node: config.node,
        description,
        bridge: config.bridge,
        board,
        wanted,
        lease,
        settled,
        services,
        metrics: metrics.clone(),
    };
    let scrapes = async {
        match listener {
            Some(listener) => metrics::serve(listener, metrics, shutdown.clone()).await,
            None => Ok(()),
        }
    };
    let ((), (), scraped) = tokio::join!(reconciler.run(shutdown.clone()), sessions.run(shutdown.clone()), scrapes);
    info!("agent stopped; its containers run on");
    scraped.map_err(RunError::MetricsServer)
}

fn open_ledger(
    directory: PathBuf,
) -> Result<(ledger::SetFile, ledger::Journal, Option<roster_proto::assignment::AssignmentSet>), LedgerError> {
    let (set_file, journal, remembered) = ledger::open(&directory)?;
    for damage in &remembered.damage {
        error!("{}; it counts as empty, and nothing is stopped on its word", Chain(damage));
    }
    match &remembered.set {
        Some(set) => info!(generation = set.generation.0, tasks = set.tasks.len(), "the ledger has a set"),
        None => warn!("the ledger has no set: waiting for the controller"),
    }
    Ok((set_file, journal, remembered.set))
}

#[cfg(test)]
mod tests;
