//! The layer between real servers on loopback, each made to believe who leads.

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use roster_proto::{
    id::PeerId,
    wire::{self, control_client::ControlClient},
};
use tokio::sync::{Notify, mpsc};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Streaming,
    metadata::MetadataValue,
    service::Routes,
    transport::{Channel, Endpoint, Server},
};
use tonic_prost::ProstCodec;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);
/// Messages of a stream that its reader leaves waiting.
const ENDLESS: usize = 1_000_000;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// What a peer's services were asked, and how they behave.
#[derive(Debug, Default)]
struct Behaviour {
    /// Request ids and callers of the changes that came, in order.
    asked: Mutex<Vec<(String, String)>>,
    /// While it holds, changes are taken and not answered.
    stuck: AtomicBool,
    arrived: Notify,
    sent: AtomicUsize,
    gone: Notify,
}

#[derive(Clone, Debug)]
struct Peer {
    address: SocketAddr,
    leadership: watch::Sender<Leadership>,
    service: Arc<Behaviour>,
    stop: CancellationToken,
}

#[derive(Clone, Debug, Default)]
struct Addresses {
    known: Arc<Mutex<BTreeMap<u64, SocketAddr>>>,
    removed: Arc<AtomicBool>,
}

impl Peers for Addresses {
    fn connect(&self, peer: u64) -> BoxFuture<'static, Result<Channel, Unreachable>> {
        let address = self.known.lock().unwrap().get(&peer).copied();
        Box::pin(async move {
            let address = address.ok_or(Unreachable::NoAddress(peer))?;
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
            endpoint.connect().await.map_err(|error| Unreachable::Connect {
                name: format!("c{peer}"),
                address: address.to_string(),
                reason: chain(&error),
            })
        })
    }

    fn failed(&self, _peer: u64) {}

    fn refused(&self, answer: &Status) {
        if answer.metadata().contains_key(call::REMOVED) {
            self.removed.store(true, Ordering::Relaxed);
        }
    }

    fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }
}

fn leads(leader: Option<u64>, term: u64, own: u64) -> Leadership {
    Leadership { leader: leader.map(PeerId), term, is_self: leader == Some(own) }
}

/// Peers 1 to `count`; nobody leads yet.
async fn peers(count: u64) -> Vec<Peer> {
    let addresses = Addresses::default();
    let mut peers = Vec::new();
    for id in 1..=count {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        addresses.known.lock().unwrap().insert(id, address);
        let (leadership, seen) = watch::channel(leads(None, 1, id));
        let service = Arc::new(Behaviour::default());
        let stop = CancellationToken::new();
        let routes = Routes::from(axum::Router::new().fallback(answer).with_state(service.clone()));
        let doors = tower::util::MapRequestLayer::new(|mut request: Request<Body>| {
            let forwarded = request.headers().get(call::FORWARDED_FOR).map(|who| who.to_str().unwrap().to_owned());
            let origin =
                Origin { forwarded: forwarded.is_some(), caller: forwarded.unwrap_or_else(|| "admin/ann".to_owned()) };
            request.extensions_mut().insert(origin);
            request
        });
        let server = Server::builder()
            .layer(doors)
            .layer(Forward::new(seen, Arc::new(addresses.clone())))
            .add_routes(routes)
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        // Killed, not shut down in order: its connections break.
        tokio::spawn(stop.clone().run_until_cancelled_owned(server));
        peers.push(Peer { address, leadership, service, stop });
    }
    peers
}

fn elect(peers: &[Peer], leader: u64, term: u64) {
    for (id, peer) in (1..).zip(peers) {
        peer.leadership.send_replace(leads(Some(leader), term, id));
    }
}

impl Peer {
    async fn client(&self) -> ControlClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        let channel = within("a connection", endpoint.connect()).await.expect("it listens");
        ControlClient::new(channel).max_decoding_message_size(8 << 20)
    }

    fn asked(&self) -> Vec<(String, String)> {
        self.service.asked.lock().unwrap().clone()
    }
}

/// The services behind the layer, for any method.
async fn answer(
    axum::extract::State(service): axum::extract::State<Arc<Behaviour>>,
    request: axum::extract::Request,
) -> Response<Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    match method.as_str() {
        "Scale" | "RemoveStack" => {
            let mut grpc =
                tonic::server::Grpc::new(ProstCodec::default()).apply_max_message_size_config(Some(8 << 20), None);
            grpc.unary(tower::service_fn(move |request| change(service.clone(), request)), request).await
        }
        "CreateToken" => {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            grpc.unary(tower::service_fn(move |request| change(service.clone(), request)), request).await
        }
        "Logs" => {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            grpc.server_streaming(tower::service_fn(move |request| lines(service.clone(), request)), request).await
        }
        "LoadImage" => {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            grpc.streaming(tower::service_fn(echo), request).await
        }
        _ => Status::unimplemented(method).into_http(),
    }
}

/// Answers with how many bytes came; a service called `refused` is refused.
async fn change(
    service: Arc<Behaviour>,
    request: tonic::Request<wire::ScaleRequest>,
) -> Result<tonic::Response<wire::ChangeResponse>, Status> {
    let text = |key: &str| request.metadata().get(key).map_or("", |value| value.to_str().unwrap()).to_owned();
    service.asked.lock().unwrap().push((text(call::REQUEST_ID), text(call::FORWARDED_FOR)));
    service.arrived.notify_one();
    if service.stuck.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    if request.get_ref().replicas.contains_key("refused") {
        let mut status =
            Status::with_details(Code::FailedPrecondition, "not like this: Überlauf", vec![1, 2, 3].into());
        status.metadata_mut().insert("x-why", MetadataValue::from_static("because"));
        return Err(status);
    }
    let bytes: usize = request.get_ref().replicas.keys().map(String::len).sum();
    let mut response = tonic::Response::new(wire::ChangeResponse { version: bytes as u64 });
    response.metadata_mut().insert("x-asked-with", request.metadata().get("x-extra").cloned().expect("the extra"));
    Ok(response)
}

/// Lines without end.
async fn lines(
    service: Arc<Behaviour>,
    _request: tonic::Request<wire::LogsRequest>,
) -> Result<tonic::Response<ReceiverStream<Result<wire::LogLine, Status>>>, Status> {
    let (lines, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        for nanos in 0..ENDLESS {
            let line = wire::LogLine { nanos: nanos as u64, line: vec![b'.'; 1024].into(), ..Default::default() };
            if lines.send(Ok(line)).await.is_err() {
                service.gone.notify_one();
                return;
            }
            service.sent.fetch_add(1, Ordering::SeqCst);
        }
    });
    Ok(tonic::Response::new(ReceiverStream::new(stream)))
}

/// Every part back as it came, until the caller is done; then a refusal.
async fn echo(
    request: tonic::Request<Streaming<wire::LoadImageRequest>>,
) -> Result<tonic::Response<impl tokio_stream::Stream<Item = Result<wire::LoadImageRequest, Status>>>, Status> {
    let end = tokio_stream::once(Err(Status::data_loss("the end")));
    Ok(tonic::Response::new(request.into_inner().chain(end)))
}

fn scale(service: &str) -> tonic::Request<wire::ScaleRequest> {
    let mut request = tonic::Request::new(wire::ScaleRequest { replicas: [(service.to_owned(), 1)].into() });
    request.metadata_mut().insert("x-extra", MetadataValue::from_static("more"));
    request
}

fn retry(status: &Status) -> Option<&str> {
    status.metadata().get(call::RETRY).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_change_reaches_the_leader_with_all_that_belongs_to_it() {
    let peers = peers(2).await;
    elect(&peers, 2, 1);
    let mut client = peers[0].client().await;

    let answer = within("an answer", client.scale(scale("web"))).await.expect("passed on");
    assert_eq!(answer.metadata().get("x-asked-with").unwrap(), "more");
    assert_eq!(answer.into_inner().version, 3);
    let mut named = scale("web");
    named.metadata_mut().insert(call::REQUEST_ID, MetadataValue::from_static("mine"));
    // Nobody but a controller may say whom it speaks for; the doors see to it, and the layer writes its own.
    within("an answer", client.scale(named)).await.expect("passed on");
    let asked = peers[1].asked();
    assert_eq!(asked[0].0.len(), 32, "it was given an id: {asked:?}");
    assert_eq!(asked[1], ("mine".to_owned(), "admin/ann".to_owned()));

    let refusal = within("an answer", client.scale(scale("refused"))).await.expect_err("refused");
    assert_eq!((refusal.code(), refusal.message()), (Code::FailedPrecondition, "not like this: Überlauf"));
    assert_eq!(refusal.details(), [1, 2, 3]);
    assert_eq!(refusal.metadata().get("x-why").unwrap(), "because");

    let large = "x".repeat(4 << 20);
    let answer = within("an answer", client.scale(scale(&large))).await.expect("passed on");
    assert_eq!(answer.into_inner().version, 4 << 20);
    assert_eq!(peers[0].asked(), [], "a follower does nothing of it itself");
}

#[tokio::test]
async fn streams_go_both_ways_at_once() {
    let peers = peers(2).await;
    elect(&peers, 2, 1);
    let channel = Endpoint::from_shared(format!("http://{}", peers[0].address)).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("ready");
    let (parts, stream) = mpsc::channel(1);
    let path = http::uri::PathAndQuery::from_static("/roster.v1.Control/LoadImage");
    let request = tonic::Request::new(ReceiverStream::new(stream));
    let codec = ProstCodec::<wire::LoadImageRequest, wire::LoadImageRequest>::default();
    let mut echoes = within("the stream", grpc.streaming(request, path, codec)).await.expect("passed on").into_inner();
    // In step: each part is back before the next one goes.
    for number in 0..200_u32 {
        let data = vec![number.to_le_bytes()[0]; 100_000];
        let part = wire::LoadImageRequest { part: Some(wire::load_image_request::Part::Data(data.into())) };
        within("room", parts.send(part.clone())).await.expect("it reads");
        let back = within("an echo", echoes.message()).await.expect("an echo").expect("an echo");
        assert_eq!(back, part);
    }
    drop(parts);
    let end = within("the end", echoes.message()).await.expect_err("the trailers");
    assert_eq!((end.code(), end.message()), (Code::DataLoss, "the end"));
}

#[tokio::test]
async fn a_slow_reader_holds_the_leader_up_and_one_that_goes_ends_it() {
    let peers = peers(2).await;
    elect(&peers, 2, 1);
    let mut client = peers[0].client().await;
    let mut stream = within("logs", client.logs(wire::LogsRequest::default())).await.expect("passed on").into_inner();
    within("a line", stream.message()).await.expect("a line").expect("a line");

    // Nothing is read: what is sent comes to rest at what the windows on the way hold.
    let service = &peers[1].service;
    let settled = async {
        loop {
            let before = service.sent.load(Ordering::SeqCst);
            sleep(Duration::from_millis(300)).await;
            if service.sent.load(Ordering::SeqCst) == before {
                return before;
            }
        }
    };
    let sent = within("rest", settled).await;
    assert!(sent < 32_000, "{sent} lines of a KiB were sent to somebody who reads none");

    drop(stream);
    within("the end at the leader", service.gone.notified()).await;
}

#[tokio::test]
async fn a_call_waits_for_somebody_to_lead() {
    let peers = peers(2).await;
    let mut client = peers[0].client().await;
    let call = tokio::spawn(async move { client.scale(scale("web")).await });
    sleep(Duration::from_millis(200)).await;
    assert!(!call.is_finished());
    elect(&peers, 2, 2);
    within("an answer", call).await.unwrap().expect("passed on");
    assert_eq!(peers[1].asked().len(), 1);
}

#[tokio::test]
async fn a_change_whose_leader_dies_is_made_once_more_under_its_id() {
    let peers = peers(3).await;
    elect(&peers, 2, 1);
    peers[1].service.stuck.store(true, Ordering::SeqCst);
    let mut client = peers[0].client().await;
    let call = tokio::spawn(async move { client.scale(scale("web")).await });
    within("the change at the first leader", peers[1].service.arrived.notified()).await;
    peers[1].stop.cancel();
    elect(&peers, 3, 2);
    let answer = within("an answer", call).await.unwrap().expect("the second leader's");
    assert_eq!(answer.into_inner().version, 3);
    assert_eq!(peers[2].asked(), peers[1].asked(), "the same id, the same caller");

    // The first leader is known to lead still, and nobody listens there: nothing was done.
    elect(&peers, 2, 3);
    let mut client = peers[0].client().await;
    let call = tokio::spawn(async move { client.scale(scale("web")).await });
    sleep(Duration::from_millis(100)).await;
    elect(&peers, 3, 4);
    within("an answer", call).await.unwrap().expect("the second leader's");
}

#[tokio::test]
async fn a_leader_that_is_deposed_passes_its_own_calls_on() {
    let peers = peers(2).await;
    elect(&peers, 1, 1);
    peers[0].service.stuck.store(true, Ordering::SeqCst);
    let mut client = peers[0].client().await;
    let call = tokio::spawn(async move { client.scale(scale("web")).await });
    within("the change at the first leader", peers[0].service.arrived.notified()).await;
    elect(&peers, 2, 2);
    within("an answer", call).await.unwrap().expect("the second leader's");
    assert_eq!(peers[1].asked()[0].0, peers[0].asked()[0].0);
}

/// What cannot be made twice is told to the caller; and so is a stream that has begun.
#[tokio::test]
async fn what_may_have_been_done_is_left_to_the_caller() {
    let peers = peers(3).await;
    elect(&peers, 2, 1);
    peers[1].service.stuck.store(true, Ordering::SeqCst);
    let channel = Endpoint::from_shared(format!("http://{}", peers[0].address)).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("ready");
    let path = http::uri::PathAndQuery::from_static("/roster.v1.Cluster/CreateToken");
    let codec = ProstCodec::<wire::ScaleRequest, wire::ChangeResponse>::default();
    let call = tokio::spawn(async move { grpc.unary(scale("web"), path, codec).await });
    within("the call at the leader", peers[1].service.arrived.notified()).await;
    let mut client = peers[0].client().await;
    let mut stream = within("logs", client.logs(wire::LogsRequest::default())).await.expect("passed on").into_inner();
    within("a line", stream.message()).await.expect("a line").expect("a line");

    elect(&peers, 3, 2);
    let status = within("an answer", call).await.unwrap().expect_err("cannot be repeated");
    assert_eq!((status.code(), retry(&status)), (Code::Unavailable, Some(call::RETRY_SAME_ID)), "{status}");
    assert_eq!(peers[2].asked(), []);
    let end = async {
        loop {
            if let Err(status) = stream.message().await {
                return status;
            }
        }
    };
    let status = within("the stream's end", end).await;
    assert_eq!((status.code(), retry(&status)), (Code::Unavailable, Some(call::RETRY_SAME_ID)), "{status}");
}

#[tokio::test]
async fn at_most_one_hop() {
    let peers = peers(3).await;
    // 1 believes in 2, 2 in 3: were there a second hop, 3 would be asked.
    peers[0].leadership.send_replace(leads(Some(2), 1, 1));
    peers[1].leadership.send_replace(leads(Some(3), 2, 2));
    peers[2].leadership.send_replace(leads(Some(3), 2, 3));
    let mut client = peers[0].client().await;
    let status = within("a refusal", client.scale(scale("web"))).await.expect_err("2 does not lead");
    assert_eq!((status.code(), retry(&status)), (Code::Unavailable, Some(call::RETRY_SAFE)), "{status}");
    assert_eq!(peers[2].asked(), []);
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_it_says_so_in_the_end() {
    let (_leadership, seen) = watch::channel(leads(None, 1, 1));
    let never =
        tower::service_fn(async |_: Request<Body>| -> Result<Response<Body>, Infallible> { panic!("nobody leads") });
    let begun = Instant::now();
    let request = Request::builder().uri("/roster.v1.Control/Scale").body(Body::empty()).unwrap();
    let layer = Forward::new(seen, Arc::new(Addresses::default()));
    let response = layer.layer(never).oneshot(request).await.unwrap();
    let status = Status::from_header_map(response.headers()).expect("a refusal");
    assert!(status.message().starts_with("no leader at present"), "{status}");
    assert_eq!((status.code(), retry(&status)), (Code::Unavailable, Some(call::RETRY_SAFE)), "{status}");
    assert_eq!(begun.elapsed(), PATIENCE);
}

#[tokio::test]
async fn reads_stay_and_the_overview_is_told_without_a_leader() {
    let (leadership, seen) = watch::channel(leads(None, 1, 1));
    let layer = Forward::new(seen, Arc::new(Addresses::default()));
    let here = tower::service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Body::empty())));
    let ask = async |path: &str, stale: bool| {
        let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
        if stale {
            request.headers_mut().insert(call::CONSISTENCY, HeaderValue::from_static(call::STALE));
        }
        let response = within("an answer", layer.layer(here).oneshot(request)).await.unwrap();
        Status::from_header_map(response.headers())
    };
    for path in ["/roster.v1.Control/ListTasks", "/roster.v1.Cluster/Status", "/grpc.health.v1.Health/Check"] {
        assert!(ask(path, false).await.is_none(), "{path} is answered");
    }
    // A leader whom nobody can reach: in the end it is told what is known here.
    leadership.send_replace(leads(Some(7), 1, 1));
    assert!(ask("/roster.v1.Cluster/Status", true).await.is_none());
    assert!(ask("/roster.v1.Cluster/Status", false).await.is_none());
    assert!(ask("/roster.v1.Control/Apply", false).await.expect("a refusal").message().contains("nobody knows where"));
}

#[tokio::test]
async fn one_that_was_removed_sends_its_callers_elsewhere() {
    let (leadership, seen) = watch::channel(leads(None, 1, 1));
    let addresses = Addresses::default();
    let layer = Forward::new(seen, Arc::new(addresses.clone()));
    let here = tower::service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Body::empty())));
    let ask = async |path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = within("an answer", layer.layer(here).oneshot(request)).await.unwrap();
        Status::from_header_map(response.headers())
    };
    // The leader it still believes in refuses its certificate.
    let refuses = Server::builder().add_routes(Routes::from(axum::Router::new().fallback(async || {
        let mut status = Status::unauthenticated("controller/c1 was removed");
        status.metadata_mut().insert(call::REMOVED, MetadataValue::from_static("yes"));
        status.into_http::<Body>()
    })));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    addresses.known.lock().unwrap().insert(2, listener.local_addr().expect("bound"));
    let leader = tokio::spawn(refuses.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    assert!(ask("/roster.v1.Control/ListTasks").await.is_none(), "it does not know yet");
    leadership.send_replace(leads(Some(2), 1, 1));
    for path in ["/roster.v1.Control/Apply", "/roster.v1.Cluster/Status", "/roster.v1.Control/ListTasks"] {
        let status = ask(path).await.expect("a refusal");
        assert_eq!(
            (status.code(), retry(&status)),
            (Code::FailedPrecondition, Some(call::RETRY_ELSEWHERE)),
            "{status}"
        );
    }
    assert!(ask("/roster.v1.Local/Leave").await.is_none(), "its own are its own");
    leader.abort();
}

#[test]
fn request_ids_are_bounded() {
    let with = |id: &str| {
        let mut request = tonic::Request::new(());
        request.metadata_mut().insert(call::REQUEST_ID, id.parse().unwrap());
        request_id(&request).map_err(|status| status.code())
    };
    assert_eq!(request_id(&tonic::Request::new(())).unwrap(), None);
    assert_eq!(with("a-1"), Ok(Some("a-1".to_owned())));
    for wrong in ["", "a b", &"x".repeat(65)] {
        assert_eq!(with(wrong), Err(Code::InvalidArgument), "{wrong:?}");
    }
}
