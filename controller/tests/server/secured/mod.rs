//! A controller with an identity, seen from its TCP door: who is let in, what for, and what the others do not do to it.

mod crowds;
mod floods;
mod impostors;
mod log;
mod malformed;
mod people;
mod rotation;
mod tokens;
mod trio;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use roster_controller::{
    Listeners,
    raft::{Alone, Store, StoreConfig},
    run,
    state::ClusterState,
};
use roster_proto::wire::{
    self, cluster_client::ClusterClient, control_client::ControlClient, dispatch_client::DispatchClient,
    enroll_client::EnrollClient, local_client::LocalClient,
};
use roster_tls::{Authority, Identity, KeyAndRequest, Token, anonymous_client_config, client_config, connect, enroll};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

pub(crate) use self::log::logged;
use crate::harness::{DEADLINE, config, connect as connect_unix, nodes, within};

/// A cluster of one controller, initialised.
pub(crate) struct Secured {
    dir: TempDir,
    pub(crate) address: String,
    pub(crate) agent_token: Token,
    pub(crate) controller_token: Token,
    running: Running,
}

/// One life of the controller.
struct Running {
    address: String,
    unix: Channel,
    shutdown: CancellationToken,
    ended: JoinHandle<()>,
}

impl Running {
    async fn start(dir: &Path, flags: &[&str]) -> Self {
        log::listen();
        let config = config(dir, flags);
        let listeners = Listeners::bind(&config).await.expect("the ports are free");
        let address = listeners.tcp_addr().expect("bound").to_string();
        let unix = connect_unix(&config.socket).await;
        let shutdown = CancellationToken::new();
        let running = run(config, listeners, shutdown.clone());
        let ended = tokio::spawn(async move { running.await.expect("it stops in order") });
        Self { address, unix, shutdown, ended }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        within("the controller's end", self.ended).await.expect("no panic");
    }
}

impl Secured {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let running = Running::start(dir.path(), &["--listen", "127.0.0.1:0"]).await;
        let address = running.address.clone();
        let request = wire::InitRequest { name: "c1".to_owned(), address: address.clone() };
        let founded = within("the cluster", LocalClient::new(running.unix.clone()).init(request)).await;
        let founded = founded.expect("founded").into_inner();
        let token = |text: String| text.parse::<Token>().expect("a token");
        let (agent_token, controller_token) = (token(founded.agent_token), token(founded.controller_token));
        let secured = Self { dir, address, agent_token, controller_token, running };
        secured.answers().await;
        secured
    }

    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }

    /// The cluster's authority, as one has it who has read a controller's disk: to sign what no cluster would.
    pub(crate) async fn with_authority() -> (Self, Authority) {
        let mut cluster = Self::start().await;
        cluster.running.stop().await;
        let authority = read_authority(cluster.dir.path().join("data")).await;
        cluster.running = Running::start(cluster.dir.path(), &["--listen", &cluster.address]).await;
        cluster.answers().await;
        (cluster, authority)
    }

    /// Root, by the socket.
    pub(crate) fn root(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.running.unix.clone())
    }

    /// A stranger gets an answer, within the usual time, over a connection of its own.
    pub(crate) async fn answers(&self) {
        let asked = async {
            loop {
                let stranger = self.stranger().await;
                let Ok(channel) = stranger else {
                    look_again().await;
                    continue;
                };
                let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
                if tonic_health::pb::health_client::HealthClient::new(channel).check(request).await.is_ok() {
                    return;
                }
            }
        };
        within("an answer to a stranger", asked).await;
    }

    pub(crate) async fn stranger(&self) -> Result<Channel, roster_tls::ConnectError> {
        let token = &self.agent_token;
        let config = anonymous_client_config(&token.cluster, token.authority).expect("a client");
        connect(std::slice::from_ref(&self.address), config).await
    }

    pub(crate) async fn member(&self, identity: &Identity) -> Channel {
        self.try_member(identity).await.expect("connected")
    }

    pub(crate) async fn try_member(&self, identity: &Identity) -> Result<Channel, roster_tls::ConnectError> {
        connect(std::slice::from_ref(&self.address), client_config(identity).expect("a client")).await
    }

    pub(crate) async fn person(&self, name: &str, role: &str) -> Identity {
        self.person_for(name, role, Duration::ZERO).await
    }

    pub(crate) async fn person_for(&self, name: &str, role: &str, lifetime: Duration) -> Identity {
        let key = KeyAndRequest::generate(name).expect("a key");
        let request = wire::AddUserRequest {
            name: name.to_owned(),
            role: role.to_owned(),
            signing_request: key.request_der.clone().into(),
            lifetime: lifetime.as_micros() as u64,
        };
        let credentials = self.root().add_user(request).await.expect("added").into_inner();
        Identity::assemble(key, credentials).expect("it fits")
    }

    pub(crate) async fn agent(&self, name: &str) -> Identity {
        enroll(&self.agent_token, enrolment(name)).await.expect("enrolled")
    }
}

/// Before what is waited for is looked at again: a busy loop would keep it from coming.
pub(crate) async fn look_again() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

pub(crate) fn enrolment(name: &str) -> wire::EnrollRequest {
    let protocol = *roster_controller::peers::PROTOCOLS.end();
    wire::EnrollRequest { name: name.to_owned(), release: "0.0.0".to_owned(), protocol, ..Default::default() }
}

/// Who is refused before the first call may learn it from the connection instead.
pub(crate) async fn list(channel: Channel) -> Result<(), Status> {
    nodes(&ControlClient::new(channel)).await.map(|_| ())
}

/// From the store of a controller that is not running.
pub(crate) async fn read_authority(data: PathBuf) -> Authority {
    let shutdown = CancellationToken::new();
    let (store, task) =
        Store::<ClusterState>::open(StoreConfig::new(data), Alone, shutdown.clone()).await.expect("opened");
    let state = store.read();
    let record = state.security.signing().expect("founded");
    let key = String::from_utf8(record.key.as_ref().expect("it signs").expose().to_vec()).expect("PEM");
    let authority = Authority::from_parts(record.certificate.clone(), key).expect("sound");
    shutdown.cancel();
    task.ended().await.expect("closed");
    authority
}

/// Whether the door lets a member of whatever role in: it may always ask for a certificate, and asks for it badly.
pub(crate) async fn admitted(channel: Channel) -> Result<(), Status> {
    match EnrollClient::new(channel).renew(wire::RenewRequest::default()).await {
        Err(status) if status.code() == Code::InvalidArgument => Ok(()),
        Err(status) => Err(status),
        Ok(_) => panic!("an empty signing request was signed"),
    }
}
