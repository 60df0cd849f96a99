//! What is thrown at the door: noise, halves, too much, too slow. The others are served all the while.

use rand::RngCore;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

/// Waits until the other side has hung up.
pub(super) async fn is_hung_up_on(mut stream: TcpStream) {
    let mut bin = [0; 4096];
    while matches!(stream.read(&mut bin).await, Ok(1..)) {}
}

#[tokio::test]
async fn noise_is_hung_up_on() {
    let cluster = Secured::start().await;
    let mut noise = vec![0; 64 * 1024];
    rand::rng().fill_bytes(&mut noise);
    let http1 = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // A record of TLS that says it is a ClientHello, and then is not; and an empty one, over and over.
    let hello = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &noise[..501]].concat();
    let records = b"\x16\x03\x01\x00\x00".repeat(1_000);
    let huge = [b"\x16\x03\x01\xff\xff\x01\xff\xff\xff".as_slice(), &noise].concat();
    for (what, bytes) in
        [("noise", noise), ("HTTP/1", http1), ("HTTP/2", http2), ("hello", hello), ("records", records), ("huge", huge)]
    {
        let mut stream = TcpStream::connect(&cluster.address).await.expect("connected");
        // It may hang up before it has read everything.
        let _ = stream.write_all(&bytes).await;
        within(what, is_hung_up_on(stream)).await;
    }
    cluster.answers().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_hello_that_stops_half_way_is_not_waited_for_for_ever() {
    let cluster = Secured::start().await;
    let mut stream = TcpStream::connect(&cluster.address).await.expect("connected");
    stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc").await.expect("sent");
    within("the end of its patience", is_hung_up_on(stream)).await;
    cluster.stop().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_inside_as_well() {
    let cluster = Secured::start().await;
    let channel = cluster.member(&cluster.person("ann", "admin").await).await;
    let mut huge = crate::harness::stack("hello", &[("web", 1)]);
    let service = huge.services.values_mut().next().expect("there is one");
    service.labels.insert("pad".to_owned(), "x".repeat(5 << 20));
    let request = wire::ApplyRequest { stack: Some(huge.into()), prune: false, base: None };
    let status = ControlClient::new(channel.clone()).apply(request).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");

    let mut request = tonic::Request::new(wire::ListNodesRequest {});
    request.metadata_mut().insert("pad", "x".repeat(64 * 1024).parse().expect("a value"));
    assert!(ControlClient::new(channel).list_nodes(request).await.is_err(), "headers are bounded");

    let mut stranger = EnrollClient::new(cluster.stranger().await.expect("connected"));
    let request = wire::EnrollRequest { token: "x".repeat(5 << 20), ..enrolment("vm1") };
    assert!(stranger.enroll(request).await.is_err());
    cluster.answers().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_strangers_takes_turns() {
    let cluster = Secured::start().await;
    let ann = cluster.person("ann", "viewer").await;
    let channel = cluster.member(&ann).await;
    let mut crowd = Vec::new();
    for _ in 0..600 {
        crowd.push(cluster.stranger().await.expect("strangers shake hands"));
    }
    list(channel).await.expect("who was there stays");
    list(cluster.member(&ann).await).await.expect("who has a certificate gets in");
    cluster.answers().await;
    cluster.agent("vm1").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_holds_up_nobody() {
    let cluster = Secured::start().await;
    let slow = cluster.member(&cluster.person("slow", "viewer").await).await;
    let quick = cluster.member(&cluster.person("quick", "admin").await).await;
    let mut unread = Vec::new();
    for _ in 0..200 {
        let request = wire::WatchRequest { filter: None, after: 0 };
        unread.push(ControlClient::new(slow.clone()).watch(request).await.expect("watching").into_inner());
    }
    // Each change is news for all of those streams.
    for round in 0..50_u32 {
        let stack = crate::harness::stack("hello", &[("web", round % 3 + 1)]);
        let request = wire::ApplyRequest { stack: Some(stack.into()), prune: false, base: None };
        within("an apply", ControlClient::new(quick.clone()).apply(request)).await.expect("applied");
    }
    within("a read", list(quick)).await.expect("read");
    // And the slow one still gets there.
    let first = within("the first message", unread[0].message()).await.expect("a message");
    assert!(first.is_some());
    cluster.stop().await;
}

#[tokio::test]
async fn streams_that_are_begun_and_dropped_in_a_flood_end_their_own_connection_at_most() {
    let cluster = Secured::start().await;
    let eve = cluster.member(&cluster.person("eve", "viewer").await).await;
    let ann = cluster.member(&cluster.person("ann", "viewer").await).await;
    for _ in 0..2_000 {
        let mut client = ControlClient::new(eve.clone());
        // Dropped as soon as it is on its way.
        let call = client.list_nodes(wire::ListNodesRequest {});
        let _ = tokio::time::timeout(Duration::from_micros(50), call).await;
    }
    list(ann).await.expect("others are served");
    cluster.answers().await;
    cluster.stop().await;
}
