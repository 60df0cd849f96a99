//! Going on alone after the majority is lost for good, with what this controller holds.
//!
//! Whatever a majority acknowledged and this controller was sent is in its log and stays. The others are forgotten and
//! their certificates refused: they must not come back with what they hold.

use std::collections::BTreeSet;

use roster_proto::{id::PeerId, wire};

use super::{Here, Local, LocalError};
use crate::{
    raft,
    state::{ClusterState, command::Command, controllers::ControllerInfo},
};

impl Local {
    pub(super) async fn recover_cluster(self, lost: Vec<String>) -> Result<wire::RecoverResponse, LocalError> {
        let Here::Member(cluster, peers) = &self.here else { return Err(LocalError::NoMember) };
        let (state, me) = (cluster.read(), peers.me().id);
        let name =
            |id: PeerId| state.controllers.get(&id).map_or_else(|| id.to_string(), |known| known.name.to_string());
        if let Some(leader) = cluster.raft_status().leader {
            return Err(LocalError::HasLeader(name(leader)));
        }
        let others: Vec<ControllerInfo> = state
            .controllers
            .values()
            .filter(|other| other.id != me)
            .map(|other| ControllerInfo::clone(other))
            .collect();
        let named = |other: &ControllerInfo| {
            lost.iter().any(|lost| *lost == *other.name.as_str() || *lost == other.id.to_string())
        };
        let known =
            |lost: &String| others.iter().any(|other| *lost == *other.name.as_str() || *lost == other.id.to_string());
        if !others.iter().all(named) || !lost.iter().all(known) {
            let names: BTreeSet<_> = others.iter().map(|other| other.name.to_string()).collect();
            return Err(LocalError::OtherLost(names.into_iter().collect::<Vec<_>>().join(", ")));
        }
        self.close_store().await;
        let recovered = self.go_on_alone(others).await;
        // Also when it failed: the store is closed.
        self.life.begin_anew();
        let version = recovered?;
        tracing::warn!(version, "recovered: this controller goes on alone");
        Ok(wire::RecoverResponse { version })
    }

    async fn go_on_alone(&self, others: Vec<ControllerInfo>) -> Result<u64, LocalError> {
        let home = self.home.clone();
        tokio::task::spawn_blocking(move || raft::recover::<ClusterState>(home.dir())).await??;
        let opened = self.open_alone().await?;
        let tidied = async {
            let cluster = &opened.cluster;
            if cluster.read().controllers.get(&opened.me).is_some_and(|me| me.spare) {
                cluster.change(Command::SetSpares { spares: [(opened.me, false)].into() }).await?;
            }
            for other in others {
                cluster.change(Command::RemoveController { id: other.id }).await?;
            }
            Ok(cluster.read().version.0)
        };
        let tidied = tidied.await;
        opened.close().await?;
        tidied
    }
}
