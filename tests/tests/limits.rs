//! Limits bite, and what they did is told.

use std::{os::unix::fs::MetadataExt, time::Instant};

use roster_tests::{
    cluster::Cluster,
    drive::{Drive, pid},
    wait,
};
use serde_json::Value;

/// One service of the example image without network.
fn service(command: &str, extra: &str) -> String {
    format!(
        "name: limits\nservices:\n  s:\n    image: roster-hello\n    network_mode: none\n    stop_grace_period: 1s\n    \
         command: ['sh', '-c', '{command}']\n    {extra}\n"
    )
}

fn apply_detached(cluster: &Cluster, spec: &str) {
    cluster.ok(&["apply", "--detach", &cluster.spec(spec).to_string_lossy()]);
}

#[test]
fn a_memory_hog_is_killed_and_says_so() {
    let cluster = Cluster::start();
    apply_detached(
        &cluster,
        &service("tail /dev/zero", "deploy: {resources: {limits: {memory: 32M}}, restart_policy: {condition: none}}"),
    );
    let task = wait::until("the hog's end", || {
        let tasks = cluster.tasks();
        tasks.iter().find(|task| task["state"] == "Failed").cloned().ok_or(tasks)
    });
    assert_eq!(task["cause"]["kind"], "oom_killed", "{task:#}");
    assert_eq!(task["cause"]["message"], "killed by the kernel: out of memory (limit 32 MiB)");
    assert!(cluster.ok(&["ps"]).contains("out of memory (limit 32 MiB)"));
    cluster.down();
}

#[test]
fn a_cpu_limit_is_kept() {
    let cluster = Cluster::start();
    cluster.apply(&service("while :; do :; done", "init: true\n    deploy: {resources: {limits: {cpus: 0.2}}}"));
    let busy = cluster.until_running(1).remove(0);
    // The processor time of the whole container, from its processes: the loop's shell is the only one that works.
    let ticks = || -> u64 {
        let children = format!("/proc/{0}/task/{0}/children", pid(&busy));
        let child = std::fs::read_to_string(children).expect("init has a child");
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).expect("the loop runs");
        let fields: Vec<&str> = stat.rsplit_once(')').expect("a stat line").1.split_whitespace().collect();
        // proc_pid_stat(5): utime and stime are fields 14 and 15, counted from the pid.
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    };
    let per_second = 100.0; // USER_HZ of x86-64 and arm64.
    let (began, first) = (Instant::now(), ticks());
    let used = wait::until("half a second of processor time", || {
        let used = (ticks() - first) as f64 / per_second;
        if used >= 0.5 { Ok(used) } else { Err(used) }
    });
    let share = used / began.elapsed().as_secs_f64();
    assert!(share < 0.3, "limited to 0.2 cores but used {share:.2}");
    cluster.down();
}

#[test]
fn a_fork_bomb_is_stopped_by_the_pids_limit() {
    let cluster = Cluster::start();
    apply_detached(
        &cluster,
        &service(
            "while :; do sleep 1000 & done 2>/dev/null; sleep 1000",
            "deploy: {resources: {limits: {pids: 20}}, restart_policy: {condition: none}}",
        ),
    );
    // The shell cannot fork any more: it either waits or gives up. At no moment are there more than 20 processes.
    let most = wait::until("the bomb to meet its limit", || {
        let count = processes_in_cgroups(&cluster.name);
        assert!(count <= 20, "{count} processes despite a limit of 20");
        let ended = cluster.tasks().iter().all(|task| task["state"] == "Failed");
        if count >= 19 || ended { Ok(count) } else { Err(count) }
    });
    assert!(most <= 20);
    cluster.ok(&["rm", "limits"]);
    cluster.down();
}

fn processes_in_cgroups(parent: &str) -> usize {
    let mut pids = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/proc").expect("proc is mounted").flatten() {
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let shim = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default().starts_with("roster-shim");
        if !shim && groups.lines().any(|line| line.contains("pids") && line.contains(&format!("/{parent}/"))) {
            pids.insert(entry.file_name());
        }
    }
    pids.len()
}

#[test]
fn what_cannot_be_is_told_as_data_and_in_words() {
    let cluster = Cluster::start();
    let none = "restart_policy: {condition: none}";
    let cases = [
        ("image", format!("image: 127.0.0.1:9/no-such-image\n    deploy: {{{none}}}"), "image_unavailable"),
        ("program", format!("image: roster-hello\n    command: [/no/such/program]\n    deploy: {{{none}}}"), "not_run"),
        ("user", format!("image: roster-hello\n    user: nobody-here\n    deploy: {{{none}}}"), "impossible"),
        (
            "source",
            format!(
                "image: roster-hello\n    volumes: [{{type: bind, source: /no/such/folder, target: /x}}]\n    deploy: {{{none}}}"
            ),
            "impossible",
        ),
        (
            "code",
            format!("image: roster-hello\n    command: [sh, -c, 'echo last words; exit 7']\n    deploy: {{{none}}}"),
            "exited",
        ),
        (
            "signal",
            format!(
                "image: roster-hello\n    init: true\n    command: [sh, -c, 'kill -SEGV $$$$']\n    deploy: {{{none}}}"
            ),
            "signaled",
        ),
        ("place", "image: roster-hello\n    deploy: {resources: {reservations: {memory: 900G}}}".to_owned(), "no_node"),
    ];
    let mut spec = "name: wrong\nservices:\n".to_owned();
    for (name, body, _) in &cases {
        spec += &format!("  {name}:\n    network_mode: none\n    {body}\n");
    }
    apply_detached(&cluster, &spec);
    for (name, _, kind) in &cases {
        wait::until(&format!("{name} to be told as {kind}"), || {
            let task = cluster.tasks().into_iter().find(|task| task["service"] == *name);
            // An image is asked for several times before it is given up.
            let rests = |task: &Value| *kind == "no_node" || task["state"] == "Failed" || task["state"] == "Rejected";
            let told = task.as_ref().is_some_and(|task| rests(task) && is_kind(&task["cause"], kind));
            if told { Ok(()) } else { Err(task) }
        });
    }
    let text = cluster.ok(&["ps"]);
    insta::assert_snapshot!("what_cannot_be", tidy(&text));
    cluster.down();
}

/// The cause itself or the one that a giving-up or a backoff wraps.
fn is_kind(cause: &Value, kind: &str) -> bool {
    cause["kind"] == kind || cause["last"]["kind"] == kind
}

/// Only what is the same in each run: task, state and reason.
fn tidy(table: &str) -> String {
    let mut out = String::new();
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let reason = words[7..].join(" ");
        let reason = match reason.split_once("vm1 has ") {
            Some((before, after)) => {
                format!("{before}vm1 has … {}", after.split_once(" memory ").map_or("", |part| part.1))
            }
            None => reason,
        };
        out += &format!("{} {}: {reason}\n", words[1], words[4]);
    }
    out
}

#[test]
fn a_container_that_fills_its_disk_is_alone_with_that() {
    let cluster = Cluster::start();
    cluster.apply(
        "name: limits\nservices:\n  \
           greedy: {image: roster-hello, network_mode: none, stop_grace_period: 1s, storage_opt: {size: 32M}, \
             command: ['sh', '-c', 'dd if=/dev/zero of=/big bs=1M count=100 2>&1; echo ended with $$?; exec sleep 1000']}\n  \
           other: {image: roster-hello, network_mode: none, init: true, command: [sleep, '1000']}\n",
    );
    let said = wait::until("the disk to be full", || {
        let said = cluster.ok(&["logs", "greedy"]);
        if said.contains("ended with") { Ok(said) } else { Err(said) }
    });
    assert!(said.contains("No space left on device") && said.contains("ended with 1"), "{said}");
    let stats = cluster.json(&["stats", "--no-stream", "-o", "json"]);
    let of = |name: &str| stats.iter().find(|one| one["name"] == name).expect("listed");
    let (used, limit) = (of("greedy.1")["files_size"].as_u64(), of("greedy.1")["files_limit"].as_u64());
    assert!(limit.is_some_and(|limit| limit <= 32 << 20 && limit > 28 << 20), "{stats:#?}");
    assert!(used > limit.map(|limit| limit / 10 * 9), "{stats:#?}");
    assert!(of("other.1")["files_limit"].is_null(), "{stats:#?}");
    // The host's disk has lost no more, whatever the files say of themselves.
    let files = std::fs::read_dir(cluster.path("agent/disks")).expect("a folder").flatten();
    let taken: u64 = files.map(|file| file.metadata().expect("a file").blocks() * 512).sum();
    assert!(taken <= 33 << 20, "{taken} bytes are taken of the host's disk");
    cluster.ok(&["exec", "other", "--", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=40"]);
    assert!(cluster.ok(&["diff", "greedy"]).contains("/big"));
    assert!(cluster.ok(&["inspect", "greedy"]).contains("32 MiB disk"));
    cluster.ok(&["rm", "limits"]);
    cluster.until_no_traces();
    cluster.down();
}

#[test]
fn a_container_that_prints_without_end_fills_neither_disk_nor_patience() {
    const PRINTED: u64 = 300 << 20;
    let cluster = Cluster::start();
    let line = "x".repeat(1023);
    cluster.apply(&format!(
        "name: limits\nservices:\n  \
           quiet: {{image: roster-hello, network_mode: none, init: true, \
             command: ['sh', '-c', 'while :; do echo tick; sleep 0.1; done']}}\n  \
           loud: {{image: roster-hello, network_mode: none, init: true, \
             command: ['sh', '-c', 'yes {line} | head -c {PRINTED}; echo; echo all is said; exec sleep 1000']}}\n"
    ));
    let ticks = || cluster.ok(&["logs", "quiet"]).lines().count();
    let before = ticks();
    let logs = |name: &str| {
        let id = cluster.tasks().into_iter().find(|task| task["name"] == name).expect("listed")["id"].clone();
        let folder = cluster.path("agent/logs").join(id.as_str().expect("an id"));
        // A file may be renamed meanwhile.
        let sizes = std::fs::read_dir(folder).expect("its logs").flatten().filter_map(|file| file.metadata().ok());
        sizes.map(|file| file.len()).sum::<u64>()
    };
    // roster_agent::runtime::linux::logs: three files of ten megabytes.
    let most = 31 << 20;
    wait::until("the loud one to come to its end", || {
        let size = logs("loud.1");
        assert!(size <= most, "{size} bytes of log");
        let said = cluster.ok(&["logs", "--tail", "1", "loud"]);
        if said.contains("all is said") { Ok(()) } else { Err(size) }
    });
    assert!(logs("loud.1") > 20 << 20, "nothing was thrown away: the test printed too little");
    wait::until("the other's log to go on", || {
        let now = ticks();
        if now > before + 2 { Ok(()) } else { Err((before, now)) }
    });
    assert!(cluster.tasks().iter().all(|task| task["state"] == "Running" && task["restarts"] == 0));
    cluster.down();
}
