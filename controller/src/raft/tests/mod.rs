//! The log driven by a toy machine: on sled, and on a disk that crashes and lies.

mod cluster;
mod crash;
mod membership;
mod peers;
mod power_cut;
mod sim;
mod sim_disk;
mod store;
mod stores;

use roster_proto::id::Version;

use super::{Machine, Undecodable};

/// For tests that do one thing after the other.
trait Now: Future + Sized {
    fn now(self) -> Self::Output {
        futures::executor::block_on(self)
    }
}

impl<F: Future> Now for F {}

/// Remembers every word it was given, with its version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Words(imbl::Vector<(u64, String)>);

impl Machine for Words {
    type Command = String;
    /// How many words there are now.
    type Output = usize;

    fn encode_command(command: &String) -> Vec<u8> {
        command.clone().into_bytes()
    }

    fn apply(&mut self, version: Version, command: &[u8]) -> Result<usize, Undecodable> {
        let word = String::from_utf8(command.to_vec()).map_err(Undecodable::new)?;
        self.0.push_back((version.0, word));
        Ok(self.0.len())
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0.iter().collect::<Vec<_>>()).expect("words are serializable")
    }

    fn decode(snapshot: &[u8]) -> Result<Self, Undecodable> {
        let words: Vec<(u64, String)> = serde_json::from_slice(snapshot).map_err(Undecodable::new)?;
        Ok(Self(words.into()))
    }
}

impl Words {
    fn list(&self) -> Vec<String> {
        self.0.iter().map(|(_, word)| word.clone()).collect()
    }
}
