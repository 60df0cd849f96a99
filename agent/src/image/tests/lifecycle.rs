//! Loading, finding, removing; crashes and concurrency.

use std::{collections::HashSet, sync::Arc, time::Duration};

use roster_proto::spec::HealthTest;
use serde_json::json;

use super::{
    Fixture,
    build::{
        ImageSource, Layout, Tar, docker_archive, docker_archive_packed, for_platform, gzip, named, oci_archive, zstd,
    },
};
use crate::image::{ErrorKind, ImageError, ImageStore, manifest::host_architecture};

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn none() -> HashSet<String> {
    HashSet::new()
}

#[tokio::test]
async fn a_docker_archive_is_found_by_every_way_to_write_it() {
    let fixture = Fixture::new();
    let source = ImageSource::hello("hello:latest");
    let loaded = fixture.store.load(&docker_archive(std::slice::from_ref(&source))[..]).await.unwrap();
    assert_eq!(loaded.len(), 1);
    let id = source.id();
    let digits = id.strip_prefix("sha256:").unwrap();
    for reference in [
        "hello",
        "hello:latest",
        "docker.io/library/hello",
        &id,
        digits,
        &digits[..12],
        &format!("sha256:{}", &digits[..20]),
    ] {
        let image =
            fixture.store.resolve(reference).await.unwrap().unwrap_or_else(|| panic!("{reference} is not found"));
        assert_eq!(image.id, id);
        assert_eq!(image.names, ["hello:latest"]);
    }
    for reference in ["hello:other", "other", "team/hello", "sha256:000000000000"] {
        assert!(fixture.store.resolve(reference).await.unwrap().is_none(), "{reference}");
    }
    let image = &loaded[0];
    assert_eq!(std::fs::read(image.layers[0].join("bin/hello")).unwrap(), b"hello:latest");
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_deref(), Some(&["/bin/hello".to_owned()][..]));
    let healthcheck = image.healthcheck.as_ref().unwrap();
    assert_eq!(healthcheck.test, HealthTest::Shell("true".to_owned()));
    assert_eq!(healthcheck.interval, Some(Duration::from_millis(1500)));
    assert_eq!((healthcheck.retries, healthcheck.timeout), (Some(2), None));
    let info = image.info(&"vm1".parse().unwrap());
    assert_eq!(info.labels["made.by"], "hello:latest");
    assert_eq!(info.created.as_deref(), Some("2026-01-02T03:04:05Z"));
    assert_eq!(info.size, source.config_bytes().len() as u64 + "hello:latest".len() as u64);
}

#[tokio::test]
async fn every_format_and_compression_gives_the_same_image() {
    let source = ImageSource::hello("hello:latest");
    let images = std::slice::from_ref(&source);
    let docker = docker_archive(images);
    let oci = oci_archive(&source, gzip);
    for (what, archive) in [
        ("docker, gzip around", gzip(&docker)),
        ("docker, zstd around", zstd(&docker)),
        ("docker, gzip layers", docker_archive_packed(images, gzip)),
        ("oci, plain layers", oci_archive(&source, plain)),
        ("oci, zstd layers", oci_archive(&source, zstd)),
        ("oci, gzip layers and gzip around", gzip(&oci)),
        ("docker", docker),
        ("oci, gzip layers", oci),
    ] {
        let fixture = Fixture::new();
        let loaded = fixture.store.load(&archive[..]).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(loaded[0].id, source.id(), "{what}");
        assert_eq!(loaded[0].names, ["hello:latest"], "{what}");
        assert_eq!(std::fs::read(loaded[0].layers[0].join("bin/hello")).unwrap(), b"hello:latest", "{what}");
    }
}

#[tokio::test]
async fn docker_25_and_containerd_put_both_manifests_into_one_archive() {
    let source = ImageSource::hello("hello:latest");
    let mut layout = Layout::new();
    let descriptor = layout.image(&source, plain);
    let blob = |id: &str| format!("blobs/{}", id.replace(':', "/"));
    let layer = crate::image::digest::Digest::of(&source.layers[0]).to_string();
    let manifest = json!([{
        "Config": blob(&source.id()), "RepoTags": ["hello:latest", "hello:v2"], "Layers": [blob(&layer)],
    }]);
    let archive = layout
        .add(named(descriptor, "docker.io/library/hello:latest"))
        .file("manifest.json", manifest.to_string())
        .finish();
    let fixture = Fixture::new();
    let loaded = fixture.store.load(&archive[..]).await.unwrap();
    assert_eq!(loaded[0].names, ["hello:latest", "hello:v2"]);
}

#[tokio::test]
async fn a_repeated_layer_may_be_a_link_to_its_first_occurrence() {
    let layer = Tar::new().file("same", "bytes").finish();
    let source = ImageSource::new("twice:latest", vec![layer.clone(), layer.clone()]);
    let manifest = json!([{"Config": "config.json", "RepoTags": null, "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let archive = Tar::new()
        .file("a/layer.tar", &layer)
        .symlink("b/layer.tar", "../a/layer.tar")
        .file("config.json", source.config_bytes())
        .file("manifest.json", manifest.to_string())
        .finish();
    let fixture = Fixture::new();
    let loaded = fixture.store.load(&archive[..]).await.unwrap();
    assert_eq!(loaded[0].layers.len(), 2);
    assert!(loaded[0].names.is_empty(), "it has no name");
    assert_eq!(fixture.store.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn of_several_platforms_this_hosts_is_taken() {
    let ours = ImageSource::hello("multi:latest");
    let mut other = ImageSource::new("multi:latest", vec![Tar::new().file("wrong", "platform").finish()]);
    other.config["architecture"] = json!("s390x");
    let mut layout = Layout::new();
    let first = for_platform(layout.image(&other, plain), "linux", "s390x");
    let second = for_platform(layout.image(&ours, plain), "linux", host_architecture());
    let index = layout.index(vec![first, second]);
    let fixture = Fixture::new();
    let loaded = fixture.store.load(&layout.add(named(index, "multi")).finish()[..]).await.unwrap();
    assert_eq!(loaded.iter().map(|image| image.id.clone()).collect::<Vec<_>>(), [ours.id()]);

    let mut layout = Layout::new();
    let only = for_platform(layout.image(&other, plain), "linux", "s390x");
    let error = fixture.refuses(&layout.add(named(only, "multi")).finish()).await;
    assert!(matches!(&error, ImageError::NoPlatform { offered, .. } if offered == &["linux/s390x"]), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn an_image_named_by_digest_is_found_by_it() {
    let source = ImageSource::hello("hello:latest");
    let mut layout = Layout::new();
    let descriptor = layout.image(&source, gzip);
    let digest = descriptor["digest"].as_str().unwrap().to_owned();
    let fixture = Fixture::new();
    fixture.store.load(&layout.add(named(descriptor, "hello")).finish()[..]).await.unwrap();
    let found = fixture.store.resolve(&format!("hello@{digest}")).await.unwrap().unwrap();
    assert_eq!((found.id, found.names), (source.id(), vec!["hello:latest".to_owned()]));
    assert!(fixture.store.resolve(&format!("hello@{}", source.id())).await.unwrap().is_none());
}

#[tokio::test]
async fn a_store_opened_again_has_what_it_had() {
    let fixture = Fixture::new();
    fixture.store.load(&docker_archive(&[ImageSource::hello("hello:latest")])[..]).await.unwrap();
    let before = fixture.contents();
    let again = ImageStore::open(&fixture.root()).unwrap();
    assert_eq!(again.resolve("hello").await.unwrap().unwrap().names, ["hello:latest"]);
    assert_eq!(fixture.contents(), before);
}

#[tokio::test]
async fn what_a_crash_leaves_is_removed_at_open() {
    let fixture = Fixture::new();
    fixture.store.load(&docker_archive(&[ImageSource::hello("hello:latest")])[..]).await.unwrap();
    let before = fixture.contents();
    let root = fixture.root();
    let digits = "0".repeat(64);
    for dir in ["staging/7/layer-x/deep", &format!("layers/{digits}/usr/bin"), "layers/not-a-digest"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["staging/7/file-0", &format!("blobs/sha256/{digits}"), &format!("blobs/sha256/{digits}.new")] {
        std::fs::write(root.join(file), "half").unwrap();
    }
    let again = ImageStore::open(&root).unwrap();
    assert_eq!(fixture.contents(), before);
    assert!(again.resolve("hello").await.unwrap().is_some());
}

#[tokio::test]
async fn an_image_that_lost_a_layer_is_forgotten_at_open() {
    let fixture = Fixture::new();
    let archive = docker_archive(&[ImageSource::hello("hello:latest")]);
    let loaded = fixture.store.load(&archive[..]).await.unwrap();
    std::fs::remove_dir_all(&loaded[0].layers[0]).unwrap();
    let again = ImageStore::open(&fixture.root()).unwrap();
    assert!(again.resolve("hello").await.unwrap().is_none());
    again.load(&archive[..]).await.unwrap();
    assert!(again.resolve("hello").await.unwrap().unwrap().layers[0].join("bin/hello").exists());
}

#[tokio::test]
async fn damage_is_told() {
    let fixture = Fixture::new();
    let loaded = fixture.store.load(&docker_archive(&[ImageSource::hello("hello:latest")])[..]).await.unwrap();
    let blob = fixture.root().join("blobs").join(loaded[0].id.replace(':', "/"));
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let again = ImageStore::open(&fixture.root()).unwrap();
    let error = again.resolve("hello").await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");

    std::fs::write(fixture.root().join("index.json"), "{\"format\":1,").unwrap();
    let error = ImageStore::open(&fixture.root()).unwrap_err();
    assert!(matches!(error, ImageError::DamagedIndex { .. }), "{error}");
}

#[tokio::test]
async fn a_name_moves_to_the_image_loaded_last() {
    let fixture = Fixture::new();
    let old = ImageSource::hello("hello:latest");
    let mut new = ImageSource::new("hello:latest", vec![Tar::new().file("new", "new").finish()]);
    new.config["config"]["Cmd"] = json!(["/new"]);
    fixture.store.load(&docker_archive(std::slice::from_ref(&old))[..]).await.unwrap();
    fixture.store.load(&docker_archive(std::slice::from_ref(&new))[..]).await.unwrap();
    assert_eq!(fixture.store.resolve("hello").await.unwrap().unwrap().id, new.id());
    let nameless = fixture.store.resolve(&old.id()).await.unwrap().unwrap();
    assert!(nameless.names.is_empty(), "a container may still run it");
}

#[tokio::test]
async fn removing_takes_only_what_nothing_else_needs() {
    let fixture = Fixture::new();
    let empty = fixture.contents();
    let base = Tar::new().file("base", "shared").finish();
    let top = |text: &str| Tar::new().file("top", text).finish();
    let mut one = ImageSource::new("one:latest", vec![base.clone(), top("one")]);
    one.names.push("uno:v1".to_owned());
    let two = ImageSource::new("two:latest", vec![base, top("two")]);
    let loaded = fixture.store.load(&docker_archive(&[one.clone(), two])[..]).await.unwrap();
    assert_eq!(loaded[0].layers[0], loaded[1].layers[0], "the base is there once");

    let removed = fixture.store.remove("one", &none()).await.unwrap();
    assert_eq!((removed.untagged, removed.deleted), (vec!["one:latest".to_owned()], None));
    assert!(fixture.store.resolve("uno:v1").await.unwrap().is_some());
    let in_use = HashSet::from([one.id()]);
    let before = fixture.contents();
    let error = fixture.store.remove("uno:v1", &in_use).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");
    assert_eq!(fixture.contents(), before);

    let removed = fixture.store.remove("uno:v1", &none()).await.unwrap();
    assert_eq!(removed.deleted, Some(one.id()));
    assert!(!loaded[0].layers[1].exists(), "its own layer is gone");
    assert!(loaded[1].layers[0].join("base").exists(), "the shared one stays");
    fixture.store.remove(&loaded[1].id, &none()).await.unwrap();
    let mut left = fixture.contents();
    left.remove(std::path::Path::new("outer/store/index.json"));
    assert_eq!(left, empty);
    let error = fixture.store.remove("two", &none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_and_removals_at_once_leave_a_whole_store() {
    let fixture = Arc::new(Fixture::new());
    let base = Tar::new().file("base", "shared").finish();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let fixture = fixture.clone();
        let base = base.clone();
        tasks.spawn(async move {
            let name = format!("image{}:latest", number % 4);
            let top = Tar::new().file("top", &name).finish();
            let archive = docker_archive(&[ImageSource::new(&name, vec![base, top])]);
            for round in 0..4 {
                fixture.store.load(&archive[..]).await.unwrap();
                if (round + number) % 2 == 0 {
                    match fixture.store.remove(&name, &none()).await {
                        Ok(_) => {}
                        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
                    }
                }
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    let before = fixture.contents();
    let again = ImageStore::open(&fixture.root()).unwrap();
    for image in again.list().await.unwrap() {
        assert!(image.layers.iter().all(|layer| layer.is_dir()), "{:?} is not whole", image.names);
    }
    drop(again);
    assert_eq!(fixture.contents(), before, "opening again found nothing to repair");
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let fixture = Fixture::new();
    let before = fixture.contents();
    let archive = docker_archive(&[ImageSource::hello("hello:latest")]);
    let (mut sender, receiver) = tokio::io::duplex(archive.len());
    tokio::io::AsyncWriteExt::write_all(&mut sender, &archive[..archive.len() / 2]).await.unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    {
        let mut loading = std::pin::pin!(fixture.store.load(receiver));
        while fixture.contents() == before {
            assert!(std::time::Instant::now() < deadline, "the load never began");
            let _ = futures::poll!(&mut loading);
            tokio::task::yield_now().await;
        }
    }
    while fixture.contents() != before {
        assert!(std::time::Instant::now() < deadline, "left behind: {:#?}", fixture.contents());
        tokio::task::yield_now().await;
    }
}
