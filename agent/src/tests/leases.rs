//! Singletons, and what the leader is told before a node counts as Ready.

use roster_proto::task::TaskState;

use super::{controller::until, *};
use crate::{clock::BootTime, runtime::Runtime};

fn singleton() -> TaskSpec {
    TaskSpec { singleton: true, ..spec() }
}

#[tokio::test]
async fn a_singleton_starts_with_a_lease_and_the_lease_is_extended() {
    let bench = Bench::new();
    bench.controller.promise(Duration::ZERO);
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("one", singleton()), run_task("other", spec())]));
    bench.controller.until_task(&id("other"), |status| status.state == TaskState::Running).await;
    bench.controller.until("heartbeats", |heard| heard.heartbeats > 2).await;
    assert_eq!(bench.calls("start"), ["start other"], "answers without a promise are no lease");
    assert_eq!(bench.runtime.lease(), None);

    bench.controller.promise(Duration::from_secs(60));
    bench.controller.until_task(&id("one"), |status| status.state == TaskState::Running).await;
    let lease = bench.runtime.lease().expect("a lease");
    assert!(lease < BootTime::now().plus(Duration::from_secs(60)));
    until("it is extended", || if bench.runtime.lease() > Some(lease) { Ok(()) } else { Err(lease) }).await;
    agent.stop().await;
}

#[tokio::test]
async fn without_singletons_no_lease_is_written() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.controller.want(set(1, [run_task("other", spec())]));
    bench.controller.until_task(&id("other"), |status| status.state == TaskState::Running).await;
    bench.controller.until("heartbeats", |heard| heard.heartbeats > 2).await;
    assert_eq!(bench.runtime.lease(), None);
    // The one that comes finds what the last answer promised.
    bench.controller.want(set(2, [run_task("one", singleton())]));
    bench.controller.until_task(&id("one"), |status| status.state == TaskState::Running).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_host_is_settled_when_what_it_must_not_run_has_ended() {
    let bench = Bench::new();
    bench.runtime.start(&run_task("old", command(&["stubborn"]))).await.unwrap();
    bench.runtime.slow_down("kill", Duration::from_millis(300));
    let agent = bench.agent();
    bench.controller.until("heartbeats", |heard| heard.heartbeats > 1).await;
    assert_eq!(bench.controller.heard().settled, [0; 0], "no set was sent yet");
    let stubborn = TaskSpec { stop_grace_period: Duration::from_millis(50), ..command(&["stubborn"]) };
    bench.controller.want(set(4, [stop_task("old", stubborn), run_task("new", spec())]));
    bench.controller.until_task(&id("new"), |status| status.state == TaskState::Running).await;
    let heard = bench.controller.heard();
    assert_eq!(heard.settled, [0; 0], "it still runs what it was told to stop");
    let heard = bench.controller.until("settled", |heard| !heard.settled.is_empty()).await;
    assert_eq!(heard.settled, [4]);
    assert!(heard.last(&id("old")).is_none_or(|status| status.state == TaskState::Shutdown), "{heard:?}");

    // Each session is told anew, and each set.
    bench.controller.hang_up();
    bench.controller.until("settled again", |heard| heard.settled == [4, 4]).await;
    bench.controller.want(set(5, [run_task("new", spec())]));
    bench.controller.until("settled on the next", |heard| heard.settled == [4, 4, 5]).await;
    agent.stop().await;
}
