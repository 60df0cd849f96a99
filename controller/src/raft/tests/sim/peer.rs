//! One peer: its disk, its driver while it runs, and what waits at its doors.

use std::sync::{Arc, Mutex};

use ::raft::eraftpb::Message;

use super::{
    super::sim_disk::{Medium, SimDisk},
    check::{Seen, disk_head},
    clients::Ask,
    ledger::Ledger,
};
use crate::raft::{
    Machine,
    driver::{Driver, SnapshotPolicy},
    log::{Beginning, Found, Log},
    record::Head,
    tests::Now,
    transport::{EncodedMachine, Transport},
};

pub(super) type SimDriver = Driver<Ledger, SimDisk>;

pub(super) struct Peer {
    pub(super) medium: Medium,
    /// Not while it is stopped.
    pub(super) driver: Option<SimDriver>,
    /// Counts its stops: what was scheduled before one does not concern it afterwards.
    pub(super) life: u64,
    pub(super) seen: Seen,
    pub(super) inbox: Vec<Sent>,
    pub(super) outbox: Outbox,
    pub(super) asks: Vec<Ask>,
    /// Milliseconds; clocks are not all equally fast.
    pub(super) tick: u64,
    pub(super) paused_until: u64,
    /// When it is to come back after the crash within a write that awaits it.
    pub(super) down_for: u64,
    pub(super) is_retired: bool,
}

/// A message under way, with what its sender's disk held when it was sent.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) message: Message,
    pub(super) head: Head,
    /// Of a MsgSnapshot.
    pub(super) machine: Option<Arc<EncodedMachine>>,
}

/// Where a driver's messages wait until its step is over.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    medium: Medium,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Sent {
    pub(super) fn describe(&self) -> String {
        let Message { msg_type, from, term, index, reject, .. } = &self.message;
        let no = if *reject { " no" } else { "" };
        format!("{msg_type:?}{no} of {from} (term {term}, index {index}, {} entries)", self.message.entries.len())
    }
}

impl Outbox {
    fn new(medium: Medium) -> Self {
        Self { medium, sent: Arc::default() }
    }

    pub(super) fn take(&self) -> Vec<Sent> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }
}

impl Transport for Outbox {
    fn send(&mut self, messages: Vec<Message>) {
        let head = disk_head(&self.medium);
        let sent = messages.into_iter().map(|message| Sent { message, head: head.clone(), machine: None });
        self.sent.lock().unwrap().extend(sent);
    }

    fn send_snapshot(&mut self, message: Message, machine: Arc<EncodedMachine>) {
        let head = disk_head(&self.medium);
        self.sent.lock().unwrap().push(Sent { message, head, machine: Some(machine) });
    }
}

impl Peer {
    /// With a disk on which a log begins.
    pub(super) fn new(id: u64, beginning: Beginning, tick: u64) -> Self {
        let medium = Medium::default();
        Log::create(medium.disk(), id, beginning, Ledger::default().encode()).now().expect("the disk is new");
        Self {
            outbox: Outbox::new(medium.clone()),
            medium,
            driver: None,
            life: 0,
            seen: Seen::default(),
            inbox: Vec::new(),
            asks: Vec::new(),
            tick,
            paused_until: 0,
            down_for: 0,
            is_retired: false,
        }
    }

    /// A driver for what the disk holds.
    pub(super) fn open(&mut self, seed: u64, policy: SnapshotPolicy) -> Result<SimDriver, String> {
        self.seen = Seen::default();
        self.paused_until = 0;
        let found = Log::open(self.medium.disk()).map_err(|error| error.to_string())?;
        let Found::Log { log, machine } = found else { return Err("its disk is empty".to_owned()) };
        let machine = Ledger::decode(&machine).map_err(|error| error.to_string())?;
        let transport = Box::new(self.outbox.clone());
        let mut driver = Driver::new(*log, machine, transport, seed, policy).map_err(|fault| fault.to_string())?;
        driver.start().now().map_err(|fault| fault.to_string())?;
        Ok(driver)
    }

    pub(super) fn describe(&self) -> String {
        let Some(driver) = &self.driver else { return "stopped".to_owned() };
        let raft = &driver.node.raft;
        let log = &raft.raft_log;
        format!(
            "{:?} in term {}, log {}..={}, commit {}, applied {}, voters {:?} {:?}, learners {:?}",
            raft.state,
            raft.term,
            log.first_index(),
            log.last_index(),
            log.committed,
            driver.applied,
            driver.conf.voters,
            driver.conf.voters_outgoing,
            driver.conf.learners
        )
    }
}
