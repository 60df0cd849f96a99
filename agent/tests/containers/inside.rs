//! What a container sees of itself and of the host.

use std::{fs, os::unix::fs::symlink};

use roster_agent::runtime::Exit;
use roster_proto::{
    cause::Cause,
    spec::{Mount, Propagation, TaskSpec, TmpfsOptions},
};

use crate::harness::{Host, sh, task};

fn bind(source: &std::path::Path, target: &str, read_only: bool) -> Mount {
    let propagation = Propagation::Rprivate;
    Mount::Bind { source: source.to_owned(), target: target.into(), read_only, create_source: false, propagation }
}

#[tokio::test]
async fn names_environment_and_processes() {
    let host = Host::new();
    let script = "hostname; cat /etc/hostname; echo $FROM_IMAGE $ROSTER_TASK_NAME $ROSTER_NODE $A $HOME; pwd; \
                  cat /proc/1/comm; echo $$; grep web-2 /etc/hosts; \
                  cat /proc/self/cgroup | grep -v ':/$'; ls /proc/self/fd; ip link | grep -c ': '";
    let mut spec = sh(script);
    spec.environment.insert("A".to_owned(), "b c".to_owned());
    spec.working_dir = Some("/made/here".to_owned());
    let (how, log) = host.script("t1", spec).await;
    insta::assert_snapshot!(format!("{how:?}\n{log}"), @"
    Code(0)
    web-2
    web-2
    yes web.2 vm1 b c /root
    /made/here
    sh
    1
    127.0.1.1	web-2
    0
    1
    2
    3
    1
    ");
}

#[tokio::test]
async fn users_come_from_the_containers_own_files() {
    let host = Host::new();
    for (number, (user, expected)) in [
        (None, "uid=0(root) gid=0(root)"),
        (Some("app"), "uid=1000(app) gid=1000(app) groups=2000(extra)"),
        (Some("1000:2000"), "uid=1000(app) gid=2000(extra)"),
        (Some("77"), "uid=77 gid=0(root)"),
    ]
    .into_iter()
    .enumerate()
    {
        let spec = TaskSpec { user: user.map(str::to_owned), ..sh("id") };
        let (how, log) = host.script(&format!("t{number}"), spec).await;
        assert_eq!((how, log.trim()), (Exit::Code(0), expected), "user {user:?}");
    }
}

#[tokio::test]
async fn privileges_are_dockers_and_cannot_grow() {
    let host = Host::new();
    // Without a shell, which ignores signals of its own.
    let command = ["grep", "-E", "Cap|NoNewPrivs|SigIgn|SigBlk", "/proc/self/status"].map(str::to_owned).to_vec();
    let spec = TaskSpec { command: Some(command), ..sh("") };
    let (_, root) = host.script("root", spec.clone()).await;
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD
    // AUDIT_WRITE SETFCAP
    let set = "00000000a80425fb";
    let none = "0000000000000000";
    let status = |inheritable, permitted, effective, bounding| {
        format!(
            "SigBlk:\t{none}\nSigIgn:\t{none}\nCapInh:\t{inheritable}\nCapPrm:\t{permitted}\nCapEff:\t{effective}\n\
             CapBnd:\t{bounding}\nCapAmb:\t{none}\nNoNewPrivs:\t1\n"
        )
    };
    assert_eq!(root, status(none, set, set, set));
    let (_, app) = host.script("app", TaskSpec { user: Some("app".to_owned()), ..spec }).await;
    assert_eq!(app, status(none, none, none, set));
}

#[tokio::test]
async fn the_kernel_is_masked_and_devices_are_out_of_reach() {
    let host = Host::new();
    let script = "cat /proc/kcore /proc/keys 2>/dev/null | wc -c; ls /sys/firmware | wc -l; \
                  echo x 2>/dev/null >/proc/sys/kernel/hostname || echo proc-sys-ro; \
                  touch /sys/x 2>/dev/null || echo sys-ro; \
                  echo x >/dev/null && echo null-works; cat /dev/zero | dd bs=4 count=1 2>/dev/null | wc -c; \
                  for d in / /dev /tmp /vol; do mknod $d/disk b 254 0 && cat $d/disk 2>/dev/null || echo $d-nodev; done; \
                  mount -t tmpfs none /tmp 2>/dev/null || echo no-mount; readlink /dev/fd; readlink /dev/ptmx";
    let mut spec = sh(&script.replace("wc -", "/bin/busybox wc -"));
    let volume = tempfile::tempdir().expect("tempdir");
    spec.mounts = vec![bind(volume.path(), "/vol", false)];
    let (how, log) = host.script("t1", spec).await;
    insta::assert_snapshot!(format!("{how:?}\n{log}"), @"
    Code(0)
    0
    0
    proc-sys-ro
    sys-ro
    null-works
    4
    /-nodev
    /dev-nodev
    /tmp-nodev
    /vol-nodev
    no-mount
    /proc/self/fd
    pts/ptmx
    ");
}

#[tokio::test]
async fn nothing_of_the_hosts_can_be_changed_from_within() {
    let host = Host::new();
    // Each way to the host's own /dev/null: the device, what covers a masked path, standard input. The modes are what
    // they are already, so that a failure of this test does not harm the host.
    let script = "for f in /dev/null /dev/tty /proc/keys /proc/self/fd/0; do \
                      chmod 666 $f 2>/dev/null && echo $f; touch -c $f 2>/dev/null && echo touched $f; done; \
                  echo x >/dev/null && cat </dev/null && echo usable";
    let script = script.replace("chmod", "/bin/busybox chmod");
    let (how, log) = host.script("t1", sh(&script)).await;
    assert_eq!((how, log.as_str()), (Exit::Code(0), "usable\n"));

    let probe = ["/bin/busybox", "chmod", "666", "/proc/self/fd/0"].map(str::to_owned);
    host.start("t2", sh("sleep 1000")).await.expect("runs");
    let probed = host.containers.probe(&task("t2"), &probe, std::time::Duration::from_secs(20)).await.expect("probed");
    assert_eq!(probed.code, Some(1), "{}", probed.output);
}

#[tokio::test]
async fn what_a_container_writes_does_not_land_in_the_run_directory() {
    let host = Host::new();
    let script = "for f in hosts hostname resolv.conf; do dd if=/dev/zero of=/etc/$f bs=1M count=2 2>/dev/null; done";
    host.script("t1", sh(script)).await;
    let mut dirs = vec![host.config.run_dir.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable")) {
            let metadata = entry.metadata().expect("there");
            assert!(metadata.len() < 1 << 20, "{:?} has {} bytes", entry.path(), metadata.len());
            dirs.extend(metadata.is_dir().then(|| entry.path()));
        }
    }
}

#[tokio::test]
async fn a_bound_dev_is_left_as_it_is() {
    let host = Host::new();
    let dev = tempfile::tempdir().expect("tempdir");
    fs::write(dev.path().join("mine"), "").expect("written");
    let mut spec = sh("ls /dev");
    spec.mounts = vec![bind(dev.path(), "/dev", false)];
    let (how, log) = host.script("t1", spec).await;
    assert_eq!((how, log.as_str()), (Exit::Code(0), "mine\n"));
}

#[tokio::test]
async fn process_1_shows_nothing_of_the_host() {
    let host = Host::new();
    let script = "cat /proc/1/comm; tr '\\0' ' ' </proc/1/cmdline; echo; \
                  cat /proc/1/environ 2>/dev/null || echo no environ; readlink /proc/1/exe || echo no exe; \
                  readlink /proc/1/cwd || echo no cwd; readlink /proc/1/root || echo no root; \
                  for fd in 0 1 2 3 4; do readlink /proc/1/fd/$fd; \
                  (echo x >/proc/1/fd/$fd) 2>/dev/null && echo open; done; echo no fd; \
                  cat /proc/1/maps 2>/dev/null || echo no maps";
    for (name, user) in [("root", None), ("app", Some("app".to_owned()))] {
        let (how, log) = host.script(name, TaskSpec { init: true, user, ..sh(script) }).await;
        let hidden = "no environ\nno exe\nno cwd\nno root\nno fd\nno maps\n";
        assert_eq!((how, log), (Exit::Code(0), format!("roster-init\nroster-init \n{hidden}")), "as {name}");
    }
    // Without an init it is the program itself, with what the spec gave it.
    let script = "tr '\\0' '\\n' </proc/1/environ | grep -v -E '^(ROSTER_.*|FROM_IMAGE|PATH|HOME|HOSTNAME)='; \
                  readlink /proc/1/exe; readlink /proc/1/cwd; readlink /proc/1/root";
    assert_eq!(host.script("none", sh(script)).await, (Exit::Code(0), "/bin/busybox\n/\n/\n".to_owned()));
}

#[tokio::test]
async fn mounts_are_as_the_spec_says() {
    let host = Host::new();
    let volume = tempfile::tempdir().expect("tempdir");
    fs::write(volume.path().join("file"), "from the host\n").expect("written");
    let mut spec = sh("cat /a/ro/file; touch /a/ro/x || echo ro; touch /rw/made && echo rw; cat /one; \
                       touch /root-is-ro || echo read-only; touch /scratch/x && echo scratch; \
                       /bin/busybox df -k /scratch | tail -1 | grep -c 1024; stat -c %a /scratch");
    spec.read_only = true;
    let created = volume.path().join("not/yet");
    spec.mounts = vec![
        bind(volume.path(), "/a/ro", true),
        bind(volume.path(), "/rw", false),
        bind(&volume.path().join("file"), "/one", true),
        Mount::Bind {
            source: created.clone(),
            target: "/created".into(),
            read_only: false,
            create_source: true,
            propagation: Propagation::Rslave,
        },
        Mount::Tmpfs {
            target: "/scratch".into(),
            size: Some(1 << 20),
            mode: Some(0o750),
            read_only: false,
            options: TmpfsOptions::default(),
        },
    ];
    let (how, log) = host.script("t1", spec).await;
    let log: String = log.lines().filter(|line| !line.starts_with("touch: ")).map(|l| format!("{l}\n")).collect();
    assert_eq!(log, "from the host\nro\nrw\nfrom the host\nread-only\nscratch\n1\n750\n");
    assert_eq!(how, Exit::Code(0));
    assert!(volume.path().join("made").exists() && created.is_dir());
}

#[tokio::test]
async fn an_images_links_do_not_lead_mounts_out() {
    let host = Host::new();
    let outside = host.dir.path().join("outside");
    fs::create_dir(&outside).expect("made");
    symlink(&outside, host.layer().join("absolute")).expect("link");
    symlink("../../../../../../..", host.layer().join("up")).expect("link");
    symlink("dangling/target", host.layer().join("dangle")).expect("link");
    let volume = tempfile::tempdir().expect("tempdir");
    fs::write(volume.path().join("file"), "x").expect("written");
    let mut spec = sh("ls /absolute /up/here /dangling/target");
    spec.mounts = ["/absolute/in", "/up/here", "/dangle"].map(|target| bind(volume.path(), target, true)).to_vec();
    let (how, log) = host.script("t1", spec).await;
    assert_eq!((how, log.matches("file\n").count()), (Exit::Code(0), 2), "{log}");
    assert_eq!(fs::read_dir(&outside).expect("dir").count(), 0);
    assert!(!std::path::Path::new("/here").exists());
}

#[tokio::test]
async fn a_working_directory_cannot_lead_out_either() {
    let host = Host::new();
    for number in 3..12 {
        let spec = TaskSpec { working_dir: Some(format!("/proc/self/fd/{number}")), ..sh("pwd") };
        let error = host.start(&format!("t{number}"), spec).await.expect_err("no such directory");
        assert!(matches!(error.cause, Cause::StartFailed { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_probe_runs_inside_with_the_same_limits() {
    let host = Host::new();
    let spec = TaskSpec { user: Some("app".to_owned()), ..sh("sleep 1000") };
    host.start("t1", spec).await.expect("runs");
    let probe = async |script: &str, millis| {
        let command = ["sh", "-c", script].map(str::to_owned);
        let timeout = std::time::Duration::from_millis(millis);
        host.containers.probe(&task("t1"), &command, timeout).await
    };
    let probed =
        probe("id; hostname; echo $FROM_IMAGE; grep NoNew /proc/self/status; ls /proc/self/fd; exit 3", 5000).await;
    let probed = probed.expect("probed");
    assert_eq!(probed.code, Some(3));
    let expected = "uid=1000(app) gid=1000(app) groups=2000(extra)\nweb-2\nyes\nNoNewPrivs:\t1\n0\n1\n2\n3\n";
    assert_eq!(probed.output, expected);
    let probed = probe("echo begun; sleep 77 & sleep 77", 300).await.expect("probed");
    assert_eq!((probed.code, probed.output.as_str()), (None, "begun\n"));
    let probed = probe("ps | grep -c 'sleep 7[7]'", 5000).await.expect("probed");
    assert_eq!(probed.output.trim(), "0", "what the probe started is gone");
    let missing = host.containers.probe(&task("t1"), &["nope".to_owned()], std::time::Duration::from_secs(5)).await;
    assert!(missing.is_err_and(|error| error.to_string().contains("no such program")));
    host.containers.remove(&task("t1")).await.expect("removed");
    assert!(probe("true", 100).await.is_err());
}
