//! The one place where the agent's logic reads the clock.
//!
//! It is the wall clock, so that what is reported can be compared between hosts. Setting it back delays retries and
//! kills that are under way by as much, and nothing else.

use std::time::SystemTime;

use roster_proto::time::Timestamp;

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}
