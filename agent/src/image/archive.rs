//! Loads images from a tar: what `docker save` writes, old and new, and an OCI image layout.
//!
//! The old format has its manifest at the end, so the files are first spooled to disk as they come, hashed on the way;
//! then the manifest says what they are. Guarantees: memory is bounded, no name of the archive becomes a name on disk,
//! a blob must be what its name says, and a stream that is cut off is refused even where all images are complete.

use std::{
    collections::{BTreeMap, btree_map},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use oci_spec::image::{Descriptor, ImageManifest, MediaType};
use roster_tree::read::{Entry, TarReader, Trailer, printable};
use serde::Deserialize;
use tar::EntryType;

use super::{
    beneath::EntryPath,
    digest::{Digest, HashingReader},
    error::ImageError,
    import::{Blob, Import},
    limits::Limits,
    manifest::{Document, digest_of, select_platform},
    reference::Name,
    store::Store,
    unpack::{Budgeted, decompress},
};

const PLACE: &str = "the archive";
/// Bytes of a name within an archive: `blobs/sha256/…` has 77.
const NAME_BYTES: usize = 512;
/// A link that leads to a link, and so on.
const LINKS: usize = 8;
/// The image's whole name, in an OCI layout by containerd and Docker.
const NAME_ANNOTATION: &str = "io.containerd.image.name";

/// Reads a whole archive and brings its images into the store. Blocks.
pub(super) fn load(store: Arc<Store>, input: impl Read) -> Result<Vec<Digest>, ImageError> {
    let mut import = Import::begin(store)?;
    let spool = Spool::fill(import.staging(), input, &import.store().limits.clone())?;
    let has = |name: &str| spool.files.contains_key(name);
    if has("index.json") && has("oci-layout") {
        add_layout(&mut import, &spool)?;
        if has("manifest.json") {
            add_names(&mut import, &spool)?;
        }
    } else if has("manifest.json") {
        add_docker_archive(&mut import, &spool)?;
    } else {
        let what =
            "it has neither a manifest.json (docker save) nor an oci-layout with an index.json (OCI image layout)";
        return Err(ImageError::bad(PLACE, what));
    }
    spool.remove()?;
    import.commit()
}

/// The files of an archive, on disk under numbers.
#[derive(Debug)]
struct Spool {
    files: BTreeMap<String, Spooled>,
    /// Old archives hold a repeated layer as a symbolic link to its first occurrence.
    links: BTreeMap<String, String>,
    document_bytes: u64,
}

#[derive(Debug)]
struct Spooled {
    path: PathBuf,
    size: u64,
    digest: Digest,
}

impl Spool {
    fn fill(dir: &Path, input: impl Read, limits: &Limits) -> Result<Self, ImageError> {
        let failed = |error| ImageError::reading(PLACE, error);
        let mut budget = limits.archive_bytes;
        let plain = decompress(input).map_err(failed)?;
        let plain = Budgeted { inner: plain, left: &mut budget, limit: limits.archive_bytes, place: PLACE };
        let mut tar = TarReader::new(plain, Trailer::Required, limits.tar(limits.archive_entries));
        let mut spool = Self { files: BTreeMap::new(), links: BTreeMap::new(), document_bytes: limits.document_bytes };
        let unreadable = |error| ImageError::tar(PLACE, error);
        while let Some(entry) = tar.next_entry().map_err(unreadable)? {
            let Some(name) = archive_name(&entry, limits)? else { continue };
            match entry.kind {
                EntryType::Directory => {}
                EntryType::Regular | EntryType::Continuous => {
                    let path = dir.join(format!("file-{}", spool.files.len()));
                    let spooled = Spooled::write(path, &mut tar.content())?;
                    spool.add(name, spooled)?;
                }
                EntryType::Symlink | EntryType::Link => {
                    let target = link_target(&name, &entry)?;
                    if spool.links.insert(name.clone(), target).is_some() || spool.files.contains_key(&name) {
                        return Err(twice(&name));
                    }
                }
                kind => {
                    let what = format!("{} is neither a file nor a directory ({kind:?})", printable(&entry.path));
                    return Err(ImageError::bad(PLACE, what));
                }
            }
        }
        // To its very end, where a compressed stream has its checksum.
        io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(failed)?;
        Ok(spool)
    }

    fn add(&mut self, name: String, spooled: Spooled) -> Result<(), ImageError> {
        if let Some(digest) = name.strip_prefix("blobs/sha256/").and_then(Digest::from_hex)
            && digest != spooled.digest
        {
            return Err(mismatch(&name, digest, spooled.digest));
        }
        if self.links.contains_key(&name) {
            return Err(twice(&name));
        }
        match self.files.entry(name) {
            btree_map::Entry::Occupied(entry) => Err(twice(entry.key())),
            btree_map::Entry::Vacant(entry) => {
                entry.insert(spooled);
                Ok(())
            }
        }
    }

    fn file(&self, name: &str) -> Result<&Spooled, ImageError> {
        let mut wanted = name;
        for _ in 0..LINKS {
            if let Some(file) = self.files.get(wanted) {
                return Ok(file);
            }
            let Some(target) = self.links.get(wanted) else { break };
            wanted = target;
        }
        Err(ImageError::bad(PLACE, format!("it lacks {}, which it refers to", printable(name.as_bytes()))))
    }

    /// A file that is read into memory.
    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let file = self.file(name)?;
        if file.size > self.document_bytes {
            let what = format!("the size of {}", printable(name.as_bytes()));
            return Err(ImageError::TooLarge { what, limit: self.document_bytes });
        }
        std::fs::read(&file.path).map_err(|error| ImageError::io("read", &file.path, error))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<(String, &Spooled), ImageError> {
        let name = format!("blobs/sha256/{}", digest_of(descriptor, PLACE)?.hex());
        let file = self.file(&name)?;
        if file.size != descriptor.size() {
            let what = format!("{name} should have {} bytes and has {}", descriptor.size(), file.size);
            return Err(ImageError::bad(PLACE, what));
        }
        Ok((name, file))
    }

    fn remove(self) -> Result<(), ImageError> {
        self.files.values().try_for_each(|file| {
            std::fs::remove_file(&file.path).map_err(|error| ImageError::io("remove", &file.path, error))
        })
    }
}

impl Spooled {
    fn write(path: PathBuf, content: &mut impl Read) -> Result<Self, ImageError> {
        let failed = |error| ImageError::io("write", &path, error);
        let mut file = File::create_new(&path).map_err(failed)?;
        let mut content = HashingReader::new(Tagged(content));
        io::copy(&mut content, &mut file).map_err(|error| match error.get_ref() {
            Some(_) => ImageError::reading(PLACE, error),
            None => failed(error),
        })?;
        let (digest, size) = content.finish();
        Ok(Self { path, size, digest })
    }

    fn open(&self) -> Result<File, ImageError> {
        File::open(&self.path).map_err(|error| ImageError::io("read", &self.path, error))
    }
}

/// Tells errors of reading from errors of writing, which io::copy returns alike.
struct Tagged<R>(R);

impl<R: Read> Read for Tagged<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => ImageError::reading(PLACE, error).into(),
        })
    }
}

/// `None` for the archive's root.
fn archive_name(entry: &Entry, limits: &Limits) -> Result<Option<String>, ImageError> {
    let Some(path) = EntryPath::parse(&entry.path, limits).map_err(|what| ImageError::bad(PLACE, what))? else {
        return Ok(None);
    };
    match path.as_path().to_str() {
        Some(name) if name.len() <= NAME_BYTES => Ok(Some(name.to_owned())),
        _ => Err(ImageError::bad(PLACE, format!("the name {} is not allowed", printable(&entry.path)))),
    }
}

/// Resolves a link by its text alone: nothing of the archive is on disk under its name.
fn link_target(name: &str, entry: &Entry) -> Result<String, ImageError> {
    let wrong = || ImageError::bad(PLACE, format!("the link {} leads out of it", printable(name.as_bytes())));
    let target = std::str::from_utf8(&entry.link).map_err(|_| wrong())?;
    if target.starts_with('/') || target.len() > NAME_BYTES {
        return Err(wrong());
    }
    // A hard link's target counts from the root, a symbolic link's from its own directory.
    let mut parts: Vec<&str> = match entry.kind {
        EntryType::Symlink => name.split('/').collect(),
        _ => vec![""],
    };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or_else(wrong)?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

fn twice(name: &str) -> ImageError {
    ImageError::bad(PLACE, format!("{} is in it twice", printable(name.as_bytes())))
}

fn mismatch(what: &str, expected: Digest, found: Digest) -> ImageError {
    ImageError::DigestMismatch {
        what: format!("{} of {PLACE}", printable(what.as_bytes())),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

/// One image of a `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl DockerImage {
    fn read_all(spool: &Spool, limits: &Limits) -> Result<Vec<Self>, ImageError> {
        let bytes = spool.document("manifest.json")?;
        let images: Vec<Self> = serde_json::from_slice(&bytes)
            .map_err(|error| ImageError::bad(PLACE, format!("its manifest.json is malformed: {error}")))?;
        check_count(images.len(), limits)?;
        Ok(images)
    }

    fn names(&self) -> Result<Vec<Name>, ImageError> {
        self.repo_tags.iter().flatten().map(|name| archived_name(name)).collect()
    }

    /// The image's id, where the configuration's file is named by it.
    fn claimed_id(&self) -> Option<Digest> {
        let name = self.config.strip_prefix("blobs/sha256/").unwrap_or(&self.config);
        Digest::from_hex(name.strip_suffix(".json").unwrap_or(name))
    }
}

fn archived_name(name: &str) -> Result<Name, ImageError> {
    Name::parse(name).map_err(|error| ImageError::bad(PLACE, error.to_string()))
}

fn check_count(images: usize, limits: &Limits) -> Result<(), ImageError> {
    match images {
        0 => Err(ImageError::bad(PLACE, "it contains no image")),
        n if n > limits.archive_images => {
            let what = format!("the number of images in {PLACE}");
            Err(ImageError::TooLarge { what, limit: limits.archive_images as u64 })
        }
        _ => Ok(()),
    }
}

fn add_docker_archive(import: &mut Import, spool: &Spool) -> Result<(), ImageError> {
    for listed in DockerImage::read_all(spool, &import.store().limits)? {
        let config = spool.document(&listed.config)?;
        let place = printable(listed.config.as_bytes());
        let mut image = import.image(config, listed.layers.len(), &place)?;
        if let Some(claimed) = listed.claimed_id()
            && claimed != image.id()
        {
            return Err(mismatch(&listed.config, claimed, image.id()));
        }
        image.names = listed.names()?;
        for layer in &listed.layers {
            // One that is here need not be in the archive: a commit's has only the container's own.
            if !import.reuse_layer(&mut image) {
                import.add_layer(&mut image, spool.file(layer)?.open()?, None, &printable(layer.as_bytes()))?;
            }
        }
        import.add_image(image);
    }
    Ok(())
}

/// A `manifest.json` beside an `index.json` says the same again; only its names may be more.
fn add_names(import: &mut Import, spool: &Spool) -> Result<(), ImageError> {
    for listed in DockerImage::read_all(spool, &import.store().limits)? {
        let names = listed.names()?;
        if let Some(image) = listed.claimed_id().and_then(|id| import.image_mut(id)) {
            let new: Vec<Name> = names.into_iter().filter(|name| !image.names.contains(name)).collect();
            image.names.extend(new);
        }
    }
    Ok(())
}

fn add_layout(import: &mut Import, spool: &Spool) -> Result<(), ImageError> {
    let limits = import.store().limits.clone();
    let Document::Index(index) = Document::parse(&spool.document("index.json")?, "index.json", &limits)? else {
        return Err(ImageError::bad(PLACE, "its index.json is not an index"));
    };
    // One image's descriptors: those of one name, or, without names, the platforms.
    let mut images: BTreeMap<(Option<&str>, usize), Vec<&Descriptor>> = BTreeMap::new();
    for (number, descriptor) in index.manifests().iter().enumerate() {
        let name = name_annotation(descriptor);
        let alone = if name.is_none() && descriptor.platform().is_none() { number + 1 } else { 0 };
        images.entry((name, alone)).or_default().push(descriptor);
    }
    check_count(images.len(), &limits)?;
    for ((name, _), descriptors) in images {
        let name = name.map(archived_name).transpose()?;
        let shown = name.as_ref().map_or(PLACE.to_owned(), Name::familiar);
        let (manifest, digest) = find_manifest(spool, &descriptors, &shown, &limits)?;
        add_manifest(import, spool, &manifest, name, digest)?;
    }
    Ok(())
}

/// `org.opencontainers.image.ref.name` is by the specification only a tag; many write the whole name.
fn name_annotation(descriptor: &Descriptor) -> Option<&str> {
    let annotations = descriptor.annotations().as_ref()?;
    let name = annotations
        .get(NAME_ANNOTATION)
        .or_else(|| annotations.get(oci_spec::image::ANNOTATION_REF_NAME).filter(|name| name.contains([':', '/'])));
    name.map(String::as_str)
}

/// From an image's descriptors through indexes to the manifest for this host.
fn find_manifest(
    spool: &Spool,
    descriptors: &[&Descriptor],
    shown: &str,
    limits: &Limits,
) -> Result<(ImageManifest, Digest), ImageError> {
    let mut descriptor = select_platform(descriptors, shown)?.clone();
    for _ in 0..limits.index_depth {
        let (name, file) = spool.blob(&descriptor)?;
        match Document::parse(&spool.document(&name)?, &name, limits)? {
            Document::Manifest(_) if *descriptor.media_type() == MediaType::ImageIndex => {
                return Err(ImageError::bad(PLACE, format!("{name} is a manifest, and referred to as an index")));
            }
            Document::Manifest(manifest) => return Ok((*manifest, file.digest)),
            Document::Index(index) => {
                let inner: Vec<&Descriptor> = index.manifests().iter().collect();
                descriptor = select_platform(&inner, shown)?.clone();
            }
        }
    }
    Err(ImageError::bad(PLACE, "its indexes are nested too deep"))
}

fn add_manifest(
    import: &mut Import,
    spool: &Spool,
    manifest: &ImageManifest,
    name: Option<Name>,
    digest: Digest,
) -> Result<(), ImageError> {
    let (config_name, _) = spool.blob(manifest.config())?;
    let config = spool.document(&config_name)?;
    let mut image = import.image(config, manifest.layers().len(), &config_name)?;
    for layer in manifest.layers() {
        let (layer_name, file) = spool.blob(layer)?;
        if !import.reuse_layer(&mut image) {
            let blob = Blob { digest: file.digest, size: file.size };
            import.add_layer(&mut image, file.open()?, Some(blob), &layer_name)?;
        }
    }
    if let Some(name) = name {
        image.names = vec![name.with_digest(digest), name];
    }
    import.add_image(image);
    Ok(())
}
