//! How many may stand at the TCP door at once, and who of them has to go.
//!
//! Guarantees: those who have not proven anything take no room from those who have: beyond their bound the oldest of
//! them makes way for the newest, so that a flood of idle connections keeps nobody out for longer than a handshake
//! takes. A member's connections are bounded for each and for all together; beyond that new ones are refused.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use roster_tls::{Certificate, Subject};
use tokio_util::sync::CancellationToken;

/// Between TCP's handshake and the end of TLS's.
pub(crate) const MAX_SHAKING: usize = 512;
/// Without a certificate.
pub(crate) const MAX_STRANGERS: usize = 256;
/// With one: agents, controllers, people.
pub(crate) const MAX_MEMBERS: usize = 8_192;
/// Of one subject.
pub(crate) const MAX_PER_SUBJECT: usize = 1_024;

/// Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// By age.
    shaking: BTreeMap<u64, CancellationToken>,
    strangers: BTreeMap<u64, CancellationToken>,
    members: BTreeMap<u64, Member>,
    of_subject: HashMap<Subject, usize>,
}

#[derive(Debug)]
struct Member {
    certificate: Arc<Certificate>,
    /// The authority's SHA-256. `None` when it came by way of one that vouches for it and was not known here yet.
    signer: Option<[u8; 32]>,
    ended: CancellationToken,
}

impl Member {
    fn end(&self, reason: &str) {
        if !self.ended.is_cancelled() {
            tracing::warn!(caller = %self.certificate.subject, reason, "ended a connection");
            self.ended.cancel();
        }
    }
}

/// A connection's place among the others, free again once it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    open: Arc<Mutex<Open>>,
    number: u64,
    /// Somebody else needs the place, or its holder has lost the right to it.
    pub(super) ended: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("{MAX_MEMBERS} connections are open")]
    All,
    #[error("it has {MAX_PER_SUBJECT} connections open")]
    Subject,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// For one that begins its handshake.
    pub(super) fn begin(&self) -> Place {
        let mut open = self.lock();
        open.next += 1;
        let (number, ended) = (open.next, CancellationToken::new());
        make_way(&mut open.shaking, MAX_SHAKING);
        open.shaking.insert(number, ended.clone());
        Place { open: self.open.clone(), number, ended }
    }

    /// Ends the connections of those whose certificate is refused.
    pub(crate) fn end_refused(&self, refused: impl Fn(&Certificate) -> Result<(), String>) {
        for member in self.lock().members.values() {
            if let Err(reason) = refused(&member.certificate) {
                member.end(&reason);
            }
        }
    }

    /// Ends those that none of the authorities has signed for: whoever is still of the cluster comes back with what is
    /// in force now.
    pub(crate) fn end_others_than(&self, authorities: &[[u8; 32]]) {
        for member in self.lock().members.values() {
            if member.signer.is_none_or(|signer| !authorities.contains(&signer)) {
                member.end("the authority that signed for it is trusted no longer");
            }
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize, usize) {
        let open = self.lock();
        (open.shaking.len(), open.strangers.len(), open.members.len())
    }
}

impl Place {
    /// The handshake is over.
    pub(super) fn settle(&self, certificate: Option<&Arc<Certificate>>, signer: Option<[u8; 32]>) -> Result<(), Full> {
        let mut open = lock(&self.open);
        let Some(certificate) = certificate else {
            open.shaking.remove(&self.number);
            make_way(&mut open.strangers, MAX_STRANGERS);
            open.strangers.insert(self.number, self.ended.clone());
            return Ok(());
        };
        if open.members.len() >= MAX_MEMBERS {
            return Err(Full::All);
        }
        let held = open.of_subject.entry(certificate.subject.clone()).or_default();
        if *held >= MAX_PER_SUBJECT {
            return Err(Full::Subject);
        }
        *held += 1;
        open.shaking.remove(&self.number);
        let member = Member { certificate: certificate.clone(), signer, ended: self.ended.clone() };
        open.members.insert(self.number, member);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.shaking.remove(&self.number);
        open.strangers.remove(&self.number);
        if let Some(member) = open.members.remove(&self.number)
            && let Some(held) = open.of_subject.get_mut(&member.certificate.subject)
        {
            *held -= 1;
            if *held == 0 {
                open.of_subject.remove(&member.certificate.subject);
            }
        }
    }
}

/// The oldest go until one more has room.
fn make_way(places: &mut BTreeMap<u64, CancellationToken>, bound: usize) {
    while places.len() >= bound {
        if let Some((_, oldest)) = places.pop_first() {
            oldest.cancel();
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    // No code that holds the lock can panic half-way through a change.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
