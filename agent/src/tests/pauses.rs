//! Tasks that stand still.

use roster_proto::task::{Health, TaskState};

use super::*;

fn paused(assignment: Assignment, paused: bool) -> Assignment {
    Assignment { paused, ..assignment }
}

#[tokio::test]
async fn ports_lead_away_from_a_task_before_it_stands_still_and_back_when_it_goes_on() {
    let bench = Bench::new();
    let agent = bench.agent();
    let task = || with_port(run_task("a", spec()));
    bench.controller.want(set(1, [task()]));
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Running).await;
    bench.controller.want(set(2, [paused(task(), true)]));
    bench.controller.until_task(&id("a"), |status| status.paused).await;
    let calls = bench.runtime.calls();
    let at = |call: &str| calls.iter().rposition(|one| one == call).unwrap_or_else(|| panic!("{call}: {calls:?}"));
    assert!(at("publish") < at("freeze a"), "{calls:?}");
    assert!(bench.runtime.published().is_empty());

    bench.controller.want(set(3, [paused(task(), false)]));
    let status = bench.controller.until_task(&id("a"), |status| !status.paused).await;
    assert_eq!(status.state, TaskState::Running);
    controller::until("the port", || match bench.runtime.published()[..] {
        [] => Err("no port leads anywhere"),
        _ => Ok(()),
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_pause_outlives_the_agent_and_probes_rest_meanwhile() {
    let bench = Bench::new();
    let agent = bench.agent();
    let task = || run_task("a", with_healthcheck());
    bench.controller.want(set(1, [task()]));
    bench.controller.until_task(&id("a"), |status| status.health == Health::Healthy).await;
    bench.controller.want(set(2, [paused(task(), true)]));
    bench.controller.until_task(&id("a"), |status| status.paused).await;
    bench.runtime.set_sick(&id("a"), Some("no answer"));
    agent.crash().await;
    let agent = bench.agent();
    bench.controller.until("another session", |heard| heard.sessions == 2).await;
    let status = bench.controller.until_task(&id("a"), |status| status.paused).await;
    assert_ne!(status.health, Health::Unhealthy);
    assert_eq!(bench.calls("probe"), Vec::<String>::new());
    assert_eq!(bench.calls("freeze"), ["freeze a"], "it stood still already");
    assert_eq!(bench.calls("start"), ["start a"]);

    // It goes on, and what its probe says counts again.
    bench.controller.want(set(3, [paused(task(), false)]));
    bench.controller.until_task(&id("a"), |status| status.health == Health::Unhealthy).await;
    assert_eq!(bench.calls("thaw"), ["thaw a"]);
    agent.stop().await;
}

#[tokio::test]
async fn what_stands_still_can_be_stopped() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [paused(run_task("a", spec()), true)]));
    bench.controller.until_task(&id("a"), |status| status.paused).await;
    bench.controller.want(set(2, [paused(stop_task("a", spec()), true)]));
    bench.controller.until_task(&id("a"), |status| status.state == TaskState::Shutdown).await;
    assert_eq!(bench.calls("kill"), Vec::<String>::new(), "its signal was enough");
    agent.stop().await;
}
