//! The directory of the store, its index in memory, and what keeps the two together.
//!
//! One writer at a time changes the index (`writing`); readers take the current one without waiting for a disk. A
//! layer that someone is about to rely on is pinned, so that [`Store::sweep`] leaves it alone.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Image, Removed,
    config::ParsedConfig,
    digest::Digest,
    error::ImageError,
    index::{ImageRecord, Index, LayerRecord},
    limits::Limits,
    pull::Registries,
    reference::{Name, Reference},
};

/// Images whose parsed configuration is kept in memory.
const PARSED_IMAGES: usize = 128;

#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    pub(super) limits: Limits,
    pub(super) registries: Registries,
    index: RwLock<Arc<Index>>,
    writing: Mutex<()>,
    pins: Mutex<HashMap<Digest, usize>>,
    parsed: Mutex<HashMap<Digest, Parsed>>,
    staged: AtomicU64,
    users: Users,
}

/// Tells which layers are in use by containers.
pub(super) struct Users(pub(super) Box<dyn Fn() -> io::Result<Vec<PathBuf>> + Send + Sync>);

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Users")
    }
}

#[derive(Clone, Debug)]
struct Parsed {
    config: ParsedConfig,
    layers: Arc<[PathBuf]>,
}

/// Held by whoever changes the index or removes files.
pub(super) type Writing<'s> = MutexGuard<'s, ()>;

/// Nothing panics while it holds one of these locks; what they guard is whole between any two statements anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    pub(super) fn open(root: &Path, limits: Limits, users: Users) -> Result<Self, ImageError> {
        let store = Self {
            root: root.to_owned(),
            limits,
            registries: Registries::default(),
            index: RwLock::default(),
            writing: Mutex::default(),
            pins: Mutex::default(),
            parsed: Mutex::default(),
            staged: AtomicU64::new(0),
            users,
        };
        let staging = store.root.join("staging");
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::io("remove", &staging, error));
            }
            _ => {}
        }
        for dir in [store.blob_dir(), store.layer_dir(), staging] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|error| ImageError::io("make", &dir, error))?;
        }
        let mut index = Index::read(&store.index_path())?;
        let writing = store.write_lock();
        if store.drop_incomplete(&mut index) {
            index.write(&store.index_path())?;
        }
        store.set_index(index);
        store.sweep(&writing)?;
        drop(writing);
        Ok(store)
    }

    pub(super) fn index(&self) -> Arc<Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_index(&self, index: Index) {
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(index);
    }

    pub(super) fn write_lock(&self) -> Writing<'_> {
        lock(&self.writing)
    }

    /// Puts a changed index on disk, then in force.
    pub(super) fn replace_index(&self, _writing: &Writing<'_>, index: Index) -> Result<(), ImageError> {
        index.write(&self.index_path())?;
        self.set_index(index);
        Ok(())
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(super) fn blob_dir(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(super) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.blob_dir().join(digest.hex())
    }

    pub(super) fn layer_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Named by bare digits: a colon would end a path in overlayfs' mount options.
    pub(super) fn layer_path(&self, chain: Digest) -> PathBuf {
        self.layer_dir().join(chain.hex())
    }

    /// A new directory for unfinished work, removed with everything in it when dropped.
    pub(super) fn staging(&self) -> Result<Staging, ImageError> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("staging").join(number.to_string());
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| ImageError::io("make", &path, error))?;
        Ok(Staging { path })
    }

    /// Keeps a layer from being swept away, and tells whether it is there.
    pub(super) fn pin(&self, chain: Digest) -> Option<LayerRecord> {
        // First pinned, then looked up: a sweep in between leaves it.
        *lock(&self.pins).entry(chain).or_default() += 1;
        self.index().images.values().flat_map(|image| &image.layers).find(|layer| layer.chain == chain).copied()
    }

    pub(super) fn unpin(&self, chain: Digest) {
        let mut pins = lock(&self.pins);
        if let Some(count) = pins.get_mut(&chain) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&chain);
            }
        }
    }

    /// The image a reference means, if the store has it.
    pub(super) fn find(&self, index: &Index, text: &str) -> Result<Option<Digest>, ImageError> {
        Ok(match Reference::parse(text)? {
            Reference::Id(id) => index.images.contains_key(&id).then_some(id),
            Reference::Name(name) => index.names.get(&name.to_string()).copied(),
            Reference::IdPrefix { digits, name } => {
                if let Some(id) = name.and_then(|name| index.names.get(&name.to_string())) {
                    return Ok(Some(*id));
                }
                let mut matching = index.images.keys().filter(|id| id.hex().starts_with(&digits));
                let found = matching.next().copied();
                if matching.next().is_some() {
                    let reason = "several images' ids begin with it: write more digits".to_owned();
                    return Err(ImageError::BadReference { reference: text.to_owned(), reason });
                }
                found
            }
        })
    }

    /// The image, if its configuration is in memory.
    pub(super) fn cached(&self, index: &Index, id: Digest) -> Option<Image> {
        let parsed = lock(&self.parsed).get(&id).cloned()?;
        Some(image_of(id, index.images.get(&id)?, index, parsed))
    }

    /// The image, its configuration read and checked. Blocks on the disk.
    pub(super) fn load_image(&self, index: &Index, id: Digest) -> Result<Option<Image>, ImageError> {
        if let Some(image) = self.cached(index, id) {
            return Ok(Some(image));
        }
        let Some(record) = index.images.get(&id) else { return Ok(None) };
        let path = self.blob_path(id);
        let bytes = fs::read(&path).map_err(|error| ImageError::io("read", &path, error))?;
        let found = Digest::of(&bytes);
        if found != id {
            return Err(ImageError::DigestMismatch {
                what: path.display().to_string(),
                expected: id.to_string(),
                found: found.to_string(),
            });
        }
        let parsed = Parsed {
            config: ParsedConfig::parse(&bytes, &path.display().to_string(), &self.limits)?,
            layers: record.layers.iter().map(|layer| self.layer_path(layer.chain)).collect(),
        };
        let mut cache = lock(&self.parsed);
        if cache.len() >= PARSED_IMAGES {
            let any = cache.keys().next().copied();
            any.map(|id| cache.remove(&id));
        }
        cache.insert(id, parsed.clone());
        drop(cache);
        Ok(Some(image_of(id, record, index, parsed)))
    }

    /// Takes a name away, or with an id all of an image's; an image without a tag goes. Blocks on the disk.
    pub(super) fn remove(&self, text: &str, in_use: &HashSet<String>) -> Result<Removed, ImageError> {
        let writing = self.write_lock();
        let mut index = (*self.index()).clone();
        let Some(id) = self.find(&index, text)? else {
            return Err(ImageError::NotFound {
                reference: text.to_owned(),
                place: "this node does not have it".into(),
            });
        };
        let by_name = match Reference::parse(text)? {
            Reference::Name(name) => Some(name),
            Reference::IdPrefix { name, .. } => name.filter(|name| index.names.contains_key(&name.to_string())),
            Reference::Id(_) => None,
        };
        let mut removed = Removed::default();
        let goes = match &by_name {
            None => true,
            Some(name) => {
                index.names.remove(&name.to_string());
                removed.untagged.push(name.familiar());
                // Digests stay only as long as a tag does, unless it was by digest that people named it.
                let mut left = index.names.iter().filter(|(_, of)| **of == id).map(|(name, _)| name);
                !left.any(|left| !name.is_tag() || !left.contains('@'))
            }
        };
        if goes {
            if in_use.contains(&id.to_string()) {
                return Err(ImageError::InUse { reference: text.to_owned() });
            }
            removed
                .untagged
                .extend(index.names_of(id).iter().filter_map(|name| Name::parse(name).ok()).map(|n| n.familiar()));
            index.names.retain(|_, of| *of != id);
            index.images.remove(&id);
            removed.deleted = Some(id.to_string());
        }
        self.replace_index(&writing, index)?;
        lock(&self.parsed).remove(&id);
        self.sweep(&writing)?;
        Ok(removed)
    }

    /// Removes the layers and blobs that no image refers to, no container uses, and nobody is about to refer to.
    pub(super) fn sweep(&self, _writing: &Writing<'_>) -> Result<(), ImageError> {
        let index = self.index();
        let layers: HashSet<String> =
            index.images.values().flat_map(|image| &image.layers).map(|layer| layer.chain.hex()).collect();
        let blobs: HashSet<String> = index.images.keys().map(Digest::hex).collect();
        let used = (self.users.0)()
            .map_err(|error| ImageError::io("find the containers that use", &self.layer_dir(), error))?;
        let used: HashSet<&str> = used.iter().map(|layer| file_name(layer)).collect();
        let unwanted = self.staging()?;
        {
            let pins = lock(&self.pins);
            let pinned: HashSet<String> = pins.keys().map(Digest::hex).collect();
            for (number, path) in entries(&self.layer_dir())?.into_iter().enumerate() {
                let name = file_name(&path);
                if !layers.contains(name) && !pinned.contains(name) && !used.contains(name) {
                    let target = unwanted.path.join(number.to_string());
                    fs::rename(&path, target).map_err(|error| ImageError::io("remove", &path, error))?;
                }
            }
        }
        for path in entries(&self.blob_dir())? {
            if !blobs.contains(file_name(&path)) {
                fs::remove_file(&path).map_err(|error| ImageError::io("remove", &path, error))?;
            }
        }
        Ok(())
    }

    /// Forgets images that lost a part, for example to a careless `rm`: they would fail at every start.
    fn drop_incomplete(&self, index: &mut Index) -> bool {
        let is_whole = |id: &Digest, image: &ImageRecord| {
            self.blob_path(*id).is_file() && image.layers.iter().all(|layer| self.layer_path(layer.chain).is_dir())
        };
        let before = index.images.len();
        index.images.retain(|id, image| {
            let whole = is_whole(id, image);
            if !whole {
                tracing::warn!(image = %id, "an image lost some of its files and is forgotten: load or pull it again");
            }
            whole
        });
        let images = &index.images;
        index.names.retain(|_, id| images.contains_key(id));
        before != index.images.len()
    }
}

fn image_of(id: Digest, record: &ImageRecord, index: &Index, parsed: Parsed) -> Image {
    let names = index.names_of(id).into_iter();
    Image {
        id: id.to_string(),
        names: names.map(|name| Name::parse(name).map_or_else(|_| name.to_owned(), |name| name.familiar())).collect(),
        config: parsed.config.config,
        layers: parsed.layers,
        size: record.config_size + record.layers.iter().map(|layer| layer.size).sum::<u64>(),
        healthcheck: parsed.config.healthcheck,
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|error| ImageError::io("list", dir, error))
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// A directory for unfinished work.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) path: PathBuf,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "unfinished work of the image store stays until restart");
        }
    }
}
