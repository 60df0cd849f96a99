//! Messages that are none: inside of TLS, from somebody who has been let in, and from strangers.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use roster_tls::SERVER_NAME;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::body::Body;
use tower::ServiceExt;

use super::*;

/// One piece, then its end; or nothing more, and no end.
struct Raw {
    piece: Option<Bytes>,
    ends: bool,
}

impl http_body::Body for Raw {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.piece.take() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

fn post(path: &str, kind: &str, piece: &[u8], ends: bool) -> http::Request<Body> {
    let body = Body::new(Raw { piece: Some(Bytes::copy_from_slice(piece)), ends });
    let request = http::Request::post(format!("https://controller.roster{path}"));
    request.header("content-type", kind).header("te", "trailers").body(body).expect("a request")
}

/// What it says in its headers or its trailers.
async fn code_of(channel: Channel, request: http::Request<Body>) -> Code {
    let answer = match channel.oneshot(request).await {
        Ok(answer) => answer,
        Err(_) => return Code::Unavailable,
    };
    if answer.status() != http::StatusCode::OK {
        return Code::InvalidArgument;
    }
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return status.code();
    }
    let mut body = answer.into_body();
    loop {
        match std::future::poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut body), context)).await {
            Some(Ok(frame)) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return Status::from_header_map(&trailers).map_or(Code::Ok, |status| status.code());
                }
            }
            Some(Err(status)) => return status.code(),
            None => return Code::Ok,
        }
    }
}

#[tokio::test]
async fn messages_that_are_none_are_refused_one_by_one() {
    let cluster = Secured::start().await;
    let admin = cluster.member(&cluster.person("ann", "admin").await).await;
    let stranger = cluster.stranger().await.expect("connected");
    const APPLY: &str = "/roster.v1.Control/Apply";
    const ENROLL: &str = "/roster.v1.Enroll/Enroll";
    const GRPC: &str = "application/grpc";
    let pieces: [&[u8]; 8] = [
        b"",
        b"\0\0\0\0\x05\xff\xff\xff\xff\xff",
        b"\0\xff\xff\xff\xff",
        b"\0\0\0\0\x05\x0a",
        b"\x01\0\0\0\x01\0",
        b"\x07\0\0\0\x01\0",
        // A field that says it is longer than the message; and messages in messages in messages.
        b"\0\0\0\0\x06\x0a\xff\xff\xff\xff\x0f",
        &[b"\0\0\0\x01\0".as_slice(), &b"\x0a\xfe".repeat(128)].concat(),
    ];
    for (channel, path) in [(&admin, APPLY), (&stranger, ENROLL)] {
        for piece in pieces {
            let code = within("an answer", code_of(channel.clone(), post(path, GRPC, piece, true))).await;
            assert_ne!(code, Code::Ok, "{path} {piece:?}");
        }
        let code = within("an answer", code_of(channel.clone(), post(path, "text/html", b"<p>", true))).await;
        assert_ne!(code, Code::Ok);
    }
    for path in ["/", "/roster.v1.Control/Nothing", "/roster.v1.Nothing/Apply", "/../../etc/passwd"] {
        let code = within("an answer", code_of(admin.clone(), post(path, GRPC, b"", true))).await;
        assert_eq!(code, Code::PermissionDenied, "{path}");
    }
    // On the same connections.
    list(admin).await.expect("still served");
    cluster.answers().await;
    cluster.stop().await;
}

#[tokio::test]
async fn noise_inside_of_tls_ends_its_own_connection() {
    let cluster = Secured::start().await;
    let ann = cluster.person("ann", "admin").await;
    let channel = cluster.member(&ann).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    let settings = b"\0\0\0\x04\0\0\0\0\0".as_slice();
    let noise: [Vec<u8>; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 64 * 1024],
        // A frame larger than was agreed on; a window of nothing; headers that never end.
        [preface, settings, b"\xff\xff\xff\0\0\0\0\0\x01", &[0; 1024]].concat(),
        [preface, settings, b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0"].concat(),
        [preface, settings, b"\0\0\x01\x01\0\0\0\0\x01\x82", &b"\0\0\x01\x09\0\0\0\0\x01\x82".repeat(100_000)].concat(),
    ];
    for (number, bytes) in noise.into_iter().enumerate() {
        let tcp = TcpStream::connect(&cluster.address).await.expect("connected");
        let tls = tokio_rustls::TlsConnector::from(client_config(&ann).expect("a client"));
        let mut stream = tls.connect(SERVER_NAME.try_into().expect("a name"), tcp).await.expect("shaken");
        // It may hang up before it has read everything.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.flush().await;
        let mut bin = [0; 4096];
        let over = async { while matches!(stream.read(&mut bin).await, Ok(1..)) {} };
        within(&format!("the end of connection {number}"), over).await;
    }
    list(channel).await.expect("the others are served");
    cluster.stop().await;
}

#[tokio::test]
async fn calls_that_stop_half_way_are_bounded_for_each_stranger() {
    let cluster = Secured::start().await;
    let channel = cluster.stranger().await.expect("connected");
    let mut stuck = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let half = post("/roster.v1.Enroll/Enroll", "application/grpc", b"\0\0\0\x40\0half", false);
        stuck.spawn(code_of(channel.clone(), half));
    }
    for _ in 0..2 {
        let code = within("a refusal", stuck.join_next()).await.expect("there are six").expect("no panic");
        assert_eq!(code, Code::ResourceExhausted);
    }
    logged(&["refused a call", "somebody without a certificate", "4 of your calls are under way already"]).await;
    cluster.agent("vm1").await;
    stuck.abort_all();
    cluster.stop().await;
}

#[tokio::test]
async fn calls_of_one_person_are_bounded() {
    let cluster = Secured::start().await;
    let eve = cluster.member(&cluster.person("many-eve", "viewer").await).await;
    let watch = || {
        let mut client = ControlClient::new(eve.clone());
        async move { client.watch(wire::WatchRequest { filter: None, after: 0 }).await }
    };
    let mut watches = Vec::new();
    for _ in 0..256 {
        watches.push(watch().await.expect("watching"));
    }
    assert_eq!(watch().await.expect_err("one too many").code(), Code::ResourceExhausted);
    logged(&["refused a call", "viewer/many-eve", "/roster.v1.Control/Watch", "256 of your calls"]).await;
    list(cluster.member(&cluster.person("ann", "viewer").await).await).await.expect("others are served");
    drop(watches);
    let again = async {
        while list(eve.clone()).await.is_err() {
            look_again().await;
        }
    };
    within("room again", again).await;
    cluster.stop().await;
}
