//! A service's life on the real kernel, driven by `rctl` as a user drives it.

use std::collections::BTreeSet;

use roster_tests::{
    cluster::Cluster,
    drive::{Drive, is_running, pid},
    wait,
};

fn web(extra: &str) -> String {
    format!(
        "name: hello\n\
         services:\n  \
           web:\n    \
             image: roster-hello\n    \
             init: true\n    \
             stop_grace_period: 2s\n    \
             ports: ['8080:8080']\n    \
             healthcheck: {{test: 'wget -q -O /dev/null http://127.0.0.1:8080/', interval: 1s, retries: 2, \
               start_period: 5s, start_interval: 50ms}}\n    \
             {extra}\n"
    )
}

fn pids(cluster: &Cluster) -> BTreeSet<u32> {
    cluster.until_running(cluster.tasks().len()).iter().map(pid).collect()
}

#[test]
fn apply_scale_update_remove() {
    let cluster = Cluster::start();

    // Plan first: it says what would happen and does nothing.
    let three = cluster.spec(&web("deploy: {replicas: 3}"));
    let plan = cluster.rctl(&["plan", &three.to_string_lossy()]);
    assert_eq!(plan.code, 2, "a plan with changes: {plan:?}");
    assert!(plan.stdout.contains("+ hello/web  create"), "{plan:?}");
    assert!(plan.stdout.contains("start web.1 … web.3 on vm1"), "{plan:?}");
    assert_eq!(cluster.tasks().len(), 0);

    let applied = cluster.ok(&["apply", "--timeout=60s", &three.to_string_lossy()]);
    assert!(applied.contains("Done in "), "{applied}");
    let plan = cluster.rctl(&["plan", &three.to_string_lossy()]);
    assert_eq!(
        (plan.code, plan.stdout.as_str()),
        (0, "= hello/web  unchanged\n    keep web.1 … web.3 on vm1\nNothing to do: stack hello is as the file says.\n")
    );

    // Every replica answers on the published port, on loopback and by name.
    let mut answers = BTreeSet::new();
    wait::until("an answer from each replica", || {
        answers.insert(cluster.netns.get("http://127.0.0.1:8080/")?);
        if answers.len() == 3 { Ok(()) } else { Err(format!("{answers:?}")) }
    });
    assert_eq!(answers, BTreeSet::from(["web.1".into(), "web.2".into(), "web.3".into()]));

    // Scaling touches no replica that stays.
    let three_pids = pids(&cluster);
    cluster.ok(&["scale", "web=5"]);
    let five_pids = pids(&cluster);
    assert_eq!(five_pids.len(), 5);
    assert!(five_pids.is_superset(&three_pids));
    cluster.ok(&["scale", "hello/web=2"]);
    let two_pids = pids(&cluster);
    assert_eq!(two_pids.len(), 2);
    assert!(three_pids.is_superset(&two_pids));

    // A changed spec rolls through the slots; another service of the stack is left alone.
    let both = |mode: &str| {
        web(&format!("environment: {{MODE: {mode}}}\n    deploy: {{replicas: 2}}"))
            + "  idle:\n    image: roster-hello\n    init: true\n    network_mode: none\n    command: [sleep, inf]\n    \
               stop_grace_period: 1s\n"
    };
    cluster.apply(&both("one"));
    let idle = |cluster: &Cluster| cluster.tasks().into_iter().find(|task| task["name"] == "idle.1").expect("idle.1");
    let before = pid(&idle(&cluster));
    let updated = cluster.apply(&both("two"));
    assert!(updated.contains("environment.MODE: one → two"), "{updated}");
    assert!(updated.contains("replace web.1 … web.2 on vm1"), "{updated}");
    assert_eq!(pid(&idle(&cluster)), before, "an unchanged service is not touched");
    for task in cluster.tasks().iter().filter(|task| task["service"] == "web") {
        // Process 1 is the init; the program is its child.
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", pid(task))).expect("it runs");
        let program = children.split_whitespace().next().expect("init has a child");
        let environ = std::fs::read(format!("/proc/{program}/environ")).expect("it runs");
        assert!(String::from_utf8_lossy(&environ).contains("MODE=two"), "{task:#}");
    }

    // A service that is missing from the file is shown, and removed only with --prune.
    let alone = cluster.spec(&web("environment: {MODE: two}\n    deploy: {replicas: 2}"));
    let shown = cluster.rctl(&["plan", &alone.to_string_lossy()]);
    assert!(shown.stdout.contains("? hello/idle  not in the file"), "{shown:?}");
    assert_eq!(shown.code, 0);
    cluster.ok(&["apply", "--prune", &alone.to_string_lossy()]);
    assert_eq!(cluster.until_running(2).len(), 2);

    cluster.ok(&["rm", "hello"]);
    assert_eq!(cluster.ok(&["services", "-o", "json"]).trim(), "[]");
    cluster.until_no_traces();
    cluster.down();
}

#[test]
fn logs_follow_replacements_and_outlive_containers() {
    let cluster = Cluster::start();
    cluster.apply(
        "name: talk\nservices:\n  t:\n    image: roster-hello\n    network_mode: none\n    init: true\n    \
         command: ['sh', '-c', 'echo begun; echo trouble >&2; exec sleep inf']\n    stop_grace_period: 1s\n    \
         deploy: {replicas: 2, restart_policy: {delay: 0s}}\n",
    );
    let lines = wait::until("both replicas' lines", || {
        let text = cluster.ok(&["logs", "t"]);
        if text.matches("begun").count() == 2 { Ok(text) } else { Err(text) }
    });
    assert!(lines.contains("t.1") && lines.contains("t.2"), "{lines}");

    let out = cluster.path("followed");
    let file = std::fs::File::create(&out).expect("the folder is ours");
    let mut follow = cluster
        .rctl_command(&["logs", "-f", "--tail", "2", "t"])
        .stdout(file)
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("rctl starts");
    let followed = || std::fs::read_to_string(&out).unwrap_or_default();
    wait::until("the follower's first lines", || if followed().contains("begun") { Ok(()) } else { Err(followed()) });

    let victim = cluster.until_running(2).remove(0);
    let seen = followed().matches("begun").count();
    roster_tests::cluster::signal(pid(&victim), nix::sys::signal::Signal::SIGKILL);
    wait::until("the replacement's line in the same follow", || {
        let text = followed();
        if text.matches("begun").count() > seen { Ok(()) } else { Err(text) }
    });
    follow.kill().and_then(|()| follow.wait()).expect("the follower ends");

    // The task that was killed is gone, its log is not.
    let id = victim["id"].as_str().expect("an id");
    assert_eq!(cluster.ok(&["logs", id]).trim(), "begun");
    cluster.down();
}

#[test]
fn every_listing_speaks_every_format() {
    let cluster = Cluster::start();
    cluster
        .apply("name: a\nservices:\n  s: {image: roster-hello, network_mode: none, init: true, command: sleep inf}\n");
    let listings: [&[&str]; 6] =
        [&["ps"], &["services"], &["node", "ls"], &["image", "ls"], &["inspect", "s"], &["inspect", "s.1"]];
    for listing in listings {
        for format in ["table", "wide", "yaml", "json"] {
            let text = cluster.ok(&[listing, &["-o", format]].concat());
            assert!(text.lines().count() >= 2, "{listing:?} -o {format}: {text}");
            assert!(!text.contains('\u{1b}'), "no colours in a pipe: {text}");
            if format == "json" {
                serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|e| panic!("{listing:?}: {e}: {text}"));
            }
        }
    }
    let events = cluster.ok(&["events", "-o", "json"]);
    assert!(events.lines().count() > 2, "{events}");
    for line in events.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    let inspect = cluster.ok(&["inspect", "vm1"]);
    assert!(inspect.contains("Cpus:"), "{inspect}");
    cluster.down();
}

#[test]
fn names_that_are_nothing_are_told() {
    let cluster = Cluster::start();
    cluster.apply(
        "name: a\nservices:\n  serve: {image: roster-hello, network_mode: none, init: true, command: sleep inf}\n",
    );
    for arguments in [
        &["inspect", "nothing"][..],
        &["logs", "nothing"],
        &["logs", "serve.9"],
        &["scale", "nothing=2"],
        &["rm", "nothing"],
        &["ps", "nothing"],
        &["image", "rm", "nothing"],
    ] {
        let output = cluster.rctl(arguments);
        assert_eq!(output.code, 1, "{arguments:?}: {output:?}");
        assert!(output.stderr.starts_with("error: "), "{arguments:?}: {output:?}");
        assert!(
            output.stderr.contains(arguments.last().expect("a name").split('=').next().expect("a part")),
            "{output:?}"
        );
    }
    assert!(cluster.until_running(1).iter().all(is_running), "and nothing was lost");
    cluster.down();
}

#[test]
fn global_mode_and_host_network() {
    let cluster = Cluster::start();
    cluster.apply(
        "name: g\nservices:\n  every: {image: roster-hello, network_mode: host, init: true, command: sleep inf, \
         stop_grace_period: 1s, deploy: {mode: global}}\n",
    );
    let task = cluster.until_running(1).remove(0);
    assert_eq!(task["name"], "every.vm1");
    let inside = std::fs::read_link(format!("/proc/{}/ns/net", pid(&task))).expect("it runs");
    let agent = cluster.agent_pid().expect("the agent runs");
    assert_eq!(inside, std::fs::read_link(format!("/proc/{agent}/ns/net")).expect("it runs"));
    let refused = cluster.rctl(&["scale", "every=2"]);
    assert!(refused.code == 1 && refused.stderr.contains("global"), "{refused:?}");
    cluster.down();
}

#[test]
fn a_port_that_the_host_uses_is_not_taken_from_it() {
    let cluster = Cluster::start();
    // Where this cluster's controller serves its metrics.
    let spec = cluster.spec("name: p\nservices:\n  s: {image: roster-hello, init: true, ports: ['9640:8080']}\n");
    cluster.ok(&["apply", "--detach", &spec.to_string_lossy()]);
    let cause = "a process of this host listens on it: stop that one, or publish another port";
    wait::until("the cause to be told", || {
        let tasks = cluster.all_tasks();
        let told = tasks.iter().any(|task| task["cause"].to_string().contains(cause));
        if told { Ok(()) } else { Err(tasks) }
    });
    let metrics = cluster.netns.get("http://127.0.0.1:9640/metrics").expect("the host's own service still answers");
    assert!(metrics.contains("# HELP roster_"), "{metrics}");
    cluster.down();
}

#[test]
fn an_image_that_a_service_names_stays() {
    let cluster = Cluster::start();
    let spec = "name: i\nservices:\n  s: {image: roster-hello, network_mode: none, init: true, command: sleep inf, \
                stop_grace_period: 1s}\n";
    cluster.apply(spec);
    // The same image under a second name: that one may go, the one in the spec may not.
    let archive = cluster.path("again.tar");
    let build = std::process::Command::new(roster_tests::cluster::repository().join("deploy/hello/build"))
        .args([archive.as_os_str(), "other:1".as_ref()])
        .status()
        .expect("a shell");
    assert!(build.success());
    cluster.ok(&["image", "load", &archive.to_string_lossy()]);
    let refused = cluster.rctl(&["image", "rm", "roster-hello:latest"]);
    assert!(refused.code == 1 && refused.stderr.contains("is used by a container"), "{refused:?}");
    assert_eq!(cluster.ok(&["image", "rm", "other:1"]).trim(), "removed other:1 from vm1");
    cluster.ok(&["rm", "i"]);
    cluster.ok(&["image", "rm", "roster-hello"]);
    assert_eq!(cluster.ok(&["image", "ls", "-o", "json"]).trim(), "[]");
    cluster.down();
}
