//! A small generator: the order of faults must be repeatable, not good randomness (xorshift, Marsaglia 2003).

#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Seeded by `ROSTER_CHAOS_SEED`, or as told; the seed is printed, so that a failure can be played again.
    pub fn seeded(default: u64) -> Self {
        let seed = std::env::var("ROSTER_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default);
        eprintln!("seed {seed} (ROSTER_CHAOS_SEED repeats a run)");
        Self(seed.max(1))
    }

    /// For somebody else: what they roll does not depend on who rolls first.
    pub fn another(&mut self) -> Self {
        const APART: u64 = 0x9e37_79b9_7f4a_7c15;
        self.roll(1);
        Self((self.0 ^ APART).max(1))
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).expect("less than sides")
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }
}
