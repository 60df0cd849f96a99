//! One agent's images: a content-addressed store on disk, filled from archives and registries.
//!
//! ```text
//! ROOT/index.json            what there is: images, their layers, names (the only truth, replaced atomically)
//! ROOT/blobs/sha256/HEX      configurations; an image's id is its configuration's digest
//! ROOT/layers/HEX/           unpacked layers by ChainID, each ready as an overlayfs lower directory
//! ROOT/staging/              unfinished work; emptied at open
//! ```
//!
//! Guarantees: a crash at any point leaves an image wholly there or not at all. What an archive or registry says is
//! checked against the digests it claims, from the manifest down to the layers' content. Nothing an archive contains
//! reaches a path outside its own layer's directory. Memory stays bounded: archives and layers stream.
//!
//! Deliberately absent: the compressed layer blobs (nothing here serves images on), credentials for registries, and a
//! lock on the root: whoever opens a store sees to it that no other process has it open.

mod archive;
pub(crate) mod beneath;
mod commit;
mod config;
mod digest;
mod error;
mod import;
mod index;
mod limits;
mod manifest;
mod pipe;
mod pull;
mod reference;
mod store;
#[cfg(test)]
mod tests;
mod unpack;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared, WeakShared},
};
use oci_spec::image::ImageConfiguration;
use roster_proto::{id::NodeId, report::ImageInfo, spec::Healthcheck};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

pub use self::{
    commit::{Staged, Wanted},
    error::{ErrorKind, ImageError},
};
use self::{
    digest::Digest,
    limits::Limits,
    reference::Reference,
    store::{Store, Users},
};

/// Asked whenever layers are to be deleted.
pub type LayersInUse = Box<dyn Fn() -> io::Result<Vec<PathBuf>> + Send + Sync>;

/// Bytes of an archive taken from its sender at a time.
const CHUNK: usize = 64 << 10;

/// Whether two ways to write a reference mean the same: `web` and `web:latest`. A malformed one is like no other.
pub fn is_same_reference(one: &str, other: &str) -> bool {
    matches!((Reference::parse(one), Reference::parse(other)), (Ok(one), Ok(other)) if one == other)
}

/// The images of one agent. Cheap to share as `Arc<ImageStore>`; every method may be called at the same time.
#[derive(Debug)]
pub struct ImageStore {
    store: Arc<Store>,
    /// Pulls under way, by the whole name: whoever asks meanwhile waits for the same one.
    pulls: Mutex<HashMap<String, WeakShared<Pulling>>>,
}

type Pulling = BoxFuture<'static, Result<Digest, ImageError>>;

/// An image that is present and unpacked.
#[derive(Clone, Debug)]
pub struct Image {
    /// The configuration's digest, as Docker's image id: `sha256:…`.
    pub id: String,
    /// Its names as people write them (`hello:latest`), sorted; with a digest only where it has no tag.
    pub names: Vec<String>,
    /// Without the history.
    pub config: Arc<ImageConfiguration>,
    /// Unpacked layers for overlayfs, lowest first (`lowerdir=` wants them the other way round).
    pub layers: Arc<[PathBuf]>,
    /// Bytes on disk.
    pub size: u64,
    /// Docker's addition to the configuration.
    pub healthcheck: Option<Healthcheck>,
}

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone, as people write them.
    pub untagged: Vec<String>,
    /// The id of the image, if it went too.
    pub deleted: Option<String>,
}

impl ImageStore {
    /// Opens or makes the store at `root`, and removes what unfinished work left. Blocks on the disk.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        Self::open_with(root, Limits::default(), Box::new(|| Ok(Vec::new())))
    }

    /// The same, and the layers that `used` names stay, whatever becomes of their images.
    pub fn open_for(root: &Path, used: LayersInUse) -> Result<Self, ImageError> {
        Self::open_with(root, Limits::default(), used)
    }

    fn open_with(root: &Path, limits: Limits, used: LayersInUse) -> Result<Self, ImageError> {
        Ok(Self { store: Arc::new(Store::open(root, limits, Users(used))?), pulls: Mutex::default() })
    }

    /// The image that `reference` means, if it is here: `name[:tag][@digest]`, or an image id (`sha256:…`, or at
    /// least 12 of its digits). From memory, but for the first time.
    pub async fn resolve(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let index = self.store.index();
        match self.store.find(&index, reference)? {
            None => Ok(None),
            Some(id) => self.image(id).await,
        }
    }

    /// The image if it is here, else pulled. Calls for one reference at the same time pull once.
    pub async fn ensure(&self, reference: &str) -> Result<Image, ImageError> {
        match self.resolve(reference).await? {
            Some(image) => Ok(image),
            None => self.pull(reference).await,
        }
    }

    /// Takes in all images of a docker-archive or OCI-layout tar (plain, gzip or zstd), or none. An OCI index with
    /// several platforms gives this host's.
    pub async fn load(&self, archive: impl AsyncRead + Send + Unpin) -> Result<Vec<Image>, ImageError> {
        let (writer, reader) = pipe::pipe();
        let store = self.store.clone();
        let loading = blocking(move || archive::load(store, reader));
        let pieces = ReaderStream::with_capacity(archive, CHUNK)
            .map(|piece| piece.map_err(|error: io::Error| ImageError::Interrupted { source: Some(Arc::new(error)) }));
        let (loaded, ()) = futures::join!(loading, writer.send(pieces));
        let mut images = Vec::new();
        for id in loaded? {
            images.extend(self.image(id).await?);
        }
        Ok(images)
    }

    /// Fetches the image from its registry, whether or not it is here; layers that are here are not fetched again.
    pub async fn pull(&self, reference: &str) -> Result<Image, ImageError> {
        let name = match Reference::parse(reference)? {
            Reference::Name(name) | Reference::IdPrefix { name: Some(name), .. } => name,
            Reference::Id(_) | Reference::IdPrefix { name: None, .. } => {
                let place = "this node does not have it, and a registry cannot be asked for an id".to_owned();
                return Err(ImageError::NotFound { reference: reference.to_owned(), place });
            }
        };
        let id = self.pulling(name).await?;
        let gone = || ImageError::NotFound { reference: reference.to_owned(), place: "it was removed at once".into() };
        self.image(id).await?.ok_or_else(gone)
    }

    /// All images, by id.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut images = Vec::new();
        for id in self.store.index().images.keys() {
            images.extend(self.image(*id).await?);
        }
        Ok(images)
    }

    /// Takes the name away; the image goes with its last tag, and with it the layers no other image has. An id takes
    /// all of its image's names. An image whose id is in `in_use` is not deleted: [`ImageError::InUse`], and nothing
    /// changes.
    pub async fn remove(&self, reference: &str, in_use: &HashSet<String>) -> Result<Removed, ImageError> {
        let (store, reference, in_use) = (self.store.clone(), reference.to_owned(), in_use.clone());
        blocking(move || store.remove(&reference, &in_use)).await
    }

    async fn image(&self, id: Digest) -> Result<Option<Image>, ImageError> {
        let index = self.store.index();
        if let Some(image) = self.store.cached(&index, id) {
            return Ok(Some(image));
        }
        let store = self.store.clone();
        blocking(move || store.load_image(&index, id)).await
    }

    /// Joins the pull of that name under way, or begins one. It goes on as long as anyone waits for it.
    fn pulling(&self, name: reference::Name) -> Shared<Pulling> {
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|_, pull| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        let key = name.to_string();
        if let Some(pull) = pulls.get(&key).and_then(WeakShared::upgrade) {
            return pull;
        }
        let pull = pull::pull(self.store.clone(), name).boxed().shared();
        pulls.extend(pull.downgrade().map(|weak| (key, weak)));
        pull
    }
}

impl Image {
    pub fn info(&self, node: &NodeId) -> ImageInfo {
        let labels = self.config.config().as_ref().and_then(|config| config.labels().clone());
        ImageInfo {
            node: node.clone(),
            id: self.id.clone(),
            names: self.names.clone(),
            size: self.size,
            created: self.config.created().clone(),
            labels: labels.map(BTreeMap::from_iter).unwrap_or_default(),
        }
    }
}

/// Unpacks a layer (tar; plain, gzip or zstd) into an empty directory, as an image's first one. Returns the bytes of its
/// files. Blocks.
pub fn unpack_layer(layer: impl io::Read, target: &Path) -> Result<u64, ImageError> {
    let limits = Limits::default();
    let mut budget = limits.unpacked_bytes;
    Ok(unpack::unpack(layer, "the layer", target, &[], &mut budget, &limits)?.size)
}

/// Runs disk work off the async threads. Dropping the future does not stop it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(_) => Err(ImageError::Interrupted { source: None }),
        },
    }
}
