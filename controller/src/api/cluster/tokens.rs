//! Join tokens.

use std::time::Duration;

use roster_proto::wire;
use roster_tls::{Role, Token, fingerprint};
use tonic::{Request, Response, Status};

use super::{ClusterApi, Reply};
use crate::{
    api::change,
    forward::request_id,
    state::{
        ClusterState, Secret, TokenRecord, TokenRole,
        command::{Command, Refusal},
    },
};

const LIFETIME: Duration = Duration::from_secs(24 * 3600);
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);
const USES: u32 = 1;

impl ClusterApi {
    pub(super) async fn make_token(&self, request: wire::CreateTokenRequest) -> Reply<wire::CreateTokenResponse> {
        let role = match request.role.as_str() {
            "controller" => TokenRole::Controller,
            "agent" => TokenRole::Agent,
            other => {
                let told = format!("a join token is for a controller or an agent, not for {other:?}");
                return Err(Status::invalid_argument(told));
            }
        };
        let lifetime = match request.lifetime {
            0 => LIFETIME,
            asked => Duration::from_micros(asked),
        };
        if lifetime > MAX_LIFETIME {
            let told = format!("a join token lasts for {} days at most", MAX_LIFETIME.as_secs() / 86_400);
            return Err(Status::invalid_argument(told));
        }
        let uses = if request.uses == 0 { USES } else { request.uses };
        let token = mint(&self.cluster.read(), role)?;
        let (id, digest) = (token.id.clone(), Secret::new(token.secret.digest()));
        let expires = self.cluster.now().plus(lifetime);
        self.cluster.change(Command::PutToken { id: id.clone(), role, digest, expires, uses }).await?;
        let state = self.cluster.read();
        let view = state.security.tokens.get(&id).map(|record| view(&id, record));
        Ok(Response::new(wire::CreateTokenResponse { token: token.to_string(), view }))
    }

    pub(super) fn tokens(&self, state: &ClusterState) -> wire::ListTokensResponse {
        let now = self.cluster.now();
        let tokens = state.security.tokens.iter().filter(|(_, record)| record.expires > now);
        wire::ListTokensResponse { tokens: tokens.map(|(id, record)| view(id, record)).collect() }
    }

    pub(super) async fn take_back_token(
        &self,
        request: Request<wire::RevokeTokenRequest>,
    ) -> Reply<wire::RevokeTokenResponse> {
        let asked = request_id(&request)?;
        let id = request.into_inner().id;
        change(&self.cluster, asked, Command::RevokeToken { id }).await?;
        Ok(Response::new(wire::RevokeTokenResponse {}))
    }
}

fn mint(state: &ClusterState, role: TokenRole) -> Result<Token, Status> {
    let cluster = state.security.cluster.as_ref().ok_or(Refusal::NotInitialised)?;
    let authority = state.security.signing().ok_or(Refusal::NotInitialised)?;
    let addresses = state.controllers.values().map(|controller| controller.address.clone());
    let addresses: Vec<String> = addresses.filter(|address| !address.is_empty()).collect();
    if addresses.is_empty() {
        return Err(Status::failed_precondition(
            "no controller has an address at which it could be joined: start one with --listen ADDR:PORT",
        ));
    }
    let role = match role {
        TokenRole::Controller => Role::Controller,
        TokenRole::Agent => Role::Agent,
    };
    Ok(Token::mint(cluster.as_str(), role, fingerprint(&authority.certificate), addresses))
}

fn view(id: &str, record: &TokenRecord) -> wire::TokenView {
    wire::TokenView {
        id: id.to_owned(),
        role: record.role.to_string(),
        created: record.created.0,
        expires: record.expires.0,
        uses_left: record.uses_left,
    }
}
