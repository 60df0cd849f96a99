//! The limit of a container's disk, as one meets it that writes until it cannot.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use roster_agent::runtime::{Exit, Phase};
use roster_proto::spec::TaskSpec;

use crate::harness::{Host, eventually, sh, task};

const MIB: u64 = 1 << 20;
/// What the host's own file system needs to say where the blocks of a file are.
const BOOKKEEPING: u64 = MIB;

fn limited(script: &str, size: u64) -> TaskSpec {
    let mut spec = sh(script);
    spec.resources.limits.disk = Some(size);
    spec
}

/// Bytes of the host's disk that hold a container's.
fn taken(host: &Host, name: &str) -> u64 {
    let file = host.config.data_dir.join("disks").join(name);
    fs::metadata(file).expect("the file of its disk").blocks() * 512
}

/// Loop devices and mounts that show files of this host's.
pub(crate) fn held(host: &Host) -> Vec<String> {
    let ours = host.dir.path().to_string_lossy().into_owned();
    let mut held: Vec<String> =
        fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").lines().map(Into::into).collect();
    for device in fs::read_dir("/sys/block").expect("block devices") {
        let file = device.expect("a device").path().join("loop/backing_file");
        held.extend(fs::read_to_string(file).ok());
    }
    held.retain(|line| line.contains(&ours));
    held
}

#[tokio::test]
async fn one_that_fills_its_disk_fills_no_other() {
    let mut host = Host::new();
    let modest =
        "echo ready; while [ ! -e /go ]; do sleep 0.01; done; dd if=/dev/zero of=/big bs=1M count=40 && echo written";
    let modest = host.start("modest", sh(modest)).await.expect("runs");
    host.said("modest", "ready").await;
    let greedy = "dd if=/dev/zero of=/big bs=1M count=100; echo dd $?; cat /big >> /etc/hosts; echo cat $?; sync; df -k /; \
        echo full; while [ ! -e /proc/1/root/dev/shm/go ]; do sleep 0.01; done; rm /big; sync; echo some > /small && cat /small; \
        sync; while :; do sleep 1; done";
    let greedy = host.start("greedy", limited(greedy, 32 * MIB)).await.expect("runs");
    let said = host.said("greedy", "full").await;
    assert!(said.contains("No space left on device") && said.contains("dd 1") && said.contains("cat 1"), "{said}");
    let full = taken(&host, "greedy");
    assert!(full > 24 * MIB && full <= 32 * MIB + BOOKKEEPING, "{full} bytes taken");
    fs::write(format!("/proc/{}/root/go", modest.pid), "").expect("told to go on");
    assert_eq!(host.ended("modest").await.how, Exit::Code(0));
    assert!(host.log("modest").await.contains("written"));
    // A new agent finds it as it is, and what is deleted inside is given back.
    host.restart();
    assert_eq!(host.phase("greedy"), Some(Phase::Running(greedy.clone())));
    fs::write(format!("/proc/{}/root/dev/shm/go", greedy.pid), "").expect("told to delete");
    host.said("greedy", "some").await;
    eventually("the space is the host's again", || (taken(&host, "greedy") < 8 * MIB, taken(&host, "greedy"))).await;
    host.containers.remove(&task("greedy")).await.expect("removed");
    assert_eq!(host.leftovers("greedy"), Vec::<PathBuf>::new());
    eventually("nothing holds its disk", || (held(&host).is_empty() && host.trash().is_empty(), held(&host))).await;
}

#[tokio::test]
async fn empty_files_are_limited_too() {
    let host = Host::new();
    let script = "i=0; while echo -n > /f$i; do i=$((i+1)); done; echo $i files";
    let (how, said) = host.script("t1", limited(script, 8 * MIB)).await;
    assert_eq!(how, Exit::Code(0));
    let files: u64 = said.lines().find_map(|line| line.strip_suffix(" files")?.parse().ok()).expect("a number");
    assert!(files > 500 && files < 2000 && said.contains("No space left on device"), "{said}");
}

#[tokio::test]
async fn the_nodes_default_holds_for_those_that_say_nothing() {
    let mut host = Host::new();
    host.config.disk = Some(16 * MIB);
    host.restart();
    let write = "dd if=/dev/zero of=/big bs=1M count=24 2>&1";
    assert_eq!(host.script("silent", sh(write)).await.0, Exit::Code(1));
    assert_eq!(host.script("more", limited(write, 32 * MIB)).await.0, Exit::Code(0));
}

#[tokio::test]
async fn a_disk_without_its_mount_is_listed_and_removed() {
    let mut host = Host::new();
    host.start("t1", limited("sleep 1000", 8 * MIB)).await.expect("runs");
    // As after a loss of power: what was mounted and what ran is gone, the files are there.
    host.containers.kill(&task("t1")).await.expect("killed");
    let at = host.config.data_dir.join("containers/t1");
    nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH).expect("was mounted");
    fs::remove_dir(&at).expect("an empty directory");
    fs::remove_dir_all(host.config.run_dir.join("tasks/t1")).expect("its bundle");
    host.restart();
    assert_eq!(host.phase("t1"), Some(Phase::Broken));
    host.start("t1", limited("exit 3", 8 * MIB)).await.expect("runs in its place");
    assert_eq!(host.ended("t1").await.how, Exit::Code(3));
    host.containers.remove(&task("t1")).await.expect("removed");
    assert_eq!(host.leftovers("t1"), Vec::<PathBuf>::new());
    eventually("nothing holds its disk", || (held(&host).is_empty() && host.trash().is_empty(), held(&host))).await;
}
