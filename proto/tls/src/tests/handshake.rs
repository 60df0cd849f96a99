//! Handshakes between identities that fit and identities that do not.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    AcceptError, Accepted, ConnectError, SERVER_NAME, accept, anonymous_client_config, client_config, connect,
    server_config,
};

struct Both {
    server: Result<Accepted<TcpStream>, AcceptError>,
    /// With TLS 1.3 a client learns of its refusal with the first bytes it reads.
    client: std::io::Result<()>,
}

async fn shake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Both {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound");
    let client = async {
        let tcp = TcpStream::connect(address).await.expect("loopback");
        let name = SERVER_NAME.try_into().expect("a name");
        let mut stream = TlsConnector::from(client).connect(name, tcp).await?;
        stream.read_exact(&mut [0]).await.map(|_| ())
    };
    let server = async {
        let (tcp, _) = listener.accept().await.expect("accept");
        let mut accepted = accept(server, tcp).await?;
        let _ = accepted.stream.write_all(b"!").await;
        let _ = accepted.stream.flush().await;
        Ok(accepted)
    };
    let (server, client) = tokio::join!(server, client);
    Both { server, client }
}

fn serve(identity: &Identity) -> Arc<ServerConfig> {
    server_config(identity).expect("a server")
}

fn ask(identity: &Identity) -> Arc<ClientConfig> {
    client_config(identity).expect("a client")
}

#[tokio::test]
async fn members_know_each_other() {
    let authority = authority();
    let controller = identity(&authority, Role::Controller, "c1");
    for role in Role::ALL {
        let member = identity(&authority, role, "x1");
        let both = shake(serve(&controller), ask(&member)).await;
        both.client.expect("the client is content");
        let shown = both.server.expect("the server is content").certificate.expect("one was shown");
        assert_eq!(shown, member.certificate().expect("readable"));
    }
}

#[tokio::test]
async fn a_stranger_with_the_digest_is_let_in_as_a_stranger() {
    let authority = authority();
    let controller = identity(&authority, Role::Controller, "c1");
    let stranger = anonymous_client_config(CLUSTER, authority.digest()).expect("a client");
    let both = shake(serve(&controller), stranger).await;
    both.client.expect("the client is content");
    assert_eq!(both.server.expect("the server is content").certificate, None);
}

#[tokio::test]
async fn a_stranger_believes_only_what_its_token_names() {
    let (ours, theirs) = (authority(), authority());
    let controller = identity(&ours, Role::Controller, "c1");
    let agent = identity(&ours, Role::Agent, "vm1");
    for (server, cluster, digest) in [
        (&controller, CLUSTER, theirs.digest()),
        (&controller, "other", ours.digest()),
        (&agent, CLUSTER, ours.digest()),
    ] {
        let stranger = anonymous_client_config(cluster, digest).expect("a client");
        assert!(shake(serve(server), stranger).await.client.is_err());
    }

    // Shows the right authority, but a certificate of its own making.
    let mut forger = identity(&theirs, Role::Controller, "c1");
    forger.certificates.push(ours.certificate().to_vec());
    let stranger = anonymous_client_config(CLUSTER, ours.digest()).expect("a client");
    assert!(shake(serve(&forger), stranger).await.client.is_err());
}

#[tokio::test]
async fn a_client_talks_to_controllers_of_its_cluster_only() {
    let (ours, theirs) = (authority(), authority());
    let client = identity(&ours, Role::Admin, "ann");
    let other_authority = identity(&theirs, Role::Controller, "c1");
    let not_a_controller = identity(&ours, Role::Admin, "eve");
    let expired = identity_from(&ours, Role::Controller, "c1", HOUR * 2);
    for server in [&other_authority, &not_a_controller, &expired] {
        assert!(shake(serve(server), ask(&client)).await.client.is_err(), "{server:?}");
    }
}

#[tokio::test]
async fn a_bad_certificate_of_a_client_is_refused_and_named() {
    let (ours, theirs) = (authority(), authority());
    let controller = identity(&ours, Role::Controller, "c1");
    // Each trusts our controller, so that the refusal is the server's.
    let trusting = |mut identity: Identity| {
        identity.authorities = vec![ours.certificate().to_vec()];
        identity
    };
    let forged = trusting(identity(&theirs, Role::Admin, "eve"));
    let expired = identity_from(&ours, Role::Admin, "old", HOUR * 2);
    for (client, named, why) in
        [(&forged, "admin/eve", "UnknownIssuer"), (&expired, "admin/old", "certificate expired")]
    {
        let both = shake(serve(&controller), ask(client)).await;
        assert!(both.client.is_err());
        let error = both.server.expect_err("refused");
        assert!(error.shown.as_ref().is_some_and(|shown| shown.starts_with(named)), "{error:?}");
        assert!(error.source.to_string().contains(why), "{error:?}");
    }
}

#[tokio::test]
async fn both_authorities_count_while_one_replaces_the_other() {
    let (old, new) = (authority(), authority());
    let both_known = |mut identity: Identity| {
        identity.authorities = vec![new.certificate().to_vec(), old.certificate().to_vec()];
        identity
    };
    let controller = both_known(identity(&new, Role::Controller, "c1"));
    let late = both_known(identity(&old, Role::Agent, "vm1"));
    let both = shake(serve(&controller), ask(&late)).await;
    assert!(both.client.is_ok() && both.server.is_ok());
    assert_eq!(controller.signer(), Some(new.digest()));
    let dropped = identity(&new, Role::Controller, "c1");
    let both = shake(serve(&dropped), ask(&late)).await;
    assert!(both.server.is_err(), "the old authority is gone");
}

#[tokio::test]
async fn who_knows_only_the_old_authority_believes_what_the_new_one_signs() {
    let (old, new) = (authority(), authority());
    let cross = old.cross_sign(&new, std::time::SystemTime::now()).expect("signed");
    let crossed = |mut identity: Identity| {
        identity.certificates.push(cross.clone());
        identity
    };
    let mut controller = crossed(identity(&new, Role::Controller, "c1"));
    controller.authorities.push(old.certificate().to_vec());

    // A member that has not heard of the rotation, and strangers with tokens from before and after.
    let late = identity(&old, Role::Agent, "vm1");
    let both = shake(serve(&controller), ask(&late)).await;
    assert!(both.client.is_ok() && both.server.is_ok());
    for pinned in [&old, &new] {
        let stranger = anonymous_client_config(CLUSTER, pinned.digest()).expect("a client");
        shake(serve(&controller), stranger).await.client.expect("the token's authority vouches");
    }
    // And a controller that has not heard of it, asked by a member that has renewed.
    let late = identity(&old, Role::Controller, "c2");
    let mut renewed = crossed(identity(&new, Role::Agent, "vm1"));
    renewed.authorities.push(old.certificate().to_vec());
    assert!(renewed.signer() == Some(new.digest()) && !renewed.is_due(std::time::SystemTime::now().into()).unwrap());
    let both = shake(serve(&late), ask(&renewed)).await;
    assert!(both.client.is_ok() && both.server.is_ok());
    renewed.authorities.swap(0, 1);
    assert!(renewed.is_due(std::time::SystemTime::now().into()).expect("readable"), "another one signs");
}

/// Shakes hands until it is dropped, and forgets what it accepted when the peer does.
async fn controller(identity: &Identity) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound").to_string();
    let config = serve(identity);
    let serving = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(accepted) = accept(config.clone(), tcp).await {
                open.push(accepted.stream);
            }
        }
    });
    (address, serving)
}

#[tokio::test]
async fn a_silent_address_does_not_hold_up_the_others() {
    let authority = authority();
    let (good, serving) = controller(&identity(&authority, Role::Controller, "c1")).await;
    // Accepts and says nothing, as a stopped process does.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("bound").to_string();
    let addresses = [silent.local_addr().expect("bound").to_string(), closed, good];
    let config = ask(&identity(&authority, Role::Agent, "vm1"));
    let began = std::time::Instant::now();
    connect(&addresses, config).await.expect("one of them answers");
    assert!(began.elapsed() < crate::CONNECT_TIMEOUT, "{:?}", began.elapsed());
    serving.abort();
}

#[tokio::test]
async fn what_went_wrong_with_each_address_is_said() {
    let (ours, theirs) = (authority(), authority());
    let (impostor, serving) = controller(&identity(&theirs, Role::Controller, "c1")).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("bound").to_string();
    let config = ask(&identity(&ours, Role::Agent, "vm1"));
    let addresses = [impostor.clone(), closed.clone(), "nowhere".to_owned()];
    let error = connect(&addresses, config.clone()).await.expect_err("none is good").to_string();
    for part in [
        format!("{impostor} cannot be trusted: its certificate is not of an authority of this cluster"),
        format!("cannot connect to {closed}: Connection refused"),
        "\"nowhere\" is no address: write HOST:PORT".to_owned(),
    ] {
        assert!(error.contains(&part), "{part:?} is missing: {error}");
    }
    assert!(matches!(connect(&[], config).await, Err(ConnectError::NoAddress)));

    let stranger = anonymous_client_config(CLUSTER, ours.digest()).expect("a client");
    let error = connect(&[impostor], stranger).await.expect_err("another authority").to_string();
    assert!(error.contains("make a new token"), "{error}");
    serving.abort();
}
