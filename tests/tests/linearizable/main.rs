//! Whether what clients see of the real controllers, while these are killed, stopped and cut off, could have been seen
//! of a single one that does one thing after the other.
//!
//! Clients write and read registers (a label of a service, one stack each) by all controllers, as `rctl` does it: with
//! request ids, and again elsewhere when an answer fails to come. What they asked and were told is then given to
//! stateright's checker. Its search is exponential at worst, so no register is used for long.

mod clients;
mod faults;
mod history;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use clients::{Client, Clients};
use faults::torment;
use history::{History, What};
use roster_tests::{dice::Dice, lab::trial::Trial, wait};

const CONTROLLERS: u8 = 3;
/// `ROSTER_LINEARIZABLE_SECONDS` makes it longer.
const SECONDS: u64 = 20;
/// A history in which little happens proves little.
const LEAST_ANSWERS: usize = 200;

/// Only once all vote may one of them be missing.
fn all_voting() -> Trial {
    let trial = Trial::without_agents(CONTROLLERS, CONTROLLERS);
    wait::until("all controllers to vote", || {
        let status = trial.status().ok_or("no answer")?;
        let controllers = status["controllers"].as_array().ok_or("no controllers")?;
        let voters = controllers.iter().filter(|controller| controller["role"] == "voter").count();
        if voters == usize::from(CONTROLLERS) { Ok(()) } else { Err("not all are voters") }
    });
    trial
}

#[test]
fn what_clients_see_under_faults_is_linearizable() {
    let seconds = std::env::var("ROSTER_LINEARIZABLE_SECONDS").ok().and_then(|text| text.parse().ok());
    let length = Duration::from_secs(seconds.unwrap_or(SECONDS));
    let mut dice = Dice::seeded(0x5eed);
    let trial = all_voting();
    let (history, stop) = (History::default(), AtomicBool::new(false));
    let clients = Clients::new(&trial, &history, &mut dice);
    thread::scope(|scope| {
        let asked = scope.spawn(|| clients.run(&stop));
        let tormented = catch_unwind(AssertUnwindSafe(|| torment(&trial, &mut dice, length)));
        stop.store(true, Ordering::Relaxed);
        let asked = asked.join().expect("clients do not panic");
        tormented.unwrap_or_else(|panic| resume_unwind(panic));
        asked.unwrap_or_else(|error| panic!("{error}"));
    });
    clients.look_again().unwrap_or_else(|error| panic!("{error}"));
    let answers = history.check().unwrap_or_else(|violation| panic!("{violation}"));
    eprintln!("{answers:?}");
    assert!(answers.writes + answers.reads >= LEAST_ANSWERS, "{answers:?}");
    trial.down();
}

/// The checker sees one when there is one; and a controller that is cut off gives such an answer only when asked to.
#[test]
fn a_stale_read_is_found_out() {
    let trial = all_voting();
    let leader = trial.leader();
    let names = trial.lab.hosts.iter().map(|host| host.name.as_str());
    let alone = names.clone().find(|name| *name != leader).expect("there are three");
    let (history, misled) = (History::default(), History::default());
    clients::block_on(async {
        let mut dice = Dice::seeded(1);
        let mut at = |name: &str| Client::new(&[trial.host(name).socket()], &mut dice);
        let (mut writer, mut reader) = (at(&leader), at(alone));
        for history in [&history, &misled] {
            history.note(0, "k", What::Write(1));
        }
        let first = writer.write("k", 1).await;
        let read = reader.read("k").await;
        trial.cut(alone);
        let second = writer.write("k", 2).await;
        for history in [&history, &misled] {
            history.note(0, "k", first.clone().expect("a write without faults"));
            history.note(1, "k", What::Read);
            history.note(1, "k", read.clone().expect("a read without faults"));
            history.note(0, "k", What::Write(2));
            history.note(0, "k", second.clone().expect("two of three are enough"));
        }
        misled.note(1, "k", What::Read);
        misled.note(1, "k", reader.read_stale("k").await.expect("the question is understood"));
        assert_eq!(reader.read_once("k").await, None, "cut off, and sure of what it says");
        trial.heal();
        history.note(1, "k", What::Read);
        history.note(1, "k", reader.read("k").await.expect("a read after the faults"));
    });
    history.check().unwrap_or_else(|violation| panic!("{violation}"));
    let violation = misled.check().expect_err("a stale read went unnoticed").to_string();
    assert!(violation.contains("\"k\""), "{violation}");
    trial.down();
}
