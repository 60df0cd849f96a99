//! Changes of the members: what they bring about, and which are refused.

use roster_proto::id::PeerId;

use super::{
    super::{Begin, MemberChange, MembersError},
    Now,
    peers::Peers,
};

use MemberChange::{AddLearner, Demote, Promote, Remove};

fn voters(peers: &Peers, peer: u64) -> Vec<u64> {
    let status = peers.drivers[&peer].status().borrow().clone();
    assert!(status.outgoing.is_empty());
    status.voters.iter().map(|voter| voter.0).collect()
}

#[test]
fn a_cluster_grows_and_shrinks() {
    let mut peers = Peers::voters(5);
    for word in 0..30 {
        peers.say(&word.to_string());
    }
    assert_eq!(voters(&peers, 1), [1, 2, 3, 4, 5]);
    peers.change(&[Demote(PeerId(5))]).unwrap();
    assert_eq!(voters(&peers, 1), [1, 2, 3, 4]);
    assert_eq!(peers.drivers[&1].status().borrow().learners, [PeerId(5)]);
    peers.change(&[Promote(PeerId(5))]).unwrap();
    // By way of a joint configuration.
    peers.change(&[Remove(PeerId(4)), Remove(PeerId(5))]).unwrap();
    peers.kill(4);
    peers.kill(5);
    peers.tick(5);
    for peer in [1, 2, 3] {
        assert_eq!(voters(&peers, peer), [1, 2, 3]);
    }
    peers.kill(1);
    peers.elect();
    peers.say("on");
    assert_eq!(peers.assert_same().len(), 31);
}

#[test]
fn a_dead_voter_is_replaced_in_one_change() {
    let mut peers = Peers::voters(3);
    peers.join(4);
    peers.kill(3);
    peers.tick(15);
    peers.change(&[Remove(PeerId(3)), Promote(PeerId(4))]).unwrap();
    peers.tick(3);
    assert_eq!(voters(&peers, 4), [1, 2, 4]);
    // The new one counts.
    peers.kill(2);
    peers.say("on");
    peers.kill(1);
    peers.start(2, Begin::Joining);
    peers.elect();
    assert_eq!(peers.assert_same(), ["on"]);
}

#[test]
fn a_leader_that_removes_itself_hands_over() {
    for change in [vec![Remove(PeerId(1))], vec![Demote(PeerId(1))], vec![Remove(PeerId(1)), Demote(PeerId(2))]] {
        let mut peers = Peers::voters(4);
        peers.say("before");
        // Whether most of the others know of it is for the next one to find out.
        assert!(matches!(peers.change(&change), Err(MembersError::Lost { .. })));
        // Without waiting for an election timeout.
        let leader = peers.leader();
        assert_ne!(leader, 1, "{change:?}");
        peers.tick(2);
        assert!(!voters(&peers, leader).contains(&1));
        peers.say("after");
        if change.contains(&Remove(PeerId(1))) {
            peers.kill(1);
        }
        assert_eq!(peers.assert_same(), ["before", "after"]);
    }
}

#[test]
fn the_voter_that_is_left_leads_although_nobody_told_it_to() {
    let mut peers = Peers::voters(2);
    let (answer, mut outcome) = tokio::sync::oneshot::channel();
    peers.driver(1).change_members(&[Remove(PeerId(1))], answer).unwrap();
    peers.driver(1).settle().now().unwrap();
    // The other hears that it is alone, but not that it is to stand.
    while outcome.try_recv().is_err() {
        peers.deliver_one();
    }
    peers.wire.lose(::raft::eraftpb::MessageType::MsgTimeoutNow);
    peers.kill(1);
    assert_eq!(peers.elect(), 2);
    peers.say("alone");
    assert!(!peers.driver(2).needs_ticks());
}

#[test]
fn a_change_outlives_the_leader_that_began_it() {
    let mut peers = Peers::voters(5);
    peers.join(6);
    // The leader logs the change, and one other hears of it.
    let (answer, mut outcome) = tokio::sync::oneshot::channel();
    let changes = [Remove(PeerId(4)), Remove(PeerId(5)), Promote(PeerId(6))];
    peers.driver(1).change_members(&changes, answer).unwrap();
    peers.driver(1).settle().now().unwrap();
    let appends = peers.wire.drain_to(2);
    assert!(!appends.is_empty());
    for append in appends {
        peers.driver(2).step(append).now().unwrap();
    }
    peers.driver(2).settle().now().unwrap();
    peers.cut.insert(1);
    let leader = peers.elect();
    peers.tick(30);
    assert!(matches!(outcome.try_recv().unwrap(), Err(MembersError::Lost { .. })));
    // Only the one that has the change can be elected, or one that has not and overrules it: in force or not, all agree
    // and the configuration is not joint.
    peers.cut.clear();
    peers.tick(30);
    let now = voters(&peers, leader);
    assert!([vec![1, 2, 3, 6], vec![1, 2, 3, 4, 5]].contains(&now), "{now:?}");
    for peer in now.iter().copied() {
        assert_eq!(voters(&peers, peer), now);
    }
    peers.say("on");
}

#[test]
fn what_must_not_be_is_refused() {
    let mut peers = Peers::voters(3);
    peers.join(4);
    let refused = |peers: &mut Peers, changes: &[MemberChange]| {
        let before = peers.drivers[&1].status().borrow().clone();
        let refused = peers.change(changes).unwrap_err();
        let after = peers.drivers[&1].status().borrow().clone();
        assert_eq!((after.voters, after.learners), (before.voters, before.learners));
        refused
    };
    let id = PeerId;
    assert!(matches!(refused(&mut peers, &[Promote(id(2))]), MembersError::AlreadySo { role: "voter", .. }));
    assert!(matches!(refused(&mut peers, &[AddLearner(id(4))]), MembersError::AlreadySo { role: "learner", .. }));
    assert!(matches!(refused(&mut peers, &[AddLearner(id(2))]), MembersError::AlreadySo { role: "voter", .. }));
    assert!(matches!(refused(&mut peers, &[Demote(id(4))]), MembersError::AlreadySo { role: "learner", .. }));
    assert!(matches!(refused(&mut peers, &[Remove(id(9))]), MembersError::Unknown { peer: PeerId(9) }));
    assert!(matches!(refused(&mut peers, &[Promote(id(9))]), MembersError::Unknown { peer: PeerId(9) }));
    assert!(matches!(refused(&mut peers, &[Remove(id(4)), Promote(id(4))]), MembersError::Twice { .. }));
    let nobody = refused(&mut peers, &[Remove(id(1)), Remove(id(2)), Remove(id(3))]);
    assert!(matches!(nobody, MembersError::LosesQuorum { voters: 0, alive: 0 }), "{nobody:?}");

    // With one voter dead, the one that is left must not go.
    peers.kill(3);
    peers.tick(15);
    let fatal = refused(&mut peers, &[Remove(id(2))]);
    assert!(matches!(fatal, MembersError::LosesQuorum { voters: 2, alive: 1 }), "{fatal:?}");
    // A learner that is away is no voter to be.
    peers.kill(4);
    peers.tick(15);
    assert!(matches!(refused(&mut peers, &[Promote(id(4))]), MembersError::NotCaughtUp { .. }));

    let (answer, mut outcome) = tokio::sync::oneshot::channel();
    peers.driver(2).change_members(&[Remove(id(3))], answer).unwrap();
    assert!(matches!(outcome.try_recv().unwrap(), Err(MembersError::NotLeader { leader: Some(PeerId(1)) })));
    peers.change(&[Remove(id(3))]).unwrap();
}

#[test]
fn one_change_at_a_time() {
    let mut peers = Peers::voters(3);
    peers.cut.extend([2, 3]);
    let (answer, mut first) = tokio::sync::oneshot::channel();
    peers.driver(1).change_members(&[Remove(PeerId(3))], answer).unwrap();
    peers.pump();
    let (answer, mut second) = tokio::sync::oneshot::channel();
    peers.driver(1).change_members(&[Remove(PeerId(2))], answer).unwrap();
    assert!(matches!(second.try_recv().unwrap(), Err(MembersError::UnderWay)));
    assert!(first.try_recv().is_err());
    peers.cut.clear();
    peers.tick(4);
    first.try_recv().unwrap().unwrap();
}

#[test]
fn a_leader_is_new_until_everybody_had_time_to_answer_it() {
    let mut peers = Peers::voters(3);
    let is_new = |peers: &Peers| peers.drivers[&1].status().borrow().new_to_lead;
    peers.tick(1);
    assert_eq!((peers.leader(), is_new(&peers)), (1, true));
    peers.tick(20);
    assert!(!is_new(&peers));
    peers.transfer(3).unwrap();
    assert!(!is_new(&peers), "it follows");
}

#[test]
fn the_leadership_is_handed_over_on_request() {
    let mut peers = Peers::voters(3);
    peers.join(4);
    peers.say("one");
    peers.transfer(3).unwrap();
    assert_eq!(peers.leader(), 3);
    peers.say("two");
    assert!(matches!(peers.transfer(4), Err(MembersError::Unknown { peer: PeerId(4) })));
    peers.transfer(3).unwrap();
    peers.kill(2);
    peers.tick(15);
    assert!(matches!(peers.transfer(2), Err(MembersError::Unreachable { peer: PeerId(2) })));
    peers.start(2, Begin::Joining);
    peers.tick(5);
    // It is alive as far as anybody knows, but does not take over.
    peers.cut.insert(2);
    assert!(matches!(peers.transfer(2), Err(MembersError::NotTaken { peer: PeerId(2) })));
    peers.say("three");
    peers.cut.clear();
    assert_eq!(peers.assert_same(), ["one", "two", "three"]);
}
