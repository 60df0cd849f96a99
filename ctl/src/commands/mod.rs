//! One module a command. Each asks the controller, waits where waiting is wanted, and prints.

mod apply;
mod converge;
mod events;
mod image;
mod inspect;
mod list;
mod logs;
mod remove;
mod scale;
mod target;
mod version;

use std::{io::Write, time::SystemTime};

use clap::CommandFactory;
use roster_proto::{convert::ConvertError, time::Timestamp};
use serde::Serialize;

use crate::{
    cli::{Cli, Command, Node},
    client,
    error::{Ending, Error},
    render::{Format, table::Table},
};

pub async fn run(cli: Cli) -> Result<Ending, Error> {
    let endpoint = cli.endpoint;
    let connect = || client::connect(&endpoint);
    match cli.command {
        Command::Apply(args) => apply::apply(args, connect).await,
        Command::Plan(args) => apply::plan(args, connect).await,
        Command::Ps(args) => list::tasks(args, &mut connect().await?).await,
        Command::Services(args) => list::services(args, &mut connect().await?).await,
        Command::Node(Node::Ls(output)) => list::nodes(output.output, &mut connect().await?).await,
        Command::Inspect(args) => inspect::run(args, &mut connect().await?).await,
        Command::Logs(args) => logs::run(args, &mut connect().await?).await,
        Command::Scale(args) => scale::run(args, &mut connect().await?).await,
        Command::Rm(args) => remove::run(args, &mut connect().await?).await,
        Command::Events(args) => events::run(args, &mut connect().await?).await,
        Command::Image(args) => image::run(args, &mut connect().await?).await,
        Command::Version(args) => version::run(args, connect).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rctl", &mut script);
            write_out(&String::from_utf8_lossy(&script))?;
            Ok(Ending::Done)
        }
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
