//! From an apply to containers that run, and what happens when nodes come and go.

use roster_proto::{
    task::{TaskReport, TaskState, TaskStatus},
    time::Timestamp,
    wire,
};
use tonic::Code;

use crate::harness::{Agent, Controller, converged, stack, within};

#[tokio::test]
async fn an_applied_stack_is_assigned_reported_and_seen_to_converge() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    let applied = controller.apply(stack("hello", &[("web", 3)])).await.expect("applied");
    let plan = applied.plan.expect("an apply says what it does");
    assert_eq!(plan.services.len(), 1);
    assert_eq!(plan.services[0].slots.len(), 3);

    let seen = agent.work_until(controller.watch("convergence", converged)).await;
    assert_eq!((seen.services[0].wanted, seen.services[0].up), (3, 3));
    assert!(seen.tasks.iter().all(|task| task.node.as_deref() == Some("vm1")));
    controller.stop().await;
}

#[tokio::test]
async fn a_failed_task_is_replaced() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 1)])).await.expect("applied");
    let seen = agent.work_until(controller.watch("convergence", converged)).await;
    let first: roster_proto::id::TaskId = seen.tasks[0].id.parse().expect("an id");

    let now = Timestamp::from(std::time::SystemTime::now());
    let mut status = TaskStatus::new(TaskState::Failed, now);
    status.cause = Some(roster_proto::cause::Cause::Exited { code: 1 });
    agent.report(vec![TaskReport { task: first.clone(), status }]).await;
    let replaced = |seen: &wire::WatchResponse| converged(seen) && seen.tasks[0].id != first.as_str();
    let seen = agent.work_until(controller.watch("the replacement", replaced)).await;
    assert_eq!(seen.tasks[0].replaces.as_deref(), Some(first.as_str()));
    controller.stop().await;
}

#[tokio::test]
async fn scale_remove_and_prune_reach_the_agent() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 2), ("cache", 1)])).await.expect("applied");
    agent.work_until(controller.watch("convergence", converged)).await;

    let replicas = [("hello/web".to_owned(), 1)].into();
    controller.control().scale(wire::ScaleRequest { replicas }).await.expect("scaled");
    let scaled = |seen: &wire::WatchResponse| converged(seen) && seen.tasks.len() == 2;
    agent.work_until(controller.watch("one replica less", scaled)).await;

    let request = wire::RemoveServiceRequest { service: "hello/cache".to_owned() };
    controller.control().remove_service(request).await.expect("removed");
    let removed = |seen: &wire::WatchResponse| converged(seen) && seen.services.len() == 1;
    agent.work_until(controller.watch("one service less", removed)).await;

    controller.control().remove_stack(wire::RemoveStackRequest { stack: "hello".to_owned() }).await.expect("removed");
    agent.work_until(controller.watch("nothing", |seen| seen.services.is_empty())).await;
    agent.until("an empty set", |agent| agent.set.tasks.is_empty()).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_stale_plan_is_refused() {
    let controller = Controller::start().await;
    let _agent = Agent::join(&controller, "vm1").await;
    let request = wire::PlanRequest { stack: Some(stack("hello", &[("web", 1)]).into()), prune: false };
    let plan = controller.control().plan(request).await.expect("planned").into_inner().plan.expect("a plan");
    controller.apply(stack("other", &[("db", 1)])).await.expect("applied");

    let stale = Some(stack("hello", &[("web", 1)]).into());
    let request = wire::ApplyRequest { stack: stale, prune: false, base: Some(plan.base) };
    let status = controller.control().apply(request).await.expect_err("stale");
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().ends_with("plan again"), "{status}");
    controller.stop().await;
}

#[tokio::test]
async fn a_silent_node_goes_down_and_comes_back() {
    let controller = Controller::start_with(&["--heartbeat", "300ms"]).await;
    let mut agent = Agent::join(&controller, "vm1").await;
    assert_eq!(agent.heartbeat_period.as_millis(), 300);
    // Not one heartbeat comes.
    controller.node_becomes("vm1", wire::node::State::Down).await;
    let ended = loop {
        if let Err(status) = agent.step().await {
            break status;
        }
    };
    // Whichever was first: the node's turning Down, or the session's own deadline.
    assert!(ended.message().ends_with("connect again"), "{ended}");
    Agent::join(&controller, "vm1").await;
    controller.stop().await;
}

#[tokio::test]
async fn the_state_outlives_the_controller() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 2)])).await.expect("applied");
    let before = agent.work_until(controller.watch("convergence", converged)).await;
    let dir = controller.stop().await;

    let controller = Controller::start_in(dir, &[]).await;
    let after = controller.watch("the services", |seen| !seen.services.is_empty()).await;
    assert_eq!(after.tasks, before.tasks);
    let agent = Agent::join(&controller, "vm1").await;
    assert_eq!(agent.set.tasks.len(), 2, "the agent is told the same again");
    controller.stop().await;
}

#[tokio::test]
async fn events_are_kept_filtered_and_followed() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    let request = wire::EventsRequest { follow: true, filter: None, after: None };
    let mut events = controller.control().events(request).await.expect("events").into_inner();
    let joined = within("the first event", events.message()).await.expect("an event").expect("an event");
    assert!(joined.message.contains("vm1"), "{joined:?}");

    controller.apply(stack("hello", &[("web", 1)])).await.expect("applied");
    agent.work_until(controller.watch("convergence", converged)).await;
    let mut last = joined.version;
    loop {
        let event = within("an event", events.message()).await.expect("an event").expect("an event");
        assert!(event.version >= last, "in order");
        last = event.version;
        if event.message.contains("Running") {
            break;
        }
    }
    let filter = wire::Filter { stack: Some("hello".to_owned()), ..Default::default() };
    let request = wire::EventsRequest { follow: false, filter: Some(filter), after: None };
    let mut events = controller.control().events(request).await.expect("events").into_inner();
    while let Some(event) = within("an event", events.message()).await.expect("an event") {
        let subject = event.subject.and_then(|subject| subject.kind);
        assert!(!matches!(subject, Some(wire::subject::Kind::Node(_))), "nodes are not of the stack");
    }
    controller.stop().await;
}

#[tokio::test]
async fn events_and_watches_go_on_without_a_gap() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 3)])).await.expect("applied");
    let seen = agent.work_until(controller.watch("convergence", converged)).await;
    let all = async |after: Option<u64>| {
        let request = wire::EventsRequest { follow: false, filter: None, after };
        let mut stream = controller.control().events(request).await?.into_inner();
        let mut events = Vec::new();
        while let Some(event) = within("an event", stream.message()).await? {
            events.push(event);
        }
        Ok::<_, tonic::Status>(events)
    };
    let events = all(None).await.expect("all that are kept");
    for at in 0..events.len() {
        let after = events[at].version;
        let rest: Vec<_> = events.iter().filter(|event| event.version > after).cloned().collect();
        assert_eq!(all(Some(after)).await.expect("those after it"), rest);
    }
    let status = all(Some(u64::MAX)).await.expect_err("nothing has that version");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");

    // What was seen is not said again; the next thing that happens is.
    let request = wire::WatchRequest { filter: None, after: seen.version };
    let mut watch = controller.control().watch(request).await.expect("watched").into_inner();
    let applied = controller.apply(stack("more", &[("db", 1)])).await.expect("applied");
    let first = within("a version", watch.message()).await.expect("a version").expect("a version");
    assert!(first.version > seen.version && first.version <= applied.version + 2, "{} {}", first.version, seen.version);
    controller.stop().await;
}

#[tokio::test]
async fn no_message_of_a_listing_grows_with_the_cluster() {
    let controller = Controller::start().await;
    let services: Vec<_> = (0..8).map(|number| format!("s{number}")).collect();
    let mut wide = stack("wide", &services.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>());
    for service in wide.services.values_mut() {
        service.labels = (0..4).map(|number| (format!("note{number}"), "x".repeat(30_000))).collect();
    }
    controller.apply(wide).await.expect("applied");
    let mut parts = controller.control().list_services(wire::ListServicesRequest::default()).await.expect("asked");
    let mut sizes = Vec::new();
    while let Some(part) = within("a part", parts.get_mut().message()).await.expect("a part") {
        sizes.push((part.services.len(), part.version));
    }
    let [(_, version), ..] = sizes[..] else { panic!("no answer") };
    assert_eq!(sizes, [(3, version), (3, version), (2, version)]);

    let mut watch = controller.control().watch(wire::WatchRequest::default()).await.expect("watched").into_inner();
    let mut watched = 0;
    loop {
        let part = within("a part", watch.message()).await.expect("a part").expect("a part");
        assert!(part.services.len() <= 3, "{}", part.services.len());
        watched += part.services.len();
        if !part.more {
            break;
        }
    }
    assert_eq!(watched, 8);
    controller.stop().await;
}

#[tokio::test]
async fn events_that_are_forgotten_are_told() {
    let controller = Controller::start().await;
    let _agent = Agent::join(&controller, "vm1").await;
    // More events than are kept: of each task it is told where it goes.
    controller.apply(stack("hello", &[("web", 1_100)])).await.expect("applied");
    let assigned = |seen: &wire::WatchResponse| seen.tasks.iter().filter(|task| task.node.is_some()).count() == 1_100;
    controller.watch("the assignments", assigned).await;
    let request = wire::EventsRequest { follow: true, filter: None, after: Some(1) };
    let mut stream = controller.control().events(request).await.expect("asked").into_inner();
    let status = within("the refusal", stream.message()).await.expect_err("forgotten");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(status.message().contains("ask again without a version"), "{status}");
    controller.stop().await;
}

#[tokio::test]
async fn a_change_under_one_request_id_happens_once() {
    let controller = Controller::start().await;
    let _agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 1)])).await.expect("applied");
    let scale = async |id: &str, count: u32| {
        let mut request =
            tonic::Request::new(wire::ScaleRequest { replicas: [("hello/web".to_owned(), count)].into() });
        request.metadata_mut().insert(roster_proto::call::REQUEST_ID, id.parse().expect("ASCII"));
        controller.control().scale(request).await.map(|answer| answer.into_inner().version)
    };
    let first = scale("one", 3).await.expect("scaled");
    let other = scale("two", 1).await.expect("scaled");
    assert!(other > first);
    assert_eq!(scale("one", 3).await.expect("answered"), first, "what became of it then");
    let seen = controller.watch("the services", |seen| !seen.services.is_empty()).await;
    assert_eq!(seen.services[0].wanted, 1, "and it was not done again");
    let status = scale(&"x".repeat(65), 2).await.expect_err("too long");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    controller.stop().await;
}
