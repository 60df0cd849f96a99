//! The gRPC server: the same services behind both doors, with bounds on what a connection may ask.

use std::{sync::Arc, time::Duration};

use roster_proto::wire::{
    self, cluster_server::ClusterServer, containers_server::ContainersServer, control_server::ControlServer,
    dispatch_server::DispatchServer, enroll_server::EnrollServer, live_server::LiveServer, local_server::LocalServer,
    raft_server::RaftServer,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::Router},
};

use tower::{
    layer::util::{Identity, Stack},
    util::{Either, option_layer},
};

use crate::{
    api::{Api, cluster::ClusterApi, enroll::EnrollApi},
    dispatch::Dispatcher,
    doors::{self, Connections, Doors, Guarding},
    forward::Forward,
    identity::OwnIdentity,
    listen::UnixSocket,
    local::Local,
    peers::RaftService,
    status::retry_elsewhere,
};

/// The largest message a caller or an agent may send: a stack, a batch of statuses, a piece of an archive or of a log.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Of strangers: a token, a signing request, a name.
const MAX_ENROLMENT: usize = 32 * 1024;
/// Streams on one connection. An agent has one for each log that is followed on its node.
const MAX_STREAMS: u32 = 8_192;
/// Of one stream, in bytes: what a sender may be ahead of a slow reader.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Of all streams of a connection together: never the narrower bound. A few answers whose callers read slowly would
/// otherwise hold up the agent's session, and its heartbeats, on the same connection.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Between controllers: the largest command, and what raft sends with it.
const MAX_RAFT_MESSAGE: usize = 16 * 1024 * 1024;
const MAX_HEADERS: u32 = 16 * 1024;
/// Streams reset before they were accepted; more end the connection (the rapid-reset attack, CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 64;
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

const NO_CLUSTER: &str =
    "this controller is in no cluster yet: `rctl cluster init` or `rctl cluster join TOKEN --controller`";

/// Everything that is served. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    routes: Routes,
    ways_in: WaysIn,
}

/// What every call passes, in this order.
#[derive(Clone, Debug)]
pub(crate) struct WaysIn {
    pub(crate) doors: Doors,
    /// `None`: there are no other controllers.
    pub(crate) forward: Option<Forward>,
}

type Layers = Stack<Either<Forward, Identity>, Guarding>;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the descriptors for gRPC reflection are broken: this build is unusable")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("cannot go on serving")]
    Transport(#[from] tonic::transport::Error),
}

impl Services {
    pub(crate) async fn new(
        api: Api,
        dispatcher: Dispatcher,
        cluster: ClusterApi,
        enroll: EnrollApi,
        raft: Option<RaftService>,
        local: Local,
        ways_in: WaysIn,
    ) -> Result<Self, ServeError> {
        let containers = ContainersServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE);
        let live = LiveServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE);
        let control = ControlServer::new(api).max_decoding_message_size(MAX_MESSAGE);
        let dispatch = DispatchServer::new(dispatcher).max_decoding_message_size(MAX_MESSAGE);
        let (health, health_service) = tonic_health::server::health_reporter();
        // The store leads and is replayed before anything is served.
        health.set_serving::<ControlServer<Api>>().await;
        health.set_serving::<DispatchServer<Dispatcher>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let mut routes = Routes::builder();
        routes.add_service(control).add_service(dispatch).add_service(health_service).add_service(reflection);
        routes.add_service(containers).add_service(live).add_service(ClusterServer::new(cluster));
        routes.add_service(EnrollServer::new(enroll).max_decoding_message_size(MAX_ENROLMENT));
        routes.add_service(LocalServer::new(local).max_decoding_message_size(MAX_MESSAGE));
        if let Some(raft) = raft {
            routes.add_service(RaftServer::new(raft).max_decoding_message_size(MAX_RAFT_MESSAGE));
        }
        Ok(Self { routes: routes.routes(), ways_in })
    }

    /// Of a controller that waits to be told what to be: whatever else is asked of it is refused with words.
    pub(crate) async fn waiting(local: Local) -> Result<Self, ServeError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<LocalServer<Local>>().await;
        let mut routes = Routes::builder();
        routes.add_service(LocalServer::new(local).max_decoding_message_size(MAX_MESSAGE)).add_service(health_service);
        let refuse = || async { retry_elsewhere(NO_CLUSTER).into_http::<tonic::body::Body>() };
        let router = routes.routes().into_axum_router().fallback(refuse);
        let ways_in = WaysIn { doors: Doors::of_nobody(), forward: None };
        Ok(Self { routes: router.into(), ways_in })
    }

    pub(crate) async fn on_unix(self, socket: Arc<UnixSocket>, shutdown: CancellationToken) -> Result<(), ServeError> {
        let connections = Box::pin(doors::local_connections(&socket));
        Ok(self.router().serve_with_incoming_shutdown(connections, shutdown.cancelled_owned()).await?)
    }

    pub(crate) async fn on_tcp(
        self,
        listener: Arc<tokio::net::TcpListener>,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let open = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        if !open {
            tracing::warn!("--listen is for others, who are sent away: this controller is of no cluster yet");
            shutdown.run_until_cancelled(doors::closed_door(&listener)).await;
            return Ok(());
        }
        let connections = Box::pin(doors::plain_connections(&listener));
        Ok(self.router().serve_with_incoming_shutdown(connections, shutdown.cancelled_owned()).await?)
    }

    pub(crate) async fn on_tls(
        self,
        listener: Arc<tokio::net::TcpListener>,
        own: OwnIdentity,
        connections: Connections,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let connections = Box::pin(doors::tls_connections(listener, own, connections));
        Ok(self.router().serve_with_incoming_shutdown(connections, shutdown.cancelled_owned()).await?)
    }

    fn router(self) -> Router<Layers> {
        Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .layer(self.ways_in.doors)
            .layer(option_layer(self.ways_in.forward))
            .add_routes(self.routes)
    }
}
