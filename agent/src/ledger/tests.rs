use std::sync::Arc;

use roster_proto::{
    assignment::Assignment,
    cause::Cause,
    id::{Slot, Version},
    spec::TaskSpec,
    task::{Desired, StopReason, TaskState},
};

use super::*;

fn id(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

fn set(generation: u64, tasks: &[&str]) -> AssignmentSet {
    let assignment = |name: &&str| Assignment {
        task: id(name),
        service: "shop/web".parse().unwrap(),
        slot: Slot::Replica(1),
        desired: Desired::Stop(StopReason::Updated),
        spec: Arc::new(TaskSpec::of_image("web")),
        ports: Vec::new(),
        paused: false,
        shares_with: None,
    };
    let tasks = tasks.iter().map(|name| (id(name), assignment(name))).collect();
    AssignmentSet { generation: Version(generation), tasks, ..AssignmentSet::default() }
}

fn outcome() -> TaskStatus {
    let mut status = TaskStatus::new(TaskState::Failed, Timestamp(7));
    status.cause = Some(Cause::Exited { code: 3 });
    status
}

#[test]
fn what_was_written_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let (file, mut journal, remembered) = open(directory.path()).unwrap();
    assert!(remembered.set.is_none() && remembered.damage.is_empty());
    file.write(&set(4, &["a", "b"])).unwrap();
    journal.started(&id("a"), Timestamp(5)).unwrap();
    journal.ended(&id("b"), &outcome()).unwrap();
    journal.ended(&id("gone"), &outcome()).unwrap();

    let (_, journal, remembered) = open(directory.path()).unwrap();
    assert_eq!(remembered.set, Some(set(4, &["a", "b"])));
    assert_eq!(journal.record(&id("a")), Some(&Record { started: Some(Timestamp(5)), outcome: None }));
    assert_eq!(journal.record(&id("b")).unwrap().outcome, Some(outcome()));
    assert_eq!(journal.record(&id("gone")), None, "outside the set nothing is kept");
}

#[test]
fn every_flipped_or_missing_byte_of_the_set_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (file, _, _) = open(directory.path()).unwrap();
    file.write(&set(4, &["a"])).unwrap();
    let path = directory.path().join(SET);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x01;
        fs::write(&path, &bad).unwrap();
        assert!(matches!(file.read(), Err(LedgerError::Damaged { .. })), "byte {at} flipped");
        fs::write(&path, &good[..at]).unwrap();
        assert!(matches!(file.read(), Err(LedgerError::Damaged { .. })), "cut at byte {at}");
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(file.read().unwrap(), Some(set(4, &["a"])));
}

#[test]
fn a_damaged_set_counts_as_none_and_keeps_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let (_, mut journal, _) = open(directory.path()).unwrap();
    journal.started(&id("a"), Timestamp(5)).unwrap();
    fs::write(directory.path().join(SET), "roster-ledger 1 00\n{}").unwrap();
    let (_, journal, remembered) = open(directory.path()).unwrap();
    assert_eq!(remembered.set, None);
    let told = remembered.damage[0].to_string();
    assert!(told.contains("set is damaged (its checksum does not fit"), "{told}");
    assert!(journal.record(&id("a")).is_some());
}

#[test]
fn a_torn_last_line_is_dropped_and_a_damaged_one_told() {
    let directory = tempfile::tempdir().unwrap();
    let (_, mut journal, _) = open(directory.path()).unwrap();
    for name in ["a", "b", "c"] {
        journal.started(&id(name), Timestamp(5)).unwrap();
    }
    let path = directory.path().join(JOURNAL);
    let good = fs::read_to_string(&path).unwrap();

    fs::write(&path, &good[..good.len() - 4]).unwrap();
    let (_, torn, remembered) = open(directory.path()).unwrap();
    assert!(remembered.damage.is_empty());
    assert!(torn.record(&id("b")).is_some() && torn.record(&id("c")).is_none());

    fs::write(&path, good.replacen("\"b\"", "\"x\"", 1)).unwrap();
    let (_, damaged, remembered) = open(directory.path()).unwrap();
    assert!(remembered.damage[0].to_string().contains("1 unreadable lines, the first is line 2"));
    assert!(damaged.record(&id("x")).is_none() && damaged.record(&id("c")).is_some());
}

#[test]
fn the_journal_does_not_grow_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let (_, mut journal, _) = open(directory.path()).unwrap();
    for number in 0..2 * JOURNAL_SLACK {
        journal.ended(&id(&format!("t{number}")), &outcome()).unwrap();
        journal.compact(|task| task.as_str() == "t0").unwrap();
    }
    assert!(journal.lines <= JOURNAL_SLACK + 2, "{} lines", journal.lines);
    assert!(journal.record(&id("t0")).is_some());
}

#[test]
fn a_line_cut_short_by_a_full_disk_is_made_up_for() {
    let directory = tempfile::tempdir().unwrap();
    // In a mount namespace of this thread's own, which ends with the test.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let (none, private) = (None::<&str>, nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE);
    nix::mount::mount(none, "/", none, private, none).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), directory.path(), Some("tmpfs"), flags, Some("size=64k")).unwrap();
    let (_, mut journal, _) = open(directory.path()).unwrap();
    let filler = directory.path().join("filler");
    // All pages but the journal's first.
    fs::write(&filler, vec![0; 15 * 4096]).unwrap();
    let mut tasks = (0..).map(|number| id(&format!("t{number}")));
    let failed = tasks.by_ref().find(|task| journal.ended(task, &outcome()).is_err()).unwrap();
    fs::remove_file(&filler).unwrap();
    let after = tasks.next().unwrap();
    journal.ended(&after, &outcome()).unwrap();

    let (_, journal, remembered) = open(directory.path()).unwrap();
    assert!(remembered.damage.is_empty(), "{:?}", remembered.damage);
    for task in [id("t0"), failed, after] {
        assert_eq!(journal.record(&task).and_then(|record| record.outcome.clone()), Some(outcome()), "{task}");
    }
}
