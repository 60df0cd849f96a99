//! How a cluster begins: its authority, its first member, and the tokens by which others join.

use std::time::{Duration, SystemTime};

use roster_proto::id::{ClusterId, ControllerName, PeerId};
use roster_tls::{Authority, Identity, IdentityError, KeyAndRequest, Role, SignError, Subject, Token, fingerprint};

use super::LocalError;
use crate::{
    cluster::{ChangeError, Cluster},
    home::{Home, Step},
    state::{AuthorityRecord, ClusterState, Secret, TokenRole, command::Command, controllers::ControllerInfo},
};

/// Of the tokens that `init` hands out.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
const CONTROLLER_USES: u32 = 8;
const AGENT_USES: u32 = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("cannot make the cluster's authority")]
    Sign(#[from] SignError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the cluster's authority is damaged: its key is no text")]
    Authority,
    #[error("this controller's id is not among the cluster's controllers")]
    Stranger,
}

pub(crate) struct Founded {
    pub(crate) cluster: ClusterId,
    pub(crate) controller_token: Token,
    pub(crate) agent_token: Token,
}

/// The controller that a cluster begins with.
pub(super) struct First {
    pub(super) home: Home,
    pub(super) name: ControllerName,
    pub(super) address: String,
    pub(super) protocol: u32,
}

impl First {
    /// Makes the cluster that `cluster`'s only controller then is the first member of.
    pub(super) async fn found(&self, cluster: &Cluster) -> Result<Founded, LocalError> {
        let me = cluster.me();
        // Of an attempt that was cut off.
        if cluster.read().controllers.get(&me).is_some_and(|before| before.name != self.name) {
            cluster.change(Command::RemoveController { id: me }).await?;
        }
        // First: a cluster without its controller could not be served.
        let command = Command::PutController {
            id: me,
            name: self.name.clone(),
            address: self.address.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: self.protocol,
            spare: false,
        };
        cluster.change(command).await?;
        self.home.pass(Step::ControllerWritten)?;
        let id = ClusterId::new(random_id()).expect("its alphabet and length are right");
        let authority = Authority::new(id.as_str(), SystemTime::now()).map_err(FoundError::from)?;
        let record = AuthorityRecord {
            certificate: authority.certificate().to_vec(),
            key: Some(Secret::new(authority.key_pem().as_bytes())),
            since: cluster.now(),
            cross: None,
        };
        cluster.change(Command::InitCluster { cluster: id.clone(), authority: record }).await?;
        self.home.pass(Step::ClusterFounded)?;
        self.invite(cluster, id, authority.digest()).await
    }

    /// For one who asks again because the answer was lost: the tokens are shown once, so others are made.
    pub(super) async fn found_again(&self, cluster: &Cluster) -> Result<Founded, LocalError> {
        let state = cluster.read();
        let is_me = |known: &ControllerInfo| known.name == self.name && known.address == self.address;
        let alone = state.controllers.len() == 1 && state.controllers.values().all(|known| is_me(known));
        match (&state.security.cluster, state.security.signing()) {
            (Some(id), Some(authority)) if alone => {
                self.invite(cluster, id.clone(), fingerprint(&authority.certificate)).await
            }
            _ => Err(LocalError::Member { verb: "found", cluster: state.security.cluster.clone() }),
        }
    }

    async fn invite(&self, cluster: &Cluster, id: ClusterId, authority: [u8; 32]) -> Result<Founded, LocalError> {
        let mint = |role| Token::mint(id.as_str(), role, authority, vec![self.address.clone()]);
        let (controller_token, agent_token) = (mint(Role::Controller), mint(Role::Agent));
        put_token(cluster, &controller_token, TokenRole::Controller, CONTROLLER_USES).await?;
        self.home.pass(Step::ControllersToken)?;
        put_token(cluster, &agent_token, TokenRole::Agent, AGENT_USES).await?;
        Ok(Founded { cluster: id, controller_token, agent_token })
    }
}

async fn put_token(cluster: &Cluster, token: &Token, role: TokenRole, uses: u32) -> Result<(), ChangeError> {
    let digest = Secret::new(token.secret.digest());
    let expires = cluster.now().plus(TOKEN_LIFETIME);
    cluster.change(Command::PutToken { id: token.id.clone(), role, digest, expires, uses }).await.map(drop)
}

/// 16 characters of the base32 alphabet.
fn random_id() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    rand::random::<[u8; 16]>().iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}

/// The identity of a controller that holds the authority itself: the first one's, and that of one which was restored or
/// whose certificate ran out while it was off.
pub(crate) fn own_identity(state: &ClusterState, me: PeerId) -> Result<Option<Identity>, FoundError> {
    let (Some(cluster), Some(record)) = (&state.security.cluster, state.security.signing()) else { return Ok(None) };
    let Some(key) = &record.key else { return Ok(None) };
    let key = std::str::from_utf8(key.expose()).map_err(|_| FoundError::Authority)?;
    let authority = Authority::from_parts(record.certificate.clone(), key.to_owned())?;
    let controller = state.controllers.get(&me).ok_or(FoundError::Stranger)?;
    let subject = Subject { cluster: cluster.to_string(), role: Role::Controller, name: controller.name.to_string() };
    let own = KeyAndRequest::generate(controller.name.as_str())?;
    let lifetime = Duration::from_micros(state.settings.certificate_lifetime);
    let certificate = authority.sign(&own.request_der, &subject, lifetime, SystemTime::now())?;
    let credentials = roster_proto::wire::Credentials {
        cluster: cluster.to_string(),
        certificates: vec![certificate.into()],
        authorities: state.security.authorities.iter().map(|known| known.certificate.clone().into()).collect(),
        controllers: addresses(state),
        peer: me.0,
    };
    Ok(Some(Identity::assemble(own, credentials)?))
}

/// Of every controller, HOST:PORT.
pub(crate) fn addresses(state: &ClusterState) -> Vec<String> {
    let addresses = state.controllers.values().map(|controller| controller.address.clone());
    addresses.filter(|address| !address.is_empty()).collect()
}
