//! Images through the controller to the nodes.

use bytes::Bytes;
use roster_proto::wire::{self, answer_part::Part, load_image_request, request::Request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::harness::{Agent, Controller, within};

const PIECE: usize = 64 * 1024;

fn header(nodes: &[&str]) -> wire::LoadImageRequest {
    let header = wire::LoadImageHeader { nodes: nodes.iter().map(ToString::to_string).collect() };
    wire::LoadImageRequest { part: Some(load_image_request::Part::Header(header)) }
}

/// The piece's number, over and over.
fn piece(number: usize) -> wire::LoadImageRequest {
    let data = Bytes::from(vec![u8::try_from(number % 251).expect("it fits"); PIECE]);
    wire::LoadImageRequest { part: Some(load_image_request::Part::Data(data)) }
}

fn image(id: &str) -> Part {
    let image = wire::ImageInfo { id: id.to_owned(), names: vec!["test:1".to_owned()], ..Default::default() };
    Part::Images(wire::Images { images: vec![image] })
}

async fn upload(agent: &mut Agent, request: &wire::Request) -> Streaming<wire::Chunk> {
    let request = wire::UploadRequest { request_id: request.id.clone() };
    within("the upload", agent.dispatch.upload(request)).await.expect("an upload").into_inner()
}

/// Reads the whole archive and checks it.
async fn read_all(stream: &mut Streaming<wire::Chunk>) -> usize {
    let mut read = 0;
    while let Some(chunk) = within("a chunk", stream.message()).await.expect("a chunk") {
        for byte in chunk.data {
            assert_eq!(usize::from(byte), (read / PIECE) % 251, "at byte {read}");
            read += 1;
        }
    }
    read
}

#[tokio::test]
async fn an_archive_reaches_every_node_at_the_pace_of_the_slowest() {
    const PIECES: usize = 400;
    let controller = Controller::start().await;
    let (mut fast, mut slow) = (Agent::join(&controller, "vm1").await, Agent::join(&controller, "vm2").await);
    let (pieces, stream) = mpsc::channel(1);
    let mut control = controller.control();
    let loaded = tokio::spawn(async move { control.load_image(ReceiverStream::new(stream)).await });
    pieces.send(header(&[])).await.expect("the call is open");
    let (of_fast, of_slow) = (fast.next_request().await, slow.next_request().await);
    assert!(matches!(of_fast.request, Some(Request::ImageLoad(_))));

    let mut fast_upload = upload(&mut fast, &of_fast).await;
    let fast_read = tokio::spawn(async move { read_all(&mut fast_upload).await });
    let mut slow_upload = upload(&mut slow, &of_slow).await;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = sent.clone();
    let sender = tokio::spawn(async move {
        for number in 0..PIECES {
            pieces.send(piece(number)).await.expect("the call is open");
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    // Only as much moves as the windows and queues on the slow one's way hold.
    let mut last = usize::MAX;
    loop {
        let now = sent.load(std::sync::atomic::Ordering::Relaxed);
        assert!(now < PIECES, "nothing held the caller back");
        if now == last && now > 0 {
            break;
        }
        last = now;
        // Paced by the controller: after a whole call it had the time to move more.
        for _ in 0..50 {
            controller.control().version(wire::VersionRequest {}).await.expect("it answers");
        }
    }
    let slow_read = read_all(&mut slow_upload).await;
    within("the sender", sender).await.expect("it ends");
    assert_eq!((slow_read, fast_read.await.expect("it ends")), (PIECES * PIECE, PIECES * PIECE));

    fast.answer(&of_fast, vec![image("sha256:1")]).await.expect("answered");
    slow.answer(&of_slow, vec![image("sha256:1")]).await.expect("answered");
    let images = within("the answer", loaded).await.expect("it ends").expect("loaded").into_inner().images;
    let nodes: Vec<_> = images.iter().map(|image| image.node.as_str()).collect();
    assert_eq!(nodes, ["vm1", "vm2"]);
    controller.stop().await;
}

#[tokio::test]
async fn an_archive_that_breaks_off_never_looks_complete() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    let (pieces, stream) = mpsc::channel(1);
    let mut control = controller.control();
    let loaded = tokio::spawn(async move { control.load_image(ReceiverStream::new(stream)).await });
    pieces.send(header(&["vm1"])).await.expect("the call is open");
    pieces.send(piece(0)).await.expect("the call is open");
    let request = agent.next_request().await;
    let mut stream = upload(&mut agent, &request).await;
    assert!(within("a chunk", stream.message()).await.expect("a chunk").is_some());

    loaded.abort();
    let status = within("the end", stream.message()).await.expect_err("not a clean end");
    assert_eq!(status.code(), Code::Aborted);
    agent.until("the cancellation", |agent| agent.cancelled.contains(&request.id)).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_node_that_refuses_the_archive_says_why() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    let (pieces, stream) = mpsc::channel(1);
    let mut control = controller.control();
    let loaded = tokio::spawn(async move { control.load_image(ReceiverStream::new(stream)).await });
    pieces.send(header(&["vm1"])).await.expect("the call is open");
    let request = agent.next_request().await;
    let kind = wire::failure::Kind::Invalid.into();
    let failure = wire::Failure { kind, message: "the archive is no tar".to_owned() };
    agent.answer(&request, vec![Part::Failure(failure)]).await.expect("answered");
    // It goes on sending until it is told.
    while pieces.send(piece(0)).await.is_ok() {}
    let status = within("the answer", loaded).await.expect("it ends").expect_err("refused");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "node vm1: the archive is no tar"));
    controller.stop().await;
}

#[tokio::test]
async fn nodes_that_cannot_be_asked() {
    let controller = Controller::start().await;
    let list = |nodes: &[&str]| wire::ListImagesRequest { nodes: nodes.iter().map(ToString::to_string).collect() };
    let status = controller.control().list_images(list(&[])).await.expect_err("no node");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("no node is Ready"), "{status}");

    let mut agent = Agent::join(&controller, "vm1").await;
    let status = controller.control().list_images(list(&["vm7"])).await.expect_err("no such node");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "there is no node \"vm7\": did you mean \"vm1\"?"));

    // It goes away with the question open.
    let mut control = controller.control();
    let asked = tokio::spawn(async move { control.list_images(list(&["vm1"])).await });
    agent.next_request().await;
    drop(agent);
    let status = within("the answer", asked).await.expect("it ends").expect_err("nobody answers");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "node vm1 went away before the answer was complete: try again");

    let status = controller.control().list_images(list(&["vm1"])).await.expect_err("no session");
    assert!(status.message().starts_with("node vm1 has no session"), "{status}");
    controller.stop().await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_complete() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    let mut control = controller.control();
    let asked = tokio::spawn(async move { control.list_images(wire::ListImagesRequest::default()).await });
    let request = agent.next_request().await;
    let (parts, answer) = agent.answer_slowly(&request).await;
    parts.send(wire::AnswerPart { part: Some(image("sha256:1")) }).await.expect("there is room");
    // Only once the first part was taken is there room for another, and then the call is under way.
    parts.send(wire::AnswerPart { part: Some(image("sha256:2")) }).await.expect("there is room");
    parts.send(wire::AnswerPart { part: Some(image("sha256:3")) }).await.expect("there is room");
    answer.abort();
    let status = within("the answer", asked).await.expect("it ends").expect_err("not complete");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    controller.stop().await;
}

#[tokio::test]
async fn pull_and_remove() {
    let controller = Controller::start().await;
    let (mut one, mut two) = (Agent::join(&controller, "vm1").await, Agent::join(&controller, "vm2").await);
    let mut control = controller.control();
    let pull = wire::PullImageRequest { reference: "registry/test:1".to_owned(), nodes: vec!["vm2".to_owned()] };
    let pulled = tokio::spawn(async move { control.pull_image(pull).await });
    let request = two.next_request().await;
    assert!(matches!(&request.request, Some(Request::ImagePull(pull)) if pull.reference == "registry/test:1"));
    two.answer(&request, vec![image("sha256:2")]).await.expect("answered");
    assert_eq!(pulled.await.expect("it ends").expect("pulled").into_inner().images[0].node, "vm2");

    // Only one has it.
    let mut control = controller.control();
    let remove = wire::RemoveImageRequest { reference: "test:1".to_owned(), nodes: vec![] };
    let removed = tokio::spawn(async move { control.remove_image(remove).await });
    let (of_one, of_two) = (one.next_request().await, two.next_request().await);
    let kind = wire::failure::Kind::NotFound.into();
    let failure = wire::Failure { kind, message: "there is no image test:1".to_owned() };
    one.answer(&of_one, vec![Part::Failure(failure)]).await.expect("answered");
    two.answer(&of_two, vec![]).await.expect("answered");
    assert_eq!(removed.await.expect("it ends").expect("removed").into_inner().nodes, ["vm2"]);

    let status = one.answer(&of_one, vec![]).await.expect_err("answered before");
    assert_eq!(status.code(), Code::NotFound);
    controller.stop().await;
}
