//! One module a command. Each asks the controller, waits where waiting is wanted, and prints.

mod apply;
mod cluster;
mod containers;
mod context;
mod converge;
mod events;
mod file;
mod follow;
mod image;
mod inspect;
mod list;
mod live;
mod logs;
mod node;
mod remove;
mod scale;
mod target;
mod token;
mod user;
mod version;

pub use self::live::DetachKeys;

use std::{
    io::{self, IsTerminal, Write},
    time::SystemTime,
};

use clap::CommandFactory;
use roster_proto::{convert::ConvertError, time::Timestamp};
use serde::Serialize;

use crate::{
    cli::{Cli, Command, Sure},
    client,
    error::{Ending, Error},
    render::{Format, table::Table},
};

pub async fn run(cli: Cli) -> Result<Ending, Error> {
    let wishes = cli.connection.wishes();
    let connect = || client::control(&wishes);
    match cli.command {
        Command::Apply(args) => apply::apply(args, connect).await,
        Command::Plan(args) => apply::plan(args, connect).await,
        Command::Ps(args) => list::tasks(args, &mut connect().await?).await,
        Command::Services(args) => list::services(args, &mut connect().await?).await,
        Command::Node(args) => node::run(args, &mut connect().await?).await,
        Command::Inspect(args) => inspect::run(args, &mut connect().await?).await,
        Command::Logs(mut args) => {
            if args.failed {
                args.target = containers::kept::task(args.target, &wishes).await?;
            }
            logs::run(args, &mut connect().await?).await
        }
        Command::Debug(args) if args.info => containers::kept::tell(args, &wishes).await,
        Command::Debug(args) => live::debug(args, client::live(&wishes).await?).await,
        Command::Attach(args) => live::attach(args, client::live(&wishes).await?).await,
        Command::Cp(args) => live::copy(args, client::live(&wishes).await?).await,
        Command::Run(args) => live::run(args, &wishes).await,
        Command::Exec(args) => live::exec(args, client::live(&wishes).await?).await,
        Command::Scale(args) => scale::run(args, &mut connect().await?).await,
        Command::Diff(args) => containers::files::diff(args, &wishes).await,
        Command::Export(args) => containers::files::export(args, &wishes).await,
        Command::Commit(args) => containers::commit::run(args, &wishes).await,
        Command::Top(args) => containers::top::run(args, &wishes).await,
        Command::Stats(args) => containers::stats::run(args, &wishes).await,
        Command::Kill(args) => containers::kill(args, &wishes).await,
        Command::Pause(args) => containers::set_paused(args.targets, true, &wishes).await,
        Command::Unpause(args) => containers::set_paused(args.targets, false, &wishes).await,
        Command::Restart(args) => containers::restart(args, &wishes).await,
        Command::Rm(args) => remove::run(args, &mut connect().await?).await,
        Command::Events(args) => events::run(args, &mut connect().await?).await,
        Command::Image(args) => image::run(args, &mut connect().await?).await,
        Command::Cluster(args) => cluster::run(args, &wishes).await,
        Command::Token(args) => token::run(args, &wishes).await,
        Command::User(args) => user::run(args, &wishes).await,
        Command::Context(args) => context::run(args, wishes).await,
        Command::Version(args) => version::run(args, &wishes).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rctl", &mut script);
            write_out(&String::from_utf8_lossy(&script))?;
            Ok(Ending::Done)
        }
    }
}

/// Asks before what cannot be taken back. Who is not at a terminal has to say so beforehand.
fn confirm(sure: &Sure, question: &str) -> Result<(), Error> {
    if sure.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Error::Usage(format!("{question} Nobody can be asked here: add --yes when it is meant")));
    }
    anstream::eprint!("{question} Type yes to go on: ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| Error::io("cannot read the answer", error))?;
    match answer.trim() {
        "yes" => Ok(()),
        _ => Err(Error::Usage("nothing was done".to_owned())),
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

/// All parts of an answer, converted.
fn all<W, D: TryFrom<W, Error = ConvertError>>(parts: Vec<W>) -> Result<Vec<D>, Error> {
    parts.into_iter().map(|part| D::try_from(part).map_err(Error::from)).collect()
}

/// What a command has to say goes out here: `print!` would panic when the disk behind stdout is full.
fn write_out(text: &str) -> Result<(), Error> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Error::io("cannot print", error))
}

/// Prints a listing in the format asked for.
fn print<V: Serialize>(
    format: Format,
    views: impl FnOnce() -> V,
    table: impl FnOnce(bool) -> Table,
) -> Result<(), Error> {
    match format {
        Format::Json | Format::Yaml => write_out(&format.document(&views()).unwrap_or_default()),
        Format::Table | Format::Wide => write_out(&table(format == Format::Wide).render()),
    }
}
