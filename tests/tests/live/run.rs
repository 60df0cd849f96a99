//! What runs once beside a service.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
};

use roster_tests::{cluster::Cluster, drive::Drive, wait};
use serde_json::Value;

use crate::{Running, terminal::Terminal};

/// Of what is printed at once and piped through: far more than any pipe or window holds.
const MUCH: usize = 8 << 20;

fn started() -> Cluster {
    let cluster = Cluster::start();
    cluster.apply(
        "name: shop\nservices:\n  web:\n    image: roster-hello\n    command: sleep inf\n    init: true\n    \
         network_mode: none\n    stop_grace_period: 1s\n    environment: {KEPT: yes, CHANGED: before}\n    \
         healthcheck: {test: ['CMD', 'true'], interval: 200ms}\n    deploy: {replicas: 2}\n",
    );
    cluster.until_running(2);
    cluster
}

/// What there is beside the service.
fn one_offs(cluster: &Cluster) -> Vec<Value> {
    cluster.tasks().into_iter().filter(|task| task["service"] != "web").collect()
}

#[track_caller]
fn until_one(cluster: &Cluster, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait::until(what, || match &one_offs(cluster)[..] {
        [task] if is_so(task) => Ok(task.clone()),
        other => Err(other.to_vec()),
    })
}

#[track_caller]
fn until_none(cluster: &Cluster) {
    wait::until("it to be forgotten", || {
        let (tasks, services) = (one_offs(cluster), cluster.ok(&["services"]));
        if tasks.is_empty() && !services.contains("-run-") { Ok(()) } else { Err((tasks, services)) }
    });
}

fn run(cluster: &Cluster, arguments: &[&str]) -> roster_tests::drive::Output {
    cluster.rctl(&[&["run"], arguments].concat())
}

#[test]
fn it_runs_once_beside_its_service_and_ends_as_it_says() {
    let cluster = started();
    let script = "echo $KEPT $CHANGED $ROSTER_SERVICE; id -u; pwd; echo err >&2; exit 7";
    let told = ["--rm", "-e", "CHANGED=after", "-u", "www", "-w", "/tmp", "web", "sh", "-c", script];
    let said = run(&cluster, &told);
    assert_eq!((said.code, said.stderr.as_str()), (7, "err\n"), "{said:?}");
    let mut lines = said.stdout.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("yes after web-run-")), "{said:?}");
    assert_eq!(lines.collect::<Vec<_>>(), ["33", "/tmp"]);
    assert_eq!(one_offs(&cluster), Vec::<Value>::new(), "forgotten when rctl says so");

    // Exit codes, as a shell has them.
    for (command, code, words) in [
        ("true", 0, ""),
        ("/no/such/program", 127, "no such program"),
        ("no-such-program", 127, "executable file not found in PATH=/bin"),
        ("/etc/passwd", 126, "permission denied"),
    ] {
        let said = run(&cluster, &["--rm", "web", command]);
        assert_eq!((said.code, said.stdout.as_str()), (code, ""), "{command}: {said:?}");
        assert!(said.stderr.contains(words) && said.stderr.is_empty() == words.is_empty(), "{command}: {said:?}");
    }
    assert_eq!(run(&cluster, &["--rm", "web", "sh", "-c", "kill -KILL $$"]).code, 137);
    assert_eq!(run(&cluster, &["--rm", "--entrypoint", "echo 'one two'", "web"]).stdout, "one two\n");
    assert_eq!(run(&cluster, &["--rm", "--entrypoint", "echo", "web", "three"]).stdout, "three\n");

    // Without --rm it stays as it ended, is never begun anew, and no apply touches it.
    let said = run(&cluster, &["--name", "job", "web", "sh", "-c", "echo done; exit 3"]);
    assert_eq!((said.code, said.stdout.as_str()), (3, "done\n"), "{said:?}");
    let task = until_one(&cluster, "its end", |task| task["state"] == "Failed");
    assert_eq!((task["service"].as_str(), task["restarts"].as_u64()), (Some("job"), Some(0)), "{task:#}");
    assert_eq!(cluster.ok(&["logs", "job.1"]).trim_end(), "done");
    let file = cluster.spec_file();
    let plan = cluster.rctl(&["plan", &file.to_string_lossy()]);
    assert!(plan.code == 0 && !plan.stdout.contains("job"), "{plan:?}");
    cluster.ok(&["apply", "--prune", &file.to_string_lossy()]);
    cluster.ok(&["restart", "shop"]);
    assert_eq!(until_one(&cluster, "the same", |_| true)["id"], task["id"]);
    for (arguments, words) in [
        (&["restart", "job"][..], "runs only once"),
        (&["scale", "job=2"], "runs only once"),
        (&["run", "--name", "job", "web", "true"], "there is a service or one-off task shop/job already"),
        (&["run", "job", "true"], "runs only once"),
        (&["run", "wep", "true"], "there is no service \"wep\": did you mean \"web\"?"),
        (&["run", "-e", "=x", "web"], "write NAME=VALUE"),
        (&["run", "-w", "here", "web", "true"], "must be an absolute path"),
        (&["run", "-it", "web", "sh"], "standard input is no terminal"),
        (&["run", "--entrypoint", "'x", "web"], "never closed"),
        (&["run", "--name", "No", "web"], "is not allowed"),
    ] {
        let said = cluster.rctl(arguments);
        assert!(said.code == 1 && said.stderr.contains(words), "{arguments:?}: {said:?}");
    }
    cluster.ok(&["rm", "job"]);
    until_none(&cluster);

    // Detached, it begins by itself; removing the stack takes it along.
    let name = cluster.ok(&["run", "-d", "web", "sleep", "inf"]);
    let task = one_offs(&cluster).pop().expect("it is there");
    assert!(task["state"] == "Running" && task["cause"].is_null(), "rctl returns when it runs: {task:#}");
    assert_eq!(name.trim_end(), format!("shop/{}", task["service"].as_str().expect("a name")), "{task:#}");
    assert_eq!(cluster.ok(&["exec", name.trim_end(), "echo", "inside"]), "inside\n");
    let name = cluster.ok(&["run", "-dit", "web", "sh", "-c", "read said; echo got $said; sleep 1"]);
    let mut attached = cluster.rctl_command(&["attach", name.trim_end()]);
    let mut attached = Running::start(attached.stdin(Stdio::piped()).stdout(Stdio::piped()));
    attached.0.stdin.as_mut().expect("a pipe").write_all(b"words\n").expect("it reads");
    let mut shown = String::new();
    attached.0.stdout.take().expect("a pipe").read_to_string(&mut shown).expect("text");
    assert!(shown.contains("got words") && attached.code() == Some(0), "{shown}");
    for command in ["/no/such/program", "no-such-program"] {
        let said = run(&cluster, &["-d", "--rm", "web", command]);
        assert!(said.code == 127 && said.stdout.is_empty() && said.stderr.contains("no such program"), "{said:?}");
    }
    let said = run(&cluster, &["-d", "--rm", "web", "false"]);
    assert!(said.code == 0 && said.stdout.starts_with("shop/web-run-"), "it began: {said:?}");
    cluster.ok(&["rm", "shop"]);
    assert!(cluster.tasks().is_empty());
    cluster.down();
}

#[test]
fn nothing_it_prints_is_missed_and_nothing_it_reads() {
    let cluster = started();
    // What ends at once, again and again.
    for round in 0..25 {
        let word = format!("round {round}");
        let said = run(&cluster, &["--rm", "web", "echo", &word]);
        assert_eq!((said.code, said.stdout), (0, format!("{word}\n")), "{}", said.stderr);
    }
    let said = run(&cluster, &["--rm", "web", "sh", "-c", "head -c 8388608 /dev/zero; echo last >&2"]);
    assert_eq!((said.code, said.stdout.len(), said.stderr.as_str()), (0, MUCH, "last\n"));

    let sent = cluster.path("sent");
    let bytes: Vec<u8> =
        (0..MUCH / 8).flat_map(|n| (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect();
    fs::write(&sent, &bytes).expect("the folder is ours");
    let mut command = cluster.rctl_command(&["run", "--rm", "-i", "web", "md5sum"]);
    let said = command.stdin(fs::File::open(&sent).expect("just written")).output().expect("rctl starts");
    let own = Command::new("md5sum").arg(&sent).output().expect("coreutils");
    let digest = |text: &[u8]| String::from_utf8_lossy(text).split_whitespace().next().map(str::to_owned);
    assert_eq!(digest(&said.stdout), digest(&own.stdout), "{}", String::from_utf8_lossy(&said.stderr));
    // Without -i there is nothing to read, whatever rctl has.
    let mut command = cluster.rctl_command(&["run", "--rm", "web", "cat"]);
    let mut child = Running::start(command.stdin(Stdio::piped()));
    assert_eq!(child.code(), Some(0));
    until_none(&cluster);
    cluster.down();
}

#[test]
fn a_terminal_is_left_and_found_again() {
    let cluster = started();
    let command = cluster.rctl_command(&["run", "--rm", "-it", "--name", "shell", "web", "sh"]);
    let mut terminal = Terminal::start(command, 30, 90);
    terminal.until("# ");
    terminal.type_in(b"stty size; echo sum $((40 + 2))\n");
    terminal.until("30 90\r\nsum 42\r\n");
    terminal.type_in(b"\x10\x11");
    assert_eq!(terminal.rctl.code(), Some(0));
    terminal.until("`rctl attach shop/shell` comes back to it");
    assert!(terminal.is_as_before());
    let mut again = Terminal::start(cluster.rctl_command(&["attach", "shell"]), 30, 90);
    again.type_in(b"echo again $((1 + 1)); exit 5\n");
    again.until("again 2");
    assert_eq!(again.rctl.code(), Some(5));
    // Nobody of those who made it is there any more.
    until_none(&cluster);
    cluster.down();
}

#[test]
fn it_is_forgotten_though_rctl_was_killed() {
    let cluster = started();
    let mut command = cluster.rctl_command(&["run", "--rm", "-i", "web", "sh", "-c", "echo begun; cat; echo over"]);
    let mut child = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut input = child.0.stdin.take().expect("a pipe");
    writeln!(input, "word").expect("rctl reads");
    let mut said = [0; 11];
    child.0.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("the echo");
    assert_eq!(&said, b"begun\nword\n");
    child.0.kill().expect("SIGKILL");
    // Its input ends with rctl, and by that the program.
    until_one(&cluster, "its end", |task| task["state"] == "Complete");
    until_none(&cluster);

    // A signal is the program's.
    let mut child = Running::quiet(cluster.rctl_command(&["run", "--rm", "web", "sleep", "inf"]));
    until_one(&cluster, "it to run", |task| task["state"] == "Running" && task["cause"].is_null());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0.id().cast_signed()), nix::sys::signal::Signal::SIGTERM)
        .expect("our child");
    assert_eq!(child.code(), Some(143));
    until_none(&cluster);
    cluster.down();
}

#[test]
fn what_it_waits_for_is_told_and_nobody_waits_for_ever() {
    let mut cluster = started();
    let spec = "name: large\nservices:\n  big:\n    image: roster-hello\n    deploy:\n      replicas: 0\n      resources: \
                {reservations: {memory: 100000G}}\n";
    let file = cluster.spec(spec);
    cluster.ok(&["apply", &file.to_string_lossy()]);
    let mut command = cluster.rctl_command(&["run", "big", "true"]);
    let mut child = Running::start(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    let (mut words, mut stderr) = (String::new(), BufReader::new(child.0.stderr.take().expect("a pipe")));
    stderr.read_line(&mut words).expect("the reason");
    assert!(words.contains("is Pending: no node can take it") && words.contains("memory unreserved"), "{words}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0.id().cast_signed()), nix::sys::signal::Signal::SIGINT)
        .expect("our child");
    assert_eq!(child.code(), Some(130));
    assert_eq!(one_offs(&cluster), Vec::<Value>::new());

    // One whose rctl is gone before it begins says so, and then that nobody came.
    cluster.stop_agent();
    let mut child = Running::quiet(cluster.rctl_command(&["run", "web", "touch", "/begun"]));
    until_one(&cluster, "it to be placed", |task| task["state"] == "Assigned");
    child.0.kill().expect("SIGKILL");
    cluster.start_agent();
    let says = |task: &Value, words: &str| task["cause"].to_string().contains(words);
    until_one(&cluster, "it to say what it waits for", |task| says(task, "somebody to attach"));
    let task = until_one(&cluster, "its end", |task| task["state"] == "Failed");
    assert!(says(&task, "nobody attached"), "{task:#}");
    cluster.down();
}
