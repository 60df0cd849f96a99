//! What a run is made of: drawn from the seed, a different mixture each time. A run that has every kind of fault at
//! once rarely gets far, so each kind is left out of about half of them.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::network::Weather;
use crate::raft::driver::SnapshotPolicy;

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) voters: u64,
    /// Milliseconds of faults; afterwards all is well and the cluster has to recover.
    pub(super) duration: u64,
    pub(super) weather: Weather,
    pub(super) snapshots: SnapshotPolicy,
    /// Milliseconds between two requests of clients, on average.
    pub(super) request_every: u64,
    /// How many bytes a command carries at most.
    pub(super) ballast: usize,
    /// Milliseconds between two faults, on average.
    pub(super) fault_every: u64,
    /// May be empty.
    pub(super) faults: Vec<Fault>,
    /// How many requests in a hundred change the members.
    pub(super) changes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Stops a peer between two steps.
    Crash,
    /// Stops it within one of its next writes; that write may reach the disk or not.
    CrashInWrite,
    /// Stops all of them at once.
    PowerCut,
    /// Nothing gets from one to another.
    CutOneWay,
    /// Nothing gets to or from a peer.
    Isolate,
    /// Two groups.
    Split,
    /// A peer's clock and network stand still; it does not know.
    Pause,
    /// The leader is asked to hand over.
    Transfer,
}

const FAULTS: [Fault; 8] = [
    Fault::Crash,
    Fault::CrashInWrite,
    Fault::PowerCut,
    Fault::CutOneWay,
    Fault::Isolate,
    Fault::Split,
    Fault::Pause,
    Fault::Transfer,
];

impl Plan {
    pub(super) fn draw(rng: &mut StdRng) -> Self {
        let mut pick = |choices: &[u64]| *choices.choose(rng).expect("there are some");
        let voters = pick(&[3, 3, 3, 3, 3, 3, 5, 5, 1, 2]);
        let entries = pick(&[3, 8, 20, 60]);
        let request_every = pick(&[10, 30, 80]);
        let ballast = pick(&[0, 0, 0, 0, 0, 0, 0, 50, 500, 15_000]) as usize;
        let fault_every = pick(&[80, 200, 500]);
        let changes = pick(&[0, 0, 5, 30]) as u32;
        let duration = pick(&[3_000, 5_000, 8_000]);
        Self {
            voters,
            duration,
            weather: Weather::draw(rng),
            snapshots: SnapshotPolicy { entries, bytes: 64 << 10 },
            request_every,
            ballast,
            fault_every,
            faults: FAULTS.into_iter().filter(|_| rng.random_bool(0.5)).collect(),
            changes,
        }
    }
}
