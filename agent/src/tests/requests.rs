//! What users ask of a node.

use roster_proto::wire::{self, answer_part::Part, failure::Kind, request::Request};

use super::{controller::Heard, *};

async fn connected() -> (Bench, Agent) {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.until("a session", |heard| heard.sessions == 1).await;
    (bench, agent)
}

async fn answer(bench: &Bench, id: &str, request: Request) -> Vec<Part> {
    bench.controller.ask(id, request);
    let answered = |heard: &Heard| heard.answered.iter().any(|one| one == id);
    let heard = bench.controller.until("an answer", answered).await;
    heard.answers.get(id).cloned().unwrap_or_default()
}

fn logs(task: &str, follow: bool) -> Request {
    let query = Some(wire::LogQuery { follow, ..Default::default() });
    Request::Logs(wire::TaskLogs { task: task.into(), query })
}

fn failure(parts: &[Part]) -> Kind {
    match parts {
        [Part::Failure(failure)] => failure.kind(),
        other => panic!("not a failure: {other:?}"),
    }
}

#[tokio::test]
async fn logs_are_sent_and_failures_told() {
    let (bench, agent) = connected().await;
    let parts = answer(&bench, "r1", logs("a", false)).await;
    assert!(matches!(&parts[..], [Part::Lines(lines)] if lines.lines[0].line.as_ref() == b"a"), "{parts:?}");
    assert_eq!(failure(&answer(&bench, "r2", logs("absent", false)).await), Kind::NotFound);
    assert_eq!(failure(&answer(&bench, "r3", logs("../etc", false)).await), Kind::Invalid);
    agent.stop().await;
}

#[tokio::test]
async fn following_ends_when_it_is_cancelled() {
    let (bench, agent) = connected().await;
    bench.controller.ask("r1", logs("a", true));
    bench.controller.until("lines", |heard| heard.answers.get("r1").is_some_and(|parts| parts.len() > 10)).await;
    bench.controller.cancel("r1");
    bench.controller.until("the end", |heard| heard.answered == ["r1"]).await;
    agent.stop().await;
}

#[tokio::test]
async fn each_container_that_is_signalled_has_an_answer_of_its_own() {
    use wire::{container_answer::Answer, container_request};
    let (bench, agent) = connected().await;
    let signal = wire::SignalContainers { tasks: vec!["a".into(), "absent".into(), "b".into()], signal: "USR1".into() };
    let request = wire::ContainerRequest { request: Some(container_request::Request::Signal(signal)) };
    let parts = answer(&bench, "r1", Request::Container(request)).await;
    let told = |part: &Part| match part {
        Part::Container(answer) => (answer.task.clone(), matches!(answer.answer, Some(Answer::Done(_)))),
        other => panic!("not of a container: {other:?}"),
    };
    let expected = [("a".to_owned(), true), ("absent".to_owned(), false), ("b".to_owned(), true)];
    assert_eq!(parts.iter().map(told).collect::<Vec<_>>(), expected);
    let unknown = answer(&bench, "r2", Request::Container(wire::ContainerRequest { request: None })).await;
    assert_eq!(failure(&unknown), Kind::Invalid);
    agent.stop().await;
}

#[tokio::test]
async fn images_are_loaded_listed_and_removed() {
    let (bench, agent) = connected().await;
    let loaded = answer(&bench, "r1", Request::ImageLoad(wire::ImageLoad::default())).await;
    assert!(matches!(&loaded[..], [Part::Images(images)] if images.images[0].size == 8), "{loaded:?}");
    answer(&bench, "r2", Request::ImagePull(wire::ImagePull { reference: "web:1".into() })).await;
    let remove = || Request::ImageRemove(wire::ImageRemove { reference: "web:1".into() });
    let removed = answer(&bench, "r3", remove()).await;
    assert!(matches!(&removed[..], [Part::Images(images)] if images.images.len() == 1), "{removed:?}");
    assert_eq!(failure(&answer(&bench, "r4", remove()).await), Kind::NotFound);

    bench.controller.want(set(1, [run_task("a", TaskSpec { image: "loaded:latest".into(), ..spec() })]));
    bench.controller.until("the task", |heard| heard.last(&id("a")).is_some()).await;
    let needed = Request::ImageRemove(wire::ImageRemove { reference: "loaded:latest".into() });
    assert_eq!(failure(&answer(&bench, "r6", needed).await), Kind::Precondition);
    let listed = answer(&bench, "r5", Request::ImageList(wire::ImageList {})).await;
    assert!(matches!(&listed[..], [Part::Images(images)] if images.images.len() == 1), "{listed:?}");
    agent.stop().await;
}

#[tokio::test]
async fn live_calls_hear_their_caller_and_fail_in_words() {
    let (bench, agent) = connected().await;
    let live = |task: &str, work| Request::Live(wire::TaskLive { task: task.into(), work });
    let program = || {
        let work = wire::live_work::Work::Program(wire::Program::default());
        Some(wire::LiveWork { work: Some(work) })
    };
    // What the bench's controller sends is an archive: no input.
    assert_eq!(failure(&answer(&bench, "r1", live("a", program())).await), Kind::Unavailable);
    assert_eq!(failure(&answer(&bench, "r2", live("absent", program())).await), Kind::NotFound);
    assert_eq!(failure(&answer(&bench, "r3", live("../etc", program())).await), Kind::Invalid);
    assert_eq!(failure(&answer(&bench, "r4", live("a", None)).await), Kind::Invalid);
    agent.stop().await;
}
