//! Three controllers whose certificates change: by a rotation of the authority, and after a long absence.

use std::time::SystemTime;

use roster_proto::wire::controller::Role;
use roster_tls::{IdentityDir, Subject, fingerprint, renew};

use super::*;

struct Peer {
    dir: TempDir,
    name: &'static str,
    address: String,
    running: Running,
}

impl Peer {
    async fn start(name: &'static str) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), name, "127.0.0.1:0").await
    }

    async fn start_in(dir: TempDir, name: &'static str, listen: &str) -> Self {
        let running = Running::start(dir.path(), &["--wait", "--listen", listen]).await;
        Self { dir, name, address: running.address.clone(), running }
    }

    fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.running.unix.clone())
    }

    async fn status(&self) -> Result<wire::ClusterStatus, Status> {
        self.cluster().status(wire::ClusterStatusRequest {}).await.map(tonic::Response::into_inner)
    }

    async fn until(&self, what: &str, wanted: impl Fn(&wire::ClusterStatus) -> bool) -> wire::ClusterStatus {
        let mut last = None;
        let seen = async {
            loop {
                match self.status().await {
                    Ok(status) if wanted(&status) => return status,
                    other => last = Some(other),
                }
                look_again().await;
            }
        };
        // The end of a rotation takes its time.
        match tokio::time::timeout(2 * DEADLINE, seen).await {
            Ok(status) => status,
            Err(_) => panic!("{what} did not come about on {}; last seen: {last:#?}", self.name),
        }
    }

    /// A call over a fresh TLS connection.
    async fn hears(&self, identity: &Identity) -> Result<(), String> {
        let config = client_config(identity).map_err(|error| error.to_string())?;
        let channel = connect(std::slice::from_ref(&self.address), config).await.map_err(|error| error.to_string())?;
        list(channel).await.map_err(|status| status.to_string())
    }

    async fn until_heard(&self, identity: &Identity) {
        let mut last = None;
        let heard = async {
            while let Err(error) = self.hears(identity).await {
                last = Some(error);
                look_again().await;
            }
        };
        if tokio::time::timeout(DEADLINE, heard).await.is_err() {
            panic!("{} does not hear {identity:?}: {last:?}", self.name);
        }
    }
}

/// Three voters.
async fn trio() -> ([Peer; 3], wire::InitResponse) {
    let peers = [Peer::start("c1").await, Peer::start("c2").await, Peer::start("c3").await];
    let request = wire::InitRequest { name: "c1".to_owned(), address: peers[0].address.clone() };
    let founded = LocalClient::new(peers[0].running.unix.clone()).init(request).await.expect("founded").into_inner();
    for peer in &peers[1..] {
        let request = wire::JoinRequest {
            token: founded.controller_token.clone(),
            name: peer.name.to_owned(),
            address: peer.address.clone(),
            spare: false,
        };
        LocalClient::new(peer.running.unix.clone()).join(request).await.expect("joined");
    }
    for peer in &peers {
        peer.until("three voters", |status| {
            let voters = status.controllers.iter().filter(|controller| controller.role() == Role::Voter);
            voters.count() == 3 && status.leader != 0
        })
        .await;
    }
    (peers, founded)
}

async fn leader(peers: &[Peer]) -> &Peer {
    let status = peers[0].until("a leader", |status| status.leader != 0).await;
    let name = status.controllers.iter().find(|controller| controller.id == status.leader).map(|leads| &leads.name);
    peers.iter().find(|peer| name.is_some_and(|name| name == peer.name)).expect("it is one of them")
}

/// Renews with whoever leads.
async fn renewed(peers: &[Peer], identity: &Identity) -> Identity {
    let config = client_config(identity).expect("a client");
    let leads = leader(peers).await;
    let channel = connect(std::slice::from_ref(&leads.address), config).await.expect("connected");
    renew(channel, identity).await.expect("renewed")
}

async fn person(peers: &[Peer], name: &str) -> Identity {
    let key = KeyAndRequest::generate(name).expect("a key");
    let request = wire::AddUserRequest {
        name: name.to_owned(),
        role: "admin".to_owned(),
        signing_request: key.request_der.clone().into(),
        lifetime: 0,
    };
    let credentials = leader(peers).await.cluster().add_user(request).await.expect("added").into_inner();
    Identity::assemble(key, credentials).expect("it fits")
}

async fn apply(peers: &[Peer], name: &str) {
    let stack = crate::harness::stack(name, &[("web", 1)]);
    let request = wire::ApplyRequest { stack: Some(stack.into()), prune: false, base: None };
    let applied = async {
        loop {
            let mut control = ControlClient::new(leader(peers).await.running.unix.clone());
            if control.apply(request.clone()).await.is_ok() {
                return;
            }
            look_again().await;
        }
    };
    within("an apply", applied).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_authority_takes_over_and_nobody_is_left_outside() {
    let (peers, founded) = trio().await;
    let token: Token = founded.agent_token.parse().expect("a token");
    let token = Token { addresses: vec![leader(&peers).await.address.clone()], ..token };
    let ann = person(&peers, "ann").await;
    let agents = [
        enroll(&token, enrolment("vm1")).await.expect("enrolled"),
        enroll(&token, enrolment("vm2")).await.expect("enrolled"),
    ];
    let old = ann.authorities.clone();
    assert_eq!(old.len(), 1);
    // An agent at work, with what it has.
    let leads = leader(&peers).await;
    let open = connect(std::slice::from_ref(&leads.address), client_config(&agents[1]).expect("a client")).await;
    let open = open.expect("connected");
    let hello = wire::AgentMessage { message: Some(wire::agent_message::Message::Hello(crate::harness::hello("vm2"))) };
    let hello = tokio_stream::StreamExt::chain(tokio_stream::once(hello), tokio_stream::pending());
    let mut session = DispatchClient::new(open).session(hello).await.expect("a stream").into_inner();
    within("the welcome", session.message()).await.expect("admitted").expect("a message");

    leads.cluster().rotate_authority(wire::RotateAuthorityRequest {}).await.expect("begun");
    let first = renewed(&peers, &agents[0]).await;
    assert_eq!((first.authorities.len(), &first.authorities[1]), (2, &old[0]));
    let new = vec![first.authorities[0].clone()];
    assert_eq!(first.signer(), Some(fingerprint(&new[0])));
    // The agent that has a session is told whom to trust from now on, over that session.
    let told = async {
        loop {
            let message = session.message().await.expect("it goes on").expect("it goes on");
            if let Some(wire::controller_message::Message::Controllers(controllers)) = message.message
                && controllers.authorities.len() == 2
            {
                return controllers.authorities;
            }
        }
    };
    assert_eq!(within("the new authority", told).await[0], new[0]);
    for peer in &peers {
        peer.until("both authorities", |status| status.authorities.len() == 2).await;
        // Who has heard nothing goes on as before, also against the controllers' new certificates.
        peer.until_heard(&ann).await;
        // Each controller has renewed: this client knows the new authority alone.
        peer.until_heard(&Identity { authorities: new.clone(), ..ann.clone() }).await;
        peer.hears(&ann).await.expect("still heard");
    }
    let status = leads.cluster().rotate_authority(wire::RotateAuthorityRequest {}).await.expect_err("under way");
    assert!(status.message().contains("node vm2") && status.message().contains("user ann"), "{status}");
    apply(&peers, "meanwhile").await;

    // The last ones renew, and the old authority goes everywhere.
    let second = renewed(&peers, &agents[1]).await;
    let ann_anew = renewed(&peers, &ann).await;
    for peer in &peers {
        peer.until("the end of the rotation", |status| status.authorities.len() == 1).await;
        peer.until_heard(&ann_anew).await;
        let gone = async {
            while peer.hears(&ann).await.is_ok() {
                look_again().await;
            }
        };
        within("the refusal of what the old authority signed", gone).await;
    }
    let ended = async { while let Ok(Some(_)) = session.message().await {} };
    within("the end of the connection by the old certificate", ended).await;
    for agent in [&first, &second] {
        renewed(&peers, agent).await;
    }
    apply(&peers, "afterwards").await;
    let leads = leader(&peers).await;
    let status = leads.until("all reachable", |status| status.controllers.iter().all(|one| one.reachable)).await;
    assert_eq!(status.controllers.len(), 3);
    for peer in peers {
        peer.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_whose_certificate_ran_out_while_it_was_off_is_heard_again() {
    let (peers, _) = trio().await;
    let ann = person(&peers, "ann").await;
    apply(&peers, "before").await;
    let [c1, c2, c3] = peers;
    let (dir, address) = (c3.dir, c3.address);
    c3.running.stop().await;

    let data = dir.path().join("data");
    let kept = IdentityDir(data.join("identity"));
    let present = kept.load().expect("readable").expect("it has one");
    let authority = read_authority(data).await;
    let key = KeyAndRequest::generate("c3").expect("a key");
    let subject =
        Subject { cluster: present.cluster.clone(), role: roster_tls::Role::Controller, name: "c3".to_owned() };
    let hour = Duration::from_secs(3600);
    let expired = authority.sign(&key.request_der, &subject, hour, SystemTime::now() - 3 * hour).expect("signed");
    kept.save(&Identity { certificates: vec![expired], key_pem: key.key_pem, ..present }).expect("kept");

    let c3 = Peer::start_in(dir, "c3", &address).await;
    c3.until_heard(&ann).await;
    logged(&["this controller's certificate has run out"]).await;
    // It counts again: without it there is no majority now.
    c2.running.stop().await;
    let left = [c1, c3];
    apply(&left, "after").await;
    for peer in left {
        peer.running.stop().await;
    }
}
