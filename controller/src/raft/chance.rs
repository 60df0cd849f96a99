//! What is left to chance, all of it from a seed.

use ::raft::eraftpb::ConfState;

use super::driver::ELECTION_TICKS;

/// When the peer stands for election, in ticks since it heard of a leader. The voters take turns, in another order in
/// each term, so that two rarely stand at once and no leader is found; the seed's bit is for when they do, on a slow
/// network. None stands before all the others are ready to give up on the leader, a tick after the shortest timeout.
pub(super) fn election_timeout(conf: &ConfState, id: u64, term: u64, seed: u64) -> usize {
    let rank = conf.voters.iter().filter(|voter| **voter < id).count() as u64;
    let turn = rank.wrapping_add(term) % conf.voters.len().max(1) as u64;
    let bit = mix(seed ^ mix(term)) % 2;
    ELECTION_TICKS + 1 + (2 * turn + bit) as usize % (ELECTION_TICKS - 1)
}

/// splitmix64: the same bits for the same seed, and no likeness between those of two seeds.
pub(super) fn mix(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_voters_of_a_small_cluster_stand_at_once() {
        for voters in 1..=4 {
            let conf = ConfState { voters: (1..=voters).collect(), ..ConfState::default() };
            for term in 0..50 {
                let mut timeouts: Vec<_> = (1..=voters).map(|id| election_timeout(&conf, id, term, 7 * id)).collect();
                assert!(timeouts.iter().all(|ticks| (ELECTION_TICKS + 1..2 * ELECTION_TICKS).contains(ticks)));
                timeouts.sort_unstable();
                timeouts.dedup();
                assert_eq!(timeouts.len() as u64, voters);
            }
        }
    }
}
