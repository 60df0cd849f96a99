//! What became of the latest requests that named themselves, so that one that is sent again is not done again.

use std::{borrow::Borrow, cmp::Ordering, sync::Arc};

use imbl::{OrdSet, Vector};
use roster_proto::id::Version;
use serde::{Deserialize, Serialize};

use super::command::Outcome;

/// Older ones are forgotten; a client gives up long before.
pub const REQUESTS_KEPT: usize = 4_096;

/// The longest id of a request; a longer one is not remembered.
pub const MAX_REQUEST_ID: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answered {
    pub(super) id: String,
    pub(super) version: Version,
    pub(super) outcome: Outcome,
}

/// In the order in which they came.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Requests {
    kept: Vector<Arc<Answered>>,
    by_id: OrdSet<ById>,
}

/// An index that is copied with the state: the ids themselves are not.
#[derive(Clone, Debug)]
struct ById(Arc<Answered>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.id
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

impl Requests {
    pub(super) fn get(&self, id: &str) -> Option<&Answered> {
        self.by_id.get(id).map(|ById(answered)| answered.as_ref())
    }

    /// The id must be a new one.
    pub(super) fn remember(&mut self, answered: Answered) {
        if answered.id.len() > MAX_REQUEST_ID {
            return;
        }
        let answered = Arc::new(answered);
        self.by_id.insert(ById(answered.clone()));
        self.kept.push_back(answered);
        while self.kept.len() > REQUESTS_KEPT {
            if let Some(oldest) = self.kept.pop_front() {
                self.by_id.remove(oldest.id.as_str());
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Answered> {
        self.kept.iter().map(Arc::as_ref)
    }
}

impl FromIterator<Answered> for Requests {
    fn from_iter<I: IntoIterator<Item = Answered>>(answered: I) -> Self {
        let mut requests = Self::default();
        answered.into_iter().for_each(|answered| requests.remember(answered));
        requests
    }
}
