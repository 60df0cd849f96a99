use super::*;

fn broker() -> (Arc<Broker>, Arc<Sessions>) {
    let sessions = Arc::new(Sessions::default());
    (Arc::new(Broker::new(sessions.clone())), sessions)
}

fn node() -> NodeId {
    "vm1".parse().expect("a name")
}

fn list() -> wire::request::Request {
    wire::request::Request::ImageList(wire::ImageList {})
}

fn request_id(message: Option<Result<wire::ControllerMessage, tonic::Status>>) -> String {
    match message.and_then(Result::ok).and_then(|message| message.message) {
        Some(wire::controller_message::Message::Request(request)) => request.id,
        other => panic!("not a request: {other:?}"),
    }
}

#[tokio::test]
async fn an_answer_is_claimed_once_and_forgotten_when_dropped() {
    let (broker, sessions) = broker();
    let (outbound, mut messages) = mpsc::channel(4);
    let _session = sessions.open(node(), false, outbound);
    let answer = broker.ask(&node(), list()).await.expect("asked");
    let id = request_id(messages.recv().await);
    assert!(broker.claim_answer("another").is_none());
    assert!(broker.claim_upload(&id).is_none(), "nothing came with it");
    assert!(broker.claim_answer(&id).is_some());
    assert!(broker.claim_answer(&id).is_none(), "a second time");
    drop(answer);
    assert!(broker.lock().is_empty());
    let message = messages.recv().await.and_then(Result::ok).and_then(|message| message.message);
    assert_eq!(message, Some(wire::controller_message::Message::Cancel(id)));
}

#[tokio::test]
async fn a_complete_answer_is_not_cancelled() {
    let (broker, sessions) = broker();
    let (outbound, mut messages) = mpsc::channel(4);
    let _session = sessions.open(node(), false, outbound);
    let mut answer = broker.ask(&node(), list()).await.expect("asked");
    let said = broker.claim_answer(&request_id(messages.recv().await)).expect("open");
    said.send(Said::End).await.expect("the caller listens");
    assert!(answer.next().await.is_none());
    drop(answer);
    assert!(messages.try_recv().is_err(), "nothing to cancel");
}

#[tokio::test]
async fn the_end_of_the_session_ends_the_answer() {
    let (broker, sessions) = broker();
    let (outbound, mut messages) = mpsc::channel(4);
    let session = sessions.open(node(), false, outbound);
    let mut answer = broker.ask(&node(), list()).await.expect("asked");
    let said = broker.claim_answer(&request_id(messages.recv().await)).expect("open");
    said.send(Said::Part(Part::Images(Vec::new()))).await.expect("the caller listens");
    sessions.close(&session);
    assert!(matches!(answer.next().await, Some(Ok(Part::Images(_)))), "what was said counts");
    assert!(matches!(answer.next().await, Some(Err(AskError::Lost(_)))));
    assert!(answer.next().await.is_none());
    assert!(matches!(broker.ask(&node(), list()).await, Err(AskError::NoSession(_))));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_read_is_not_waited_for_forever() {
    let (broker, sessions) = broker();
    let (outbound, _messages) = mpsc::channel(1);
    let _session = sessions.open(node(), false, outbound);
    let _first = broker.ask(&node(), list()).await.expect("there is room");
    assert!(matches!(broker.ask(&node(), list()).await, Err(AskError::Stalled(_))));
    assert_eq!(broker.lock().len(), 1, "the second is forgotten");
}

#[tokio::test]
async fn a_cancellation_waits_for_room() {
    let (broker, sessions) = broker();
    let (outbound, mut messages) = mpsc::channel(1);
    let _session = sessions.open(node(), false, outbound);
    let answer = broker.ask(&node(), list()).await.expect("there is room");
    drop(answer);
    let id = request_id(messages.recv().await);
    let message = messages.recv().await.and_then(Result::ok).and_then(|message| message.message);
    assert_eq!(message, Some(wire::controller_message::Message::Cancel(id)));
}
