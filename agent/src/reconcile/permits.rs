//! How many steps of each kind are carried out at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::plan::Verb;

/// Starts are bound by cores, removals by the disk; a preparation mostly waits.
const PREPARES: usize = 32;
const STARTS: usize = 12;
const ENDS: usize = 32;
const REMOVALS: usize = 4;

#[derive(Clone, Debug)]
pub(super) struct Permits {
    prepare: Arc<Semaphore>,
    start: Arc<Semaphore>,
    end: Arc<Semaphore>,
    remove: Arc<Semaphore>,
}

impl Default for Permits {
    fn default() -> Self {
        let of = |count| Arc::new(Semaphore::new(count));
        Self { prepare: of(PREPARES), start: of(STARTS), end: of(ENDS), remove: of(REMOVALS) }
    }
}

impl Permits {
    pub(super) fn of(&self, verb: Verb) -> Arc<Semaphore> {
        match verb {
            Verb::Prepare => &self.prepare,
            Verb::Start => &self.start,
            Verb::Remove | Verb::Keep => &self.remove,
            _ => &self.end,
        }
        .clone()
    }
}
