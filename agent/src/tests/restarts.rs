//! Agents and controllers that come and go.

use roster_proto::{assignment::AssignmentDiff, cause::Cause, task::TaskState};

use super::{controller::until, *};
use crate::runtime::{Exit, Phase, Runtime};

#[tokio::test]
async fn a_new_agent_takes_back_what_runs() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [with_port(run_task("a", with_healthcheck())), run_task("b", spec())]));
    let before = bench.controller.until_task(&id("b"), |status| status.state == TaskState::Running).await;
    until("published", || if bench.runtime.published().is_empty() { Err(()) } else { Ok(()) }).await;
    agent.crash().await;
    bench.runtime.end(&id("a"), Exit::Code(0));

    let calls = bench.runtime.calls().len();
    let agent = bench.agent();
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Complete).await;
    let heard = bench
        .controller
        .until("b reported again", |heard| heard.reports.iter().filter(|report| report.task == id("b")).count() > 1)
        .await;
    assert_eq!(heard.last(&id("b")), Some(&before), "the same pid since the same moment");
    assert_eq!(heard.generations, [0, 1], "the ledger knew the set");
    let calls = bench.runtime.calls()[calls..].to_vec();
    assert!(!calls.iter().any(|call| call.starts_with("st")), "nothing started or stopped: {calls:?}");
    agent.stop().await;
}

#[tokio::test]
async fn ports_stay_published_over_a_restart() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [with_port(run_task("a", with_healthcheck()))]));
    until("published", || if bench.runtime.published().is_empty() { Err(()) } else { Ok(()) }).await;
    agent.stop().await;
    let calls = bench.runtime.calls().len();
    let agent = bench.agent();
    bench.controller.until("a second session", |heard| heard.sessions == 2).await;
    until("a publication", || {
        let calls = bench.runtime.calls()[calls..].to_vec();
        if calls.iter().any(|call| call.starts_with("publish")) { Ok(()) } else { Err(calls) }
    })
    .await;
    let publications = bench.runtime.calls()[calls..].to_vec();
    assert!(publications.iter().filter(|call| call.starts_with("publish")).all(|call| call.contains("10.0.0.2:80")));
    agent.stop().await;
}

#[tokio::test]
async fn without_a_controller_the_ledger_is_followed_but_nothing_destroyed() {
    let mut bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("a", spec()), run_task("b", spec())]));
    bench.controller.until_task(&id("b"), |status| status.state == TaskState::Running).await;
    until("the ledger", || {
        let path = bench.path().join("data/ledger/set");
        if path.exists() { Ok(()) } else { Err(path) }
    })
    .await;
    agent.crash().await;
    // The controller is gone; what it had told last may be newer than the ledger.
    bench.controller.hang_up();
    drop(std::mem::replace(&mut bench.controller, Controller::listen(tempfile::tempdir().unwrap().path())));
    bench.runtime.start(&run_task("newer", spec())).await.unwrap();
    bench.runtime.end(&id("a"), Exit::Code(1));

    let agent = bench.agent();
    until(
        "the first publication",
        || {
            if bench.calls("publish").len() > 1 { Ok(()) } else { Err(bench.runtime.calls()) }
        },
    )
    .await;
    assert!(bench.calls("stop").is_empty() && bench.calls("remove").is_empty());

    bench.controller = Controller::listen(bench.path());
    bench.controller.want(set(2, [run_task("a", spec()), run_task("b", spec())]));
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Failed).await;
    until("what the controller does not know is removed", || bench.runtime.phase(&id("newer")).map_or(Ok(()), Err))
        .await;
    assert!(matches!(bench.runtime.phase(&id("b")), Some(Phase::Running(_))));
    agent.stop().await;
}

#[tokio::test]
async fn a_damaged_ledger_destroys_nothing() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.path().join("data/ledger")).unwrap();
    std::fs::write(bench.path().join("data/ledger/set"), "roster-ledger 1 ab\n{\"generation\":9,\"tasks\":{}}")
        .unwrap();
    bench.runtime.start(&run_task("a", spec())).await.unwrap();
    let agent = bench.agent();
    bench.controller.until("a session", |heard| heard.sessions == 1).await;
    assert!(bench.calls("stop").is_empty());
    bench.controller.want(set(1, [run_task("a", spec())]));
    let status = bench.controller.until_task(&id("a"), |status| status.state == TaskState::Running).await;
    assert_eq!(status.pid, Some(1001));
    assert_eq!(bench.calls("start"), ["start a"]);
    agent.stop().await;
}

#[tokio::test]
async fn a_task_is_one_shot_over_restarts_of_agent_and_host() {
    let bench = Bench::new();
    let agent = bench.agent();
    let wanted = || [run_task("ended", command(&["exit", "3"])), run_task("lost", spec())];
    bench.controller.want(set(1, wanted()));
    bench.controller.until_task(&id("lost"), |status| status.state == TaskState::Running).await;
    until("what ended to be kept", || match bench.runtime.phase(&id("ended")) {
        Some(Phase::Kept) => Ok(()),
        other => Err(other),
    })
    .await;
    agent.crash().await;
    bench.runtime.lose(&id("lost"));

    let agent = bench.agent();
    let lost = bench.controller.until_task(&id("lost"), |status| status.state == TaskState::Failed).await;
    assert_eq!(lost.cause, Some(Cause::ShimLost));
    let twice = |reports: &[roster_proto::task::TaskReport]| {
        let ended = reports.iter().filter(|report| report.task == id("ended") && report.status.state.is_terminal());
        ended.count() == 2
    };
    let heard = bench.controller.until("the old end once more", |heard| twice(&heard.reports)).await;
    assert_eq!(heard.last(&id("ended")).unwrap().cause, Some(Cause::Exited { code: 3 }));
    assert_eq!(bench.calls("start").len(), 2, "{:?}", bench.calls("start"));
    agent.stop().await;
}

#[tokio::test]
async fn an_increment_that_does_not_fit_leads_to_a_whole_set() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("a", spec())]));
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Running).await;
    let diff = AssignmentDiff {
        base: Version(7),
        generation: Version(8),
        put: Vec::new(),
        remove: vec![id("a")],
        keep: Vec::new(),
        drop: Vec::new(),
    };
    bench.controller.send_diff(diff);
    bench.controller.until("a new session", |heard| heard.sessions == 2).await;
    bench.controller.want(set(2, [run_task("a", spec()), run_task("b", spec())]));
    bench.controller.until_task(&id("b"), |status| status.state == TaskState::Running).await;
    assert!(bench.calls("stop").is_empty());
    agent.stop().await;
}
