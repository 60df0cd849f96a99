//! The one place where the agent's logic reads a clock.
//!
//! What is reported is told by the wall clock, so that it can be compared between hosts. Setting it back delays retries
//! and kills that are under way by as much, and nothing else. Leases go by the time since boot, which nobody sets and
//! which passes while the host sleeps.

use std::time::{Duration, SystemTime};

use nix::{
    libc,
    time::{ClockId, clock_gettime},
};
use roster_proto::time::Timestamp;

/// A moment of this boot of this host: CLOCK_BOOTTIME, clock_gettime(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub Duration);

impl BootTime {
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::from_raw(libc::CLOCK_BOOTTIME)).expect("Linux has this clock since 2.6.39");
        Self(now.into())
    }

    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// Without a moment, for ever.
pub(crate) async fn sleep_until(moment: Option<Timestamp>) {
    match moment {
        Some(moment) => tokio::time::sleep(moment.since(now())).await,
        None => std::future::pending().await,
    }
}
