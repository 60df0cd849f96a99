//! `exec`: one more program in a running container.

use std::{
    env,
    io::{self, IsTerminal},
};

use roster_proto::wire::{self, live_client::LiveClient, live_work::Work};

use super::session::{Left, Session};
use crate::{
    cli::Exec,
    client::Transport,
    error::{Ending, Error},
    terminal,
};

pub(in crate::commands) async fn run(args: Exec, client: LiveClient<Transport>) -> Result<Ending, Error> {
    let Exec { inside, detach, leaving, target, command } = args;
    // Nobody is there to type.
    let (input, terminal) = (inside.interactive && !detach, inside.tty);
    must_be_at_terminal(terminal, input)?;
    let program = wire::Program {
        args: command,
        env: environment(&inside.env)?,
        user: inside.user,
        working_dir: inside.workdir,
        input,
        terminal: terminal.then(terminal::size),
        privileged: inside.privileged,
        tools: false,
        detached: detach,
    };
    let session = Session {
        target,
        failed: false,
        work: Work::Program(program),
        input,
        terminal: Some(terminal),
        signals: true,
        detach: Some(leaving.detach_keys),
        lasting: false,
    };
    match session.watch(client).await? {
        Left::Ended(ending) | Left::Insisted(ending) => Ok(ending),
        Left::Detached(name) => {
            if !detach {
                anstream::eprintln!("detached from {name}, where the program goes on: `rctl top {name}` shows it");
            }
            Ok(Ending::Done)
        }
    }
}

/// A person who wants a terminal there must have one here.
pub(super) fn must_be_at_terminal(tty: bool, interactive: bool) -> Result<(), Error> {
    if tty && interactive && !io::stdin().is_terminal() {
        return Err(Error::Usage(
            "-t with -i: standard input is no terminal; leave out -t to pass data on as it is".to_owned(),
        ));
    }
    Ok(())
}

/// A name without a value is taken from rctl's environment, if it is there.
pub(super) fn environment(wanted: &[String]) -> Result<Vec<String>, Error> {
    let mut found = Vec::with_capacity(wanted.len());
    for variable in wanted {
        if variable.split('=').next().is_none_or(str::is_empty) {
            return Err(Error::Usage(format!("-e {variable:?}: write NAME=VALUE, or NAME to pass rctl's own on")));
        }
        if variable.contains('=') {
            found.push(variable.clone());
        } else if let Some(value) = env::var_os(variable) {
            let value =
                value.into_string().map_err(|_| Error::Usage(format!("-e {variable}: its value is no UTF-8")))?;
            found.push(format!("{variable}={value}"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_given_or_taken_from_here() {
        let wanted = |words: &[&str]| environment(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(wanted(&["A=1", "B=", "C=x=y"]).unwrap(), ["A=1", "B=", "C=x=y"]);
        let path = format!("PATH={}", env::var("PATH").unwrap());
        assert_eq!(wanted(&["PATH", "NO_SUCH_VARIABLE_HERE"]).unwrap(), [path]);
        assert!(wanted(&["=x"]).is_err() && wanted(&[""]).is_err());
    }
}
