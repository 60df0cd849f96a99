//! `debug`: a program of the node's in a container, also in one that has failed.

use std::io::{self, IsTerminal};

use roster_proto::wire::{self, live_client::LiveClient, live_work::Work};

use super::{
    exec,
    session::{Left, Session},
};
use crate::{
    cli::Debug,
    client::Transport,
    error::{Ending, Error},
    terminal,
};

const SHELL: &str = "sh";

pub(in crate::commands) async fn run(args: Debug, client: LiveClient<Transport>) -> Result<Ending, Error> {
    let Debug { mut inside, failed, target, command, .. } = args;
    let at_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    inside.tty |= at_terminal;
    // A shell without a command reads what it is to do.
    inside.interactive |= at_terminal || command.is_empty();
    let (input, terminal) = (inside.interactive, inside.tty);
    exec::must_be_at_terminal(terminal, input)?;
    let args = if command.is_empty() { vec![SHELL.to_owned()] } else { command };
    let program = wire::Program {
        args,
        env: exec::environment(&inside.env)?,
        user: inside.user,
        working_dir: inside.workdir,
        input,
        terminal: terminal.then(terminal::size),
        privileged: inside.privileged,
        tools: true,
        detached: false,
    };
    let work = Work::Program(program);
    let session =
        Session { target, failed, work, input, terminal: Some(terminal), signals: true, detach: None, lasting: false };
    match session.watch(client).await? {
        Left::Ended(ending) | Left::Insisted(ending) => Ok(ending),
        Left::Detached(name) => Err(Error::Refused(format!("{name}'s node let the program go unasked"))),
    }
}
