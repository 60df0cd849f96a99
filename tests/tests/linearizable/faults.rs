//! What befalls the controllers, one thing at a time, most often the leader.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use roster_tests::{
    dice::Dice,
    lab::{Cut, Daemon, trial::Trial},
};

#[derive(Debug)]
enum Fault {
    Killed(String),
    /// The whole host, with what was in its memory.
    PowerCut(String),
    /// It goes on later as if no time had passed, and may believe that it still leads.
    Stopped(String),
    CutFromAll(String),
    CutBetween(String, String),
}

impl Fault {
    fn roll(dice: &mut Dice, trial: &Trial) -> Self {
        let names: Vec<String> = trial.lab.controllers().map(|host| host.name.clone()).collect();
        let victim = if dice.roll(3) > 0 { trial.leader() } else { dice.pick(&names).clone() };
        match dice.roll(6) {
            0 | 1 => Self::Killed(victim),
            2 => Self::PowerCut(victim),
            3 => Self::Stopped(victim),
            4 => Self::CutFromAll(victim),
            _ => {
                let others: Vec<&String> = names.iter().filter(|name| **name != victim).collect();
                Self::CutBetween(victim, (*dice.pick(&others)).clone())
            }
        }
    }

    fn begin(&self, trial: &Trial) {
        match self {
            Self::Killed(host) => trial.signal(host, Daemon::Controller, Signal::SIGKILL),
            Self::PowerCut(host) => trial.kill(host),
            Self::Stopped(host) => trial.signal(host, Daemon::Controller, Signal::SIGSTOP),
            Self::CutFromAll(host) => trial.done(trial.lab.cut(&Cut::FromAll(host.clone()))),
            Self::CutBetween(host, other) => trial.cut_between(host, other),
        }
    }

    fn end(&self, trial: &Trial) {
        match self {
            Self::Killed(host) => trial.start_daemon(host, Daemon::Controller),
            Self::PowerCut(host) => {
                trial.done(trial.lab.switch_on(trial.host(host)));
                trial.start_daemon(host, Daemon::Controller);
            }
            Self::Stopped(host) => trial.signal(host, Daemon::Controller, Signal::SIGCONT),
            Self::CutFromAll(_) | Self::CutBetween(..) => trial.heal(),
        }
    }
}

/// In the end, all are well.
pub(crate) fn torment(trial: &Trial, dice: &mut Dice, length: Duration) {
    let began = Instant::now();
    while began.elapsed() < length {
        let fault = Fault::roll(dice, trial);
        // Some end before anybody noticed, others outlast an election and what comes after it.
        let lasting = Duration::from_millis(100 * (1 + dice.roll(25) as u64));
        eprintln!("{:6.1} s  {fault:?} for {lasting:?}", began.elapsed().as_secs_f64());
        fault.begin(trial);
        thread::sleep(lasting);
        fault.end(trial);
        // Sometimes the next comes before this one is got over.
        thread::sleep(Duration::from_millis(100 * dice.roll(10) as u64));
    }
}
