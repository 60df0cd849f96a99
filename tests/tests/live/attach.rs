//! Watching a container's own program, and typing to it.

use std::{
    io::{Read, Write},
    process::Stdio,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use roster_tests::{
    cluster::Cluster,
    drive::{Drive, pid},
    wait,
};

use crate::{Running, terminal::Terminal};

fn running(extra: &str) -> Cluster {
    let cluster = Cluster::start();
    cluster.apply(&format!(
        "name: talk\nservices:\n  s:\n    image: roster-hello\n    network_mode: none\n    init: true\n    \
         stop_grace_period: 1s\n    deploy: {{restart_policy: {{condition: none}}}}\n    {extra}\n"
    ));
    cluster.until_running(1);
    cluster
}

#[test]
fn a_terminal_is_shared_left_and_found_again() {
    let cluster = running("tty: true\n    stdin_open: true\n    command: sh");
    let attach = |rows, columns| Terminal::start(cluster.rctl_command(&["attach", "s.1"]), rows, columns);
    let mut first = attach(30, 90);
    first.type_in(b"stty size; echo sum $((40 + 2))\n");
    first.until("30 90\r\nsum 42\r\n");
    assert!(!first.is_as_before());
    // A key of the sequence alone is the program's.
    first.type_in(b"echo one\x10\n");
    first.until("one");
    first.type_in(b"\x10");
    first.type_in(b"\x11");
    assert_eq!(first.rctl.code(), Some(0));
    first.until("detached from s.1");
    assert!(first.is_as_before());

    let before = pid(&cluster.until_running(1)[0]);
    let (mut first, mut second) = (attach(30, 90), attach(30, 90));
    wait::until("both to see what one types", || {
        second.type_in(b"echo seen $((1 + 2))\n");
        let (one, other) = (first.shown(), second.shown());
        if one.contains("seen 3") && other.contains("seen 3") { Ok(()) } else { Err((one, other)) }
    });
    assert_eq!(pid(&cluster.until_running(1)[0]), before, "nobody harmed it");
    // What is shown is logged too.
    assert!(cluster.ok(&["logs", "s"]).contains("seen 3"));
    first.type_in(b"exit 5\n");
    assert_eq!((first.rctl.code(), second.rctl.code()), (Some(5), Some(5)));
    assert!(first.is_as_before() && second.is_as_before());
    cluster.down();
}

#[test]
fn an_open_input_is_fed_and_stays_open() {
    let cluster = running("stdin_open: true\n    command: ['sh', '-c', 'echo begun >&2; cat; echo over']");
    for word in ["first", "second"] {
        let mut command = cluster.rctl_command(&["attach", "s"]);
        let mut child = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut input = child.0.stdin.take().expect("a pipe");
        writeln!(input, "{word}").expect("it reads");
        let mut said = vec![0; word.len() + 1];
        child.0.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("the echo");
        assert_eq!(said, format!("{word}\n").as_bytes());
        // Neither the end of the input nor rctl's is the program's.
        drop(input);
        child.0.kill().expect("SIGKILL");
    }
    assert_eq!(cluster.until_running(1).len(), 1);
    // Only watching, rctl alone is interrupted; else the program is.
    let mut watcher = Running::quiet(cluster.rctl_command(&["attach", "--no-stdin", "--sig-proxy=false", "s"]));
    let mut other = Running::quiet(cluster.rctl_command(&["attach", "s"]));
    let signal = |child: &mut Running, signal| {
        wait::until("it to listen for signals", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.0.id())).expect("our child");
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).expect("signals");
            let caught = u64::from_str_radix(caught, 16).expect("a mask");
            if caught & 1 << (signal as i32 - 1) != 0 { Ok(()) } else { Err(status) }
        });
        wait::until("its end", || {
            kill(Pid::from_raw(child.0.id().cast_signed()), signal).expect("our child");
            child.0.try_wait().expect("our child").ok_or("it runs")
        });
    };
    signal(&mut watcher, Signal::SIGINT);
    assert_eq!(watcher.code(), Some(130));
    assert_eq!(cluster.until_running(1).len(), 1);
    signal(&mut other, Signal::SIGTERM);
    assert_eq!(other.code(), Some(143));
    wait::until("the program's end", || {
        let tasks = cluster.tasks();
        if tasks[0]["state"] == "Failed" { Ok(()) } else { Err(tasks) }
    });
    cluster.down();
}

#[test]
fn who_does_not_read_holds_nobody_up_for_long() {
    let cluster = running("command: ['sh', '-c', 'while :; do seq 1 10000; touch /tmp/alive; done']");
    let mut command = cluster.rctl_command(&["attach", "s"]);
    let mut child = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut output = child.0.stdout.take().expect("a pipe");
    let mut first = [0];
    output.read_exact(&mut first).expect("it writes");
    // Held back at first, as by a terminal, it goes on without the one who sleeps.
    let age = || cluster.ok(&["exec", "s", "stat", "-c", "%Y", "/tmp/alive"]);
    let (mut last, mut alike) = (String::new(), 0);
    wait::until("the program to be held back", || {
        let now = age();
        alike = if now == last { alike + 1 } else { 0 };
        last = now;
        if alike > 60 { Ok(()) } else { Err(alike) }
    });
    wait::until("the program to go on", || if age() != last { Ok(()) } else { Err(age()) });
    let rest = std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    assert_eq!(child.code(), Some(1));
    let mut said = String::new();
    child.0.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert!(said.contains("read too slowly"), "{said}");
    rest.join().expect("a thread").expect("the rest");
    cluster.down();
}
