//! A container's states, and which command fits which.

use std::{
    fs,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::Stdio,
};

use nix::libc;
use roster_runtime::sys;
use serde_json::{Value, json};

use crate::harness::{Bundle, said, until};

const CAP_AUDIT_WRITE: libc::c_ulong = 29;

#[test]
fn a_container_goes_from_created_to_running_to_stopped() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("trap 'exit 3' TERM; echo up > /up; while :; do sleep 0.01; done");
    let pid_file = bundle.file("pid");
    let created = bundle.detached(&["create", "--pid-file", pid_file.to_str().expect("text"), "one"]);
    assert_eq!(created.code, 0, "{created:?}");
    assert_eq!(bundle.status("one"), "created");
    let pid: u32 = fs::read_to_string(&pid_file).expect("written").parse().expect("a number");
    assert!(fs::exists(format!("/proc/{pid}")).expect("looked"));
    assert!(!bundle.path().join("rootfs/up").exists(), "the program does not run yet");
    assert!(bundle.refused(&["create", "one"]).contains("container with id one exists already"));
    assert!(bundle.refused(&["resume", "one"]).contains("cannot resume container one: it is created"));
    assert!(bundle.refused(&["delete", "one"]).contains("that is not stopped: it is created"));

    bundle.ok(&["start", "one"]);
    assert_eq!(bundle.status("one"), "running");
    until("the program to run", || bundle.path().join("rootfs/up").exists());
    assert!(bundle.refused(&["start", "one"]).contains("cannot start container one: it is running"));
    assert!(bundle.refused(&["delete", "one"]).contains("that is not stopped: it is running"));
    let state: Value = serde_json::from_str(&bundle.ok(&["state", "one"])).expect("JSON");
    assert_eq!((&state["id"], &state["pid"], &state["ociVersion"]), (&json!("one"), &json!(pid), &json!("1.0.2")));
    assert_eq!(state["bundle"], bundle.path().to_str().expect("text"));
    let listed = bundle.ok(&["list"]);
    assert!(listed.starts_with("ID") && listed.contains("one") && listed.contains("running"), "{listed}");

    bundle.ok(&["kill", "one", "TERM"]);
    bundle.until("one", "stopped");
    assert!(bundle.refused(&["kill", "one", "TERM"]).contains("container not running"));
    assert!(bundle.refused(&["exec", "one", "true"]).contains("container not running"));
    bundle.ok(&["delete", "one"]);
    assert!(bundle.refused(&["state", "one"]).contains("container one does not exist"));
    assert!(bundle.refused(&["delete", "one"]).contains("does not exist"));
    bundle.ok(&["delete", "--force", "one"]);
}

#[test]
fn run_passes_on_streams_signals_and_the_exit_code() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("cat; echo to-err >&2; exit 42");
    let mut child = bundle.spawn(&["run", "one"]);
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"through\n").expect("written");
    let ended = said(child.wait_with_output().expect("it ends"));
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (42, "through\n", "to-err\n"));
    assert!(bundle.ok(&["list", "-q"]).is_empty(), "it is gone");

    bundle.shell("trap 'exit 9' USR1; echo up > /up; while :; do sleep 0.01; done");
    let child = bundle.spawn(&["run", "two"]);
    until("the program to run", || bundle.path().join("rootfs/up").exists());
    // SAFETY: plain integers; the child is not reaped yet.
    unsafe { nix::libc::kill(child.id() as i32, nix::libc::SIGUSR1) };
    assert_eq!(said(child.wait_with_output().expect("it ends")).code, 9);

    bundle.shell("kill -9 $$; kill -9 -1; sleep 9");
    bundle.set("/linux/namespaces", json!([{ "type": "mount" }, { "type": "uts" }]));
    let ended = bundle.call(&["run", "three"]);
    assert_eq!(ended.code, 137, "as a shell says for SIGKILL: {ended:?}");
}

/// Else what the runtime opens next is taken for its standard output, and the container's.
#[test]
fn closed_standard_streams_are_nobodys() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("for fd in 0 1 2; do leads=$(readlink /proc/$$/fd/$fd); echo $leads >> /streams; done");
    let runtime = bundle.command(&["run", "one"]);
    let mut closing = std::process::Command::new("sh");
    closing.args(["-c", "exec \"$@\" <&- >&- 2>&-", "sh"]).arg(runtime.get_program()).args(runtime.get_args());
    let status = closing.current_dir(bundle.path()).status().expect("it runs");
    assert_eq!(status.code(), Some(0));
    let streams = std::fs::read_to_string(bundle.image("streams")).expect("written");
    assert_eq!(streams, "/dev/null\n".repeat(3));
}

#[test]
fn a_container_is_paused_and_goes_on() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("while :; do echo . >> /dots; sleep 0.01; done");
    assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
    let dots = || fs::metadata(bundle.path().join("rootfs/dots")).map_or(0, |file| file.len());
    until("dots", || dots() > 2);
    bundle.ok(&["pause", "one"]);
    assert_eq!(bundle.status("one"), "paused");
    let before = dots();
    let listed: Vec<i32> = serde_json::from_str(&bundle.ok(&["ps", "-f", "json", "one"])).expect("JSON");
    assert!(!listed.is_empty());
    assert!(bundle.refused(&["exec", "one", "true"]).contains("it is paused"));
    assert_eq!(dots(), before);
    bundle.ok(&["resume", "one"]);
    until("more dots", || dots() > before);
    bundle.ok(&["pause", "one"]);
    let still = bundle.processes("one");
    // Its process, which stands still, would keep a pipe open.
    let err = bundle.file("err");
    let mut call = bundle.command(&["exec", "--ignore-paused", "one", "true"]);
    let call = call.stdin(Stdio::null()).stderr(fs::File::create(&err).expect("a file"));
    let mut waiting = call.spawn().expect("it runs");
    until("exec to wait for the container", || bundle.processes("one") > still);
    // SAFETY: a child's pid, which nobody has waited for.
    assert_eq!(unsafe { libc::kill(waiting.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(waiting.wait().expect("it ends").code(), Some(1));
    let err = fs::read_to_string(&err).expect("written");
    assert!(err.contains("ended by the signal SIGTERM before the program ran"), "{err}");
    bundle.ok(&["delete", "--force", "one"]);
}

#[test]
fn a_created_container_is_paused_and_is_created_still() {
    let bundle = Bundle::new(&["/bin/true"]);
    assert_eq!(bundle.detached(&["create", "one"]).code, 0);
    bundle.ok(&["pause", "one"]);
    assert_eq!(bundle.status("one"), "paused");
    assert!(bundle.refused(&["start", "one"]).contains("it is paused"));
    bundle.ok(&["resume", "one"]);
    assert_eq!(bundle.status("one"), "created");
    bundle.ok(&["start", "one"]);
    bundle.until("one", "stopped");
    bundle.ok(&["delete", "one"]);
}

#[test]
fn what_is_not_made_yet_ends_by_a_signal_and_leaves_nothing() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    let held = bundle.file("held");
    let hook = bundle.script("hook", &format!("touch {}; exec sleep 1000", held.display()));
    // Run by the container's process, for which its maker waits.
    bundle.set("/hooks", json!({ "createContainer": [{ "path": hook }] }));
    let mut call = bundle.command(&["run", "one"]);
    let making = call.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
    until("the hook", || held.exists());
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(making.id() as i32, libc::SIGINT) }, 0);
    let ended = said(making.wait_with_output().expect("it ends"));
    assert!(ended.code == 1 && ended.err.contains("ended by the signal SIGINT before the program ran"), "{ended:?}");
    assert!(bundle.ok(&["list", "-q"]).is_empty());
    assert_eq!(bundle.processes("one"), 0);
}

#[test]
fn limits_are_set_changed_and_told() {
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
    let limit = || {
        let event: Value = serde_json::from_str(&bundle.ok(&["events", "--stats", "one"])).expect("JSON");
        (event["data"]["pids"]["limit"].as_u64(), event["data"]["memory"]["usage"]["limit"].as_u64())
    };
    assert_eq!(limit(), (Some(64), Some(67_108_864)));
    let event: Value = serde_json::from_str(&bundle.ok(&["events", "--stats", "one"])).expect("JSON");
    assert!(event["data"]["cpu"]["usage"]["total"].is_u64(), "{event}");
    bundle.ok(&["update", "--pids-limit", "32", "--memory", "33554432", "one"]);
    assert_eq!(limit(), (Some(32), Some(33_554_432)));
    bundle.ok(&["update", "--cpu-quota", "50000", "--cpu-period", "100000", "--cpu-burst", "20000", "one"]);
    let refused = bundle.refused(&["update", "--cpu-idle", "2", "one"]);
    assert!(refused.contains("2 is not in 0..=1"), "{refused}");
    bundle.ok(&["update", "--cpu-idle", "1", "one"]);
    let mut call = bundle.command(&["update", "--resources", "-", "one"]);
    let mut child = call.stdin(Stdio::piped()).spawn().expect("it runs");
    let resources = json!({ "pids": { "limit": 16 } }).to_string();
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), resources.as_bytes()).expect("written");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(limit().0, Some(16));
}

/// Where the kernel schedules real-time work by groups, and where it does not.
#[test]
fn real_time_work_runs_within_its_groups_budget() {
    let mut bundle = Bundle::new(&[]);
    bundle.perl(&format!("print syscall({}, 0), qq(\\n)", libc::SYS_sched_getscheduler));
    bundle.set("/process/scheduler", json!({ "policy": "SCHED_FIFO", "priority": 10 }));
    let fifo = format!("{}\n", libc::SCHED_FIFO);
    let budgets = fs::exists("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").expect("it is looked for");
    if !budgets {
        assert_eq!(bundle.ok(&["run", "one"]), fifo);
        return;
    }
    let refused = bundle.refused(&["run", "one"]);
    assert!(refused.contains("setting the scheduler SCHED_FIFO: its cgroup has no real-time budget"), "{refused}");
    bundle.set("/linux/resources/cpu", json!({ "realtimeRuntime": 10_000, "realtimePeriod": 1_000_000 }));
    let refused = bundle.refused(&["run", "one"]);
    assert!(refused.contains("is 0, and nothing below has more: write there first"), "{refused}");
    let above = bundle.config["linux"]["cgroupsPath"].as_str().expect("a path").trim_end_matches("/one").to_owned();
    fs::write(format!("/sys/fs/cgroup/cpu{above}/cpu.rt_runtime_us"), "10000").expect("the group's budget");
    assert_eq!(bundle.ok(&["run", "one"]), fifo);
    assert!(bundle.ok(&["list", "-q"]).is_empty());
}

#[test]
fn what_cannot_run_is_said_and_leaves_nothing() {
    let mut bundle = Bundle::new(&["/bin/none"]);
    for verb in ["create", "run"] {
        let said = bundle.refused(&[verb, "one"]);
        assert!(said.contains("running \"/bin/none\": executable file not found"), "{said}");
    }
    bundle.set("/process/args", json!(["none"]));
    assert!(bundle.refused(&["create", "one"]).contains("executable file not found in PATH=/bin"));
    bundle.set("/process/args", json!(["/etc/passwd"]));
    assert!(bundle.refused(&["run", "one"]).contains("permission denied"));
    bundle.set("/process/cwd", json!("/bin/sh"));
    bundle.set("/process/args", json!(["/bin/true"]));
    assert!(bundle.refused(&["run", "one"]).contains("working directory /bin/sh"));
    bundle.set("/process/cwd", json!("bin"));
    assert!(bundle.refused(&["run", "one"]).contains("process.cwd: \"bin\" is no absolute path"));
    bundle.set("/process/cwd", json!("/"));
    bundle.set("/process/env", json!(["PATH=/bin", "ab"]));
    assert!(bundle.refused(&["run", "one"]).contains("process.env: \"ab\" is no variable: write NAME=VALUE"));
    bundle.set("/process/env", json!(["PATH=/bin"]));
    bundle.set("/linux/resources/memory", json!({ "limit": 4096 }));
    let said = bundle.refused(&["run", "one"]);
    assert!(said.contains("it ran out of memory: linux.resources.memory.limit is 4096 bytes"), "{said}");
    bundle.set("/linux/resources/memory", json!({}));
    bundle.set("/linux/resources/rdma", json!({ "mlx": { "hcaHandles": 3 } }));
    assert!(bundle.refused(&["run", "one"]).contains("rdma"));
    assert!(bundle.ok(&["list", "-q"]).is_empty());
    fs::write(bundle.path().join("config.json"), "{").expect("written");
    let mut call = std::process::Command::new(env!("CARGO_BIN_EXE_roster-runtime"));
    let output = call.args(["run", "-b"]).arg(bundle.path()).arg("one").output().expect("it runs");
    assert!(output.status.signal().is_none() && !output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("config.json is not understood"));
}

/// The maker has sent it the filter by then, which it has not heard.
#[test]
fn what_fails_in_the_process_is_said_under_a_filter_too() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    let hook = bundle.script("hook", "exit 0");
    bundle.set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
    bundle.set("/hostname", json!("h".repeat(65)));
    let range = json!([{ "containerID": 0, "hostID": 200_000, "size": 65536 }]);
    bundle.set("/linux/uidMappings", range.clone());
    bundle.set("/linux/gidMappings", range);
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "user"].map(|kind| json!({ "type": kind }));
    for (namespaces, hooks) in [
        (&namespaces[..5], json!({})),
        (&namespaces[..], json!({})),
        (&namespaces[..5], json!({ "createRuntime": [{ "path": hook }] })),
        (&namespaces[..], json!({ "createRuntime": [{ "path": hook }] })),
    ] {
        bundle.set("/linux/namespaces", json!(namespaces));
        bundle.set("/hooks", hooks);
        for verb in ["create", "run"] {
            let said = bundle.refused(&[verb, "one"]);
            assert!(said.contains("set the host name"), "{verb}: {said}");
        }
    }
    assert!(bundle.ok(&["list", "-q"]).is_empty());
}

#[test]
fn a_capability_that_cannot_be_had_is_warned_of_once() {
    for init in [false, true] {
        let mut bundle = Bundle::new(&[]);
        bundle.shell("exit 5");
        bundle.set("/annotations", if init { json!({ "org.roster.init": "" }) } else { json!({}) });
        let mut without = bundle.command(&["run", "one"]);
        // SAFETY: one system call, between fork and exec.
        unsafe { without.pre_exec(|| sys::prctl(libc::PR_CAPBSET_DROP, CAP_AUDIT_WRITE)) };
        let ended = said(without.stdin(Stdio::null()).output().expect("it runs"));
        assert_eq!(ended.code, 5, "{ended:?}");
        for set in ["bounding", "permitted", "effective"] {
            let warning = format!("warning: left out of the {set} capabilities: CAP_AUDIT_WRITE");
            assert_eq!(ended.err.matches(&warning).count(), 1, "{ended:?}");
        }
        // Where there is a log, nothing is mixed with what the program says.
        let log = bundle.file("log");
        let mut without = bundle.command(&["--log", log.to_str().expect("text"), "run", "one"]);
        // SAFETY: as above.
        unsafe { without.pre_exec(|| sys::prctl(libc::PR_CAPBSET_DROP, CAP_AUDIT_WRITE)) };
        let ended = said(without.stdin(Stdio::null()).output().expect("it runs"));
        assert_eq!((ended.code, ended.err.as_str()), (5, ""));
        let logged = fs::read_to_string(&log).expect("written");
        assert_eq!(logged.matches("level=warning msg=\"left out of the").count(), 3, "{logged}");
        fs::remove_file(&log).expect("removed");
    }
}

#[test]
fn without_a_process_it_can_be_created_but_not_started() {
    let mut bundle = Bundle::new(&[]);
    bundle.config.as_object_mut().expect("an object").remove("process");
    assert!(bundle.refused(&["run", "one"]).contains("process: it is missing"));
    assert_eq!(bundle.detached(&["create", "one"]).code, 0);
    assert_eq!(bundle.status("one"), "created");
    assert!(bundle.refused(&["start", "one"]).contains("config.json, process: it is missing"));
    bundle.until("one", "stopped");
    bundle.ok(&["delete", "one"]);
}

#[test]
fn errors_are_logged_as_containerd_reads_them() {
    let bundle = Bundle::new(&["/bin/true"]);
    let log = bundle.file("log.json");
    bundle.refused(&["--log", log.to_str().expect("text"), "--log-format", "json", "state", "none"]);
    let line: Value = serde_json::from_str(&fs::read_to_string(log).expect("written")).expect("JSON");
    assert_eq!((&line["level"], &line["msg"]), (&json!("error"), &json!("container none does not exist")));
    let refused = bundle.refused(&["--systemd-cgroup", "list"]);
    assert!(refused.contains("native.cgroupdriver=cgroupfs"), "{refused}");
    assert!(bundle.ok(&["--version"]).starts_with("roster-runtime version "));
}

#[test]
fn a_capability_that_nobody_knows_is_left_out_with_a_warning() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.set("/process/capabilities/bounding", json!(["CAP_KILL", "CAP_FOO"]));
    let ended = said(bundle.command(&["run", "one"]).stdin(Stdio::null()).output().expect("it runs"));
    assert_eq!(ended.code, 0, "{ended:?}");
    let warning = "warning: left out of the bounding capabilities: \"CAP_FOO\": there is no such one";
    assert_eq!(ended.err.matches(warning).count(), 1, "{ended:?}");
}

#[test]
fn a_schedulers_flags_are_called_as_in_the_standard() {
    let mut bundle = Bundle::new(&[]);
    bundle.perl(&format!("print syscall({}, 0), qq(\\n)", libc::SYS_sched_getscheduler));
    bundle.set("/process/scheduler", json!({ "policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"] }));
    assert_eq!(bundle.ok(&["run", "one"]), format!("{}\n", libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK));
    bundle.set("/process/scheduler/flags", json!(["SCHED_FLAG_DL_OVERRUN", "SCHED_NO_SUCH"]));
    let refused = bundle.refused(&["run", "one"]);
    assert!(refused.contains("SCHED_NO_SUCH"), "{refused}");
}

/// Java, for one, believes no limit where that of its processors is not among what it sees.
#[test]
fn where_groups_are_seen_they_are_the_containers_own() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell(
        "cd /sys/fs/cgroup; cat cpuset/cpuset.cpus cpuset.cpus.effective 2> /dev/null; grep -c /one /proc/self/cgroup",
    );
    bundle.mount(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
    let seen = bundle.ok(&["run", "one"]);
    assert!(seen.starts_with('0'), "{seen}");
    let v1 = fs::exists("/sys/fs/cgroup/pids").expect("it is looked for");
    let count = seen.lines().last().and_then(|count| count.parse::<usize>().ok());
    // pids, memory, cpu, cpuacct, cpuset and devices, however many of them share a hierarchy.
    assert!(count.is_some_and(|count| if v1 { count >= 5 } else { count == 1 }), "{seen}");
}

/// Its maker was killed before there was a record of it.
#[test]
fn what_was_half_made_is_removed_with_its_groups() {
    let bundle = Bundle::new(&["/bin/true"]);
    bundle.ok(&["run", "one"]);
    let folder = bundle.file("state/one");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("config.json"), bundle.config.to_string()).expect("written");
    let path = bundle.config["linux"]["cgroupsPath"].as_str().expect("a path");
    let roots = if fs::exists("/sys/fs/cgroup/pids").expect("it is looked for") {
        vec!["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"]
    } else {
        vec!["/sys/fs/cgroup"]
    };
    let groups: Vec<String> = roots.iter().map(|root| format!("{root}{path}")).collect();
    groups.iter().for_each(|group| fs::create_dir_all(group).expect("made"));
    assert_eq!(bundle.status("one"), "creating");
    bundle.ok(&["delete", "--force", "one"]);
    assert!(groups.iter().all(|group| !fs::exists(group).expect("it is looked for")) && !folder.exists());
}
