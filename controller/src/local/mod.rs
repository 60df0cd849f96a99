//! What only root on the controller's own host may ask: to found a cluster, to join one, to leave it, to restore one
//! from a backup, and to go on alone after the majority is lost.
//!
//! Guarantees: one such call at a time, carried to its end although its caller goes away; each is answered before the
//! controller begins anew as what it has become, and each that a crash cuts off can be made again. Nothing is thrown
//! away that is not there a second time, unless the caller said so in as many words.

mod backup;
mod error;
mod found;
mod join;
mod leave;
mod life;
mod recover;
mod restore;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use roster_proto::{
    id::ControllerName,
    wire::{self, local_server},
};
use tokio::sync::Mutex;
use tonic::{Request, Response, Status, Streaming};

use self::found::First;
pub(crate) use self::{
    backup::write as write_backup,
    error::LocalError,
    found::{FoundError, own_identity},
    life::Life,
};
use crate::{
    cluster::Cluster,
    config::Config,
    home::Home,
    metrics::Metrics,
    peers::Peers,
    raft::{Alone, Begin, Store, StoreConfig, StoreTask},
    state::ClusterState,
};

/// What this controller is while the service is served.
#[derive(Clone, Debug)]
pub(crate) enum Here {
    /// It waits to be told.
    Waiting,
    /// It has a store, and was never part of a cluster.
    Alone(Cluster),
    Member(Cluster, Peers),
}

/// The gRPC service.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) config: Arc<Config>,
    pub(crate) home: Home,
    pub(crate) life: Life,
    pub(crate) here: Here,
    busy: Arc<Mutex<()>>,
}

impl Local {
    pub(crate) fn new(config: Arc<Config>, life: Life, here: Here) -> Self {
        let home = Home::of(&config);
        Self { config, home, life, here, busy: Arc::default() }
    }

    /// Does the work to its end, whatever becomes of the caller; no other one meanwhile.
    async fn alone<T, F>(&self, work: impl FnOnce(Self) -> F) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, LocalError>> + Send + 'static,
    {
        let Ok(one) = self.busy.clone().try_lock_owned() else { return Err(LocalError::Busy.into()) };
        let work = work(self.clone());
        let done = tokio::spawn(async move {
            let _one = one;
            work.await
        });
        let done = done.await.map_err(|error| Status::internal(format!("the work broke: {error}")))?;
        Ok(Response::new(done?))
    }

    /// What this controller is to be called.
    fn name(&self, asked: &str) -> Result<ControllerName, LocalError> {
        if !asked.is_empty() {
            return Ok(asked.parse()?);
        }
        let host = nix::unistd::gethostname().map_err(|errno| LocalError::HostName(errno.to_string()))?;
        let host = host.to_string_lossy().to_lowercase();
        let first = host.split('.').next().unwrap_or_default().to_owned();
        first.parse().map_err(|_| LocalError::HostName(format!("{host:?} is no name for a controller")))
    }

    /// Where the others reach this controller.
    fn address(&self, asked: &str) -> Result<String, LocalError> {
        let configured = self.config.advertised();
        let address = match asked {
            "" => configured.or_else(|| own_address(self.config.listen?)).ok_or(LocalError::NoAddress)?,
            asked => asked.to_owned(),
        };
        if let Some(configured) = self.config.advertised().filter(|configured| *configured != address) {
            return Err(LocalError::OtherAddress { asked: address, configured });
        }
        match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => Ok(address),
            _ => Err(LocalError::BadAddress(address)),
        }
    }

    /// Whether nothing is lost when this controller is emptied.
    async fn refuse_unless_blank(&self, verb: &'static str) -> Result<(), LocalError> {
        match &self.here {
            Here::Waiting => Ok(()),
            Here::Member(cluster, _) => {
                Err(LocalError::Member { verb, cluster: cluster.read().security.cluster.clone() })
            }
            Here::Alone(cluster) => {
                let state = cluster.read();
                let (services, tasks) = (state.services.len(), state.tasks.len());
                if services + tasks == 0 { Ok(()) } else { Err(LocalError::NotBlank { verb, services, tasks }) }
            }
        }
    }

    /// Closes the store, when one is open.
    async fn close_store(&self) {
        if !matches!(self.here, Here::Waiting) {
            self.life.close_store().await;
        }
    }

    /// The store of a controller that is alone, for as long as the returned handle is kept.
    async fn open_alone(&self) -> Result<Opened, LocalError> {
        let life = Life::default();
        let config = StoreConfig { begin: Begin::Alone, ..StoreConfig::new(self.home.dir()) };
        let (store, task) = Store::<ClusterState>::open(config, Alone, life.store_shutdown()).await?;
        Ok(Opened { cluster: Cluster::new(store, Arc::new(Metrics::default())), life, task })
    }
}

/// The address from which this host reaches others, for a controller that listens on all it has.
fn own_address(listen: SocketAddr) -> Option<String> {
    if !listen.ip().is_unspecified() || listen.port() == 0 {
        return None;
    }
    // Nothing is sent: that a datagram socket connects only looks the route up. The address is one of RFC 5737's.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), listen.port())).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified()).then(|| SocketAddr::new(own, listen.port()).to_string())
}

/// A store that is open for a moment.
struct Opened {
    cluster: Cluster,
    life: Life,
    task: StoreTask,
}

impl Opened {
    async fn close(self) -> Result<(), LocalError> {
        self.life.store_shutdown().cancel();
        self.task.ended().await.map_err(LocalError::Store)
    }
}

/// How long the rest of a call to another controller may take.
const CALL: Duration = Duration::from_secs(45);

#[tonic::async_trait]
impl local_server::Local for Local {
    async fn init(&self, request: Request<wire::InitRequest>) -> Result<Response<wire::InitResponse>, Status> {
        self.alone(|local| local.found(request.into_inner())).await
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        self.alone(|local| local.join_cluster(request.into_inner())).await
    }

    async fn leave(&self, request: Request<wire::LeaveRequest>) -> Result<Response<wire::LeaveResponse>, Status> {
        self.alone(|local| local.leave_cluster(request.into_inner().force)).await
    }

    async fn restore(
        &self,
        request: Request<Streaming<wire::RestoreRequest>>,
    ) -> Result<Response<wire::RestoreResponse>, Status> {
        self.alone(|local| local.restore_cluster(request.into_inner())).await
    }

    async fn recover(&self, request: Request<wire::RecoverRequest>) -> Result<Response<wire::RecoverResponse>, Status> {
        self.alone(|local| local.recover_cluster(request.into_inner().lost)).await
    }
}

impl Local {
    async fn found(self, request: wire::InitRequest) -> Result<wire::InitResponse, LocalError> {
        let (name, address) = (self.name(&request.name)?, self.address(&request.address)?);
        let first = First { home: self.home.clone(), name, address, protocol: *self.config.protocols.end() };
        let founded = match &self.here {
            Here::Member(cluster, _) => first.found_again(cluster).await?,
            Here::Alone(cluster) => first.found(cluster).await?,
            Here::Waiting => {
                let opened = self.open_alone().await?;
                let founded = first.found(&opened.cluster).await;
                opened.close().await?;
                founded?
            }
        };
        if !matches!(self.here, Here::Member(..)) {
            tracing::info!(cluster = %founded.cluster, name = %first.name, address = first.address, "founded a cluster");
            self.life.begin_anew();
        }
        Ok(wire::InitResponse {
            cluster: founded.cluster.to_string(),
            controller_token: founded.controller_token.to_string(),
            agent_token: founded.agent_token.to_string(),
        })
    }
}
