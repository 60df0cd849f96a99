//! What the log needs of a disk. sled's is in [`super::sled_disk`]; the tests have one that crashes and lies.

use super::{
    error::{Damage, DiskError},
    record::{Key, seal, unseal},
    witness::Witness,
};

pub(super) trait Disk: Send + 'static {
    /// A record as it was written, seal and all.
    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, DiskError>;

    /// Every key, in order.
    fn keys(&self) -> Result<Vec<Vec<u8>>, DiskError>;

    /// Writes the batch: all of it or nothing, and on the disk for good once this is done. `witness` attests it; that
    /// may reach the disk later, but never before the batch.
    /// After an error, or when the future is dropped, nothing more may be written: what became of the batch is unknown.
    fn write(&mut self, batch: Batch, witness: Witness) -> impl Future<Output = Result<(), DiskError>> + Send;

    /// As it was when the disk was opened.
    fn witness(&self) -> &Witness;
}

/// Records to remove and then to put (sealed), in one piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Batch {
    pub(super) puts: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) removals: Vec<Vec<u8>>,
}

impl Batch {
    pub(super) fn put(&mut self, key: Key, payload: &[u8]) {
        let key = key.to_bytes();
        let record = seal(&key, payload);
        self.puts.push((key, record));
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.removals.push(key.to_bytes());
    }
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error("format {found}")]
    Format { found: u32 },
}

/// The payload of the record, when there is one; its seal is checked.
pub(super) fn read_if_any(disk: &impl Disk, key: Key) -> Result<Option<Vec<u8>>, ReadError> {
    let Some(record) = disk.get(key)? else { return Ok(None) };
    match unseal(&key.to_bytes(), &record) {
        Some(payload) => Ok(Some(payload.to_vec())),
        None => Err(Damage::Checksum { record: key.to_string() }.into()),
    }
}

/// The payload of a record that must be there.
pub(super) fn read(disk: &impl Disk, key: Key) -> Result<Vec<u8>, ReadError> {
    read_if_any(disk, key)?.ok_or_else(|| Damage::Missing { record: key.to_string() }.into())
}
