//! Several peers: electing, replicating, losing leaders, catching up, reading, and coming back from disk.

use roster_proto::id::{PeerId, Version};

use super::{
    super::{
        Begin, Machine, MemberChange, OpenError, ProposeError, ReadError,
        open::{Edit, recover_on, restore_to},
        reads::READ_TICKS,
    },
    Now, Words,
    peers::Peers,
};

#[test]
fn a_peer_that_is_alone_needs_no_ticks_and_one_with_company_does() {
    let mut peers = Peers::one();
    assert!(!peers.driver(1).needs_ticks());
    peers.start(2, Begin::Joining);
    assert!(!peers.driver(2).needs_ticks());
    peers.change(&[MemberChange::AddLearner(PeerId(2))]).unwrap();
    assert!(peers.driver(1).needs_ticks());
    peers.change(&[MemberChange::Remove(PeerId(2))]).unwrap();
    assert!(!peers.driver(1).needs_ticks());
}

#[test]
fn what_a_majority_has_is_answered_and_reaches_everybody() {
    let mut peers = Peers::voters(3);
    peers.cut.insert(3);
    for word in 0..20 {
        peers.say(&word.to_string());
    }
    peers.cut.insert(2);
    let mut waits = peers.propose(1, "waits");
    assert!(waits.try_recv().is_err(), "no majority has it");
    peers.cut.clear();
    peers.tick(3);
    waits.try_recv().unwrap().unwrap();
    assert_eq!(peers.assert_same().len(), 21);
    assert_eq!(peers.drivers[&3].status().borrow().leader, Some(PeerId(1)));
}

#[test]
fn a_follower_names_the_leader_instead_of_proposing() {
    let mut peers = Peers::voters(3);
    let refused = peers.propose(2, "refused").try_recv().unwrap();
    assert!(matches!(refused, Err(ProposeError::NotLeader { leader: Some(PeerId(1)) })), "{refused:?}");
    assert_eq!(peers.assert_same().len(), 0);
}

#[test]
fn another_leads_when_the_leader_dies_and_nothing_answered_is_lost() {
    let mut peers = Peers::voters(3);
    for round in 0..6 {
        for word in 0..15 {
            peers.say(&format!("{round} {word}"));
        }
        let leader = peers.leader();
        peers.kill(leader);
        let next = peers.elect();
        assert_ne!(next, leader);
        peers.say(&format!("{round} meanwhile"));
        peers.start(leader, Begin::Joining);
        assert_eq!(peers.assert_same().len(), 16 * (round + 1));
    }
}

#[test]
fn a_leader_that_is_cut_off_steps_down_and_its_proposals_fail() {
    let mut peers = Peers::voters(3);
    peers.say("kept");
    peers.cut.insert(1);
    let mut lost = peers.propose(1, "overruled");
    let leader = peers.elect();
    assert_ne!(leader, 1);
    peers.say("instead");
    peers.tick(20);
    assert!(matches!(lost.try_recv().unwrap(), Err(ProposeError::LeadershipLost { .. })));
    assert_eq!(peers.drivers[&1].leadership().borrow().leader, None);
    peers.cut.clear();
    assert_eq!(peers.assert_same(), ["kept", "instead"]);
}

#[test]
fn one_that_was_cut_off_disturbs_nobody_when_it_returns() {
    let mut peers = Peers::voters(3);
    peers.cut.insert(3);
    peers.tick(200);
    let before = peers.drivers[&1].status().borrow().term;
    peers.cut.clear();
    peers.tick(50);
    assert_eq!((peers.leader(), peers.drivers[&1].status().borrow().term), (1, before));
}

#[test]
fn a_learner_catches_up_by_a_snapshot_while_writes_go_on() {
    let mut peers = Peers::voters(3);
    for word in 0..200 {
        peers.say(&word.to_string());
    }
    peers.held = Some(Vec::new());
    peers.start(4, Begin::Joining);
    peers.change(&[MemberChange::AddLearner(PeerId(4))]).unwrap();
    peers.tick(5);
    let index = |peers: &Peers| {
        let held = peers.held.as_ref().unwrap();
        assert_eq!(held.len(), 1);
        held[0].message.get_snapshot().get_metadata().index
    };
    let first = index(&peers);
    // Many times what makes the log take a snapshot of its own.
    for word in 200..700 {
        peers.say(&word.to_string());
    }
    assert!(peers.drivers[&1].status().borrow().progress[&PeerId(4)].snapshotting);
    // What failed is sent again as it was, so that a transfer can go on where it broke off.
    peers.release(false);
    peers.held = Some(Vec::new());
    peers.tick(5);
    assert_eq!(index(&peers), first);
    for word in 700..800 {
        peers.say(&word.to_string());
    }
    let before = peers.snapshots;
    peers.release(true);
    assert_eq!(peers.assert_same().len(), 800);
    assert_eq!(peers.snapshots, before + 1, "the log still held what came after the snapshot");
    // Nobody needs it any more.
    peers.tick(1);
    assert!(peers.drivers[&1].node.store().offers.sent.is_none());
}

#[test]
fn a_voter_that_lacks_more_than_the_log_holds_is_sent_a_snapshot() {
    let mut peers = Peers::voters(3);
    peers.cut.insert(3);
    for word in 0..150 {
        peers.say(&format!("{word} {}", "x".repeat(2000)));
    }
    peers.cut.clear();
    let before = peers.snapshots;
    assert_eq!(peers.assert_same().len(), 150);
    assert_eq!(peers.snapshots, before + 1);
    peers.say("on");
    peers.kill(3);
    peers.start(3, Begin::Joining);
    assert_eq!(peers.assert_same().len(), 151);
}

#[test]
fn a_crash_while_a_snapshot_is_installed_leaves_the_log_before_or_after() {
    const WORDS: usize = 70;
    let mut peers = Peers::voters(2);
    peers.join(3);
    peers.say("before");
    peers.tick(3);
    peers.cut.insert(3);
    // Several batches of parts.
    for word in 1..WORDS {
        peers.say(&format!("{word} {}", "x".repeat(100_000)));
    }
    peers.cut.clear();
    peers.held = Some(Vec::new());
    peers.tick(5);
    let packet = peers.held.take().unwrap().pop().unwrap();
    let mut snapshot = packet.message;
    snapshot.mut_snapshot().data = packet.machine.unwrap().bytes();
    let before = peers.media[&3].copy();
    let (mut unharmed, mut old, mut new) = (0, 0, 0);
    for operations in 0.. {
        for effective in [false, true] {
            peers.kill(3);
            peers.media.insert(3, before.copy());
            peers.start(3, Begin::Joining);
            peers.media[&3].crash_after(operations, effective);
            let failed = peers.driver(3).step(snapshot.clone()).now().is_err();
            unharmed += u32::from(!failed);
            peers.kill(3);
            peers.start(3, Begin::Joining);
            match peers.list(3).len() {
                // Its disk need not know yet that the word is committed.
                0 | 1 => old += 1,
                WORDS => new += 1,
                other => panic!("{other} words"),
            }
        }
        if unharmed > 0 {
            break;
        }
    }
    assert!(old > 3 && new > unharmed, "{old} {new} {unharmed}");
    assert_eq!(peers.assert_same().len(), WORDS);
}

#[test]
fn reads_hold_what_was_answered_on_any_peer() {
    let mut peers = Peers::voters(3);
    peers.join(4);
    for round in 0..10 {
        peers.say(&round.to_string());
        for peer in 1..=4 {
            let state = peers.read(peer).try_recv().unwrap().unwrap();
            assert_eq!(state.0.len(), round + 1, "peer {peer}");
        }
    }
}

#[test]
fn reads_at_the_same_time_share_a_round() {
    let mut peers = Peers::voters(3);
    peers.say("word");
    let readers: Vec<_> = (0..100)
        .map(|_| {
            let (answer, outcome) = tokio::sync::oneshot::channel();
            peers.driver(2).read_index(answer);
            outcome
        })
        .collect();
    peers.driver(2).settle().now().unwrap();
    assert_eq!(peers.wire.under_way(), 1);
    peers.pump();
    for mut reader in readers {
        assert_eq!(reader.try_recv().unwrap().unwrap().0.len(), 1);
    }
}

#[test]
fn a_leader_that_is_cut_off_answers_no_reads() {
    let mut peers = Peers::voters(3);
    peers.say("old");
    peers.cut.insert(1);
    let mut stale = peers.read(1);
    peers.elect();
    peers.say("new");
    for _ in 0..READ_TICKS - 5 {
        peers.tick(1);
        assert!(!matches!(stale.try_recv(), Ok(Ok(_))));
    }
    let mut later = peers.read(1);
    peers.tick(READ_TICKS as usize);
    assert!(matches!(later.try_recv().unwrap(), Err(ReadError::NoLeader)));
}

#[test]
fn a_read_waits_for_the_next_leader() {
    let mut peers = Peers::voters(3);
    peers.say("old");
    peers.kill(1);
    let mut reading = peers.read(2);
    assert!(reading.try_recv().is_err());
    peers.elect();
    peers.say("new");
    peers.tick(5);
    assert_eq!(reading.try_recv().unwrap().unwrap().list()[0], "old");
}

#[test]
fn without_a_majority_reads_end_with_no_leader() {
    let mut peers = Peers::voters(3);
    peers.kill(1);
    peers.kill(2);
    let mut reading = peers.read(3);
    peers.tick(READ_TICKS as usize);
    assert!(matches!(reading.try_recv().unwrap(), Err(ReadError::NoLeader)));
    let mut waits_to_join = Peers::one();
    waits_to_join.start(2, Begin::Joining);
    assert!(matches!(waits_to_join.read(2).try_recv().unwrap(), Err(ReadError::NoLeader)));
}

#[test]
fn every_role_comes_back_from_disk() {
    let mut peers = Peers::voters(3);
    peers.join(4);
    peers.start(5, Begin::Joining);
    for word in 0..70 {
        peers.say(&word.to_string());
    }
    let status = peers.drivers[&1].status().borrow().clone();
    // The leader, a follower, a learner, one that nobody has contacted yet.
    for peer in [1, 2, 4, 5] {
        peers.kill(peer);
        peers.start(peer, Begin::Joining);
        if peer != 5 {
            let again = peers.drivers[&peer].status().borrow().clone();
            assert_eq!((again.voters, again.learners), (status.voters.clone(), status.learners.clone()), "peer {peer}");
        }
        peers.elect();
    }
    assert!(peers.list(5).is_empty());
    peers.join(5);
    // All at once, as by a power cut.
    for peer in 1..=5 {
        peers.kill(peer);
    }
    for peer in 1..=5 {
        peers.start(peer, Begin::Joining);
    }
    peers.elect();
    assert_eq!(peers.assert_same().len(), 70);
}

#[test]
fn a_peer_that_forgot_what_it_acknowledged_is_told() {
    let mut peers = Peers::voters(3);
    let early = peers.media[&3].copy();
    for word in 0..5 {
        peers.say(&word.to_string());
    }
    peers.tick(3);
    peers.kill(3);
    peers.media.insert(3, early);
    peers.start(3, Begin::Joining);
    let mut told = None;
    for _ in 0..20 {
        peers.driver(1).tick();
        peers.driver(1).settle().now().unwrap();
        for message in peers.wire.drain_to(3) {
            let result = peers.driver(3).step(message).now();
            told = told.or(result.err());
        }
    }
    assert!(matches!(told, Some(super::super::Fault::Forgotten { .. })), "{told:?}");
}

#[test]
fn the_last_one_goes_on_alone_once_recovered() {
    let mut peers = Peers::voters(3);
    peers.join(4);
    for word in 0..70 {
        peers.say(&word.to_string());
    }
    peers.tick(5);
    // A voter, and a learner.
    for peer in [2, 4] {
        let medium = peers.media[&peer].copy();
        let refused = recover_on::<Words, _>("simulated".as_ref(), medium.disk(), Box::new(|_, _, _| Err("no".into())));
        assert!(matches!(refused, Err(OpenError::NotEdited { .. })), "{refused:?}");
        let mut before = Version(0);
        let edit = |words: &mut Words, me: PeerId, version: Version| {
            before = version;
            assert_eq!((me, words.0.len()), (PeerId(peer), 70), "refused before, nothing was changed");
            words.0.pop_back();
            Ok(Version(version.0 + 1_000))
        };
        let recovered = recover_on("simulated".as_ref(), medium.disk(), Box::new(edit)).unwrap();
        assert_eq!(recovered, (PeerId(peer), Version(before.0 + 1_000)));
        let mut alone = Peers::one();
        alone.kill(1);
        alone.media.insert(peer, medium);
        alone.start(peer, Begin::Joining);
        assert_eq!(alone.leader(), peer);
        assert_eq!(alone.list(peer).len(), 69);
        alone.say("on");
        // And it is a cluster that grows again.
        alone.join(9);
        alone.change(&[MemberChange::Promote(PeerId(9))]).unwrap();
        alone.say("together");
        alone.kill(peer);
        alone.start(peer, Begin::Joining);
        alone.elect();
        assert_eq!(alone.assert_same().len(), 71);
    }
    let unchanged: Edit<Words> = Box::new(|_, _, version| Ok(version));
    let empty = recover_on("simulated".as_ref(), super::sim_disk::Medium::default().disk(), unchanged);
    assert!(matches!(empty, Err(OpenError::Nothing { .. })), "{empty:?}");
}

#[test]
fn a_backup_becomes_a_store_whose_versions_go_on() {
    let mut peers = Peers::one();
    for word in 0..70 {
        peers.say(&word.to_string());
    }
    let backup = peers.drivers[&1].published().borrow().clone();
    let version = backup.0.back().unwrap().0;
    let restored = super::sim_disk::Medium::default();
    let restore = |bytes: &[u8]| {
        restore_to::<Words, _>("simulated".as_ref(), restored.disk(), Some(PeerId(7)), Version(version), bytes)
    };
    assert!(matches!(restore(b"nonsense"), Err(OpenError::Replay { .. })));
    assert_eq!(restore(&backup.encode()).unwrap(), PeerId(7));
    assert!(matches!(restore(&backup.encode()), Err(OpenError::Exists { .. })));
    let mut again = Peers::one();
    again.kill(1);
    again.media.insert(7, restored.clone());
    again.start(7, Begin::Joining);
    again.say("on");
    let state = again.drivers[&7].published().borrow().clone();
    assert_eq!(state.0.len(), 71);
    assert!(state.0.back().unwrap().0 > version);
}

/// The simulation depends on it.
#[test]
fn the_same_seed_makes_the_same_run() {
    let run = || {
        let mut peers = Peers::voters(3);
        for word in 0..10 {
            peers.say(&word.to_string());
        }
        peers.kill(1);
        let leader = peers.elect();
        peers.say("end");
        let statuses = peers.drivers.values().map(|driver| driver.status().borrow().clone()).collect::<Vec<_>>();
        (leader, peers.drivers.values().map(|driver| driver.now).collect::<Vec<_>>(), statuses)
    };
    let first = run();
    for _ in 0..5 {
        assert_eq!(run(), first);
    }
}
