//! Where the peers are, and when they were last heard of.
//!
//! What a peer says of itself goes before what others say of it. Both are needed: two controllers that moved while
//! neither could reach the other are each known to a third.

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
    pages: Mutex<Pages>,
    /// Somebody called: who tries to reach it may try at once.
    called: Notify,
}

#[derive(Debug, Default)]
struct Pages {
    entries: BTreeMap<PeerId, Entry>,
    /// By who told it last: where others are.
    hearsay: BTreeMap<PeerId, Vec<(PeerId, String)>>,
    /// Counts the changes of addresses that peers gave of themselves.
    edition: u64,
}

#[derive(Debug)]
struct Entry {
    announced: Announced,
    heard: (Instant, SystemTime),
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn announce(&self, peer: PeerId, announced: Announced) {
        {
            let mut pages = self.pages();
            let before = pages.entries.get(&peer).map(|entry| entry.announced.address.as_str());
            if before != Some(&announced.address) {
                pages.edition += 1;
            }
            pages.entries.insert(peer, Entry { announced, heard: (Instant::now(), SystemTime::now()) });
        }
        self.called.notify_waiters();
    }

    pub(super) fn heard(&self, peer: PeerId) {
        if let Some(entry) = self.pages().entries.get_mut(&peer) {
            entry.heard = (Instant::now(), SystemTime::now());
        }
    }

    /// A peer says where others are, all that it knows of.
    pub(super) fn hear(&self, from: PeerId, others: Vec<(PeerId, String)>) {
        self.pages().hearsay.insert(from, others);
        self.called.notify_waiters();
    }

    pub(super) fn heard_at(&self, peer: PeerId) -> Option<(Instant, SystemTime)> {
        self.pages().entries.get(&peer).map(|entry| entry.heard)
    }

    pub(super) fn announced(&self) -> BTreeMap<PeerId, Announced> {
        self.pages().entries.iter().map(|(peer, entry)| (*peer, entry.announced.clone())).collect()
    }

    /// Where the peers said they are, if that is news to who has seen the edition, which is brought up to date.
    pub(super) fn news(&self, seen: &mut u64) -> Vec<(PeerId, String)> {
        let pages = self.pages();
        if std::mem::replace(seen, pages.edition) == pages.edition {
            return Vec::new();
        }
        let said = pages.entries.iter().map(|(peer, entry)| (*peer, entry.announced.address.clone()));
        said.filter(|(_, address)| !address.is_empty()).collect()
    }

    /// Where the peer said it is, then where others say it is, then where the cluster has it.
    pub(super) fn addresses(&self, peer: PeerId, known: Option<&str>) -> Vec<String> {
        let pages = self.pages();
        let said = pages.entries.get(&peer).map(|entry| entry.announced.address.as_str());
        let told = pages.hearsay.values().flatten().filter(|(other, _)| *other == peer);
        let mut addresses: Vec<String> = Vec::new();
        for address in said.into_iter().chain(told.map(|(_, address)| address.as_str())).chain(known) {
            if !address.is_empty() && !addresses.iter().any(|other| other == address) {
                addresses.push(address.to_owned());
            }
        }
        addresses
    }

    pub(super) async fn somebody_called(&self) {
        self.called.notified().await;
    }
}
