//! Brings images into the store: layers are unpacked aside, and all appears at once.
//!
//! Guarantees: until [`Import::commit`] has written the index, nothing of the import is in the store; what a crash
//! leaves behind is removed at the next open. Every layer is checked against the DiffID its image's configuration
//! gives, and where it has one against the digest and size of its blob.

use std::{collections::BTreeMap, fs, io, io::Read, path::PathBuf, sync::Arc};

use nix::errno::Errno;

use super::{
    config::ParsedConfig,
    digest::Digest,
    error::ImageError,
    index::{ImageRecord, LayerRecord, sync_dir, write_durably},
    reference::Name,
    store::{Staging, Store},
    unpack,
};

#[derive(Debug)]
pub(super) struct Import {
    store: Arc<Store>,
    staging: Staging,
    pinned: Vec<Digest>,
    /// Layers unpacked aside, by their ChainID.
    unpacked: BTreeMap<Digest, (LayerRecord, PathBuf)>,
    images: Vec<Pending>,
    /// Bytes that may still be unpacked.
    budget: u64,
}

/// An image whose layers come one after another.
#[derive(Debug)]
pub(super) struct Pending {
    id: Digest,
    config: Vec<u8>,
    diff_ids: Vec<Digest>,
    /// Those that are there already.
    layers: Vec<LayerRecord>,
    pub(super) names: Vec<Name>,
}

/// What is known of a layer's blob beforehand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

impl Import {
    pub(super) fn begin(store: Arc<Store>) -> Result<Self, ImageError> {
        let staging = store.staging()?;
        let budget = store.limits.unpacked_bytes;
        Ok(Self { store, staging, pinned: Vec::new(), unpacked: BTreeMap::new(), images: Vec::new(), budget })
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(super) fn staging(&self) -> &std::path::Path {
        &self.staging.path
    }

    /// Begins an image that has `layers` layers.
    pub(super) fn image(&self, config: Vec<u8>, layers: usize, place: &str) -> Result<Pending, ImageError> {
        let diff_ids = ParsedConfig::parse(&config, place, &self.store.limits)?.diff_ids;
        if diff_ids.len() != layers {
            let what = format!("it lists {layers} layers, its configuration {}", diff_ids.len());
            return Err(ImageError::bad(place, what));
        }
        Ok(Pending { id: Digest::of(&config), config, diff_ids, layers: Vec::new(), names: Vec::new() })
    }

    /// The image's next layer if the store has it already; it then need not be fetched.
    pub(super) fn reuse_layer(&mut self, image: &mut Pending) -> bool {
        let chain = image.next_chain();
        let known = self.unpacked.get(&chain).map(|(record, _)| *record).or_else(|| {
            self.pinned.push(chain);
            self.store.pin(chain)
        });
        image.layers.extend(known);
        known.is_some()
    }

    /// Unpacks the image's next layer.
    pub(super) fn add_layer(
        &mut self,
        image: &mut Pending,
        input: impl Read,
        blob: Option<Blob>,
        place: &str,
    ) -> Result<(), ImageError> {
        let chain = image.next_chain();
        let target = self.staging.path.join(format!("layer-{}", chain.hex()));
        fs::create_dir(&target).map_err(|error| ImageError::io("make", &target, error))?;
        let lowers: Vec<PathBuf> = image.layers.iter().map(|layer| self.path_of(layer.chain)).collect();
        let limits = &self.store.limits;
        let found = unpack::unpack(input, place, &target, &lowers, &mut self.budget, limits)?;
        let mismatch = |what: &str, expected: Digest, found: Digest| ImageError::DigestMismatch {
            what: format!("{what} {place}"),
            expected: expected.to_string(),
            found: found.to_string(),
        };
        if let Some(blob) = blob {
            if found.blob != blob.digest {
                return Err(mismatch("the blob of", blob.digest, found.blob));
            }
            if found.blob_size != blob.size {
                let what = format!("it should have {} bytes and has {}", blob.size, found.blob_size);
                return Err(ImageError::bad(place, what));
            }
        }
        let expected = image.next_diff();
        if found.diff != expected {
            return Err(mismatch("the content of", expected, found.diff));
        }
        let record = LayerRecord { chain, size: found.size };
        self.unpacked.insert(chain, (record, target));
        image.layers.push(record);
        Ok(())
    }

    /// All of the image's layers are there.
    pub(super) fn add_image(&mut self, image: Pending) {
        debug_assert_eq!(image.layers.len(), image.diff_ids.len(), "an image is added when it is whole");
        self.images.push(image);
    }

    pub(super) fn image_mut(&mut self, id: Digest) -> Option<&mut Pending> {
        self.images.iter_mut().find(|image| image.id == id)
    }

    fn path_of(&self, chain: Digest) -> PathBuf {
        match self.unpacked.get(&chain) {
            Some((_, path)) => path.clone(),
            None => self.store.layer_path(chain),
        }
    }

    /// Puts everything in place. Returns the images' ids, each once, in the order they were added.
    pub(super) fn commit(self) -> Result<Vec<Digest>, ImageError> {
        let store = self.store.clone();
        if !self.unpacked.is_empty() {
            // The one call that makes thousands of small files last; the index must not name what a crash could take.
            fs::File::open(&self.staging.path)
                .and_then(|dir| Ok(nix::unistd::syncfs(&dir)?))
                .map_err(|error| ImageError::io("flush", &self.staging.path, error))?;
        }
        let writing = store.write_lock();
        let result = self.install(&writing);
        // Unpins before a sweep could take what was installed for an index that could not be written.
        drop(self);
        if result.is_err() {
            store.sweep(&writing)?;
        }
        result
    }

    fn install(&self, writing: &super::store::Writing<'_>) -> Result<Vec<Digest>, ImageError> {
        for (chain, (_, path)) in &self.unpacked {
            let target = self.store.layer_path(*chain);
            match fs::rename(path, &target) {
                Ok(()) => {}
                // Someone else brought the same layer meanwhile.
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(ImageError::io("make", &target, error)),
            }
        }
        sync_dir(&self.store.layer_dir())?;
        let mut index = (*self.store.index()).clone();
        let mut ids = Vec::new();
        for image in &self.images {
            write_durably(&self.store.blob_path(image.id), &image.config)?;
            let record = ImageRecord { layers: image.layers.clone(), config_size: image.config.len() as u64 };
            index.images.insert(image.id, record);
            index.names.extend(image.names.iter().map(|name| (name.to_string(), image.id)));
            if !ids.contains(&image.id) {
                ids.push(image.id);
            }
        }
        self.store.replace_index(writing, index)?;
        Ok(ids)
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        for chain in self.pinned.drain(..) {
            self.store.unpin(chain);
        }
    }
}

impl Pending {
    pub(super) fn id(&self) -> Digest {
        self.id
    }

    fn next_diff(&self) -> Digest {
        self.diff_ids[self.layers.len()]
    }

    fn next_chain(&self) -> Digest {
        Digest::chain(self.layers.last().map(|layer| layer.chain), self.next_diff())
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOTEMPTY | Errno::EEXIST))
}
