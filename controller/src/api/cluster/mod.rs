//! What people ask of the cluster itself.

mod backup;
mod membership;
mod tokens;
mod users;

use std::sync::Arc;

use roster_proto::wire::{self, cluster_server::Cluster as ClusterRpc};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response};

use super::{Reply, ReplyStream, read};
use crate::{cluster::Cluster, identity::begin_rotation, peers::Peers};

/// The gRPC service.
#[derive(Clone, Debug)]
pub(crate) struct ClusterApi {
    pub(crate) cluster: Cluster,
    /// `None`: this controller was never made a cluster.
    pub(crate) peers: Option<Peers>,
    pub(crate) shutdown: CancellationToken,
    /// One rotation begins at a time.
    pub(crate) rotation: Arc<Mutex<()>>,
}

#[tonic::async_trait]
impl ClusterRpc for ClusterApi {
    type BackupStream = ReplyStream<wire::Piece>;

    async fn status(&self, _: Request<wire::ClusterStatusRequest>) -> Reply<wire::ClusterStatus> {
        Ok(Response::new(self.overview()))
    }

    async fn promote(&self, request: Request<wire::ControllerRequest>) -> Reply<wire::ClusterStatus> {
        self.set_vote(request, true).await
    }

    async fn demote(&self, request: Request<wire::ControllerRequest>) -> Reply<wire::ClusterStatus> {
        self.set_vote(request, false).await
    }

    async fn remove_controller(&self, request: Request<wire::ControllerRequest>) -> Reply<wire::ClusterStatus> {
        self.remove(request).await
    }

    async fn transfer_leadership(&self, request: Request<wire::ControllerRequest>) -> Reply<wire::ClusterStatus> {
        self.hand_over(&request.into_inner().controller).await
    }

    async fn configure(&self, request: Request<wire::ClusterSettings>) -> Reply<wire::ClusterSettings> {
        self.set(request).await
    }

    async fn release_brake(&self, request: Request<wire::ReleaseBrakeRequest>) -> Reply<wire::ClusterStatus> {
        self.release(request).await
    }

    async fn backup(&self, request: Request<wire::BackupRequest>) -> Reply<Self::BackupStream> {
        self.back_up(request).await
    }

    async fn create_token(&self, request: Request<wire::CreateTokenRequest>) -> Reply<wire::CreateTokenResponse> {
        self.make_token(request.into_inner()).await
    }

    async fn list_tokens(&self, request: Request<wire::ListTokensRequest>) -> Reply<wire::ListTokensResponse> {
        Ok(Response::new(self.tokens(&*read(&self.cluster, &request).await?)))
    }

    async fn revoke_token(&self, request: Request<wire::RevokeTokenRequest>) -> Reply<wire::RevokeTokenResponse> {
        self.take_back_token(request).await
    }

    async fn add_user(&self, request: Request<wire::AddUserRequest>) -> Reply<wire::Credentials> {
        self.put_user(request).await
    }

    async fn list_users(&self, request: Request<wire::ListUsersRequest>) -> Reply<wire::ListUsersResponse> {
        Ok(Response::new(self.users(&*read(&self.cluster, &request).await?)))
    }

    async fn remove_user(&self, request: Request<wire::RemoveUserRequest>) -> Reply<wire::RemoveUserResponse> {
        self.drop_user(request).await
    }

    async fn rotate_authority(&self, _: Request<wire::RotateAuthorityRequest>) -> Reply<wire::ClusterStatus> {
        let _one = self.rotation.lock().await;
        begin_rotation(&self.cluster).await?;
        Ok(Response::new(self.overview()))
    }
}
