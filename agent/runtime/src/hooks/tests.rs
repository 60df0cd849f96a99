use std::{fs, os::fd::AsRawFd, path::Path};

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};

use super::*;
use crate::process::in_child::{failure, in_child};

fn hook(value: serde_json::Value) -> Hook {
    serde_json::from_value(value).unwrap()
}

fn shell(script: &str) -> Hook {
    hook(serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script]}))
}

fn state() -> State {
    serde_json::from_value(serde_json::json!({
        "ociVersion": "1.2.0", "id": "abc", "status": "created", "pid": 7, "bundle": "/bundle",
    }))
    .unwrap()
}

/// Runs the hooks in a process with one thread; why that failed.
fn outcome(hooks: &[Hook], state: &State) -> String {
    in_child(|| failure(run(hooks, "prestart", state)))
}

fn written(place: &Path) -> String {
    fs::read_to_string(place.join("out")).unwrap_or_default()
}

#[test]
fn a_hook_reads_the_state_and_its_end() {
    let place = tempfile::tempdir().unwrap();
    let hook = shell(&format!("cat > {}/out", place.path().display()));
    assert_eq!(outcome(&[hook], &state()), "");
    assert_eq!(serde_json::from_str::<State>(&written(place.path())).unwrap(), state());
}

#[test]
fn a_large_state_reaches_a_hook_and_does_not_hold_up_one_that_does_not_read() {
    let place = tempfile::tempdir().unwrap();
    let mut large = state();
    large.set_annotations(Some([("big".to_owned(), "x".repeat(300_000))].into()));
    let hook = shell(&format!("wc -c > {}/out", place.path().display()));
    assert_eq!(outcome(&[shell("exit 0"), shell("exec 0<&-"), hook], &large), "");
    assert_eq!(written(place.path()).trim(), serde_json::to_vec(&large).unwrap().len().to_string());
}

#[test]
fn arguments_and_environment_are_exactly_the_given_ones() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    // The shell adds variables of its own to its environment: the kernel's record has only what was given.
    let script = format!("tr '\\0' '|' < /proc/$$/environ > {0}; echo \"$0 $*\" >> {0}", out.display());
    let given = serde_json::json!({
        "path": "/bin/sh", "args": ["other name", "-c", script, "zero", "one", "two"],
        "env": ["A=1", "odd", "A=2", "PATH=/bin:/usr/bin"],
    });
    assert_eq!(outcome(&[hook(given)], &state()), "");
    assert_eq!(written(place.path()), "A=1|odd|A=2|PATH=/bin:/usr/bin|zero one two\n");

    let script = format!("PATH=/bin:/usr/bin; cat /proc/$$/environ > {}", out.display());
    assert_eq!(outcome(&[shell(&script)], &state()), "");
    assert_eq!(written(place.path()), "");
}

#[test]
fn a_failing_hook_is_named_with_its_last_words_and_ends_the_stage() {
    let place = tempfile::tempdir().unwrap();
    let later = shell(&format!("echo > {}/out", place.path().display()));
    let error = outcome(&[shell("echo bad weather >&2; exit 3"), later], &state());
    assert_eq!(error, "run the prestart hook /bin/sh: it ended with exit code 3; it said: bad weather");
    assert!(!place.path().join("out").exists());
    assert!(outcome(&[shell("kill -9 $$")], &state()).ends_with("it was killed by signal 9"));
}

#[test]
fn of_much_output_the_end_is_kept() {
    let error = outcome(&[shell("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 1")], &state());
    assert!(error.ends_with("line 19999"), "{error}");
    assert!(error.len() < TAIL + 200);
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let slow = hook(serde_json::json!({"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}));
    let begin = Instant::now();
    assert!(outcome(&[slow], &state()).contains("took longer than its timeout of 1s"));
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_hook_that_never_stops_talking_is_killed_too() {
    let hook =
        hook(serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", "while :; do echo; done"], "timeout": 1}));
    assert!(outcome(&[hook], &state()).contains("took longer than its timeout"));
}

#[test]
fn what_a_hook_leaves_running_is_not_waited_for() {
    let place = tempfile::tempdir().unwrap();
    let fifo = place.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let hook = shell(&format!("/bin/cat {} & exit 4", fifo.display()));
    assert!(outcome(&[hook], &state()).contains("exit code 4"));
    // Still there, as there was nothing to read; this lets it go.
    drop(fs::OpenOptions::new().write(true).open(&fifo).unwrap());
}

#[test]
fn a_hook_that_cannot_be_run_says_why() {
    let missing = hook(serde_json::json!({"path": "/no/such/hook"}));
    assert!(outcome(&[missing], &state()).contains("exit code 127; it said: it cannot be executed: "));
    let relative = hook(serde_json::json!({"path": "bin/sh"}));
    assert_eq!(outcome(&[relative], &state()), "run the prestart hook bin/sh: its path must be absolute");
    for timeout in [0, -1] {
        let hook = hook(serde_json::json!({"path": "/bin/sh", "timeout": timeout}));
        assert!(outcome(&[hook], &state()).contains("more than zero"));
    }
    let nul = hook(serde_json::json!({"path": "/bin/sh", "args": ["a\0b"]}));
    assert!(outcome(&[nul], &state()).contains("NUL"));
}

#[test]
fn a_hook_inherits_no_descriptor_and_no_signal_setting() {
    let place = tempfile::tempdir().unwrap();
    let secret = place.path().join("secret");
    // What the shell starts inherits what the shell did.
    let hook = shell("PATH=/bin:/usr/bin; ls -l /proc/self/fd; grep -E '^Sig(Blk|Ign)' /proc/self/status; exit 1");
    let seen = in_child(|| {
        let kept = File::create(&secret).unwrap();
        // SAFETY: plain integers; without FD_CLOEXEC the descriptor would outlive exec.
        assert_eq!(unsafe { libc::fcntl(kept.as_raw_fd(), libc::F_SETFD, 0) }, 0);
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).unwrap();
        // SAFETY: no handler is installed.
        unsafe { nix::sys::signal::signal(Signal::SIGUSR1, SigHandler::SigIgn) }.unwrap();
        failure(run(&[hook], "prestart", &state()))
    });
    assert!(seen.contains(" 2 -> pipe:") && !seen.contains("secret"), "{seen}");
    assert!(seen.contains("SigBlk:\t0000000000000000") && seen.contains("SigIgn:\t0000000000000000"), "{seen}");
}

#[test]
fn late_hooks_all_run_and_all_errors_are_told() {
    let place = tempfile::tempdir().unwrap();
    let last = shell(&format!("echo done > {}/out", place.path().display()));
    let errors = in_child(|| {
        let errors = run_all(&[shell("exit 1"), shell("exit 2"), last], "poststop", &state());
        errors.iter().map(|error| error.to_string() + "\n").collect()
    });
    assert_eq!(errors.lines().count(), 2);
    assert!(errors.contains("poststop") && errors.contains("exit code 1") && errors.contains("exit code 2"));
    assert_eq!(written(place.path()), "done\n");
}
