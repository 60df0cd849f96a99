//! The entries just before the log's snapshot, in memory only, for followers that lag behind a little: without them
//! each snapshot would send everybody who misses one message a snapshot too.

use std::collections::VecDeque;

use super::record::Link;

/// While a snapshot is being sent, which is worth nothing without the entries after it, so many times more are kept.
const WHILE_SENDING: usize = 8;
/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD: usize = 192;

#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Index and term of the entry before the first.
    before: (u64, u64),
    links: VecDeque<Link>,
    size: usize,
}

impl Tail {
    /// Of a log whose first entry follows that of index and term `before`.
    pub(super) fn new(before: (u64, u64)) -> Self {
        Self { before, ..Self::default() }
    }

    pub(super) fn before(&self) -> (u64, u64) {
        self.before
    }

    pub(super) fn get(&self, index: u64) -> Option<&Link> {
        self.links.get(usize::try_from(index.checked_sub(self.before.0 + 1)?).ok()?)
    }

    /// `link` follows the last.
    pub(super) fn push(&mut self, link: Link) {
        self.size += link.length + ENTRY_OVERHEAD;
        self.links.push_back(link);
    }

    /// Lets go of the oldest that are more than `bytes`.
    pub(super) fn trim(&mut self, bytes: usize, sending: bool) {
        let limit = if sending { WHILE_SENDING * bytes } else { bytes };
        while let Some(Link { entry, length, .. }) = self.links.front() {
            if self.size <= limit {
                return;
            }
            self.before = (entry.index, entry.term);
            self.size -= length + ENTRY_OVERHEAD;
            self.links.pop_front();
        }
    }
}
