//! Failed containers are kept whole, as many as are wanted, and leave nothing when they go.

use std::{fs, path::PathBuf};

use crate::{
    disks::held,
    harness::{Host, eventually, sh, task},
};
use roster_agent::runtime::{Exit, Phase, linux::containers::kept::layers_in_use};

const NOTHING: Vec<PathBuf> = Vec::new();

fn places(host: &Host, name: &str) -> Vec<PathBuf> {
    let data = &host.config.data_dir;
    let places = [
        data.join("kept").join(name),
        data.join("containers").join(name),
        host.config.run_dir.join("tasks").join(name),
    ];
    places.into_iter().filter(|place| place.exists()).collect()
}

#[tokio::test]
async fn files_figures_and_log_stay_and_nothing_else() {
    let mut host = Host::new();
    let spec =
        sh("echo of it; echo data > /left; dd if=/dev/zero of=/dev/shm/zeros bs=1M count=4 2> /dev/null; exit 3");
    let mut limited = spec.clone();
    limited.resources.limits.memory = Some(64 << 20);
    assert_eq!(host.script("t1", limited).await.0, Exit::Code(3));
    assert!(host.containers.keep(&task("t1")).await.expect("kept"));
    assert_eq!(places(&host, "t1"), [host.config.data_dir.join("kept/t1")]);
    assert_eq!((host.phase("t1"), host.leftovers("t1")), (Some(Phase::Kept), NOTHING));
    let record = host.containers.kept_record(&task("t1")).expect("read").expect("there");
    assert_eq!(record.ended.how, Exit::Code(3));
    let figures = &record.figures;
    assert!(figures.memory_peak.is_some_and(|peak| peak > 4 << 20), "{figures:?}");
    assert_eq!((figures.memory_limit, figures.oom_kills), (Some(64 << 20), 0));
    let layers = host.containers.layers(&task("t1")).expect("layers");
    assert_eq!(fs::read_to_string(layers[0].join("left")).expect("as it was"), "data\n");
    let used = layers_in_use(&host.config.data_dir, &host.config.run_dir).expect("read");
    assert!(used.contains(&host.layer().to_owned()), "no image is deleted from under it: {used:?}");

    // To keep it again changes nothing, and the next agent finds it.
    assert!(host.containers.keep(&task("t1")).await.expect("kept"));
    host.restart();
    assert_eq!(host.phase("t1"), Some(Phase::Kept));
    assert_eq!(host.containers.kept_record(&task("t1")).expect("read"), Some(record));
    assert_eq!(host.log("t1").await, "of it\n");

    host.containers.remove(&task("t1")).await.expect("removed");
    assert_eq!((places(&host, "t1"), host.phase("t1")), (NOTHING, None));
    eventually("the trash is emptied", || {
        let left = host.trash();
        (left.is_empty(), left)
    })
    .await;
}

#[tokio::test]
async fn never_more_are_kept_than_are_wanted() {
    let mut host = Host::new();
    for name in ["t1", "t2", "t3"] {
        host.script(name, sh("exit 1")).await;
        assert!(host.containers.keep(&task(name)).await.expect("kept"));
    }
    let kept = |host: &Host| ["t1", "t2", "t3"].map(|name| host.phase(name) == Some(Phase::Kept));
    assert_eq!(kept(&host), [false, true, true], "the oldest has gone");
    host.config.keep_failed = 1;
    host.restart();
    assert_eq!(kept(&host), [false, false, true]);
    host.config.keep_failed = 0;
    host.restart();
    assert_eq!(kept(&host), [false; 3]);
    host.script("t4", sh("exit 1")).await;
    assert!(!host.containers.keep(&task("t4")).await.expect("removed instead"));
    assert_eq!((places(&host, "t4"), host.phase("t4")), (NOTHING, None));
}

/// Each time as if the agent had died there.
#[tokio::test]
async fn a_keeping_that_was_interrupted_is_completed_or_cleared() {
    let mut host = Host::new();
    let home = |host: &Host| host.config.data_dir.join("containers/t1");
    let kept = |host: &Host| host.config.data_dir.join("kept/t1");
    host.script("t1", sh("echo data > /left; exit 1")).await;
    assert!(host.containers.keep(&task("t1")).await.expect("kept"));
    // All but the last rename.
    fs::rename(kept(&host), home(&host)).expect("moved back");
    host.restart();
    assert_eq!(host.phase("t1"), Some(Phase::Broken), "to be kept, or removed");
    assert!(host.containers.keep(&task("t1")).await.expect("kept after all"));
    assert_eq!((places(&host, "t1"), host.phase("t1")), (vec![kept(&host)], Some(Phase::Kept)));
    // Before anything was written down: there is no record of what it was.
    fs::rename(kept(&host), home(&host)).expect("moved back");
    fs::remove_file(home(&host).join("kept.json")).expect("forgotten");
    host.restart();
    assert!(!host.containers.keep(&task("t1")).await.expect("removed"));
    assert_eq!((places(&host, "t1"), host.phase("t1")), (NOTHING, None));
}

#[tokio::test]
async fn one_that_filled_its_disk_is_kept_with_it() {
    let mut host = Host::new();
    let mut spec = sh("echo data > /left; dd if=/dev/zero of=/big bs=1M count=100; echo more > /etc/hosts; exit 3");
    spec.resources.limits.disk = Some(16 << 20);
    assert_eq!(host.script("t1", spec).await.0, Exit::Code(3));
    assert!(host.containers.keep(&task("t1")).await.expect("kept"));
    let kept = host.config.data_dir.join("kept/t1");
    assert_eq!((places(&host, "t1"), host.leftovers("t1")), (vec![kept.clone()], NOTHING));
    let left = |host: &Host| {
        let layers = host.containers.layers(&task("t1")).expect("layers");
        fs::read_to_string(layers[0].join("left")).ok()
    };
    assert_eq!((host.phase("t1"), left(&host).as_deref()), (Some(Phase::Kept), Some("data\n")));

    // As after a start of the host: the file is there, and mounted nowhere.
    // Flushed, for a container that another test starts may have a copy of the mount a while longer.
    let unmount = || {
        let files = fs::File::open(kept.join("files")).expect("there");
        nix::unistd::syncfs(&files).expect("flushed");
        drop(files);
        nix::mount::umount2(&kept.join("files"), nix::mount::MntFlags::MNT_DETACH).expect("was mounted");
    };
    unmount();
    assert_eq!(left(&host), None);
    host.restart();
    assert_eq!((host.phase("t1"), left(&host).as_deref()), (Some(Phase::Kept), Some("data\n")));
    // As where the agent died before the last rename, also with what was mounted.
    for mounted in [true, false] {
        if !mounted {
            unmount();
        }
        fs::rename(&kept, host.config.data_dir.join("containers/t1")).expect("moved back");
        host.restart();
        assert!(host.containers.keep(&task("t1")).await.expect("kept after all"));
        assert_eq!(left(&host).as_deref(), Some("data\n"));
    }
    host.containers.remove(&task("t1")).await.expect("removed");
    assert_eq!((places(&host, "t1"), host.phase("t1")), (NOTHING, None));
    eventually("nothing holds its disk", || (held(&host).is_empty() && host.trash().is_empty(), held(&host))).await;
}
