//! What an agent's session may and may not do.

use roster_proto::{
    whole,
    wire::{self, agent_message::Message, dispatch_client::DispatchClient},
};
use tonic::{Code, Status};

use crate::harness::{Agent, Controller, converged, hello, stack, within};

async fn first_error(controller: &Controller, messages: Vec<Message>) -> Status {
    let messages = messages.into_iter().map(|message| wire::AgentMessage { message: Some(message) });
    let messages: Vec<_> = messages.collect();
    let stream = tokio_stream::StreamExt::chain(tokio_stream::iter(messages), tokio_stream::pending());
    let mut dispatch = DispatchClient::new(controller.connect().await);
    let mut session = dispatch.session(stream).await.expect("a stream").into_inner();
    loop {
        match within("the session's end", session.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the session ended without a reason"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_newer_session_replaces_the_older() {
    let controller = Controller::start().await;
    let mut first = Agent::join(&controller, "vm1").await;
    let mut second = Agent::join(&controller, "vm1").await;
    let status = loop {
        if let Err(status) = first.step().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("a newer session of this node replaced this one"), "{status}");

    controller.apply(stack("hello", &[("web", 1)])).await.expect("applied");
    second.work_until(controller.watch("convergence", converged)).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_session_begins_with_hello_and_only_once() {
    let controller = Controller::start().await;
    let status = first_error(&controller, vec![Message::Heartbeat(wire::Heartbeat { number: 1 })]).await;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "the first message must be Hello"));

    let twice = vec![Message::Hello(hello("vm1")), Message::Hello(hello("vm2"))];
    let status = first_error(&controller, twice).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("after Hello only heartbeats and statuses"), "{status}");

    let status = first_error(&controller, vec![Message::Hello(hello("../vm1"))]).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("Hello: node name \"../vm1\" is not allowed"), "{status}");
    controller.stop().await;
}

#[tokio::test]
async fn an_agent_of_another_age_is_refused_with_words() {
    let controller = Controller::start().await;
    let newest = *roster_proto::AGENT_PROTOCOLS.end();
    for (protocol, advice) in [(0, "upgrade the agent"), (newest + 1, "upgrade the controllers before the agents")] {
        let hello = wire::Hello { protocol, ..hello("vm1") };
        let status = first_error(&controller, vec![Message::Hello(hello)]).await;
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().ends_with(advice), "{status}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn statuses_of_another_nodes_tasks_change_nothing() {
    let controller = Controller::start().await;
    let mut honest = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 1)])).await.expect("applied");
    let seen = honest.work_until(controller.watch("convergence", converged)).await;
    let mut liar = Agent::join(&controller, "vm2").await;
    let now = roster_proto::time::Timestamp::from(std::time::SystemTime::now());
    let status = roster_proto::task::TaskStatus::new(roster_proto::task::TaskState::Failed, now);
    let task = seen.tasks[0].id.parse().expect("an id");
    liar.report(vec![roster_proto::task::TaskReport { task, status }]).await;

    let request = wire::ListTasksRequest { filter: None, all: true };
    let control = controller.control();
    let listed = whole::listing(async || control.clone().list_tasks(request.clone()).await).await;
    let tasks = listed.expect("list").tasks;
    assert_eq!(tasks, seen.tasks);
    controller.stop().await;
}

#[tokio::test]
async fn sessions_end_with_the_controller() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    let (_dir, status) = tokio::join!(controller.stop(), async {
        loop {
            if let Err(status) = agent.step().await {
                return status;
            }
        }
    });
    assert_eq!(status.code(), Code::Unavailable);
}
