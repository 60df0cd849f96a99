//! Leaving a cluster: the others are told first, then this controller is emptied. One that was told of already, or that
//! the others have removed, finds that out and is emptied all the same.

use std::time::Duration;

use roster_proto::{
    call,
    wire::{self, cluster_client::ClusterClient},
};
use tonic::{Code, metadata::MetadataValue};

use super::{CALL, Here, Local, LocalError};
use crate::{cluster::Cluster, home::Step, peers::Peers, status::chain};

/// While the leadership moves.
const TRIES: usize = 20;
const BETWEEN: Duration = Duration::from_millis(250);

impl Local {
    pub(super) async fn leave_cluster(self, force: bool) -> Result<wire::LeaveResponse, LocalError> {
        let Here::Member(cluster, peers) = &self.here else { return Err(LocalError::NoMember) };
        let told = tell(cluster, peers).await;
        match told {
            Ok(()) => {}
            Err(error) if force => tracing::warn!(error = chain(&error), "leaves without a word"),
            Err(error) => return Err(error),
        }
        self.home.pass(Step::LeaveTold)?;
        self.close_store().await;
        let home = self.home.clone();
        let emptied = tokio::task::spawn_blocking(move || home.empty()).await;
        // Also when it failed: the store is closed.
        self.life.begin_anew();
        emptied??;
        tracing::info!("left the cluster");
        Ok(wire::LeaveResponse {})
    }
}

/// Has the others take this controller out of the cluster.
async fn tell(cluster: &Cluster, peers: &Peers) -> Result<(), LocalError> {
    let me = peers.me().id;
    let status = cluster.raft_status();
    if status.voters == [me] {
        return Err(LocalError::LastVoter);
    }
    let mut why = "no leader is known".to_owned();
    for _ in 0..TRIES {
        let status = cluster.raft_status();
        // By a call that was cut off, or by the others.
        let is_member = status.voters.is_empty() || status.voters.contains(&me) || status.learners.contains(&me);
        if !is_member || (status.leader.is_none() && peers.is_removed()) {
            return Ok(());
        }
        match status.leader {
            Some(leader) if leader == me => {
                // Another one has to lead that.
                if let Some(next) = status.successor()
                    && let Err(error) = cluster.transfer_leadership(next).await
                {
                    why = chain(&error);
                }
            }
            Some(leader) => match ask(peers, leader, me).await {
                Ok(()) => return Ok(()),
                Err(words) => why = words,
            },
            // One that was removed is told so by any of them.
            None => {
                let state = cluster.read();
                for other in state.controllers.keys().filter(|other| **other != me) {
                    if ask(peers, *other, me).await.is_ok() {
                        return Ok(());
                    }
                }
            }
        }
        tokio::time::sleep(BETWEEN).await;
    }
    Err(LocalError::NotTold(why))
}

async fn ask(peers: &Peers, leader: roster_proto::id::PeerId, me: roster_proto::id::PeerId) -> Result<(), String> {
    let channel = peers.connect(leader).await.map_err(|error| chain(&error))?;
    let mut request = tonic::Request::new(wire::ControllerRequest { controller: me.to_string() });
    request.set_timeout(CALL);
    // By the socket that only root may use.
    request.metadata_mut().insert(call::FORWARDED_FOR, MetadataValue::from_static("admin/root"));
    match ClusterClient::new(channel).remove_controller(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => {
            peers.learn(&status);
            peers.disconnect(leader);
            Err(status.message().to_owned())
        }
    }
}
