//! Random faults for a while, with somebody writing all the time. In the end every acknowledged apply is there, every
//! service is at its count, no task runs twice, and nothing is left on any host. A singleton never runs twice at all.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use roster_tests::{
    bench::sleepers as processes_of,
    dice::Dice,
    drive::Drive,
    lab::{Cut, Daemon, Slowness, is_alive, trial::Trial},
    wait,
};
use serde_json::Value;

use super::{id, sleepers};

const HOSTS: u8 = 5;
const CONTROLLERS: u8 = 3;
const REPLICAS: usize = 10;
const SINGLETON: &str = "880002";
/// `ROSTER_CHAOS_SECONDS` makes it longer; by hand half an hour.
const SECONDS: u64 = 180;
/// After the last fault the machine has some catching up to do.
const AFTERWARDS: Duration = Duration::from_secs(120);

#[derive(Debug)]
enum Fault {
    PowerCut(String),
    Killed(String, Daemon),
    Stopped(String, Daemon),
    Cut(Cut),
    Lossy(String),
    ContainerKilled,
}

impl Fault {
    fn roll(dice: &mut Dice, trial: &Trial) -> Self {
        let names: Vec<&str> = trial.lab.hosts.iter().map(|host| host.name.as_str()).collect();
        let host = (*dice.pick(&names)).to_owned();
        let controller = (*dice.pick(&names[..usize::from(CONTROLLERS)])).to_owned();
        match dice.roll(9) {
            0 => Self::PowerCut(host),
            1 => Self::Killed(host, Daemon::Agent),
            2 | 3 => Self::Killed(controller, Daemon::Controller),
            4 => Self::Stopped(controller, Daemon::Controller),
            5 => Self::Cut(Cut::FromAll(host)),
            6 => {
                let others: Vec<&str> = names.into_iter().filter(|name| *name != host).collect();
                Self::Cut(Cut::Between(host, (*dice.pick(&others)).to_owned()))
            }
            7 => Self::Lossy(host),
            _ => Self::ContainerKilled,
        }
    }

    fn begin(&self, trial: &Trial, dice: &mut Dice) {
        match self {
            Self::PowerCut(host) => trial.kill(host),
            Self::Killed(host, daemon) => trial.signal(host, *daemon, Signal::SIGKILL),
            Self::Stopped(host, daemon) => trial.signal(host, *daemon, Signal::SIGSTOP),
            Self::Cut(cut) => trial.done(trial.lab.cut(cut)),
            Self::Lossy(host) => {
                let slowness = Slowness { delay: None, rate: None, loss: Some(20) };
                trial.done(trial.lab.slow(trial.host(host), &slowness));
            }
            Self::ContainerKilled => {
                let contained = trial.lab.hosts.iter().flat_map(|host| trial.done(host.contained()));
                let contained: Vec<u32> = contained.map(|process| process.pid).collect();
                if !contained.is_empty() {
                    let pid = *dice.pick(&contained);
                    // It may end by itself just now.
                    if is_alive(pid) {
                        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
                    }
                }
            }
        }
    }

    fn end(&self, trial: &Trial) {
        match self {
            Self::PowerCut(host) => trial.start(host),
            Self::Killed(host, daemon) => trial.start_daemon(host, *daemon),
            Self::Stopped(host, daemon) => trial.signal(host, *daemon, Signal::SIGCONT),
            Self::Cut(_) | Self::Lossy(_) => trial.heal(),
            Self::ContainerKilled => {}
        }
    }
}

/// Applies one stack after the other and remembers which were acknowledged.
fn write(trial: &Trial, stop: &AtomicBool, acknowledged: &Mutex<Vec<String>>) {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let stack = format!("written-{number}");
        let file = trial.spec_file().with_file_name(format!("{stack}.yaml"));
        std::fs::write(&file, sleepers(&stack, 0)).expect("the folder is ours");
        let output = trial.rctl(&["apply", "--detach", "--quiet", &file.to_string_lossy()]);
        if output.code == 0 {
            acknowledged.lock().expect("nobody panics with it").push(stack);
        }
        // Slower than it could: the log of a long run must not be all that the test measures.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Looks all the time; the most it ever saw.
fn watch_singleton(stop: &AtomicBool) -> usize {
    let mut most = 0;
    while !stop.load(Ordering::Relaxed) {
        most = most.max(processes_of(SINGLETON).len());
        std::thread::sleep(Duration::from_millis(20));
    }
    most
}

fn torment(trial: &Trial, dice: &mut Dice, length: Duration) {
    let began = Instant::now();
    while began.elapsed() < length {
        let faults: Vec<Fault> = (0..=dice.roll(2)).map(|_| Fault::roll(dice, trial)).collect();
        let pause = Duration::from_millis(500 + 500 * dice.roll(12) as u64);
        eprintln!("{:6.1} s  {faults:?} for {pause:?}", began.elapsed().as_secs_f64());
        for fault in &faults {
            fault.begin(trial, dice);
        }
        std::thread::sleep(pause);
        for fault in &faults {
            fault.end(trial);
        }
        // Sometimes the next comes before this one is got over.
        if dice.roll(3) > 0 {
            std::thread::sleep(Duration::from_millis(500 * dice.roll(8) as u64));
        }
    }
    trial.heal();
    for host in &trial.lab.hosts {
        for daemon in [Daemon::Controller, Daemon::Agent] {
            trial.signal(&host.name, daemon, Signal::SIGCONT);
        }
        trial.start(&host.name);
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_left_over() {
    let seconds = std::env::var("ROSTER_CHAOS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let mut dice = Dice::seeded(0x5eed);
    let trial = Trial::up(HOSTS, CONTROLLERS);
    trial.apply(&sleepers("load", REPLICAS));
    trial.apply(&format!(
        "name: one\nservices:\n  s:\n    image: roster-hello\n    command: [sleep, '{SINGLETON}']\n    \
         network_mode: none\n    stop_grace_period: 1s\n    x-singleton: true\n    \
         deploy: {{replicas: 1, restart_policy: {{delay: 0s}}}}\n"
    ));
    let (stop, acknowledged) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let most = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&trial, &stop, &acknowledged));
        let watcher = scope.spawn(|| watch_singleton(&stop));
        let tormented = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            torment(&trial, &mut dice, Duration::from_secs(seconds));
        }));
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer does not panic");
        let most = watcher.join().expect("the watcher does not panic");
        tormented.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        most
    });
    let acknowledged = acknowledged.into_inner().expect("nobody panics with it");
    eprintln!("{} applies were acknowledged", acknowledged.len());
    assert!(most <= 1, "the singleton ran {most} times at once");
    assert!(!acknowledged.is_empty(), "nothing was ever acknowledged");

    wait::within(AFTERWARDS, "all hosts to be Ready", || {
        let nodes = trial.rctl(&["node", "ls", "-o", "json"]);
        let ready = nodes.stdout.matches("\"Ready\"").count();
        if ready == usize::from(HOSTS) { Ok(()) } else { Err(nodes) }
    });
    wait::within(AFTERWARDS, "every task to run, once", || whole(&trial));
    let services = trial.json(&["services", "-o", "json"]);
    let stacks: BTreeSet<&str> = services.iter().filter_map(|service| service["stack"].as_str()).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|stack| !stacks.contains(stack.as_str())).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");

    let all: Vec<&str> = stacks.into_iter().collect();
    trial.ok(&[&["rm"], &all[..]].concat());
    trial.until_no_traces();
    trial.down();
}

/// What rctl says runs is what the kernel runs, each task on one host.
fn whole(trial: &Trial) -> Result<(), (Vec<Value>, String)> {
    let tasks = trial.tasks();
    let running = trial.running();
    let said: BTreeSet<String> = tasks.iter().map(id).collect();
    let really: BTreeSet<String> = running.keys().cloned().collect();
    let once = running.values().all(|hosts| hosts.len() == 1);
    let well = tasks.len() == REPLICAS + 1 && tasks.iter().all(roster_tests::drive::is_running);
    if well && once && said == really { Ok(()) } else { Err((tasks, format!("{running:?}"))) }
}
