//! `attach`: the container's own program.

use roster_proto::wire::{self, live_client::LiveClient, live_work::Work};

use super::session::{Left, Session};
use crate::{
    cli::Attach,
    client::Transport,
    error::{Ending, Error},
    terminal,
};

pub(in crate::commands) async fn run(args: Attach, client: LiveClient<Transport>) -> Result<Ending, Error> {
    let Attach { no_stdin, sig_proxy, leaving, target } = args;
    let input = !no_stdin;
    let work = Work::Attach(wire::Attach { input, terminal: Some(terminal::size()) });
    let session = Session {
        target,
        failed: false,
        work,
        input,
        terminal: None,
        signals: sig_proxy,
        detach: Some(leaving.detach_keys),
        lasting: true,
    };
    match session.watch(client).await? {
        Left::Ended(ending) | Left::Insisted(ending) => Ok(ending),
        Left::Detached(name) => {
            anstream::eprintln!("detached from {name}");
            Ok(Ending::Done)
        }
    }
}
