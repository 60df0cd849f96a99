//! `attach`: the container's own program.

use roster_proto::wire::{self, live_client::LiveClient, live_work::Work};

use super::session::Session;
use crate::{
    cli::Attach,
    client::Transport,
    error::{Ending, Error},
    terminal,
};

pub(in crate::commands) async fn run(args: Attach, client: LiveClient<Transport>) -> Result<Ending, Error> {
    let Attach { no_stdin, sig_proxy, detach_keys, target } = args;
    let input = !no_stdin;
    let work = Work::Attach(wire::Attach { input, terminal: Some(terminal::size()) });
    Session { target, failed: false, work, input, terminal: None, signals: sig_proxy, detach: Some(detach_keys) }
        .run(client)
        .await
}
