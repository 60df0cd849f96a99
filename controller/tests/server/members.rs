//! Several controllers in one process: how they become a cluster, and what becomes of it when they go.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use roster_controller::{Listeners, RunError, run};
use roster_proto::wire::{
    self, cluster_client::ClusterClient, control_client::ControlClient, controller::Role, local_client::LocalClient,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use crate::harness::{DEADLINE, config, connect, stack, within};

/// A controller that may join others.
struct Member {
    dir: TempDir,
    name: String,
    address: SocketAddr,
    shutdown: CancellationToken,
    ended: JoinHandle<Result<(), RunError>>,
    channel: Channel,
}

impl Member {
    async fn start(name: &str) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), name, "127.0.0.1:0", &[]).await
    }

    async fn start_in(dir: TempDir, name: &str, listen: &str, flags: &[&str]) -> Self {
        let flags: Vec<&str> = ["--wait", "--listen", listen].into_iter().chain(flags.iter().copied()).collect();
        let config = config(dir.path(), &flags);
        let listeners = Listeners::bind(&config).await.expect("the doors are free");
        let address = listeners.tcp_addr().expect("it listens");
        let channel = connect(&config.socket).await;
        let shutdown = CancellationToken::new();
        let ended = tokio::spawn(run(config, listeners, shutdown.clone()));
        Self { dir, name: name.to_owned(), address, shutdown, ended, channel }
    }

    async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        let ended = within("the controller's end", self.ended).await.expect("it does not panic");
        ended.expect("it stops in order");
        self.dir
    }

    fn local(&self) -> LocalClient<Channel> {
        LocalClient::new(self.channel.clone())
    }

    fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
    }

    async fn init(&self) -> wire::InitResponse {
        let request = wire::InitRequest { name: self.name.clone(), address: self.address.to_string() };
        self.local().init(request).await.expect("founded").into_inner()
    }

    async fn join(&self, token: &str, spare: bool) -> Result<wire::JoinResponse, Status> {
        let request = wire::JoinRequest {
            token: token.to_owned(),
            name: self.name.clone(),
            address: self.address.to_string(),
            spare,
        };
        self.local().join(request).await.map(tonic::Response::into_inner)
    }

    async fn status(&self) -> Result<wire::ClusterStatus, Status> {
        self.cluster().status(wire::ClusterStatusRequest {}).await.map(tonic::Response::into_inner)
    }

    async fn until(&self, what: &str, wanted: impl Fn(&wire::ClusterStatus) -> bool) -> wire::ClusterStatus {
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < DEADLINE {
            let status = self.status().await;
            match &status {
                Ok(status) if wanted(status) => return status.clone(),
                _ => last = Some(status),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} did not come about on {}; last seen: {last:#?}", self.name);
    }

    /// Asks again while the leadership moves.
    async fn apply(&self, name: &str) -> Result<(), Status> {
        let request = wire::ApplyRequest { stack: Some(stack(name, &[("web", 1)]).into()), prune: false, base: None };
        self.control().apply(request).await.map(drop)
    }

    async fn services(&self) -> Vec<String> {
        let request = wire::ListServicesRequest { filter: None };
        let listed = self.control().list_services(request).await.expect("listed").into_inner();
        listed.services.into_iter().map(|service| service.id).collect()
    }
}

fn roles(status: &wire::ClusterStatus) -> Vec<(&str, Role)> {
    let mut roles: Vec<_> =
        status.controllers.iter().map(|controller| (controller.name.as_str(), controller.role())).collect();
    roles.sort();
    roles
}

fn voters(status: &wire::ClusterStatus) -> usize {
    status.controllers.iter().filter(|controller| controller.role() == Role::Voter).count()
}

/// Three voters, of which the first leads.
async fn three() -> ([Member; 3], wire::InitResponse) {
    let members = [Member::start("c1").await, Member::start("c2").await, Member::start("c3").await];
    let founded = members[0].init().await;
    for member in &members[1..] {
        member.join(&founded.controller_token, false).await.expect("joined");
    }
    for member in &members {
        member.until("three voters", |status| voters(status) == 3 && status.leader != 0).await;
    }
    (members, founded)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_controllers_become_one_cluster() {
    let ([c1, c2, c3], founded) = three().await;
    let status = c1.status().await.expect("status");
    assert_eq!(status.cluster, founded.cluster);
    assert_eq!(roles(&status), [("c1", Role::Voter), ("c2", Role::Voter), ("c3", Role::Voter)]);
    assert!(status.controllers.iter().all(|controller| controller.reachable), "{status:#?}");
    c1.apply("hello").await.expect("applied");
    for member in [&c1, &c2, &c3] {
        assert_eq!(member.services().await.len(), 1, "{} reads what was acknowledged", member.name);
    }
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}
