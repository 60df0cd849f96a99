//! Where the peers are, and when they were last heard of.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use roster_proto::id::PeerId;
use tokio::sync::Notify;

use super::Me;

/// What a peer said of itself when it called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// HOST:PORT; empty when it did not say.
    pub address: String,
    pub release: String,
    /// The newest version of the controllers' protocol that it speaks.
    pub protocol: u32,
}

impl Announced {
    /// What this controller says of itself.
    pub fn of(me: &Me) -> Self {
        let (address, protocol) = (me.address.clone().unwrap_or_default(), *me.protocols.end());
        Self { address, release: env!("CARGO_PKG_VERSION").to_owned(), protocol }
    }
}

#[derive(Debug, Default)]
pub(super) struct Book {
    entries: Mutex<BTreeMap<PeerId, Entry>>,
    /// Somebody called: who tries to reach it may try at once.
    called: Notify,
}

#[derive(Debug)]
struct Entry {
    announced: Announced,
    heard: (Instant, SystemTime),
}

impl Book {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<PeerId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn announce(&self, peer: PeerId, announced: Announced) {
        self.entries().insert(peer, Entry { announced, heard: (Instant::now(), SystemTime::now()) });
        self.called.notify_waiters();
    }

    pub(super) fn heard(&self, peer: PeerId) {
        if let Some(entry) = self.entries().get_mut(&peer) {
            entry.heard = (Instant::now(), SystemTime::now());
        }
    }

    pub(super) fn heard_at(&self, peer: PeerId) -> Option<(Instant, SystemTime)> {
        self.entries().get(&peer).map(|entry| entry.heard)
    }

    pub(super) fn announced(&self) -> BTreeMap<PeerId, Announced> {
        self.entries().iter().map(|(peer, entry)| (*peer, entry.announced.clone())).collect()
    }

    /// Where the peer said it is, then where the cluster says it is.
    pub(super) fn addresses(&self, peer: PeerId, known: Option<&str>) -> Vec<String> {
        let said = self.entries().get(&peer).map(|entry| entry.announced.address.clone());
        let mut addresses: Vec<String> =
            said.into_iter().chain(known.map(str::to_owned)).filter(|address| !address.is_empty()).collect();
        addresses.dedup();
        addresses
    }

    pub(super) async fn somebody_called(&self) {
        self.called.notified().await;
    }
}
