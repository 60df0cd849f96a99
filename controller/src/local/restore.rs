//! A cluster from its backup: this controller becomes its only member, under the cluster's old id and authority, so that
//! agents and people find it trustworthy.

use std::time::SystemTime;

use bytes::Bytes;
use roster_proto::{id::PeerId, wire};
use tonic::Streaming;

use super::{
    Here, Local, LocalError,
    backup::{self, BackupError, MAX_BACKUP},
};
use crate::{
    home::Step,
    raft,
    state::{ClusterState, controllers::ControllerInfo},
};

impl Local {
    pub(super) async fn restore_cluster(
        self,
        mut parts: Streaming<wire::RestoreRequest>,
    ) -> Result<wire::RestoreResponse, LocalError> {
        let first = next(&mut parts).await?.unwrap_or_default();
        self.refuse_unless_free(first.force).await?;
        let (name, address) = (self.name(&first.name)?, self.address(&first.address)?);
        let bytes = receive(first.data, parts).await?;
        let (header, state) = tokio::task::spawn_blocking(move || backup::read(&bytes)).await??;
        let cluster = header.cluster.clone().ok_or(BackupError::NoCluster)?;
        let now = SystemTime::now().into();
        let id = PeerId(rand::random::<u64>().max(1));
        let me = ControllerInfo {
            id,
            name,
            address,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: *self.config.protocols.end(),
            spare: false,
            leaving: false,
            silent_since: None,
            joined: now,
        };
        let (services, nodes) = (state.services.len(), state.nodes.len());
        let mut forgotten: Vec<_> = state.controllers.values().map(|known| known.name.to_string()).collect();
        forgotten.sort();
        let state = state.restored(me, now);
        let version = state.version;
        self.close_store().await;
        let home = self.home.clone();
        let made = tokio::task::spawn_blocking(move || {
            home.empty()?;
            home.pass(Step::RestoreEmptied)?;
            raft::restore::<ClusterState>(home.dir(), Some(id), version, &state.encode())?;
            Ok::<_, LocalError>(home.pass(Step::RestoreWritten)?)
        });
        let made = made.await.map_err(LocalError::from).and_then(|made| made);
        // Also when it failed: the store is closed.
        self.life.begin_anew();
        made?;
        tracing::info!(%cluster, backed_up_at = %header.at, by = header.release, %version, "restored a cluster");
        Ok(wire::RestoreResponse {
            cluster: cluster.to_string(),
            version: version.0,
            backed_up_at: header.at.0,
            backed_up_version: header.version.0,
            release: header.release,
            services: u32::try_from(services).unwrap_or(u32::MAX),
            nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
            forgotten,
        })
    }

    /// What would be lost must be given up in as many words; and a cluster that goes on elsewhere must not go on here as
    /// well.
    async fn refuse_unless_free(&self, force: bool) -> Result<(), LocalError> {
        let Here::Member(cluster, _) = &self.here else {
            return if force { Ok(()) } else { self.refuse_unless_blank("restore").await };
        };
        let state = cluster.read();
        if force && state.controllers.len() <= 1 {
            return Ok(());
        }
        Err(LocalError::Member { verb: "restore", cluster: state.security.cluster.clone() })
    }
}

async fn next(parts: &mut Streaming<wire::RestoreRequest>) -> Result<Option<wire::RestoreRequest>, LocalError> {
    parts.message().await.map_err(|status| LocalError::Stream(Box::new(status)))
}

async fn receive(first: Bytes, mut parts: Streaming<wire::RestoreRequest>) -> Result<Vec<u8>, LocalError> {
    let mut bytes = Vec::from(first);
    while let Some(part) = next(&mut parts).await? {
        if bytes.len() + part.data.len() > MAX_BACKUP {
            return Err(LocalError::TooLarge(MAX_BACKUP));
        }
        bytes.extend_from_slice(&part.data);
    }
    Ok(bytes)
}
