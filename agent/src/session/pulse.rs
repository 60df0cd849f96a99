//! Heartbeats: numbered, and each to be answered by a leader that a majority has confirmed since.
//!
//! An answer that does not come says that this controller leads no longer, or cannot be reached, well before TCP would.
//! One that comes extends the node's lease, from when the heartbeat was sent: what the clock of the controller, or of
//! the network between, did meanwhile does not matter.

use std::{collections::VecDeque, time::Duration};

use roster_proto::wire;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::clock::BootTime;

/// Bounds on what a controller may ask for as heartbeat period, and on what it may promise.
const PERIOD_MIN: Duration = Duration::from_millis(20);
const PERIOD_MAX: Duration = Duration::from_secs(60);
const LEASE_MAX: Duration = Duration::from_secs(180);
/// Heartbeats that may be unanswered at a time; silence ends the session before there are more.
const UNANSWERED: usize = 16;

#[derive(Debug)]
pub(super) struct Pulse {
    interval: Interval,
    /// Without an answer for longer than this the controller counts as lost.
    patience: Duration,
    /// One is to be sent.
    due: bool,
    last: u64,
    unanswered: VecDeque<Sent>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u64,
    at: Instant,
    by_boot: BootTime,
}

impl Pulse {
    /// The first heartbeat is due at once.
    pub(super) fn new(period: Duration) -> Self {
        let period = period.clamp(PERIOD_MIN, PERIOD_MAX);
        let mut interval = tokio::time::interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, patience: period * 3 / 2, due: false, last: 0, unanswered: VecDeque::new() }
    }

    /// Resolves once in a period.
    pub(super) async fn tick(&mut self) {
        self.interval.tick().await;
        self.due = true;
    }

    pub(super) fn is_due(&self) -> bool {
        self.due && self.unanswered.len() < UNANSWERED
    }

    /// The next one, to be sent now.
    pub(super) fn beat(&mut self) -> wire::Heartbeat {
        self.due = false;
        self.last += 1;
        self.unanswered.push_back(Sent { number: self.last, at: Instant::now(), by_boot: BootTime::now() });
        wire::Heartbeat { number: self.last }
    }

    /// Until when singletons may run by this answer, if it says so.
    pub(super) fn answered(&mut self, ack: wire::HeartbeatAck) -> Option<BootTime> {
        let sent = self.unanswered.iter().find(|sent| sent.number == ack.number).copied()?;
        self.unanswered.retain(|other| other.number > ack.number);
        let lease = Duration::from_micros(ack.lease).min(LEASE_MAX);
        (!lease.is_zero()).then(|| sent.by_boot.plus(lease))
    }

    /// When the controller counts as lost unless it answers.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.unanswered.front().map(|sent| sent.at + self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(1);

    fn ack(number: u64, lease: Duration) -> wire::HeartbeatAck {
        wire::HeartbeatAck { number, lease: lease.as_micros() as u64 }
    }

    #[tokio::test]
    async fn a_lease_counts_from_when_the_heartbeat_was_sent() {
        let mut pulse = Pulse::new(PERIOD);
        pulse.tick().await;
        assert!(pulse.is_due());
        let before = BootTime::now();
        assert_eq!(pulse.beat().number, 1);
        let after = BootTime::now();
        assert!(!pulse.is_due());
        pulse.beat();
        let until = pulse.answered(ack(1, 3 * PERIOD)).expect("a lease");
        assert!((before.plus(3 * PERIOD)..=after.plus(3 * PERIOD)).contains(&until));
        assert_eq!(pulse.answered(ack(1, 3 * PERIOD)), None, "answered already");
        assert_eq!(pulse.answered(ack(7, 3 * PERIOD)), None, "never sent");
        assert_eq!(pulse.answered(ack(2, Duration::ZERO)), None, "no promise");
        let sent = BootTime::now();
        pulse.beat();
        assert!(pulse.answered(ack(3, Duration::MAX / 2)).expect("a lease") < sent.plus(2 * LEASE_MAX));
    }

    #[tokio::test]
    async fn the_oldest_unanswered_heartbeat_sets_the_deadline() {
        let mut pulse = Pulse::new(PERIOD);
        assert_eq!(pulse.deadline(), None);
        pulse.beat();
        let first = pulse.deadline().expect("a deadline");
        assert!(first <= Instant::now() + 3 * PERIOD / 2);
        pulse.beat();
        assert_eq!(pulse.deadline(), Some(first));
        pulse.answered(ack(2, PERIOD));
        assert_eq!(pulse.deadline(), None, "a later answer is one for the earlier, too");
    }
}
