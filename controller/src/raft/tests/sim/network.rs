//! The network between the peers: late, out of order, twice, or never; and links that are cut one way.

use std::collections::BTreeMap;

use rand::{Rng, rngs::StdRng};

/// What the links are like throughout a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) lost: f64,
    pub(super) twice: f64,
    /// Milliseconds, most of the time.
    pub(super) delay: u64,
    /// How many take far longer: what was sent in one term arrives in another.
    pub(super) astray: f64,
}

impl Weather {
    pub(super) const FAIR: Self = Self { lost: 0.0, twice: 0.0, delay: 2, astray: 0.0 };

    pub(super) fn draw(rng: &mut StdRng) -> Self {
        let mut pick = |choices: &[f64]| choices[rng.random_range(0..choices.len())];
        Self {
            lost: pick(&[0.0, 0.0, 0.01, 0.05, 0.2]),
            twice: pick(&[0.0, 0.0, 0.02, 0.2]),
            delay: pick(&[1.0, 5.0, 30.0, 150.0]) as u64,
            astray: pick(&[0.0, 0.01, 0.05]),
        }
    }
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) weather: Weather,
    /// From whom to whom nothing gets through, and until when.
    cuts: BTreeMap<(u64, u64), u64>,
}

const ASTRAY: u64 = 3_000;

impl Network {
    pub(super) fn new(weather: Weather) -> Self {
        Self { weather, cuts: BTreeMap::new() }
    }

    pub(super) fn cut(&mut self, from: u64, to: u64, until: u64) {
        let end = self.cuts.entry((from, to)).or_default();
        *end = until.max(*end);
    }

    pub(super) fn heal(&mut self) {
        self.cuts.clear();
    }

    pub(super) fn is_cut(&self, now: u64, from: u64, to: u64) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|until| now < *until)
    }

    /// When the copies of a message that is sent now arrive, if any does.
    pub(super) fn arrivals(&self, rng: &mut StdRng, now: u64, from: u64, to: u64) -> Vec<u64> {
        let Weather { lost, twice, delay, astray } = self.weather;
        if self.is_cut(now, from, to) || rng.random_bool(lost) {
            return Vec::new();
        }
        let copies = if rng.random_bool(twice) { 2 } else { 1 };
        let mut arrival = || {
            let longest = if rng.random_bool(astray) { ASTRAY } else { delay };
            now + rng.random_range(0..=longest)
        };
        (0..copies).map(|_| arrival()).collect()
    }
}
