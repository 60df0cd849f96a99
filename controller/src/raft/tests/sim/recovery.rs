//! How a run begins, all well, and how it has to end: the faults are over, and the cluster is well again by itself.

use roster_proto::id::PeerId;

use super::{peer::SimDriver, world::World};
use crate::raft::{log::Beginning, members::MemberChange};

impl World {
    /// A first peer, which the others join.
    pub(super) fn found(&mut self) {
        let founder = self.create(Beginning::Alone { index: 0 });
        let others: Vec<u64> = (1..self.plan.voters).map(|_| self.join()).collect();
        let all = |change: fn(PeerId) -> MemberChange| others.iter().map(|peer| change(PeerId(*peer))).collect();
        let (joins, promotions): (Vec<_>, Vec<_>) = (all(MemberChange::AddLearner), all(MemberChange::Promote));
        if others.is_empty() {
            return;
        }
        self.change_members(founder, joins);
        let wanted = others.len();
        self.wait_for("learners", |world| {
            let driver = world.driver(founder);
            let caught_up = |peer: &PeerId| driver.node.raft.prs().get(peer.0).is_some_and(|pr| pr.matched > 1);
            let ready = others.iter().filter(|peer| caught_up(&PeerId(**peer))).count();
            (ready < wanted).then(|| format!("{ready} of {wanted}"))
        });
        let mut promotions = Some(promotions);
        self.wait_for("voters", |world| {
            let conf = world.driver(founder).conf.clone();
            if let Some(promotions) = promotions.take() {
                world.change_members(founder, promotions);
            }
            let is_done = conf.voters.len() == wanted + 1 && conf.voters_outgoing.is_empty();
            (!is_done).then(|| format!("{conf:?}"))
        });
    }

    fn driver(&self, peer: u64) -> &SimDriver {
        self.peers[&peer].driver.as_ref().expect("it runs")
    }

    /// What is not well yet. Has the leader write once more.
    pub(super) fn trouble(&mut self) -> Option<String> {
        let leader = self.leaders().into_iter().max_by_key(|peer| self.driver(*peer).node.raft.term);
        let Some(leader) = leader else { return Some("nobody leads".to_owned()) };
        let conf = self.driver(leader).conf.clone();
        if !conf.voters_outgoing.is_empty() {
            return Some(format!("the configuration stays joint: {conf:?}"));
        }
        if let Some((peer, _)) = self.peers.iter().find(|(_, peer)| peer.driver.is_some() && !peer.asks.is_empty()) {
            return Some(format!("peer {peer} has not answered everybody"));
        }
        if !self.last_write.is_some_and(|number| self.oracle.is_acknowledged(number)) {
            self.last_write = Some(self.next_number);
            self.write(leader, 1);
            return Some("the last write is not acknowledged".to_owned());
        }
        let driver = self.driver(leader);
        let (applied, hash) = (driver.applied, driver.published.borrow().hash());
        for id in conf.voters.iter().chain(&conf.learners) {
            let Some(driver) = &self.peers[id].driver else { return Some(format!("peer {id} is a member and gone")) };
            if (driver.applied, driver.published.borrow().hash()) != (applied, hash) {
                return Some(format!("peer {id} is at {}, not at {applied}", driver.applied));
            }
        }
        None
    }

    /// Everything that was answered is there.
    pub(super) fn check_end(&self) {
        for id in self.leaders() {
            self.oracle.check_final(&self.driver(id).published.borrow());
        }
    }
}
