//! Join tokens: what they are good for, and when no longer.

use roster_tls::{EnrollError, Role, Secret, enroll_over};

use super::*;
use crate::harness::{Agent, again, hello};

async fn refused(token: &Token, name: &str) -> Status {
    match enroll(token, enrolment(name)).await {
        Err(EnrollError::Refused(status)) => status,
        other => panic!("refused by the controller, not {other:?}"),
    }
}

impl Secured {
    async fn token(&self, lifetime: Duration, uses: u32) -> Token {
        let request =
            wire::CreateTokenRequest { role: "agent".to_owned(), lifetime: lifetime.as_micros() as u64, uses };
        let made = self.root().create_token(request).await.expect("made").into_inner();
        let token: Token = made.token.parse().expect("a token");
        let view = made.view.expect("there is one");
        assert_eq!((view.id.as_str(), view.role.as_str()), (token.id.as_str(), "agent"));
        token
    }
}

#[tokio::test]
async fn a_token_admits_as_often_as_it_says() {
    let cluster = Secured::start().await;
    let token = cluster.token(Duration::ZERO, 2).await;
    for name in ["vm1", "vm2"] {
        let identity = enroll(&token, enrolment(name)).await.expect("admitted");
        let subject = identity.subject().expect("readable");
        assert_eq!((subject.role, subject.name.as_str()), (Role::Agent, name));
    }
    let status = refused(&token, "vm3").await;
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("is used up"), "{status}");
    let listed = cluster.root().list_tokens(wire::ListTokensRequest {}).await.expect("listed").into_inner().tokens;
    assert!(listed.iter().any(|view| view.id == token.id && view.uses_left == 0), "{listed:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_token_ends_with_its_time_and_when_it_is_revoked() {
    let cluster = Secured::start().await;
    let late = cluster.token(Duration::from_micros(1), 9).await;
    let status = refused(&late, "vm1").await;
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("expired at"), "{status}");

    let token = cluster.token(Duration::ZERO, 9).await;
    enroll(&token, enrolment("vm1")).await.expect("admitted");
    let revoke = || wire::RevokeTokenRequest { id: token.id.clone() };
    cluster.root().revoke_token(revoke()).await.expect("revoked");
    let status = refused(&token, "vm2").await;
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("revoked"), "{status}");
    assert_eq!(cluster.root().revoke_token(revoke()).await.expect_err("gone").code(), Code::NotFound);
    cluster.stop().await;
}

#[tokio::test]
async fn a_token_that_was_guessed_or_changed_admits_nobody() {
    let cluster = Secured::start().await;
    let known = cluster.agent_token.clone();
    let guessed = Token { secret: Secret::random(), ..known.clone() };
    let unknown = Token { id: "zzzzzzzzzz".to_owned(), ..known.clone() };
    for token in [&guessed, &unknown] {
        let status = refused(token, "vm1").await;
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("not known here"), "{status}");
    }
    // The role is what the cluster remembers, whatever the token says.
    let risen = Token { role: Role::Controller, ..known.clone() };
    let request = wire::EnrollRequest { address: "192.0.2.9:7640".to_owned(), ..enrolment("c2") };
    assert!(enroll(&risen, request).await.is_err());
    let status = cluster.root().status(wire::ClusterStatusRequest {}).await.expect("status").into_inner();
    assert_eq!(status.controllers.len(), 1, "{status:?}");
    // A token for another cluster's authority does not even get to show its secret.
    let elsewhere = Token { authority: [7; 32], ..known };
    let error = enroll(&elsewhere, enrolment("vm1")).await.expect_err("another authority");
    assert!(matches!(error, EnrollError::Connect(_)), "{error:?}");
    assert!(error.to_string().contains("make a new token"), "{error}");
    cluster.stop().await;
}

#[tokio::test]
async fn nobody_comes_in_under_the_name_of_another() {
    let cluster = Secured::start().await;
    cluster.agent("vm1").await;
    let status = refused(&cluster.agent_token, "vm1").await;
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("has a node vm1 already"), "{status}");

    // An answer that was lost: the same request again.
    let key = KeyAndRequest::generate("vm2").expect("a key");
    let request = || wire::EnrollRequest {
        token: cluster.agent_token.to_string(),
        signing_request: key.request_der.clone().into(),
        ..enrolment("vm2")
    };
    let mut client = EnrollClient::new(cluster.stranger().await.expect("connected"));
    for _ in 0..2 {
        client.enroll(request()).await.expect("admitted, and again");
    }
    let listed = cluster.root().list_tokens(wire::ListTokensRequest {}).await.expect("listed").into_inner().tokens;
    let left = listed.iter().find(|view| view.id == cluster.agent_token.id).expect("listed").uses_left;
    assert_eq!(left, 1_000 - 2, "vm1 and vm2, once each");
    cluster.stop().await;
}

impl Secured {
    /// As root does on the controller's host.
    async fn root_enrolls(&self, key: &KeyAndRequest, name: &str) -> Result<Identity, EnrollError> {
        enroll_over(self.running.unix.clone(), again(key), &self.agent_token, enrolment(name)).await
    }
}

#[tokio::test]
async fn the_agent_of_the_controllers_own_host_is_taken_up_as_it_runs() {
    let cluster = Secured::start().await;
    let mut agent = Agent::join_by(cluster.running.unix.clone(), "vm1").await;
    let status = refused(&cluster.agent_token, "vm1").await;
    assert_eq!(status.code(), Code::AlreadyExists, "a token from elsewhere does not take its name: {status}");

    let key = KeyAndRequest::generate("vm1").expect("a key");
    let identity = cluster.root_enrolls(&key, "vm1").await.expect("root has its own agent's name");
    let greeting = wire::AgentMessage { message: Some(wire::agent_message::Message::Hello(hello("vm1"))) };
    let greeting = tokio_stream::StreamExt::chain(tokio_stream::once(greeting), tokio_stream::pending());
    let mut dispatch = DispatchClient::new(cluster.member(&identity).await);
    let mut session = dispatch.session(greeting).await.expect("a stream").into_inner();
    within("the welcome", session.message()).await.expect("admitted").expect("a message");
    let ended = loop {
        if let Err(status) = agent.step().await {
            break status;
        }
    };
    assert!(ended.message().contains("a newer session"), "{ended}");
    let listed = nodes(&ControlClient::new(cluster.running.unix.clone())).await.expect("listed").nodes;
    let states: Vec<_> = listed.iter().map(|node| (node.id.as_str(), node.state())).collect();
    assert_eq!(states, [("vm1", wire::node::State::Ready)]);

    // What a certificate speaks for is not root's to give again, and a token is as little use as before.
    let another = KeyAndRequest::generate("vm1").expect("a key");
    let error = cluster.root_enrolls(&another, "vm1").await.expect_err("vm1 has a certificate");
    assert!(matches!(&error, EnrollError::Refused(status) if status.code() == Code::AlreadyExists), "{error}");
    assert_eq!(refused(&cluster.agent_token, "vm1").await.code(), Code::AlreadyExists);
    cluster.stop().await;
}

#[tokio::test]
async fn an_agent_that_connects_after_it_was_enrolled_is_in_nobodys_way() {
    let cluster = Secured::start().await;
    let key = KeyAndRequest::generate("vm1").expect("a key");
    cluster.root_enrolls(&key, "vm1").await.expect("enrolled");
    let _agent = Agent::join_by(cluster.running.unix.clone(), "vm1").await;
    cluster.root_enrolls(&key, "vm1").await.expect("asked again, answered again");
    assert_eq!(refused(&cluster.agent_token, "vm1").await.code(), Code::AlreadyExists);
    cluster.stop().await;
}

#[tokio::test]
async fn bad_names_keys_and_addresses_are_refused_with_words() {
    let cluster = Secured::start().await;
    for name in ["", "../etc", "VM1", "a b", &"x".repeat(64)] {
        assert_eq!(refused(&cluster.agent_token, name).await.code(), Code::InvalidArgument, "{name:?}");
    }
    let mut client = EnrollClient::new(cluster.stranger().await.expect("connected"));
    for (token, request) in [(cluster.agent_token.to_string(), vec![0; 64]), ("x".to_owned(), vec![])] {
        let request = wire::EnrollRequest { token, signing_request: request.into(), ..enrolment("vm1") };
        assert!(client.enroll(request).await.is_err());
    }
    for address in ["", "nowhere", ":7640", "10.0.0.1:0", "a b:7640"] {
        let request = wire::EnrollRequest { address: address.to_owned(), ..enrolment("c2") };
        let error = enroll(&cluster.controller_token, request).await.expect_err("no address");
        assert!(error.to_string().contains("write HOST:PORT"), "{address:?}: {error}");
    }
    // None of it used up a token.
    let listed = cluster.root().list_tokens(wire::ListTokensRequest {}).await.expect("listed").into_inner().tokens;
    assert!(listed.iter().all(|view| [8, 1_000].contains(&view.uses_left)), "{listed:?}");
    cluster.stop().await;
}
