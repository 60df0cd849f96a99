//! A terminal for the main process, and a standard input that stays open.

use roster_agent::runtime::Exit;
use roster_proto::spec::TaskSpec;

use crate::harness::{Host, eventually, sh, task};

#[tokio::test]
async fn a_terminal_is_standard_input_and_output_and_is_logged() {
    let host = Host::new();
    let script = "for fd in 0 1 2; do [ -t $fd ] && echo $fd is a terminal; done; echo to stderr >&2; \
                  echo $TERM; /bin/busybox tty; : >/dev/tty && echo controlled; : >/dev/console && echo console; \
                  exit 7";
    for (name, init) in [("plain", false), ("init", true)] {
        let (how, log) = host.script(name, TaskSpec { tty: true, init, ..sh(script) }).await;
        // A terminal ends its lines with both characters.
        insta::allow_duplicates! {
            insta::assert_snapshot!(format!("{how:?}\n{}", log.replace("\r\n", "\n")), @"
            Code(7)
            0 is a terminal
            1 is a terminal
            2 is a terminal
            to stderr
            xterm
            /dev/pts/0
            controlled
            console
            ");
        }
    }
}

#[tokio::test]
async fn the_user_may_open_the_terminal_again() {
    let host = Host::new();
    for (name, tty) in [("terminal", true), ("pipe", false)] {
        let spec = TaskSpec { tty, user: Some("app".to_owned()), ..sh("echo again >/dev/stdout") };
        let (how, log) = host.script(name, spec).await;
        assert_eq!((how, log.trim()), (Exit::Code(0), "again"), "{name}");
    }
}

#[tokio::test]
async fn standard_input_is_empty_unless_it_is_kept_open() {
    let host = Host::new();
    let script = "echo ready; cat; echo ended";
    assert_eq!(host.script("empty", sh(script)).await, (Exit::Code(0), "ready\nended\n".to_owned()));
    for tty in [false, true] {
        let name = if tty { "terminal" } else { "pipe" };
        let started = host.start(name, TaskSpec { stdin_open: true, tty, ..sh(script) }).await.expect("runs");
        host.said(name, "ready").await;
        // It waits in read(2), which has the number 0, of descriptor 0.
        let call = || std::fs::read_to_string(format!("/proc/{}/task/{}/children", started.pid, started.pid));
        eventually("cat reads its standard input", || {
            let child = call().unwrap_or_default();
            let doing = std::fs::read_to_string(format!("/proc/{}/syscall", child.trim())).unwrap_or_default();
            (doing.starts_with("0 0x0 "), doing)
        })
        .await;
        host.containers.kill(&task(name)).await.expect("killed");
        assert_eq!(host.ended(name).await.how, Exit::Signal(9));
    }
}

#[tokio::test]
async fn a_probe_needs_no_terminal() {
    let host = Host::new();
    host.start("t1", TaskSpec { tty: true, ..sh("sleep 1000") }).await.expect("runs");
    let probe = ["/bin/sh", "-c", "[ -t 1 ] || echo none"].map(str::to_owned);
    let probed = host.containers.probe(&task("t1"), &probe, std::time::Duration::from_secs(20)).await.expect("probed");
    assert_eq!((probed.code, probed.output.trim()), (Some(0), "none"));
}
