//! `top` and `stats`.

use roster_tests::{
    cluster::Cluster,
    drive::{Drive, pid},
    wait,
};
use serde_json::Value;

use super::{shell, until_logged};

#[test]
fn top_shows_a_container_from_within() {
    let cluster = Cluster::start();
    // An argument with an escape code, a newline and a byte that is no UTF-8; a user of the image; a host's view differs.
    let script = "sleep 1000 & exec sh -c 'read x < /dev/zero' \"$(printf 'a\\033[2Jb\\nc\\377')\"";
    cluster.apply(&shell("t", "user: www\n    deploy: {replicas: 2}", script));
    let running = cluster.until_running(2);
    let processes = wait::until("two processes each", || {
        let found = cluster.json(&["top", "-o", "json", "t"]);
        let odd = |process: &Value| process["command"].as_str().is_some_and(|command| command.contains("/dev/zero"));
        if found.len() == 4 && found.iter().filter(|one| odd(one)).count() == 2 { Ok(found) } else { Err(found) }
    });
    let first: Vec<&Value> = processes.iter().filter(|process| process["name"] == "t.1").collect();
    assert_eq!((&first[0]["pid"], &first[0]["parent"]), (&1.into(), &0.into()), "{processes:#?}");
    assert_eq!(first[1]["parent"], 1, "{processes:#?}");
    assert_eq!((&first[1]["user"], &first[1]["uid"]), (&"www".into(), &33.into()), "{processes:#?}");
    assert_eq!(first[1]["command"], "sleep 1000", "{processes:#?}");
    let odd = first[0]["command"].as_str().expect("text");
    assert!(odd.ends_with("a\\u{1b}[2Jb\\nc\\xff"), "{odd}");
    // It spins: the kernel's count and ours agree.
    let busy = wait::until("time of processors", || {
        let found = cluster.json(&["top", "-o", "json", "t.1"]);
        let busy = found.iter().find(|one| one["pid"] == 1).cloned().unwrap_or_default();
        if busy["cpu_seconds"].as_f64().is_some_and(|cpu| cpu > 0.2) { Ok(busy) } else { Err(found) }
    });
    let host = pid(running.iter().find(|task| task["name"] == "t.1").expect("the slot"));
    let counted = ticks(host) as f64 / 100.0;
    let told = busy["cpu_seconds"].as_f64().expect("a number");
    assert!(told <= counted, "{told} s were told before {counted} s were counted");

    let table = cluster.ok(&["top", "t.2"]);
    assert!(table.starts_with("USER") && table.contains("www") && !table.contains('\u{1b}'), "{table}");
    assert_eq!(table.lines().count(), 3, "a header and two processes: {table}");
    for (arguments, words) in
        [(&["top", "nothing"][..], "there is no service \"nothing\""), (&["top", "t.9"], "t.9"), (&["top"], "TARGET")]
    {
        let refused = cluster.rctl(arguments);
        assert!(refused.code != 0 && refused.stderr.contains(words), "{arguments:?}: {refused:?}");
    }
    cluster.down();
}

/// Of its own, by proc_pid_stat(5); the kernel counts a hundred in a second.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<u64> =
        stat.rsplit(')').next().expect("a part").split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
    fields.iter().sum()
}

#[test]
fn a_great_many_processes_are_shown_in_part() {
    let cluster = Cluster::start();
    let script = "i=0; while [ $i -lt 2100 ]; do sleep 1000 & i=$((i+1)); done; echo all; exec sleep inf";
    cluster.apply(&shell("many", "", script));
    until_logged(&cluster, "many", "all");
    let shown = cluster.rctl(&["top", "-o", "json", "many"]);
    let processes: Vec<Value> = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!((processes.len(), shown.code), (2000, 1), "{}", shown.stderr);
    assert!(shown.stderr.contains("more processes are not shown"), "{}", shown.stderr);
    cluster.down();
}

#[test]
fn stats_are_what_the_kernel_counts() {
    let cluster = Cluster::start();
    cluster.apply(
        "name: c\nservices:\n  \
           busy: {image: roster-hello, network_mode: none, stop_grace_period: 1s, \
             command: ['sh', '-c', 'while true; do :; done'], deploy: {resources: {limits: {memory: 64M, pids: 50}}}}\n  \
           idle: {image: roster-hello, init: true, ports: ['8080:8080'], stop_grace_period: 1s, \
             command: ['sh', '-c', 'dd if=/dev/zero of=/tmp/big bs=1M count=16 2>/dev/null; exec serve']}\n",
    );
    let running = cluster.until_running(2);
    for _ in 0..20 {
        wait::until("an answer", || cluster.netns.get("http://127.0.0.1:8080/").map(drop));
    }
    let of = |stats: &[Value], name: &str| {
        stats.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{stats:#?}")).clone()
    };
    // Other tests share the processors, so the loop gets what is left: as much as the kernel says.
    let looping = pid(running.iter().find(|task| task["name"] == "busy.1").expect("the slot"));
    let busy = wait::until("a rate like the kernel's", || {
        let (began, before) = (std::time::Instant::now(), ticks(looping));
        let stats = cluster.json(&["stats", "--no-stream", "-o", "json"]);
        let counted = (ticks(looping) - before) as f64 / began.elapsed().as_secs_f64();
        assert!(of(&stats, "idle.1")["cpu_percent"].as_f64().expect("a rate") < 10.0, "{stats:#?}");
        let busy = of(&stats, "busy.1");
        let told = busy["cpu_percent"].as_f64().expect("a rate");
        assert!(told < 110.0, "one loop has one processor at most: {busy:#}");
        if told > 20.0 && (told - counted).abs() < 20.0 { Ok(busy) } else { Err((counted, busy)) }
    });
    assert_eq!((&busy["memory_limit"], &busy["pids_limit"]), (&(64 << 20).into(), &50.into()), "{busy:#}");
    assert_eq!(busy["pids"], 1, "{busy:#}");
    assert_eq!((&busy["network_received"], &busy["network_sent"]), (&0.into(), &0.into()), "{busy:#}");

    let idle = of(&cluster.json(&["stats", "--no-stream", "-o", "json", "idle"]), "idle.1");
    let traffic = std::fs::read_to_string(format!(
        "/proc/{}/net/dev",
        pid(running.iter().find(|task| task["name"] == "idle.1").expect("the slot"))
    ));
    let traffic = traffic.expect("it runs");
    let line = traffic.lines().find(|line| !line.contains("lo:") && line.contains(':')).expect("an interface");
    let received: u64 =
        line.split(':').nth(1).expect("counters").split_whitespace().next().expect("one").parse().expect("a number");
    let told = idle["network_received"].as_u64().expect("a count");
    assert!(told > 1000 && told <= received, "{told} of {received}: {idle:#}");
    assert!(idle["memory"].as_u64().is_some_and(|used| used > 50_000 && used < 64 << 20), "{idle:#}");
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(idle["pressure"].is_object(), v2 && std::path::Path::new("/proc/pressure/cpu").exists(), "{idle:#}");

    let table = cluster.ok(&["stats", "--no-stream"]);
    assert!(table.lines().count() == 3 && table.contains("busy.1") && table.contains("64 MiB"), "{table}");
    assert!(cluster.rctl(&["stats", "nothing"]).stderr.contains("there is no service"));

    // As long as it is looked at, again each second; Ctrl-C ends it.
    let out = cluster.path("stats");
    let file = std::fs::File::create(&out).expect("the folder is ours");
    let mut stream = cluster.rctl_command(&["stats", "busy"]).stdout(file).spawn().expect("rctl starts");
    wait::until("three looks", || {
        let text = std::fs::read_to_string(&out).unwrap_or_default();
        if text.matches("busy.1").count() >= 3 { Ok(()) } else { Err(text) }
    });
    roster_tests::cluster::signal(stream.id(), nix::sys::signal::Signal::SIGINT);
    assert_eq!(stream.wait().expect("it ends").code(), Some(130));
    cluster.down();
}
