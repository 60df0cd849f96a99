//! What the store has, as one small file: written whole, flushed, and put in place by a rename.
//!
//! The index alone says what is in the store. A layer or blob it does not name is a leftover.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{digest::Digest, error::ImageError};

/// Of the file's format.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    format: u32,
    /// By the digest of their configuration.
    pub(super) images: BTreeMap<Digest, ImageRecord>,
    /// Whole names, with tag or digest, and the image each means.
    pub(super) names: BTreeMap<String, Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// Lowest first, each by its ChainID, which is also the name of its directory.
    pub(super) layers: Vec<LayerRecord>,
    /// Bytes of the configuration.
    pub(super) config_size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) chain: Digest,
    /// Bytes of its files.
    pub(super) size: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self { format: FORMAT, images: BTreeMap::new(), names: BTreeMap::new() }
    }
}

impl Index {
    /// An absent file is an empty store.
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(ImageError::io("read", path, error)),
        };
        let damaged = |reason: String| ImageError::DamagedIndex { path: path.to_owned(), reason };
        let index: Self = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if index.format != FORMAT {
            return Err(damaged(format!("it has format {}, this is format {FORMAT}", index.format)));
        }
        if let Some(name) = index.names.iter().find_map(|(name, id)| (!index.images.contains_key(id)).then_some(name)) {
            return Err(damaged(format!("{name} names no image")));
        }
        Ok(index)
    }

    /// Returns when it is on disk.
    pub(super) fn write(&self, path: &Path) -> Result<(), ImageError> {
        let bytes = serde_json::to_vec(self).expect("maps with string keys and plain numbers serialize");
        write_durably(path, &bytes)
    }

    /// Names with a tag; for an image that has none, those with a digest.
    pub(super) fn names_of(&self, id: Digest) -> Vec<&str> {
        let all: Vec<&str> = self.names.iter().filter(|(_, of)| **of == id).map(|(name, _)| name.as_str()).collect();
        let tags: Vec<&str> = all.iter().copied().filter(|name| !name.contains('@')).collect();
        if tags.is_empty() { all } else { tags }
    }
}

/// Writes a file so that after a crash there is either the old or the new one.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let unfinished = path.with_extension("new");
    let write = || {
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(|error: io::Error| ImageError::io("write", path, error))?;
    match path.parent() {
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Makes the renames within a directory last.
pub(super) fn sync_dir(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| ImageError::io("flush", path, error))
}
