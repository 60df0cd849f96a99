//! The command line of an OCI runtime, as containerd, dockerd and people call it.
//!
//! One process and one thread for each call. What went wrong is said once: on standard error for people, and as a line
//! of the log file for programs.

mod events;
mod exec;
mod features;
mod foreground;
mod life;
mod log;
mod make;
mod own_file;
mod spec;
mod update;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand, error::ErrorKind};

use self::log::{Format, warn};
use crate::{
    cgroup::Hierarchies,
    config::NEWEST,
    error::StartError,
    store::{Container, Record, Status, Store, StoreError},
};

/// Makes containers from OCI bundles.
///
/// A bundle is a folder with config.json and a root file system (https://github.com/opencontainers/runtime-spec).
#[derive(Debug, Parser)]
#[command(name = "roster-runtime", disable_version_flag = true, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    /// Print the versions of the program and of the specification
    #[arg(short = 'v', long)]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  roster-runtime spec                     write a config.json to start from
  roster-runtime run web                  run the bundle in this folder as the container web
  roster-runtime exec -t web sh           a shell in it
  dockerd --add-runtime roster=/usr/bin/roster-runtime
  docker run --runtime roster ...";

#[derive(Debug, Args)]
struct Global {
    /// Folder of the containers' state, on tmpfs
    #[arg(long, value_name = "DIR", default_value = "/run/roster-runtime")]
    root: PathBuf,
    /// Where to write errors, besides standard error
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How the log is written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
    /// Accepted for other runtimes' callers: there is nothing more to tell
    #[arg(long, hide = true)]
    debug: bool,
    /// Refused: the cgroups are made directly, not by systemd
    #[arg(long)]
    systemd_cgroup: bool,
    /// Accepted for other runtimes' callers; `true` is refused
    #[arg(long, value_name = "WHETHER", hide = true, default_value = "auto")]
    rootless: String,
}

// A command's arguments are defined when it is called: those of all take time, and more memory than a container's making.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Make a container, with its first process waiting to be started
    Create(make::Create),
    /// Start what was created
    Start(life::Id),
    /// Make a container, start it, and stay until it has ended
    Run(make::Run),
    /// Print a container's state as JSON
    State(life::Id),
    /// Send a signal to a container's first process
    Kill(life::Kill),
    /// Remove a stopped container
    Delete(life::Delete),
    /// Run one more program in a container
    Exec(exec::Exec),
    /// Show a container's processes
    Ps(life::Ps),
    /// Stop a container's processes where they are
    Pause(life::Id),
    /// Let a paused container go on
    Resume(life::Id),
    /// Change a container's limits
    Update(update::Update),
    /// List containers
    List(life::List),
    /// Print a container's figures, at intervals
    Events(events::Events),
    /// Print what this runtime supports as JSON
    Features,
    /// Write a config.json to start from
    Spec(spec::Write),
}

/// Any error of a command, to be told once.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A command that does not fit what it was used on.
    #[error("{0}")]
    Refused(String),
    #[error("cannot {doing}: {source}")]
    Io { doing: String, source: io::Error },
    /// Said of several steps that were all tried.
    #[error("{0}")]
    Several(String),
}

/// Names what an [`io::Error`] was about.
trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::Io { doing: doing(), source: error.into() })
    }
}

/// What every command works on.
struct Context {
    store: Store,
    hierarchies: Hierarchies,
}

impl Context {
    fn status(&self, container: &Container, record: Option<&Record>) -> Result<Status, Error> {
        Ok(container.status(record, &self.hierarchies)?)
    }

    /// The container and its record, when it is in one of these states.
    fn found(&self, id: &str, verb: &str, fitting: &[Status]) -> Result<(Container, Record), Error> {
        let container = self.store.find(id)?;
        let record = container.record()?;
        let status = self.status(&container, record.as_ref())?;
        match record {
            Some(record) if fitting.contains(&status) => Ok((container, record)),
            // containerd knows one that has ended by these words.
            _ if status == Status::Stopped => {
                Err(Error::Refused(format!("cannot {verb} container {id}: container not running")))
            }
            _ => Err(Error::Refused(format!("cannot {verb} container {id}: it is {}", status.word()))),
        }
    }
}

/// What a command ended as: a program's own exit code, where there is one.
type Outcome = Result<u8, Error>;

/// As runc's, for any error.
pub const FAILED: u8 = 1;

/// Returns the exit code.
pub fn main() -> u8 {
    let protected = own_file::protect(std::env::args_os());
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody can be told that telling failed.
            let _ = error.print();
            return if error.use_stderr() { FAILED } else { 0 };
        }
    };
    if cli.version {
        print!("{}", version());
        return 0;
    }
    log::write_to(cli.global.log.clone(), cli.global.log_format);
    match protected.map_err(Error::from).and_then(|()| dispatch(cli)) {
        Ok(code) => code,
        Err(error) => {
            log::error(&error.to_string());
            FAILED
        }
    }
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let cli = Cli::try_parse_from(args)?;
    if cli.command.is_none() && !cli.version {
        let mut command = <Cli as clap::CommandFactory>::command();
        return Err(command.error(ErrorKind::MissingSubcommand, "a command is needed: see --help"));
    }
    Ok(cli)
}

/// In the lines that dockerd looks for.
fn version() -> String {
    format!("roster-runtime version {}\nspec: {}\n", env!("CARGO_PKG_VERSION"), NEWEST)
}

fn dispatch(cli: Cli) -> Outcome {
    let Some(command) = cli.command else { return Ok(0) };
    if cli.global.systemd_cgroup {
        return Err(Error::Refused(
            "--systemd-cgroup: systemd is not asked to make cgroups: have the caller use the driver \"cgroupfs\" \
             (dockerd: --exec-opt native.cgroupdriver=cgroupfs)"
                .to_owned(),
        ));
    }
    if !matches!(cli.global.rootless.as_str(), "auto" | "false") {
        return Err(Error::Refused("--rootless: this runtime needs root".to_owned()));
    }
    match &command {
        Command::Features => return features::print(),
        Command::Spec(write) => return spec::write(write),
        _ => {}
    }
    let root = absolute(&cli.global.root)?;
    let context = Context { store: Store::new(root), hierarchies: Hierarchies::open()? };
    match command {
        Command::Create(create) => make::create(&context, create),
        Command::Start(id) => life::start(&context, &id.id),
        Command::Run(run) => make::run(&context, run),
        Command::State(id) => life::state(&context, &id.id),
        Command::Kill(kill) => life::kill(&context, &kill),
        Command::Delete(delete) => life::delete(&context, &delete),
        Command::Exec(exec) => exec::exec(&context, exec),
        Command::Ps(ps) => life::ps(&context, &ps),
        Command::Pause(id) => life::pause(&context, &id.id),
        Command::Resume(id) => life::resume(&context, &id.id),
        Command::Update(update) => update::update(&context, &update),
        Command::List(list) => life::list(&context, &list),
        Command::Events(events) => events::events(&context, &events),
        Command::Features | Command::Spec(_) => unreachable!("done above"),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).doing(|| format!("find {}", path.display()))
}

fn print(value: &impl serde::Serialize) -> Outcome {
    let mut text = serde_json::to_vec_pretty(value).map_err(io::Error::from).doing(|| "write JSON".to_owned())?;
    text.push(b'\n');
    io::stdout().write_all(&text).doing(|| "write to standard output".to_owned())?;
    Ok(0)
}
