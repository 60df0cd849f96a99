//! Programs that take all they can get, and programs that do not want to end.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Bundle, until};

const ZOMBIES: u64 = 10_000;

#[test]
fn a_fork_bomb_reaches_its_limit_and_is_removed() {
    let mut bundle = Bundle::new(&[]);
    bundle.perl("fork while 1");
    bundle.set("/linux/resources", json!({ "pids": { "limit": 48 } }));
    assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
    let mut most = 0;
    until("the bomb to reach its limit", || {
        most = most.max(bundle.processes("one"));
        most >= 40
    });
    assert!(most <= 48, "{most} processes");
    bundle.ok(&["delete", "--force", "one"]);
    assert_eq!(bundle.processes("one"), 0);
}

#[test]
fn shared_memory_is_no_larger_than_it_is_said() {
    let mut bundle = Bundle::new(&[]);
    bundle.mount(json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=1m"] }));
    bundle.shell("dd if=/dev/zero of=/dev/shm/all bs=64k; test -s /dev/shm/all && /bin/busybox wc -c < /dev/shm/all");
    let said = bundle.call(&["run", "one"]);
    assert_eq!((said.code, said.out.trim()), (0, "1048576"), "{said:?}");
    assert!(said.err.contains("No space left on device"), "{said:?}");
}

#[test]
fn all_memory_is_as_much_as_the_limit() {
    let mut bundle = Bundle::new(&[]);
    bundle.set("/linux/resources/memory", json!({ "limit": 33_554_432, "swap": 33_554_432 }));
    bundle.shell("/bin/busybox tail /dev/zero; echo $?; exec /bin/busybox tail /dev/zero");
    let said = bundle.call(&["run", "one"]);
    assert_eq!((said.code, said.out.trim()), (137, "137"), "the child, and then itself: {said:?}");
    assert!(bundle.ok(&["list", "-q"]).is_empty());
}

#[test]
fn what_ignores_sigterm_is_killed() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("trap 'echo . >> /asked' TERM; trap '' INT HUP; echo up > /up; while :; do sleep 0.01; done");
    assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
    until("the program to run", || bundle.image("up").exists());
    bundle.ok(&["kill", "one", "TERM"]);
    until("it to be asked", || bundle.image("asked").exists());
    bundle.ok(&["kill", "one", "INT"]);
    assert_eq!(bundle.status("one"), "running");
    bundle.ok(&["kill", "one", "KILL"]);
    bundle.until("one", "stopped");
    bundle.ok(&["delete", "one"]);
}

/// In a pid namespace it dies with the first process; where there is none of the container's own it has to be found.
#[test]
fn a_daemon_does_not_outlive_its_container() {
    let mut bundle = Bundle::new(&[]);
    bundle.perl(
        r#"if (!fork) {
               setpgrp;
               if (!fork) { open(my $up, ">", "/up"); close $up; $SIG{$_} = "IGNORE" for qw(TERM HUP INT); sleep 1000 }
               exit
           }
           wait; until (-e "/up") {} exit"#,
    );
    for kinds in [&["mount", "uts", "ipc"][..], &["pid", "mount", "uts", "ipc"]] {
        let _ = fs::remove_file(bundle.image("up"));
        let namespaces: Vec<_> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
        bundle.set("/linux/namespaces", json!(namespaces));
        assert_eq!(bundle.call(&["run", "one"]).code, 0);
        assert_eq!(bundle.processes("one"), 0, "{kinds:?}");

        let _ = fs::remove_file(bundle.image("up"));
        assert_eq!(bundle.detached(&["run", "-d", "two"]).code, 0);
        bundle.until("two", "stopped");
        let left = bundle.processes("one");
        assert_eq!(left, usize::from(!kinds.contains(&"pid")), "{kinds:?}");
        bundle.ok(&["kill", "--all", "two", "KILL"]);
        bundle.ok(&["delete", "two"]);
        assert_eq!(bundle.processes("one"), 0, "{kinds:?}");
    }
}

#[test]
fn ten_thousand_zombies_are_in_nobodys_way() {
    let mut bundle = Bundle::new(&[]);
    bundle.perl(&format!(
        r#"for (1..{ZOMBIES}) {{ my $child = fork // die "fork: $!"; kill 9, $$ unless $child }}
           open(my $up, ">", "/up"); close $up; sleep 1000"#
    ));
    bundle.set("/linux/resources", json!({ "pids": { "limit": ZOMBIES + 10 } }));
    assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
    let deadline = Instant::now() + Duration::from_secs(240);
    while !bundle.image("up").exists() {
        assert!(Instant::now() < deadline, "not all are there yet: {}", bundle.status("one"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let event: Value = serde_json::from_str(&bundle.ok(&["events", "--stats", "one"])).expect("JSON");
    assert!(event["data"]["pids"]["current"].as_u64() > Some(ZOMBIES), "{event}");
    assert_eq!(bundle.status("one"), "running");
    assert_eq!(bundle.ok(&["exec", "one", "/bin/echo", "still"]), "still\n");
    assert!(bundle.ok(&["ps", "one"]).contains("perl"));
    let begin = Instant::now();
    bundle.ok(&["delete", "--force", "one"]);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}
