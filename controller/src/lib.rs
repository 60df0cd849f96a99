//! Roster's controller.
//!
//! Pure: [`state`] (what is wanted and what was reported, and how commands change it) and [`plan`] (what to do about
//! the difference). Effects: [`raft`] (the replicated log under the state), [`cluster`] (the handle on it), [`leader`]
//! (the loop that plans and proposes), [`dispatch`] (agents' sessions), [`api`] (what people ask), and the doors
//! ([`listen`], [`serve`], [`metrics`]). Effects depend on the pure modules, never the reverse.
//!
//! [`run`] is the whole controller; a test starts one in its own process:
//!
//! ```no_run
//! # async fn start(dir: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
//! use clap::Parser;
//! use roster_controller::{Listeners, config::Config, run};
//! use tokio_util::sync::CancellationToken;
//!
//! let (data, socket) = (dir.join("data"), dir.join("controller.sock"));
//! let config = Config::parse_from([
//!     "roster-controller".as_ref(),
//!     "--data-dir".as_ref(),
//!     data.as_os_str(),
//!     "--socket".as_ref(),
//!     socket.as_os_str(),
//!     "--metrics".as_ref(),
//!     "none".as_ref(),
//! ]);
//! let shutdown = CancellationToken::new();
//! let listeners = Listeners::bind(&config).await?;
//! let controller = tokio::spawn(run(config, listeners, shutdown.clone()));
//! // Connections are accepted from here on.
//! shutdown.cancel();
//! controller.await??;
//! # Ok(())
//! # }
//! ```

pub mod api;
pub mod cluster;
pub mod config;
pub mod dispatch;
pub mod forward;
pub mod leader;
pub mod listen;
pub mod metrics;
pub mod plan;
pub mod raft;
pub mod serve;
pub mod state;
pub mod status;
pub mod telemetry;

use std::{os::unix::fs::DirBuilderExt, sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::listen::Listeners;
use self::{
    api::Api,
    cluster::Cluster,
    config::Config,
    dispatch::{Dispatcher, Rounds, Sessions, broker::Broker},
    leader::{Reconciler, liveness::Liveness},
    listen::ListenError,
    metrics::Metrics,
    raft::{Alone, Fault, OpenError, Store, StoreConfig},
    serve::{ServeError, Services},
    state::ClusterState,
};

/// Calls under way get this long to end once the controller is told to stop.
const CLOSING: Duration = Duration::from_secs(2);

/// Why the controller could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot make --data-dir: run as root, or choose one this user may make")]
    DataDir(#[source] std::io::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the store failed and the controller stops; containers go on running")]
    Store(#[source] Arc<Fault>),
    #[error("cannot go on serving metrics")]
    Metrics(#[source] std::io::Error),
}

/// What follows one life of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Stop,
    /// What it is changed: it begins anew with what its data directory holds now.
    Again,
}

/// The whole controller, until `shutdown` or until it cannot go on. The data directory and the socket are free on
/// return.
pub async fn run(config: Config, listeners: Listeners, shutdown: CancellationToken) -> Result<(), RunError> {
    private_directory(&config.data_dir).map_err(RunError::DataDir)?;
    while live(&config, &listeners, &shutdown).await? == Next::Again {
        tracing::info!("the controller begins anew");
    }
    Ok(())
}

/// From opening what the data directory holds to closing it.
async fn live(config: &Config, listeners: &Listeners, shutdown: &CancellationToken) -> Result<Next, RunError> {
    // The store outlives the servers, so that what they still have under way is answered.
    let store_shutdown = CancellationToken::new();
    let (store, store_task) =
        Store::<ClusterState>::open(StoreConfig::new(&config.data_dir), Alone, store_shutdown.clone()).await?;
    let metrics = Arc::new(Metrics::default());
    let cluster = Cluster::new(store, metrics.clone());
    let stopping = shutdown.child_token();
    let again = CancellationToken::new();
    let store_task = store_task.ended();
    tokio::pin!(store_task);

    let mut servers = serve(config, listeners.clone(), &cluster, &metrics, &stopping).await?;
    tracing::info!(socket = %config.socket.display(), data = %config.data_dir.display(), "the controller serves");
    let served = tokio::select! {
        ended = &mut store_task => {
            stopping.cancel();
            close(&mut servers).await;
            return ended.map(|()| Next::Stop).map_err(RunError::Store);
        }
        served = first_error(&mut servers) => served.map(|()| Next::Stop),
        () = shutdown.cancelled() => Ok(Next::Stop),
        () = again.cancelled() => Ok(Next::Again),
    };
    stopping.cancel();
    close(&mut servers).await;
    store_shutdown.cancel();
    store_task.await.map_err(RunError::Store)?;
    served
}

/// For its owner alone: specs hold what people put into environments. One that exists keeps its mode.
fn private_directory(path: &std::path::Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Starts everything that runs beside the store.
async fn serve(
    config: &Config,
    listeners: Listeners,
    cluster: &Cluster,
    metrics: &Arc<Metrics>,
    stopping: &CancellationToken,
) -> Result<JoinSet<Result<(), RunError>>, RunError> {
    let sessions = Arc::new(Sessions::default());
    let broker = Arc::new(Broker::new(sessions.clone()));
    let liveness = Arc::new(Liveness::new(config.heartbeat));
    let api = Api { cluster: cluster.clone(), broker: broker.clone(), shutdown: stopping.clone() };
    let dispatcher = Dispatcher {
        cluster: cluster.clone(),
        sessions: sessions.clone(),
        broker,
        liveness: liveness.clone(),
        rounds: Rounds::new(config.heartbeat),
        shutdown: stopping.clone(),
    };
    let services = Services::new(api, dispatcher).await?;

    let mut servers = JoinSet::new();
    let until_stopped = |work: futures::future::BoxFuture<'static, ()>| {
        let stopping = stopping.clone();
        async move {
            stopping.run_until_cancelled_owned(work).await;
            Ok(())
        }
    };
    let reconciler = Reconciler::new(cluster.clone(), metrics.clone());
    servers.spawn(until_stopped(Box::pin(reconciler.run())));
    let watched = cluster.clone();
    servers.spawn(until_stopped(Box::pin(async move { liveness.watch_over(&watched).await })));
    let Listeners { unix, tcp, metrics: scrapes } = listeners;
    let (on_unix, token) = (services.clone(), stopping.clone());
    servers.spawn(async move { Ok(on_unix.on_unix(unix, token).await?) });
    if let Some(tcp) = tcp {
        let token = stopping.clone();
        servers.spawn(async move { Ok(services.on_tcp(tcp, token).await?) });
    }
    if let Some(scrapes) = scrapes {
        let served = metrics::serve(scrapes, metrics.clone(), cluster.clone(), sessions, stopping.clone());
        servers.spawn(async move { served.await.map_err(RunError::Metrics) });
    }
    Ok(servers)
}

/// Returns with the first server that fails; never while all go on.
async fn first_error(servers: &mut JoinSet<Result<(), RunError>>) -> Result<(), RunError> {
    while let Some(ended) = servers.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    std::future::pending().await
}

/// Waits for the servers' calls to end, then ends them.
async fn close(servers: &mut JoinSet<Result<(), RunError>>) {
    let closed = tokio::time::timeout(CLOSING, async {
        while let Some(ended) = servers.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::warn!(error = status::chain(&error), "a server did not close well");
            }
        }
    });
    if closed.await.is_err() {
        tracing::warn!("calls are still under way and are cut off");
        servers.shutdown().await;
    }
}
