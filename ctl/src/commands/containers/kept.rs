//! `debug --info`: what is known of the last container of a replica that failed.

use roster_proto::wire;

use crate::{
    cli::Debug,
    client::{self, Wishes},
    commands::{now, write_out},
    error::{Ending, Error},
    render::kept::{self, KeptView},
};

pub(in crate::commands) async fn tell(args: Debug, wishes: &Wishes) -> Result<Ending, Error> {
    let (mut containers, _) = client::containers(wishes).await?;
    let answer = containers.kept(wire::KeptRequest { target: args.target }).await?.into_inner();
    let view = KeptView::new(answer);
    write_out(&args.output.output.document(&view).unwrap_or_else(|| kept::words(&view, now())))?;
    Ok(Ending::Done)
}

/// Its task.
pub(in crate::commands) async fn task(target: String, wishes: &Wishes) -> Result<String, Error> {
    let (mut containers, _) = client::containers(wishes).await?;
    let answer = containers.kept(wire::KeptRequest { target }).await?.into_inner();
    Ok(answer.task.unwrap_or_default().task)
}
