//! An image made of a container: its image's layers, and one more with what it wrote.
//!
//! The layer is spooled to the store's disk first, for its digest is in the configuration, which comes before it. Then an
//! archive goes out as `docker save` writes it, but without the layers of the container's image: whoever loads it has
//! those, or is refused. Guarantees: nothing of it is left in the store, whatever happens. Absent: putting it into this
//! store, which is done as in every other.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use roster_proto::wire::{self, image_change::Change};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Image, ImageStore, config::ParsedConfig, digest::Digest, error::ImageError, limits::Limits, reference::Name,
    store::Staging,
};

const LAYER: &str = "layer.tar";
/// Of layers that are left out.
const LEFT_OUT: &str = "of-the-base";

/// What people want of the image.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub name: String,
    pub message: String,
    pub author: String,
    /// As RFC 3339 has it.
    pub created: String,
    pub changes: Vec<wire::ImageChange>,
}

/// Ready to be sent.
#[derive(Debug)]
pub struct Staged {
    name: Name,
    config: Vec<u8>,
    id: Digest,
    /// Of the image it is made on.
    below: Vec<Digest>,
    layer: PathBuf,
    _staging: Staging,
}

impl ImageStore {
    /// The image that a container of these layers, uppermost first, was made of: the one called so, if it has them still.
    pub async fn under(&self, reference: &str, layers: &[PathBuf]) -> Result<Image, ImageError> {
        let is_it = |image: &Image| layers.iter().rev().eq(image.layers.iter());
        if let Some(image) = self.resolve(reference).await?.filter(is_it) {
            return Ok(image);
        }
        let found = self.list().await?.into_iter().find(is_it);
        found.ok_or_else(|| ImageError::NotFound {
            reference: reference.to_owned(),
            place: "the image that the container was made of is no longer on its node".to_owned(),
        })
    }

    /// Refuses at once what no image may be called.
    pub fn may_be_called(&self, name: &str) -> Result<(), ImageError> {
        tagged(name).map(drop)
    }

    /// Spools the layer that `write` writes. Blocks.
    pub fn stage(
        &self,
        base: &Image,
        wanted: &Wanted,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<Staged, ImageError> {
        let (store, limits) = (&self.store, &self.store.limits);
        let name = tagged(&wanted.name)?;
        let base_id: Digest = base
            .id
            .parse()
            .map_err(|error: super::digest::InvalidDigest| ImageError::bad("the base", error.to_string()))?;
        let path = store.blob_path(base_id);
        let bytes = fs::read(&path).map_err(|error| ImageError::io("read", &path, error))?;
        let below = ParsedConfig::parse(&bytes, &base.id, limits)?.diff_ids;
        if below.len() >= limits.layers {
            return Err(ImageError::TooLarge { what: "the number of its layers".into(), limit: limits.layers as u64 });
        }
        let staging = store.staging()?;
        let layer = staging.path.join(LAYER);
        let diff = spool(&layer, limits, write)?;
        let config =
            configuration(&bytes, diff, wanted).map_err(|what| ImageError::bad("the image's configuration", what))?;
        if config.len() as u64 > limits.document_bytes {
            return Err(ImageError::TooLarge {
                what: "the image's configuration".into(),
                limit: limits.document_bytes,
            });
        }
        Ok(Staged { name, id: Digest::of(&config), config, below, layer, _staging: staging })
    }
}

impl Staged {
    /// The archive. Blocks.
    pub fn send(&self, out: impl Write) -> io::Result<()> {
        let config = format!("{}.json", self.id.hex());
        let mut layers: Vec<String> = self.below.iter().map(|diff| format!("{LEFT_OUT}/{}", diff.hex())).collect();
        layers.push(LAYER.to_owned());
        let manifest = json!([{ "Config": config, "RepoTags": [self.name.to_string()], "Layers": layers }]);
        let mut archive = tar::Builder::new(out);
        let mut add = |name: &str, size: u64, content: &mut dyn io::Read| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(size);
            archive.append_data(&mut header, name, content)
        };
        let manifest = manifest.to_string();
        add("manifest.json", manifest.len() as u64, &mut manifest.as_bytes())?;
        add(&config, self.config.len() as u64, &mut self.config.as_slice())?;
        let mut layer = File::open(&self.layer)?;
        add(LAYER, layer.metadata()?.len(), &mut layer)?;
        archive.into_inner()?.flush()
    }
}

/// A name for a new image.
fn tagged(name: &str) -> Result<Name, ImageError> {
    let parsed = Name::parse(name)?;
    if parsed.is_tag() {
        return Ok(parsed);
    }
    let reason = "a new image is called NAME or NAME:TAG; its digest is only known when it is made".to_owned();
    Err(ImageError::BadReference { reference: name.to_owned(), reason })
}

fn spool(
    path: &Path,
    limits: &Limits,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<Digest, ImageError> {
    let failed = |error| ImageError::io("write", path, error);
    let file = File::create_new(path).map_err(failed)?;
    let mut hashing =
        Hashing { inner: BufWriter::new(file), hasher: Sha256::new(), left: limits.commit_bytes, full: false };
    let written = write(&mut hashing).and_then(|()| hashing.flush());
    if hashing.full {
        let what = "what the container wrote".to_owned();
        return Err(ImageError::TooLarge { what, limit: limits.commit_bytes });
    }
    written.map_err(failed)?;
    Ok(Digest::finished(hashing.hasher))
}

/// Keeps the digest of what is written, up to a limit.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    left: u64,
    full: bool,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() as u64 > self.left {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.inner.write(data)?;
        self.hasher.update(&data[..written]);
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The base's, with one more layer and what is wanted of it. What it says that is not known here stays.
fn configuration(base: &[u8], diff: Digest, wanted: &Wanted) -> Result<Vec<u8>, String> {
    let mut config: Map<String, Value> = serde_json::from_slice(base).map_err(|error| error.to_string())?;
    let diffs = config.get_mut("rootfs").and_then(|rootfs| rootfs.get_mut("diff_ids")).and_then(Value::as_array_mut);
    diffs.ok_or("it lists no layers")?.push(json!(diff.to_string()));
    let mut step = BTreeMap::from([("created", wanted.created.as_str()), ("created_by", "rctl commit")]);
    config.insert("created".to_owned(), json!(wanted.created));
    if !wanted.author.is_empty() {
        config.insert("author".to_owned(), json!(wanted.author));
        step.insert("author", &wanted.author);
    }
    if !wanted.message.is_empty() {
        step.insert("comment", &wanted.message);
    }
    let history = config.entry("history").or_insert_with(|| json!([]));
    if history.is_null() {
        *history = json!([]);
    }
    history.as_array_mut().ok_or("its history is no list")?.push(json!(step));
    let settings = config.entry("config").or_insert_with(|| json!({}));
    if settings.is_null() {
        *settings = json!({});
    }
    let settings = settings.as_object_mut().ok_or("its config is no object")?;
    let mut has_command = false;
    for change in wanted.changes.iter().filter_map(|change| change.change.as_ref()) {
        has_command |= matches!(change, Change::Cmd(_));
        apply(settings, change, has_command)?;
    }
    serde_json::to_vec(&config).map_err(|error| error.to_string())
}

fn apply(settings: &mut Map<String, Value>, change: &Change, has_command: bool) -> Result<(), String> {
    match change {
        Change::Cmd(words) => _ = settings.insert("Cmd".to_owned(), json!(words.values)),
        Change::Entrypoint(words) => {
            settings.insert("Entrypoint".to_owned(), json!(words.values));
            // The base's command was for the base's entrypoint.
            if !has_command {
                settings.remove("Cmd");
            }
        }
        Change::Env(variable) => {
            let all = list(settings, "Env")?;
            let prefix = format!("{}=", variable.name);
            all.retain(|known| !known.as_str().is_some_and(|known| known.starts_with(&prefix)));
            all.push(json!(format!("{prefix}{}", variable.value)));
        }
        Change::Workdir(dir) => {
            let before = settings.get("WorkingDir").and_then(Value::as_str).filter(|dir| !dir.is_empty());
            let dir = Path::new(before.unwrap_or("/")).join(dir);
            settings.insert("WorkingDir".to_owned(), json!(dir.to_string_lossy()));
        }
        Change::User(user) => _ = settings.insert("User".to_owned(), json!(user)),
        Change::Expose(port) => _ = object(settings, "ExposedPorts")?.insert(port.clone(), json!({})),
        Change::Label(label) => _ = object(settings, "Labels")?.insert(label.name.clone(), json!(label.value)),
    }
    Ok(())
}

fn list<'a>(settings: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>, String> {
    let value = settings.entry(key).or_insert_with(|| json!([]));
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or_else(|| format!("its {key} is no list"))
}

fn object<'a>(settings: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Map<String, Value>, String> {
    let value = settings.entry(key).or_insert_with(|| json!({}));
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or_else(|| format!("its {key} is no object"))
}
