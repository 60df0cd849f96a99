//! After a restart everything is found again; after a removal nothing is left.

use std::{fs, path::PathBuf};

use roster_agent::runtime::{Exit, Phase};

use crate::harness::{Host, eventually, sh, task};

const NOTHING: Vec<PathBuf> = Vec::new();

#[tokio::test]
async fn a_new_agent_takes_back_what_runs() {
    let mut host = Host::new();
    let running = host.start("runs", sh("echo before; while [ ! -e /stop ]; do sleep 0.01; done; exit 4")).await;
    let running = running.expect("runs");
    host.script("ended", sh("exit 3")).await;
    host.restart();
    assert_eq!(host.phase("runs"), Some(Phase::Running(running.clone())));
    assert!(matches!(host.phase("ended"), Some(Phase::Ended(ended)) if ended.how == Exit::Code(3)));
    fs::write(format!("/proc/{}/root/stop", running.pid), "").expect("told to stop");
    assert_eq!(host.ended("runs").await.how, Exit::Code(4));
    assert_eq!(host.log("runs").await, "before\n");
}

#[tokio::test]
async fn nothing_is_left_of_a_removed_container() {
    let host = Host::new();
    let ours = host.dir.path().to_string_lossy().into_owned();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").matches(&ours).count();
    let started = host.start("t1", sh("echo said; sleep 1000 & touch /file; sleep 1000")).await.expect("runs");
    assert_eq!(mounts(), 0, "no mount of a container is seen on the host");
    assert!(!host.leftovers("t1").is_empty());
    host.said("t1", "said").await;
    host.containers.remove(&task("t1")).await.expect("removed");
    assert_eq!(host.leftovers("t1"), NOTHING);
    assert_eq!(host.phase("t1"), None);
    assert!(!PathBuf::from(format!("/proc/{}", started.pid)).exists());
    assert_eq!(host.log("t1").await, "said\n", "the log outlives it");
    host.containers.remove(&task("t1")).await.expect("removed again");
    eventually("the trash is emptied", || {
        let left = host.trash();
        (left.is_empty(), left)
    })
    .await;
}

#[tokio::test]
async fn a_damaged_record_of_one_container_hides_no_other() {
    let mut host = Host::new();
    let whole = host.start("whole", sh("sleep 1000")).await.expect("runs");
    host.start("damaged", sh("sleep 1000")).await.expect("runs");
    fs::write(host.config.run_dir.join("tasks/damaged/running.json"), "{\"shim\":").expect("cut short");
    host.restart();
    assert_eq!(host.phase("whole"), Some(Phase::Running(whole)));
    assert_eq!(host.phase("damaged"), Some(Phase::Broken));
    host.containers.remove(&task("damaged")).await.expect("removed");
    assert_eq!((host.phase("damaged"), host.leftovers("damaged")), (None, NOTHING));
}

#[tokio::test]
async fn parts_of_a_container_are_listed_and_removed() {
    let host = Host::new();
    host.start("whole", sh("true")).await.expect("runs");
    host.ended("whole").await;
    fs::create_dir_all(host.config.data_dir.join("containers/layers")).expect("made");
    fs::create_dir_all(host.config.run_dir.join("tasks/bundle")).expect("made");
    fs::create_dir_all(host.cgroups()[0].join("group")).expect("made");
    for part in ["layers", "bundle", "group"] {
        assert_eq!(host.phase(part), Some(Phase::Broken), "{part}");
        host.containers.remove(&task(part)).await.expect("removed");
        assert_eq!((host.phase(part), host.leftovers(part)), (None, NOTHING), "{part}");
    }
}

#[tokio::test]
async fn a_hundred_start_and_go() {
    let host = std::sync::Arc::new(Host::new());
    let names: Vec<String> = (0..100).map(|number| format!("t{number}")).collect();
    let all = |act: fn(std::sync::Arc<Host>, String) -> futures::future::BoxFuture<'static, ()>| {
        futures::future::join_all(names.iter().map(|name| act(host.clone(), name.clone())))
    };
    all(|host, name| {
        Box::pin(async move {
            let _started = host.start(&name, sh("sleep 1000")).await.expect("runs");
        })
    })
    .await;
    let running = host.containers.list().expect("list");
    assert_eq!(running.iter().filter(|o| matches!(o.phase, Phase::Running(_))).count(), 100);
    all(|host, name| Box::pin(async move { host.containers.remove(&task(&name)).await.expect("removed") })).await;
    assert_eq!(host.containers.list().expect("list"), []);
}
