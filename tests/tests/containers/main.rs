//! What people do with containers that run, driven by `rctl` on the real kernel.

mod commit;
mod files;
mod kill;
mod logs;
mod look;
mod pause;
mod restart;
mod sharing;

use roster_tests::{cluster::Cluster, drive::Drive};

/// A spec of one service without network, whose program is this shell script.
fn shell(name: &str, extra: &str, script: &str) -> String {
    let script = script.replace('\'', "''").replace('$', "$$");
    format!(
        "name: c\nservices:\n  {name}:\n    image: roster-hello\n    network_mode: none\n    stop_grace_period: 1s\n    \
         {extra}\n    command: ['sh', '-c', '{script}']\n"
    )
}

/// The program says something for the first time.
#[track_caller]
fn until_logged(cluster: &Cluster, target: &str, words: &str) -> String {
    roster_tests::wait::until(&format!("{words:?} in the log of {target}"), || {
        let text = cluster.rctl(&["logs", target]);
        if text.stdout.contains(words) { Ok(text.stdout) } else { Err(text) }
    })
}
