use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use roster_tests::{
    cluster::Cluster,
    drive::{Drive, pid},
    wait,
};

use super::shell;

fn pids(cluster: &Cluster, count: usize) -> BTreeMap<String, u32> {
    let tasks = cluster.until_running(count);
    tasks.iter().map(|task| (task["name"].as_str().expect("a name").to_owned(), pid(task))).collect()
}

#[test]
fn a_service_restarts_one_by_one_and_a_replica_alone() {
    let cluster = Cluster::start();
    let spec = shell("s", "init: true\n    deploy: {replicas: 4, update_config: {parallelism: 1}}", "exec sleep inf");
    cluster.apply(&spec);
    let before = pids(&cluster, 4);

    // What runs is looked at all the while, in the kernel and not in what is said of it.
    let done = AtomicBool::new(false);
    let fewest = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut fewest = usize::MAX;
            while !done.load(Ordering::Relaxed) {
                let cgroup = leaf_groups(&cluster.name);
                fewest = fewest.min(cgroup);
            }
            fewest
        });
        let restarted = cluster.ok(&["restart", "s"]);
        done.store(true, Ordering::Relaxed);
        assert!(restarted.contains("Done in "), "{restarted}");
        watcher.join().expect("it only looks")
    });
    assert!(fewest >= 3, "only {fewest} of 4 ran at a time, though parallelism is 1");
    let after = pids(&cluster, 4);
    assert!(before.iter().all(|(name, pid)| after[name] != *pid), "{before:?} {after:?}");
    let reasons = cluster.ok(&["ps", "-a", "s"]);
    assert_eq!(reasons.matches("it was to be restarted").count(), 4, "{reasons}");
    // The spec is the same: an apply has nothing to do.
    let plan = cluster.rctl(&["plan", &cluster.spec(&spec).to_string_lossy()]);
    assert_eq!(plan.code, 0, "{plan:?}");

    cluster.ok(&["restart", "s.2"]);
    let alone = pids(&cluster, 4);
    let changed: Vec<&String> =
        alone.iter().filter(|(name, pid)| after[*name] != **pid).map(|(name, _)| name).collect();
    assert_eq!(changed, ["s.2"]);

    // By the id of a task, without waiting.
    let id = cluster.until_running(4)[0]["id"].as_str().expect("an id").to_owned();
    let told = cluster.ok(&["restart", "--detach", &id]);
    assert!(told.contains("Accepted as version"), "{told}");
    wait::until("the task to be replaced", || {
        let tasks = cluster.tasks();
        if tasks.iter().any(|task| task["id"] == *id) { Err(tasks) } else { Ok(()) }
    });
    let refused = cluster.rctl(&["restart", &id]);
    assert!(refused.code == 1 && refused.stderr.contains("name the replica, s.1"), "{refused:?}");
    cluster.down();
}

#[test]
fn what_has_ended_begins_anew() {
    let cluster = Cluster::start();
    cluster.apply(&shell("job", "restart: on-failure", "echo done"));
    let first = cluster.tasks().remove(0);
    assert_eq!(first["state"], "Complete", "{first:#}");
    let said = cluster.ok(&["restart", "job.1"]);
    assert!(said.contains("Done in "), "{said}");
    let second = cluster.tasks().remove(0);
    assert!(second["state"] == "Complete" && second["id"] != first["id"], "{second:#}");
    cluster.ok(&["restart", "job"]);
    let third = cluster.tasks().remove(0);
    assert!(third["state"] == "Complete" && third["id"] != second["id"], "{third:#}");
    cluster.down();
}

/// Containers of the cluster with a process in them.
fn leaf_groups(name: &str) -> usize {
    let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(|root| std::path::Path::new(root).join(name));
    let groups = roots.iter().find_map(|root| std::fs::read_dir(root).ok()).into_iter().flatten().flatten();
    let runs = |group: &std::fs::DirEntry| {
        std::fs::read_to_string(group.path().join("cgroup.procs")).is_ok_and(|processes| !processes.is_empty())
    };
    groups.filter(runs).count()
}
