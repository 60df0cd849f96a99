//! One view, what is asked of it changed, and the move that is expected.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use imbl::OrdMap;
use roster_proto::{id::PeerId, time::Timestamp};

use super::decide::{Move, View, next};
use crate::{
    peers::Announced,
    raft::{MemberChange, PeerProgress, RaftStatus},
    state::{command::Command, controllers::ControllerInfo},
};

/// Voters 1 to 3, of which 1 leads, all well.
struct Cluster {
    controllers: OrdMap<PeerId, Arc<ControllerInfo>>,
    raft: RaftStatus,
    silent: BTreeMap<PeerId, Duration>,
    announced: BTreeMap<PeerId, Announced>,
}

impl Cluster {
    fn new() -> Self {
        let raft = RaftStatus {
            id: PeerId(1),
            term: 2,
            leader: Some(PeerId(1)),
            commit: 1000,
            applied: 1000,
            voters: vec![PeerId(1), PeerId(2), PeerId(3)],
            outgoing: Vec::new(),
            learners: Vec::new(),
            new_to_lead: false,
            progress: BTreeMap::new(),
        };
        let mut cluster =
            Self { controllers: OrdMap::new(), raft, silent: BTreeMap::new(), announced: BTreeMap::new() };
        for id in 1..=3 {
            cluster.know(id, false);
            cluster.reaches(id, 1000);
        }
        cluster
    }

    fn know(&mut self, id: u64, spare: bool) {
        let info = ControllerInfo {
            id: PeerId(id),
            name: format!("c{id}").parse().expect("a name"),
            address: format!("10.0.0.{id}:7640"),
            release: "1".to_owned(),
            protocol: 1,
            spare,
            leaving: false,
            silent_since: None,
            joined: Timestamp(0),
        };
        self.controllers.insert(PeerId(id), Arc::new(info));
    }

    fn reaches(&mut self, id: u64, matched: u64) {
        self.raft.progress.insert(PeerId(id), PeerProgress { matched, active: true, snapshotting: false });
    }

    fn edit(&mut self, id: u64, edit: impl FnOnce(&mut ControllerInfo)) {
        edit(Arc::make_mut(self.controllers.get_mut(&PeerId(id)).expect("it is known")));
    }

    fn learner(&mut self, id: u64, spare: bool, matched: u64) {
        self.know(id, spare);
        self.raft.learners.push(PeerId(id));
        self.reaches(id, matched);
    }

    fn next(&self) -> Option<Move> {
        next(&View {
            me: PeerId(1),
            controllers: &self.controllers,
            raft: &self.raft,
            silent: &self.silent,
            settled: 900,
            announced: &self.announced,
            replace_after: Some(Duration::from_secs(60)),
        })
    }
}

fn change(change: MemberChange) -> Option<Move> {
    Some(Move::Change(vec![change]))
}

#[test]
fn nothing_is_changed_where_all_is_well() {
    assert_eq!(Cluster::new().next(), None);
}

#[test]
fn a_controller_that_was_never_made_a_cluster_is_left_alone() {
    let mut cluster = Cluster::new();
    cluster.controllers.clear();
    assert_eq!(cluster.next(), None);
}

#[test]
fn a_newcomer_learns_and_votes_once_it_has_caught_up() {
    let mut cluster = Cluster::new();
    cluster.know(4, false);
    assert_eq!(cluster.next(), change(MemberChange::AddLearner(PeerId(4))));
    cluster.learner(4, false, 100);
    assert_eq!(cluster.next(), None, "too far behind");
    cluster.reaches(4, 900);
    assert_eq!(cluster.next(), change(MemberChange::Promote(PeerId(4))));
    cluster.raft.outgoing = vec![PeerId(1)];
    assert_eq!(cluster.next(), None, "a change is under way");
}

#[test]
fn a_spare_gets_no_vote_before_one_is_dead() {
    let mut cluster = Cluster::new();
    cluster.learner(4, true, 1000);
    assert_eq!(cluster.next(), None);
    cluster.edit(3, |info| info.silent_since = Some(Timestamp(1)));
    cluster.silent.insert(PeerId(3), Duration::from_secs(59));
    assert_eq!(cluster.next(), None, "not yet");
    cluster.silent.insert(PeerId(3), Duration::from_secs(60));
    let spares = [(PeerId(3), true), (PeerId(4), false)].into();
    assert_eq!(cluster.next(), Some(Move::Propose(Command::SetSpares { spares })));

    // As the command leaves it: both at once.
    cluster.edit(3, |info| info.spare = true);
    cluster.edit(4, |info| info.spare = false);
    let both = vec![MemberChange::Promote(PeerId(4)), MemberChange::Demote(PeerId(3))];
    assert_eq!(cluster.next(), Some(Move::Change(both)));
}

#[test]
fn a_spare_that_lags_stands_in_for_nobody() {
    let mut cluster = Cluster::new();
    cluster.learner(4, true, 10);
    cluster.edit(3, |info| info.silent_since = Some(Timestamp(1)));
    cluster.silent.insert(PeerId(3), Duration::from_secs(3600));
    assert_eq!(cluster.next(), None);
}

#[test]
fn who_is_to_leave_is_taken_out_and_then_forgotten() {
    let mut cluster = Cluster::new();
    cluster.edit(3, |info| info.leaving = true);
    assert_eq!(cluster.next(), change(MemberChange::Remove(PeerId(3))));
    cluster.raft.voters.pop();
    assert_eq!(cluster.next(), Some(Move::Propose(Command::RemoveController { id: PeerId(3) })));
    cluster.controllers.remove(&PeerId(3));
    assert_eq!(cluster.next(), None);
}

#[test]
fn a_leader_that_is_to_leave_hands_over_to_the_furthest() {
    let mut cluster = Cluster::new();
    cluster.edit(1, |info| info.leaving = true);
    cluster.reaches(2, 990);
    assert_eq!(cluster.next(), Some(Move::HandOver(PeerId(3))));
}

#[test]
fn the_last_vote_is_not_taken() {
    let mut cluster = Cluster::new();
    for id in 1..=3 {
        cluster.edit(id, |info| info.spare = true);
    }
    assert_eq!(cluster.next(), None);
}

#[test]
fn who_is_unknown_is_taken_out() {
    let mut cluster = Cluster::new();
    cluster.controllers.remove(&PeerId(2));
    assert_eq!(cluster.next(), change(MemberChange::Remove(PeerId(2))));
}

#[test]
fn another_address_or_release_is_written_down() {
    let mut cluster = Cluster::new();
    let same = Announced { address: String::new(), release: "1".to_owned(), protocol: 1 };
    cluster.announced.insert(PeerId(2), same);
    assert_eq!(cluster.next(), None, "it said nothing of where it is");
    let moved = Announced { address: "10.0.0.9:7640".to_owned(), release: "2".to_owned(), protocol: 2 };
    cluster.announced.insert(PeerId(2), moved);
    let Some(Move::Propose(Command::PutController { id, address, release, protocol, .. })) = cluster.next() else {
        panic!("{:?}", cluster.next());
    };
    assert_eq!((id, address.as_str(), release.as_str(), protocol), (PeerId(2), "10.0.0.9:7640", "2", 2));
}

#[test]
fn who_falls_silent_is_reported_and_who_answers_again() {
    let report = |id, silent| Some(Move::Propose(Command::SetControllerSilent { id: PeerId(id), silent }));
    let mut cluster = Cluster::new();
    cluster.learner(4, true, 1000);
    for id in [2, 4] {
        cluster.silent.insert(PeerId(id), Duration::from_millis(2_999));
        assert_eq!(cluster.next(), None);
        cluster.silent.insert(PeerId(id), Duration::from_secs(3));
        assert_eq!(cluster.next(), report(id, true));
        cluster.edit(id, |info| info.silent_since = Some(Timestamp(1)));
        assert_eq!(cluster.next(), None, "told once");
        cluster.silent.insert(PeerId(id), Duration::ZERO);
        assert_eq!(cluster.next(), report(id, false));
        cluster.edit(id, |info| info.silent_since = None);
    }
    // It was written down while another one led.
    cluster.edit(1, |info| info.silent_since = Some(Timestamp(1)));
    assert_eq!(cluster.next(), report(1, false));
}
