//! The transport against real servers, some of which are not there.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response};
use roster_proto::{call, wire};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body, metadata::MetadataValue};

use super::*;

/// Where a controller would say so, it does not answer.
const SILENCE: &str = "silence";

/// Answers changes with what `behave` makes of the number of the try; keeps the request ids.
#[derive(Clone)]
struct Controller {
    ids: Arc<Mutex<Vec<String>>>,
    behave: fn(usize) -> Result<u64, Status>,
}

impl tonic::server::NamedService for Controller {
    const NAME: &'static str = "roster.v1.Control";
}

impl tower::Service<Request<Body>> for Controller {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Response<Body>, std::convert::Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<wire::ChangeResponse, wire::ScaleRequest>::default();
            let change = tower::service_fn(move |request: tonic::Request<wire::ScaleRequest>| {
                let text =
                    |key: &str| request.metadata().get(key).map_or("", |value| value.to_str().unwrap()).to_owned();
                let number = {
                    let mut ids = this.ids.lock().unwrap();
                    ids.push(text(call::REQUEST_ID) + &text(call::CONSISTENCY));
                    ids.len()
                };
                let answer = (this.behave)(number);
                async move {
                    if answer.as_ref().is_err_and(|status| status.message() == SILENCE) {
                        std::future::pending::<()>().await;
                    }
                    answer.map(|version| tonic::Response::new(wire::ChangeResponse { version }))
                }
            });
            Ok(tonic::server::Grpc::new(codec).unary(change, request).await)
        })
    }
}

struct Running {
    address: SocketAddr,
    ids: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.server.await.unwrap().unwrap();
    }
}

async fn start(behave: fn(usize) -> Result<u64, Status>) -> Running {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ids = Arc::new(Mutex::new(Vec::new()));
    let stop = CancellationToken::new();
    let server = tonic::transport::Server::builder()
        .add_service(Controller { ids: ids.clone(), behave })
        .serve_with_incoming_shutdown(
            tokio_stream::wrappers::TcpListenerStream::new(listener),
            stop.clone().cancelled_owned(),
        );
    Running { address, ids, stop, server: tokio::spawn(server) }
}

fn wishes(endpoints: &[SocketAddr]) -> Wishes {
    Wishes {
        endpoints: endpoints.iter().map(|address| format!("http://{address}")).collect(),
        request_timeout: Duration::from_secs(10),
        ..Wishes::default()
    }
}

async fn scale(client: &mut Client) -> Result<u64, Status> {
    let request = wire::ScaleRequest { replicas: [("hello/web".to_owned(), 1)].into() };
    client.scale(request).await.map(|answer| answer.into_inner().version)
}

fn no_leader(retry: &'static str) -> Status {
    let mut status = Status::unavailable("no leader at present");
    status.metadata_mut().insert(call::RETRY, MetadataValue::from_static(retry));
    status
}

/// A place where nobody listens.
async fn nowhere() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_change_is_sent_again_under_one_id() {
    let controller =
        start(|number| if number < 4 { Err(no_leader(call::RETRY_SAME_ID)) } else { Ok(number as u64) }).await;
    let mut client = control(&wishes(&[controller.address])).await.unwrap();
    assert_eq!(scale(&mut client).await.unwrap(), 4);
    scale(&mut client).await.unwrap();
    let ids = controller.ids.lock().unwrap().clone();
    assert!(ids[..4].iter().all(|id| *id == ids[0] && id.len() == 32), "{ids:?}");
    assert_ne!(ids[4], ids[0], "another change is another");
}

#[tokio::test]
async fn what_is_answered_is_not_asked_again() {
    let controller = start(|_| Err(Status::unavailable("no agent has the task"))).await;
    let mut client = control(&wishes(&[controller.address])).await.unwrap();
    assert_eq!(scale(&mut client).await.unwrap_err().message(), "no agent has the task");
    assert_eq!(controller.ids.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn another_controller_is_found_when_one_goes() {
    let (first, second) = (start(|_| Ok(1)).await, start(|_| Ok(2)).await);
    let mut client = control(&wishes(&[nowhere().await, first.address, second.address])).await.unwrap();
    assert_eq!(scale(&mut client).await.unwrap(), 1);
    first.stop().await;
    assert_eq!(scale(&mut client).await.unwrap(), 2);
}

#[tokio::test]
async fn one_that_follows_nobody_is_left_for_another() {
    let (first, second) = (start(|_| Err(no_leader(call::RETRY_SAFE))).await, start(|_| Ok(2)).await);
    let mut client = control(&wishes(&[first.address, second.address])).await.unwrap();
    assert_eq!(scale(&mut client).await.unwrap(), 2);
    assert_eq!(first.ids.lock().unwrap().len(), 1);
    assert_eq!(scale(&mut client).await.unwrap(), 2);
    assert_eq!(first.ids.lock().unwrap().len(), 1, "the one that answers is kept");
}

#[tokio::test]
async fn it_gives_up_in_time_and_says_what_was_said() {
    let controller = start(|_| Err(no_leader(call::RETRY_SAFE))).await;
    let wishes = Wishes { request_timeout: Duration::from_millis(400), ..wishes(&[controller.address]) };
    let begun = std::time::Instant::now();
    let status = scale(&mut control(&wishes).await.unwrap()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "no leader at present"));
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(controller.ids.lock().unwrap().len() > 1);
}

/// As a controller that waits to be told what to be.
fn of_no_cluster() -> Status {
    let mut status = Status::failed_precondition("in no cluster yet");
    status.metadata_mut().insert(call::RETRY, MetadataValue::from_static(call::RETRY_ELSEWHERE));
    status
}

#[tokio::test]
async fn one_of_no_cluster_is_left_for_another() {
    let (first, second) = (start(|_| Err(of_no_cluster())).await, start(|_| Ok(2)).await);
    let mut client = control(&wishes(&[first.address, second.address])).await.unwrap();
    assert_eq!(scale(&mut client).await.unwrap(), 2);
    // Where no other is left it is said at once.
    let third = start(|_| Err(of_no_cluster())).await;
    let mut client = control(&wishes(&[first.address, third.address])).await.unwrap();
    assert_eq!(scale(&mut client).await.unwrap_err().message(), "in no cluster yet");
    assert_eq!((first.ids.lock().unwrap().len(), third.ids.lock().unwrap().len()), (2, 1));
    // It is not gone back to when the other one has to be asked again.
    let fourth = start(|number| if number < 4 { Err(no_leader(call::RETRY_SAFE)) } else { Ok(4) }).await;
    let mut client = control(&wishes(&[first.address, fourth.address])).await.unwrap();
    assert_eq!(scale(&mut client).await.unwrap(), 4);
    assert_eq!(first.ids.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn a_try_that_is_not_answered_does_not_hide_what_was_said() {
    let controller =
        start(|number| Err(if number == 1 { no_leader(call::RETRY_SAFE) } else { Status::cancelled(SILENCE) })).await;
    let wishes = Wishes { request_timeout: Duration::from_millis(400), ..wishes(&[controller.address]) };
    let status = scale(&mut control(&wishes).await.unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let address = controller.address;
    assert_eq!(
        status.message(),
        format!(
            "http://{address} did not answer within 0.4 s (--request-timeout waits longer); before that: no leader at \
             present"
        )
    );
}

#[tokio::test]
async fn where_nobody_answers_every_place_is_told() {
    let (one, other) = (nowhere().await, nowhere().await);
    let wishes = Wishes { request_timeout: Duration::from_millis(300), ..wishes(&[one, other]) };
    let begun = std::time::Instant::now();
    let error = control(&wishes).await.unwrap_err().to_string();
    assert!(error.contains(&one.to_string()) && error.contains(&other.to_string()), "{error}");
    assert!(begun.elapsed() >= wishes.request_timeout, "given up after {:?}", begun.elapsed());
}

/// By a socket in a folder that is, or is not, there.
fn by_socket(path: &std::path::Path) -> Wishes {
    Wishes {
        endpoints: vec![format!("unix://{}", path.display())],
        request_timeout: Duration::from_secs(30),
        ..Wishes::default()
    }
}

#[tokio::test]
async fn a_controller_that_starts_again_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("controller.sock");
    let wishes = by_socket(&path);
    // No socket, and one that nobody listens at any more.
    for _ in 0..2 {
        let mut connecting = Box::pin(control(&wishes));
        let early = tokio::time::timeout(Duration::from_millis(200), &mut connecting).await;
        assert!(early.is_err(), "{:?}", early.map(|connected| connected.map(|_| ())));
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let controller = Controller { ids: Arc::default(), behave: |_| Ok(7) };
        let stop = CancellationToken::new();
        let server = tonic::transport::Server::builder().add_service(controller).serve_with_incoming_shutdown(
            tokio_stream::wrappers::UnixListenerStream::new(listener),
            stop.clone().cancelled_owned(),
        );
        let server = tokio::spawn(server);
        assert_eq!(scale(&mut connecting.await.unwrap()).await.unwrap(), 7);
        stop.cancel();
        server.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn where_no_controller_ever_was_nobody_waits_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let begun = std::time::Instant::now();
    let error = control(&by_socket(&folder.path().join("roster/controller.sock"))).await.unwrap_err().to_string();
    assert!(error.contains("No such file or directory"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "after {:?}", begun.elapsed());
}

#[tokio::test]
async fn stale_is_said_of_reads_only() {
    let controller = start(|_| Ok(0)).await;
    let mut client = control(&Wishes { stale: true, ..wishes(&[controller.address]) }).await.unwrap();
    scale(&mut client).await.unwrap();
    // An empty answer is one to every question.
    client.list_nodes(wire::ListNodesRequest {}).await.unwrap();
    let ids = controller.ids.lock().unwrap().clone();
    assert_eq!((ids[0].len(), ids[1].as_str()), (32, call::STALE), "{ids:?}");
}

#[test]
fn endpoints() {
    let parse = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
    for (text, reads) in [
        ("unix:///run/c.sock", "unix:///run/c.sock"),
        ("unix:/run/c.sock", "unix:///run/c.sock"),
        ("http://127.0.0.1:7", "http://127.0.0.1:7"),
        ("http://[::1]:7/", "http://[::1]:7"),
        ("vm1", "vm1:7640"),
        ("vm1:9", "vm1:9"),
        ("https://vm1.example:9", "vm1.example:9"),
        ("10.0.0.1", "10.0.0.1:7640"),
        ("[fd00::1]:9", "[fd00::1]:9"),
        ("[fd00::1]", "[fd00::1]:7640"),
    ] {
        assert_eq!(parse(text).as_deref(), Ok(reads), "{text}");
    }
    for wrong in ["", "unix://run", ":7640", "vm1:", "vm1:99999", "vm 1", "ftp://x", "[zz]:1", "http://10.0.0.1:7"] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn over_the_network_goes_nothing_without_credentials() {
    let wishes = Wishes { endpoints: vec!["10.0.0.1".to_owned()], ..Wishes::default() };
    // Whatever this machine's own contexts are: none is asked for by name.
    let wishes = Wishes { context: Some(crate::context::LOCAL.to_owned()), ..wishes };
    let error = wishes.target().unwrap_err().to_string();
    assert!(error.contains("10.0.0.1:7640 asks for credentials"), "{error}");
    let error = wishes.local_target().unwrap_err().to_string();
    assert!(error.contains("unix socket, not at 10.0.0.1:7640"), "{error}");
}
