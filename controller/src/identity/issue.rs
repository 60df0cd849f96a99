//! Signing: with the authority that the replicated state holds, so any controller that leads can.

use std::time::{Duration, SystemTime};

use roster_proto::{time::Timestamp, wire};
use roster_tls::{Authority, Certificate, CertificateError, Role, SignError, Subject, fingerprint};

use crate::state::{AuthorityRecord, ClusterState, Grant, Holder, Secret};

#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("this controller is in no cluster that others can join: `rctl cluster init` makes one of it")]
    NotInitialised,
    #[error("the cluster's authority is damaged: its key is no text")]
    Key,
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// A certificate, with what the state is to remember of it.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) grant: Grant,
    pub(crate) certificate: roster_tls::Der,
}

/// Whom a certificate with this subject belongs to.
pub(crate) fn holder(role: Role, name: &str) -> Holder {
    match role {
        Role::Controller => Holder::Controller(name.to_owned()),
        Role::Agent => Holder::Agent(name.to_owned()),
        Role::Admin | Role::Operator | Role::Viewer => Holder::User(name.to_owned()),
    }
}

/// Signs `request` for the holder, with the authority that signs now.
pub(crate) fn sign(
    state: &ClusterState,
    request: &[u8],
    role: Role,
    name: &str,
    lifetime: Duration,
) -> Result<Signed, IssueError> {
    let cluster = state.security.cluster.as_ref().ok_or(IssueError::NotInitialised)?;
    let authority = authority_of(state.security.signing().ok_or(IssueError::NotInitialised)?)?;
    let subject = Subject { cluster: cluster.to_string(), role, name: name.to_owned() };
    let now = SystemTime::now();
    let certificate = authority.sign(request, &subject, lifetime, now)?;
    let read = Certificate::read(&certificate)?;
    let grant = Grant {
        serial: read.serial,
        request: fingerprint(request),
        authority: authority.digest(),
        issued: now.into(),
        expires: read.expires,
    };
    Ok(Signed { grant, certificate })
}

pub(crate) fn authority_of(record: &AuthorityRecord) -> Result<Authority, IssueError> {
    let key = record.key.as_ref().ok_or(IssueError::NotInitialised)?;
    let key = std::str::from_utf8(key.expose()).map_err(|_| IssueError::Key)?;
    Ok(Authority::from_parts(record.certificate.clone(), key.to_owned())?)
}

/// A fresh authority, which the one that signs now vouches for.
pub(crate) fn new_authority(state: &ClusterState) -> Result<AuthorityRecord, IssueError> {
    let cluster = state.security.cluster.as_ref().ok_or(IssueError::NotInitialised)?;
    let present = authority_of(state.security.signing().ok_or(IssueError::NotInitialised)?)?;
    let now = SystemTime::now();
    let next = Authority::new(cluster.as_str(), now)?;
    Ok(AuthorityRecord {
        certificate: next.certificate().to_vec(),
        key: Some(Secret::new(next.key_pem().as_bytes())),
        since: Timestamp::from(now),
        cross: Some(present.cross_sign(&next, now)?),
    })
}

/// All that a holder needs beside its key.
pub(crate) fn credentials(state: &ClusterState, certificate: roster_tls::Der, peer: u64) -> wire::Credentials {
    let security = &state.security;
    let cross = security.signing().and_then(|authority| authority.cross.clone());
    let addresses = state.controllers.values().map(|controller| controller.address.clone());
    wire::Credentials {
        cluster: security.cluster.as_ref().map(ToString::to_string).unwrap_or_default(),
        certificates: std::iter::once(certificate).chain(cross).map(Into::into).collect(),
        authorities: security.authorities.iter().map(|authority| authority.certificate.clone().into()).collect(),
        controllers: addresses.filter(|address| !address.is_empty()).collect(),
        peer,
    }
}
