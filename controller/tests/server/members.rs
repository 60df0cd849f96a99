//! Several controllers in one process: how they become a cluster, and what becomes of it when they go.

mod changes;
mod crashes;
mod rescue;
mod snapshots;
mod versions;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use roster_controller::{Listeners, RunError, config::Config, run};
use roster_proto::{
    whole,
    wire::{
        self, cluster_client::ClusterClient, control_client::ControlClient, controller::Role, local_client::LocalClient,
    },
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

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

/// What is left of one that was stopped.
struct Stopped {
    dir: TempDir,
    name: String,
    address: SocketAddr,
}

impl Stopped {
    /// Where it was before.
    async fn start(self) -> Member {
        let address = self.address.to_string();
        self.start_at(&address, |_| {}).await
    }

    async fn start_at(self, listen: &str, edit: impl FnOnce(&mut Config)) -> Member {
        Member::start_in(self.dir, &self.name, listen, edit).await
    }
}

impl Member {
    async fn start(name: &str) -> Self {
        Self::start_with(name, |_| {}).await
    }

    async fn start_with(name: &str, edit: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), name, "127.0.0.1:0", edit).await
    }

    async fn start_in(dir: TempDir, name: &str, listen: &str, edit: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(dir.path(), &["--wait", "--listen", listen]);
        edit(&mut config);
        let listeners = Listeners::bind(&config).await.expect("the doors are free");
        let address = listeners.tcp_addr().expect("it listens");
        let channel = connect(&config.socket).await;
        let shutdown = CancellationToken::new();
        let ended = tokio::spawn(run(config, listeners, shutdown.clone()));
        Self { dir, name: name.to_owned(), address, shutdown, ended, channel }
    }

    async fn stop(self) -> Stopped {
        let (stopped, ended) = self.end().await;
        ended.expect("it stops in order");
        stopped
    }

    /// However it ends.
    async fn end(self) -> (Stopped, Result<(), RunError>) {
        self.shutdown.cancel();
        let ended = within("the controller's end", self.ended).await.expect("it does not panic");
        (Stopped { dir: self.dir, name: self.name, address: self.address }, ended)
    }

    /// It ends by itself, and not well.
    async fn broken(self) -> (Stopped, Result<(), RunError>) {
        let ended = within("the controller's end", self.ended).await.expect("it does not panic");
        (Stopped { dir: self.dir, name: self.name, address: self.address }, ended)
    }

    /// Itself, once it leads a cluster.
    async fn until_leading(self) -> Self {
        self.until("a leader", |status| !status.cluster.is_empty() && leader(status) == Some(&self.name)).await;
        self
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

    async fn init(&self) -> Result<wire::InitResponse, Status> {
        let request = wire::InitRequest { name: self.name.clone(), address: self.address.to_string() };
        self.local().init(request).await.map(tonic::Response::into_inner)
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

    async fn leave(&self, force: bool) -> Result<(), Status> {
        self.local().leave(wire::LeaveRequest { force }).await.map(drop)
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

    /// It is told what to be, and nothing else is asked of it.
    async fn until_it_waits(&self) {
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < DEADLINE {
            match self.status().await {
                // Until then it says why it does nothing more, in other words.
                Err(status)
                    if status.code() == Code::FailedPrecondition
                        && status.message().contains("rctl cluster join TOKEN --controller") =>
                {
                    return;
                }
                other => last = Some(other),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} does not wait to be told what to be: {last:#?}", self.name);
    }

    async fn apply(&self, name: &str) -> Result<wire::ApplyResponse, Status> {
        let request = wire::ApplyRequest { stack: Some(stack(name, &[("web", 1)]).into()), prune: false, base: None };
        self.control().apply(request).await.map(tonic::Response::into_inner)
    }

    async fn services(&self) -> Result<Vec<String>, Status> {
        let request = wire::ListServicesRequest { filter: None };
        let control = self.control();
        let listed = whole::listing(async || control.clone().list_services(request.clone()).await).await?;
        Ok(listed.services.into_iter().map(|service| service.id).collect())
    }

    async fn events(&self) -> Vec<String> {
        let request = wire::EventsRequest { follow: false, filter: None, after: None };
        let mut stream = self.control().events(request).await.expect("events").into_inner();
        let mut events = Vec::new();
        while let Some(event) = within("an event", stream.message()).await.expect("an event") {
            events.push(event.message);
        }
        events
    }

    /// Of an event that begins so.
    async fn until_event(&self, wanted: &str) {
        let begun = Instant::now();
        let mut events = Vec::new();
        while begun.elapsed() < DEADLINE {
            events = self.events().await;
            if events.iter().any(|event| event.starts_with(wanted)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{wanted:?} did not happen: {events:#?}");
    }

    /// With the addresses of every controller inside.
    async fn token(&self, role: &str) -> String {
        let request = wire::CreateTokenRequest { role: role.to_owned(), lifetime: 0, uses: 8 };
        self.cluster().create_token(request).await.expect("a token").into_inner().token
    }

    async fn configure(&self, edit: impl FnOnce(&mut wire::ClusterSettings)) {
        let mut settings = self.status().await.expect("status").settings.expect("settings");
        edit(&mut settings);
        let set = self.cluster().configure(settings).await.expect("configured").into_inner();
        assert_eq!(set, settings);
    }
}

/// The one of that name.
fn of<'a>(status: &'a wire::ClusterStatus, name: &str) -> Option<&'a wire::Controller> {
    status.controllers.iter().find(|controller| controller.name == name)
}

fn role(status: &wire::ClusterStatus, name: &str) -> Option<Role> {
    of(status, name).map(wire::Controller::role)
}

/// By its name.
fn leader(status: &wire::ClusterStatus) -> Option<&str> {
    let leads = |controller: &&wire::Controller| controller.id == status.leader;
    status.controllers.iter().find(leads).map(|controller| controller.name.as_str())
}

/// Where nobody listens.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").to_string()
}

fn named(name: &str) -> wire::ControllerRequest {
    wire::ControllerRequest { controller: name.to_owned() }
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
    let founded = members[0].init().await.expect("founded");
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
    assert_eq!(leader(&status), Some("c1"));
    for controller in &status.controllers {
        assert!(controller.reachable && controller.last_heard > 0, "{controller:?}");
        let ours = (env!("CARGO_PKG_VERSION"), *roster_controller::peers::PROTOCOLS.end());
        assert_eq!((controller.release.as_str(), controller.protocol), ours);
    }
    c1.apply("hello").await.expect("applied");
    c1.until("no lag", |status| status.controllers.iter().all(|one| one.matched == status.commit)).await;
    for member in [&c1, &c2, &c3] {
        assert_eq!(member.services().await.expect("listed").len(), 1, "{} reads what was acknowledged", member.name);
        let again = member.join(&founded.controller_token, false).await.expect_err("it is a member");
        assert!(again.message().contains(&format!("of cluster {} already", founded.cluster)), "{again}");
    }
    let agents = Member::start("c4").await.join(&founded.agent_token, false).await.expect_err("not for controllers");
    assert!(agents.message().contains("admits agents, not controllers"), "{agents}");
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_them_stop_and_start() {
    let ([c1, c2, c3], _) = three().await;
    c1.apply("hello").await.expect("applied");
    let (c1, c2, c3) = (c1.stop().await, c2.stop().await, c3.stop().await);
    let c3 = c3.start().await;
    let status = c3.status().await.expect("it tells what it knows");
    assert_eq!(status.leader, 0, "one of three decides nothing");
    let c2 = c2.start().await;
    c2.until("a leader", |status| status.leader != 0).await;
    assert_eq!(c2.services().await.expect("listed"), ["hello/web"]);
    let c1 = c1.start().await;
    assert_eq!(c1.services().await.expect("listed"), ["hello/web"]);
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}
