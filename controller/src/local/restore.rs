//! A cluster from its backup: this controller becomes its only member, under the cluster's old id and authority, so that
//! agents and people find it trustworthy.

use std::time::SystemTime;

use roster_proto::{id::PeerId, wire};
use tonic::Streaming;

use super::{
    Local, LocalError,
    backup::{self, BackupError, MAX_BACKUP},
};
use crate::{
    raft,
    state::{ClusterState, controllers::ControllerInfo},
};

impl Local {
    pub(super) async fn restore_cluster(
        self,
        pieces: Streaming<wire::Piece>,
    ) -> Result<wire::RestoreResponse, LocalError> {
        self.refuse_unless_blank("restore").await?;
        let (name, address) = (self.name("")?, self.address("")?);
        let bytes = receive(pieces).await?;
        let (header, state) = tokio::task::spawn_blocking(move || backup::read(&bytes)).await??;
        let cluster = header.cluster.ok_or(BackupError::NoCluster)?;
        let now = SystemTime::now().into();
        let id = PeerId(rand::random::<u64>().max(1));
        let release = env!("CARGO_PKG_VERSION").to_owned();
        let me = ControllerInfo { id, name, address, release, spare: false, leaving: false, joined: now };
        let state = state.restored(me, now);
        let version = state.version;
        self.close_store().await;
        let home = self.home.clone();
        let made = tokio::task::spawn_blocking(move || {
            home.empty()?;
            raft::restore::<ClusterState>(home.dir(), Some(id), version, &state.encode())?;
            Ok::<_, LocalError>(())
        });
        let made = made.await.map_err(LocalError::from).and_then(|made| made);
        // Also when it failed: the store is closed.
        self.life.begin_anew();
        made?;
        tracing::info!(%cluster, backed_up_at = %header.at, by = header.release, %version, "restored a cluster");
        Ok(wire::RestoreResponse { cluster: cluster.to_string(), version: version.0 })
    }
}

async fn receive(mut pieces: Streaming<wire::Piece>) -> Result<Vec<u8>, LocalError> {
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await.map_err(|status| LocalError::Stream(Box::new(status)))? {
        if bytes.len() + piece.data.len() > MAX_BACKUP {
            return Err(LocalError::TooLarge(MAX_BACKUP));
        }
        bytes.extend_from_slice(&piece.data);
    }
    Ok(bytes)
}
