//! What is done with containers that run.

pub(super) mod commit;
pub(super) mod files;
pub(super) mod kept;
pub(super) mod stats;
pub(super) mod top;

use std::collections::BTreeSet;

use roster_proto::{
    id::{ServiceId, Version},
    wire,
};

use super::{converge, write_out};
use crate::{
    cli::{Kill, Restart},
    client::{self, Wishes},
    error::{Ending, Error},
    render::usage::escaped_lines,
};

/// Tells who was sent the signal, then who was not.
pub(super) async fn kill(args: Kill, wishes: &Wishes) -> Result<Ending, Error> {
    let (mut containers, _) = client::containers(wishes).await?;
    let request = wire::KillRequest { targets: args.targets, signal: args.signal };
    let answer = containers.kill(request).await?.into_inner();
    tell(&answer.tasks, &answer.failures)
}

/// Tells who is so now, then who is not.
pub(super) async fn set_paused(targets: Vec<String>, paused: bool, wishes: &Wishes) -> Result<Ending, Error> {
    let (mut containers, _) = client::containers(wishes).await?;
    let answer = containers.set_paused(wire::SetPausedRequest { targets, paused }).await?.into_inner();
    tell(&answer.tasks, &answer.failures)
}

fn tell(tasks: &[wire::TaskName], failures: &[String]) -> Result<Ending, Error> {
    for task in tasks {
        write_out(&format!("{} ({})\n", task.name, task.task))?;
    }
    match failures {
        [] => Ok(Ending::Done),
        failures => Err(Error::Refused(escaped_lines(failures))),
    }
}

pub(super) async fn restart(args: Restart, wishes: &Wishes) -> Result<Ending, Error> {
    let (mut containers, mut control) = client::containers(wishes).await?;
    let answer = containers.restart(wire::RestartRequest { targets: args.targets }).await?.into_inner();
    let version = Version(answer.version);
    if args.waiting.detach {
        converge::say_detached(version);
        return Ok(Ending::Done);
    }
    let service = |name: &String| {
        name.parse::<ServiceId>().map_err(|error| Error::Refused(format!("the controller's answer: {error}")))
    };
    let services = answer.services.iter().map(service).collect::<Result<_, _>>()?;
    let goal = converge::Goal { version, services, gone: BTreeSet::new() };
    converge::wait(&mut control, goal, args.waiting, false).await
}
