//! `version`.

use roster_proto::wire;
use serde::Serialize;

use crate::{
    cli::Version,
    client::Client,
    error::{Ending, Error},
};

#[derive(Serialize)]
struct Versions {
    rctl: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    controller: Option<Controller>,
}

#[derive(Serialize)]
struct Controller {
    version: String,
    state_version: u64,
    leader: u64,
    term: u64,
}

pub(super) async fn run<F>(args: Version, connect: impl FnOnce() -> F) -> Result<Ending, Error>
where
    F: Future<Output = Result<Client, Error>>,
{
    let controller = if args.client {
        None
    } else {
        let wire::VersionResponse { version, state_version, leader, term } =
            connect().await?.version(wire::VersionRequest {}).await?.into_inner();
        Some(Controller { version, state_version, leader, term })
    };
    let versions = Versions { rctl: env!("CARGO_PKG_VERSION"), controller };
    let text = args.output.output.document(&versions).unwrap_or_else(|| {
        let mut text = format!("rctl        {}\n", versions.rctl);
        if let Some(controller) = &versions.controller {
            text += &format!(
                "controller  {} (state version {}, term {})\n",
                controller.version, controller.state_version, controller.term
            );
        }
        text
    });
    super::write_out(&text)?;
    Ok(Ending::Done)
}
