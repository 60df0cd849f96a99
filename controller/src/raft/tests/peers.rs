//! Several drivers on simulated disks, and a network between them that loses nothing unless told to. Everything happens
//! in order and at once: time is the ticks that a test gives.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use ::raft::eraftpb::MessageType;
use roster_proto::id::{PeerId, Version};
use tokio::sync::oneshot::{self, Receiver};

use super::{
    super::{
        Begin, EncodedMachine, Machine, MemberChange, MembersError, Message, OpenError, ProposeError, ReadError,
        StoreConfig, Transport, driver::Driver, open::start_driver,
    },
    Now, Words,
    sim_disk::{Medium, SimDisk},
};

/// More than any test needs: what does not settle by then never does.
const MOST_DELIVERIES: usize = 200_000;
/// Within so many ticks a majority that is in touch has a leader.
pub(super) const ELECTED_WITHIN: usize = 100;

#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) message: Message,
    pub(super) machine: Option<Arc<EncodedMachine>>,
}

/// What is under way, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Wire(Arc<Mutex<VecDeque<Packet>>>);

impl Wire {
    fn take(&self) -> Option<Packet> {
        self.0.lock().unwrap().pop_front()
    }

    pub(super) fn under_way(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Takes what is on its way to the peer out, and loses the rest.
    pub(super) fn drain_to(&self, peer: u64) -> Vec<Message> {
        let packets = std::mem::take(&mut *self.0.lock().unwrap());
        packets.into_iter().map(|packet| packet.message).filter(|message| message.to == peer).collect()
    }

    pub(super) fn lose(&self, kind: MessageType) {
        let mut packets = self.0.lock().unwrap();
        let before = packets.len();
        packets.retain(|packet| packet.message.get_msg_type() != kind);
        assert!(packets.len() < before, "there was none");
    }

    fn put(&self, packet: Packet) {
        self.0.lock().unwrap().push_back(packet);
    }
}

impl Transport for Wire {
    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            assert_ne!(message.get_msg_type(), MessageType::MsgSnapshot);
            self.put(Packet { message, machine: None });
        }
    }

    fn send_snapshot(&mut self, message: Message, machine: Arc<EncodedMachine>) {
        assert!(message.get_snapshot().data.is_empty());
        self.put(Packet { message, machine: Some(machine) });
    }
}

pub(super) type SimDriver = Driver<Words, SimDisk>;
pub(super) type Said = Receiver<Result<(Version, usize), ProposeError>>;

pub(super) struct Peers {
    pub(super) media: BTreeMap<u64, Medium>,
    pub(super) drivers: BTreeMap<u64, SimDriver>,
    pub(super) wire: Wire,
    /// Those nobody hears, and who hear nobody.
    pub(super) cut: BTreeSet<u64>,
    /// Snapshots wait here instead of arriving, while there is a place.
    pub(super) held: Option<Vec<Packet>>,
    /// How many snapshots arrived.
    pub(super) snapshots: usize,
    pub(super) snapshot_entries: u64,
    pub(super) snapshot_bytes: usize,
    seed: u64,
}

impl Peers {
    /// Peer 1, which founded a cluster.
    pub(super) fn one() -> Self {
        let mut peers = Self {
            media: BTreeMap::new(),
            drivers: BTreeMap::new(),
            wire: Wire::default(),
            cut: BTreeSet::new(),
            held: None,
            snapshots: 0,
            snapshot_entries: 50,
            snapshot_bytes: 100_000,
            seed: 1,
        };
        peers.start(1, Begin::Alone);
        peers
    }

    /// Peers 1 to `count`, all voters; one of them leads.
    pub(super) fn voters(count: u64) -> Self {
        let mut peers = Self::one();
        for peer in 2..=count {
            peers.join(peer);
            peers.change(&[MemberChange::Promote(PeerId(peer))]).unwrap();
        }
        peers
    }

    /// Opens the peer's disk, which is empty at first.
    pub(super) fn start(&mut self, peer: u64, begin: Begin) {
        self.try_start(peer, begin).unwrap();
    }

    pub(super) fn try_start(&mut self, peer: u64, begin: Begin) -> Result<(), OpenError> {
        self.seed += 1;
        let medium = self.media.entry(peer).or_default();
        let config = StoreConfig {
            peer: Some(PeerId(peer)),
            begin,
            snapshot_entries: self.snapshot_entries,
            snapshot_bytes: self.snapshot_bytes,
            ..StoreConfig::new("simulated")
        };
        let seed = 1000 * peer + self.seed;
        let driver = start_driver(&config, medium.disk(), Box::new(self.wire.clone()), seed)?;
        self.drivers.insert(peer, driver);
        Ok(())
    }

    /// A new peer becomes a learner and catches up.
    pub(super) fn join(&mut self, peer: u64) {
        self.start(peer, Begin::Joining);
        self.change(&[MemberChange::AddLearner(PeerId(peer))]).unwrap();
        self.tick(5);
        assert_eq!(self.list(peer), self.list(self.leader()), "peer {peer} has caught up");
    }

    /// As by kill -9: what is on its disk stays.
    pub(super) fn kill(&mut self, peer: u64) {
        self.drivers.remove(&peer).unwrap();
    }

    pub(super) fn driver(&mut self, peer: u64) -> &mut SimDriver {
        self.drivers.get_mut(&peer).unwrap()
    }

    pub(super) fn list(&self, peer: u64) -> Vec<String> {
        self.drivers[&peer].published().borrow().list()
    }

    /// Delivers until nothing is under way.
    pub(super) fn pump(&mut self) {
        for _ in 0..MOST_DELIVERIES {
            for driver in self.drivers.values_mut() {
                driver.settle().now().unwrap();
                if let Some(work) = driver.snapshot_due() {
                    driver.store_snapshot(work.index, work.machine.encode());
                }
            }
            let Some(packet) = self.wire.take() else { return };
            self.deliver(packet);
        }
        panic!("the peers never come to rest");
    }

    /// The oldest packet, to a peer that then does what follows from it.
    pub(super) fn deliver_one(&mut self) {
        let packet = self.wire.take().expect("something is under way");
        let to = packet.message.to;
        self.deliver(packet);
        self.driver(to).settle().now().unwrap();
    }

    fn deliver(&mut self, Packet { mut message, machine }: Packet) {
        let (from, to) = (message.from, message.to);
        let is_snapshot = machine.is_some();
        if let (true, Some(held)) = (is_snapshot, &mut self.held) {
            return held.push(Packet { message, machine });
        }
        let arrives = !self.cut.contains(&from) && !self.cut.contains(&to) && self.drivers.contains_key(&to);
        if let Some(machine) = machine.filter(|_| arrives) {
            message.mut_snapshot().data = machine.bytes();
            self.snapshots += 1;
        }
        if arrives {
            self.driver(to).step(message).now().unwrap();
        }
        if let Some(sender) = self.drivers.get_mut(&from) {
            match (is_snapshot, arrives) {
                (true, ok) => sender.report_snapshot(to, ok),
                (false, false) => sender.report_unreachable(to),
                (false, true) => {}
            }
        }
    }

    /// Lets the held snapshots go, to arrive or to be lost.
    pub(super) fn release(&mut self, arrive: bool) {
        for packet in self.held.take().unwrap() {
            if arrive {
                self.deliver(packet);
            } else {
                self.driver(packet.message.from).report_snapshot(packet.message.to, false);
            }
        }
        self.pump();
    }

    pub(super) fn tick(&mut self, times: usize) {
        for _ in 0..times {
            for driver in self.drivers.values_mut().filter(|driver| driver.needs_ticks()) {
                driver.tick();
            }
            self.pump();
        }
    }

    /// Of those that are in touch, in the latest term.
    pub(super) fn leaders(&self) -> Vec<u64> {
        let in_touch = self.drivers.iter().filter(|(peer, _)| !self.cut.contains(peer));
        let leads = in_touch.filter(|(_, driver)| driver.leadership().borrow().is_self);
        leads.map(|(peer, _)| *peer).collect()
    }

    pub(super) fn leader(&self) -> u64 {
        let leaders = self.leaders();
        assert_eq!(leaders.len(), 1, "{leaders:?}");
        leaders[0]
    }

    /// Ticks until those in touch have a leader, and returns it.
    pub(super) fn elect(&mut self) -> u64 {
        for _ in 0..ELECTED_WITHIN {
            self.tick(1);
            if let [leader] = self.leaders()[..] {
                return leader;
            }
        }
        panic!("nobody was elected");
    }

    /// Proposes at the peer; the answer may come with later ticks.
    pub(super) fn propose(&mut self, peer: u64, word: &str) -> Said {
        let (answer, outcome) = oneshot::channel();
        self.driver(peer).propose(Words::encode_command(&word.to_owned()), answer);
        self.pump();
        outcome
    }

    /// Says it to the leader, who answers well.
    pub(super) fn say(&mut self, word: &str) {
        let leader = self.leader();
        self.propose(leader, word).try_recv().unwrap().unwrap();
    }

    pub(super) fn change(&mut self, changes: &[MemberChange]) -> Result<(), MembersError> {
        let (answer, mut outcome) = oneshot::channel();
        let leader = self.leader();
        self.driver(leader).change_members(changes, answer).unwrap();
        self.pump();
        outcome.try_recv().unwrap()
    }

    pub(super) fn transfer(&mut self, to: u64) -> Result<(), MembersError> {
        let (answer, mut outcome) = oneshot::channel();
        let leader = self.leader();
        self.driver(leader).transfer_leadership(PeerId(to), answer);
        self.pump();
        self.tick(40);
        outcome.try_recv().unwrap()
    }

    /// Asks the peer for a linearizable read; the answer may come with later ticks.
    pub(super) fn read(&mut self, peer: u64) -> Receiver<Result<Arc<Words>, ReadError>> {
        let (answer, outcome) = oneshot::channel();
        self.driver(peer).read_index(answer);
        self.pump();
        outcome
    }

    /// After a while in touch all have the same words.
    pub(super) fn assert_same(&mut self) -> Vec<String> {
        self.tick(60);
        let words = self.list(self.leader());
        for peer in self.drivers.keys() {
            assert_eq!(self.list(*peer), words, "peer {peer}");
        }
        words
    }
}
