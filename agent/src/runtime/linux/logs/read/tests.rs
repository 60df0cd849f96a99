use std::{fs, io::Write, path::Path, time::Duration};

use roster_proto::report::LogStream;
use tokio_stream::StreamExt;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn entry(number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let line = format!("line {number}");
    Entry { nanos: number * 1000, stream: LogStream::Stdout, partial: false, line: line.as_bytes() }.write(&mut out);
    out
}

fn write(dir: &Path, file: u32, numbers: impl IntoIterator<Item = u64>) {
    let bytes: Vec<u8> = numbers.into_iter().flat_map(entry).collect();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(dir.join(file_name(file))).expect("log file");
    file.write_all(&bytes).expect("written");
}

fn source(dir: &Path) -> LogSource {
    LogSource { dir: dir.to_owned(), task: TaskId::new("t1").expect("id"), name: "web.1".to_owned() }
}

fn numbers(lines: &[LogLine]) -> Vec<u64> {
    lines.iter().map(|line| line.nanos / 1000).collect()
}

async fn all(dir: &Path, query: LogQuery) -> Vec<u64> {
    let stream = std::pin::pin!(read_logs(source(dir), query, CancellationToken::new()));
    let batches: Vec<_> = stream.collect().await;
    batches.into_iter().flat_map(|batch| numbers(&batch.expect("readable"))).collect()
}

#[tokio::test]
async fn tail_and_since_reach_back_over_files() {
    let dir = tempfile::tempdir().expect("tempdir");
    write(dir.path(), 2, 1..=3);
    write(dir.path(), 1, 4..=6);
    write(dir.path(), 0, 7..=8);
    let query = LogQuery::default();
    assert_eq!(all(dir.path(), query).await, [1, 2, 3, 4, 5, 6, 7, 8]);
    for (tail, expected) in [(0, &[][..]), (1, &[8]), (2, &[7, 8]), (3, &[6, 7, 8]), (6, &[3, 4, 5, 6, 7, 8])] {
        assert_eq!(all(dir.path(), LogQuery { tail: Some(tail), ..query }).await, expected, "tail {tail}");
    }
    assert_eq!(all(dir.path(), LogQuery { tail: Some(99), ..query }).await.len(), 8);
    assert_eq!(all(dir.path(), LogQuery { since: Some(Timestamp(6)), ..query }).await, [6, 7, 8]);
}

#[tokio::test]
async fn tail_reads_backwards_in_blocks() {
    let dir = tempfile::tempdir().expect("tempdir");
    write(dir.path(), 0, 1..=20_000);
    let tail = all(dir.path(), LogQuery { tail: Some(5_000), ..LogQuery::default() }).await;
    assert_eq!((tail.len(), tail.first(), tail.last()), (5_000, Some(&15_001), Some(&20_000)));
}

#[tokio::test]
async fn until_ends_the_log_and_tail_counts_back_from_there() {
    let dir = tempfile::tempdir().expect("tempdir");
    write(dir.path(), 2, 1..=3);
    write(dir.path(), 1, 4..=6);
    write(dir.path(), 0, 7..=8);
    let until = |at| LogQuery { until: Some(Timestamp(at)), ..LogQuery::default() };
    for (at, expected) in
        [(0, &[][..]), (1, &[1]), (3, &[1, 2, 3]), (5, &[1, 2, 3, 4, 5]), (9, &[1, 2, 3, 4, 5, 6, 7, 8])]
    {
        assert_eq!(all(dir.path(), until(at)).await, expected, "until {at}");
    }
    for (at, tail, expected) in
        [(5, 2, &[4, 5][..]), (3, 2, &[2, 3]), (4, 3, &[2, 3, 4]), (0, 5, &[]), (99, 1, &[8]), (6, 0, &[])]
    {
        let query = LogQuery { tail: Some(tail), ..until(at) };
        assert_eq!(all(dir.path(), query).await, expected, "until {at}, tail {tail}");
    }
    let between = LogQuery { since: Some(Timestamp(2)), ..until(5) };
    assert_eq!(all(dir.path(), between).await, [2, 3, 4, 5]);
    // A follower has had enough with the first later line.
    assert_eq!(all(dir.path(), LogQuery { follow: true, ..until(5) }).await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn until_is_found_in_a_long_log() {
    let dir = tempfile::tempdir().expect("tempdir");
    write(dir.path(), 0, 1..=20_000);
    for at in [1, 2, 777, 9_999, 19_999, 20_000] {
        let query = LogQuery { tail: Some(1), until: Some(Timestamp(at)), ..LogQuery::default() };
        assert_eq!(all(dir.path(), query).await, [at], "until {at}");
    }
}

#[tokio::test]
async fn following_sees_half_lines_rotation_and_the_end() {
    let dir = tempfile::tempdir().expect("tempdir");
    write(dir.path(), 0, 1..=2);
    let stop = CancellationToken::new();
    let query = LogQuery { tail: Some(1), follow: true, ..LogQuery::default() };
    let mut stream = std::pin::pin!(read_logs(source(dir.path()), query, stop.clone()));
    let mut next = async || {
        let batch = tokio::time::timeout(DEADLINE, stream.next()).await.expect("a batch in time");
        batch.map(|batch| numbers(&batch.expect("readable")))
    };
    assert_eq!(next().await, Some(vec![2]));
    let half = entry(3);
    let mut file = fs::OpenOptions::new().append(true).open(dir.path().join("0.log")).expect("log file");
    file.write_all(&half[..10]).expect("written");
    file.write_all(&half[10..]).expect("written");
    assert_eq!(next().await, Some(vec![3]));
    fs::rename(dir.path().join("0.log"), dir.path().join("1.log")).expect("rotated");
    write(dir.path(), 0, 4..=5);
    assert_eq!(next().await, Some(vec![4, 5]));
    write(dir.path(), 0, 6..=6);
    stop.cancel();
    assert_eq!(next().await, Some(vec![6]));
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn more_followers_than_the_host_has_inotify_instances_see_every_line() {
    let dir = tempfile::tempdir().expect("tempdir");
    write(dir.path(), 0, 1..=1);
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let follow = || Box::pin(read_logs(source(dir.path()), query, CancellationToken::new()));
    let mut followers: Vec<_> = std::iter::repeat_with(follow).take(200).collect();
    for number in 1..=2 {
        for follower in &mut followers {
            let batch = tokio::time::timeout(DEADLINE, follower.next()).await.expect("a batch in time");
            assert_eq!(batch.map(|batch| numbers(&batch.expect("readable"))), Some(vec![number]));
        }
        write(dir.path(), 0, [number + 1]);
    }
}

#[tokio::test]
async fn a_log_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let source = LogSource { dir: dir.path().join("none"), ..source(dir.path()) };
    let mut stream = std::pin::pin!(read_logs(source, LogQuery::default(), CancellationToken::new()));
    assert!(matches!(stream.next().await, Some(Err(LogError::NotFound { .. }))));
}
