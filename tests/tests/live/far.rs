//! From any machine, by any controller, as whom it is open to.

use std::{io::Write, process::Stdio};

use roster_tests::{
    drive::{Drive, Output},
    lab::trial::Trial,
    wait,
};

use crate::{Running, sleepers};

#[test]
fn a_program_runs_by_way_of_a_follower_and_not_for_a_viewer() {
    let trial = Trial::up(3, 3);
    trial.apply(&sleepers(3));
    trial.until_running(3);
    let leader = trial.leader();
    let follower = ["h1", "h2", "h3"].into_iter().find(|name| *name != leader).expect("one of three leads");
    for task in ["web.1", "web.2", "web.3"] {
        let said = trial.on(follower).rctl(&["exec", task, "sh", "-c", "hostname; exit 5"]);
        assert_eq!((said.code, said.stdout), (5, format!("{}\n", task.replace('.', "-"))), "{}", said.stderr);
    }
    // Both ways at once, through two controllers.
    let mut command = trial.on(follower).rctl_command(&["exec", "-i", "web.2", "cat"]);
    let mut child = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut input = child.0.stdin.take().expect("a pipe");
    let output = child.0.stdout.take().expect("a pipe");
    let writer = std::thread::spawn(move || (0..64).try_for_each(|n| input.write_all(&[n; 1 << 20])));
    let mut reader = std::io::BufReader::new(output);
    let count = std::io::copy(&mut reader, &mut std::io::sink()).expect("the echo");
    assert_eq!(count, 64 << 20);
    writer.join().expect("a thread").expect("it is all taken");
    assert_eq!(child.code(), Some(0));

    // Many that nobody reads, by the same follower, hold nothing else up.
    let stuck: Vec<Running> = (0..12)
        .map(|_| {
            let mut command = trial.on(follower).rctl_command(&["exec", "web.1", "yes"]);
            Running::start(command.stdout(Stdio::piped()))
        })
        .collect();
    for _ in 0..3 {
        assert_eq!(trial.on(follower).rctl(&["exec", "web.1", "true"]).code, 0);
    }
    assert_eq!(trial.nodes("Ready").len(), 3);
    drop(stuck);

    let folder = tempfile::tempdir().expect("a folder");
    for (role, code) in [("viewer", 1), ("operator", 0)] {
        let file = folder.path().join(format!("{role}.json"));
        trial.ok(&["user", "add", role, "--role", role, "--out", &file.to_string_lossy()]);
        let said = wait::until("an answer", || {
            // By TLS from a host that is not the leader's; its socket would make everybody root.
            let arguments = ["--credentials", &file.to_string_lossy(), "exec", "web.1", "echo", "in"];
            let mut command = trial.on(follower).rctl_command(&arguments);
            let said = Output::from(command.env_remove("ROSTER_ENDPOINT").output().expect("rctl starts"));
            if said.stderr.contains("not available now") { Err(said) } else { Ok(said) }
        });
        assert_eq!(said.code, code, "{said:?}");
        match role {
            "viewer" => assert!(said.stderr.contains("operator"), "{said:?}"),
            _ => assert_eq!(said.stdout, "in\n"),
        }
    }

    // The controller that leads goes away: what ran by it ends, and that is said.
    let mut command = trial.on(follower).rctl_command(&["exec", "web.3", "sleep", "1009"]);
    let mut child = Running::start(command.stderr(Stdio::piped()));
    wait::until("sleep to run", || {
        let runs = std::fs::read_dir("/proc")
            .expect("proc")
            .flatten()
            .any(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default() == b"sleep\x001009\0");
        if runs { Ok(()) } else { Err("not yet") }
    });
    trial.kill(&leader);
    assert_eq!(child.code(), Some(1));
    trial.down();
}
