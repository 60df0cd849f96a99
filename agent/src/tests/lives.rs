//! From assignment to removal.

use roster_proto::{
    assignment::AssignmentSet,
    cause::Cause,
    task::{Health, TaskState},
};

use super::{controller::until, *};
use crate::runtime::{Exit, Phase, memory};

#[tokio::test]
async fn a_task_runs_fails_and_is_cleared_away() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("a", spec())]));
    let status = bench.controller.until_task(&id("a"), |status| status.state == TaskState::Running).await;
    assert_eq!((status.pid, status.cause, status.health), (Some(1001), None, Health::None));

    bench.runtime.end(&id("a"), Exit::Code(3));
    let status = bench.controller.until_task(&id("a"), |status| status.state == TaskState::Failed).await;
    assert_eq!(status.cause, Some(Cause::Exited { code: 3 }));
    assert!(status.started.is_some() && status.finished >= status.started, "{status:?}");
    until_kept(&bench, "a").await;

    bench.controller.want(set(2, [run_task("b", command(&["exit", "0"]))]));
    bench.controller.until_task(&id("b"), |status| status.state == TaskState::Complete).await;
    assert_eq!(bench.calls("start"), ["start a", "start b"], "an ended task is not started again");
    until("its removal when nobody asks for it", || bench.runtime.phase(&id("a")).map_or(Ok(()), Err)).await;
    bench.controller.until("heartbeats", |heard| heard.heartbeats > 1).await;
    agent.stop().await;
}

#[tokio::test]
async fn the_container_stays_until_its_end_is_acknowledged() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("a", spec())]));
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Running).await;
    bench.controller.mute(true);
    bench.runtime.end(&id("a"), Exit::Signal(9));
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Failed).await;
    let reported = bench.controller.until("reports", |_| true).await.reports.len();

    // A new session gets the same once more, because it was never acknowledged.
    bench.controller.hang_up();
    let heard = bench.controller.until("the report again", |heard| heard.reports.len() > reported).await;
    assert_eq!(heard.sessions, 2);
    assert_eq!(heard.reports.last().unwrap().status.cause, Some(Cause::Signaled { signal: 9 }));
    assert!(bench.runtime.phase(&id("a")).is_some() && bench.calls("remove").is_empty());
    assert_eq!(bench.calls("keep"), [""; 0]);

    bench.controller.mute(false);
    bench.controller.hang_up();
    until_kept(&bench, "a").await;
    agent.stop().await;
}

async fn until_kept(bench: &Bench, name: &str) {
    until("the failed container to be kept", || match bench.runtime.phase(&id(name)) {
        Some(Phase::Kept) => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test]
async fn what_failed_is_kept_as_long_as_the_set_names_it() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("a", command(&["exit", "3"])), run_task("b", command(&["exit", "0"]))]));
    until_kept(&bench, "a").await;
    until("what ended well to go", || bench.runtime.phase(&id("b")).map_or(Ok(()), Err)).await;
    let naming = |generation, kept: &[&str]| AssignmentSet {
        kept: kept.iter().map(|name| id(name)).collect(),
        ..set(generation, [run_task("c", spec())])
    };
    bench.controller.want(naming(2, &["a"]));
    bench.controller.until_task(&id("c"), |status| status.state == TaskState::Running).await;
    agent.crash().await;

    let agent = bench.agent();
    bench.controller.until("the next session", |heard| heard.sessions > 1 && heard.heartbeats > 1).await;
    assert_eq!(bench.runtime.phase(&id("a")), Some(Phase::Kept));
    assert_eq!(bench.calls("keep"), ["keep a"]);
    bench.controller.want(naming(3, &[]));
    until("its removal", || bench.runtime.phase(&id("a")).map_or(Ok(()), Err)).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_stop_is_signal_grace_kill() {
    let bench = Bench::new();
    let agent = bench.agent();
    let stubborn = || TaskSpec { stop_grace_period: Duration::from_millis(60), ..command(&["stubborn"]) };
    bench.controller.want(set(1, [run_task("a", stubborn()), run_task("b", spec())]));
    for name in ["a", "b"] {
        bench.controller.until_task(&id(name), |status| status.state == TaskState::Running).await;
    }
    bench.controller.want(set(2, [stop_task("a", stubborn()), stop_task("b", spec())]));
    bench.controller.until_task(&id("a"), |status| matches!(status.cause, Some(Cause::Stopping { .. }))).await;
    for name in ["a", "b"] {
        let status = bench.controller.until_task(&id(name), |status| status.state == TaskState::Shutdown).await;
        assert_eq!(status.cause, Some(Cause::Stopped { reason: StopReason::ScaledDown }));
    }
    assert_eq!(bench.calls("kill"), ["kill a"], "b went at the signal");
    agent.stop().await;
}

#[tokio::test]
async fn what_leaves_the_set_is_stopped_and_removed() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("a", spec()), run_task("b", spec())]));
    bench.controller.until_task(&id("b"), |status| status.state == TaskState::Running).await;
    bench.controller.want(set(2, [run_task("b", spec())]));
    until("a's removal", || bench.runtime.phase(&id("a")).map_or(Ok(()), Err)).await;
    assert_eq!(bench.calls("stop"), ["stop a"]);
    agent.stop().await;
}

#[tokio::test]
async fn an_unhealthy_container_is_stopped_and_says_why() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("a", with_healthcheck())]));
    bench.controller.until_task(&id("a"), |status| status.health == Health::Healthy).await;
    bench.runtime.set_sick(&id("a"), Some("503 Service Unavailable"));
    let status = bench.controller.until_task(&id("a"), |status| status.state == TaskState::Failed).await;
    let output = "503 Service Unavailable".to_owned();
    assert_eq!(status.cause, Some(Cause::Unhealthy { failures: 1, output }));
    assert_eq!(bench.calls("stop"), ["stop a"]);
    agent.stop().await;
}

#[tokio::test]
async fn an_images_own_healthcheck_counts() {
    let bench = Bench::new();
    bench.runtime.set_image(crate::runtime::Prepared { healthcheck: with_healthcheck().healthcheck });
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("a", spec())]));
    bench.controller.until_task(&id("a"), |status| status.health == Health::Healthy).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_fails_is_tried_again_and_then_given_up() {
    let bench = Bench::new();
    bench.runtime.fail("start", [memory::error("mount", true), memory::error("mount", true)]);
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("a", spec())]));
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Running).await;
    assert_eq!(bench.calls("start").len(), 3);

    bench.runtime.fail("start", [memory::error("unshare", false)]);
    let absent = TaskSpec { image: "absent".into(), ..spec() };
    bench.controller.want(set(2, [run_task("a", spec()), run_task("b", spec()), run_task("c", absent)]));
    let failed = bench.controller.until_task(&id("b"), |status| status.state == TaskState::Failed).await;
    assert!(matches!(failed.cause, Some(Cause::StartFailed { step, .. }) if step == "unshare"));
    let rejected = bench.controller.until_task(&id("c"), |status| status.state == TaskState::Rejected).await;
    assert!(matches!(rejected.cause, Some(Cause::ImageUnavailable { .. })));
    agent.stop().await;
}

#[tokio::test]
async fn a_slow_preparation_is_told_and_can_be_given_up() {
    let bench = Bench::new();
    bench.runtime.slow_down("prepare", Duration::from_secs(3600));
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("a", spec())]));
    let status = bench.controller.until_task(&id("a"), |status| status.state == TaskState::Preparing).await;
    assert_eq!(status.cause, Some(Cause::Pulling { image: "web".into() }));
    bench.controller.want(set(2, [stop_task("a", spec())]));
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Shutdown).await;
    assert!(bench.calls("start").is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn ports_lead_away_before_the_stop() {
    let bench = Bench::new();
    let agent = bench.agent();
    let web = |name| with_port(run_task(name, spec()));
    bench.controller.want(set(1, [web("a"), web("b")]));
    let backends = || bench.runtime.published().iter().map(|port| port.backends.len()).sum::<usize>();
    until("both published", || if backends() == 2 { Ok(()) } else { Err(bench.runtime.calls()) }).await;
    bench.controller.want(set(2, [with_port(stop_task("a", spec())), web("b")]));
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Shutdown).await;
    let calls = bench.runtime.calls();
    let stop = calls.iter().position(|call| call == "stop a").unwrap();
    let away = calls.iter().rposition(|call| call.starts_with("publish")).unwrap();
    assert!(away < stop && !calls[away].contains(','), "{calls:#?}");
    assert_eq!(backends(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_packet_filter_that_fails_does_not_keep_containers_alive() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [with_port(run_task("a", spec()))]));
    until("published", || if bench.runtime.published().is_empty() { Err(()) } else { Ok(()) }).await;
    bench.runtime.fail("publish", (0..3).map(|_| memory::error("nft", true)));
    bench.controller.want(set(2, [with_port(stop_task("a", spec()))]));
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Shutdown).await;
    until("the ports are right at last", || {
        if bench.runtime.published().is_empty() { Ok(()) } else { Err(bench.runtime.calls()) }
    })
    .await;
    agent.stop().await;
}
