//! `cluster`: what people ask of the controllers as a whole. What only this host's own controller can be told is in
//! [`host`].

mod backup;
mod host;

use std::time::Duration;

use roster_proto::wire::{self, cluster_client::ClusterClient};

use super::{confirm, now, write_out};
use crate::{
    cli::{Cluster, Setting},
    client::{self, Transport, Wishes},
    error::{Ending, Error},
    render::{
        Format,
        cluster::{self, ClusterView},
    },
};

pub(super) async fn run(args: Cluster, wishes: &Wishes) -> Result<Ending, Error> {
    let request = |controller: String| wire::ControllerRequest { controller };
    match args {
        Cluster::Init(args) => host::init(args, wishes).await,
        Cluster::Join(args) => host::join(args, wishes).await,
        Cluster::Leave { force, sure } => host::leave(force, sure, wishes).await,
        Cluster::Restore(args) => backup::restore(args, wishes).await,
        Cluster::Recover { lost, sure } => host::recover(lost, sure, wishes).await,
        Cluster::Backup { file } => backup::backup(&file, &mut client::cluster(wishes).await?).await,
        Cluster::Promote(args) => {
            let status = client::cluster(wishes).await?.promote(request(args.controller.clone())).await?.into_inner();
            done(&status, &format!("{} votes now.", args.controller))
        }
        Cluster::Demote(args) => {
            let status = client::cluster(wishes).await?.demote(request(args.controller.clone())).await?.into_inner();
            done(&status, &format!("{} is a spare now.", args.controller))
        }
        Cluster::Transfer(args) => {
            let answer = client::cluster(wishes).await?.transfer_leadership(request(args.controller.clone())).await?;
            done(&answer.into_inner(), &format!("{} leads now.", args.controller))
        }
        Cluster::Remove { controller, sure } => {
            let name = controller.controller;
            confirm(&sure, &format!("Take controller {name} out of the cluster for good?"))?;
            let answer = client::cluster(wishes).await?.remove_controller(request(name.clone())).await?;
            done(&answer.into_inner(), &format!("{name} is out of the cluster."))
        }
        Cluster::Status(output) => {
            let status = status(&mut client::cluster(wishes).await?).await?;
            show(&status, output.output)
        }
        Cluster::Set { settings } => set(settings, &mut client::cluster(wishes).await?).await,
        Cluster::Release => {
            client::cluster(wishes).await?.release_brake(wire::ReleaseBrakeRequest {}).await?;
            write_out("Released: tasks of nodes that are Down are placed elsewhere now.\n")?;
            Ok(Ending::Done)
        }
        Cluster::RotateCa => {
            let mut client = client::cluster(wishes).await?;
            let status = client.rotate_authority(wire::RotateAuthorityRequest {}).await?.into_inner();
            done(&status, "A new authority signs from now on; the old one is trusted until all have renewed.")
        }
    }
}

pub(super) async fn status(client: &mut ClusterClient<Transport>) -> Result<wire::ClusterStatus, Error> {
    Ok(client.status(wire::ClusterStatusRequest {}).await?.into_inner())
}

/// What was done, then how things stand.
fn done(status: &wire::ClusterStatus, words: &str) -> Result<Ending, Error> {
    write_out(&format!("{words}\n\n"))?;
    show(status, Format::Table)
}

fn show(status: &wire::ClusterStatus, format: Format) -> Result<Ending, Error> {
    let view = ClusterView::new(status, now());
    let text = format.document(&view).unwrap_or_else(|| cluster::status(&view, format == Format::Wide));
    write_out(&text)?;
    Ok(Ending::Done)
}

/// All settings travel together: those that are not named stay as they are.
async fn set(settings: Vec<(Setting, Duration)>, client: &mut ClusterClient<Transport>) -> Result<Ending, Error> {
    let mut wanted = status(client).await?.settings.unwrap_or_default();
    for (setting, value) in settings {
        let value = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        match setting {
            Setting::ReplaceControllerAfter => wanted.replace_controller_after = value,
            Setting::BrakeFor => wanted.brake_for = value,
            Setting::CertificateLifetime => wanted.certificate_lifetime = value,
        }
    }
    let now = client.configure(wanted).await?.into_inner();
    write_out(&cluster::settings(&now))?;
    Ok(Ending::Done)
}
