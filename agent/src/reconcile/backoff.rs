//! How long to wait before trying a failed step again. Pure: the randomness is an argument.

use std::time::Duration;

/// Doubles from `base` up to `cap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub cap: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row (counted from 1).
    ///
    /// `jitter` in `0.0..=1.0` takes up to half of it away, so that what failed together is not tried again together.
    pub fn delay(self, failures: u32, jitter: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.base.saturating_mul(1 << doublings).min(self.cap);
        full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_millis(10), cap: Duration::from_secs(1) };

    #[test]
    fn doubles_up_to_the_cap() {
        let delays: Vec<u128> = (1..=9).map(|n| BACKOFF.delay(n, 0.0).as_millis()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(BACKOFF.delay(u32::MAX, 0.0), BACKOFF.cap);
    }

    #[test]
    fn jitter_takes_away_at_most_half() {
        assert_eq!(BACKOFF.delay(1, 1.0), Duration::from_millis(5));
        assert_eq!(BACKOFF.delay(1, 7.0), Duration::from_millis(5));
        assert_eq!(BACKOFF.delay(0, 0.0), Duration::from_millis(10));
    }
}
