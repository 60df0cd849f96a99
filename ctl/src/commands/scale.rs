//! `scale`.

use std::collections::{BTreeMap, BTreeSet};

use roster_proto::{
    id::{ServiceId, Version},
    report::ServiceView,
    wire,
};

use super::{all, converge, target};
use crate::{
    cli::Scale,
    client::{self, Client},
    error::{Ending, Error},
};

pub(super) async fn run(args: Scale, client: &mut Client) -> Result<Ending, Error> {
    let mut replicas = BTreeMap::new();
    let mut services = BTreeSet::new();
    for (name, count) in args.replicas {
        let id = resolve(client, &name).await?;
        if replicas.insert(id.to_string(), count).is_some_and(|earlier| earlier != count) {
            return Err(Error::Usage(format!("service {id} is given two different counts")));
        }
        services.insert(id);
    }
    let version = Version(client.scale(wire::ScaleRequest { replicas }).await?.into_inner().version);
    if args.waiting.detach {
        converge::say_detached(version);
        return Ok(Ending::Done);
    }
    let goal = converge::Goal { version, services, gone: BTreeSet::new() };
    converge::wait(client, goal, args.waiting, false).await
}

/// The full name of a service that may be given without its stack.
pub(super) async fn resolve(client: &mut Client, name: &str) -> Result<ServiceId, Error> {
    let request = wire::ListServicesRequest { filter: Some(target::by_service(name)) };
    let services: Vec<ServiceView> = all(client::services(client, request).await?.services)?;
    match services.into_iter().next() {
        Some(view) => Ok(view.id),
        None => Err(Error::NotFound(format!("there is no service {name}: `rctl services` lists what there is"))),
    }
}
