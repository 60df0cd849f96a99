//! Joining a cluster by a token.
//!
//! Once the cluster has admitted this controller, that is written down before anything is thrown away; from then on
//! the join is finished whenever the controller starts. Cut off before, it is begun again with the same token: the
//! cluster forgets an admitted controller that never came when another one of its name joins.

use roster_proto::wire;
use roster_tls::{Role, Token};

use super::{Local, LocalError};
use crate::home::Join;

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
            ..wire::EnrollRequest::default()
        };
        let identity = roster_tls::enroll(&token, enroll).await.map_err(LocalError::Enroll)?;
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
