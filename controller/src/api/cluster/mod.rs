//! What people ask of the cluster itself.

mod backup;
mod membership;

use roster_proto::wire::{self, cluster_server::Cluster as ClusterRpc};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Reply, ReplyStream};
use crate::{cluster::Cluster, peers::Peers};

/// The gRPC service.
#[derive(Clone, Debug)]
pub(crate) struct ClusterApi {
    pub(crate) cluster: Cluster,
    /// `None`: this controller was never made a cluster.
    pub(crate) peers: Option<Peers>,
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl ClusterRpc for ClusterApi {
    type BackupStream = ReplyStream<wire::Piece>;

    async fn status(&self, _: Request<wire::ClusterStatusRequest>) -> Reply<wire::ClusterStatus> {
        Ok(Response::new(self.overview()))
    }

    async fn promote(&self, request: Request<wire::ControllerRequest>) -> Reply<wire::ClusterStatus> {
        self.set_vote(&request.into_inner().controller, true).await
    }

    async fn demote(&self, request: Request<wire::ControllerRequest>) -> Reply<wire::ClusterStatus> {
        self.set_vote(&request.into_inner().controller, false).await
    }

    async fn remove_controller(&self, request: Request<wire::ControllerRequest>) -> Reply<wire::ClusterStatus> {
        self.remove(&request.into_inner().controller).await
    }

    async fn transfer_leadership(&self, request: Request<wire::ControllerRequest>) -> Reply<wire::ClusterStatus> {
        self.hand_over(&request.into_inner().controller).await
    }

    async fn configure(&self, request: Request<wire::ClusterSettings>) -> Reply<wire::ClusterSettings> {
        self.set(request.into_inner()).await
    }

    async fn release_brake(&self, _: Request<wire::ReleaseBrakeRequest>) -> Reply<wire::ClusterStatus> {
        self.release().await
    }

    async fn backup(&self, _: Request<wire::BackupRequest>) -> Reply<Self::BackupStream> {
        self.back_up().await
    }

    async fn create_token(&self, _: Request<wire::CreateTokenRequest>) -> Reply<wire::CreateTokenResponse> {
        Err(Status::unimplemented("join tokens"))
    }

    async fn list_tokens(&self, _: Request<wire::ListTokensRequest>) -> Reply<wire::ListTokensResponse> {
        Err(Status::unimplemented("join tokens"))
    }

    async fn revoke_token(&self, _: Request<wire::RevokeTokenRequest>) -> Reply<wire::RevokeTokenResponse> {
        Err(Status::unimplemented("join tokens"))
    }

    async fn add_user(&self, _: Request<wire::AddUserRequest>) -> Reply<wire::Credentials> {
        Err(Status::unimplemented("users"))
    }

    async fn list_users(&self, _: Request<wire::ListUsersRequest>) -> Reply<wire::ListUsersResponse> {
        Err(Status::unimplemented("users"))
    }

    async fn remove_user(&self, _: Request<wire::RemoveUserRequest>) -> Reply<wire::RemoveUserResponse> {
        Err(Status::unimplemented("users"))
    }

    async fn rotate_authority(&self, _: Request<wire::RotateAuthorityRequest>) -> Reply<wire::ClusterStatus> {
        Err(Status::unimplemented("authorities"))
    }
}
