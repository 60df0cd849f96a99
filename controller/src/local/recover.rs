//! Going on alone after the majority is lost for good, with what this controller holds.
//!
//! Whatever a majority acknowledged and this controller was sent is in its log and stays. The others are forgotten and
//! their certificates refused: they must not come back with what they hold. All of that happens in one step of the log, so
//! that a crash leaves the controller as it was, or recovered.

use std::{collections::BTreeSet, path::Path, time::SystemTime};

use roster_proto::{
    id::{PeerId, Version},
    wire,
};

use super::{Here, Local, LocalError};
use crate::{
    home::Step,
    raft::{self, OpenError},
    state::{ClusterState, controllers::ControllerInfo},
};

impl Local {
    pub(super) async fn recover_cluster(self, lost: Vec<String>) -> Result<wire::RecoverResponse, LocalError> {
        let Here::Member(cluster, peers) = &self.here else { return Err(LocalError::NoMember) };
        let (state, me) = (cluster.read(), peers.me().id);
        let name =
            |id: PeerId| state.controllers.get(&id).map_or_else(|| id.to_string(), |known| known.name.to_string());
        if let Some(leader) = cluster.raft_status().leader {
            // Asked again because the answer was lost.
            if leader == me && state.controllers.len() == 1 {
                return Ok(wire::RecoverResponse { version: state.version.0 });
            }
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
        let home = self.home.clone();
        let recovered = tokio::task::spawn_blocking(move || go_on_alone(home.dir())).await;
        // Also when it failed: the store is closed.
        self.life.begin_anew();
        let version = recovered??;
        self.home.pass(Step::Recovered)?;
        tracing::warn!(%version, "recovered: this controller goes on alone");
        Ok(wire::RecoverResponse { version: version.0 })
    }
}

fn go_on_alone(dir: &Path) -> Result<Version, OpenError> {
    let edit = |state: &mut ClusterState, me: PeerId, _| {
        *state = state.recovered(me, SystemTime::now().into())?;
        Ok(state.version)
    };
    raft::recover(dir, Box::new(edit)).map(|(_, version)| version)
}
