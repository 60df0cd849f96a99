//! Keeps this controller's identity fresh: whom it trusts as soon as that changes, its certificate before it runs out.

use std::{sync::Arc, time::Duration};

use roster_proto::{id::PeerId, time::Timestamp, wire};
use roster_tls::{Identity, KeyAndRequest, connect};
use tokio::{sync::watch, time::Instant};

use super::{IssueError, OwnIdentity, credentials, end_rotation, holder, sign};
use crate::{
    cluster::{ChangeError, Cluster},
    doors::{Connections, refuse_certificate},
    state::{ClusterState, Grant, Holder, Security, command::Command},
    status::chain,
};

/// After a renewal that failed.
const AGAIN: Duration = Duration::from_secs(5);
/// At least so often: the clock may jump, and the end of a rotation may be a matter of time alone.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Identity(#[from] roster_tls::IdentityError),
    #[error(transparent)]
    Key(#[from] roster_tls::SignError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Connect(#[from] roster_tls::ConnectError),
    #[error(transparent)]
    Enroll(#[from] roster_tls::EnrollError),
    #[error("no leader is known")]
    NoLeader,
    #[error("the leader {0} has no address")]
    NoAddress(PeerId),
    #[error("keeping the identity broke")]
    Broken(#[from] tokio::task::JoinError),
}

/// Never ends.
pub(crate) async fn keep_fresh(own: OwnIdentity, cluster: Cluster, connections: Connections) {
    let mut states = cluster.watch();
    let mut seen: Option<Arc<Security>> = None;
    let mut try_at = Instant::now();
    loop {
        let state = states.borrow_and_update().clone();
        if seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &state.security)) {
            seen = Some(state.security.clone());
            connections.end_refused(|certificate| refuse_certificate(&state, certificate, cluster.now()));
        }
        match adopt(&own, &state).await {
            Ok(true) => {
                let trusted: Vec<_> =
                    own.identity().authorities.iter().map(|authority| roster_tls::fingerprint(authority)).collect();
                connections.end_others_than(&trusted);
            }
            Ok(false) => {}
            Err(error) => tracing::error!(error = chain(&error), "cannot keep the cluster's authorities"),
        }
        if Instant::now() >= try_at && is_due(&own, &state, cluster.now()) {
            match renew(&own, &cluster, &state).await {
                Ok(()) => tracing::info!(identity = ?own.identity(), "the certificate is renewed"),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the certificate is due and cannot be renewed yet");
                    try_at = Instant::now() + AGAIN;
                }
            }
        }
        end_rotation(&cluster).await;
        wait(&mut states, seen.as_ref()).await;
    }
}

/// Until something that matters here changed, or for a while.
async fn wait(states: &mut watch::Receiver<Arc<ClusterState>>, seen: Option<&Arc<Security>>) {
    let changed = states.wait_for(|state| seen.is_none_or(|seen| !Arc::ptr_eq(seen, &state.security)));
    // A closed store is the end of this life; whoever runs this ends it.
    let closed = tokio::time::timeout(LOOK, changed).await.is_ok_and(|changed| changed.is_err());
    if closed {
        std::future::pending::<()>().await;
    }
}

/// Also when the state knows of none, as of the first controller's: a rotation waits for those it knows.
fn is_due(own: &OwnIdentity, state: &ClusterState, now: Timestamp) -> bool {
    let identity = own.identity();
    let recorded = identity.subject().is_ok_and(|subject| {
        let grant = state.security.grants.get(&holder(subject.role, &subject.name));
        state.security.cluster.is_none() || grant.is_some_and(|grant| grant.expires > now)
    });
    // One that cannot be read is worth a new one.
    !recorded || identity.is_due(now).unwrap_or(true)
}

/// Trusts whom the cluster trusts, from now on and after a restart. Whether those are others than before.
async fn adopt(own: &OwnIdentity, state: &ClusterState) -> Result<bool, RenewError> {
    if state.security.authorities.is_empty() {
        // Not caught up yet.
        return Ok(false);
    }
    let wanted: wire::Credentials = credentials(state, Vec::new(), 0);
    let authorities: Vec<roster_tls::Der> = wanted.authorities.into_iter().map(Into::into).collect();
    let present = own.identity();
    // A state that lags behind may lack the very authority that signed the own certificate.
    let knows_signer = present
        .signer()
        .is_some_and(|signer| authorities.iter().any(|authority| roster_tls::fingerprint(authority) == signer));
    let others = present.authorities != authorities;
    if !knows_signer || !others && present.controllers == wanted.controllers {
        return Ok(false);
    }
    swap(own, Identity { authorities, controllers: wanted.controllers, ..Identity::clone(&present) }).await?;
    Ok(others)
}

async fn swap(own: &OwnIdentity, identity: Identity) -> Result<(), RenewError> {
    let own = own.clone();
    Ok(tokio::task::spawn_blocking(move || own.swap(identity)).await??)
}

/// The leader signs for itself; any other controller asks it. One that was off for so long that nobody listens to it any
/// more signs for itself as well, and then asks.
async fn renew(own: &OwnIdentity, cluster: &Cluster, state: &ClusterState) -> Result<(), RenewError> {
    let present = own.identity();
    let leadership = *cluster.leadership().borrow();
    let renewed = if leadership.is_self {
        let (renewed, holder, grant) = sign_own(&present, state)?;
        cluster.change(Command::PutGrant { holder, grant }).await?;
        renewed
    } else if present.certificate()?.expires <= cluster.now() {
        tracing::warn!("this controller's certificate has run out: it signs one for itself to be heard");
        sign_own(&present, state)?.0
    } else {
        let leader = leadership.leader.ok_or(RenewError::NoLeader)?;
        let address = state.controllers.get(&leader).map(|controller| controller.address.clone());
        let address = address.filter(|address| !address.is_empty()).ok_or(RenewError::NoAddress(leader))?;
        let channel = connect(&[address], own.client()).await?;
        roster_tls::renew(channel, &present).await?
    };
    swap(own, renewed).await
}

fn sign_own(present: &Identity, state: &ClusterState) -> Result<(Identity, Holder, Grant), RenewError> {
    let subject = present.subject()?;
    let key = KeyAndRequest::generate(&subject.name)?;
    let lifetime = Duration::from_micros(state.settings.certificate_lifetime);
    let signed = sign(state, &key.request_der, subject.role, &subject.name, lifetime)?;
    let credentials = credentials(state, signed.certificate, present.peer.unwrap_or_default());
    Ok((Identity::assemble(key, credentials)?, holder(subject.role, &subject.name), signed.grant))
}
