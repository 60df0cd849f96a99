//! The controllers of the cluster, and what is set for it as a whole.
//!
//! What is here is what is wanted: who belongs, and who is to vote. Who votes at this moment is raft's configuration,
//! which the leader brings in line with this ([`crate::leader::membership`]); so every change of members that was
//! begun is carried on by whoever leads next.

use std::sync::Arc;

use roster_proto::{
    id::{ControllerName, PeerId, Version},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{
    ClusterState, Holder,
    command::{Command, Entry, Outcome, Refusal},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerInfo {
    /// Minted when it joined; never used again.
    pub id: PeerId,
    pub name: ControllerName,
    /// HOST:PORT at which the others reach it; empty while the only controller listens nowhere.
    pub address: String,
    /// What it runs.
    pub release: String,
    /// The newest version of the controllers' protocol that it speaks.
    #[serde(default)]
    pub protocol: u32,
    /// Keeps up without a vote, and stands in for a voter that dies.
    pub spare: bool,
    /// Is to be taken out of raft's configuration and then forgotten.
    pub leaving: bool,
    /// It does not answer the leader, which wrote that down then.
    #[serde(default)]
    pub silent_since: Option<Timestamp>,
    pub joined: Timestamp,
}

impl ControllerInfo {
    /// Is to have a vote.
    pub fn votes(&self) -> bool {
        !self.spare && !self.leaving
    }
}

/// Microseconds throughout, so that the log needs no type of its own for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// A voter that was unreachable this long is replaced by a spare; 0: never.
    pub replace_controller_after: u64,
    /// How long the brake holds by itself; 0: until it is released.
    pub brake_for: u64,
    /// Of new certificates.
    pub certificate_lifetime: u64,
}

const SECOND: u64 = 1_000_000;
const DAY: u64 = 24 * 60 * 60 * SECOND;

/// Of those settings that may be 0.
pub const SHORTEST_DELAY: u64 = SECOND;

/// Renewal must have a chance.
pub const SHORTEST_CERTIFICATE: u64 = 60 * SECOND;

/// Beyond it a mistake is likelier than a wish.
pub const LONGEST_CERTIFICATE: u64 = 3_650 * DAY;

impl Default for Settings {
    fn default() -> Self {
        Self { replace_controller_after: 120 * SECOND, brake_for: 600 * SECOND, certificate_lifetime: 90 * DAY }
    }
}

impl ClusterState {
    pub fn controller_named(&self, name: &ControllerName) -> Option<&ControllerInfo> {
        self.controllers.values().map(AsRef::as_ref).find(|controller| controller.name == *name)
    }

    /// The cluster as it goes on from a backup: `me` is its only controller, and the others are not believed any more.
    pub fn restored(mut self, me: ControllerInfo, at: Timestamp) -> Self {
        self.outrun(at);
        let security = Arc::make_mut(&mut self.security);
        for gone in self.controllers.values().filter(|gone| gone.name != me.name) {
            let holder = Holder::Controller(gone.name.to_string());
            // The name is free for one that joins anew.
            security.grants.remove(&holder);
            security.revoked.insert(holder, at);
        }
        self.controllers = [(me.id, Arc::new(me))].into_iter().collect();
        self
    }

    /// The cluster as it goes on with what one controller has after the others were lost: `me` has a vote and is alone,
    /// the others are forgotten and not believed any more. `Err`: what must be done about it before.
    pub fn recovered(&self, me: PeerId, at: Timestamp) -> Result<Self, Refusal> {
        let mut next = self.clone();
        next.outrun(at);
        let others: Vec<PeerId> = self.controllers.keys().copied().filter(|id| *id != me).collect();
        if let Some(own) = next.controllers.get_mut(&me) {
            let own = Arc::make_mut(own);
            (own.spare, own.leaving, own.silent_since) = (false, false, None);
        }
        for id in others {
            let version = Version(next.version.0 + 1);
            if let Outcome::Refused(refusal) =
                next.apply(version, &Entry::new(at, Command::RemoveController { id })).outcome
            {
                return Err(refusal);
            }
        }
        Ok(next)
    }

    /// Every version that was given out and is not known of here lies behind from now on, so that agents take what they
    /// are sent.
    fn outrun(&mut self, at: Timestamp) {
        // Beyond what a million commands in each second could have reached by now.
        let by_the_clock = (at.0 / SECOND) << 20;
        let version = Version(by_the_clock.max(self.version.0 + 1));
        (self.version, self.plan_base, self.intent_base) = (version, version, version);
        let ids: Vec<_> = self.nodes.keys().cloned().collect();
        for id in ids {
            if let Some(node) = self.nodes.get_mut(&id) {
                Arc::make_mut(node).generation = version;
            }
        }
    }
}
