use roster_tests::{
    cluster::Cluster,
    drive::{Drive, pid},
    wait,
};

use super::{shell, until_logged};

#[test]
fn a_signal_reaches_the_program_and_what_ends_follows_the_restart_policy() {
    let cluster = Cluster::start();
    // Process 1 itself: it gets only what it has a trap for.
    let script = "trap 'echo heard' USR1; echo ready; while true; do usleep 20000; done";
    cluster.apply(&shell("s", "deploy: {replicas: 2, restart_policy: {delay: 0s}}", script));
    let before = cluster.until_running(2);
    until_logged(&cluster, "s.1", "ready");
    until_logged(&cluster, "s.2", "ready");

    let told = cluster.ok(&["kill", "-s", "USR1", "s.2"]);
    let id = |name: &str| before.iter().find(|task| task["name"] == name).expect("the slot")["id"].clone();
    assert_eq!(told, format!("s.2 ({})\n", id("s.2").as_str().expect("an id")));
    until_logged(&cluster, "s.2", "heard");
    assert!(!cluster.ok(&["logs", "s.1"]).contains("heard"), "the other one was not meant");
    // The whole service; as a number, and twice the same container.
    let told = cluster.ok(&["kill", "--signal", "10", "s", "c/s", "s.1"]);
    assert_eq!(told.lines().count(), 2, "{told}");
    until_logged(&cluster, "s.1", "heard");
    assert_eq!(cluster.until_running(2), cluster.tasks(), "nothing was replaced");

    // Without a signal it is the end, and the policy says what follows.
    cluster.ok(&["kill", "s.1"]);
    let new = wait::until("the replacement", || {
        let tasks = cluster.tasks();
        let one = tasks.iter().find(|task| task["name"] == "s.1").expect("the slot");
        if one["state"] == "Running" && one["id"] != id("s.1") { Ok(one.clone()) } else { Err(tasks) }
    });
    assert_ne!(pid(&new), pid(&before[0]));
    let ended = cluster.all_tasks().into_iter().find(|task| task["id"] == id("s.1")).expect("it is kept");
    assert_eq!((&ended["state"], &ended["cause"]["kind"]), (&"Failed".into(), &"signaled".into()), "{ended:#}");

    for (arguments, words) in [
        (&["kill", "-s", "NONSENSE", "s"][..], "there is no signal \"NONSENSE\""),
        (&["kill", "nothing"], "there is no service \"nothing\""),
        (&["kill", "s.9"], "s.9"),
        (&["kill", id("s.1").as_str().expect("an id")], "has no container that runs"),
        (&["kill"], "TARGET"),
    ] {
        let refused = cluster.rctl(arguments);
        assert!(refused.code != 0 && refused.stderr.contains(words), "{arguments:?}: {refused:?}");
    }
    cluster.down();
}
