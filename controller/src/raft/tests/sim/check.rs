//! What must hold after every step of every peer. Each check panics with what it found.
//!
//! The oracle sees every peer's raft, disk and machine, and every answer, and remembers what it has seen: whatever
//! follows must fit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ::raft::{
    GetEntriesContext, Raft, StateRole,
    eraftpb::{ConfState, Entry, Message, MessageType},
};
use protobuf::Message as _;

use super::{
    super::sim_disk::{Medium, SimDisk},
    ledger::Ledger,
};
use crate::raft::{
    error::Damage,
    log::Log,
    record::{self, Fields, Head, Key, Snapshot, unseal},
};

/// What the oracle knows of one run of one peer: how far it has looked.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The terms of the entries it has compared.
    terms: BTreeMap<u64, u64>,
    commit: u64,
    marks: usize,
    version: u64,
    /// The last term it led.
    pub(super) led: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    leaders: BTreeMap<u64, u64>,
    votes: HashMap<(u64, u64), u64>,
    /// By index and term: what it holds, and the term of the entry before it. That these never differ is log
    /// matching, by induction.
    entries: HashMap<(u64, u64), (Digest, u64)>,
    /// By index: the entry's term, and the term in which it was first seen to be committed.
    committed: BTreeMap<u64, (u64, u64)>,
    /// What the machine was given, in order: version, number, and the machine's hash afterwards.
    applied: Vec<(u64, u64, u64)>,
    numbers: BTreeSet<u64>,
    /// By number: the version that was answered.
    acknowledged: BTreeMap<u64, u64>,
    refused: BTreeSet<u64>,
    /// The highest version that was answered, to a writer or to a reader.
    known: u64,
}

/// Kind, length and checksum.
type Digest = (i32, usize, u32);

fn digest(entry: &Entry) -> Digest {
    let crc = record::checksum(record::checksum(0, &entry.context), &entry.data);
    (entry.get_entry_type() as i32, entry.data.len(), crc)
}

impl Oracle {
    /// Looks at a peer after a step.
    pub(super) fn observe(&mut self, seen: &mut Seen, raft: &Raft<Log<SimDisk>>, ledger: &Arc<Ledger>) {
        self.check_entries(seen, raft);
        self.check_commit(seen, raft);
        if raft.state == StateRole::Leader && seen.led != Some(raft.term) {
            seen.led = Some(raft.term);
            self.check_leader(raft);
        }
        self.check_applied(seen, raft.id, ledger);
    }

    /// One leader per term, and it has all that was committed in the terms before.
    fn check_leader(&mut self, raft: &Raft<Log<SimDisk>>) {
        let (peer, term) = (raft.id, raft.term);
        let leader = *self.leaders.entry(term).or_insert(peer);
        assert_eq!(leader, peer, "two leaders in term {term}");
        let first = raft.raft_log.first_index();
        for (index, (entry_term, commit_term)) in self.committed.range(first..) {
            let found = raft.raft_log.term(*index).ok();
            assert!(
                *commit_term >= term || found == Some(*entry_term),
                "peer {peer} leads term {term} without entry {index}, committed in term {commit_term} at the latest"
            );
        }
    }

    /// Looks at the entries that are new to this peer.
    fn check_entries(&mut self, seen: &mut Seen, raft: &Raft<Log<SimDisk>>) {
        let log = &raft.raft_log;
        let (first, last) = (log.first_index(), log.last_index());
        seen.terms.split_off(&(last + 1));
        let mut index = last;
        while index >= first {
            let term = log.term(index).expect("within the log");
            if seen.terms.get(&index) == Some(&term) {
                break;
            }
            let before = log.term(index - 1).expect("the term before the first entry is known");
            let slice = log.slice(index, index + 1, None, GetEntriesContext::empty(false)).expect("within the log");
            let content = (digest(&slice[0]), before);
            let known = *self.entries.entry((index, term)).or_insert(content);
            assert_eq!(known, content, "peer {}: entry {index} of term {term} is not the one of other logs", raft.id);
            assert!(before <= term, "peer {}: terms go back at entry {index}", raft.id);
            seen.terms.insert(index, term);
            index -= 1;
        }
        seen.terms = seen.terms.split_off(&first);
    }

    /// What is committed stays.
    fn check_commit(&mut self, seen: &mut Seen, raft: &Raft<Log<SimDisk>>) {
        let log = &raft.raft_log;
        let commit = log.committed;
        assert!(commit >= seen.commit, "peer {}: the commit went back from {} to {commit}", raft.id, seen.commit);
        assert!(commit <= log.last_index(), "peer {}: committed {commit} beyond its log", raft.id);
        for index in seen.commit.max(log.first_index() - 1).max(1)..=commit {
            let term = log.term(index).expect("within the log");
            let known = self.committed.entry(index).or_insert((term, raft.term)).0;
            assert_eq!(term, known, "peer {}: entry {index} was committed with another term", raft.id);
        }
        seen.commit = commit;
    }

    /// All machines are given the same commands, each once.
    pub(super) fn check_applied(&mut self, seen: &mut Seen, peer: u64, ledger: &Arc<Ledger>) {
        let length = ledger.len();
        assert!(length >= seen.marks, "peer {peer}: its state went back");
        assert!(ledger.version() >= seen.version, "peer {peer}: its version went back");
        for (version, number) in ledger.since(self.applied.len()) {
            let last = self.applied.last().map_or(0, |(version, ..)| *version);
            assert!(version > last, "peer {peer}: version {version} after {last}");
            assert!(self.numbers.insert(number), "command {number} was applied twice");
            assert!(!self.refused.contains(&number), "command {number} was refused and yet applied");
            self.applied.push((version, number, 0));
        }
        if length > seen.marks {
            let (version, _, hash) = &mut self.applied[length - 1];
            // The hash is of the first to get there.
            if *hash == 0 {
                *hash = ledger.hash();
            }
            assert_eq!((*version, *hash), (ledger.version(), ledger.hash()), "peer {peer}: its state differs");
        }
        seen.marks = length;
        seen.version = ledger.version();
    }

    /// A message leaves: what it promises must be on the sender's disk.
    /// `head` is what the sender's disk held.
    pub(super) fn check_promise(&mut self, message: &Message, head: &Head) {
        let (from, to, term) = (message.from, message.to, message.term);
        match message.get_msg_type() {
            MessageType::MsgRequestVote => self.check_vote(from, term, from, head),
            MessageType::MsgRequestVoteResponse if !message.reject => self.check_vote(from, term, to, head),
            MessageType::MsgAppendResponse if !message.reject => {
                let (last, index) = (head.last_index, message.index);
                // Unless a later leader took it away before the peer came to answer: for the old one, who can no longer
                // decide anything with it, that is as if it had answered first.
                let is_outdated = head.term > term;
                assert!(
                    last >= index || is_outdated,
                    "peer {from} says that it has entry {index}; its disk ends at {last}"
                );
                assert!(head.term >= term, "peer {from} answers in term {term}; its disk knows of {}", head.term);
            }
            _ => {}
        }
    }

    fn check_vote(&mut self, voter: u64, term: u64, candidate: u64, head: &Head) {
        let known = *self.votes.entry((voter, term)).or_insert(candidate);
        assert_eq!(known, candidate, "peer {voter} voted twice in term {term}");
        assert!(
            head.term > term || (head.term, head.vote) == (term, candidate),
            "peer {voter} votes for {candidate} in term {term}; its disk knows of {} in {}",
            head.vote,
            head.term
        );
    }

    /// A writer was answered. `known` is what [`Self::known`] was when it asked.
    pub(super) fn acknowledge(&mut self, number: u64, version: u64, position: usize, known: u64) {
        let found = self.applied.get(position.wrapping_sub(1)).map(|(version, number, _)| (*version, *number));
        assert_eq!(found, Some((version, number)), "command {number} was answered, but not applied there");
        assert!(version > known, "command {number} got version {version}, though {known} was answered before");
        let before = self.acknowledged.insert(number, version);
        assert_eq!(before, None, "command {number} was answered twice");
        self.known = self.known.max(version);
    }

    /// A writer was told that nothing was logged.
    pub(super) fn refuse(&mut self, number: u64) {
        assert!(!self.numbers.contains(&number), "command {number} was refused and yet applied");
        self.refused.insert(number);
    }

    /// A reader was answered. `known` is what [`Self::known`] was when it asked.
    pub(super) fn check_read(&mut self, peer: u64, version: u64, known: u64) {
        assert!(version >= known, "peer {peer}: read version {version}, though {known} was answered before");
        self.known = self.known.max(version);
    }

    /// The highest version anybody has been told of.
    pub(super) fn known(&self) -> u64 {
        self.known
    }

    /// The answered command must be on the disks of a majority.
    pub(super) fn check_majority<'a>(&self, version: u64, voters: &ConfState, medium: impl Fn(&u64) -> &'a Medium) {
        let term = self.committed.get(&version).map(|(term, _)| *term);
        let term = term.unwrap_or_else(|| panic!("version {version} was answered, but is not committed"));
        let holds = |peer: &&u64| disk_holds(medium(peer), version, term);
        for half in [&voters.voters, &voters.voters_outgoing] {
            let holders = half.iter().filter(holds).count();
            assert!(
                half.is_empty() || holders > half.len() / 2,
                "version {version} was answered, and is on {holders} of {} disks",
                half.len()
            );
        }
    }

    pub(super) fn is_acknowledged(&self, number: u64) -> bool {
        self.acknowledged.contains_key(&number)
    }

    /// Everything answered is in the machine.
    pub(super) fn check_final(&self, ledger: &Ledger) {
        let present: BTreeMap<_, _> = ledger.since(0).map(|(version, number)| (number, version)).collect();
        for (number, version) in &self.acknowledged {
            assert_eq!(present.get(number), Some(version), "command {number} was answered and is lost");
        }
    }
}

pub(super) fn disk_head(medium: &Medium) -> Head {
    let content = medium.content();
    let key = Key::Head.to_bytes();
    let payload = content.records.get(&key).and_then(|record| unseal(&key, record));
    payload.and_then(Head::from_bytes).expect("a peer has a log")
}

/// Whether the disk has the entry, by itself or in a snapshot.
fn disk_holds(medium: &Medium, index: u64, term: u64) -> bool {
    let content = medium.content();
    let read = |key: Key| {
        let bytes = key.to_bytes();
        let payload = content.records.get(&bytes).and_then(|record| unseal(&bytes, record));
        payload.map(<[u8]>::to_vec).ok_or_else(|| Damage::Missing { record: key.to_string() })
    };
    let snapshot = read(Key::Snapshot).and_then(|bytes| Snapshot::from_bytes(&bytes)).expect("a peer has a snapshot");
    if snapshot.metadata.index >= index {
        return true;
    }
    let Ok(link) = record::join(|part| Key::Entry { index, part }, read) else { return false };
    // The chain comes first.
    let mut fields = Fields(&link);
    fields.u32().and_then(|_| Entry::parse_from_bytes(fields.0).ok()).is_some_and(|entry| entry.term == term)
}
