//! What a spec gives a container beyond the default, or takes from it.

use std::{fs, path::Path};

use roster_agent::runtime::{Exit, Phase};
use roster_proto::{
    cause::Cause,
    spec::{Device, IpcMode, Mount, PidMode, Propagation, Rights, Seccomp, TaskSpec},
};

use crate::harness::{Host, eventually, sh, task};

fn with(script: &str, change: impl FnOnce(&mut Rights)) -> TaskSpec {
    let mut spec = sh(script);
    change(&mut spec.rights);
    spec
}

/// Runs it to its end and returns what it said.
async fn says(host: &Host, name: &str, spec: TaskSpec) -> String {
    let (how, log) = host.script(name, spec).await;
    assert_eq!(how, Exit::Code(0), "{name}: {log}");
    log
}

fn device(source: &str, target: &str, access: &str) -> Device {
    Device { source: source.into(), target: target.into(), access: access.into() }
}

/// Of this process, which is root.
fn own_status(field: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim_start_matches(':').trim().to_owned()
}

#[tokio::test]
async fn capabilities_are_added_and_dropped_as_dockers() {
    let host = Host::new();
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let held = u64::from_str_radix(&own_status("CapBnd"), 16).expect("hexadecimal");
    let cases = [
        ("plain", set(&[]), set(&[]), 0xa804_25fb),
        ("added", set(&["NET_ADMIN"]), set(&[]), 0xa804_25fb | 1 << 12),
        ("dropped", set(&[]), set(&["CHOWN", "NET_RAW"]), 0xa804_25fb & !(1 | 1 << 13)),
        ("none", set(&[]), set(&["ALL"]), 0),
        ("one", set(&["KILL"]), set(&["ALL"]), 1 << 5),
        ("all", set(&["ALL"]), set(&[]), held),
        ("nearly", set(&["ALL"]), set(&["SYS_ADMIN"]), held & !(1 << 21)),
    ];
    for (name, cap_add, cap_drop, expected) in cases {
        let spec = with("grep -E 'CapEff|CapBnd' /proc/self/status", |rights| {
            rights.cap_add = cap_add;
            rights.cap_drop = cap_drop;
        });
        let expected = format!("CapEff:\t{expected:016x}\nCapBnd:\t{expected:016x}\n");
        assert_eq!(says(&host, name, spec).await, expected, "{name}");
    }
}

#[tokio::test]
async fn groups_are_added_by_name_and_number() {
    let host = Host::new();
    let groups = |groups: &[&str]| groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>();
    let spec = TaskSpec { user: Some("77:77".to_owned()), ..with("id", |r| r.group_add = groups(&["extra", "5"])) };
    assert_eq!(says(&host, "t1", spec).await.trim(), "uid=77 gid=77 groups=5,2000(extra)");
    let error = host.start("t2", with("id", |r| r.group_add = groups(&["nobodies"]))).await.expect_err("refused");
    assert!(error.to_string().contains("/etc/group has no group \"nobodies\""), "{error}");
}

#[tokio::test]
async fn the_filter_of_system_calls_is_the_specs() {
    let host = Host::new();
    let script = "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; /bin/busybox chmod 700 /tmp 2>&1; \
                  unshare=$(/bin/busybox unshare -U true 2>&1) && echo unshared; true";
    let refuse_chmod = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
        [{"names": ["chmod", "fchmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    let seccomp = |seccomp| move |rights: &mut Rights| rights.seccomp = seccomp;
    assert_eq!(says(&host, "default", with(script, |_| {})).await, "NoNewPrivs:\t1\nSeccomp:\t2\n");
    let unconfined = says(&host, "unconfined", with(script, seccomp(Seccomp::Unconfined))).await;
    assert!(unconfined.starts_with("NoNewPrivs:\t1\nSeccomp:\t0\n"), "{unconfined}");
    let profile = says(&host, "profile", with(script, seccomp(Seccomp::Profile(refuse_chmod.to_owned())))).await;
    assert!(profile.starts_with("NoNewPrivs:\t1\nSeccomp:\t2\nchmod: /tmp: No space left on device\n"), "{profile}");
    let bad = Seccomp::Profile(r#"{"defaultAction": "SCMP_ACT_NONE"}"#.to_owned());
    let error = host.start("bad", with(script, seccomp(bad))).await.expect_err("refused");
    assert!(matches!(&error.cause, Cause::Impossible { what, .. } if what == "using the seccomp profile"), "{error}");
}

#[tokio::test]
async fn rights_grow_by_a_program_only_where_the_spec_lets_them() {
    let host = Host::new();
    // This applet of busybox's says so where it was not given root's rights.
    fs::copy("/bin/busybox", host.layer().join("bin/su")).expect("busybox");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    fs::set_permissions(host.layer().join("bin/su"), mode).expect("set-user-id");
    for (name, setting, refused) in [("default", None, true), ("yes", Some(true), true), ("no", Some(false), false)] {
        let spec = with("/bin/su -c true 2>&1; true", |rights| rights.no_new_privileges = setting);
        let log = says(&host, name, TaskSpec { user: Some("app".to_owned()), ..spec }).await;
        assert_eq!(log.contains("must be suid"), refused, "{name}: {log}");
    }
}

#[tokio::test]
async fn a_privileged_container_has_everything() {
    let host = Host::new();
    let script = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; \
                  grep -E ' /sys sysfs| /sys/fs/cgroup' /proc/mounts | grep -c ' rw'; \
                  cat /proc/sys/kernel/shmmni >/proc/sys/kernel/shmmni && echo sysctl; \
                  mount -t tmpfs none /tmp && echo mounted; \
                  mknod /dev/mine c 1 3 && echo x >/dev/mine && echo made; ls /dev";
    let log = says(&host, "t1", with(script, |rights| rights.privileged = true)).await;
    let lines: Vec<&str> = log.lines().collect();
    let effective = format!("CapEff:\t{}", own_status("CapBnd"));
    assert_eq!(lines[..3], [effective.as_str(), "NoNewPrivs:\t0", "Seccomp:\t0"], "{log}");
    assert!(lines[3].parse::<u32>().is_ok_and(|mounts| mounts >= 2), "{log}");
    assert_eq!(lines[4..7], ["sysctl", "mounted", "made"], "{log}");
    let nodes = fs::read_dir("/dev").expect("/dev").map(|entry| entry.expect("entry"));
    for node in nodes.filter(|node| {
        use std::os::unix::fs::FileTypeExt;
        let kind = node.file_type().expect("type");
        kind.is_block_device() || kind.is_char_device()
    }) {
        let name = node.file_name().into_string().expect("UTF-8");
        assert!(name == "console" || lines.contains(&name.as_str()), "{name} is missing: {log}");
    }
}

#[tokio::test]
async fn devices_are_those_named_with_the_access_given() {
    let host = Host::new();
    let script = "echo x >/dev/mine && echo written; \
                  (: </dev/messages) && echo readable; (: >/dev/messages) 2>/dev/null || echo not writable; \
                  mknod /dev/disk b 254 0 && (: </dev/disk) 2>/dev/null || echo no disk; \
                  mknod /vol/null c 1 3 && echo x >/vol/null && echo in the volume";
    // Any node will do: what counts is its number, here that of the kernel's messages.
    let kmsg = tempfile::tempdir().expect("tempdir");
    let node = kmsg.path().join("kmsg");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o644);
    nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFCHR, mode, nix::libc::makedev(1, 11)).expect("node");
    let volume = tempfile::tempdir().expect("tempdir");
    let mut spec = with(script, |rights| {
        rights.devices =
            vec![device("/dev/null", "/dev/mine", "rw"), device(node.to_str().expect("UTF-8"), "/dev/messages", "r")];
        rights.cap_add = ["SYSLOG".to_owned()].into();
    });
    // What every container may use it may use under another name as well, but for what the spec says of it.
    spec.mounts = vec![Mount::Bind {
        source: volume.path().to_owned(),
        target: "/vol".into(),
        read_only: false,
        create_source: false,
        propagation: Propagation::Rprivate,
    }];
    let log = says(&host, "t1", spec).await;
    assert_eq!(log, "written\nreadable\nnot writable\nno disk\nin the volume\n");

    let script = "mknod /dev/messages c 1 11 && (: </dev/messages) && echo readable; \
                  (: >/dev/messages) 2>/dev/null || echo not writable";
    let by_number = with(script, |rights| {
        rights.device_rules = vec!["c 1:* r".to_owned()];
        rights.cap_add = ["SYSLOG".to_owned()].into();
    });
    assert_eq!(says(&host, "number", by_number).await, "readable\nnot writable\n");

    let missing = with("true", |rights| rights.devices = vec![device("/dev/no-such", "/dev/x", "rwm")]);
    let error = host.start("t2", missing).await.expect_err("refused");
    assert!(error.to_string().contains("giving the container the device /dev/no-such"), "{error}");
    assert!(!error.transient);
}

#[tokio::test]
async fn nothing_of_the_kernel_is_masked_where_the_spec_says_so() {
    let host = Host::new();
    let script = "cat /proc/sys/kernel/shmmni >/proc/sys/kernel/shmmni && echo writable; grep -c . /proc/keys";
    let log = says(&host, "t1", with(script, |rights| rights.unmasked = true)).await;
    assert!(log.starts_with("writable\n") && log.lines().count() == 2, "{log}");
}

#[tokio::test]
async fn ipc_is_private_without_shared_memory_or_the_hosts() {
    let host = Host::new();
    let own = fs::read_link("/proc/self/ns/ipc").expect("link").display().to_string();
    let script = "readlink /proc/self/ns/ipc; grep -c ' /dev/shm ' /proc/mounts; true";
    let run = |name: &'static str, ipc| says(&host, name, with(script, move |rights| rights.ipc = ipc));
    let lines = |log: String| log.lines().map(str::to_owned).collect::<Vec<_>>();
    let (private, none, hosts) = (
        lines(run("private", IpcMode::Private).await),
        lines(run("none", IpcMode::None).await),
        lines(run("host", IpcMode::Host).await),
    );
    assert!(private[0] != own && private[1] == "1", "{private:?}");
    assert!(none[0] != own && none[1] == "0", "{none:?}");
    assert!(hosts[0] == own && hosts[1] == "1", "{hosts:?}");

    let file = tempfile::Builder::new().prefix("roster-test-").tempfile_in("/dev/shm").expect("file");
    let seen = format!("ls {}", file.path().display());
    let log = says(&host, "shared", with(&seen, |rights| rights.ipc = IpcMode::Host)).await;
    assert_eq!(Path::new(log.trim()), file.path());
}

#[tokio::test]
async fn in_the_hosts_pid_namespace_all_that_it_started_ends_with_it() {
    let host = Host::new();
    let own = fs::read_link("/proc/self/ns/pid").expect("link").display().to_string();
    let script = "readlink /proc/self/ns/pid; sleep 1000 & echo $$ $!; exit 4";
    for (name, init) in [("plain", false), ("init", true)] {
        let spec = TaskSpec { init, ..with(script, |rights| rights.pid = PidMode::Host) };
        let started = host.start(name, spec).await.expect("runs");
        assert_eq!(host.ended(name).await.how, Exit::Code(4));
        let log = host.log(name).await;
        let words: Vec<&str> = log.split_whitespace().collect();
        assert_eq!(words[0], own, "{log}");
        let (program, child) = (words[1], words[2]);
        assert_eq!(program == started.pid.to_string(), !init, "{log}");
        eventually("what it started has ended", || {
            let alive = fs::read_to_string(format!("/proc/{child}/stat"));
            (alive.as_ref().map_or(true, |stat| !stat.contains("(sleep)")), alive)
        })
        .await;
        assert!(matches!(host.phase(name), Some(Phase::Ended(_))));
        host.containers.remove(&task(name)).await.expect("removed");
        assert_eq!(host.leftovers(name), Vec::<std::path::PathBuf>::new());
    }
}
