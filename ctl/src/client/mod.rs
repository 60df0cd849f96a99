//! The connection to the controllers: where they are, as whom to speak, and what to do when one goes away.
//!
//! Absent: any knowledge of the commands. They hold generated clients over a [`Transport`], which finds a controller
//! that answers and makes a call again where that is safe.

mod endpoint;
mod target;
mod transport;

#[cfg(test)]
mod tests;

use roster_proto::{
    replay::Again,
    whole,
    wire::{
        self, cluster_client::ClusterClient, containers_client::ContainersClient, control_client::ControlClient,
        live_client::LiveClient, local_client::LocalClient,
    },
};

pub use self::{
    endpoint::Endpoint,
    target::{Target, Wishes},
    transport::Transport,
};
use crate::error::Error;

/// Where a controller listens on its own host.
pub const LOCAL_ENDPOINT: &str = "unix:///run/roster/controller.sock";

/// The longest answer in one message is the plan of a large stack.
const MAX_ANSWER: usize = 64 << 20;

pub type Client = ControlClient<Transport>;

/// Connects at once, so that a missing controller is told before any work begins.
pub async fn control(wishes: &Wishes) -> Result<Client, Error> {
    Ok(control_over(wishes.target()?.connect().await?))
}

pub fn control_over(transport: Transport) -> Client {
    ControlClient::new(transport).max_decoding_message_size(MAX_ANSWER)
}

pub type Containers = ContainersClient<Transport>;

/// Both over one connection.
pub async fn containers(wishes: &Wishes) -> Result<(Containers, Client), Error> {
    let transport = wishes.target()?.connect().await?;
    let containers = ContainersClient::new(transport.clone()).max_decoding_message_size(MAX_ANSWER);
    Ok((containers, control_over(transport)))
}

pub async fn cluster(wishes: &Wishes) -> Result<ClusterClient<Transport>, Error> {
    Ok(ClusterClient::new(wishes.target()?.connect().await?).max_decoding_message_size(MAX_ANSWER))
}

pub async fn live(wishes: &Wishes) -> Result<LiveClient<Transport>, Error> {
    Ok(LiveClient::new(wishes.target()?.connect().await?))
}

/// What only root on the controller's own host may ask.
pub async fn local(wishes: &Wishes) -> Result<LocalClient<Transport>, Error> {
    Ok(LocalClient::new(wishes.local_target()?.connect().await?))
}

pub async fn services(
    client: &Client,
    request: wire::ListServicesRequest,
) -> Result<wire::ListServicesResponse, tonic::Status> {
    whole::listing(async || client.clone().list_services(request.clone()).await).await
}

pub async fn tasks(client: &Client, request: wire::ListTasksRequest) -> Result<wire::ListTasksResponse, tonic::Status> {
    whole::listing(async || client.clone().list_tasks(request.clone()).await).await
}

pub async fn nodes(client: &Client) -> Result<wire::ListNodesResponse, tonic::Status> {
    whole::listing(async || client.clone().list_nodes(wire::ListNodesRequest {}).await).await
}

/// Whether a stream that ended so can be taken up again with another controller.
pub fn goes_on(status: &tonic::Status) -> bool {
    Again::of_status(status) != Again::Never
}
