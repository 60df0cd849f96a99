//! Certificates: whose count, and for what.

use roster_tls::{Authority, Role, Subject, renew};
use std::time::SystemTime;

use super::*;

#[tokio::test]
async fn each_role_has_its_reach() {
    let cluster = Secured::start().await;
    for (role, apply, token) in [("viewer", false, false), ("operator", true, false), ("admin", true, true)] {
        let channel = cluster.member(&cluster.person(&format!("{role}-1"), role).await).await;
        list(channel.clone()).await.expect("everybody reads");
        let applied = ControlClient::new(channel.clone()).scale(wire::ScaleRequest::default()).await;
        // An empty request is refused either way, but not for the same reason.
        let wanted = if apply { Code::InvalidArgument } else { Code::PermissionDenied };
        assert_eq!(applied.expect_err("refused").code(), wanted, "{role}");
        let listed = ClusterClient::new(channel.clone()).list_tokens(wire::ListTokensRequest {}).await;
        let code = listed.map_or_else(|status| status.code(), |_| Code::Ok);
        assert_eq!(code, if token { Code::Ok } else { Code::PermissionDenied }, "{role}");
        let init = LocalClient::new(channel).init(wire::InitRequest::default()).await.expect_err("root's");
        assert_eq!(init.code(), Code::PermissionDenied);
        assert!(init.message().contains("by its socket"), "{init}");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn an_agent_gets_at_its_session_alone_and_at_its_own() {
    let cluster = Secured::start().await;
    let channel = cluster.member(&cluster.agent("vm1").await).await;
    let status = list(channel.clone()).await.expect_err("not an agent's");
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("agent/vm1 may not call roster.v1.Control/ListNodes"), "{status}");
    let hello = |node: &str| wire::AgentMessage {
        message: Some(wire::agent_message::Message::Hello(crate::harness::hello(node))),
    };
    let mut dispatch = DispatchClient::new(channel);
    let mut other = dispatch.session(tokio_stream::iter([hello("vm2")])).await.expect("a stream").into_inner();
    let status = within("the refusal", other.message()).await.expect_err("another node");
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("vm2"), "{status}");
    let open = tokio_stream::StreamExt::chain(tokio_stream::iter([hello("vm1")]), tokio_stream::pending());
    let mut own = dispatch.session(open).await.expect("a stream").into_inner();
    within("the welcome", own.message()).await.expect("admitted").expect("a message");
    cluster.stop().await;
}

#[tokio::test]
async fn strangers_may_enrol_and_ask_after_our_health() {
    let cluster = Secured::start().await;
    let channel = cluster.stranger().await.expect("connected");
    let status = list(channel.clone()).await.expect_err("nobody");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("join with a token"), "{status}");
    let renewed = EnrollClient::new(channel.clone()).renew(wire::RenewRequest::default()).await;
    assert_eq!(renewed.expect_err("nothing to renew").code(), Code::Unauthenticated);
    // Speaking for somebody takes a controller's certificate.
    let mut request = tonic::Request::new(wire::ListNodesRequest {});
    request.metadata_mut().insert("roster-forwarded-for", "admin/root".parse().expect("a value"));
    let status = ControlClient::new(channel).list_nodes(request).await.expect_err("nobody");
    assert_eq!(status.code(), Code::Unauthenticated);
    cluster.stop().await;
}

#[tokio::test]
async fn who_forged_a_certificate_is_not_heard() {
    let cluster = Secured::start().await;
    let real = cluster.person("ann", "admin").await;
    let forger = Authority::new(&real.cluster, SystemTime::now()).expect("an authority");
    let key = KeyAndRequest::generate("ann").expect("a key");
    let subject = Subject { cluster: real.cluster.clone(), role: Role::Admin, name: "ann".to_owned() };
    let day = Duration::from_secs(86_400);
    let certificate = forger.sign(&key.request_der, &subject, day, SystemTime::now()).expect("signed");
    let forged = Identity { certificates: vec![certificate], key_pem: key.key_pem, ..real.clone() };
    let heard = match cluster.try_member(&forged).await {
        Ok(channel) => list(channel).await.is_ok(),
        Err(_) => false,
    };
    assert!(!heard);
    list(cluster.member(&real).await).await.expect("the real one is heard");
    cluster.stop().await;
}

/// Refused on a connection that is open, and on a new one.
pub(super) async fn is_shut_out(cluster: &Secured, identity: &Identity, open: Channel) {
    let shut = async {
        while admitted(open.clone()).await.is_ok() {
            look_again().await;
        }
        loop {
            match cluster.try_member(identity).await {
                Err(_) => return,
                Ok(channel) if admitted(channel.clone()).await.is_err() => return,
                Ok(_) => look_again().await,
            }
        }
    };
    within("the refusal", shut).await;
}

#[tokio::test]
async fn a_certificate_ends_when_it_says() {
    let cluster = Secured::start().await;
    let short = cluster.person_for("ann", "viewer", Duration::from_secs(3)).await;
    let open = cluster.member(&short).await;
    list(open.clone()).await.expect("it is good for a moment");
    is_shut_out(&cluster, &short, open).await;
    cluster.stop().await;
}

#[tokio::test]
async fn who_is_removed_is_out_at_once() {
    let cluster = Secured::start().await;
    let eve = cluster.person("eve", "admin").await;
    let open = cluster.member(&eve).await;
    // A stream that nobody would ask again for.
    let request = wire::WatchRequest { filter: None, after: 0 };
    let mut watch = ControlClient::new(open.clone()).watch(request).await.expect("watching").into_inner();
    cluster.root().remove_user(wire::RemoveUserRequest { name: "eve".to_owned() }).await.expect("removed");
    let ended = async { while let Ok(Some(_)) = watch.message().await {} };
    within("the end of the stream", ended).await;
    is_shut_out(&cluster, &eve, open).await;
    assert!(renew(cluster.member(&eve).await, &eve).await.is_err());

    let again = cluster.person("eve", "viewer").await;
    list(cluster.member(&again).await).await.expect("added again, with a new certificate");
    let old = match cluster.try_member(&eve).await {
        Ok(channel) => list(channel).await,
        Err(error) => Err(Status::unknown(error.to_string())),
    };
    assert!(old.is_err(), "the old one stays refused");
    cluster.stop().await;
}

#[tokio::test]
async fn members_renew_and_stay_who_they_are() {
    let cluster = Secured::start().await;
    let agent = cluster.agent("vm1").await;
    let person = cluster.person_for("ann", "viewer", Duration::from_secs(3600)).await;
    for before in [&agent, &person] {
        let after = renew(cluster.member(before).await, before).await.expect("renewed");
        let (was, is) = (before.certificate().expect("readable"), after.certificate().expect("readable"));
        assert_eq!(was.subject, is.subject);
        assert_ne!(was.serial, is.serial);
        assert!(before.key_pem != after.key_pem, "a fresh key");
        let lives = |certificate: &roster_tls::Certificate| certificate.expires.since(certificate.issued).as_secs();
        assert!(lives(&was).abs_diff(lives(&is)) <= 1, "{} {}", lives(&was), lives(&is));
        assert_eq!(after.controllers, std::slice::from_ref(&cluster.address));
        // Both count until the first one ends by itself.
        cluster.member(before).await;
        cluster.member(&after).await;
    }
    let listed = cluster.root().list_users(wire::ListUsersRequest {}).await.expect("listed").into_inner().users;
    assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].role.as_str()), (1, "ann", "viewer"));
    cluster.stop().await;
}
