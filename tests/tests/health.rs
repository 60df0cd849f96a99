//! Health-driven restarts, and a restart policy's backoff, as a user sees them.

use roster_tests::{
    cluster::Cluster,
    drive::{Drive, pid},
    wait,
};

#[test]
fn a_replica_that_turns_unhealthy_is_replaced_and_says_why() {
    let cluster = Cluster::start();
    cluster.apply(
        "name: h\nservices:\n  web:\n    image: roster-hello\n    init: true\n    ports: ['8080:8080']\n    \
         stop_grace_period: 2s\n    \
         healthcheck: {test: 'test ! -e /tmp/unhealthy || { echo I feel sick; exit 1; }', interval: 200ms, retries: 2}\n    \
         deploy: {replicas: 2}\n",
    );
    let before = cluster.until_running(2);
    let said = cluster.netns.get("http://127.0.0.1:8080/cgi-bin/unhealthy").expect("a replica answers");
    let victim = said.split_whitespace().next().expect("its name").to_owned();
    let old = pid(before.iter().find(|task| task["name"] == *victim).expect("the victim"));
    wait::until("its replacement", || {
        let tasks = cluster.tasks();
        let new = tasks.iter().find(|task| task["name"] == *victim).expect("the slot").clone();
        let there = new["state"] == "Running" && new["health"] == "healthy" && new["pid"] != old;
        if there { Ok(()) } else { Err(tasks) }
    });
    let failed = cluster.all_tasks().into_iter().find(|task| task["pid"] == old || task["state"] == "Failed");
    let failed = failed.expect("what ended is kept");
    assert_eq!(failed["cause"]["kind"], "unhealthy", "{failed:#}");
    assert!(failed["cause"]["message"].as_str().expect("words").contains("I feel sick"), "{failed:#}");
    let other = cluster.tasks().into_iter().find(|task| task["name"] != *victim).expect("the other");
    assert!(before.iter().any(|task| task["pid"] == other["pid"]), "the other replica was left alone");
    let history = cluster.ok(&["inspect", &victim]);
    assert!(history.contains("Before it in this slot:") && history.contains("unhealthy"), "{history}");
    cluster.down();
}

#[test]
fn a_crash_loop_backs_off_and_gives_up_as_told() {
    let cluster = Cluster::start();
    let file = cluster.spec(
        "name: c\nservices:\n  bad:\n    image: roster-hello\n    network_mode: none\n    \
         command: ['sh', '-c', 'echo I always fail; exit 3']\n    \
         deploy: {restart_policy: {condition: on-failure, delay: 50ms, max_attempts: 2}}\n",
    );
    let output = cluster.rctl(&["apply", "--timeout=60s", &file.to_string_lossy()]);
    assert_eq!(output.code, 3, "{output:?}");
    for words in
        ["its restart policy is used up", "bad.1", "gave up after 2 restarts: exited with code 3", "| I always fail"]
    {
        assert!(output.stderr.contains(words), "{words:?} is missing in {output:?}");
    }
    assert_eq!(cluster.all_tasks().len(), 3, "the first attempt and two restarts");

    // What is wrong with it is mended by a new spec.
    cluster.apply(
        "name: c\nservices:\n  bad: {image: roster-hello, network_mode: none, init: true, command: sleep inf}\n",
    );
    cluster.until_running(1);
    cluster.down();
}

#[test]
fn a_task_that_ends_well_stays_ended_when_told_so() {
    let cluster = Cluster::start();
    let done = cluster.apply(
        "name: job\nservices:\n  once:\n    image: roster-hello\n    network_mode: none\n    command: ['true']\n    \
         restart: on-failure\n",
    );
    assert!(done.contains("finished"), "{done}");
    let task = cluster.tasks().remove(0);
    assert_eq!(task["state"], "Complete", "{task:#}");
    cluster.down();
}

#[test]
fn an_apply_that_waits_says_why() {
    let cluster = Cluster::start();
    let file = cluster.spec(
        "name: w\nservices:\n  s:\n    image: roster-hello\n    network_mode: none\n    \
         command: ['sh', '-c', 'echo no luck; exit 1']\n    deploy: {restart_policy: {delay: 30s}}\n",
    );
    let output = cluster.rctl(&["apply", "--timeout=3s", &file.to_string_lossy()]);
    assert_eq!(output.code, 3, "{output:?}");
    for words in ["not all is up after 3.0s", "w/s: 0/1 up", "s.1", "exited with code 1", "| no luck"] {
        assert!(output.stderr.contains(words), "{words:?} is missing in {output:?}");
    }
    cluster.down();
}
