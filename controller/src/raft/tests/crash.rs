//! Crashes at every step of every write, failing disks, and disks that return less or other than was written.

use std::sync::Arc;

use proptest::prelude::*;
use roster_proto::id::PeerId;
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        Alone, Fault, Machine, OpenError, ProposeError, Store, StoreConfig, driver::Driver, open::start_driver,
        serve::run, store::connect,
    },
    Now, Words,
    sim_disk::{Medium, SimDisk},
};

const SNAPSHOT_ENTRIES: u64 = 7;

const PEER: PeerId = PeerId(1);

fn open(medium: &Medium) -> Result<Driver<Words, SimDisk>, OpenError> {
    open_disk(medium.disk())
}

fn open_disk(disk: SimDisk) -> Result<Driver<Words, SimDisk>, OpenError> {
    let config = StoreConfig { peer: Some(PEER), snapshot_entries: SNAPSHOT_ENTRIES, ..StoreConfig::new("simulated") };
    start_driver(&config, disk, Box::new(Alone), 7)
}

fn state(driver: &Driver<Words, SimDisk>) -> Vec<String> {
    driver.published().borrow().list()
}

/// Proposes the words as one group, takes a snapshot when one is due, and returns how many were answered well.
fn say(driver: &mut Driver<Words, SimDisk>, words: &[String]) -> (usize, Result<(), Fault>) {
    let mut answers = Vec::new();
    let result = (|| {
        for word in words {
            let (answer, outcome) = oneshot::channel();
            answers.push(outcome);
            driver.propose(Words::encode_command(word), answer);
        }
        driver.settle().now()?;
        if let Some(work) = driver.snapshot_due() {
            driver.store_snapshot(work.index, work.machine.encode());
        }
        Ok(())
    })();
    let answered = answers.iter_mut().filter_map(|answer| answer.try_recv().ok()).filter(Result::is_ok).count();
    (answered, result)
}

fn words(sizes: &[usize], said: usize) -> Vec<String> {
    sizes.iter().enumerate().map(|(at, size)| format!("{} {}", said + at, "x".repeat(*size))).collect()
}

/// Says the groups until the disk fails, if it does, and returns what was said and how much of that was answered.
fn say_all(driver: &mut Driver<Words, SimDisk>, groups: &[Vec<usize>]) -> (Vec<String>, usize) {
    let (mut said, mut answered) = (state(driver), driver.published().borrow().0.len());
    for group in groups {
        let group = words(group, said.len());
        let (well, result) = say(driver, &group);
        said.extend(group);
        answered += well;
        if result.is_err() {
            break;
        }
    }
    (said, answered)
}

/// Everything answered, in order, and nothing that was not said.
fn assert_kept(driver: &Driver<Words, SimDisk>, said: &[String], answered: usize) {
    let kept = state(driver);
    assert!(kept.len() >= answered, "{} of {answered} answered words are left", kept.len());
    assert_eq!(kept, said[..kept.len()]);
}

fn groups() -> impl Strategy<Value = Vec<Vec<usize>>> {
    // Up to three parts a word, and snapshots of more than one batch.
    let size = prop_oneof![4 => 0..200_usize, 1 => 0..20_000_usize];
    proptest::collection::vec(proptest::collection::vec(size, 1..6), 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn crashes_lose_nothing_that_was_answered(
        runs in proptest::collection::vec((groups(), 0..60_usize, any::<bool>()), 1..5),
    ) {
        let medium = Medium::default();
        let (mut said, mut answered) = (Vec::new(), 0);
        for (groups, operations, effective) in runs {
            let mut driver = open(&medium).unwrap();
            assert_kept(&driver, &said, answered);
            medium.crash_after(operations, effective);
            (said, answered) = say_all(&mut driver, &groups);
        }
        assert_kept(&open(&medium).unwrap(), &said, answered);
    }

    #[test]
    fn a_disk_that_goes_back_in_time_is_found_out(groups in groups(), back in 1..30_usize) {
        let medium = Medium::recording();
        say_all(&mut open(&medium).unwrap(), &groups);
        let mut content = medium.content();
        let history = content.history.take().unwrap();
        content.records = history[history.len().saturating_sub(1 + back)].clone();
        drop(content);
        let opened = open(&medium).err();
        prop_assert!(matches!(opened, Some(OpenError::Damaged { .. })), "{opened:?}");
    }
}

#[test]
fn a_crash_at_any_step_loses_nothing_that_was_answered() {
    let groups: Vec<_> = (0..20).map(|group| vec![10 * group, 7_000, 0]).collect();
    for operations in 0..90 {
        for effective in [false, true] {
            let medium = Medium::default();
            medium.crash_after(operations, effective);
            let disk = medium.disk();
            medium.crash_after(operations, effective);
            let (said, answered) = match open_disk(disk) {
                Ok(mut driver) => say_all(&mut driver, &groups),
                Err(_) => (Vec::new(), 0),
            };
            let mut again = open(&medium).unwrap();
            assert_kept(&again, &said, answered);
            let (said, answered) = say_all(&mut again, &groups);
            assert_eq!(said.len(), answered);
        }
    }
}

/// Each record in turn is missing, flipped, or as it was at some earlier time.
#[test]
fn a_record_that_is_not_the_one_written_is_found_out_or_does_not_count() {
    let medium = Medium::recording();
    let groups: Vec<_> = (0..9).map(|group| vec![10 * group, 7_000, 0]).collect();
    let (said, answered) = say_all(&mut open(&medium).unwrap(), &groups);
    assert_eq!(said.len(), answered);
    let content = medium.content().clone();
    let check = |what: &str, change: &dyn Fn(&mut super::sim_disk::Records)| {
        let copy = medium.copy();
        change(&mut copy.content().records);
        match open(&copy) {
            Ok(driver) => {
                assert_eq!(state(&driver), said, "{what}");
                false
            }
            Err(OpenError::Damaged { .. }) => true,
            Err(other) => panic!("{what}: {other:?}"),
        }
    };
    let mut found = 0;
    for (key, record) in &content.records {
        found += u32::from(check("missing", &|records| drop(records.remove(key))));
        for byte in [0, 3, 4, record.len() / 2, record.len() - 1] {
            found += u32::from(check("flipped", &|records| records.get_mut(key).unwrap()[byte] ^= 1));
        }
        let history = content.history.as_ref().unwrap().iter();
        for older in history.filter_map(|records| records.get(key)).filter(|older| *older != record) {
            found += u32::from(check("older", &|records| drop(records.insert(key.clone(), older.clone()))));
        }
    }
    // Only what a snapshot has outdated does not count.
    assert!(found > 50, "{found}");
}

/// Runs the task's body over the disk.
fn serve(medium: &Medium) -> (Store<Words>, JoinHandle<Result<(), Arc<Fault>>>) {
    let driver = open(medium).unwrap();
    let (store, queues) = connect(&driver);
    let task = tokio::spawn(run(driver, queues, CancellationToken::new(), store.ended.clone()));
    (store, task)
}

#[tokio::test]
async fn when_a_flush_fails_nothing_more_is_answered_well() {
    for (operations, effective) in [(0, false), (0, true), (1, false), (1, true), (2, false), (3, true)] {
        let medium = Medium::default();
        let (store, task) = serve(&medium);
        store.propose("kept".to_owned()).await.unwrap();
        medium.crash_after(operations, effective);
        let proposals = (0..50).map(|word| store.propose(word.to_string()));
        let answers = futures::future::join_all(proposals).await;
        let well = answers.iter().filter(|answer| answer.is_ok()).count();
        for answer in answers {
            assert!(matches!(answer, Ok(_) | Err(ProposeError::Failed(_))), "{answer:?}");
        }
        let late = store.propose("late".to_owned()).await;
        assert!(matches!(late, Err(ProposeError::Failed(_))), "{late:?}");
        assert!(task.await.unwrap().is_err());
        let kept = state(&open(&medium).unwrap());
        assert!(kept.len() > well && kept[0] == "kept", "{well} were answered well, {kept:?} are left");
    }
}

#[test]
fn losing_the_leadership_fails_what_waits() {
    let medium = Medium::default();
    let mut driver = open(&medium).unwrap();
    let (answer, mut outcome) = oneshot::channel();
    driver.propose(b"waits".to_vec(), answer);
    let mut message = ::raft::eraftpb::Message { from: 2, to: 1, term: 99, ..Default::default() };
    message.set_msg_type(::raft::eraftpb::MessageType::MsgHeartbeat);
    driver.step(message).now().unwrap();
    driver.settle().now().unwrap();
    let outcome = outcome.try_recv().unwrap();
    assert!(matches!(outcome, Err(ProposeError::LeadershipLost { leader: Some(PeerId(2)) })), "{outcome:?}");
    assert!(!driver.leadership().borrow().is_self);
    let (answer, mut outcome) = oneshot::channel();
    driver.propose(b"refused".to_vec(), answer);
    let outcome = outcome.try_recv().unwrap();
    assert!(matches!(outcome, Err(ProposeError::NotLeader { leader: Some(PeerId(2)) })), "{outcome:?}");
}
