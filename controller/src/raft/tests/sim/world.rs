//! The world of one run: peers with their disks and clocks, what is under way between them, and what happens when.
//!
//! One thread, one source of chance: the same seed makes the same run.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ::raft::{StateRole, eraftpb::ConfState};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    check::Oracle,
    ledger::Ledger,
    network::{Network, Weather},
    peer::{Peer, Sent, SimDriver},
    plan::Plan,
};
use crate::raft::{
    Machine,
    error::Fault,
    snapshots::{Received, SnapshotWork},
    tests::Now,
};

/// Milliseconds after the faults within which all must be well.
const RECOVERY: u64 = 30_000;

/// Milliseconds between two looks at whether it is.
const LOOK_EVERY: u64 = 100;

/// How many milliseconds a peer's thread may take to get to a message, which then shares a flush with others.
const INBOX: u64 = 3;

/// What happened, one line each; nobody writes it down unless asked to.
pub(super) type Trace = Option<Arc<Mutex<Vec<String>>>>;

/// How much runs did, so that it is noticed when they do nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) steps: u64,
    pub(super) writes: u64,
    pub(super) reads: u64,
    pub(super) changes: u64,
    pub(super) transfers: u64,
    /// Writes, reads and changes that were answered with an error.
    pub(super) failures: u64,
    pub(super) leaders: u64,
    pub(super) crashes: u64,
    pub(super) crashes_in_writes: u64,
    pub(super) snapshots_taken: u64,
    pub(super) snapshots_sent: u64,
    pub(super) lost: u64,
}

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) now: u64,
    /// By time, and within it by order of scheduling.
    agenda: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    /// Also those that are gone.
    pub(super) peers: BTreeMap<u64, Peer>,
    pub(super) network: Network,
    pub(super) plan: Plan,
    pub(super) oracle: Oracle,
    pub(super) tally: Tally,
    /// There are no faults, and clients ask nothing.
    pub(super) calm: bool,
    pub(super) next_number: u64,
    /// The one that has to go through after all faults.
    pub(super) last_write: Option<u64>,
    trace: Trace,
}

pub(super) enum Event {
    Tick {
        peer: u64,
        life: u64,
    },
    Arrive(Sent),
    /// The peer's thread turns to what has arrived, or goes on with what it has begun.
    Turn {
        peer: u64,
        life: u64,
    },
    Encoded {
        peer: u64,
        life: u64,
        work: SnapshotWork<Ledger>,
    },
    /// The transport tells what became of a snapshot, ...
    SnapshotSent {
        peer: u64,
        life: u64,
        to: u64,
        ok: bool,
    },
    /// ... and that it cannot reach a peer.
    Unreachable {
        peer: u64,
        life: u64,
        to: u64,
    },
    Start {
        peer: u64,
    },
    /// It was removed from the cluster and its machine goes elsewhere.
    Retire {
        peer: u64,
    },
    Request,
    Fault,
}

impl Event {
    fn peer(&self) -> Option<u64> {
        match self {
            Self::Tick { peer, .. }
            | Self::Turn { peer, .. }
            | Self::Encoded { peer, .. }
            | Self::SnapshotSent { peer, .. }
            | Self::Unreachable { peer, .. }
            | Self::Start { peer }
            | Self::Retire { peer } => Some(*peer),
            Self::Arrive(sent) => Some(sent.message.to),
            Self::Request | Self::Fault => None,
        }
    }

    /// For which of the peer's lives it is meant, when not for any.
    fn life(&self) -> Option<u64> {
        match self {
            Self::Tick { life, .. }
            | Self::Turn { life, .. }
            | Self::Encoded { life, .. }
            | Self::SnapshotSent { life, .. }
            | Self::Unreachable { life, .. } => Some(*life),
            _ => None,
        }
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        let fields: [(&mut u64, u64); 12] = [
            (&mut self.steps, other.steps),
            (&mut self.writes, other.writes),
            (&mut self.reads, other.reads),
            (&mut self.changes, other.changes),
            (&mut self.transfers, other.transfers),
            (&mut self.failures, other.failures),
            (&mut self.leaders, other.leaders),
            (&mut self.crashes, other.crashes),
            (&mut self.crashes_in_writes, other.crashes_in_writes),
            (&mut self.snapshots_taken, other.snapshots_taken),
            (&mut self.snapshots_sent, other.snapshots_sent),
            (&mut self.lost, other.lost),
        ];
        for (sum, more) in fields {
            *sum += more;
        }
    }
}

impl World {
    pub(super) fn new(seed: u64, trace: Trace) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let plan = Plan::draw(&mut rng);
        Self {
            rng,
            now: 0,
            agenda: BTreeMap::new(),
            scheduled: 0,
            peers: BTreeMap::new(),
            network: Network::new(Weather::FAIR),
            plan,
            oracle: Oracle::default(),
            tally: Tally::default(),
            calm: true,
            next_number: 1,
            last_write: None,
            trace,
        }
    }

    /// Runs to the end, through faults and recovery.
    pub(super) fn run(&mut self) {
        self.note(|world| format!("{:?}", world.plan));
        self.found();
        self.calm = false;
        self.network.weather = self.plan.weather;
        self.schedule(0, Event::Request);
        self.schedule(0, Event::Fault);
        let end = self.now + self.plan.duration;
        self.run_until(end);
        self.calm_down();
        self.wait_for("recovery", Self::trouble);
        self.check_end();
    }

    fn run_until(&mut self, end: u64) {
        while self.agenda.first_key_value().is_some_and(|((time, _), _)| *time <= end) {
            self.next();
        }
        self.now = end;
    }

    /// Runs until there is no more trouble.
    pub(super) fn wait_for(&mut self, what: &str, mut trouble: impl FnMut(&mut Self) -> Option<String>) {
        let deadline = self.now + RECOVERY;
        while let Some(trouble) = trouble(self) {
            assert!(self.now < deadline, "no {what} within {RECOVERY} ms: {trouble}");
            self.run_until(self.now + LOOK_EVERY);
        }
    }

    pub(super) fn note(&self, line: impl FnOnce(&Self) -> String) {
        if let Some(trace) = &self.trace {
            let line = format!("{:>6} {}", self.now, line(self));
            trace.lock().unwrap().push(line);
        }
    }

    pub(super) fn schedule(&mut self, delay: u64, event: Event) {
        self.scheduled += 1;
        self.agenda.insert((self.now + delay, self.scheduled), event);
    }

    /// A random time with about this mean.
    fn about(&mut self, mean: u64) -> u64 {
        self.rng.random_range(1..=2 * mean)
    }

    fn next(&mut self) {
        let Some(((time, order), event)) = self.agenda.pop_first() else { return };
        self.now = time;
        if let Some(peer) = event.peer().and_then(|peer| self.peers.get(&peer)) {
            if peer.paused_until > time {
                self.agenda.insert((peer.paused_until, order), event);
                return;
            }
            if event.life().is_some_and(|life| life != peer.life) {
                return;
            }
        }
        self.tally.steps += 1;
        self.happen(event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Request if !self.calm => {
                let delay = self.about(self.plan.request_every);
                self.schedule(delay, Event::Request);
                self.request();
            }
            Event::Fault if !self.calm => {
                let delay = self.about(self.plan.fault_every);
                self.schedule(delay, Event::Fault);
                self.fault();
            }
            Event::Request | Event::Fault => {}
            Event::Start { peer } => self.start(peer),
            Event::Retire { peer } => self.retire(peer),
            Event::Arrive(sent) => self.arrive(sent),
            Event::Tick { peer, .. } => self.tick(peer),
            Event::Turn { peer, .. } => self.turn(peer),
            Event::Encoded { peer, work, .. } => {
                self.tally.snapshots_taken += 1;
                self.act(peer, "has encoded its machine", |driver| {
                    driver.store_snapshot(work.index, work.machine.encode());
                    Ok(())
                });
            }
            Event::SnapshotSent { peer, to, ok, .. } => {
                let what = format!("hears that its snapshot reached {to}: {ok}");
                self.act(peer, &what, |driver| {
                    driver.report_snapshot(to, ok);
                    Ok(())
                });
            }
            Event::Unreachable { peer, to, .. } => {
                self.act(peer, &format!("cannot reach {to}"), |driver| {
                    driver.report_unreachable(to);
                    Ok(())
                });
            }
        }
    }

    fn tick(&mut self, id: u64) {
        let jitter = self.rng.random_range(0..4);
        let (life, delay) = (self.peers[&id].life, self.peers[&id].tick + jitter);
        self.schedule(delay, Event::Tick { peer: id, life });
        if self.peers[&id].driver.as_ref().is_some_and(SimDriver::needs_ticks) {
            self.act(id, "ticks", |driver| {
                driver.tick();
                Ok(())
            });
        }
    }

    /// Lays a message into the inbox; the peer's thread takes everything in it at once.
    fn arrive(&mut self, sent: Sent) {
        let delay = self.rng.random_range(0..=INBOX);
        let Some(peer) = self.peers.get_mut(&sent.message.to).filter(|peer| peer.driver.is_some()) else { return };
        let (id, life, is_first) = (sent.message.to, peer.life, peer.inbox.is_empty());
        peer.inbox.push(sent);
        if is_first {
            self.schedule(delay, Event::Turn { peer: id, life });
        }
    }

    fn turn(&mut self, id: u64) {
        let inbox = std::mem::take(&mut self.peers.get_mut(&id).expect("it has an inbox").inbox);
        let senders: Vec<String> = inbox.iter().map(Sent::describe).collect();
        self.act(id, &format!("hears {}", senders.join(", ")), |driver| {
            for Sent { mut message, machine, .. } in inbox {
                let Some(machine) = machine else {
                    driver.step(message).now()?;
                    continue;
                };
                let received = Received::decode(machine.bytes()).expect("snapshots are whole");
                message.mut_snapshot().clear_data();
                driver.receive_snapshot(message, received).now()?;
            }
            Ok(())
        });
    }

    /// A step of one peer: does something to its driver and lets it settle. Then looks at it.
    pub(super) fn act(&mut self, id: u64, what: &str, action: impl FnOnce(&mut SimDriver) -> Result<(), Fault>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(driver) = &mut peer.driver else { return };
        let voters = driver.conf.clone();
        let result = action(driver).and_then(|()| driver.settle().now());
        self.note(|world| format!("peer {id} {what}: {}", world.peers[&id].describe()));
        self.dispatch(id);
        match result {
            Ok(()) => self.look(id, &voters),
            Err(Fault::Disk(_)) if self.peers[&id].medium.content().failed => {
                self.tally.crashes_in_writes += 1;
                // What it applied and answered before that still counts.
                let peer = self.peers.get_mut(&id).expect("peers stay");
                let ledger = peer.driver.as_ref().map(|driver| driver.published.borrow().clone());
                ledger.into_iter().for_each(|ledger| self.oracle.check_applied(&mut peer.seen, id, &ledger));
                let down_for = peer.down_for;
                self.hear_answers(id, None);
                self.crash(id, down_for);
            }
            Err(fault) => panic!("peer {id} {what}, and ends by itself: {fault:?}"),
        }
    }

    /// After a step that went well.
    pub(super) fn look(&mut self, id: u64, voters: &ConfState) {
        let peer = self.peers.get_mut(&id).expect("it has just made a step");
        let Some(driver) = &mut peer.driver else { return };
        let raft = &driver.node.raft;
        let led = peer.seen.led;
        self.oracle.observe(&mut peer.seen, raft, &driver.published.borrow());
        self.tally.leaders += u64::from(peer.seen.led != led);
        let life = peer.life;
        let is_sure = raft.state == StateRole::Leader && driver.conf == *voters;
        let work = driver.snapshot_due();
        let is_busy = driver.has_work();
        self.hear_answers(id, is_sure.then_some(voters));
        if let Some(work) = work {
            let delay = self.about(20);
            self.schedule(delay, Event::Encoded { peer: id, life, work });
        }
        if is_busy {
            self.schedule(1, Event::Turn { peer: id, life });
        }
    }

    /// Gives the network what the driver gave its transport, whatever became of the driver since.
    pub(super) fn dispatch(&mut self, id: u64) {
        let (life, sent) = (self.peers[&id].life, self.peers[&id].outbox.take());
        for sent in sent {
            self.oracle.check_promise(&sent.message, &sent.head);
            let to = sent.message.to;
            let arrivals = self.network.arrivals(&mut self.rng, self.now, id, to);
            self.tally.lost += u64::from(arrivals.is_empty());
            if sent.machine.is_some() {
                self.tally.snapshots_sent += 1;
                // Whoever sent it may be told that it failed although it arrived, never the reverse.
                let ok = !arrivals.is_empty() && self.rng.random_bool(0.9);
                let delay = arrivals.first().map_or(100, |time| time - self.now) + self.about(5);
                self.schedule(delay, Event::SnapshotSent { peer: id, life, to, ok });
            } else if arrivals.is_empty() && self.rng.random_bool(0.3) {
                self.schedule(1, Event::Unreachable { peer: id, life, to });
            }
            for time in arrivals {
                self.schedule(time - self.now, Event::Arrive(sent.clone()));
            }
        }
    }

    /// Stops a peer at once. What it had not answered stays open.
    pub(super) fn crash(&mut self, id: u64, down_for: u64) {
        if self.stop(id) {
            self.tally.crashes += 1;
            self.note(|_| format!("peer {id} has crashed"));
            self.schedule(down_for, Event::Start { peer: id });
        }
    }

    pub(super) fn retire(&mut self, id: u64) {
        self.stop(id);
        self.note(|_| format!("peer {id} is gone for good"));
        self.peers.get_mut(&id).expect("peers stay").is_retired = true;
    }

    fn stop(&mut self, id: u64) -> bool {
        let peer = self.peers.get_mut(&id).expect("peers stay");
        peer.life += 1;
        peer.asks.clear();
        peer.inbox.clear();
        peer.driver.take().is_some()
    }

    /// Opens its disk again, unless it runs.
    pub(super) fn start(&mut self, id: u64) {
        let seed = self.rng.random();
        let policy = self.plan.snapshots;
        let peer = self.peers.get_mut(&id).expect("peers stay");
        if peer.driver.is_some() || peer.is_retired {
            return;
        }
        let driver = peer.open(seed, policy).unwrap_or_else(|error| panic!("peer {id} cannot start: {error}"));
        let voters = driver.conf.clone();
        peer.driver = Some(driver);
        let life = peer.life;
        self.note(|world| format!("peer {id} starts: {}", world.peers[&id].describe()));
        let delay = self.rng.random_range(0..50);
        self.schedule(delay, Event::Tick { peer: id, life });
        self.dispatch(id);
        self.look(id, &voters);
    }

    pub(super) fn running(&self) -> Vec<u64> {
        self.peers.iter().filter(|(_, peer)| peer.driver.is_some()).map(|(id, _)| *id).collect()
    }

    /// Those that think they lead.
    pub(super) fn leaders(&self) -> Vec<u64> {
        let leads = |peer: &Peer| peer.driver.as_ref().is_some_and(SimDriver::is_leader);
        self.peers.iter().filter(|(_, peer)| leads(peer)).map(|(id, _)| *id).collect()
    }
}
