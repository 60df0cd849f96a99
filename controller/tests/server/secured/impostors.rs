//! Certificates that are not what they say, on both sides of a connection.

use std::time::SystemTime;

use roster_proto::{call, wire::raft_client::RaftClient};
use roster_tls::{EnrollError, Role, Subject, accept, server_config};
use tokio::net::TcpListener;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// As `role/name` of `cluster`, signed at `when` for an hour.
fn signed(authority: &Authority, like: &Identity, cluster: &str, role: Role, name: &str, when: SystemTime) -> Identity {
    let key = KeyAndRequest::generate(name).expect("a key");
    let subject = Subject { cluster: cluster.to_owned(), role, name: name.to_owned() };
    let certificate = authority.sign(&key.request_der, &subject, HOUR, when).expect("signed");
    Identity { certificates: vec![certificate], key_pem: key.key_pem, ..like.clone() }
}

async fn is_not_heard(cluster: &Secured, identity: &Identity) {
    let heard = match cluster.try_member(identity).await {
        Ok(channel) => admitted(channel).await.is_ok(),
        Err(_) => false,
    };
    assert!(!heard, "{identity:?}");
}

#[tokio::test]
async fn only_our_authority_and_only_now_makes_a_member() {
    let (cluster, ours) = Secured::with_authority().await;
    let real = cluster.person("ann", "admin").await;
    let theirs = Authority::new(&real.cluster, SystemTime::now()).expect("an authority");
    let now = SystemTime::now();
    let (id, admin) = (real.cluster.as_str(), Role::Admin);

    is_not_heard(&cluster, &signed(&theirs, &real, id, admin, "forged-ann", now)).await;
    logged(&["refused a connection", "admin/forged-ann", "127.0.0.1:", "UnknownIssuer"]).await;
    is_not_heard(&cluster, &signed(&ours, &real, id, admin, "late-ann", now - 3 * HOUR)).await;
    logged(&["refused a connection", "admin/late-ann", "127.0.0.1:", "certificate expired"]).await;
    is_not_heard(&cluster, &signed(&ours, &real, id, admin, "early-ann", now + 3 * HOUR)).await;
    logged(&["refused a connection", "admin/early-ann", "127.0.0.1:", "certificate not valid yet"]).await;
    // The authority that was stolen is of this cluster, the name is not.
    is_not_heard(&cluster, &signed(&ours, &real, "abcdefghij234567", admin, "other-ann", now)).await;
    logged(&["refused a connection", "admin/other-ann", "abcdefghij234567"]).await;

    list(cluster.member(&signed(&ours, &real, id, admin, "right-ann", now)).await)
        .await
        .expect("all is as it should be");
    cluster.stop().await;
}

#[tokio::test]
async fn each_certificate_opens_its_own_doors() {
    let cluster = Secured::start().await;
    let agent = cluster.member(&cluster.agent("door-vm1").await).await;
    let viewer = cluster.member(&cluster.person("door-eve", "viewer").await).await;
    for (channel, name) in [(&agent, "agent/door-vm1"), (&viewer, "viewer/door-eve")] {
        let messages = RaftClient::new(channel.clone()).messages(tokio_stream::empty()).await;
        assert_eq!(messages.expect_err("controllers' alone").code(), Code::PermissionDenied);
        logged(&["refused a call", name, "127.0.0.1:", "/roster.v1.Raft/Messages", "it is open to controller"]).await;

        // Only a controller is believed when it says that it speaks for somebody.
        let request = wire::CreateTokenRequest { role: "controller".to_owned(), lifetime: 0, uses: 1 };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert(call::FORWARDED_FOR, "admin/root".parse().expect("a value"));
        let made = ClusterClient::new(channel.clone()).create_token(request).await;
        assert_eq!(made.expect_err("not an admin").code(), Code::PermissionDenied);
        logged(&["refused a call", name, "/roster.v1.Cluster/CreateToken", "it is open to admin"]).await;
    }
    let status = ControlClient::new(viewer).remove_stack(wire::RemoveStackRequest::default()).await;
    assert_eq!(status.expect_err("a viewer views").code(), Code::PermissionDenied);
    logged(&["refused a call", "viewer/door-eve", "/roster.v1.Control/RemoveStack"]).await;
    let stranger = cluster.stranger().await.expect("connected");
    list(stranger).await.expect_err("nobody");
    logged(&["refused a call", "somebody without a certificate at 127.0.0.1:", "/roster.v1.Control/ListNodes"]).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_removed_controller_is_out_at_once() {
    let (cluster, authority) = Secured::with_authority().await;
    let join = |port: u16| wire::EnrollRequest { address: format!("127.0.0.1:{port}"), ..enrolment("gone-c2") };
    let other = enroll(&cluster.controller_token, join(1)).await.expect("admitted");
    let open = cluster.member(&other).await;
    admitted(open.clone()).await.expect("a member");
    let named = wire::ControllerRequest { controller: "gone-c2".to_owned() };
    within("the removal", cluster.root().remove_controller(named)).await.expect("removed");
    people::is_shut_out(&cluster, &other, open).await;
    logged(&["ended a connection", "controller/gone-c2", "was removed from the cluster"]).await;
    logged(&["refused a call", "controller/gone-c2", "127.0.0.1:", "/roster.v1.Enroll/Renew"]).await;
    // It has seen the authority's key and may sign for itself: nobody has admitted it since.
    let (role, later) = (Role::Controller, SystemTime::now() + Duration::from_secs(60));
    is_not_heard(&cluster, &signed(&authority, &other, &other.cluster, role, "gone-c2", later)).await;
    let again = enroll(&cluster.controller_token, join(2)).await.expect("admitted anew, by a token");
    admitted(cluster.member(&again).await).await.expect("a member again");
    is_not_heard(&cluster, &other).await;
    cluster.stop().await;
}

/// Takes connections as if it were a controller, until one shakes hands with it.
async fn pose(identity: &Identity) -> (String, JoinHandle<()>) {
    let config = server_config(identity).expect("a server");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    let fooled = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepted");
            if accept(config.clone(), stream).await.is_ok() {
                return;
            }
        }
    });
    (address, fooled)
}

#[tokio::test]
async fn the_first_contact_falls_for_no_impostor() {
    let (cluster, ours) = Secured::with_authority().await;
    let agent = cluster.agent("mitm").await;
    let theirs = Authority::new(&agent.cluster, SystemTime::now()).expect("an authority");
    let now = SystemTime::now();
    let mut forged = signed(&theirs, &agent, &agent.cluster, Role::Controller, "c1", now);
    let own = Identity { authorities: vec![theirs.certificate().to_vec()], ..forged.clone() };
    // It can show our authority's certificate: everybody has that.
    forged.authorities = vec![theirs.certificate().to_vec(), ours.certificate().to_vec()];
    let late = signed(&ours, &agent, &agent.cluster, Role::Controller, "c1", now - 3 * HOUR);
    for (impostor, why) in [
        (own, "make a new token"),
        (forged, "is it another cluster's controller?"),
        (agent.clone(), "not a controller's"),
        (late, "has expired"),
    ] {
        let (address, fooled) = pose(&impostor).await;
        let token = Token { addresses: vec![address.clone()], ..cluster.agent_token.clone() };
        let error = within("the refusal", enroll(&token, enrolment("vm1"))).await.expect_err("an impostor");
        assert!(matches!(error, EnrollError::Connect(_)), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
        assert!(!fooled.is_finished(), "it got no further than its own certificate");
        fooled.abort();
        let fooled = client_config(&agent).expect("a client");
        assert!(connect(&[address], fooled).await.is_err(), "members are no easier");
    }
    cluster.stop().await;
}
