use roster_proto::{assignment::Assignment, id::Slot, spec::TaskSpec, task::Desired};
use tokio::time::Instant;

use super::*;
use crate::runtime::memory::MemoryRuntime;

const INTERVAL: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_secs(10);

async fn probed(taken_back: bool) -> (Arc<MemoryRuntime>, TaskId, mpsc::Receiver<Change>) {
    let runtime = Arc::new(MemoryRuntime::default());
    let task = TaskId::new("a").unwrap();
    let assignment = Assignment {
        task: task.clone(),
        service: "shop/web".parse().unwrap(),
        slot: Slot::Replica(1),
        desired: Desired::Run,
        spec: Arc::new(TaskSpec::of_image("web")),
        ports: Vec::new(),
        paused: false,
        shares_with: None,
    };
    let started = runtime.start(&assignment).await.unwrap().at;
    let check = Check {
        command: vec!["true".into()],
        interval: if taken_back { DEADLINE * 10 } else { INTERVAL },
        timeout: DEADLINE,
        retries: 1,
        start_period: Duration::ZERO,
        start_interval: INTERVAL,
    };
    let (changes, received) = mpsc::channel(4);
    let subject = Subject { task: task.clone(), check, started, taken_back };
    tokio::spawn(probe_until_unhealthy(runtime.clone(), subject, changes, Arc::default()));
    (runtime, task, received)
}

async fn next(changes: &mut mpsc::Receiver<Change>) -> Option<Change> {
    tokio::time::timeout(DEADLINE, changes.recv()).await.expect("a change of health in time")
}

#[tokio::test]
async fn a_check_that_begins_to_fail_is_told_after_one_interval() {
    let (runtime, task, mut changes) = probed(false).await;
    assert_eq!(next(&mut changes).await.unwrap().health, Health::Healthy);
    runtime.set_sick(&task, Some("503"));
    let began = Instant::now();
    let change = next(&mut changes).await.unwrap();
    assert_eq!((change.health, change.failures, change.output.as_str()), (Health::Unhealthy, 1, "503"));
    // Generous, for the machine may be busy; the point is that it is not two intervals and more.
    assert!(began.elapsed() < INTERVAL * 2, "{:?}", began.elapsed());
    assert_eq!(next(&mut changes).await, None, "nothing is probed any more");
}

#[tokio::test]
async fn a_container_taken_back_is_probed_at_once() {
    let (_, _, mut changes) = probed(true).await;
    assert_eq!(next(&mut changes).await.unwrap().health, Health::Healthy);
}

#[test]
fn output_is_cut_at_a_character() {
    assert_eq!(last_bytes("abc".into(), 3), "abc");
    assert_eq!(last_bytes("aäb".into(), 2), "b");
    assert_eq!(last_bytes("aäb".into(), 3), "äb");
}
