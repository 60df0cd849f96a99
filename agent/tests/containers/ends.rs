//! How containers fail to start, and how they end.

use roster_agent::runtime::{Exit, Phase};
use roster_proto::spec::{Limits, Mount, Propagation, TaskSpec};

use crate::harness::{Host, eventually, sh, task};

#[tokio::test]
async fn what_cannot_start_says_why() {
    let host = Host::new();
    let run = |program: &str| TaskSpec { command: Some(vec![program.to_owned()]), ..sh("") };
    std::fs::write(host.layer().join("script"), "#!/no/interpreter\n").expect("script");
    std::fs::write(host.layer().join("garbage"), "garbage").expect("file");
    for name in ["script", "garbage"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(host.layer().join(name), mode).expect("mode");
    }
    let bind = Mount::Bind {
        source: "/nowhere/at/all".into(),
        target: "/x".into(),
        read_only: true,
        create_source: false,
        propagation: Propagation::Rprivate,
    };
    let specs = [
        run("nope"),
        run("/bin/nope"),
        run("/plain"),
        run("/script"),
        run("/garbage"),
        TaskSpec { user: Some("ghost".to_owned()), ..sh("true") },
        TaskSpec { user: Some("app:ghosts".to_owned()), ..sh("true") },
        TaskSpec { mounts: vec![bind], ..sh("true") },
        TaskSpec { stop_signal: Some("SIGNOPE".to_owned()), ..sh("true") },
        TaskSpec { working_dir: Some("/plain".to_owned()), ..sh("true") },
        TaskSpec { command: None, ..sh("true") },
    ];
    let mut messages = String::new();
    for (number, spec) in specs.into_iter().enumerate() {
        let name = format!("t{number}");
        let error = host.start(&name, spec).await.expect_err("cannot start");
        messages += &format!("{error}\n");
        assert_eq!(host.leftovers(&name), Vec::<std::path::PathBuf>::new());
    }
    insta::assert_snapshot!(messages, @r#"
    running "nope" is impossible here: executable file not found in PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin: no such program there (a shell calls this exit code 127)
    running "/bin/nope" is impossible here: executable file not found: no such program there (a shell calls this exit code 127)
    running "/plain" is impossible here: permission denied: it is not executable, or its directory may not be entered (a shell calls this exit code 126)
    running "/script" is impossible here: the file is there, but the interpreter or dynamic linker it names is not
    running "/garbage" is impossible here: it is no program for this machine: exec format error (a shell calls this exit code 126)
    running as user "ghost" is impossible here: the container's /etc/passwd has no user "ghost"
    running as user "app:ghosts" is impossible here: the container's /etc/group has no group "ghosts"
    the bind mount on /x is impossible here: its source /nowhere/at/all does not exist on this node
    stopping with signal "SIGNOPE" is impossible here: there is no such signal: write SIGTERM, TERM or 15
    cannot start: enter the working directory /plain: Not a directory (os error 20)
    running image busybox is impossible here: neither the spec nor the image says which program to run: set `command`
    "#);
}

#[tokio::test]
async fn codes_and_signals_are_told_apart() {
    let host = Host::new();
    assert_eq!(host.script("c0", sh("exit 0")).await.0, Exit::Code(0));
    assert_eq!(host.script("c7", sh("echo out; echo err >&2; exit 7")).await, (Exit::Code(7), "out\nerr\n".to_owned()));
    let started = host.start("s9", sh("sleep 1000")).await.expect("runs");
    assert_eq!(host.phase("s9"), Some(Phase::Running(started.clone())));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(started.pid as i32), nix::sys::signal::SIGKILL).expect("killed");
    let ended = host.ended("s9").await;
    assert_eq!(ended.how, Exit::Signal(9));
    assert_eq!(host.phase("s9"), Some(Phase::Ended(ended)));
    // Starting what already ended begins anew; starting what runs changes nothing.
    let first = host.start("s9", sh("sleep 1000")).await.expect("runs");
    assert_eq!(host.start("s9", sh("sleep 1000")).await.expect("runs"), first);
}

#[tokio::test]
async fn a_container_that_ignores_its_stop_signal_is_killed() {
    let host = Host::new();
    host.start("t1", sh("trap 'echo ignored' TERM; echo up; while :; do sleep 0.01; done")).await.expect("runs");
    host.said("t1", "up").await;
    host.containers.stop(&task("t1")).await.expect("signalled");
    host.said("t1", "ignored").await;
    assert!(matches!(host.phase("t1"), Some(Phase::Running(_))));
    host.containers.kill(&task("t1")).await.expect("killed");
    assert_eq!(host.ended("t1").await.how, Exit::Signal(9));
    host.containers.stop(&task("t1")).await.expect("nothing left to signal");
}

#[tokio::test]
async fn the_specs_stop_signal_is_sent() {
    let host = Host::new();
    let spec = TaskSpec {
        stop_signal: Some("USR1".to_owned()),
        ..sh("trap 'exit 5' USR1; echo up; while :; do sleep 0.01; done")
    };
    host.start("t1", spec).await.expect("runs");
    host.said("t1", "up").await;
    host.containers.stop(&task("t1")).await.expect("signalled");
    assert_eq!(host.ended("t1").await.how, Exit::Code(5));
}

#[tokio::test]
async fn init_reaps_passes_signals_on_and_exits_as_its_child() {
    let host = Host::new();
    // The orphan is a zombie from its end until it is reaped.
    let script = "trap 'exit 6' TERM; (sh -c 'echo >/tmp/gone' & exec true); \
                  until [ -e /tmp/gone ]; do :; done; \
                  n=0; while grep -q zombie /proc/[0-9]*/status && [ $n -lt 500 ]; do n=$((n + 1)); done; \
                  ps; echo up; while :; do sleep 0.01; done";
    host.start("t1", TaskSpec { init: true, ..sh(script) }).await.expect("runs");
    let log = host.said("t1", "up").await;
    assert!(log.contains("1 root") && !log.contains(" Z ") && !log.contains("[sh]"), "{log}");
    host.containers.stop(&task("t1")).await.expect("signalled");
    assert_eq!(host.ended("t1").await.how, Exit::Code(6));
}

#[tokio::test]
async fn codes_and_signals_are_told_apart_under_init_too() {
    let host = Host::new();
    let limits = Limits { memory: Some(32 << 20), ..Limits::default() };
    for (number, (script, how)) in [
        ("exit 0", Exit::Code(0)),
        ("exit 139", Exit::Code(139)),
        ("kill -SEGV $$", Exit::Signal(11)),
        ("kill -9 $$", Exit::Signal(9)),
        ("exec tail /dev/zero", Exit::OutOfMemory { limit: limits.memory }),
    ]
    .into_iter()
    .enumerate()
    {
        let mut spec = TaskSpec { init: true, ..sh(script) };
        spec.resources.limits = limits.clone();
        assert_eq!(host.script(&format!("t{number}"), spec).await.0, how, "{script}");
    }
    // The init itself, from the host: its program dies with it.
    let started = host.start("init", TaskSpec { init: true, ..sh("sleep 1000") }).await.expect("runs");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(started.pid as i32), nix::sys::signal::SIGKILL).expect("killed");
    assert_eq!(host.ended("init").await.how, Exit::Signal(9));
}

#[tokio::test]
async fn a_container_dies_with_its_shim() {
    let host = Host::new();
    let started = host.start("t1", sh("sleep 1000 & sleep 1000")).await.expect("runs");
    let status = std::fs::read_to_string(format!("/proc/{}/status", started.pid)).expect("status");
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).expect("parent").parse().expect("pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::SIGKILL).expect("killed");
    assert_eq!(host.ended("t1").await.how, Exit::ShimLost);
    eventually("the container is gone", || {
        let path = format!("/proc/{}", started.pid);
        (!std::path::Path::new(&path).exists(), path)
    })
    .await;
    assert!(matches!(host.phase("t1"), Some(Phase::Ended(ended)) if ended.how == Exit::ShimLost));
    host.containers.remove(&task("t1")).await.expect("removed");
    assert_eq!(host.leftovers("t1"), Vec::<std::path::PathBuf>::new());
}
