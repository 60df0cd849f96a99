use nix::sys::signal::Signal;
use roster_tests::{
    cluster::{Cluster, signal},
    drive::{Drive, pid},
    wait,
};
use serde_json::Value;

const SPEC: &str = "name: c
services:
  app:
    image: roster-hello
    network_mode: none
    stop_grace_period: 1s
    ipc: service:db
    pid: service:db
    command: ['sh', '-c', 'touch /dev/mqueue/of-app /dev/shm/of-app; exec sleep 2000']
    deploy: {replicas: REPLICAS}
  db:
    image: roster-hello
    network_mode: none
    stop_grace_period: 1s
    shm_size: 8m
    command: ['sh', '-c', 'touch /dev/mqueue/of-db /dev/shm/of-db; exec sleep 1000']
    deploy: {replicas: REPLICAS}
";

fn running(cluster: &Cluster, name: &str) -> Option<Value> {
    cluster.tasks().into_iter().find(|task| task["name"] == name && task["state"] == "Running")
}

#[test]
fn two_services_share_processes_and_queues_and_end_together() {
    let mut cluster = Cluster::start();
    cluster.apply(&SPEC.replace("REPLICAS", "2"));
    cluster.until_running(4);
    for k in ["1", "2"] {
        let (app, db) = (format!("app.{k}"), format!("db.{k}"));
        let seen = cluster.ok(&["exec", &app, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; ls /dev/mqueue"]);
        for what in ["sleep 1000", "sleep 2000", "of-app", "of-db"] {
            assert_eq!(seen.matches(what).count(), 1, "{app}: {what}: {seen}");
        }
        let back = cluster.ok(&["exec", &db, "ls", "/dev/mqueue", "/dev/shm"]);
        assert_eq!(back, "/dev/mqueue:\nof-app\nof-db\n\n/dev/shm:\nof-app\nof-db\n");
        let memory = cluster.ok(&["exec", &app, "grep", " /dev/shm ", "/proc/mounts"]);
        assert!(memory.contains("nosuid,nodev,noexec") && memory.contains("size=8192k"), "{memory}");
        assert!(cluster.ok(&["top", &db]).contains("sleep 1000"));
    }

    // Killed from outside, again and again: its failures are counted, those of the other are none.
    let alone = pid(&running(&cluster, "app.2").expect("runs"));
    for _ in 0..2 {
        let before = (pid(&running(&cluster, "db.1").expect("runs")), pid(&running(&cluster, "app.1").expect("runs")));
        signal(before.0, Signal::SIGKILL);
        wait::until("both to be replaced", || match (running(&cluster, "db.1"), running(&cluster, "app.1")) {
            (Some(db), Some(app)) if pid(&db) != before.0 && pid(&app) != before.1 => Ok(()),
            seen => Err(seen),
        });
        let seen = cluster.ok(&["exec", "app.1", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; ls /dev/mqueue"]);
        assert_eq!(seen, "sleep 1000 of-app\nof-db\n");
    }
    assert_eq!(running(&cluster, "app.1").expect("runs")["restarts"], 0);
    assert_eq!(running(&cluster, "db.1").expect("runs")["restarts"], 2);
    let told = cluster.ok(&["ps", "-a", "app"]);
    assert_eq!(told.matches("the container whose namespaces it shares ended").count(), 2, "{told}");
    assert_eq!(pid(&running(&cluster, "app.2").expect("runs")), alone);

    // While no agent looks.
    let before = pid(&running(&cluster, "app.2").expect("runs"));
    cluster.kill_agent();
    signal(pid(&running(&cluster, "db.2").expect("runs")), Signal::SIGKILL);
    cluster.start_agent();
    wait::until("app.2 to follow", || match running(&cluster, "app.2") {
        Some(app) if pid(&app) != before => Ok(()),
        seen => Err(seen),
    });
    assert_eq!(running(&cluster, "app.2").expect("runs")["restarts"], 0);

    // One more than there are to share with waits, and says for whom.
    cluster.ok(&["scale", "db=1", "--detach"]);
    wait::until("app.2 to wait", || {
        let tasks = cluster.tasks();
        let waits = |task: &Value| task["name"] == "app.2" && task.to_string().contains("waits for db.2 to run");
        if tasks.iter().any(waits) { Ok(()) } else { Err(tasks) }
    });
    cluster.ok(&["scale", "db=2"]);
    cluster.until_running(4);
    let refused = cluster.rctl(&["run", "app", "true"]);
    assert!(refused.code != 0 && refused.stderr.contains("share the namespaces of service db"), "{refused:?}");
    cluster.ok(&["restart", "db"]);
    cluster.until_running(4);
    cluster.down();
}
