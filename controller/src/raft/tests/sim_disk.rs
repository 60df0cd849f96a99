//! A disk in memory that survives its users, crashes when told to, and lies when told to.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use super::super::{
    disk::{Batch, Disk},
    error::DiskError,
    record::Key,
    witness::Witness,
};

pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Debug, Default)]
pub(super) struct Medium(Arc<Mutex<Content>>);

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) records: Records,
    pub(super) witness: Witness,
    /// The records after each write, when they are recorded.
    pub(super) history: Option<Vec<Records>>,
    /// How many operations succeed before one fails, and whether that one takes effect all the same.
    pub(super) crash: Option<(usize, bool)>,
    /// It did fail.
    pub(super) failed: bool,
}

impl Medium {
    /// One that remembers what it held after each write.
    pub(super) fn recording() -> Self {
        let medium = Self::default();
        medium.content().history = Some(Vec::new());
        medium
    }

    pub(super) fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }

    pub(super) fn crash_after(&self, operations: usize, effective: bool) {
        self.content().crash = Some((operations, effective));
    }

    /// A copy that goes its own way.
    pub(super) fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.content().clone())))
    }

    /// Mounts it again after a crash.
    pub(super) fn disk(&self) -> SimDisk {
        let mut content = self.content();
        content.crash = None;
        content.failed = false;
        SimDisk { medium: self.clone(), witness: content.witness.clone() }
    }
}

#[derive(Debug)]
pub(super) struct SimDisk {
    medium: Medium,
    witness: Witness,
}

impl SimDisk {
    fn operate(&self, effect: impl FnOnce(&mut Content)) -> Result<(), DiskError> {
        let mut content = self.medium.content();
        match &mut content.crash {
            Some((0, effective)) => {
                // Once failed, always failed: the next must not even be tried.
                if std::mem::take(effective) {
                    effect(&mut content);
                }
                content.failed = true;
                let source = "simulated".into();
                Err(DiskError { action: "write", path: PathBuf::from("simulated"), source })
            }
            Some((left, _)) => {
                *left -= 1;
                effect(&mut content);
                Ok(())
            }
            None => {
                effect(&mut content);
                Ok(())
            }
        }
    }
}

impl Disk for SimDisk {
    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.medium.content().records.get(&key.to_bytes()).cloned())
    }

    fn keys(&self) -> Result<Vec<Vec<u8>>, DiskError> {
        Ok(self.medium.content().records.keys().cloned().collect())
    }

    async fn write(&mut self, batch: Batch, witness: Witness) -> Result<(), DiskError> {
        self.operate(|content| {
            for key in batch.removals {
                content.records.remove(&key);
            }
            content.records.extend(batch.puts);
            if let Some(history) = &mut content.history {
                history.push(content.records.clone());
            }
        })?;
        self.operate(|content| content.witness = witness)
    }

    fn witness(&self) -> &Witness {
        &self.witness
    }
}
