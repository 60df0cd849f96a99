//! How a spec has the kernel treat a container.

use std::{fs, path::PathBuf};

use roster_agent::runtime::Exit;
use roster_proto::{
    cause::Cause,
    spec::{Controls, KernelSettings, Limits, MemorySwap, Mount, Reservations, TaskSpec, TmpfsOptions, Ulimit},
};

use crate::harness::{Host, sh};

async fn says(host: &Host, name: &str, spec: TaskSpec) -> String {
    let (how, log) = host.script(name, spec).await;
    assert_eq!(how, Exit::Code(0), "{name}: {log}");
    log
}

#[tokio::test]
async fn ulimits_sysctls_shared_memory_and_the_oom_score() {
    let host = Host::new();
    let script = "ulimit -Sn; ulimit -Hn; ulimit -c; cat /proc/sys/kernel/shmmni /proc/sys/net/core/somaxconn \
                  /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/self/oom_score_adj; \
                  grep ' /dev/shm ' /proc/mounts | tr ', ' '\\n\\n' | grep size";
    let text = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let both = |soft, hard| Ulimit { soft, hard };
    let mut spec = sh(script);
    let log = says(&host, "default", spec.clone()).await;
    assert!(log.ends_with("\n0\n0\nsize=65536k\n"), "{log}");
    spec.kernel = KernelSettings {
        ulimits: [("nofile".to_owned(), both(Some(77), Some(99))), ("core".to_owned(), both(None, None))].into(),
        sysctls: text(&[
            ("kernel.shmmni", "33"),
            ("net.core.somaxconn", "44"),
            ("net/ipv4/ip_unprivileged_port_start", "1000"),
        ]),
        shm_size: Some(1 << 20),
        oom_score_adj: Some(500),
    };
    let log = says(&host, "t1", spec).await;
    assert_eq!(log, "77\n99\nunlimited\n33\n44\n1000\n500\nsize=1024k\n");
}

#[tokio::test]
async fn everybody_may_bind_low_ports_and_ping_in_a_network_of_its_own() {
    let host = Host::new();
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range";
    let log = says(&host, "t1", sh(script)).await;
    assert_eq!(log.split_whitespace().collect::<Vec<_>>(), ["0", "0", "2147483647"]);
}

#[tokio::test]
async fn a_tmpfs_is_as_the_spec_says() {
    let host = Host::new();
    let mut spec = sh("stat -c '%u %g %a' /t /u; grep -E ' /[tu] ' /proc/mounts; for d in /t /u; do \
                       echo '#!/bin/sh' >$d/p; /bin/busybox chmod 755 $d/p; $d/p 2>/dev/null && echo $d runs; done; true");
    let tmpfs = |target: &str, options| Mount::Tmpfs {
        target: target.into(),
        size: Some(1 << 20),
        mode: Some(0o755),
        read_only: false,
        options,
    };
    let options = TmpfsOptions { uid: Some(5), gid: Some(6), inodes: Some(50), exec: true, suid: true };
    spec.mounts = vec![tmpfs("/t", options), tmpfs("/u", TmpfsOptions::default())];
    let log = says(&host, "t1", spec).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], ["5 6 755", "0 0 755"], "{log}");
    let words = |line: &str| line.split([' ', ',']).map(str::to_owned).collect::<Vec<_>>();
    let (open, closed) = (words(lines[2]), words(lines[3]));
    assert!(!open.iter().any(|word| word == "nosuid" || word == "noexec"), "{log}");
    assert!(["nodev", "nr_inodes=50", "size=1024k"].iter().all(|word| open.iter().any(|w| w == word)), "{log}");
    assert!(["nosuid", "noexec", "nodev"].iter().all(|word| closed.iter().any(|w| w == word)), "{log}");
    assert_eq!(lines[4..], ["/t runs"], "{log}");
}

/// Of the container's group, from the hierarchy that has the file.
fn group_file(host: &Host, name: &str, files: &[&str]) -> String {
    let paths = host
        .cgroups()
        .into_iter()
        .flat_map(|dir| files.iter().map(move |file| dir.join(name).join(file)).collect::<Vec<PathBuf>>());
    let found = paths.filter_map(|path| fs::read_to_string(path).ok()).next();
    found.unwrap_or_else(|| panic!("no group of {name} has any of {files:?}")).trim().to_owned()
}

#[tokio::test]
async fn control_groups_are_told_all_of_it() {
    let host = Host::new();
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mut spec = sh("sleep 1000");
    spec.resources.limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    spec.resources.reservations = Reservations { memory: Some(16 << 20), nano_cpus: None };
    spec.resources.controls = Controls {
        memory_swap: Some(MemorySwap::Bytes(96 << 20)),
        cpu_shares: Some(512),
        cpu_period: Some(50_000),
        cpu_quota: Some(25_000),
        cpuset: Some("0".to_owned()),
        ..Controls::default()
    };
    host.start("t1", spec.clone()).await.expect("runs");
    let read = |files: &[&str]| group_file(&host, "t1", files);
    assert_eq!(read(&["memory.limit_in_bytes", "memory.max"]), (64 << 20).to_string());
    assert_eq!(read(&["memory.soft_limit_in_bytes", "memory.low"]), (16 << 20).to_string());
    assert_eq!(read(&["cpuset.cpus"]), "0");
    if v2 {
        assert_eq!(read(&["cpu.max"]), "25000 50000");
        assert_eq!(read(&["cpu.weight"]), "20");
    } else {
        assert_eq!((read(&["cpu.cfs_quota_us"]), read(&["cpu.cfs_period_us"])), ("25000".into(), "50000".into()));
        assert_eq!(read(&["cpu.shares"]), "512");
    }
    spec.resources.controls.swappiness = Some(7);
    spec.resources.controls.oom_kill_disable = true;
    let started = host.start("t2", spec).await;
    if v2 {
        let cause = started.expect_err("refused").cause;
        assert!(matches!(&cause, Cause::Impossible { reason, .. } if reason.contains("control groups v2")), "{cause}");
    } else {
        started.expect("runs");
        assert_eq!(group_file(&host, "t2", &["memory.swappiness"]), "7");
        assert!(group_file(&host, "t2", &["memory.oom_control"]).starts_with("oom_kill_disable 1"));
    }
}

#[tokio::test]
async fn block_devices_are_throttled_by_their_paths() {
    let host = Host::new();
    let mut spec = sh("sleep 1000");
    // A virtual machine for tests may have no disk at all.
    let disks = fs::read_dir("/sys/block").expect("/sys/block").flatten();
    let disk = disks.map(|entry| PathBuf::from("/dev").join(entry.file_name())).find(|path| path.exists());
    if let Some(disk) = disk {
        let rdev = std::os::unix::fs::MetadataExt::rdev(&fs::metadata(&disk).expect("disk"));
        let number = format!("{}:{}", nix::libc::major(rdev), nix::libc::minor(rdev));
        spec.resources.controls.block.read_bps.insert(disk, 1 << 20);
        host.start("t1", spec.clone()).await.expect("runs");
        let seen = group_file(&host, "t1", &["blkio.throttle.read_bps_device", "io.max"]);
        assert!(seen.starts_with(&format!("{number} ")) && seen.contains("1048576"), "{seen}");
    }

    spec.resources.controls.block.read_bps.insert("/dev/no-such".into(), 1);
    let error = host.start("t2", spec).await.expect_err("refused");
    assert!(error.to_string().contains("limiting the device /dev/no-such"), "{error}");
}
