//! How a stranger gets a certificate, and a member a newer one. The leader does both: others pass the call on.
//!
//! Guarantees: whoever is admitted has shown the secret of a token that is in force, and gets a certificate for the
//! token's role under a name that nobody else holds. An enrolment whose answer was lost is answered again for the same
//! signing request, and uses up nothing.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use roster_proto::{
    id::{ControllerName, NodeId, PeerId},
    wire::{self, enroll_server::Enroll},
};
use roster_tls::{Role, Token};
use tonic::{Request, Response, Status};

use super::Reply;
use crate::{
    cluster::Cluster,
    dispatch::Sessions,
    doors::{Caller, is_root_here},
    forward::Origin,
    identity::{IssueError, credentials, holder, sign},
    peers::{misfit, speaks},
    state::{
        ClusterState, Grant, Holder, Secret, TokenRole,
        command::{Command, Refusal},
    },
    status::invalid_id,
};

/// Of a person's certificate, unless another was asked for.
pub(crate) const USER_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// The gRPC service.
#[derive(Clone, Debug)]
pub(crate) struct EnrollApi {
    pub(crate) cluster: Cluster,
    pub(crate) sessions: Arc<Sessions>,
    /// Of the controllers'.
    pub(crate) protocols: RangeInclusive<u32>,
}

#[tonic::async_trait]
impl Enroll for EnrollApi {
    async fn enroll(&self, request: Request<wire::EnrollRequest>) -> Reply<wire::Credentials> {
        // A call that another controller passed on comes from that one.
        let caller = request.extensions().get::<Caller>().map(ToString::to_string).unwrap_or_default();
        let by_root_here = request.extensions().get::<Origin>().is_some_and(is_root_here);
        let request = request.into_inner();
        let name = request.name.clone();
        let admitted = self.admit(request, by_root_here).await;
        match &admitted {
            Ok(_) => tracing::info!(name, caller, "admitted by a join token"),
            Err(status) => tracing::warn!(name, caller, reason = status.message(), "refused an enrolment"),
        }
        admitted.map(Response::new)
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Reply<wire::Credentials> {
        let origin = request.extensions().get::<Origin>().map(|origin| origin.caller.clone()).unwrap_or_default();
        let subject = origin.split_once('/').and_then(|(role, name)| Some((role.parse::<Role>().ok()?, name)));
        let (role, name) =
            subject.ok_or_else(|| Status::unauthenticated("only the holder of a certificate renews it"))?;
        let state = self.cluster.read();
        let holder = holder(role, name);
        if let Holder::User(name) = &holder
            && !state.security.users.contains_key(name)
        {
            return Err(Refusal::NoSuchUser(name.clone()).into());
        }
        let lifetime = match state.security.grants.get(&holder) {
            Some(grant) if role.is_person() => grant.expires.since(grant.issued),
            None if role.is_person() => USER_LIFETIME,
            _ => Duration::from_micros(state.settings.certificate_lifetime),
        };
        let signed = sign(&state, &request.get_ref().signing_request, role, name, lifetime)?;
        self.cluster.change(Command::PutGrant { holder, grant: signed.grant }).await?;
        let peer = match role {
            Role::Controller => peer_named(&self.cluster.read(), name),
            _ => None,
        };
        tracing::info!(caller = origin, "renewed a certificate");
        let peer = peer.map_or(0, |peer| peer.0);
        Ok(Response::new(credentials(&self.cluster.read(), signed.certificate, peer)))
    }
}

impl EnrollApi {
    async fn admit(&self, request: wire::EnrollRequest, by_root_here: bool) -> Result<wire::Credentials, Status> {
        let token: Token = request
            .token
            .parse()
            .map_err(|error: roster_tls::InvalidToken| Status::unauthenticated(error.to_string()))?;
        let state = self.cluster.read();
        let known = state.security.tokens.get(&token.id).filter(|known| {
            // Also for a token that is unknown nothing is told apart by the time it takes: its id is no secret.
            <[u8; 32]>::try_from(known.digest.expose()).is_ok_and(|digest| token.secret.has_digest(&digest))
        });
        let role = match known.ok_or(Refusal::UnknownToken)?.role {
            TokenRole::Controller => Role::Controller,
            TokenRole::Agent => Role::Agent,
        };
        let lifetime = Duration::from_micros(state.settings.certificate_lifetime);
        let name = request.name.clone();
        let controller = match role {
            Role::Controller => {
                self.refuse_other_protocol(&request)?;
                Some(Candidate::new(&request)?)
            }
            _ => {
                NodeId::new(name.as_str()).map_err(invalid_id)?;
                None
            }
        };
        let signed = sign(&state, &request.signing_request, role, &name, lifetime)?;
        self.refuse_taken(&state, &holder(role, &name), &signed.grant, by_root_here)?;
        let digest = Secret::new(token.secret.digest());
        self.cluster.change(Command::UseToken { id: token.id, digest, name, grant: signed.grant }).await?;
        let peer = match controller {
            Some(controller) => self.add_controller(controller).await?.0,
            None => 0,
        };
        Ok(credentials(&self.cluster.read(), signed.certificate, peer))
    }

    /// Before anything is thrown away for it: the new controller could not talk to the others.
    fn refuse_other_protocol(&self, request: &wire::EnrollRequest) -> Result<(), Status> {
        let wire::EnrollRequest { release, protocol, oldest_protocol, .. } = request;
        if speaks(&self.protocols, *protocol, *oldest_protocol) {
            return Ok(());
        }
        let who = format!("controller {}", request.name);
        Err(Status::failed_precondition(misfit(&self.protocols, &who, release, *protocol, *oldest_protocol)))
    }

    /// Beside what the state refuses: a node or a controller that was there before it needed a certificate.
    ///
    /// Except when root on this host asks for the node whose agent is on this host: it is that agent which is to get
    /// the certificate. A token shown from elsewhere, through another controller too, never gets an agent's name so.
    fn refuse_taken(
        &self,
        state: &ClusterState,
        holder: &Holder,
        grant: &Grant,
        by_root_here: bool,
    ) -> Result<(), Refusal> {
        let again = state.security.grants.get(holder).is_some_and(|present| present.request == grant.request);
        let taken = match holder {
            Holder::Agent(name) => {
                let session = name.parse().ok().and_then(|node: NodeId| self.sessions.get(&node));
                session.is_some_and(|session| !(by_root_here && session.by_root_here))
            }
            Holder::Controller(name) => peer_named(state, name).is_some(),
            Holder::User(_) => false,
        };
        if taken && !again { Err(Refusal::NameTaken(holder.clone())) } else { Ok(()) }
    }

    async fn add_controller(&self, candidate: Candidate) -> Result<PeerId, Status> {
        let Candidate { name, address, release, protocol, spare } = candidate;
        // There already when the answer to the same request was lost.
        let id =
            peer_named(&self.cluster.read(), name.as_str()).unwrap_or_else(|| PeerId(rand::random_range(1..=u64::MAX)));
        self.cluster.change(Command::PutController { id, name, address, release, protocol, spare }).await?;
        Ok(id)
    }
}

/// A controller that wants to join.
struct Candidate {
    name: ControllerName,
    address: String,
    release: String,
    protocol: u32,
    spare: bool,
}

impl Candidate {
    fn new(request: &wire::EnrollRequest) -> Result<Self, Status> {
        const MAX_ADDRESS: usize = 300;
        const MAX_RELEASE: usize = 64;
        let address = request.address.as_str();
        let sound = address.len() <= MAX_ADDRESS
            && address.bytes().all(|byte| byte.is_ascii_graphic())
            && address
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
        if !sound {
            return Err(Status::invalid_argument(format!(
                "{address:?} is no address at which the other controllers reach the new one: write HOST:PORT"
            )));
        }
        if request.release.len() > MAX_RELEASE || request.release.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(Status::invalid_argument("the release is no version"));
        }
        Ok(Self {
            name: request.name.parse().map_err(invalid_id)?,
            address: address.to_owned(),
            release: request.release.clone(),
            protocol: request.protocol,
            spare: request.spare,
        })
    }
}

fn peer_named(state: &ClusterState, name: &str) -> Option<PeerId> {
    let name: ControllerName = name.parse().ok()?;
    state.controller_named(&name).map(|controller| controller.id)
}

impl From<IssueError> for Status {
    fn from(error: IssueError) -> Self {
        use roster_tls::SignError;
        let text = crate::status::chain(&error);
        match error {
            IssueError::Sign(SignError::Request(_) | SignError::Kind) => Status::invalid_argument(text),
            IssueError::NotInitialised | IssueError::Sign(SignError::Expired) => Status::failed_precondition(text),
            _ => Status::internal(text),
        }
    }
}
