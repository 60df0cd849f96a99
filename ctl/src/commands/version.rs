//! `version`.

use roster_proto::wire;
use serde::Serialize;

use crate::{
    cli::Version,
    client::{self, Wishes},
    error::{Ending, Error},
};

#[derive(Serialize)]
struct Versions {
    rctl: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    controller: Option<Controller>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<Leader>,
}

/// The one that answered.
#[derive(Serialize)]
struct Controller {
    version: String,
    state_version: u64,
    leader: u64,
    term: u64,
}

#[derive(Serialize)]
struct Leader {
    name: String,
    version: String,
}

pub(super) async fn run(args: Version, wishes: &Wishes) -> Result<Ending, Error> {
    let mut versions = Versions { rctl: env!("CARGO_PKG_VERSION"), controller: None, leader: None };
    if !args.client {
        let answer = client::control(wishes).await?.version(wire::VersionRequest {}).await?.into_inner();
        let wire::VersionResponse { version, state_version, leader, term } = answer;
        versions.leader = who_leads(wishes, leader).await?;
        versions.controller = Some(Controller { version, state_version, leader, term });
    }
    let text = args.output.output.document(&versions).unwrap_or_else(|| table(&versions));
    super::write_out(&text)?;
    Ok(Ending::Done)
}

/// What the one that answered knows of it, so that a cluster without a leader shows its versions too.
async fn who_leads(wishes: &Wishes, leader: u64) -> Result<Option<Leader>, Error> {
    let wishes = Wishes { stale: true, ..wishes.clone() };
    let status = match client::cluster(&wishes).await?.status(wire::ClusterStatusRequest {}).await {
        Ok(status) => status.into_inner(),
        // The one that answered is of a release that knew of no clusters.
        Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(None),
        Err(status) => return Err(status.into()),
    };
    let known = status.controllers.into_iter().find(|controller| controller.id == leader);
    Ok(known.map(|controller| Leader { name: controller.name, version: controller.release }))
}

fn table(versions: &Versions) -> String {
    let mut text = format!("rctl        {}\n", versions.rctl);
    if let Some(Controller { version, state_version, leader, term }) = &versions.controller {
        text += &format!("controller  {version} (state version {state_version}, term {term})\n");
        text += &match &versions.leader {
            Some(leader) => format!("leader      {} ({})\n", leader.version, leader.name),
            // In no cluster that others could join, it has no name.
            None if *leader != 0 => format!("leader      {version} (this controller)\n"),
            None => "leader      none known\n".to_owned(),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_is_told() {
        let told = |leader: u64, named: Option<&str>| {
            let named = named.map(|name| Leader { name: name.to_owned(), version: "2.0.0".to_owned() });
            let controller = Controller { version: "1.0.0".to_owned(), state_version: 7, leader, term: 2 };
            let text = table(&Versions { rctl: "1.0.0", controller: Some(controller), leader: named });
            text.lines().last().unwrap_or_default().to_owned()
        };
        assert_eq!(told(5, Some("vm2")), "leader      2.0.0 (vm2)");
        assert_eq!(told(5, None), "leader      1.0.0 (this controller)");
        assert_eq!(told(0, None), "leader      none known");
    }
}
