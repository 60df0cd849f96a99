//! What the controller said yes to is there after any `kill -9`, and a store that lost some of it is not served.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use roster_tests::{
    cluster::{Cluster, bin},
    drive::Drive,
    wait,
};
use serde_json::Value;

const WRITERS: usize = 3;
const KILLS: usize = 8;
/// Between two kills at most; where in between is random.
const CHANGES: usize = 12;

/// What one writer asked for, by number, and what of it was acknowledged.
#[derive(Debug)]
struct Written {
    asked: usize,
    acknowledged: BTreeSet<usize>,
}

#[test]
fn every_acknowledged_change_survives_kill_nine() {
    let mut cluster = Cluster::empty();
    cluster.start_controller();
    let (endpoint, folder) = (cluster.endpoint(), cluster.path(""));
    let (acknowledged, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let written: Vec<Written> = thread::scope(|scope| {
        let _over = SetOnDrop(&over);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (endpoint, folder, acknowledged, over) = (&endpoint, &folder, &acknowledged, &over);
                scope.spawn(move || write(writer, endpoint, folder, acknowledged, over))
            })
            .collect();
        for _ in 0..KILLS {
            // The hash of the moment: neither the number nor the instant of the kill repeats.
            let some = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) as usize % CHANGES + 1;
            let until = acknowledged.load(Ordering::SeqCst) + some;
            wait::until("changes to be acknowledged", || {
                let seen = acknowledged.load(Ordering::SeqCst);
                if seen >= until { Ok(()) } else { Err(format!("{seen} of {until}")) }
            });
            cluster.kill_controller();
            cluster.start_controller();
        }
        over.store(true, Ordering::SeqCst);
        writers.into_iter().map(|writer| writer.join().expect("a writer ends")).collect()
    });
    cluster.kill_controller();
    cluster.start_controller();

    let services: Vec<Value> = serde_json::from_str(&cluster.ok(&["services", "-o", "json"])).expect("JSON");
    for (writer, Written { asked, acknowledged }) in written.iter().enumerate() {
        let prefix = format!("w{writer}/s");
        let names = services.iter().filter_map(|service| service["name"].as_str()?.strip_prefix(&prefix)?.parse().ok());
        let found: BTreeSet<usize> = names.collect();
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        assert!(lost.is_empty(), "writer {writer} was told yes to {lost:?}, which are not there");
        assert!(found.iter().all(|number| number < asked), "writer {writer} never asked for all of {found:?}");
        assert!(!acknowledged.is_empty(), "writer {writer} had nothing to lose");
    }
    a_cut_log_is_refused(cluster);
}

/// Ends the writers also when the test fails, for the scope waits for them.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Adds one service after the other to its own stack, going on past a controller that is away.
fn write(writer: usize, endpoint: &str, folder: &Path, count: &AtomicUsize, over: &AtomicBool) -> Written {
    let spec = folder.join(format!("w{writer}.yaml"));
    let mut written = Written { asked: 0, acknowledged: BTreeSet::new() };
    while !over.load(Ordering::SeqCst) {
        let number = written.asked;
        let text = format!("name: w{writer}\nservices: {{s{number}: {{image: none, deploy: {{replicas: 0}}}}}}\n");
        fs::write(&spec, text).expect("the folder is ours");
        written.asked += 1;
        let mut rctl = Command::new(bin("rctl"));
        rctl.args(["apply", "--detach"]).arg(&spec).env("ROSTER_ENDPOINT", endpoint);
        let status = rctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if status.expect("rctl can be started").success() {
            written.acknowledged.insert(number);
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
    written
}

fn a_cut_log_is_refused(mut cluster: Cluster) {
    cluster.stop_controller();
    let db = cluster.path("controller").join("log/db");
    // All of it: where the file is longer than what was written, half of it may be whole.
    fs::File::options().write(true).open(&db).expect("the log").set_len(0).expect("cut");
    let refused = Command::new("timeout")
        .arg("20")
        .arg(bin("roster-controller"))
        .arg(format!("--data-dir={}", cluster.path("controller").display()))
        .arg(format!("--socket={}", cluster.path("controller.sock").display()))
        .arg("--metrics=none")
        .output()
        .expect("it can be started");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for part in ["is damaged", "Restore the whole directory from a backup", "move it away"] {
        assert!(said.contains(part), "{part:?} is missing from: {said}");
    }
}
