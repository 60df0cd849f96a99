//! A controller with an identity, seen from its TCP door: who is let in, what for, and what the others do not do to it.

mod floods;
mod people;
mod rotation;
mod tokens;

use std::time::Duration;

use roster_controller::{Listeners, run};
use roster_proto::wire::{
    self, cluster_client::ClusterClient, control_client::ControlClient, dispatch_client::DispatchClient,
    enroll_client::EnrollClient, local_client::LocalClient,
};
use roster_tls::{Identity, KeyAndRequest, Token, anonymous_client_config, client_config, connect, enroll};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::harness::{DEADLINE, config, connect as connect_unix, within};

/// A cluster of one controller, initialised.
pub(crate) struct Secured {
    _dir: TempDir,
    pub(crate) address: String,
    pub(crate) agent_token: Token,
    pub(crate) controller_token: Token,
    unix: Channel,
    shutdown: CancellationToken,
    ended: JoinHandle<()>,
}

impl Secured {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config(dir.path(), &["--listen", "127.0.0.1:0"]);
        let listeners = Listeners::bind(&config).await.expect("the ports are free");
        let address = listeners.tcp_addr().expect("bound").to_string();
        let unix = connect_unix(&config.socket).await;
        let shutdown = CancellationToken::new();
        let running = run(config, listeners, shutdown.clone());
        let ended = tokio::spawn(async move { running.await.expect("it stops in order") });
        let request = wire::InitRequest { name: "c1".to_owned(), address: address.clone() };
        let founded = within("the cluster", LocalClient::new(unix.clone()).init(request)).await.expect("founded");
        let founded = founded.into_inner();
        let token = |text: String| text.parse::<Token>().expect("a token");
        let secured = Self {
            _dir: dir,
            address,
            agent_token: token(founded.agent_token),
            controller_token: token(founded.controller_token),
            unix,
            shutdown,
            ended,
        };
        secured.answers().await;
        secured
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        within("the controller's end", self.ended).await.expect("no panic");
    }

    /// Root, by the socket.
    pub(crate) fn root(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.unix.clone())
    }

    /// A stranger gets an answer, within the usual time, over a connection of its own.
    pub(crate) async fn answers(&self) {
        let asked = async {
            loop {
                let stranger = self.stranger().await;
                let Ok(channel) = stranger else { continue };
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

pub(crate) fn enrolment(name: &str) -> wire::EnrollRequest {
    wire::EnrollRequest { name: name.to_owned(), release: "0.0.0".to_owned(), ..Default::default() }
}

/// Who is refused before the first call may learn it from the connection instead.
pub(crate) async fn list(channel: Channel) -> Result<(), Status> {
    let asked = ControlClient::new(channel).list_nodes(wire::ListNodesRequest {}).await;
    asked.map(|_| ())
}
