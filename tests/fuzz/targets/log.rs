//! A container's log: what it writes comes back, whatever that is and in whatever pieces; and files that are torn or
//! were written by nobody are read to their end, with the same answer however it is asked for.

#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use futures::TryStreamExt;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use roster_agent::runtime::linux::{
    logs::{LogQuery, LogSource, read_logs},
    shim::LogFile,
};
use roster_fuzz::Place;
use roster_proto::{
    id::TaskId,
    report::{LogLine, LogStream},
    time::Timestamp,
};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

#[derive(Arbitrary, Debug)]
enum Log<'a> {
    Written { pieces: Vec<(bool, &'a [u8], u8)>, long: Option<(u8, u16)> },
    Found { files: [&'a [u8]; 3], since: Option<u64>, until: Option<u64>, tail: u8 },
}

fuzz_target!(|log: Log<'_>| {
    let directory = PLACE.empty();
    match log {
        Log::Written { pieces, long } => written(&directory, &pieces, long),
        Log::Found { files, since, until, tail } => {
            for (number, bytes) in files.iter().enumerate().filter(|(_, bytes)| !bytes.is_empty()) {
                fs::write(directory.join(format!("{number}.log")), bytes).expect("written");
            }
            found(&directory, since, until, u64::from(tail));
        }
    }
});

fn read(directory: &Path, query: LogQuery) -> Vec<LogLine> {
    let source =
        LogSource { dir: directory.to_owned(), task: TaskId::new("t").expect("an id"), name: "web.1".to_owned() };
    let lines =
        RUNTIME.block_on(async { read_logs(source, query, CancellationToken::new()).try_collect::<Vec<_>>().await });
    lines.expect("read").concat()
}

fn written(directory: &Path, pieces: &[(bool, &[u8], u8)], long: Option<(u8, u16)>) {
    let mut file = LogFile::open(directory).expect("a log");
    let long = long.map_or(Vec::new(), |(byte, times)| vec![byte; usize::from(times)]);
    let mut expected = [Vec::new(), Vec::new()];
    let mut nanos = 0;
    for (is_err, piece, later) in pieces {
        let stream = if *is_err { LogStream::Stderr } else { LogStream::Stdout };
        nanos += u64::from(*later) * 1000;
        for bytes in [piece, &long[..]] {
            file.write(stream, bytes, nanos);
            expected[stream as usize].extend_from_slice(bytes);
        }
    }
    for stream in [LogStream::Stdout, LogStream::Stderr] {
        file.finish(stream);
    }
    let lines = read(directory, LogQuery::default());
    for stream in [LogStream::Stdout, LogStream::Stderr] {
        let mut said = Vec::new();
        for line in lines.iter().filter(|line| line.stream == stream) {
            said.extend_from_slice(&line.line);
            if !line.partial {
                said.push(b'\n');
            }
        }
        // The last line may have had no end.
        let expected = &expected[stream as usize];
        let same = said == *expected || said.strip_suffix(b"\n") == Some(&expected[..]);
        assert!(same, "{stream:?}: {} came back as {}", expected.escape_ascii(), said.escape_ascii());
    }
    for tail in [0, 1, 3] {
        let last = read(directory, LogQuery { tail: Some(tail), ..LogQuery::default() });
        assert_eq!(last, lines[lines.len().saturating_sub(tail as usize)..], "the last {tail}");
    }
}

fn found(directory: &Path, since: Option<u64>, until: Option<u64>, tail: u64) {
    let all = read(directory, LogQuery::default());
    let (since, until) = (since.map(Timestamp), until.map(Timestamp));
    let some = read(directory, LogQuery { since, until, ..LogQuery::default() });
    let wanted = |line: &&LogLine| since.is_none_or(|since| line.nanos >= since.0.saturating_mul(1000));
    // Up to the first that is later: what follows it is later too, in a log that was written by somebody.
    let early =
        |line: &&LogLine| until.is_none_or(|until| line.nanos <= until.0.saturating_mul(1000).saturating_add(999));
    let expected: Vec<LogLine> = all.iter().take_while(early).filter(wanted).cloned().collect();
    assert_eq!(some, expected);
    let last = read(directory, LogQuery { tail: Some(tail), ..LogQuery::default() });
    assert!(all.ends_with(&last), "the last {tail} are none of the last: {last:?} of {all:?}");
    // By halves, which takes lines in order: no more than that it ends.
    read(directory, LogQuery { since, until, tail: Some(tail), follow: false });
}
