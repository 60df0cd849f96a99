//! The machine the simulation replicates: which command it was given, and where in the log.

use roster_proto::id::Version;

use super::super::super::{Machine, Undecodable};

/// Every command it was given, in order, and a hash over all of that: two ledgers of one length and hash are equal.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    marks: imbl::Vector<(u64, u64)>,
    hash: u64,
    /// How many bytes its commands carried. A snapshot carries as many, so that some have many parts.
    ballast: u64,
}

/// A command: its number, which no other command has, and how many bytes it carries besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) number: u64,
    pub(super) ballast: usize,
}

impl Ledger {
    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// Where in the log the last command lies.
    pub(super) fn version(&self) -> u64 {
        self.marks.last().map_or(0, |(version, _)| *version)
    }

    /// Version and number of the commands from the `first`-th on.
    pub(super) fn since(&self, first: usize) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.marks.iter().skip(first).copied()
    }

    fn push(&mut self, version: u64, number: u64) {
        self.marks.push_back((version, number));
        for part in [version, number] {
            self.hash = (self.hash.rotate_left(5) ^ part).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}

fn numbers(bytes: &[u8]) -> Result<Vec<u64>, Undecodable> {
    let (words, rest) = bytes.as_chunks();
    if rest.is_empty() {
        Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
    } else {
        Err(Undecodable::new("not a whole number of words"))
    }
}

impl Machine for Ledger {
    type Command = Mark;
    /// How many commands there are now.
    type Output = usize;

    fn encode_command(command: &Mark) -> Vec<u8> {
        let mut bytes = command.number.to_be_bytes().to_vec();
        bytes.resize(8 + command.ballast, 0);
        bytes
    }

    fn apply(&mut self, version: Version, command: &[u8]) -> Result<usize, Undecodable> {
        let (number, ballast) = command.split_first_chunk().ok_or_else(|| Undecodable::new("too short"))?;
        self.push(version.0, u64::from_be_bytes(*number));
        self.ballast += ballast.len() as u64;
        Ok(self.marks.len())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.ballast.to_be_bytes().to_vec();
        for (version, number) in &self.marks {
            bytes.extend(version.to_be_bytes());
            bytes.extend(number.to_be_bytes());
        }
        bytes.resize(bytes.len() + self.ballast as usize, 0);
        bytes
    }

    fn decode(snapshot: &[u8]) -> Result<Self, Undecodable> {
        let short = || Undecodable::new("too short");
        let (ballast, rest) = snapshot.split_first_chunk().ok_or_else(short)?;
        let ballast = u64::from_be_bytes(*ballast);
        let marks = rest.len().checked_sub(ballast as usize).ok_or_else(short)?;
        let mut ledger = Self { ballast, ..Self::default() };
        for pair in numbers(&rest[..marks])?.chunks(2) {
            let [version, number] = pair else { return Err(short()) };
            ledger.push(*version, *number);
        }
        Ok(ledger)
    }
}
