//! `deploy/lab`: a whole cluster on one machine, and the faults to try on it.

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use clap::{Parser, Subcommand, ValueEnum};
use nix::{sys::signal::Signal, unistd::geteuid};
use roster_tests::{
    cluster::bin,
    lab::{Cut, DEFAULT_CONTROLLERS, DEFAULT_HOSTS, Daemon, Error, Host, Lab, OPERATOR, Place, Result, Size, Slowness},
};

const AFTER_HELP: &str = "\
Examples:
  deploy/lab up                     three controllers and two more hosts
  deploy/lab rctl node ls           rctl against whichever controller answers
  deploy/lab kill h1                pull the plug of h1; start h1 puts it back
  deploy/lab kill h1 controller     kill -9 of one daemon
  deploy/lab cut h1                 h1 reaches nobody; cut h1 h2: only these two do not reach each other
  deploy/lab heal                   every cut and slowness ends
  deploy/lab shell h2               a shell on a host; with words behind it, only that command
  deploy/lab up --vm 3              small virtual machines instead of namespaces
  deploy/lab down                   nothing is left
  ROSTER_LAB=two deploy/lab up 3    a second lab beside the first";

/// A whole cluster on this machine: every host is a network namespace with an address, data and a cgroup of its own
#[derive(Debug, Parser)]
#[command(name = "deploy/lab", bin_name = "deploy/lab", after_help = AFTER_HELP, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
struct Arguments {
    /// Which lab
    #[arg(long, global = true, env = "ROSTER_LAB", default_value = "lab", value_name = "NAME")]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the hosts, start the daemons, form the cluster; may be run again
    Up {
        #[arg(default_value_t = DEFAULT_HOSTS)]
        hosts: u8,
        /// How many of them have a controller [default: 3 of 3 or more, else 1]
        #[arg(long)]
        controllers: Option<u8>,
        /// Make the hosts small virtual machines with a kernel and a disk of their own (qemu, on kvm or emulated)
        #[arg(long)]
        vm: bool,
    },
    /// End everything and leave nothing behind
    Down,
    /// Which hosts there are, what runs on them, and who is cut off
    Status,
    /// Pull the plug of a host: every process ends at once. Or kill -9 one of its daemons
    Kill { host: String, daemon: Option<Part> },
    /// Shut a host down in order, or one of its daemons
    Stop { host: String, daemon: Option<Part> },
    /// Boot a host that is off, or start a daemon that does not run
    Start { host: String, daemon: Option<Part> },
    /// Cut a host off from all others, or from one; packets vanish silently
    Cut { host: String, from: Option<String> },
    /// End every cut and slowness
    Heal,
    /// Make a host's link slow and lossy, in both directions
    Slow {
        host: String,
        /// As tc(8) writes it [default: 100ms unless something else is given]
        #[arg(long, value_name = "TIME")]
        delay: Option<String>,
        /// As tc(8) writes it [default: 10mbit unless something else is given]
        #[arg(long, value_name = "RATE")]
        rate: Option<String>,
        /// Percent of the packets
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
        loss: Option<u8>,
    },
    /// A shell on a host, or a command there; for `-`, on the lab's network but on no host
    Shell {
        host: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// rctl as this lab's administrator
    #[command(disable_help_flag = true)]
    Rctl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// For `eval`: from then on this shell's rctl is the lab's
    Env,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    Controller,
    Agent,
}

impl From<Part> for Daemon {
    fn from(part: Part) -> Self {
        match part {
            Part::Controller => Self::Controller,
            Part::Agent => Self::Agent,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !geteuid().is_root() {
        eprintln!("deploy/lab: must run as root, for it makes namespaces, cgroups and network links: use sudo");
        return ExitCode::FAILURE;
    }
    match begin(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("deploy/lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn begin(arguments: Arguments) -> Result<()> {
    let folder = bin("rctl").parent().map(PathBuf::from).unwrap_or_default();
    let place = Place::named(&arguments.name, folder)?;
    if let Verb::Up { hosts, controllers, vm } = arguments.verb {
        let most = if hosts < DEFAULT_CONTROLLERS { 1 } else { DEFAULT_CONTROLLERS };
        let size = Size::new(hosts, controllers.unwrap_or(most))?;
        let lab = Lab::create(place, if vm { size.of_machines() } else { size })?;
        return up(&lab);
    }
    let lab = Lab::open(place)?;
    match arguments.verb {
        Verb::Up { .. } => unreachable!("handled above"),
        Verb::Down => {
            lab.down()?;
            println!("Nothing is left.");
            Ok(())
        }
        Verb::Status => status(&lab),
        Verb::Kill { host, daemon: None } => lab.kill(lab.host(&host)?),
        Verb::Kill { host, daemon: Some(part) } => lab.host(&host)?.signal(part.into(), Signal::SIGKILL),
        Verb::Stop { host, daemon: None } => lab.stop(lab.host(&host)?),
        Verb::Stop { host, daemon: Some(part) } => lab.host(&host)?.signal(part.into(), Signal::SIGTERM),
        Verb::Start { host, daemon: None } => lab.start(lab.host(&host)?),
        Verb::Start { host, daemon: Some(part) } => lab.start_daemon(lab.host(&host)?, part.into()),
        Verb::Cut { host, from } => {
            let name = |name: String| lab.host(&name).map(|host| host.name.clone());
            let host = name(host)?;
            lab.cut(&match from {
                None => Cut::FromAll(host),
                Some(other) => Cut::Between(host, name(other)?),
            })
        }
        Verb::Heal => lab.heal(),
        Verb::Slow { host, delay, rate, loss } => slow(&lab, lab.host(&host)?, delay, rate, loss),
        Verb::Shell { host, command } => shell(&lab, &host, &command),
        Verb::Rctl { arguments } => Err(replace_by(lab.rctl_command()?.args(arguments))),
        Verb::Env => {
            // A function, for the machines of a lab are not on this machine's network.
            let program = lab.place.bin.join("roster-lab");
            println!("rctl() {{ '{}' --name '{}' rctl \"$@\"; }}", program.display(), lab.place.name);
            Ok(())
        }
    }
}

fn up(lab: &Lab) -> Result<()> {
    lab.up(|what| println!("{what}"))?;
    status(lab)?;
    let last = lab.hosts.last().map_or("h1", |host| &host.name);
    println!(
        "
Try:
  # the controllers: who leads, who votes
  deploy/lab rctl cluster status
  # something to run: 6 web servers over all hosts
  deploy/hello/build /tmp/hello.tar && deploy/lab rctl image load /tmp/hello.tar
  deploy/lab rctl apply deploy/examples/spread.yaml; deploy/lab rctl ps
  # pull the plug of a host and watch its tasks come back elsewhere
  deploy/lab kill {last}; deploy/lab rctl ps
  deploy/lab start {last}
  # kill the first controller: the others go on
  deploy/lab kill h1 controller; deploy/lab rctl cluster status; deploy/lab start h1 controller
  # split the network, and mend it
  deploy/lab cut h2; deploy/lab status; deploy/lab heal
  # this shell's rctl, until it ends
  eval \"$(deploy/lab env)\"

Stop and remove everything: deploy/lab down"
    );
    Ok(())
}

fn status(lab: &Lab) -> Result<()> {
    let cuts =
        lab.cuts().or_else(|error| if matches!(error, Error::NoLab(_)) { Ok(Vec::new()) } else { Err(error) })?;
    println!(
        "{:<5} {:<12} {:<6} {:<11} {:<9} {:<11} NETWORK",
        "HOST", "ADDRESS", "POWER", "CONTROLLER", "AGENT", "PROCESSES"
    );
    for host in &lab.hosts {
        let daemon = |daemon| Ok::<_, Error>(host.pid(daemon)?.map_or("-".to_owned(), |pid| pid.to_string()));
        let controller = if host.has_controller { daemon(Daemon::Controller)? } else { String::new() };
        println!(
            "{:<5} {:<12} {:<6} {:<11} {:<9} {:<11} {}",
            host.name,
            host.address,
            if host.is_on()? { "on" } else { "off" },
            controller,
            daemon(Daemon::Agent)?,
            host.contained()?.len(),
            network(lab, host, &cuts)?
        );
    }
    Ok(())
}

fn network(lab: &Lab, host: &Host, cuts: &[Cut]) -> Result<String> {
    let mut words: Vec<String> = cuts
        .iter()
        .filter_map(|cut| match cut {
            Cut::FromAll(name) => (*name == host.name).then(|| "cut off".to_owned()),
            Cut::Between(a, b) if *a == host.name => Some(format!("cut off from {b}")),
            Cut::Between(a, b) if *b == host.name => Some(format!("cut off from {a}")),
            Cut::Between(..) => None,
        })
        .collect();
    if lab.is_slow(host)? {
        words.push("slow".to_owned());
    }
    Ok(words.join(", "))
}

fn slow(lab: &Lab, host: &Host, delay: Option<String>, rate: Option<String>, loss: Option<u8>) -> Result<()> {
    let mut slowness = Slowness { delay, rate, loss };
    if slowness.delay.is_none() && slowness.rate.is_none() && loss.is_none() {
        slowness = Slowness { delay: Some("100ms".to_owned()), rate: Some("10mbit".to_owned()), loss };
    }
    for note in lab.slow(host, &slowness)? {
        eprintln!("deploy/lab: {note}");
    }
    Ok(())
}

fn shell(lab: &Lab, name: &str, words: &[String]) -> Result<()> {
    let usual = [std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned())];
    let words = if words.is_empty() { &usual[..] } else { words };
    let (program, arguments) = words.split_first().expect("there is always a shell");
    let mut command = if name == "-" {
        let mut command = lab.operator()?.command(program);
        command.envs(lab.environment());
        command
    } else {
        let host = lab.host(name)?;
        eprintln_on_terminal(&format!("{} is {}; the lab's network is {OPERATOR}/24", host.name, host.address));
        host.command(program)?
    };
    Err(replace_by(command.args(arguments)))
}

fn eprintln_on_terminal(text: &str) {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        eprintln!("{text}");
    }
}

/// Returns only when it failed.
fn replace_by(command: &mut Command) -> Error {
    let source = command.exec();
    Error::Start { command: command.get_program().to_string_lossy().into_owned(), source }
}
