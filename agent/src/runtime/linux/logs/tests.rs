use super::*;

#[test]
fn only_the_newest_logs_of_removed_containers_stay() {
    let dir = tempfile::tempdir().expect("tempdir");
    for number in 0..6 {
        let log = dir.path().join(format!("t{number}"));
        fs::create_dir(&log).expect("made");
        fs::write(log.join(file_name(0)), [b'x'; 10]).expect("written");
        let moment = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + number);
        fs::File::open(log.join(file_name(0))).and_then(|f| f.set_modified(moment)).expect("dated");
        fs::File::open(&log).and_then(|f| f.set_modified(moment)).expect("dated");
    }
    let left = || {
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).expect("dir").map(|e| e.expect("entry").file_name().into_string()).collect();
        names.sort();
        names.into_iter().flatten().collect::<Vec<_>>()
    };
    prune_beyond(dir.path(), |name| name == Path::new("t0"), 4, 1000).expect("pruned");
    assert_eq!(left(), ["t0", "t2", "t3", "t4", "t5"]);
    prune_beyond(dir.path(), |name| name == Path::new("t0"), 4, 25).expect("pruned");
    assert_eq!(left(), ["t0", "t4", "t5"]);
}
