//! Programs without a terminal: what they print, how they end, what is piped through them.

use std::{
    fs,
    io::{Read, Write},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use roster_tests::{drive::Drive, wait};

use crate::{Running, inside, sleepers, started, until_inside};

/// Through a pipe into a container and through another one out of it.
const GIGABYTES: usize = 256 << 20;
/// Of any process on the way, whatever flows through it: 64 MiB above what it had.
const GROWTH: u64 = 64 << 20;

#[test]
fn a_program_runs_in_the_container_and_ends_as_it_says() {
    let cluster = started(2);
    let exec = |arguments: &[&str]| cluster.rctl(&[&["exec"], arguments].concat());

    let said = exec(&["web.2", "sh", "-c", "echo out; echo err >&2; hostname; exit 7"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (7, "out\nweb-2\n", "err\n"));
    // Of a service the first replica, which is said; a -- changes nothing.
    let said = exec(&["web", "--", "hostname"]);
    assert_eq!((said.code, said.stdout.as_str()), (0, "web-1\n"));
    assert_eq!(said.stderr, "using web.1, the first of 2 replicas\n");
    let id = cluster.tasks()[0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(exec(&[&id, "hostname"]).code, 0);

    // Exit codes, as a shell has them.
    for (command, code, words) in [
        ("true", 0, ""),
        ("/no/such/program", 127, "no such program"),
        ("no-such-program", 127, "executable file not found in PATH=/bin"),
        ("/etc/passwd", 126, "permission denied"),
    ] {
        let said = exec(&["web.1", command]);
        assert_eq!((said.code, said.stdout.as_str()), (code, ""), "{command}: {said:?}");
        assert!(said.stderr.contains(words) && said.stderr.is_empty() == words.is_empty(), "{command}: {said:?}");
    }
    assert_eq!(exec(&["web.1", "sh", "-c", "kill -KILL $$"]).code, 137);
    assert_eq!(exec(&["web.1", "sh", "-c", "kill -TERM $$"]).code, 143);

    // The container's environment, identity and confinement, and what is said instead.
    let said = exec(&[
        "web.1",
        "sh",
        "-c",
        "echo $KEPT $CHANGED $ROSTER_TASK_NAME; id -u; pwd; grep CapEff /proc/self/status",
    ]);
    assert_eq!(said.stdout, "yes before web.1\n0\n/\nCapEff:\t00000000a80425fb\n");
    let told = ["-e", "CHANGED=after", "-e", "NO_COLOR", "-e", "ABSENT_HERE", "-u", "www", "-w", "/tmp"];
    let script = "echo $KEPT $CHANGED $NO_COLOR ${ABSENT_HERE-unset} $HOME; id -u; id -g; pwd; echo seen > /dev/stderr";
    let said = exec(&[&told[..], &["web.1", "sh", "-c", script]].concat());
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("yes after 1 unset /www\n33\n33\n/tmp\n", "seen\n"));
    let said = exec(&["--privileged", "web.1", "grep", "-E", "CapEff|Seccomp:|NoNewPrivs", "/proc/self/status"]);
    let all = fs::read_to_string("/proc/self/status").expect("our own");
    let effective = all.lines().find(|line| line.starts_with("CapEff")).expect("capabilities");
    assert_eq!(said.stdout, format!("{effective}\nNoNewPrivs:\t0\nSeccomp:\t0\n"));
    let said = exec(&["web.1", "cat", "/proc/self/cgroup"]);
    assert!(said.stdout.contains("live-"), "a cgroup of its own: {said:?}");

    // Standard input is nobody's unless it is asked for.
    let mut command = cluster.rctl_command(&["exec", "web.1", "cat"]);
    let mut child = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    assert_eq!(child.code(), Some(0));
    assert_eq!(inside(&cluster.name).len(), 2, "an init and its program, twice: {:?}", inside(&cluster.name));
    cluster.down();
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let cluster = started(1);
    let refused = |arguments: &[&str], words: &str| {
        let said = cluster.rctl(&[&["exec"], arguments].concat());
        assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(words), "{arguments:?}: {said:?}");
    };
    refused(&["wep", "true"], "there is no service \"wep\": did you mean \"web\"?");
    refused(&["web.7", "true"], "there is no task \"web.7\"");
    refused(&["web.1"], "the following required arguments were not provided");
    refused(&["-u", "nobody-here", "web", "true"], "/etc/passwd has no user \"nobody-here\"");
    refused(&["-w", "/no/such/folder", "web", "true"], "enter the working directory /no/such/folder");
    refused(&["-w", "relative", "web", "true"], "must begin with /");
    refused(&["-e", "=x", "web", "true"], "write NAME=VALUE");
    refused(&["-it", "web", "sh"], "standard input is no terminal");
    cluster.down();
}

#[test]
fn tasks_that_do_not_run_say_why() {
    let cluster = started(1);
    let spec = "name: ended\nservices:\n  job:\n    image: roster-hello\n    network_mode: none\n    \
                command: ['sh', '-c', 'exit 3']\n    deploy: {restart_policy: {condition: none}}\n";
    cluster.ok(&["apply", "--detach", &cluster.spec(spec).to_string_lossy()]);
    wait::until("its end", || {
        let tasks = cluster.tasks();
        if tasks.iter().any(|task| task["state"] == "Failed") { Ok(()) } else { Err(tasks) }
    });
    for target in ["job", "job.1"] {
        let said = cluster.rctl(&["exec", target, "true"]);
        assert_eq!(said.code, 1);
        assert!(said.stderr.contains("is Failed: exited with code 3"), "{said:?}");
    }
    // One that is paused, which holds nobody up.
    cluster.ok(&["pause", "web"]);
    let said = cluster.rctl(&["exec", "web", "true"]);
    assert!(said.code == 1 && said.stderr.contains("the container is paused: `rctl unpause` it first"), "{said:?}");
    cluster.ok(&["unpause", "web"]);
    assert_eq!(cluster.rctl(&["exec", "web", "true"]).code, 0);

    // An agent that is away.
    let mut cluster = cluster;
    cluster.kill_agent();
    wait::until("the session's end", || {
        let said = cluster.rctl(&["exec", "web", "true"]);
        if said.code == 1 && said.stderr.contains("node vm1 has no session") { Ok(()) } else { Err(said) }
    });
    cluster.start_agent();
    wait::until("the agent to be back", || {
        let said = cluster.rctl(&["exec", "web", "echo", "back"]);
        if said.stdout == "back\n" { Ok(()) } else { Err(said) }
    });
    cluster.down();
}

/// Bytes that are not all alike, the same at every run.
fn noise(seed: usize) -> Vec<u8> {
    let mut state = seed as u64 | 1;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..1 << 20).map(step).collect()
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a size") << 10
}

#[test]
fn gigabytes_flow_through_in_bounded_memory() {
    let cluster = started(1);
    let daemons = [cluster.controller_pid().expect("it runs"), cluster.agent_pid().expect("it runs")];
    let before = daemons.map(resident);
    let mut command = cluster.rctl_command(&["exec", "-i", "web", "sha256sum"]);
    let mut child = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut sum = std::process::Command::new("sha256sum");
    let mut sum = Running::start(sum.stdin(Stdio::piped()).stdout(Stdio::piped()));
    {
        let mut inputs = [child.0.stdin.take().expect("a pipe"), sum.0.stdin.take().expect("a pipe")];
        for piece in 0..GIGABYTES >> 20 {
            let bytes = noise(piece);
            inputs.iter_mut().for_each(|input| input.write_all(&bytes).expect("it reads"));
        }
    }
    let used = resident(child.0.id());
    let read = |running: &mut Running| {
        let mut text = String::new();
        running.0.stdout.take().expect("a pipe").read_to_string(&mut text).expect("text");
        text
    };
    assert_eq!(read(&mut child), read(&mut sum));
    assert_eq!((child.code(), sum.code()), (Some(0), Some(0)));

    // Out of it again, to a reader that begins only when all stands still.
    let script = "for i in $(seq 256); do head -c 1048576 /dev/zero; echo $i > /tmp/progress; done";
    let mut command = cluster.rctl_command(&["exec", "web", "sh", "-c", script]);
    let mut child = Running::start(command.stdout(Stdio::piped()));
    let mut output = child.0.stdout.take().expect("a pipe");
    let mut first = [0];
    output.read_exact(&mut first).expect("it comes");
    let (mut last, mut alike) = (String::new(), 0);
    wait::until("the program to be held back", || {
        let now = cluster.rctl(&["exec", "web", "cat", "/tmp/progress"]).stdout;
        alike = if now == last { alike + 1 } else { 0 };
        last = now;
        if alike >= 20 { Ok(()) } else { Err(last.clone()) }
    });
    assert!(last.trim().parse::<usize>().expect("a number") < 64, "{last} MiB are on the way");
    let count = std::io::copy(&mut output, &mut std::io::sink()).expect("the rest");
    assert_eq!(count as usize + 1, GIGABYTES);
    assert_eq!(child.code(), Some(0));

    for (pid, before) in daemons.iter().zip(before) {
        assert!(resident(*pid) < before + GROWTH, "{before} bytes, then {}", resident(*pid));
    }
    assert!(used < GROWTH, "rctl used {used} bytes");
    cluster.down();
}

#[test]
fn signals_get_through_whatever_is_stuck() {
    let cluster = started(1);
    // It reads nothing, and its input is full to the brim.
    let script = "trap 'exit 42' USR1; echo ready; while :; do sleep 0.05; done";
    let mut command = cluster.rctl_command(&["exec", "-i", "web", "sh", "-c", script]);
    let mut child = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut ready = [0; 6];
    child.0.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("it says so");
    let mut input = child.0.stdin.take().expect("a pipe");
    let written = Arc::new(AtomicUsize::new(0));
    let counted = written.clone();
    let writer = std::thread::spawn(move || {
        while input.write_all(&[b'x'; 4096]).is_ok() {
            counted.fetch_add(4096, Ordering::Relaxed);
        }
    });
    let mut last = 0;
    wait::until("the input to be full", || {
        cluster.ok(&["version"]);
        let now = written.load(Ordering::Relaxed);
        let full = now == last && now > 512 << 10;
        last = now;
        if full { Ok(()) } else { Err(now) }
    });
    assert!(last < 4 << 20, "{last} bytes are on the way");
    kill(Pid::from_raw(child.0.id().cast_signed()), Signal::SIGUSR1).expect("our child");
    assert_eq!(child.code(), Some(42));
    writer.join().expect("the pipe breaks");

    // What the user interrupts here is interrupted there; a program that does not listen is left, and ends so.
    let mut child = Running::quiet(cluster.rctl_command(&["exec", "web", "sleep", "1001"]));
    until_inside(&cluster, "sleep", |found| found.contains("sleep 1001"));
    kill(Pid::from_raw(child.0.id().cast_signed()), Signal::SIGINT).expect("our child");
    assert_eq!(child.code(), Some(130));
    let mut child = Running::quiet(cluster.rctl_command(&["exec", "web", "sh", "-c", "trap '' INT; sleep 1002"]));
    until_inside(&cluster, "sleep", |found| found.contains("sleep 1002"));
    let pid = Pid::from_raw(child.0.id().cast_signed());
    wait::until("rctl to give up", || {
        kill(pid, Signal::SIGINT).expect("our child");
        child.0.try_wait().expect("our child").ok_or("it runs")
    });
    assert_eq!(child.code(), Some(130));
    until_inside(&cluster, "nothing but the service", |found| found.len() == 2);
    cluster.down();
}

#[test]
fn who_goes_away_leaves_no_process() {
    let mut cluster = started(1);
    let script = "sleep 1003 & (setsid sleep 1004 &) & sleep 1005";
    let three =
        |found: &std::collections::BTreeSet<String>| (1003..=1005).all(|n| found.contains(&format!("sleep {n}")));
    let mut child = Running::quiet(cluster.rctl_command(&["exec", "web", "sh", "-c", script]));
    // Another one beside it is not harmed.
    let mut other = Running::quiet(cluster.rctl_command(&["exec", "web", "sleep", "1006"]));
    until_inside(&cluster, "all of them", |found| three(found) && found.contains("sleep 1006"));
    child.0.kill().expect("SIGKILL");
    until_inside(&cluster, "the end of what rctl left", |found| {
        !(1003..=1005).any(|n| found.contains(&format!("sleep {n}")))
    });
    assert!(inside(&cluster.name).contains("sleep 1006"));

    // The agent's end is the program's, and is told. The container notices nothing.
    cluster.kill_agent();
    assert_eq!(other.code(), Some(1));
    until_inside(&cluster, "nothing but the service", |found| found.len() == 2);
    cluster.start_agent();

    // What ends by itself may leave something behind, as with Docker, in the container's own cgroup.
    wait::until("a program that leaves another one", || {
        let said = cluster.rctl(&["exec", "web", "sh", "-c", "sleep 1007 & echo left"]);
        if (said.code, said.stdout.as_str()) == (0, "left\n") { Ok(()) } else { Err(said) }
    });
    until_inside(&cluster, "what it left", |found| found.contains("sleep 1007"));
    let groups =
        cluster.ok(&["exec", "web", "sh", "-c", "cat /proc/$(pidof sleep | tr ' ' '\\n' | sort -n | tail -1)/cgroup"]);
    assert!(!groups.contains("live-"), "{groups}");
    cluster.ok(&["rm", "live"]);
    cluster.until_no_traces();
    cluster.down();
}

#[test]
fn nothing_that_was_written_is_lost_at_the_end() {
    let cluster = started(1);
    for round in 0..20 {
        let said = cluster.rctl(&["exec", "web", "sh", "-c", "seq 1 5000; seq 1 100 >&2; kill -9 $$"]);
        let last = |text: &str| text.lines().last().map(str::to_owned);
        assert_eq!(said.code, 137, "round {round}");
        assert_eq!((last(&said.stdout), last(&said.stderr)), (Some("5000".to_owned()), Some("100".to_owned())));
    }
    // Its container ends: so does it, and rctl says so with the code.
    let mut child = Running::quiet(cluster.rctl_command(&["exec", "web", "sleep", "1008"]));
    until_inside(&cluster, "sleep", |found| found.contains("sleep 1008"));
    cluster.ok(&["rm", "live"]);
    assert_eq!(child.code(), Some(137));
    cluster.apply(&sleepers(1));
    cluster.down();
}

#[test]
fn what_is_begun_detached_goes_on_without_rctl() {
    let cluster = started(1);
    let exec = |arguments: &[&str]| cluster.rctl(&[&["exec", "-d"], arguments].concat());
    let until_said = |file: &str, words: &str| {
        wait::until(file, || {
            let said = cluster.rctl(&["exec", "web", "cat", file]);
            if said.stdout == words { Ok(()) } else { Err(said) }
        });
    };
    // More than a pipe and a terminal hold, with one and without.
    let script =
        "[ -t 1 ] && echo terminal > $0 || echo none > $0; seq 1 200000 && echo x >&2 && echo over >> $0; sleep $1";
    let said = exec(&["web.1", "sh", "-c", script, "/tmp/without", "1016"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "", ""));
    let said = exec(&["-t", "web.1", "sh", "-c", script, "/tmp/with", "1017"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "", ""));
    until_said("/tmp/without", "none\nover\n");
    until_said("/tmp/with", "terminal\nover\n");
    until_inside(&cluster, "both", |found| found.contains("sleep 1016") && found.contains("sleep 1017"));

    // What does not begin is told.
    let said = exec(&["web.1", "/no/such/program"]);
    assert!(said.code == 127 && said.stderr.contains("no such program"), "{said:?}");
    let said = exec(&["-it", "web.1", "sh", "-c", "sleep 1018"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "", ""), "as people write it for docker");
    until_inside(&cluster, "the third", |found| found.contains("sleep 1018"));
    let said = cluster.rctl(&["exec", "--detach-keys", "strg-p", "web.1", "cat"]);
    assert!(said.code == 1 && said.stderr.contains("is no key"), "{said:?}");
    cluster.ok(&["rm", "live"]);
    cluster.until_no_traces();
    cluster.down();
}
