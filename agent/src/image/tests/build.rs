//! Builds tar streams, layers and archives for the tests.

use std::io::Write;

use serde_json::{Value, json};

use crate::image::{digest::Digest, manifest::host_architecture};

/// A tar stream under construction. Names are written as they are given, sensible or not.
#[derive(Clone, Default)]
pub(super) struct Tar(Vec<u8>);

/// One header.
#[derive(Clone)]
pub(super) struct Entry<'e> {
    pub(super) kind: u8,
    pub(super) path: &'e [u8],
    pub(super) link: &'e [u8],
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: u64,
    pub(super) device: (u32, u32),
    pub(super) data: &'e [u8],
    /// What the header says, where it lies.
    pub(super) size: Option<u64>,
    pub(super) pax: Vec<(&'e [u8], &'e [u8])>,
}

pub(super) const MTIME: u64 = 1_234_567_890;

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            kind: b'0',
            path: b"file",
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: MTIME,
            device: (0, 0),
            data: b"",
            size: None,
            pax: Vec::new(),
        }
    }
}

impl Tar {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn entry(mut self, entry: Entry<'_>) -> Self {
        if !entry.pax.is_empty() {
            let records: Vec<u8> = entry.pax.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
            self = self.entry(Entry { kind: b'x', path: b"pax", data: &records, ..Entry::default() });
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(entry.kind));
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(entry.gid);
        header.set_mtime(entry.mtime);
        header.set_size(entry.size.unwrap_or(entry.data.len() as u64));
        header.set_device_major(entry.device.0).unwrap();
        header.set_device_minor(entry.device.1).unwrap();
        let old = header.as_old_mut();
        assert!(entry.path.len() <= 100 && entry.link.len() <= 100, "long names are written with pax");
        old.name[..entry.path.len()].copy_from_slice(entry.path);
        old.linkname[..entry.link.len()].copy_from_slice(entry.link);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.raw(entry.data).pad()
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn pad(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, path: &str, data: impl AsRef<[u8]>) -> Self {
        self.entry(Entry { path: path.as_bytes(), data: data.as_ref(), ..Entry::default() })
    }

    pub(super) fn dir(self, path: &str) -> Self {
        self.entry(Entry { kind: b'5', path: path.as_bytes(), mode: 0o755, ..Entry::default() })
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(Entry {
            kind: b'2',
            path: path.as_bytes(),
            link: target.as_bytes(),
            mode: 0o777,
            ..Entry::default()
        })
    }

    pub(super) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(Entry { kind: b'1', path: path.as_bytes(), link: target.as_bytes(), ..Entry::default() })
    }

    /// With the two blocks of zeros at its end.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    pub(super) fn unfinished(self) -> Vec<u8> {
        self.0
    }
}

pub(super) fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// An image: its layers as plain tar streams, and how its configuration describes them.
#[derive(Clone)]
pub(super) struct ImageSource {
    pub(super) names: Vec<String>,
    pub(super) layers: Vec<Vec<u8>>,
    pub(super) config: Value,
}

impl ImageSource {
    pub(super) fn new(name: &str, layers: Vec<Vec<u8>>) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({
            "created": "2026-01-02T03:04:05Z",
            "architecture": host_architecture(),
            "os": "linux",
            "config": {
                "Env": ["PATH=/bin"], "Entrypoint": null, "Cmd": ["/bin/hello"], "Labels": {"made.by": name},
                "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 1_500_000_000, "Retries": 2},
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "a test"}],
        });
        Self { names: vec![name.to_owned()], layers, config }
    }

    /// One layer with one file.
    pub(super) fn hello(name: &str) -> Self {
        Self::new(name, vec![Tar::new().dir("bin").file("bin/hello", name).finish()])
    }

    pub(super) fn config_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).unwrap()
    }

    pub(super) fn id(&self) -> String {
        Digest::of(&self.config_bytes()).to_string()
    }
}

/// As `docker save` before version 25: a directory for each layer, then configuration and manifest.
pub(super) fn docker_archive(images: &[ImageSource]) -> Vec<u8> {
    docker_archive_packed(images, <[u8]>::to_vec)
}

pub(super) fn docker_archive_packed(images: &[ImageSource], pack: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut manifest = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let mut layers = Vec::new();
        for (level, layer) in image.layers.iter().enumerate() {
            let dir = format!("{number}{level}");
            let name = format!("{dir}/layer.tar");
            tar = tar.dir(&dir).file(&format!("{dir}/VERSION"), "1.0").file(&name, pack(layer));
            layers.push(name);
        }
        let config = format!("{}.json", image.id().strip_prefix("sha256:").unwrap());
        tar = tar.file(&config, image.config_bytes());
        manifest.push(json!({"Config": config, "RepoTags": image.names, "Layers": layers}));
    }
    tar.file("manifest.json", Value::from(manifest).to_string()).finish()
}

/// An OCI image layout as a tar.
pub(super) struct Layout {
    tar: Tar,
    written: Vec<Digest>,
    manifests: Vec<Value>,
}

impl Layout {
    pub(super) fn new() -> Self {
        let tar = Tar::new().dir("blobs").dir("blobs/sha256").file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        Self { tar, written: Vec::new(), manifests: Vec::new() }
    }

    pub(super) fn blob(&mut self, bytes: &[u8], media_type: &str) -> Value {
        let digest = Digest::of(bytes);
        if !self.written.contains(&digest) {
            self.written.push(digest);
            self.tar = std::mem::take(&mut self.tar).file(&format!("blobs/sha256/{}", digest.hex()), bytes);
        }
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Writes an image's blobs; returns its manifest's descriptor.
    pub(super) fn image(&mut self, image: &ImageSource, pack: fn(&[u8]) -> Vec<u8>) -> Value {
        let layers: Vec<Value> = image
            .layers
            .iter()
            .map(|layer| self.blob(&pack(layer), "application/vnd.oci.image.layer.v1.tar+gzip"))
            .collect();
        let config = self.blob(&image.config_bytes(), "application/vnd.oci.image.config.v1+json");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        self.blob(manifest.to_string().as_bytes(), MANIFEST)
    }

    pub(super) fn index(&mut self, manifests: Vec<Value>) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.blob(index.to_string().as_bytes(), INDEX)
    }

    pub(super) fn add(mut self, descriptor: Value) -> Self {
        self.manifests.push(descriptor);
        self
    }

    pub(super) fn file(mut self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.tar = self.tar.file(name, data);
        self
    }

    pub(super) fn finish(self) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        self.tar.file("index.json", index.to_string()).finish()
    }
}

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(super) fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"io.containerd.image.name": name});
    descriptor
}

pub(super) fn for_platform(mut descriptor: Value, os: &str, architecture: &str) -> Value {
    descriptor["platform"] = json!({"os": os, "architecture": architecture});
    descriptor
}

pub(super) fn oci_archive(image: &ImageSource, pack: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut layout = Layout::new();
    let descriptor = layout.image(image, pack);
    layout.add(named(descriptor, &image.names[0])).finish()
}
