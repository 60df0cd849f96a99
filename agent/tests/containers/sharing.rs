//! Containers that share another's ipc and pid namespaces.

use std::{fs, path::PathBuf};

use roster_agent::runtime::{Exit, Phase};
use roster_proto::{
    cause::Cause,
    spec::{IpcMode, PidMode, TaskSpec},
    task::StopReason,
};

use crate::harness::{Host, eventually, sh, task};

fn beside(script: &str, ipc: bool, pid: bool) -> TaskSpec {
    let mut spec = sh(script);
    let db = || "db".parse().expect("a name");
    spec.rights.ipc = if ipc { IpcMode::Service(db()) } else { IpcMode::Private };
    spec.rights.pid = if pid { PidMode::Service(db()) } else { PidMode::Private };
    spec
}

fn namespace(pid: u32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a link").display().to_string()
}

async fn remove(host: &Host, name: &str) {
    host.containers.remove(&task(name)).await.expect("removed");
    assert_eq!(host.leftovers(name), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn it_sees_the_others_processes_and_queues_and_ends_with_it() {
    let host = Host::new();
    let db = host.start("db", sh("touch /dev/mqueue/made; echo up; exec sleep 1000")).await.expect("runs");
    host.said("db", "up").await;
    let look = "tr '\\0' ' ' < /proc/1/cmdline; ls /dev/mqueue; touch /dev/mqueue/back; echo seen; exec sleep 2000";
    for (name, ipc, pid) in [("both", true, true), ("ipc", true, false), ("pid", false, true)] {
        let app = host.start_beside("db", name, beside(look, ipc, pid)).await.expect("runs");
        let log = host.said(name, "seen").await;
        assert_eq!(namespace(app.pid, "ipc") == namespace(db.pid, "ipc"), ipc, "{name}");
        assert_eq!(namespace(app.pid, "pid") == namespace(db.pid, "pid"), pid, "{name}");
        for other in ["mnt", "net", "uts", "cgroup"] {
            assert_ne!(namespace(app.pid, other), namespace(db.pid, other), "{name}: {other}");
        }
        assert_eq!(log.contains("sleep 1000"), pid, "{name}: {log}");
        assert_eq!(log.contains("made"), ipc, "{name}: {log}");
        // What is executed in it later is in the same.
        let found = ["/bin/sh", "-c", "readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid"].map(str::to_owned);
        let probed = host.containers.probe(&task(name), &found, std::time::Duration::from_secs(10)).await;
        let expected = format!("{}\n{}", namespace(app.pid, "ipc"), namespace(app.pid, "pid"));
        assert_eq!(probed.expect("probed").output.trim(), expected);
    }

    assert!(host.containers.signal(&task("db"), nix::libc::SIGKILL).expect("sent"));
    assert_eq!(host.ended("db").await.how, Exit::Signal(nix::libc::SIGKILL));
    for name in ["both", "pid"] {
        assert_eq!(host.ended(name).await.how, Exit::Severed, "{name}");
    }
    // The kernel has no reason to end this one; what becomes of it is the agent's to say.
    assert!(matches!(host.phase("ipc"), Some(Phase::Running(_))));
    for name in ["db", "both", "ipc", "pid"] {
        remove(&host, name).await;
    }
}

#[tokio::test]
async fn its_own_end_is_its_own_and_takes_along_what_it_started() {
    let host = Host::new();
    host.start("db", sh("exec sleep 1000")).await.expect("runs");
    for (name, init) in [("plain", false), ("init", true)] {
        let spec = TaskSpec { init, ..beside("sleep 1234 & echo begun; exit 7", true, true) };
        host.start_beside("db", name, spec).await.expect("runs");
        assert_eq!(host.ended(name).await.how, Exit::Code(7));
        host.said(name, "begun").await;
        eventually("what it started has ended", || {
            let groups: Vec<PathBuf> = host.cgroups().into_iter().map(|dir| dir.join(name)).collect();
            let left = |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            let left: Vec<String> = groups.iter().map(left).collect();
            (left.iter().all(String::is_empty), left)
        })
        .await;
        remove(&host, name).await;
    }
    // The other one is not touched by it, and its removal ends what is still beside it.
    assert!(matches!(host.phase("db"), Some(Phase::Running(_))));
    host.start_beside("db", "last", beside("exec sleep 1000", false, true)).await.expect("runs");
    remove(&host, "db").await;
    assert_eq!(host.ended("last").await.how, Exit::Severed);
    remove(&host, "last").await;
}

#[tokio::test]
async fn with_one_that_does_not_run_it_does_not_begin_and_that_is_no_failure() {
    let host = Host::new();
    host.script("db", sh("exit 0")).await;
    for partner in ["db", "nobody"] {
        let error =
            host.start_beside(partner, "app", beside("exec sleep 1000", true, true)).await.expect_err("severed");
        assert_eq!(error.cause, Cause::Stopped { reason: StopReason::Severed });
        assert!(!error.transient);
        remove(&host, "app").await;
    }
    let error = host.start("app", beside("exec sleep 1000", true, false)).await.expect_err("nobody to share with");
    assert_eq!(error.cause, Cause::Stopped { reason: StopReason::Severed });
}
