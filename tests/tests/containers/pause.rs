use roster_tests::{
    cluster::Cluster,
    drive::{Drive, pid},
    wait,
};
use serde_json::Value;

use super::{shell, until_logged};

/// Counts in a file, and says when it is told to end.
const COUNTING: &str = "trap 'echo bye; exit 0' TERM; trap 'echo heard' USR1; i=0; while true; do i=$((i+1)); echo $i > /count; usleep 5000; done";

fn count(task: &Value) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/root/count", pid(task))).unwrap_or_default();
    // Between being emptied and being written there is no number.
    text.trim().parse().unwrap_or(0)
}

fn named(tasks: &[Value], name: &str) -> Value {
    tasks.iter().find(|task| task["name"] == name).unwrap_or_else(|| panic!("no {name}: {tasks:#?}")).clone()
}

/// The one makes no progress while the other makes a lot.
#[track_caller]
fn stands_still(still: &Value, other: &Value) {
    let at = count(still);
    let from = count(other);
    wait::until("progress of the other one", || {
        let now = count(other);
        if now > from + 50 { Ok(()) } else { Err((from, now)) }
    });
    assert_eq!(count(still), at, "it went on");
}

#[test]
fn a_paused_container_stands_still_and_goes_on() {
    let mut cluster = Cluster::start();
    let check = "healthcheck: {test: 'true', interval: 100ms, timeout: 1s, retries: 1}\n    deploy: {replicas: 2}";
    cluster.apply(&shell("s", check, COUNTING));
    let tasks = cluster.until_running(2);
    let (one, two) = (named(&tasks, "s.1"), named(&tasks, "s.2"));
    wait::until("counting", || if count(&one) > 0 && count(&two) > 0 { Ok(()) } else { Err(()) });

    let told = cluster.ok(&["pause", "s.2"]);
    assert_eq!(told, format!("s.2 ({})\n", two["id"].as_str().expect("an id")));
    stands_still(&two, &one);
    let shown = cluster.ok(&["ps"]);
    assert!(shown.contains("Running (paused, healthy)") && shown.contains("Running (healthy)"), "{shown}");
    assert_eq!(named(&cluster.tasks(), "s.2")["paused"], true);
    // A signal waits for it; a second pause changes nothing.
    cluster.ok(&["kill", "-s", "USR1", "s.2"]);
    cluster.ok(&["pause", "s.2"]);
    stands_still(&two, &one);

    // The agent dies and comes back: nothing is thawed, probed, or started again.
    cluster.kill_agent();
    stands_still(&two, &one);
    cluster.start_agent();
    wait::until("the agent to be back", || {
        let processes = cluster.rctl(&["top", "s.2"]);
        if processes.code == 0 { Ok(()) } else { Err(processes) }
    });
    stands_still(&two, &one);
    assert_eq!(named(&cluster.tasks(), "s.2")["id"], two["id"]);
    assert!(!cluster.ok(&["logs", "s.2"]).contains("heard"));

    cluster.ok(&["unpause", "s"]);
    until_logged(&cluster, "s.2", "heard");
    let at = count(&two);
    wait::until("it to go on", || if count(&two) > at + 20 { Ok(()) } else { Err(count(&two)) });
    let after = cluster.until_running(2);
    assert!([&one, &two].iter().all(|task| after.iter().any(|now| now["id"] == task["id"])), "none was replaced");
    cluster.down();
}

#[test]
fn what_is_paused_can_be_stopped_replaced_and_killed() {
    let cluster = Cluster::start();
    let spec = |mode: &str| {
        let extra =
            format!("environment: {{MODE: {mode}}}\n    deploy: {{replicas: 3, restart_policy: {{delay: 0s}}}}");
        // Far longer than a stop of what can hear its signal takes.
        shell("s", &extra, COUNTING).replace("stop_grace_period: 1s", "stop_grace_period: 10m")
    };
    cluster.apply(&spec("one"));
    let first = cluster.until_running(3);
    cluster.ok(&["pause", "s"]);

    // Scaled down: it hears its signal.
    cluster.ok(&["scale", "s=2"]);
    let third = named(&first, "s.3")["id"].as_str().expect("an id").to_owned();
    let log = cluster.path("agent").join("logs").join(third).join("0.log");
    let said = std::fs::read_to_string(log).expect("its log outlives it");
    assert!(said.trim_end().ends_with("stdout F bye"), "{said}");
    // Replaced by an update; what comes in its place runs.
    cluster.apply(&spec("two").replace("replicas: 3", "replicas: 2"));
    let second = cluster.until_running(2);
    assert!(second.iter().all(|task| task["paused"] == false), "{second:#?}");
    assert!(second.iter().all(|task| first.iter().all(|old| old["id"] != task["id"])));
    // Restarted, and killed.
    cluster.ok(&["pause", "s"]);
    cluster.ok(&["restart", "s.1"]);
    cluster.ok(&["kill", "s.2"]);
    let third = wait::until("both in place of both", || {
        let tasks = cluster.tasks();
        let new = |task: &Value| second.iter().all(|old| old["id"] != task["id"]) && task["state"] == "Running";
        if tasks.iter().all(new) { Ok(tasks) } else { Err(tasks) }
    });
    assert_eq!(third.len(), 2);
    cluster.ok(&["pause", "s"]);
    cluster.ok(&["rm", "c"]);
    cluster.until_no_traces();
    cluster.down();
}

#[test]
fn ports_lead_around_what_is_paused() {
    let cluster = Cluster::start();
    cluster.apply(
        "name: p\nservices:\n  web: {image: roster-hello, init: true, ports: ['8080:8080'], stop_grace_period: 1s, \
         deploy: {replicas: 2}}\n  one: {image: roster-hello, network_mode: none, x-singleton: true, \
         command: [sleep, inf], init: true, stop_grace_period: 1s}\n",
    );
    cluster.until_running(3);
    cluster.ok(&["pause", "web.1"]);
    for _ in 0..10 {
        assert_eq!(cluster.netns.get("http://127.0.0.1:8080/").expect("an answer"), "web.2");
    }
    cluster.ok(&["unpause", "web.1"]);
    wait::until("an answer of the other one", || match cluster.netns.get("http://127.0.0.1:8080/") {
        Ok(answer) if answer == "web.1" => Ok(()),
        other => Err(other),
    });
    let refused = cluster.rctl(&["pause", "one"]);
    assert!(refused.code == 1 && refused.stderr.contains("is a singleton"), "{refused:?}");
    let refused = cluster.rctl(&["pause", "nothing"]);
    assert!(refused.code == 1 && refused.stderr.contains("there is no service"), "{refused:?}");
    cluster.down();
}
