//! What goes wrong, and how it ends.

use rand::{Rng, seq::IndexedRandom};

use super::{network::Weather, peer::Peer, plan::Fault, world::World};

/// Milliseconds that most faults last at most.
const SHORT: u64 = 400;
/// Long enough for several elections.
const LONG: u64 = 4_000;

impl World {
    /// One of the run's kinds of faults, against a random peer or the leader.
    pub(super) fn fault(&mut self) {
        let Some(fault) = self.plan.faults.choose(&mut self.rng).copied() else { return };
        let peers = self.running();
        let leaders = self.leaders();
        let among = if !leaders.is_empty() && self.rng.random_bool(0.4) { &leaders } else { &peers };
        let Some(victim) = among.choose(&mut self.rng).copied() else { return };
        let longest = if self.rng.random_bool(0.3) { LONG } else { SHORT };
        let lasting = self.rng.random_range(1..=longest);
        let until = self.now + lasting;
        self.note(|_| format!("fault: {fault:?} of peer {victim} for {lasting} ms"));
        match fault {
            Fault::Crash => self.crash(victim, lasting),
            Fault::CrashInWrite => {
                let (operations, effective) = (self.rng.random_range(0..8), self.rng.random());
                let peer = self.peers.get_mut(&victim).expect("it runs");
                peer.down_for = lasting;
                peer.medium.crash_after(operations, effective);
            }
            Fault::PowerCut => {
                for peer in peers {
                    let down_for = self.rng.random_range(1..=SHORT);
                    self.crash(peer, down_for);
                }
            }
            Fault::CutOneWay => {
                let other = *peers.choose(&mut self.rng).expect("the victim is one");
                self.network.cut(victim, other, until);
            }
            Fault::Isolate => self.split(&[victim], until),
            Fault::Split => {
                let group: Vec<u64> = peers.into_iter().filter(|_| self.rng.random()).collect();
                self.split(&group, until);
            }
            Fault::Pause => self.peers.get_mut(&victim).expect("it runs").paused_until = until,
            Fault::Transfer => {
                let to = *peers.choose(&mut self.rng).expect("the victim is one");
                self.transfer(victim, to);
            }
        }
    }

    /// Cuts the group off from all others, in both directions.
    fn split(&mut self, group: &[u64], until: u64) {
        for other in self.peers.keys().filter(|peer| !group.contains(peer)) {
            for peer in group {
                self.network.cut(*peer, *other, until);
                self.network.cut(*other, *peer, until);
            }
        }
    }

    /// Ends all faults.
    pub(super) fn calm_down(&mut self) {
        self.note(|_| "the faults are over".to_owned());
        self.calm = true;
        self.network.weather = Weather::FAIR;
        self.network.heal();
        for peer in self.peers.values_mut() {
            peer.calm_down();
        }
    }
}

impl Peer {
    fn calm_down(&mut self) {
        self.paused_until = 0;
        self.medium.content().crash = None;
    }
}
