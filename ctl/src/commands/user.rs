//! `user add|ls|rm`.

use std::path::{Path, PathBuf};

use roster_proto::wire;
use roster_tls::{Identity, KeyAndRequest};

use super::{now, print, write_out};
use crate::{
    cli::{PersonRole, User},
    client::{self, Wishes},
    context::Config,
    error::{Ending, Error},
    render::cluster::{self, UserInfo},
};

pub(super) async fn run(args: User, wishes: &Wishes) -> Result<Ending, Error> {
    let mut client = client::cluster(wishes).await?;
    match args {
        User::Add { name, role, out, save_as, ttl } => {
            // Before the certificate is made: what cannot be kept would only have to be made again.
            let file = match &save_as {
                Some(_) => None,
                None => Some(free(out.unwrap_or_else(|| PathBuf::from(format!("{name}.json"))))?),
            };
            let key = KeyAndRequest::generate(&name).map_err(|error| Error::Refused(error.to_string()))?;
            let role = match role {
                PersonRole::Admin => "admin",
                PersonRole::Operator => "operator",
                PersonRole::Viewer => "viewer",
            };
            let request = wire::AddUserRequest {
                name: name.clone(),
                role: role.to_owned(),
                signing_request: key.request_der.clone().into(),
                lifetime: ttl.map_or(0, |ttl| u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX)),
            };
            let credentials = client.add_user(request).await?.into_inner();
            let identity = Identity::assemble(key, credentials).map_err(|error| Error::Refused(error.to_string()))?;
            match (file, save_as) {
                (Some(file), _) => hand_over(&identity, &name, role, &file)?,
                (None, context) => keep(&identity, &name, role, context.unwrap_or_default())?,
            }
        }
        User::Ls(output) => {
            let users = client.list_users(wire::ListUsersRequest {}).await?.into_inner().users;
            print(
                output.output,
                || users.iter().map(UserInfo::from).collect::<Vec<_>>(),
                |_| cluster::users(&users, now()),
            )?;
        }
        User::Rm { name } => {
            for name in name {
                client.remove_user(wire::RemoveUserRequest { name: name.clone() }).await?;
                write_out(&format!("removed {name}\n"))?;
            }
        }
    }
    Ok(Ending::Done)
}

/// Credentials of one person must not be lost to those of another.
fn free(file: PathBuf) -> Result<PathBuf, Error> {
    match file.exists() {
        true => Err(Error::Usage(format!("{} exists already: choose another file with --out", file.display()))),
        false => Ok(file),
    }
}

fn hand_over(identity: &Identity, name: &str, role: &str, file: &Path) -> Result<(), Error> {
    identity.write(file).map_err(|error| Error::Usage(error.to_string()))?;
    write_out(&format!(
        "{name} is {role} of cluster {}. Hand {file} to {name}, who takes it up with\n    rctl context set NAME --from \
         {file} --use\nWhoever holds the file is {name}.\n",
        identity.cluster,
        file = file.display()
    ))
}

fn keep(identity: &Identity, name: &str, role: &str, context: String) -> Result<(), Error> {
    let mut config = Config::load()?;
    config.keep(&context, identity)?;
    config.store()?;
    write_out(&format!(
        "{name} is {role} of cluster {}, kept as context {context}: `rctl context use {context}`.\n",
        identity.cluster
    ))
}
