//! What stands at the doors: sizes, names, reflection, health, metrics.

use roster_controller::{Listeners, run};
use roster_proto::{spec::ServiceSpec, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::harness::{Agent, Controller, config, stack, within};

#[tokio::test]
async fn oversized_messages_are_refused_and_harm_nobody() {
    let controller = Controller::start().await;
    let mut huge = stack("hello", &[("web", 1)]);
    let service = huge.services.values_mut().next().expect("there is one");
    service.labels.insert("pad".to_owned(), "x".repeat(5 << 20));
    let status = controller.apply(huge).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    controller.control().version(wire::VersionRequest {}).await.expect("it still answers");
    controller.stop().await;
}

#[tokio::test]
async fn specs_are_checked_whoever_sends_them() {
    let controller = Controller::start().await;
    let mut wrong = stack("hello", &[]);
    let mut service = ServiceSpec::of_image("test:1", 1);
    service.task.working_dir = Some("../etc".to_owned());
    wrong.services.insert("web".parse().expect("a name"), service);
    let status = controller.apply(wrong.clone()).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("services.web.working_dir: \"../etc\" must be an absolute path"), "{status}");

    let mut malformed = wire::StackSpec::from(stack("hello", &[]));
    malformed.name = "../hello".to_owned();
    let request = wire::PlanRequest { stack: Some(malformed), prune: false };
    let status = controller.control().plan(request).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = controller.control().plan(wire::PlanRequest::default()).await.expect_err("refused");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "field stack: is missing"));
    controller.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_said_with_its_code() {
    let controller = Controller::start().await;
    let filter = wire::Filter { service: Some("web".to_owned()), ..Default::default() };
    let request = wire::ListTasksRequest { filter: Some(filter), all: false };
    let status = controller.control().list_tasks(request).await.expect_err("nothing there");
    assert_eq!(status.code(), Code::NotFound);
    let request = wire::RemoveStackRequest { stack: "hello".to_owned() };
    let status = controller.control().remove_stack(request).await.expect_err("nothing there");
    assert_eq!(status.code(), Code::NotFound);
    let status = controller.control().scale(wire::ScaleRequest::default()).await.expect_err("nothing to scale");
    assert_eq!(status.code(), Code::InvalidArgument);
    controller.stop().await;
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let controller = Controller::start().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(controller.channel());
    for service in ["", "roster.v1.Control", "roster.v1.Dispatch"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.expect("healthy").into_inner();
        assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving, "{service}");
    }

    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let ask = MessageRequest::ListServices(String::new());
    let ask = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut reflection = ServerReflectionClient::new(controller.channel());
    let stream = reflection.server_reflection_info(tokio_stream::once(ask)).await.expect("reflection");
    let answer = within("an answer", stream.into_inner().message()).await.expect("one").expect("one");
    let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else { panic!("{answer:?}") };
    let names: Vec<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"roster.v1.Control") && names.contains(&"roster.v1.Dispatch"), "{names:?}");
    controller.stop().await;
}

#[tokio::test]
async fn metrics_are_scraped_and_the_tcp_door_serves() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path(), &["--metrics", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
    let listeners = Listeners::bind(&config).await.expect("the ports are free");
    let (metrics, tcp) = (listeners.metrics_addr().expect("bound"), listeners.tcp_addr().expect("bound"));
    let shutdown = CancellationToken::new();
    let ended = tokio::spawn(run(config, listeners, shutdown.clone()));

    let channel = tonic::transport::Endpoint::new(format!("http://{tcp}")).expect("an address").connect().await;
    let mut control = wire::control_client::ControlClient::new(channel.expect("it listens"));
    let version = control.version(wire::VersionRequest {}).await.expect("it answers").into_inner();
    assert!(version.term > 0 && version.leader > 0, "{version:?}");

    let mut stream = tokio::net::TcpStream::connect(metrics).await.expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut text = String::new();
    within("the scrape", stream.read_to_string(&mut text)).await.expect("read");
    for wanted in ["roster_raft_leader 1", "roster_sessions 0", "roster_propose_seconds_count", "# EOF"] {
        assert!(text.contains(wanted), "{wanted} is missing in {text}");
    }
    shutdown.cancel();
    within("the end", ended).await.expect("no panic").expect("in order");
}

#[tokio::test]
async fn a_second_controller_is_refused() {
    let controller = Controller::start().await;
    let _agent = Agent::join(&controller, "vm1").await;
    let error = Listeners::bind(&config(controller.dir.path(), &[])).await.expect_err("the first still answers");
    assert!(error.to_string().starts_with("another controller answers at "), "{error}");

    let elsewhere = tempfile::tempdir().expect("a directory");
    let mut config = config(elsewhere.path(), &[]);
    config.data_dir = controller.dir.path().join("data");
    let listeners = Listeners::bind(&config).await.expect("another socket");
    let error = within("the refusal", run(config, listeners, CancellationToken::new())).await.expect_err("in use");
    assert!(error.to_string().starts_with("another controller uses the store in "), "{error}");
    controller.stop().await;
}

#[tokio::test]
async fn what_is_kept_is_private() {
    use std::os::unix::fs::MetadataExt;

    let controller = Controller::start().await;
    controller.control().version(wire::VersionRequest {}).await.expect("it answers");
    for name in ["data", "c.sock"] {
        let mode = std::fs::metadata(controller.dir.path().join(name)).expect("it exists").mode();
        assert_eq!(mode & 0o077, 0, "{name} has mode {mode:o}");
    }
    controller.stop().await;
}
