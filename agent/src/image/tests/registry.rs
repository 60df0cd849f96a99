//! Pulling: from Debian's registry as skopeo filled it, and from one that lies.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    body::Body,
    http::{StatusCode, Uri, header},
    response::Response,
};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Fixture,
    build::{INDEX, ImageSource, MANIFEST, Tar, docker_archive, for_platform, gzip, oci_archive},
};
use crate::image::{ErrorKind, ImageError, digest::Digest, limits::Limits, manifest::host_architecture};

/// A docker-registry on a port of its own, ended with this value.
struct Registry {
    process: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '127.0.0.1:0'}}\n",
            dir.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("docker-registry does not start ({error}): apt-get install docker-registry")
            });
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut seen = Vec::new();
        let address = loop {
            let Some(Ok(line)) = log.next() else { panic!("docker-registry ended: {seen:#?}") };
            if let Some((_, rest)) = line.split_once("listening on ") {
                let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit()).unwrap_or(rest.len());
                break rest[..end].to_owned();
            }
            seen.push(line);
        };
        // Keeps its log from filling the pipe; ends with it.
        std::thread::spawn(move || log.for_each(drop));
        Self { process, address, _dir: dir }
    }

    /// `transport` is skopeo's word for the archive's format.
    fn push(&self, transport: &str, archive: &Path, name: &str) {
        let target = format!("docker://{}/{name}", self.address);
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("{transport}:{}", archive.display()))
            .arg(target)
            .output()
            .unwrap_or_else(|error| panic!("skopeo does not start ({error}): apt-get install skopeo"));
        assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_digest() {
    let fixture = Fixture::new();
    let registry = Registry::start();
    let base = Tar::new().dir("bin").file("bin/base", "base").finish();
    let source = |text: &str| ImageSource::new("any:latest", vec![base.clone(), Tar::new().file("top", text).finish()]);
    for (name, transport) in [("team/hello:v1", "docker-archive"), ("hello", "oci-archive")] {
        let source = source(name);
        let bytes = match transport {
            "docker-archive" => docker_archive(std::slice::from_ref(&source)),
            _ => oci_archive(&source, gzip),
        };
        let archive = fixture.dir.path().join("outer/archive.tar");
        std::fs::write(&archive, bytes).unwrap();
        registry.push(transport, &archive, name);
        let reference = format!("{}/{name}", registry.address);
        let image = fixture.store.ensure(&reference).await.unwrap();
        assert_eq!(image.id, source.id(), "the configuration came through as it was");
        assert_eq!(image.names.len(), 1);
        assert!(image.names[0].starts_with(&reference), "{:?}", image.names);
        assert_eq!(std::fs::read(image.layers[0].join("bin/base")).unwrap(), b"base");
        assert_eq!(std::fs::read_to_string(image.layers[1].join("top")).unwrap(), name);
        let pulled = fixture.store.pull(&reference).await.unwrap();
        assert_eq!(pulled.layers, image.layers);
    }
    assert_eq!(fixture.store.list().await.unwrap().len(), 2);

    let missing = format!("{}/hello:absent", registry.address);
    let error = fixture.store.ensure(&missing).await.unwrap_err();
    assert_eq!((error.kind(), error.is_transient()), (ErrorKind::NotFound, false), "{error}");
    let digest = format!("{}/hello@{}", registry.address, Digest::of(b"absent"));
    let error = fixture.store.ensure(&digest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");

    let address = registry.address.clone();
    drop(registry);
    fixture.store.ensure(&format!("{address}/hello")).await.unwrap();
    let error = fixture.store.pull(&format!("{address}/hello")).await.unwrap_err();
    assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Unavailable, true), "{error}");
    assert!(error.to_string().contains("refused"), "it says why: {error}");
}

/// A registry that answers what it was told to.
#[derive(Default)]
struct Script {
    answers: HashMap<String, (StatusCode, String, Vec<Bytes>)>,
    /// Break the connection after the answer's last piece.
    breaks: Option<String>,
    manifests_asked: AtomicUsize,
}

impl Script {
    fn blob(&mut self, digest: &Value, bytes: &[u8]) {
        let path = format!("/v2/web/blobs/{}", digest.as_str().unwrap());
        let pieces = bytes.chunks(bytes.len().div_ceil(3).max(1)).map(Bytes::copy_from_slice).collect();
        self.answers.insert(path, (StatusCode::OK, "application/octet-stream".to_owned(), pieces));
    }

    fn manifest(&mut self, reference: &str, bytes: impl Into<Vec<u8>>, media_type: &str) {
        let path = format!("/v2/web/manifests/{reference}");
        self.answers.insert(path, (StatusCode::OK, media_type.to_owned(), vec![bytes.into().into()]));
    }

    /// Everything of an image; returns its manifest.
    fn image(&mut self, source: &ImageSource) -> Value {
        let descriptor = |bytes: &[u8], kind: &str| {
            let media_type = format!("application/vnd.oci.image.{kind}");
            json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
        };
        let layer = gzip(&source.layers[0]);
        let config = source.config_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(&config, "config.v1+json"), "layers": [descriptor(&layer, "layer.v1.tar+gzip")],
        });
        self.blob(&manifest["config"]["digest"], &config);
        self.blob(&manifest["layers"][0]["digest"], &layer);
        self.manifest("latest", manifest.to_string(), MANIFEST);
        manifest
    }

    async fn serve(self) -> (String, Arc<Self>) {
        let script = Arc::new(self);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = script.clone();
        let app = axum::Router::new().fallback(move |uri: Uri| {
            let script = shared.clone();
            async move { script.answer(uri.path()) }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        (format!("{address}/web"), script)
    }

    fn answer(&self, path: &str) -> Response {
        if path == "/v2/" {
            return Response::new(Body::empty());
        }
        if path.contains("/manifests/") {
            self.manifests_asked.fetch_add(1, Ordering::SeqCst);
        }
        let Some((status, media_type, pieces)) = self.answers.get(path) else {
            return Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap();
        };
        let breaks = self.breaks.as_ref().is_some_and(|broken| path.ends_with(broken.as_str()));
        let end = breaks.then(|| Err(std::io::Error::other("broken off")));
        let pieces = pieces.clone().into_iter().map(Ok).chain(end);
        Response::builder()
            .status(*status)
            .header(header::CONTENT_TYPE, media_type)
            .body(Body::from_stream(futures::stream::iter(pieces)))
            .unwrap()
    }
}

async fn pull_refused(script: Script) -> ImageError {
    let fixture = Fixture::with_limits(Limits { document_bytes: 16 << 10, ..Limits::default() });
    let before = fixture.contents();
    let (reference, _script) = script.serve().await;
    let error = fixture.store.ensure(&reference).await.unwrap_err();
    assert_eq!(fixture.contents(), before, "a refused pull left something ({error})");
    error
}

#[tokio::test]
async fn of_a_registrys_platforms_this_hosts_is_pulled_and_found_by_both_digests() {
    let fixture = Fixture::new();
    let mut script = Script::default();
    let source = ImageSource::hello("web");
    let manifest = script.image(&source).to_string();
    let digest = Digest::of(manifest.as_bytes());
    let descriptor = json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": manifest.len()});
    let other = json!({"mediaType": MANIFEST, "digest": Digest::of(b"other").to_string(), "size": 5});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        for_platform(other, "linux", "s390x"), for_platform(descriptor, "linux", host_architecture()),
    ]})
    .to_string();
    script.manifest(&digest.to_string(), manifest, MANIFEST);
    script.manifest("latest", index.clone(), INDEX);
    let (reference, script) = script.serve().await;
    assert_eq!(fixture.store.ensure(&reference).await.unwrap().id, source.id());
    let asked = script.manifests_asked.load(Ordering::SeqCst);
    for digest in [digest, Digest::of(index.as_bytes())] {
        assert_eq!(fixture.store.ensure(&format!("{reference}@{digest}")).await.unwrap().id, source.id());
    }
    assert_eq!(script.manifests_asked.load(Ordering::SeqCst), asked, "it was present");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_at_once_pull_once() {
    let fixture = Arc::new(Fixture::new());
    let mut script = Script::default();
    let source = ImageSource::hello("web");
    script.image(&source);
    let (reference, script) = script.serve().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (fixture, reference) = (fixture.clone(), reference.clone());
        tasks.spawn(async move { fixture.store.ensure(&reference).await.unwrap().id });
    }
    while let Some(id) = tasks.join_next().await {
        assert_eq!(id.unwrap(), source.id());
    }
    assert_eq!(script.manifests_asked.load(Ordering::SeqCst), 1);
    assert!(fixture.store.pulls.lock().unwrap().len() <= 1, "pulls that ended are forgotten");
}

#[tokio::test]
async fn a_registry_that_lies_is_not_believed() {
    let source = ImageSource::hello("web");
    let wrong = ImageSource::hello("wrong");

    let mut script = Script::default();
    let manifest = script.image(&source);
    script.blob(&manifest["layers"][0]["digest"], &gzip(&wrong.layers[0]));
    assert_eq!(pull_refused(script).await.kind(), ErrorKind::Invalid);

    let mut script = Script::default();
    let manifest = script.image(&source);
    let longer = [gzip(&source.layers[0]), vec![0; 1000]].concat();
    script.blob(&manifest["layers"][0]["digest"], &longer);
    let error = pull_refused(script).await;
    assert!(error.to_string().contains("more"), "{error}");

    let mut script = Script::default();
    let manifest = script.image(&source);
    let same_length = vec![b' '; source.config_bytes().len()];
    script.blob(&manifest["config"]["digest"], &same_length);
    let error = pull_refused(script).await;
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");

    let mut script = Script::default();
    let mut manifest = script.image(&source);
    manifest["layers"] = json!([]);
    script.manifest("latest", manifest.to_string(), MANIFEST);
    assert_eq!(pull_refused(script).await.kind(), ErrorKind::Invalid);

    let mut script = Script::default();
    script.manifest("latest", " ".repeat(20 << 10), MANIFEST);
    assert!(matches!(pull_refused(script).await, ImageError::TooLarge { .. }));

    let fixture = Fixture::new();
    let mut script = Script::default();
    let manifest = script.image(&source);
    let asked = Digest::of(b"another manifest");
    script.manifest(&asked.to_string(), manifest.to_string(), MANIFEST);
    let (reference, _script) = script.serve().await;
    let error = fixture.store.ensure(&format!("{reference}@{asked}")).await.unwrap_err();
    assert!(!error.is_transient(), "{error}");
    assert!(fixture.store.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_may_pass_is_told_from_what_will_not() {
    let source = ImageSource::hello("web");
    let mut script = Script::default();
    let manifest = script.image(&source);
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let path = format!("/v2/web/blobs/{layer}");
    script.answers.get_mut(&path).unwrap().2.pop();
    script.breaks = Some(layer);
    let error = pull_refused(script).await;
    assert!(error.is_transient(), "{error}");

    for (status, transient) in [
        (StatusCode::INTERNAL_SERVER_ERROR, true),
        (StatusCode::SERVICE_UNAVAILABLE, true),
        (StatusCode::TOO_MANY_REQUESTS, true),
        (StatusCode::UNAUTHORIZED, false),
        (StatusCode::FORBIDDEN, false),
        (StatusCode::NOT_FOUND, false),
    ] {
        let mut script = Script::default();
        script.manifest("latest", "sorry", MANIFEST);
        script.answers.get_mut("/v2/web/manifests/latest").unwrap().0 = status;
        let error = pull_refused(script).await;
        assert_eq!(error.is_transient(), transient, "{status}: {error}");
    }
}
