//! `rm`: stacks and services.

use std::collections::BTreeSet;

use roster_proto::{id::Version, report::ServiceView, wire};

use super::{all, converge};
use crate::{
    cli::Rm,
    client::{self, Client},
    error::{Ending, Error},
};

enum Doomed {
    Stack(String),
    Service(String),
}

pub(super) async fn run(args: Rm, client: &mut Client) -> Result<Ending, Error> {
    let services: Vec<ServiceView> =
        all(client::services(client, wire::ListServicesRequest::default()).await?.services)?;
    // All names are understood before anything is removed.
    let doomed = args.targets.iter().map(|target| understand(target, &services)).collect::<Result<Vec<_>, _>>()?;
    let mut version = Version(0);
    let mut gone = BTreeSet::new();
    for target in doomed {
        let answer = match target {
            Doomed::Stack(stack) => {
                gone.extend(services.iter().filter(|view| view.id.stack.as_str() == stack).map(|view| view.id.clone()));
                client.remove_stack(wire::RemoveStackRequest { stack }).await?
            }
            Doomed::Service(service) => {
                gone.extend(services.iter().filter(|view| view.id.to_string() == service).map(|view| view.id.clone()));
                client.remove_service(wire::RemoveServiceRequest { service }).await?
            }
        };
        version = version.max(Version(answer.into_inner().version));
    }
    if args.waiting.detach {
        converge::say_detached(version);
        return Ok(Ending::Done);
    }
    let goal = converge::Goal { version, services: BTreeSet::new(), gone };
    converge::wait(client, goal, args.waiting, false).await
}

fn understand(target: &str, services: &[ServiceView]) -> Result<Doomed, Error> {
    if target.contains('/') {
        return match services.iter().any(|view| view.id.to_string() == target) {
            true => Ok(Doomed::Service(target.to_owned())),
            false => Err(Error::NotFound(format!("there is no service {target}: `rctl services` lists what there is"))),
        };
    }
    let named: Vec<_> = services.iter().filter(|view| view.id.name.as_str() == target).collect();
    let stack = services.iter().any(|view| view.id.stack.as_str() == target);
    match (stack, &named[..]) {
        (true, []) => Ok(Doomed::Stack(target.to_owned())),
        (false, [one]) => Ok(Doomed::Service(one.id.to_string())),
        (false, []) => {
            Err(Error::NotFound(format!("there is no stack or service {target}: `rctl services` lists what there is")))
        }
        // Taking down too much is worse than asking.
        (true, [..]) => {
            let all: Vec<_> = named.iter().map(|view| view.id.to_string()).collect();
            Err(Error::Usage(format!(
                "{target} is a stack and also a service ({}): name the service with its stack; to remove the stack, \
                 name each of its services",
                all.join(", ")
            )))
        }
        (false, [..]) => {
            let all: Vec<_> = named.iter().map(|view| view.id.to_string()).collect();
            Err(Error::Usage(format!("{target} is the name of several services: choose from {}", all.join(", "))))
        }
    }
}
