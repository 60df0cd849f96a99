//! A lab whose hosts are virtual machines: a kernel of their own with cgroup v2, and a disk that forgets what was not
//! synced. Where qemu or the kernel cannot be had, a line says that this was not tried.

use std::io::Write;

use roster_tests::{
    drive::{Drive, is_running},
    lab::{self, trial::Trial},
    wait,
};

const WEB: &str = "name: web\nservices:\n  s:\n    image: roster-hello\n    ports: ['8080:8080']\n    \
                   stop_grace_period: 1s\n    deploy: {replicas: 3, restart_policy: {delay: 0s}}\n";

fn inside(trial: &Trial, host: &str, script: &str) -> String {
    let mut command = trial.done(trial.host(host).command("sh"));
    trial.done(lab::run(command.args(["-c", script])))
}

#[test]
fn three_machines_are_a_cluster_and_outlive_a_power_cut() {
    let trial = match Trial::machines(3, 1) {
        Ok(trial) => trial,
        Err(why) => {
            // Past the test harness, which shows what is printed only when a test fails.
            let told = writeln!(std::io::stderr(), "SKIPPED: labs of virtual machines are not tried: {why}");
            return told.expect("standard error is open");
        }
    };
    assert_eq!(inside(&trial, "h1", "cat /proc/self/cgroup"), "0::/\n", "cgroup v2 alone");
    assert_eq!(inside(&trial, "h2", "hostname").trim(), "h2");
    trial.apply(WEB);
    let running = trial.running();
    let hosts: Vec<&String> = running.values().flatten().collect();
    assert!(
        hosts.len() == 3 && ["h1", "h2", "h3"].iter().all(|name| hosts.iter().any(|host| host == name)),
        "{running:?}"
    );
    let operator = trial.done(trial.lab.operator());
    for host in &trial.lab.hosts {
        let url = format!("http://{}:8080/", host.address);
        wait::until(&format!("{url} to answer"), || operator.get(&url));
    }

    trial.kill("h3");
    assert!(!trial.done(trial.host("h3").is_on()));
    wait::until("three tasks on the machines that are left", || {
        let tasks = trial.tasks();
        let right = |task: &serde_json::Value| is_running(task) && task["node"] != "h3";
        if tasks.len() == 3 && tasks.iter().all(right) { Ok(()) } else { Err(tasks) }
    });
    trial.start("h3");
    trial.until_nodes("Ready", &["h1", "h2", "h3"]);
    assert_eq!(trial.done(trial.host("h3").running()).len(), 0, "it stopped what it must no longer run");
    trial.done(trial.lab.stop(trial.host("h3")));
    assert!(!trial.done(trial.host("h3").is_on()));
    trial.down();
}
