//! What people do with nodes, by the real programs: whole outputs.

use roster_tests::{
    cluster::{Cluster, bin},
    drive::Drive,
    wait,
};

const SPEC: &str =
    "name: a\nservices:\n  s: {image: roster-hello, network_mode: none, init: true, command: sleep inf}\n";

/// What was said, command by command, without what differs from run to run.
struct Transcript<'a> {
    cluster: &'a Cluster,
    text: String,
}

impl Transcript<'_> {
    fn run(&mut self, words: &[&str]) {
        let answer = self.cluster.rctl(words);
        self.text += &format!("$ rctl {}\n", words.join(" "));
        for line in answer.stdout.lines().chain(answer.stderr.lines()) {
            self.text += &format!("{}\n", settled(line));
        }
        if answer.code != 0 {
            self.text += &format!("[exit code {}]\n", answer.code);
        }
        self.text.push('\n');
    }
}

/// Without ids, times, addresses and versions.
fn settled(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    if let ["vm1", state @ ("Ready" | "Down"), _for, availability, tasks, _age, _agent, _address, labels] = words[..] {
        return format!("vm1 {state} _ {availability} {tasks} _ _ _ {labels}");
    }
    if let Some((before, _took)) = line.split_once("drained, in ") {
        return format!("{before}drained, in _");
    }
    match (line.split_once(" ("), line.split_once(") on ")) {
        (Some((before, _)), Some((_, after))) => format!("{before} (_) on {after}"),
        _ => words.join(" "),
    }
}

#[test]
fn a_node_is_listed_labelled_paused_drained_and_removed() {
    let mut cluster = Cluster::start();
    cluster.apply(SPEC);
    let mut said = Transcript { cluster: &cluster, text: String::new() };
    said.run(&["node", "ls"]);
    said.run(&["node", "label", "vm1", "zone=a", "disk=ssd"]);
    said.run(&["node", "label", "vm1", "disk-"]);
    said.run(&["node", "label", "vm1", "disk-"]);
    said.run(&["node", "label", "vm1", "zone=a", "zone-"]);
    said.run(&["node", "label", "vm1", "a b=c"]);
    said.run(&["node", "drain", "vm1", "vm9"]);
    said.run(&["node", "inspect", "vm9"]);
    said.run(&["node", "rm", "vm1"]);
    said.run(&["node", "pause", "vm1"]);
    said.run(&["node", "ls"]);
    said.run(&["node", "drain", "vm1", "--timeout", "1s"]);
    said.run(&["node", "activate", "vm1"]);
    cluster.ok(&["rm", "a"]);
    said.run(&["node", "drain", "vm1"]);
    let Transcript { mut text, .. } = said;
    // The agent of a host that is in no cluster would come back at once.
    cluster.stop_agent();
    let mut said = Transcript { cluster: &cluster, text: String::new() };
    said.run(&["node", "rm", "vm1"]);
    said.run(&["node", "ls"]);
    text += &said.text;
    insta::assert_snapshot!("nodes", text);
    cluster.start_agent();
    cluster.down();
}

#[test]
fn a_service_waits_for_a_node_with_its_runtime() {
    let mut cluster = Cluster::start();
    let spec =
        "name: a\nservices:\n  s: {image: roster-hello, network_mode: none, command: sleep inf, runtime: other}\n";
    cluster.ok(&["apply", "--detach", &cluster.spec(spec).to_string_lossy()]);
    wait::until("the reason", || {
        let said = cluster.ok(&["ps"]);
        if said.contains("vm1 has no runtime other") { Ok(()) } else { Err(said) }
    });
    assert!(!cluster.ok(&["node", "inspect", "vm1"]).contains("Runtimes"));
    cluster.stop_agent();
    // Roster's own will do, by its command line.
    cluster.start_agent_with(&[format!("--runtime=other={}", bin("roster-runtime").display())]);
    cluster.until_running(1);
    assert!(cluster.ok(&["node", "inspect", "vm1"]).contains("Runtimes:     other\n"));
    let said = cluster.rctl(&["exec", "s", "true"]);
    assert!(said.stderr.contains("another runtime made the container"), "{said:?}");
    cluster.ok(&["rm", "a"]);
    cluster.until_no_traces();
    cluster.down();
}
