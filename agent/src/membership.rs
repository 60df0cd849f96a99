//! This node's certificate and what it knows of its cluster, as they are on disk now.
//!
//! `rctl cluster join --agent` writes the file, at any time; so does this agent, when its certificate is renewed or the
//! leader tells of other controllers or authorities. Whoever wrote last counts. Guarantees: the trust in an authority
//! that signed the present certificate is kept until there is a newer one; an identity of another node is never used.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use roster_proto::{id::NodeId, wire};
use roster_tls::{Der, EnrollError, Identity, IdentityDir, IdentityError, TlsError, client_config, fingerprint, renew};
use rustls::ClientConfig;
use tokio::sync::Notify;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::{clock, reconcile::backoff::Backoff, telemetry::Chain};

/// Between tries to renew: a third of the certificate's life is left for them.
const RENEWAL_RETRY: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) };
/// Over which the nodes of a cluster spread what a new authority makes all of them do.
const RENEWAL_SPREAD: Duration = Duration::from_secs(3);
/// The longest sleep by the wall clock, which may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the identity cannot be used")]
    Tls(#[from] TlsError),
    #[error(
        "the certificate is for node {certified}, but this agent runs as node {own}: start it with --node {certified}, or \
         join again with --node {own}"
    )]
    OtherNode { certified: String, own: NodeId },
}

/// What one holds who has joined.
#[derive(Debug)]
pub struct Member {
    pub identity: Identity,
    pub tls: Arc<ClientConfig>,
}

#[derive(Debug)]
pub struct Membership {
    dir: IdentityDir,
    node: NodeId,
    seen: Mutex<Seen>,
    /// There may be a reason to renew.
    reconsider: Notify,
}

#[derive(Debug, Default)]
struct Seen {
    stamp: Option<Stamp>,
    member: Option<Arc<Member>>,
    /// The signing authority for whose sake the certificate was renewed: not twice for the same.
    renewed_for: Option<[u8; 32]>,
}

/// Another for each file written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: (i64, i64),
}

/// Where an agent's identity is, below its data directory.
pub fn directory(data_dir: &Path) -> IdentityDir {
    IdentityDir(data_dir.join("identity"))
}

impl Membership {
    pub fn new(data_dir: &Path, node: NodeId) -> Self {
        Self { dir: directory(data_dir), node, seen: Mutex::default(), reconsider: Notify::new() }
    }

    /// `None`: this node has joined no cluster yet.
    pub fn look(&self) -> Result<Option<Arc<Member>>, MembershipError> {
        let mut seen = self.lock();
        // Before it is read: what is written meanwhile is then seen as new.
        let stamp = self.stamp()?;
        if stamp != seen.stamp || seen.member.is_none() {
            seen.member = match self.dir.load()? {
                Some(identity) => Some(Arc::new(self.admit(identity)?)),
                None => None,
            };
            seen.stamp = stamp;
        }
        Ok(seen.member.clone())
    }

    /// The disk has another identity than was last looked at.
    pub fn is_stale(&self) -> bool {
        let seen = self.lock().stamp;
        // One that cannot be looked at is told when it is needed.
        self.stamp().is_ok_and(|stamp| stamp != seen)
    }

    /// Takes over what the leader says of the cluster, if it is news.
    pub fn learn(&self, told: wire::Controllers) -> Result<(), MembershipError> {
        let mut seen = self.lock();
        let Some(member) = &seen.member else { return Ok(()) };
        if self.stamp()? != seen.stamp {
            return Ok(());
        }
        let known = &member.identity;
        let controllers = if told.addresses.is_empty() { known.controllers.clone() } else { told.addresses };
        let authorities = told.authorities.into_iter().map(Der::from).collect();
        let authorities = trusted(known, authorities);
        if controllers == known.controllers && authorities == known.authorities {
            return Ok(());
        }
        info!(controllers = controllers.join(" "), authorities = authorities.len(), "the cluster has changed");
        let identity = Identity { controllers, authorities, ..known.clone() };
        self.keep(&mut seen, identity)?;
        self.reconsider.notify_one();
        Ok(())
    }

    /// Sees to it that the certificate is renewed in time. Returns once it was; only a new connection uses it.
    pub async fn keep_certificate(&self, channel: Channel) {
        let mut failures = 0;
        loop {
            let (member, renewed_for) = {
                let seen = self.lock();
                (seen.member.clone(), seen.renewed_for)
            };
            let Some(member) = member else { return self.reconsider.notified().await };
            let wait = due(&member.identity, renewed_for);
            if !wait.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(wait.min(LONGEST_SLEEP)) => {}
                    () = self.reconsider.notified() => tokio::time::sleep(RENEWAL_SPREAD.mul_f64(rand::random())).await,
                }
                continue;
            }
            match self.renew(channel.clone(), &member.identity).await {
                Ok(()) => return,
                Err(error) => {
                    failures += 1;
                    warn!("cannot renew this node's certificate: {}; trying again", Chain(&error));
                    tokio::time::sleep(RENEWAL_RETRY.delay(failures, rand::random())).await;
                }
            }
        }
    }

    async fn renew(&self, channel: Channel, present: &Identity) -> Result<(), RenewalError> {
        let signing = signing(present);
        let renewed = renew(channel, present).await?;
        let mut seen = self.lock();
        seen.renewed_for = signing;
        self.keep(&mut seen, renewed)?;
        info!("this node's certificate is renewed");
        Ok(())
    }

    fn keep(&self, seen: &mut Seen, identity: Identity) -> Result<(), MembershipError> {
        self.dir.save(&identity)?;
        seen.member = Some(Arc::new(self.admit(identity)?));
        seen.stamp = self.stamp()?;
        Ok(())
    }

    fn admit(&self, identity: Identity) -> Result<Member, MembershipError> {
        let certified = identity.subject()?.name;
        if certified != self.node.as_str() {
            return Err(MembershipError::OtherNode { certified, own: self.node.clone() });
        }
        Ok(Member { tls: client_config(&identity)?, identity })
    }

    fn stamp(&self) -> Result<Option<Stamp>, IdentityError> {
        let path = self.dir.path();
        match fs::metadata(&path) {
            Ok(found) => Ok(Some(Stamp { inode: found.ino(), changed: (found.ctime(), found.ctime_nsec()) })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::File { verb: "look at", path, source }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // A change is made by whole assignments.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// The authorities told, and the one that signed the present certificate as long as that is in use.
fn trusted(known: &Identity, told: Vec<Der>) -> Vec<Der> {
    if told.is_empty() {
        return known.authorities.clone();
    }
    let own = known.signer();
    let own = known.authorities.iter().find(|authority| own == Some(fingerprint(authority)));
    let missing = own.filter(|own| !told.contains(own)).cloned();
    told.into_iter().chain(missing).collect()
}

/// How long the certificate may still be used; zero once it is to be renewed: by its age, or because another authority
/// signs by now.
fn due(identity: &Identity, renewed_for: Option<[u8; 32]>) -> Duration {
    let signing = signing(identity);
    if identity.signer() != signing && renewed_for != signing {
        return Duration::ZERO;
    }
    identity.renew_at().map_or(Duration::ZERO, |at| at.since(clock::now()))
}

/// The authority that signs new certificates comes first.
fn signing(identity: &Identity) -> Option<[u8; 32]> {
    identity.authorities.first().map(|authority| fingerprint(authority))
}

#[cfg(test)]
mod tests;
