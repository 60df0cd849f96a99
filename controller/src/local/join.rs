//! Joining a cluster by a token.
//!
//! The key is kept before the cluster is asked to sign it, so that a call that was cut off can be made again: the cluster
//! knows the request, and answers as before. Once it has admitted this controller, that is written down before anything
//! is thrown away; from then on the join is finished whenever the controller starts.

use roster_proto::wire;
use roster_tls::{Role, Token};

use super::{Local, LocalError};
use crate::home::{HomeError, Join, Step};

impl Local {
    pub(super) async fn join_cluster(self, request: wire::JoinRequest) -> Result<wire::JoinResponse, LocalError> {
        let token: Token = request.token.parse()?;
        if token.role != Role::Controller {
            return Err(LocalError::AgentToken);
        }
        self.refuse_unless_blank("join").await?;
        let (name, address) = (self.name(&request.name)?, self.address(&request.address)?);
        let enroll = wire::EnrollRequest {
            name: name.to_string(),
            address: address.clone(),
            spare: request.spare,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: *self.config.protocols.end(),
            oldest_protocol: *self.config.protocols.start(),
            ..wire::EnrollRequest::default()
        };
        let (joining, cluster, asked) = (self.home.joining(), token.cluster.clone(), name.to_string());
        let key = tokio::task::spawn_blocking(move || joining.key_to_join(&cluster, &asked)).await?;
        let key = key.map_err(HomeError::from)?;
        self.home.pass(Step::JoinKeyKept)?;
        let identity = roster_tls::enroll_with(key, &token, enroll).await.map_err(LocalError::Enroll)?;
        let peer = Join::peer(&identity).ok_or(LocalError::NoPeer)?;
        let home = self.home.clone();
        let cluster = identity.cluster.clone();
        tokio::task::spawn_blocking(move || home.begin_join(&identity, &address)).await??;
        tracing::info!(cluster, %name, %peer, "joins a cluster");
        self.close_store().await;
        self.life.begin_anew();
        Ok(wire::JoinResponse { cluster, peer: peer.0 })
    }
}
