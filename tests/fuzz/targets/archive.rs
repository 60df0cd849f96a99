//! An archive of images is loaded: of `docker save`, or with an OCI layout. Loaded is what the store then has.

#![no_main]

use std::{collections::HashSet, sync::LazyLock};

use futures::executor::block_on;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use roster_agent::image::ImageStore;
use roster_fuzz::{Place, archive::Archive};
use sha2::{Digest, Sha256};
use tokio::runtime::{Builder, Runtime};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);
/// Loading blocks on threads of it.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

#[derive(Arbitrary, Debug)]
enum Input {
    Raw(Archive),
    Images(Images),
}

/// Documents that refer to each other by their digests, which no mutation would hit.
#[derive(Arbitrary, Debug)]
struct Images {
    layers: Vec<Archive>,
    /// Beside the layers that it lists.
    config: String,
    /// Places of `{0}`, `{1}`, … get the digests of blobs by their number: the layers, then the configuration, then the
    /// manifests so far; `{s0}` their sizes.
    documents: Vec<(Document, String)>,
}

#[derive(Arbitrary, Debug)]
enum Document {
    Blob,
    Index,
    Layout,
    DockerManifest,
    /// The usual ones.
    PlainManifest,
    PlainIndex,
    PlainLayout,
    PlainDockerManifest,
}

impl Images {
    fn tar(&self) -> Vec<u8> {
        let mut blobs: Vec<Vec<u8>> = self.layers.iter().take(3).map(Archive::bytes).collect();
        let layers = blobs.len();
        blobs.push(self.configuration(&blobs).into_bytes());
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        for (kind, text) in self.documents.iter().take(8) {
            let text = match kind {
                Document::PlainManifest => plain_manifest(layers),
                Document::PlainIndex => plain_index(blobs.len() - 1),
                Document::PlainDockerManifest => plain_docker_manifest(layers),
                Document::PlainLayout => r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned(),
                _ => text.clone(),
            };
            let text = referring(text, &blobs).into_bytes();
            match kind {
                Document::Blob | Document::PlainManifest => blobs.push(text),
                Document::Index | Document::PlainIndex => files.push(("index.json".to_owned(), text)),
                Document::Layout | Document::PlainLayout => files.push(("oci-layout".to_owned(), text)),
                Document::DockerManifest | Document::PlainDockerManifest => {
                    files.push(("manifest.json".to_owned(), text));
                }
            }
        }
        files.extend(blobs.into_iter().map(|blob| (format!("blobs/sha256/{}", digest(&blob)), blob)));
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, &content[..]).expect("appended");
        }
        tar.into_inner().expect("finished")
    }

    fn configuration(&self, layers: &[Vec<u8>]) -> String {
        let ids: Vec<String> = layers.iter().map(|layer| format!("\"sha256:{}\"", digest(layer))).collect();
        let ids = ids.join(",");
        let rest = if serde_json::from_str::<serde_json::Value>(&self.config).is_ok() { &self.config } else { "{}" };
        let machine = r#""architecture":"amd64","os":"linux""#;
        format!(r#"{{{machine},"config":{rest},"rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#)
    }
}

fn plain_manifest(layers: usize) -> String {
    let media = "application/vnd.oci.image";
    let layer = |number| {
        format!(r#"{{"mediaType":"{media}.layer.v1.tar","digest":"sha256:{{{number}}}","size":{{s{number}}}}}"#)
    };
    let all: Vec<String> = (0..layers).map(layer).collect();
    let config =
        format!(r#"{{"mediaType":"{media}.config.v1+json","digest":"sha256:{{{layers}}}","size":{{s{layers}}}}}"#);
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{media}.manifest.v1+json","config":{config},"layers":[{}]}}"#,
        all.join(",")
    )
}

fn plain_index(blob: usize) -> String {
    let media = "application/vnd.oci.image";
    let manifest =
        format!(r#"{{"mediaType":"{media}.manifest.v1+json","digest":"sha256:{{{blob}}}","size":{{s{blob}}}}}"#);
    format!(r#"{{"schemaVersion":2,"mediaType":"{media}.index.v1+json","manifests":[{manifest}]}}"#)
}

fn plain_docker_manifest(layers: usize) -> String {
    let all: Vec<String> = (0..layers).map(|number| format!("\"blobs/sha256/{{{number}}}\"")).collect();
    format!(r#"[{{"Config":"blobs/sha256/{{{layers}}}","RepoTags":["a:b"],"Layers":[{}]}}]"#, all.join(","))
}

fn referring(mut text: String, blobs: &[Vec<u8>]) -> String {
    for (number, blob) in blobs.iter().enumerate() {
        text = text.replace(&format!("{{{number}}}"), &digest(blob));
        text = text.replace(&format!("{{s{number}}}"), &blob.len().to_string());
    }
    text
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fuzz_target!(|input: Input| {
    let bytes = match input {
        Input::Raw(archive) => archive.bytes(),
        Input::Images(images) => images.tar(),
    };
    let root = PLACE.empty();
    let _entered = RUNTIME.enter();
    let store = ImageStore::open(&root).expect("a store");
    let loaded = block_on(store.load(&bytes[..]));
    PLACE.check();
    let listed = block_on(store.list()).expect("listed");
    match loaded {
        Ok(images) => {
            let ids = |images: &[roster_agent::image::Image]| {
                images.iter().map(|image| image.id.clone()).collect::<HashSet<_>>()
            };
            assert!(!images.is_empty());
            assert_eq!(ids(&images), ids(&listed));
            for image in images {
                assert!(image.layers.iter().all(|layer| layer.is_dir()), "{image:?}");
            }
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(listed.is_empty(), "refused, and there all the same: {listed:?}");
        }
    }
});
