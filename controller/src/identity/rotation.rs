//! Replaces the authority: the new one signs at once, vouched for by the old one, which goes when everybody has renewed.

use std::time::Duration;

use tonic::Status;

use super::new_authority;
use crate::{
    cluster::Cluster,
    state::{ClusterState, command::Command},
    status::chain,
};

/// After the last renewal: its answer may have been lost, and the holder asks again with what the old one signed.
const GRACE: Duration = Duration::from_secs(10);
/// Named in a refusal; the others are counted.
const NAMED: usize = 5;

/// For the leader, one at a time: two would lose each other's.
pub(crate) async fn begin_rotation(cluster: &Cluster) -> Result<(), Status> {
    let state = cluster.read();
    if state.security.authorities.len() > 1 {
        return Err(Status::failed_precondition(format!(
            "the authority is being rotated already, and these have yet to renew: {}. Remove those who are gone for \
             good: the rotation ends by itself",
            latecomers(&state, cluster)
        )));
    }
    let next = new_authority(&state)?;
    let authorities = std::iter::once(next).chain(state.security.authorities.iter().cloned()).collect();
    cluster.change(Command::SetAuthorities { authorities }).await?;
    Ok(())
}

/// Drops the old authority once nobody needs it. Whoever leads does this; nothing happens elsewhere.
pub(crate) async fn end_rotation(cluster: &Cluster) {
    let state = cluster.read();
    let [signs, _, ..] = &state.security.authorities[..] else { return };
    let signer = roster_tls::fingerprint(&signs.certificate);
    let now = cluster.now();
    let waits = |issued| now.since(issued) < GRACE;
    if !cluster.leadership().borrow().is_self
        || state.security.behind(signer, now).next().is_some()
        || waits(signs.since)
        || state.security.grants.values().any(|grant| waits(grant.issued))
    {
        return;
    }
    // What the old one said of its successor proves nothing any more.
    let mut last = signs.clone();
    last.cross = None;
    match cluster.change(Command::SetAuthorities { authorities: vec![last] }).await {
        Ok(_) => tracing::info!("everybody has renewed: the old authority is gone"),
        Err(error) => tracing::warn!(error = chain(&error), "cannot drop the old authority yet"),
    }
}

fn latecomers(state: &ClusterState, cluster: &Cluster) -> String {
    let Some(signs) = state.security.signing() else { return String::new() };
    let signer = roster_tls::fingerprint(&signs.certificate);
    let late: Vec<String> = state.security.behind(signer, cluster.now()).map(ToString::to_string).collect();
    match late.len() {
        0..=NAMED => late.join(", "),
        more => format!("{} and {} more", late[..NAMED].join(", "), more - NAMED),
    }
}
