//! People, who get certificates instead of passwords.

use std::time::Duration;

use roster_proto::{id::NodeId, wire};
use roster_tls::Role;
use tonic::{Request, Response, Status};

use super::{ClusterApi, Reply};
use crate::{
    api::{change, enroll::USER_LIFETIME},
    forward::request_id,
    identity::{credentials, sign},
    state::{ClusterState, UserRole, command::Command},
};

/// The controllers speak of root by it.
const ROOT: &str = "root";
const MAX_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl ClusterApi {
    /// One who is there gets another certificate, and the role that is asked for.
    pub(super) async fn put_user(&self, request: Request<wire::AddUserRequest>) -> Reply<wire::Credentials> {
        let asked = request_id(&request)?;
        let wire::AddUserRequest { name, role, signing_request, lifetime } = request.into_inner();
        // The rule of node names; the words are for a person.
        NodeId::new(name.as_str())
            .map_err(|error| Status::invalid_argument(format!("user name {name:?} is not allowed: {}", error.rule)))?;
        if name == ROOT {
            return Err(Status::invalid_argument(format!(
                "user name {ROOT:?} is not allowed: it stands for root on a controller's own host"
            )));
        }
        let (certified, role) = match role.as_str() {
            "viewer" => (Role::Viewer, UserRole::Viewer),
            "operator" => (Role::Operator, UserRole::Operator),
            "admin" => (Role::Admin, UserRole::Admin),
            other => {
                let told = format!("{other:?} is no role of a person: use admin, operator or viewer");
                return Err(Status::invalid_argument(told));
            }
        };
        let lifetime = match lifetime {
            0 => USER_LIFETIME,
            asked => Duration::from_micros(asked),
        };
        if lifetime > MAX_LIFETIME {
            let told = format!("a certificate lasts for {} days at most", MAX_LIFETIME.as_secs() / 86_400);
            return Err(Status::invalid_argument(told));
        }
        let signed = sign(&self.cluster.read(), &signing_request, certified, &name, lifetime)?;
        change(&self.cluster, asked, Command::PutUser { name, role, grant: signed.grant }).await?;
        Ok(Response::new(credentials(&self.cluster.read(), signed.certificate, 0)))
    }

    pub(super) fn users(&self, state: &ClusterState) -> wire::ListUsersResponse {
        let users = state.security.users.iter().map(|(name, user)| wire::UserView {
            name: name.clone(),
            role: user.role.to_string(),
            created: user.created.0,
            expires: user.expires.0,
        });
        wire::ListUsersResponse { users: users.collect() }
    }

    pub(super) async fn drop_user(&self, request: Request<wire::RemoveUserRequest>) -> Reply<wire::RemoveUserResponse> {
        let asked = request_id(&request)?;
        let name = request.into_inner().name;
        change(&self.cluster, asked, Command::RemoveUser { name }).await?;
        Ok(Response::new(wire::RemoveUserResponse {}))
    }
}
