//! How strangers get their first certificate.

use std::time::{Duration, SystemTime};

use roster_proto::{
    id::{ControllerName, NodeId, PeerId},
    wire::{self, enroll_server::Enroll},
};
use roster_tls::{Authority, Certificate, Role, Subject, Token};
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status};

use super::Reply;
use crate::{
    cluster::Cluster,
    local::addresses,
    state::{ClusterState, Grant, Secret, TokenRole, command::Command},
    status::invalid_id,
};

/// The gRPC service.
#[derive(Clone, Debug)]
pub(crate) struct EnrollApi {
    pub(crate) cluster: Cluster,
}

#[tonic::async_trait]
impl Enroll for EnrollApi {
    async fn enroll(&self, request: Request<wire::EnrollRequest>) -> Reply<wire::Credentials> {
        let request = request.into_inner();
        let token: Token = request.token.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let state = self.cluster.read();
        let role = state.security.tokens.get(&token.id).map(|known| known.role);
        let subject = match role {
            Some(TokenRole::Controller) => {
                let name: ControllerName = request.name.parse().map_err(invalid_id)?;
                (Role::Controller, name.to_string())
            }
            _ => (Role::Agent, NodeId::new(request.name.clone()).map_err(invalid_id)?.to_string()),
        };
        let subject = Subject { cluster: token.cluster.clone(), role: subject.0, name: subject.1 };
        let (certificate, grant) = sign(&state, &subject, &request.signing_request)?;
        let digest = Secret::new(token.secret.digest());
        let name = subject.name.clone();
        self.cluster.change(Command::UseToken { id: token.id, digest, name, grant }).await?;
        let mut peer = PeerId(0);
        if subject.role == Role::Controller {
            peer = PeerId(rand::random::<u64>().max(1));
            let command = Command::PutController {
                id: peer,
                name: subject.name.parse().map_err(invalid_id)?,
                address: request.address,
                release: request.release,
                spare: request.spare,
            };
            self.cluster.change(command).await?;
        }
        let state = self.cluster.read();
        Ok(Response::new(wire::Credentials {
            cluster: subject.cluster,
            certificates: vec![certificate.into()],
            authorities: state.security.authorities.iter().map(|known| known.certificate.clone().into()).collect(),
            controllers: addresses(&state),
            peer: peer.0,
        }))
    }

    async fn renew(&self, _: Request<wire::RenewRequest>) -> Reply<wire::Credentials> {
        Err(Status::unimplemented("renewal"))
    }
}

fn sign(state: &ClusterState, subject: &Subject, request: &[u8]) -> Result<(Vec<u8>, Grant), Status> {
    let broken = |error: &dyn std::error::Error| Status::internal(crate::status::chain(error));
    let record = state.security.signing().ok_or_else(|| Status::failed_precondition("no cluster"))?;
    let key = record.key.as_ref().and_then(|key| std::str::from_utf8(key.expose()).ok()).unwrap_or_default();
    let authority =
        Authority::from_parts(record.certificate.clone(), key.to_owned()).map_err(|error| broken(&error))?;
    let lifetime = Duration::from_micros(state.settings.certificate_lifetime);
    let der = authority.sign(request, subject, lifetime, SystemTime::now());
    let der = der.map_err(|error| Status::invalid_argument(crate::status::chain(&error)))?;
    let certificate = Certificate::read(&der).map_err(|error| broken(&error))?;
    let grant = Grant {
        serial: certificate.serial,
        request: Sha256::digest(request).into(),
        authority: authority.digest(),
        issued: certificate.issued,
        expires: certificate.expires,
    };
    Ok((der, grant))
}
