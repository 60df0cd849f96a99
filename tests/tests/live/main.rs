//! What people do in running containers, by `rctl` as they do it.

mod attach;
mod copy;
mod exec;
mod far;
mod run;
mod terminal;

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
};

use roster_tests::{cluster::Cluster, drive::Drive, wait};

/// Sleepers with an init, so that whatever else runs in the container was put there.
fn sleepers(replicas: usize) -> String {
    format!(
        "name: live\nservices:\n  web:\n    image: roster-hello\n    init: true\n    command: sleep inf\n    \
         network_mode: none\n    stop_grace_period: 1s\n    environment: {{KEPT: yes, CHANGED: before}}\n    \
         deploy: {{replicas: {replicas}}}\n"
    )
}

fn started(replicas: usize) -> Cluster {
    let cluster = Cluster::start();
    cluster.apply(&sleepers(replicas));
    cluster.until_running(replicas);
    cluster
}

/// The command lines of the processes in the cluster's containers.
fn inside(cgroup_parent: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").expect("proc is mounted").flatten() {
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if groups.contains(&format!("/{cgroup_parent}/")) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.insert(String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned());
        }
    }
    found
}

#[track_caller]
fn until_inside(cluster: &Cluster, what: &str, is_so: impl Fn(&BTreeSet<String>) -> bool) {
    wait::until(what, || {
        let found = inside(&cluster.name);
        if is_so(&found) { Ok(()) } else { Err(found) }
    });
}

/// Ended when the test is, whatever became of it.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("rctl starts"))
    }

    /// With its output thrown away.
    fn quiet(mut command: Command) -> Self {
        Self::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
    }

    #[track_caller]
    fn code(&mut self) -> Option<i32> {
        let ended = wait::until("rctl to end", || self.0.try_wait().expect("our child").ok_or("it runs"));
        ended.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is not killed again.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
