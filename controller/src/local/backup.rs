//! What a backup looks like: a header that says what it is, and the state of one version, encoded.
//!
//! ```text
//! "roster-backup\n"  format (1 byte)  length of the header (4 bytes)  header (JSON)  state  CRC-32 of all that (4 bytes)
//! ```
//!
//! Numbers are big-endian. Everything is checked before anything is done with it.

use bytes::{BufMut, Bytes, BytesMut};
use roster_proto::{
    id::{ClusterId, Version},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::state::{ClusterState, CodecError};

const MAGIC: &[u8] = b"roster-backup\n";
const FORMAT: u8 = 1;
const MAX_HEADER: usize = 64 * 1024;
/// The largest that is taken: far more than the limits of a cluster's state add up to.
pub(crate) const MAX_BACKUP: usize = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("this is no backup of a cluster: `rctl cluster backup` makes one")]
    NotABackup,
    #[error("the backup is of format {found}, this controller knows format {FORMAT}: use a release that knows it")]
    Format { found: u8 },
    #[error("the backup is cut off: {have} of {length} bytes are there")]
    Short { have: usize, length: u64 },
    #[error("more follows the backup's end")]
    Long,
    #[error("the backup does not match its checksum: it is damaged")]
    Checksum,
    #[error("the backup's header is damaged: {0}")]
    Header(String),
    #[error("the state in the backup (made by release {release}) cannot be used")]
    State { release: String, source: CodecError },
    #[error(
        "the backup is of a controller that was never made a cluster: start a controller on a copy of its directory"
    )]
    NoCluster,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) release: String,
    /// `None`: of a controller that was never made a cluster.
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) version: Version,
    pub(crate) at: Timestamp,
    length: u64,
}

pub(crate) fn write(state: &ClusterState, at: Timestamp) -> Bytes {
    let body = state.encode();
    let header = Header {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: state.security.cluster.clone(),
        version: state.version,
        at,
        length: body.len() as u64,
    };
    let header = serde_json::to_vec(&header).expect("plain data has a JSON form");
    let mut bytes = BytesMut::with_capacity(MAGIC.len() + 9 + header.len() + body.len());
    bytes.put_slice(MAGIC);
    bytes.put_u8(FORMAT);
    bytes.put_u32(u32::try_from(header.len()).expect("a header is small"));
    bytes.put_slice(&header);
    bytes.put_slice(&body);
    bytes.put_u32(crc32fast::hash(&bytes));
    bytes.freeze()
}

pub(crate) fn read(bytes: &[u8]) -> Result<(Header, ClusterState), BackupError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(BackupError::NotABackup)?;
    let (format, rest) = rest.split_first().ok_or(BackupError::NotABackup)?;
    if *format != FORMAT {
        return Err(BackupError::Format { found: *format });
    }
    let (length, rest) = rest.split_first_chunk().ok_or(BackupError::NotABackup)?;
    let length = u32::from_be_bytes(*length) as usize;
    let header = rest.get(..length.min(MAX_HEADER)).filter(|header| header.len() == length);
    let header = header.ok_or_else(|| BackupError::Header("it is cut off".to_owned()))?;
    let header: Header = serde_json::from_slice(header).map_err(|error| BackupError::Header(error.to_string()))?;
    let rest = &rest[length..];
    let wanted = header.length.saturating_add(4);
    match rest.len() as u64 {
        have if have < wanted => return Err(BackupError::Short { have: rest.len(), length: wanted }),
        have if have > wanted => return Err(BackupError::Long),
        _ => {}
    }
    let (body, crc) = rest.split_at(rest.len() - 4);
    if crc32fast::hash(&bytes[..bytes.len() - 4]).to_be_bytes() != crc {
        return Err(BackupError::Checksum);
    }
    let release = || header.release.clone();
    let state = ClusterState::decode(body).map_err(|source| BackupError::State { release: release(), source })?;
    if state.version != header.version || state.security.cluster != header.cluster {
        return Err(BackupError::Header("it is not of this state".to_owned()));
    }
    Ok((header, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_read_as_it_was_written() {
        let mut state = ClusterState::default();
        state.version = Version(7);
        let bytes = write(&state, Timestamp(1));
        let (header, read) = read(&bytes).expect("it is whole");
        assert_eq!((header.version, read), (Version(7), state));
    }

    #[test]
    fn whatever_is_wrong_with_a_backup_is_found() {
        let bytes = write(&ClusterState::default(), Timestamp(1)).to_vec();
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(read(&damaged).is_err(), "damaged at {at}");
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(matches!(read(&longer), Err(BackupError::Long)));
        assert!(matches!(read(b"PK\x03\x04"), Err(BackupError::NotABackup)));
    }
}
