//! What was asked and told, in the order of time, and the question whether it can be explained.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, mpsc},
    thread,
    time::Duration,
};

use stateright::semantics::{
    ConsistencyTester, LinearizabilityTester,
    register::{Register, RegisterOp, RegisterRet},
};

/// Short histories take the checker milliseconds.
const CHECKING: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Write(u64),
    Read,
    Written {
        version: u64,
    },
    /// A register that was never written is not there, and the answer has no version.
    Found {
        value: Option<u64>,
        version: Option<u64>,
    },
    /// What was asked was not done, and never will be.
    Withdrawn,
}

#[derive(Clone, Debug)]
struct Event {
    /// Asks one thing after the other. Whoever was not answered asks on as another: the old question may still have its
    /// effect, at any time.
    process: usize,
    key: String,
    what: What,
}

#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Vec<Event>>);

/// How much there was to check.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) registers: usize,
    pub(crate) writes: usize,
    pub(crate) reads: usize,
    /// Writes of which nobody knows whether they were done.
    pub(crate) open: usize,
}

#[derive(Debug)]
pub(crate) struct Violation {
    what: String,
    events: Vec<Event>,
}

impl History {
    /// Before the question is sent, and after its answer has come.
    pub(crate) fn note(&self, process: usize, key: &str, what: What) {
        self.0.lock().expect("nobody panics with it").push(Event { process, key: key.to_owned(), what });
    }

    pub(crate) fn keys(&self) -> BTreeSet<String> {
        self.0.lock().expect("nobody panics with it").iter().map(|event| event.key.clone()).collect()
    }

    pub(crate) fn check(&self) -> Result<Answers, Violation> {
        let events = settled(&self.0.lock().expect("nobody panics with it"));
        let mut answers = Answers::default();
        for event in &events {
            match event.what {
                What::Write(_) => answers.open += 1,
                What::Written { .. } => (answers.writes, answers.open) = (answers.writes + 1, answers.open - 1),
                What::Found { .. } => answers.reads += 1,
                What::Read | What::Withdrawn => {}
            }
        }
        check_versions(&events)?;
        let mut registers: BTreeMap<&str, Vec<Event>> = BTreeMap::new();
        for event in &events {
            registers.entry(&event.key).or_default().push(event.clone());
        }
        answers.registers = registers.len();
        for events in registers.into_values() {
            check_register(events)?;
        }
        Ok(answers)
    }
}

/// Without the questions that had no effect: those withdrawn, and reads that nobody answered.
fn settled(events: &[Event]) -> Vec<Event> {
    let mut settled: Vec<Option<Event>> = Vec::with_capacity(events.len());
    let mut asked: BTreeMap<usize, usize> = BTreeMap::new();
    for event in events {
        let question = match event.what {
            What::Write(_) | What::Read => {
                asked.insert(event.process, settled.len());
                None
            }
            _ => asked.remove(&event.process),
        };
        match (&event.what, question) {
            (What::Withdrawn, Some(question)) => settled[question] = None,
            _ => settled.push(Some(event.clone())),
        }
    }
    for question in asked.into_values() {
        settled[question].take_if(|event| event.what == What::Read);
    }
    settled.into_iter().flatten().collect()
}

/// The versions are the cluster's, over all registers: none is given twice, and whoever asks after one was told gets a
/// later one, or for a read the same.
fn check_versions(events: &[Event]) -> Result<(), Violation> {
    let violation = |what: String| Err(Violation { what, events: Vec::new() });
    let (mut told, mut given) = (0, BTreeSet::new());
    let mut before: BTreeMap<usize, u64> = BTreeMap::new();
    for Event { process, key, what } in events {
        let before = match what {
            What::Write(_) | What::Read => {
                before.insert(*process, told);
                continue;
            }
            _ => before.remove(process).unwrap_or_default(),
        };
        match what {
            What::Written { version } if *version <= before => {
                return violation(format!("{key:?} was written at version {version}, asked for after {before}"));
            }
            What::Written { version } if !given.insert(*version) => {
                return violation(format!("version {version} was given twice"));
            }
            What::Found { version: Some(version), .. } if *version < before => {
                return violation(format!("{key:?} was read at version {version}, asked for after {before}"));
            }
            What::Written { version } | What::Found { version: Some(version), .. } => told = told.max(*version),
            _ => {}
        }
    }
    Ok(())
}

/// By a thread that is left behind should the search not end.
fn check_register(events: Vec<Event>) -> Result<(), Violation> {
    let (tell, outcome) = mpsc::channel();
    let searched = events.clone();
    thread::spawn(move || {
        // Nobody may be listening any more.
        let _ = tell.send(is_linearizable(&searched));
    });
    let what = match outcome.recv_timeout(CHECKING) {
        Ok(true) => return Ok(()),
        Ok(false) => "no order of these explains all answers",
        Err(_) => "the search for an order of these took too long",
    };
    Err(Violation { what: what.to_owned(), events })
}

fn is_linearizable(events: &[Event]) -> bool {
    let mut tester = LinearizabilityTester::new(Register(None));
    for Event { process, what, .. } in events {
        let taken = match what {
            What::Write(value) => tester.on_invoke(*process, RegisterOp::Write(Some(*value))),
            What::Read => tester.on_invoke(*process, RegisterOp::Read),
            What::Written { .. } => tester.on_return(*process, RegisterRet::WriteOk),
            What::Found { value, .. } => tester.on_return(*process, RegisterRet::ReadOk(*value)),
            What::Withdrawn => Ok(&mut tester),
        };
        taken.expect("a process asks one thing after the other");
    }
    tester.is_consistent()
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not linearizable: {}", self.what)?;
        for Event { process, key, what } in &self.events {
            write!(f, "\n  client {process:>3} {key:?} {what:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        History,
        What::{self, *},
    };

    fn check(events: &[(usize, What)]) -> Result<(), String> {
        let history = History::default();
        for (process, what) in events {
            history.note(*process, "k", what.clone());
        }
        history.check().map(drop).map_err(|violation| violation.to_string())
    }

    fn found(value: u64) -> What {
        Found { value: Some(value), version: None }
    }

    #[test]
    fn what_is_done_at_once_may_be_seen_in_any_order() {
        let none = Found { value: None, version: None };
        for seen in [none, found(1)] {
            check(&[(0, Write(1)), (1, Read), (1, seen), (0, Written { version: 5 })]).unwrap();
        }
        let told_twice =
            [(0, Write(1)), (1, Read), (1, found(1)), (1, Read), (1, Found { value: None, version: None })];
        check(&told_twice).unwrap_err();
        check(&[(0, Write(1)), (0, Written { version: 5 }), (1, Read), (1, found(2))]).unwrap_err();
    }

    #[test]
    fn a_write_without_an_answer_may_come_at_any_time_or_never() {
        let then = |seen: &[u64]| {
            let mut events = vec![(0, Write(1)), (1, Write(2)), (1, Written { version: 5 })];
            events.extend(seen.iter().flat_map(|value| [(1, Read), (1, found(*value))]));
            check(&events)
        };
        then(&[2, 2]).unwrap();
        then(&[2, 1, 1]).unwrap();
        then(&[1, 1]).unwrap();
        then(&[2, 1, 2]).unwrap_err();
        // Nothing was done, so nobody may see it.
        check(&[(0, Write(1)), (0, Withdrawn), (1, Read), (1, found(1))]).unwrap_err();
    }

    #[test]
    fn versions_go_forward() {
        let write = |process, value, version| [(process, Write(value)), (process, Written { version })];
        check(&[write(0, 1, 5), write(1, 2, 6)].concat()).unwrap();
        check(&[write(0, 1, 5), write(1, 2, 5)].concat()).unwrap_err();
        check(&[write(0, 1, 5), write(1, 2, 4)].concat()).unwrap_err();
        let read = |version| [(1, Read), (1, Found { value: Some(1), version: Some(version) })];
        check(&[write(0, 1, 5), read(5)].concat()).unwrap();
        check(&[write(0, 1, 5), read(4)].concat()).unwrap_err();
    }
}
