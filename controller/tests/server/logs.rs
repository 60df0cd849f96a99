//! Many tasks' lines as one stream.

use std::collections::BTreeMap;

use roster_proto::{
    task::{TaskReport, TaskState, TaskStatus},
    time::Timestamp,
    wire::{self, answer_part::Part, request::Request},
};
use tonic::{Code, Streaming};

use crate::harness::{Agent, Controller, converged, stack, within};

fn lines(nanos: &[u64]) -> Part {
    let line = |&nanos: &u64| wire::LogLine {
        nanos,
        stream: wire::log_line::Stream::Stdout.into(),
        line: nanos.to_string().into_bytes().into(),
        ..Default::default()
    };
    Part::Lines(wire::LogLines { lines: nanos.iter().map(line).collect() })
}

async fn logs(controller: &Controller, task: Option<&str>, query: wire::LogQuery) -> Streaming<wire::LogLine> {
    logs_after(controller, task, query, BTreeMap::new()).await
}

async fn logs_after(
    controller: &Controller,
    task: Option<&str>,
    query: wire::LogQuery,
    seen: BTreeMap<String, wire::LogPosition>,
) -> Streaming<wire::LogLine> {
    let filter =
        wire::Filter { stack: Some("hello".to_owned()), task: task.map(ToOwned::to_owned), ..Default::default() };
    let request = wire::LogsRequest { filter: Some(filter), query: Some(query), seen };
    controller.control().logs(request).await.expect("logs").into_inner()
}

async fn line(stream: &mut Streaming<wire::LogLine>) -> (String, u64) {
    let line = within("a line", stream.message()).await.expect("a line").expect("a line");
    (line.name, line.nanos)
}

fn follow() -> wire::LogQuery {
    wire::LogQuery { tail: Some(10), follow: true, ..Default::default() }
}

#[tokio::test]
async fn lines_of_all_tasks_are_merged_by_time() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 2)])).await.expect("applied");
    agent.work_until(controller.watch("convergence", converged)).await;

    let mut stream = logs(&controller, None, wire::LogQuery::default()).await;
    let requests = [agent.next_request().await, agent.next_request().await];
    for (request, nanos) in requests.iter().zip([[1, 4, 6], [2, 3, 9]]) {
        assert!(matches!(request.request, Some(Request::Logs(_))));
        agent.answer(request, vec![lines(&nanos[..2]), lines(&nanos[2..])]).await.expect("answered");
    }
    let mut seen = Vec::new();
    while let Some(line) = within("a line", stream.message()).await.expect("a line") {
        assert!(line.name.starts_with("web."), "the controller fills in the name");
        seen.push(line.nanos);
    }
    assert_eq!(seen, [1, 2, 3, 4, 6, 9]);
    controller.stop().await;
}

#[tokio::test]
async fn following_joins_a_replacement_and_ends_with_the_service() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 1)])).await.expect("applied");
    let seen = agent.work_until(controller.watch("convergence", converged)).await;

    let mut stream = logs(&controller, None, follow()).await;
    let first = agent.next_request().await;
    agent.answer(&first, vec![lines(&[1])]).await.expect("answered");
    assert_eq!(line(&mut stream).await, ("web.1".to_owned(), 1));

    let mut status = TaskStatus::new(TaskState::Failed, Timestamp::from(std::time::SystemTime::now()));
    status.cause = Some(roster_proto::cause::Cause::Exited { code: 1 });
    let task = seen.tasks[0].id.parse().expect("an id");
    agent.report(vec![TaskReport { task, status }]).await;
    let replaced = |now: &wire::WatchResponse| converged(now) && now.tasks[0].id != seen.tasks[0].id;
    let seen = agent.work_until(controller.watch("the replacement", replaced)).await;
    let second = agent.next_request().await;
    let Some(Request::Logs(asked)) = &second.request else { panic!("not a request for logs: {second:?}") };
    assert_eq!(asked.task, seen.tasks[0].id);
    assert_eq!(asked.query.expect("a query").tail, None, "every line of a later task is new");
    agent.answer(&second, vec![lines(&[2])]).await.expect("answered");
    assert_eq!(line(&mut stream).await, ("web.1".to_owned(), 2));

    controller.control().remove_stack(wire::RemoveStackRequest { stack: "hello".to_owned() }).await.expect("removed");
    let end = agent.work_until(async { within("the end", stream.message()).await }).await;
    assert_eq!(end.expect("a clean end"), None);
    controller.stop().await;
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_the_request() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 1)])).await.expect("applied");
    agent.work_until(controller.watch("convergence", converged)).await;
    let mut stream = logs(&controller, None, follow()).await;
    let request = agent.next_request().await;
    let (parts, ended) = agent.answer_slowly(&request).await;
    parts.send(wire::AnswerPart { part: Some(lines(&[1])) }).await.expect("there is room");
    assert_eq!(line(&mut stream).await.1, 1);

    drop(stream);
    agent.until("the cancellation", |agent| agent.cancelled.contains(&request.id)).await;
    let status = within("the answer's end", ended).await.expect("it ends");
    assert_eq!(status.code(), Code::Cancelled, "{status}");
    controller.stop().await;
}

#[tokio::test]
async fn following_goes_on_when_the_agent_is_back() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 1)])).await.expect("applied");
    agent.work_until(controller.watch("convergence", converged)).await;
    let mut stream = logs(&controller, None, follow()).await;
    let request = agent.next_request().await;
    let (parts, _ended) = agent.answer_slowly(&request).await;
    parts.send(wire::AnswerPart { part: Some(lines(&[5_000_001])) }).await.expect("there is room");
    assert_eq!(line(&mut stream).await.1, 5_000_001);

    drop(agent);
    let mut agent = Agent::join(&controller, "vm1").await;
    let again = agent.next_request().await;
    let Some(Request::Logs(asked)) = &again.request else { panic!("not a request for logs: {again:?}") };
    assert_eq!(
        asked.query.expect("a query"),
        wire::LogQuery { since: Some(5_000), follow: true, ..Default::default() }
    );
    // From the same microsecond on: what was sent before is not sent twice.
    agent.answer(&again, vec![lines(&[5_000_001, 5_000_002])]).await.expect("answered");
    assert_eq!(line(&mut stream).await.1, 5_000_002);
    controller.stop().await;
}

#[tokio::test]
async fn a_caller_that_comes_back_goes_on_behind_its_last_line() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 2)])).await.expect("applied");
    let now = agent.work_until(controller.watch("convergence", converged)).await;
    let (first, second) = (now.tasks[0].id.clone(), now.tasks[1].id.clone());
    // Three lines were written at once, and the connection broke after two of them.
    let seen = [(first.clone(), wire::LogPosition { nanos: 7_000_500, lines: 2 })].into();
    let mut stream = logs_after(&controller, None, follow(), seen).await;
    let mut parts = Vec::new();
    for _ in 0..2 {
        let request = agent.next_request().await;
        let Some(Request::Logs(asked)) = &request.request else { panic!("not a request for logs: {request:?}") };
        let query = asked.query.expect("a query");
        assert_eq!(query.tail, None, "whatever else there is came meanwhile");
        if asked.task == first {
            assert_eq!(query.since, Some(7_000));
            let (answer, _ended) = agent.answer_slowly(&request).await;
            let at = [7_000_100, 7_000_500, 7_000_500, 7_000_500, 7_000_900];
            answer.send(wire::AnswerPart { part: Some(lines(&at)) }).await.expect("there is room");
            parts.push(answer);
        } else {
            assert_eq!((asked.task.as_str(), query.since), (second.as_str(), None));
        }
    }
    assert_eq!(line(&mut stream).await.1, 7_000_500, "the third line of that moment");
    assert_eq!(line(&mut stream).await.1, 7_000_900);
    controller.stop().await;
}
