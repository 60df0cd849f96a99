//! Containers made by another OCI runtime: Debian's runc, and `roster-runtime` by its command line.

use std::{path::PathBuf, time::Duration};

use roster_agent::runtime::{Exit, Phase, linux::foreign::ForeignRuntime};
use roster_proto::{
    cause::Cause,
    spec::{Limits, NetworkMode, TaskSpec},
};

use crate::harness::{Host, eventually, sh, task};

/// Those that this machine has, by their names.
fn found() -> Vec<(&'static str, PathBuf)> {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_roster-shim")).with_file_name("roster-runtime");
    let all = [("runc", PathBuf::from("/usr/sbin/runc")), ("roster-runtime", built)];
    let found: Vec<_> = all.into_iter().filter(|(_, program)| program.exists()).collect();
    assert!(!found.is_empty(), "install runc, or build roster-runtime");
    found
}

fn host_with(runtimes: &[(&'static str, PathBuf)]) -> Host {
    let mut host = Host::new();
    let known = |(name, program): &(&str, PathBuf)| {
        ((*name).to_owned(), ForeignRuntime { program: program.clone(), args: Vec::new() })
    };
    host.config.runtimes = runtimes.iter().map(known).collect();
    host.restart();
    host
}

fn by(runtime: &str, script: &str) -> TaskSpec {
    TaskSpec { runtime: Some(runtime.to_owned()), ..sh(script) }
}

async fn gone(host: &Host, name: &str) {
    host.containers.remove(&task(name)).await.expect("removed");
    assert_eq!(host.leftovers(name), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn another_runtime_makes_the_container_as_the_spec_says() {
    let runtimes = found();
    let host = host_with(&runtimes);
    for (runtime, _) in &runtimes {
        let script = "id; hostname; pwd; echo $HOME $ROSTER_TASK_NAME; ulimit -n; cat /proc/sys/net/core/somaxconn; \
                      grep -E 'NoNewPrivs|CapEff|Seccomp:' /proc/self/status; echo wrong >&2; exit 7";
        let mut spec = by(runtime, script);
        spec.user = Some("app".to_owned());
        spec.rights.group_add = vec!["5".to_owned()];
        spec.working_dir = Some("/tmp".to_owned());
        let limit = roster_proto::spec::Ulimit { soft: Some(77), hard: Some(77) };
        spec.kernel.ulimits.insert("nofile".to_owned(), limit);
        spec.kernel.sysctls.insert("net.core.somaxconn".to_owned(), "44".to_owned());
        let (how, log) = host.script(runtime, spec).await;
        let expected = "uid=1000(app) gid=1000(app) groups=5,2000(extra)\nweb-2\n/tmp\n/home/app web.2\n77\n44\n\
                        CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nwrong\n";
        // Standard error is another pipe, of which nobody knows when it came.
        let mut lines: Vec<&str> = log.lines().filter(|line| *line != "wrong").collect();
        lines.push("wrong");
        assert_eq!(lines.join("\n") + "\n", expected, "{runtime}");
        assert_eq!(how, Exit::Code(7), "{runtime}");
        assert!(matches!(host.phase(runtime), Some(Phase::Ended(_))), "{runtime}");
        gone(&host, runtime).await;
    }
}

#[tokio::test]
async fn its_containers_are_stopped_probed_killed_and_found_again() {
    let runtimes = found();
    let mut host = host_with(&runtimes);
    for (runtime, _) in &runtimes {
        let stopping = format!("stop-{runtime}");
        host.start(&stopping, by(runtime, "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done"))
            .await
            .expect("runs");
        host.said(&stopping, "up").await;
        let probe = |line: &str| ["/bin/sh", "-c", line].map(str::to_owned);
        let timeout = Duration::from_secs(20);
        let probed =
            host.containers.probe(&task(&stopping), &probe("hostname; exit 5"), timeout).await.expect("probed");
        assert_eq!((probed.code, probed.output.trim()), (Some(5), "web-2"), "{runtime}");
        let slow = host.containers.probe(&task(&stopping), &probe("sleep 1000"), Duration::from_millis(300)).await;
        assert_eq!(slow.expect("probed").code, None, "{runtime}");
        host.restart();
        assert!(matches!(host.phase(&stopping), Some(Phase::Running(_))), "{runtime}");
        host.containers.stop(&task(&stopping)).await.expect("signalled");
        assert_eq!(host.ended(&stopping).await.how, Exit::Code(3), "{runtime}");
        gone(&host, &stopping).await;

        let killed = format!("kill-{runtime}");
        host.start(&killed, by(runtime, "sleep 1000 & sleep 1000")).await.expect("runs");
        host.containers.kill(&task(&killed)).await.expect("killed");
        assert_eq!(host.ended(&killed).await.how, Exit::Signal(9), "{runtime}");
        gone(&host, &killed).await;
    }
}

#[tokio::test]
async fn without_its_shim_it_is_killed_and_taken_away() {
    let runtimes = found();
    let host = host_with(&runtimes);
    for (runtime, _) in &runtimes {
        let started = host.start(runtime, by(runtime, "sleep 1000")).await.expect("runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", started.pid)).expect("status");
        let shim =
            status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("parent").trim().parse().expect("pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).expect("killed");
        assert_eq!(host.ended(runtime).await.how, Exit::ShimLost, "{runtime}");
        gone(&host, runtime).await;
        eventually("its process is gone", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", started.pid));
            (stat.as_ref().map_or(true, |stat| stat.contains(") Z ")), stat)
        })
        .await;
    }
}

#[tokio::test]
async fn it_has_a_terminal_and_an_open_standard_input_too() {
    let runtimes = found();
    let host = host_with(&runtimes);
    for (runtime, _) in &runtimes {
        let spec = TaskSpec { tty: true, ..by(runtime, "[ -t 0 ] && [ -t 1 ] && echo terminal $TERM") };
        let (how, log) = host.script(&format!("tty-{runtime}"), spec).await;
        assert_eq!((how, log.trim()), (Exit::Code(0), "terminal xterm"), "{runtime}");
        let name = format!("stdin-{runtime}");
        let spec = TaskSpec { stdin_open: true, ..by(runtime, "readlink /proc/self/fd/0; cat") };
        host.start(&name, spec).await.expect("runs");
        host.said(&name, "pipe:[").await;
        assert!(matches!(host.phase(&name), Some(Phase::Running(_))), "{runtime}");
        gone(&host, &name).await;
    }
}

#[tokio::test]
async fn what_it_cannot_run_is_told_in_its_words_and_leaves_nothing() {
    let runtimes = found();
    let host = host_with(&runtimes);
    for (runtime, _) in &runtimes {
        let mut spec = by(runtime, "");
        spec.command = Some(vec!["/no/such/program".to_owned()]);
        let error = host.start("t1", spec).await.expect_err("cannot run");
        assert!(error.to_string().contains("/no/such/program"), "{runtime}: {error}");
        assert_eq!(host.leftovers("t1"), Vec::<PathBuf>::new(), "{runtime}");
        let spec = TaskSpec { user: Some("nobody".to_owned()), ..by(runtime, "true") };
        let error = host.start("t2", spec).await.expect_err("no such user");
        assert!(error.to_string().contains("has no user \"nobody\""), "{runtime}: {error}");
        let error = host.start("t3", TaskSpec { init: true, ..by(runtime, "true") }).await.expect_err("no init");
        assert!(error.to_string().contains("remove `init`, or `runtime`"), "{runtime}: {error}");
    }
}

/// Nothing is in its log: it did not come as far as to know of one.
#[tokio::test]
async fn one_that_does_not_understand_how_it_is_called_is_told_too() {
    let runtimes = found();
    let mut host = host_with(&runtimes);
    host.config.runtimes.values_mut().for_each(|runtime| runtime.args.push("--no-such-flag".to_owned()));
    host.restart();
    for (runtime, _) in &runtimes {
        let error = host.start(runtime, by(runtime, "true")).await.expect_err("misunderstood");
        assert!(error.to_string().contains("no-such-flag"), "{runtime}: {error}");
        assert_eq!(host.leftovers(runtime), Vec::<PathBuf>::new(), "{runtime}");
    }
}

#[tokio::test]
async fn a_runtime_that_the_node_does_not_know_is_refused() {
    let host = Host::new();
    let error = host.start("t1", by("runsc", "true")).await.expect_err("unknown");
    let Cause::Impossible { what, reason } = &error.cause else { panic!("{error}") };
    assert_eq!(what, "running it by the runtime runsc");
    assert!(reason.contains("--runtime runsc=PROGRAM") && !error.transient, "{reason}");
    assert_eq!(host.leftovers("t1"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn limits_hold_under_another_runtime() {
    let runtimes = found();
    let host = host_with(&runtimes);
    for (runtime, _) in &runtimes {
        let mut spec = by(runtime, "exec tail /dev/zero");
        spec.network = NetworkMode::Host;
        spec.resources.limits = Limits { memory: Some(32 << 20), ..Limits::default() };
        let (how, log) = host.script(runtime, spec).await;
        assert_eq!(how, Exit::OutOfMemory { limit: Some(32 << 20) }, "{runtime}: {log}");
    }
}
