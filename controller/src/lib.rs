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
mod doors;
pub mod forward;
mod home;
mod identity;
pub mod leader;
pub mod listen;
mod local;
pub mod metrics;
pub mod peers;
pub mod plan;
pub mod raft;
pub mod serve;
pub mod state;
pub mod status;
pub mod telemetry;

use std::{os::unix::fs::DirBuilderExt, sync::Arc, time::Duration};

use roster_proto::id::PeerId;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::{
    api::{Api, cluster::ClusterApi, enroll::EnrollApi},
    cluster::Cluster,
    config::Config,
    dispatch::{Dispatcher, Rounds, Sessions, broker::Broker},
    doors::{Connections, Doors},
    forward::Forward,
    home::{Home, Standing},
    identity::OwnIdentity,
    leader::{Reconciler, liveness::Liveness, membership::Membership},
    listen::ListenError,
    local::{Here, Life, Local},
    metrics::Metrics,
    peers::{Me, Peers},
    raft::{Alone, Begin, Fault, OpenError, Store, StoreConfig, StoreTask},
    serve::{ServeError, Services, WaysIn},
    state::ClusterState,
};
pub use self::{home::Step, listen::Listeners};

/// Calls under way get this long to end once the controller is told to stop.
const CLOSING: Duration = Duration::from_secs(2);
/// For another controller to take over the lead before this one stops: it takes a few round trips, and an election without
/// it little longer than this.
const HANDING_OVER: Duration = Duration::from_secs(1);

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
    #[error(transparent)]
    Home(#[from] home::HomeError),
    #[error(transparent)]
    Found(#[from] local::FoundError),
    #[error("{0} says nothing of this controller's id: it is not a controller's")]
    NoPeer(std::path::PathBuf),
    #[error("the controller's identity cannot be used")]
    Tls(#[source] roster_tls::TlsError),
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
    let config = Arc::new(config);
    while live(&config, &listeners, &shutdown).await? == Next::Again {
        tracing::info!("the controller begins anew");
    }
    Ok(())
}

/// One life: as what the data directory says.
async fn live(config: &Arc<Config>, listeners: &Listeners, shutdown: &CancellationToken) -> Result<Next, RunError> {
    let home = Home::of(config);
    let standing = tokio::task::spawn_blocking({
        let home = home.clone();
        move || home.standing()
    });
    match standing.await.expect("looking at a directory does not panic")? {
        Standing::Blank if config.wait => wait(config, listeners, shutdown).await,
        standing => belong(config, home, standing, listeners, shutdown).await,
    }
}

/// Until somebody says what this controller is to be.
async fn wait(config: &Arc<Config>, listeners: &Listeners, shutdown: &CancellationToken) -> Result<Next, RunError> {
    let life = Life::default();
    let stopping = shutdown.child_token();
    let services = Services::waiting(Local::new(config.clone(), life.clone(), Here::Waiting)).await?;
    let (unix, token) = (listeners.unix.clone(), stopping.clone());
    let mut servers = JoinSet::new();
    servers.spawn(async move { Ok(services.on_unix(unix, token).await?) });
    if let Some(tcp) = listeners.tcp.clone() {
        let token = stopping.clone();
        servers.spawn(async move {
            token.run_until_cancelled(doors::closed_door(&tcp)).await;
            Ok(())
        });
    }
    tracing::info!(socket = %config.socket.display(), "the controller waits to be told what to be");
    let served = tokio::select! {
        served = first_error(&mut servers) => served.map(|()| Next::Stop),
        () = shutdown.cancelled() => Ok(Next::Stop),
        () = life.ends() => Ok(Next::Again),
    };
    stopping.cancel();
    close(&mut servers).await;
    served
}

/// From opening the store to closing it.
async fn belong(
    config: &Arc<Config>,
    home: Home,
    standing: Standing,
    listeners: &Listeners,
    shutdown: &CancellationToken,
) -> Result<Next, RunError> {
    let life = Life::default();
    // Not the shutdown's child: the lead is handed over before anything stops.
    let stopping = CancellationToken::new();
    let (identity, address) = match &standing {
        Standing::Blank | Standing::Alone => (None, None),
        Standing::Joining(identity, join) => (Some(identity), Some(join.address.clone())),
        Standing::Member(identity) => (Some(identity), None),
    };
    let own = match identity {
        Some(identity) => Some(OwnIdentity::new(home.identity(), (**identity).clone()).map_err(RunError::Tls)?),
        None => None,
    };
    let peers = match &own {
        Some(own) => Some(meet(config, &home, own, address, &stopping)?),
        None => None,
    };
    // The store outlives the servers, so that what they still have under way is answered.
    let (store, store_task) = open(&home, &standing, peers.as_ref(), &life).await?;
    if matches!(standing, Standing::Joining(..))
        && let Err(error) = home.end_join()
    {
        life.store_shutdown().cancel();
        store_task.ended().await.map_err(RunError::Store)?;
        return Err(error.into());
    }
    let metrics = Arc::new(Metrics::default());
    let cluster = Cluster::new(store.clone(), metrics.clone());
    let store_task = store_task.ended();
    tokio::pin!(store_task);
    let here = match &peers {
        Some(peers) => {
            peers.attach(store);
            Here::Member(cluster.clone(), peers.clone())
        }
        None if take_identity(&home, &cluster)? => {
            life.store_shutdown().cancel();
            store_task.await.map_err(RunError::Store)?;
            return Ok(Next::Again);
        }
        None => Here::Alone(cluster.clone()),
    };
    let local = Local::new(config.clone(), life.clone(), here);
    let mut servers = serve(config, listeners.clone(), &cluster, local, own, &metrics, &stopping).await?;
    tracing::info!(socket = %config.socket.display(), data = %config.data_dir.display(), "the controller serves");
    let mut closed = false;
    let served = loop {
        tokio::select! {
            ended = &mut store_task, if !closed => {
                let asked = life.is_closing_store();
                if let (Ok(()), true) = (&ended, asked) {
                    closed = true;
                    life.store_closed();
                    continue;
                }
                stopping.cancel();
                close(&mut servers).await;
                return ended.map(|()| Next::Stop).map_err(RunError::Store);
            }
            served = first_error(&mut servers) => break served.map(|()| Next::Stop),
            () = shutdown.cancelled() => break Ok(Next::Stop),
            () = life.ends() => break Ok(Next::Again),
        }
    };
    // Everything still works meanwhile: what is asked is passed on to the next one.
    if !closed {
        hand_over(&cluster).await;
    }
    stopping.cancel();
    close(&mut servers).await;
    life.store_shutdown().cancel();
    if !closed {
        store_task.await.map_err(RunError::Store)?;
    }
    served
}

/// Gives the lead to another voter, so that nobody has to find out that the leader is gone.
async fn hand_over(cluster: &Cluster) {
    let status = cluster.raft_status();
    let Some(next) = status.successor().filter(|_| status.leader == Some(status.id)) else { return };
    match tokio::time::timeout(HANDING_OVER, cluster.transfer_leadership(next)).await {
        Ok(Ok(())) => tracing::info!(%next, "handed the lead over"),
        Ok(Err(error)) => tracing::warn!(%next, error = status::chain(&error), "could not hand the lead over"),
        Err(_) => tracing::warn!(%next, "the lead was not taken over in time"),
    }
}

async fn open(
    home: &Home,
    standing: &Standing,
    peers: Option<&Peers>,
    life: &Life,
) -> Result<(Store<ClusterState>, StoreTask), RunError> {
    let begin = if matches!(standing, Standing::Joining(..)) { Begin::Joining } else { Begin::Alone };
    let config = StoreConfig { begin, peer: peers.map(|peers| peers.me().id), ..StoreConfig::new(home.dir()) };
    let shutdown = life.store_shutdown();
    Ok(match peers {
        Some(peers) => Store::open(config, peers.outbox(), shutdown).await?,
        None => Store::open(config, Alone, shutdown).await?,
    })
}

/// The way to the other controllers.
fn meet(
    config: &Config,
    home: &Home,
    own: &OwnIdentity,
    joined_as: Option<String>,
    stopping: &CancellationToken,
) -> Result<Peers, RunError> {
    let identity = own.identity();
    let id = identity.peer.map(PeerId).ok_or_else(|| RunError::NoPeer(home.identity().path()))?;
    let (cluster, address) = (identity.cluster.clone(), config.advertised().or(joined_as));
    let me = Me { id, cluster, address, protocols: config.protocols.clone() };
    let own = own.clone();
    let dial: peers::Dial = Arc::new(move |address| {
        let client = own.client();
        Box::pin(async move { roster_tls::connect(&[address], client).await })
    });
    Ok(Peers::new(me, dial, home.incoming(), stopping.clone()))
}

/// A controller without an identity whose store says that it is of a cluster signs its own. Whether it did.
fn take_identity(home: &Home, cluster: &Cluster) -> Result<bool, RunError> {
    let Some(identity) = local::own_identity(&cluster.read(), cluster.me())? else { return Ok(false) };
    home.identity().save(&identity).map_err(home::HomeError::from)?;
    Ok(true)
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
    local: Local,
    own: Option<OwnIdentity>,
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
    let peers = match &local.here {
        Here::Member(_, peers) => Some(peers.clone()),
        Here::Waiting | Here::Alone(_) => None,
    };
    let of_cluster = ClusterApi {
        cluster: cluster.clone(),
        peers: peers.clone(),
        shutdown: stopping.clone(),
        rotation: Arc::default(),
    };
    let protocols = config.protocols.clone();
    let enroll = EnrollApi { cluster: cluster.clone(), sessions: sessions.clone(), protocols };
    let raft = peers.as_ref().map(Peers::service);
    let ways_in = WaysIn {
        doors: Doors::new(cluster.watch()),
        forward: peers.clone().map(|peers| Forward::new(cluster.leadership(), Arc::new(peers))),
    };
    let services = Services::new(api, dispatcher, of_cluster, enroll, raft, local, ways_in).await?;

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
    if let Some(peers) = peers {
        let membership = Membership::new(cluster.clone(), peers);
        servers.spawn(until_stopped(Box::pin(membership.run())));
    }
    let Listeners { unix, tcp, metrics: scrapes } = listeners;
    let (on_unix, token) = (services.clone(), stopping.clone());
    servers.spawn(async move { Ok(on_unix.on_unix(unix, token).await?) });
    if let Some(tcp) = tcp {
        let token = stopping.clone();
        match own {
            Some(own) => {
                let connections = Connections::default();
                let fresh = identity::keep_fresh(own.clone(), cluster.clone(), connections.clone());
                servers.spawn(until_stopped(Box::pin(fresh)));
                servers.spawn(async move { Ok(services.on_tls(tcp, own, connections, token).await?) });
            }
            None => {
                servers.spawn(async move { Ok(services.on_tcp(tcp, token).await?) });
            }
        }
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
