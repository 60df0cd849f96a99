//! The agent's memory on disk, in one directory:
//!
//! * `set`: the last assignment set accepted, so that the agent goes on reconciling while no controller answers.
//!   Written as a whole beside the old one and renamed over it.
//! * `journal`: which tasks were started and how those that ended did, one line each, so that a task stays one-shot
//!   over any restart. Only ever appended to; rewritten without what is no longer needed when it has grown.
//!
//! Guarantees: a file that is torn or damaged is told apart from a good one by a checksum and never half believed. A
//! set that cannot be read counts as no set, on which nothing is ever stopped.
//!
//! Deliberately absent: fsync. After a crash of the agent the page cache is still there. After a power cut the newest
//! writes may be missing, but then no container survived either, and the controller sends the newest set again; what
//! can happen at worst is that a task of the last seconds is begun a second time when nothing of the first is left.
//!
//! The set is written beside the work, not before it: whoever reads an older set than what runs starts what the set
//! says, and removes nothing until the controller has spoken (see [`crate::reconcile::plan`]).

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use roster_proto::{assignment::AssignmentSet, id::TaskId, task::TaskStatus, time::Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const SET: &str = "set";
const JOURNAL: &str = "journal";
const HEADER: &str = "roster-ledger 1 ";
/// A set of 10,000 tasks is about 10 MB; what is larger was not written by us.
const SET_LIMIT: u64 = 256 << 20;
const JOURNAL_LIMIT: u64 = 256 << 20;
/// Lines the journal may have beyond twice what is needed before it is rewritten.
const JOURNAL_SLACK: usize = 1000;

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {what} the ledger {path}: {source}", path = path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the ledger {path} is damaged ({problem})", path = path.display())]
    Damaged { path: PathBuf, problem: String },
}

/// What was found on disk when the agent started.
#[derive(Debug, Default)]
pub struct Remembered {
    pub set: Option<AssignmentSet>,
    /// What could not be read; to be told to the operator.
    pub damage: Vec<LedgerError>,
}

/// What outlives the agent of one task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<TaskStatus>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    task: TaskId,
    #[serde(flatten)]
    record: Record,
}

/// Writes the set. Apart from [`Journal`] so that the two can be used side by side.
#[derive(Clone, Debug)]
pub struct SetFile {
    path: PathBuf,
}

#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    records: BTreeMap<TaskId, Record>,
    lines: usize,
    /// The last line may have been cut short by a full disk, and would spoil the next.
    torn: bool,
}

/// Reads what is there, creating the directory where it is not. Damage is part of the answer, not an error.
pub fn open(directory: &Path) -> Result<(SetFile, Journal, Remembered), LedgerError> {
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| LedgerError::Io { what, path, source }
    };
    fs::create_dir_all(directory).map_err(io("create", directory))?;
    let set_file = SetFile { path: directory.join(SET) };
    let mut damage = Vec::new();
    let set = set_file.read().unwrap_or_else(|error| {
        damage.push(error);
        None
    });
    let path = directory.join(JOURNAL);
    let (records, damaged) = read_journal(&path)?;
    damage.extend(damaged);
    let file = OpenOptions::new().append(true).create(true).open(&path).map_err(io("open", &path))?;
    let mut journal = Journal { path, file, records, lines: 0, torn: false };
    match &set {
        Some(set) => journal.rewrite(|task| set.tasks.contains_key(task))?,
        // Without a set nothing tells what is still needed.
        None => journal.rewrite(|_| true)?,
    }
    Ok((set_file, journal, Remembered { set, damage }))
}

impl SetFile {
    fn read(&self) -> Result<Option<AssignmentSet>, LedgerError> {
        let Some(text) = read_bounded(&self.path, SET_LIMIT)? else { return Ok(None) };
        let damaged = |problem: &str| LedgerError::Damaged { path: self.path.clone(), problem: problem.to_owned() };
        let (head, body) = text.split_once('\n').ok_or_else(|| damaged("no header line"))?;
        let digest = head.strip_prefix(HEADER).ok_or_else(|| damaged("unknown header"))?;
        if digest != checksum(body) {
            return Err(damaged("its checksum does not fit its content"));
        }
        serde_json::from_str(body).map(Some).map_err(|error| damaged(&error.to_string()))
    }

    /// Blocks for the length of a file write.
    pub fn write(&self, set: &AssignmentSet) -> Result<(), LedgerError> {
        let io = |what| move |source| LedgerError::Io { what, path: self.path.clone(), source };
        let body = serde_json::to_string(set).map_err(|error| io("encode")(error.into()))?;
        replace(&self.path, format!("{HEADER}{}\n{body}", checksum(&body)).as_bytes()).map_err(io("write"))
    }
}

impl Journal {
    pub fn record(&self, task: &TaskId) -> Option<&Record> {
        self.records.get(task)
    }

    /// The task's container runs since `at`.
    pub fn started(&mut self, task: &TaskId, at: Timestamp) -> Result<(), LedgerError> {
        if self.records.get(task).is_some_and(|record| record.started.is_some()) {
            return Ok(());
        }
        self.append(task, Record { started: Some(at), outcome: None })
    }

    pub fn ended(&mut self, task: &TaskId, outcome: &TaskStatus) -> Result<(), LedgerError> {
        self.append(task, Record { started: outcome.started, outcome: Some(outcome.clone()) })
    }

    /// Drops what `keep` denies once enough of it has gathered; makes up for what could not be written.
    pub fn compact(&mut self, keep: impl Fn(&TaskId) -> bool) -> Result<(), LedgerError> {
        let needed = self.records.keys().filter(|task| keep(task)).count();
        if !self.torn && self.lines <= 2 * needed + JOURNAL_SLACK { Ok(()) } else { self.rewrite(keep) }
    }

    fn append(&mut self, task: &TaskId, record: Record) -> Result<(), LedgerError> {
        let line = encode(task, &record);
        self.records.entry(task.clone()).or_default().merge(record);
        self.lines += 1;
        if self.torn {
            return self.rewrite(|_| true);
        }
        let written = self.file.write_all(line.as_bytes());
        self.torn = written.is_err();
        written.map_err(|source| LedgerError::Io { what: "append to", path: self.path.clone(), source })
    }

    fn rewrite(&mut self, keep: impl Fn(&TaskId) -> bool) -> Result<(), LedgerError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| LedgerError::Io { what: "rewrite", path, source }
        };
        self.records.retain(|task, _| keep(task));
        let text: String = self.records.iter().map(|(task, record)| encode(task, record)).collect();
        replace(&self.path, text.as_bytes()).map_err(io(&self.path))?;
        self.file = OpenOptions::new().append(true).open(&self.path).map_err(io(&self.path))?;
        self.lines = self.records.len();
        self.torn = false;
        Ok(())
    }
}

impl Record {
    fn merge(&mut self, later: Record) {
        self.started = self.started.or(later.started);
        self.outcome = self.outcome.take().or(later.outcome);
    }
}

/// `CHECKSUM JSON\n`.
fn encode(task: &TaskId, record: &Record) -> String {
    let line = Line { task: task.clone(), record: record.clone() };
    let body = serde_json::to_string(&line).expect("strings and numbers always become JSON");
    format!("{} {body}\n", &checksum(&body)[..16])
}

fn decode(line: &str) -> Option<Line> {
    let (digest, body) = line.split_once(' ')?;
    (checksum(body).get(..16) == Some(digest)).then(|| serde_json::from_str(body).ok()).flatten()
}

/// The good lines; a crash may have torn the last one, anything else is damage.
fn read_journal(path: &Path) -> Result<(BTreeMap<TaskId, Record>, Option<LedgerError>), LedgerError> {
    let mut records: BTreeMap<TaskId, Record> = BTreeMap::new();
    let Some(text) = read_bounded(path, JOURNAL_LIMIT)? else { return Ok((records, None)) };
    let mut bad = Vec::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        match decode(line.trim_end_matches('\n')) {
            Some(line) => records.entry(line.task).or_default().merge(line.record),
            None if !line.ends_with('\n') => {}
            None => bad.push(number + 1),
        }
    }
    let damage = bad.first().map(|first| LedgerError::Damaged {
        path: path.to_owned(),
        problem: format!("{} unreadable lines, the first is line {first}", bad.len()),
    });
    Ok((records, damage))
}

/// Bytes that are not UTF-8 are replaced; the checksum over them then tells.
fn read_bounded(path: &Path, limit: u64) -> Result<Option<String>, LedgerError> {
    let io = |source| LedgerError::Io { what: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(io)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes)?;
    fs::rename(&fresh, path)
}

fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
