//! Archives that attack, lie or are damaged: refused with words, and nothing is left of them.

use proptest::prelude::*;
use serde_json::json;

use super::{
    Fixture,
    build::{
        Entry, ImageSource, Layout, MANIFEST, Tar, docker_archive, docker_archive_packed, gzip, named, oci_archive,
        zstd,
    },
};
use crate::image::{ErrorKind, ImageError, digest::Digest, limits::Limits};

/// Small enough to reach in a test.
fn tight() -> Limits {
    Limits {
        unpacked_bytes: 1 << 20,
        archive_bytes: 8 << 20,
        layer_entries: 50,
        archive_entries: 40,
        layers: 5,
        document_bytes: 16 << 10,
        archive_images: 3,
        path_depth: 20,
        directory_path_bytes: 4 << 10,
        ..Limits::default()
    }
}

fn with_layer(layer: Vec<u8>) -> Vec<u8> {
    docker_archive(&[ImageSource::new("evil:latest", vec![layer])])
}

fn long_path(path: &[u8]) -> Vec<u8> {
    Tar::new().entry(Entry { pax: vec![(b"path", path)], ..Entry::default() }).finish()
}

/// Each layer, and a word its refusal must contain.
fn hostile_layers() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let deep = "d/".repeat(30);
    vec![
        ("dot-dot", Tar::new().file("../../escaped", "x").finish(), "'..'"),
        ("dot-dot within", Tar::new().dir("a").file("a/../../escaped", "x").finish(), "'..'"),
        ("absolute", Tar::new().file("/escaped", "x").finish(), "absolute"),
        ("through a link out", Tar::new().symlink("l", "../../..").file("l/escaped", "x").finish(), "symbolic link"),
        ("through an absolute link", Tar::new().symlink("l", "/tmp").file("l/escaped", "x").finish(), "symbolic link"),
        (
            "through two links",
            Tar::new().symlink("a", ".").symlink("b", "a").file("b/x", "x").finish(),
            "symbolic link",
        ),
        ("directory through a link", Tar::new().symlink("l", "/tmp").dir("l/escaped").finish(), "symbolic link"),
        ("whiteout through a link", Tar::new().symlink("l", "/").file("l/.wh.etc", "").finish(), "symbolic link"),
        ("opaque through a link", Tar::new().symlink("l", "/tmp").file("l/.wh..wh..opq", "").finish(), "symbolic link"),
        ("hard link out", Tar::new().hard_link("l", "../../../../etc/passwd").finish(), "'..'"),
        ("hard link to absolute", Tar::new().hard_link("l", "/etc/passwd").finish(), "absolute"),
        (
            "hard link through a link",
            Tar::new().symlink("e", "/etc").hard_link("l", "e/passwd").finish(),
            "symbolic link",
        ),
        ("hard link to nothing", Tar::new().hard_link("l", "nothing").finish(), "no such file"),
        ("hard link to a directory", Tar::new().dir("d").hard_link("l", "d").finish(), "directory"),
        ("hard link eats its target", Tar::new().file("d/f", "x").hard_link("d", "d/f").finish(), "its own target"),
        ("whiteout of the parent", Tar::new().file("a/.wh...", "").finish(), "whiteout"),
        ("whiteout of itself", Tar::new().file("a/.wh..", "").finish(), "whiteout"),
        ("whiteout of nothing", Tar::new().file(".wh.", "").finish(), "whiteout"),
        ("file as a directory", Tar::new().file("f", "x").file("f/x", "x").finish(), "no directory"),
        ("file as the root", Tar::new().file(".", "x").finish(), "root"),
        ("zero byte", long_path(b"a\0b"), "zero byte"),
        ("empty name", long_path(b""), "empty"),
        ("endless name", long_path(&b"x".repeat(300)), "too long"),
        ("endless path", long_path(&b"ab/".repeat(2000)), "too long"),
        ("nested too deep", Tar::new().file(&deep[..deep.len() - 1], "x").finish(), "too deep"),
        ("entries without end", (0..60).fold(Tar::new(), |tar, n| tar.file(&format!("{n}"), "")).finish(), "entries"),
        (
            "headers without end",
            (0..60).fold(Tar::new(), |tar, _| tar.entry(Entry { kind: b'g', ..Entry::default() })).finish(),
            "entries",
        ),
        (
            "directories without end",
            (0..49).fold(Tar::new(), |tar, n| tar.dir(&format!("{n}{}", "x".repeat(90)))).finish(),
            "directories",
        ),
        ("a bomb", Tar::new().file("zeros", vec![0; 2 << 20]).finish(), "unpacked size"),
        (
            "user that is none",
            Tar::new().entry(Entry { pax: vec![(b"uid", b"4294967295")], ..Entry::default() }).finish(),
            "does not exist",
        ),
        (
            "size beyond all bounds",
            Tar::new().entry(Entry { pax: vec![(b"size", b"18446744073709551615")], ..Entry::default() }).finish(),
            "beyond all bounds",
        ),
        ("size that lies", Tar::new().entry(Entry { size: Some(1 << 33), ..Entry::default() }).finish(), "too early"),
        (
            "huge long name",
            Tar::new().entry(Entry { kind: b'L', size: Some(1 << 30), ..Entry::default() }).finish(),
            "extended header",
        ),
        (
            "malformed pax",
            Tar::new().entry(Entry { kind: b'x', data: b"99 path=x\n", ..Entry::default() }).finish(),
            "malformed",
        ),
        (
            "pax of no length",
            Tar::new().entry(Entry { kind: b'x', data: b"0 \n", ..Entry::default() }).finish(),
            "malformed",
        ),
        ("sparse", Tar::new().entry(Entry { kind: b'S', ..Entry::default() }).finish(), "kind"),
        (
            "pax sparse",
            Tar::new().entry(Entry { pax: vec![(b"GNU.sparse.major", b"1")], ..Entry::default() }).finish(),
            "sparse",
        ),
        ("unknown kind", Tar::new().entry(Entry { kind: b'V', ..Entry::default() }).finish(), "kind"),
        ("not a tar", vec![b'x'; 2048], "checksum"),
        ("cut off", Tar::new().file("f", "x").unfinished()[..700].to_vec(), "too early"),
    ]
}

#[tokio::test]
async fn a_hostile_layer_is_refused_and_leaves_nothing() {
    let fixture = Fixture::with_limits(tight());
    fixture.store.load(&docker_archive(&[ImageSource::hello("hello:latest")])[..]).await.unwrap();
    for (what, layer, word) in hostile_layers() {
        for packed in [with_layer(layer.clone()), oci_archive(&ImageSource::new("evil:latest", vec![layer]), gzip)] {
            let error = fixture.refuses(&packed).await;
            assert!(error.to_string().contains(word), "{what}: {error}");
            assert_eq!(error.kind(), ErrorKind::Invalid, "{what}: {error}");
            assert!(!error.is_transient(), "{what}: {error}");
        }
    }
}

#[tokio::test]
async fn a_bomb_is_refused_however_it_is_packed() {
    let fixture = Fixture::with_limits(tight());
    let bomb = ImageSource::new("bomb:latest", vec![Tar::new().file("zeros", vec![0; 2 << 20]).finish()]);
    let bombs = std::slice::from_ref(&bomb);
    let around = gzip(&Tar::new().file("zeros", vec![0; 9 << 20]).finish());
    for archive in [
        docker_archive_packed(bombs, gzip),
        docker_archive_packed(bombs, zstd),
        zstd(&docker_archive(bombs)),
        oci_archive(&bomb, zstd),
        around,
    ] {
        let error = fixture.refuses(&archive).await;
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    }
    // A window of 1 GiB, which a decoder would have to keep in memory.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(30).unwrap();
    encoder.long_distance_matching(true).unwrap();
    std::io::Write::write_all(&mut encoder, &docker_archive(bombs)).unwrap();
    let error = fixture.refuses(&encoder.finish().unwrap()).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

/// Archives whose layers are well, but what describes them is not.
fn hostile_archives() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = ImageSource::hello("hello:latest");
    let config = good.config_bytes();
    let layer = &good.layers[0];
    let manifest = |value: serde_json::Value| {
        Tar::new().file("c.json", &config).file("l.tar", layer).file("manifest.json", value.to_string()).finish()
    };
    let mut windows = good.clone();
    windows.config["os"] = json!("windows");
    let mut lying = good.clone();
    lying.config["rootfs"]["diff_ids"] = json!([Digest::of(b"something else").to_string()]);
    let mut fewer = good.clone();
    fewer.config["rootfs"]["diff_ids"] = json!([]);
    let mut no_digest = good.clone();
    no_digest.config["rootfs"]["diff_ids"] = json!(["../../etc"]);
    let many = ImageSource::new("many", (0..6).map(|n| Tar::new().file("f", n.to_string()).finish()).collect());
    let hex = "0".repeat(64);
    let nested = format!("{}{}", "[".repeat(8000), "]".repeat(8000));
    let one = |layers: &str| json!([{"Config": "c.json", "RepoTags": ["x"], "Layers": [layers]}]);
    vec![
        ("nothing at all", Vec::new(), "too early"),
        ("an empty archive", Tar::new().finish(), "neither"),
        ("no manifest", Tar::new().file("c.json", &config).finish(), "neither"),
        ("not an archive", b"hello, world".repeat(100), "not a tar"),
        ("no images", manifest(json!([])), "no image"),
        (
            "too many images",
            docker_archive(&(0..4).map(|n| ImageSource::hello(&format!("i{n}"))).collect::<Vec<_>>()),
            "number of images",
        ),
        ("too many layers", docker_archive(&[many]), "number of layers"),
        ("a layer that is not there", manifest(one("other.tar")), "lacks"),
        ("a layer outside", manifest(one("../../etc/passwd")), "lacks"),
        ("an absolute layer", manifest(one("/etc/passwd")), "lacks"),
        ("a configuration outside", manifest(json!([{"Config": "/etc/passwd", "Layers": []}])), "lacks"),
        (
            "a wrong name",
            manifest(json!([{"Config": "c.json", "RepoTags": ["../x"], "Layers": ["l.tar"]}])),
            "does not name",
        ),
        ("manifest.json is no JSON", Tar::new().file("manifest.json", "{").finish(), "malformed"),
        ("manifest.json nested", Tar::new().file("manifest.json", &nested).finish(), "malformed"),
        (
            "manifest.json is huge",
            Tar::new().file("manifest.json", " ".repeat(20 << 10)).finish(),
            "size of manifest.json",
        ),
        (
            "the configuration is huge",
            Tar::new()
                .file("c.json", " ".repeat(20 << 10))
                .file("l.tar", layer)
                .file("manifest.json", one("l.tar").to_string())
                .finish(),
            "size of c.json",
        ),
        (
            "the configuration is a layer",
            manifest(json!([{"Config": "l.tar", "RepoTags": ["x"], "Layers": ["l.tar"]}])),
            "configuration",
        ),
        ("for windows", docker_archive(&[windows]), "windows"),
        ("a DiffID that lies", docker_archive(&[lying.clone()]), "digest says"),
        ("a DiffID that lies, OCI", oci_archive(&lying, gzip), "digest says"),
        ("fewer DiffIDs than layers", docker_archive(&[fewer]), "layers"),
        ("a DiffID that is none", docker_archive(&[no_digest]), "not a digest"),
        (
            "a configuration of another name",
            Tar::new()
                .file(&format!("{hex}.json"), &config)
                .file("l.tar", layer)
                .file("manifest.json", json!([{"Config": format!("{hex}.json"), "Layers": ["l.tar"]}]).to_string())
                .finish(),
            "digest says",
        ),
        ("a file twice", Tar::new().file("manifest.json", "[]").file("manifest.json", "[]").finish(), "twice"),
        ("a file and a link", Tar::new().file("l", "x").symlink("l", "m").finish(), "twice"),
        ("a link out", Tar::new().symlink("a/l", "../../etc/passwd").finish(), "leads out"),
        ("a link to absolute", Tar::new().symlink("l", "/etc/passwd").finish(), "leads out"),
        (
            "links in a circle",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("c.json", &config)
                .file("manifest.json", one("a").to_string())
                .finish(),
            "lacks",
        ),
        ("a name out", Tar::new().file("../escaped", "x").finish(), "'..'"),
        (
            "a device",
            Tar::new().entry(Entry { kind: b'4', path: b"sda", device: (8, 0), ..Entry::default() }).finish(),
            "neither a file",
        ),
        ("files without end", (0..50).fold(Tar::new(), |tar, n| tar.file(&format!("{n}"), "")).finish(), "entries"),
        ("a blob of another name", Tar::new().file(&format!("blobs/sha256/{hex}"), "x").finish(), "digest says"),
        (
            "a name of no encoding",
            Tar::new().entry(Entry { path: b"\xff\xfe", ..Entry::default() }).finish(),
            "not allowed",
        ),
    ]
}

fn hostile_layouts() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = ImageSource::hello("hello:latest");
    let pack: fn(&[u8]) -> Vec<u8> = gzip;
    let descriptor = |digest: &str, size: usize| json!({"mediaType": MANIFEST, "digest": digest, "size": size});
    let absent = Layout::new().add(descriptor(&Digest::of(b"absent").to_string(), 3)).finish();
    let other_algorithm = Layout::new().add(descriptor(&format!("sha512:{}", "0".repeat(128)), 3)).finish();
    let outside = Layout::new().add(descriptor("sha256:../../../../etc/passwd", 3)).finish();

    let mut layout = Layout::new();
    let mut wrong_size = layout.image(&good, pack);
    wrong_size["size"] = json!(17);
    let wrong_size = layout.add(wrong_size).finish();

    let mut layout = Layout::new();
    let image = layout.image(&good, pack);
    let nested = (0..6).fold(image, |inner, _| layout.index(vec![inner]));
    let nested = layout.add(nested).finish();

    let mut layout = Layout::new();
    let both = json!({"schemaVersion": 2, "manifests": [], "layers": [], "config": {}});
    let both = layout.blob(both.to_string().as_bytes(), MANIFEST);
    let both = layout.add(both).finish();

    let mut layout = Layout::new();
    let neither = layout.blob(b"{}", MANIFEST);
    let neither = layout.add(neither).finish();

    let mut layout = Layout::new();
    let empty = layout.index(Vec::new());
    let empty = layout.add(named(empty, "hello")).finish();

    let mut layout = Layout::new();
    let bad_name = layout.image(&good, pack);
    let bad_name = layout.add(named(bad_name, "a/../../b")).finish();
    vec![
        ("a manifest that is not there", absent, "lacks"),
        ("a digest of another algorithm", other_algorithm, "not a digest"),
        ("a digest that is a path", outside, ""),
        ("a size that lies", wrong_size, "17 bytes"),
        ("indexes within indexes", nested, "nested too deep"),
        ("an index and a manifest at once", both, "at once"),
        ("neither index nor manifest", neither, "neither"),
        ("an index of nothing", empty, "nothing for"),
        ("a wrong name", bad_name, "does not name"),
        ("no images", Layout::new().finish(), "no image"),
    ]
}

#[tokio::test]
async fn a_hostile_archive_is_refused_and_leaves_nothing() {
    let fixture = Fixture::with_limits(tight());
    for (what, archive, word) in hostile_archives().into_iter().chain(hostile_layouts()) {
        let error = fixture.refuses(&archive).await;
        assert!(error.to_string().contains(word), "{what}: {error}");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{what}: {error}");
    }
}

#[tokio::test]
async fn of_several_images_one_bad_refuses_all() {
    let fixture = Fixture::new();
    let evil = ImageSource::new("evil:latest", vec![Tar::new().file("../x", "x").finish()]);
    fixture.refuses(&docker_archive(&[ImageSource::hello("hello:latest"), evil])).await;
    assert!(fixture.store.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn every_truncation_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let two = ImageSource::new(
        "two:latest",
        vec![Tar::new().dir("bin").file("bin/a", "x".repeat(3000)).finish(), Tar::new().file("bin/b", "y").finish()],
    );
    let images = std::slice::from_ref(&two);
    for archive in
        [docker_archive(images), oci_archive(&two, gzip), gzip(&docker_archive(images)), zstd(&oci_archive(&two, zstd))]
    {
        // Both around every block's border and at odd places.
        let step = (archive.len() / 60).max(1);
        let offsets =
            (0..archive.len()).step_by(step).chain((1..archive.len() / 512).flat_map(|n| [n * 512 - 1, n * 512]));
        for offset in offsets.chain([archive.len() - 1]) {
            let error = fixture.refuses(&archive[..offset]).await;
            assert_eq!(error.kind(), ErrorKind::Invalid, "at {offset} of {}: {error}", archive.len());
        }
        assert!(fixture.store.list().await.unwrap().is_empty());
    }
    fixture.store.load(&docker_archive(images)[..]).await.unwrap();
}

#[tokio::test]
async fn a_flipped_bit_in_any_blob_is_noticed() {
    let source = ImageSource::hello("hello:latest");
    let fixture = Fixture::new();
    let archive = oci_archive(&source, gzip);
    let packed = gzip(&source.layers[0]);
    let config = source.config_bytes();
    for blob in [&packed, &config] {
        let at = archive.windows(blob.len()).position(|window| window == &blob[..]).unwrap();
        for offset in [0, blob.len() / 2, blob.len() - 1] {
            let mut damaged = archive.clone();
            damaged[at + offset] ^= 0x10;
            let error = fixture.refuses(&damaged).await;
            assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
        }
    }
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip { at: usize, bit: u8 },
    Cut { at: usize, length: usize },
    Double { at: usize, length: usize },
    Zero { at: usize, length: usize },
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let place = any::<usize>();
    let mutation = prop_oneof![
        4 => (place, 0..8u8).prop_map(|(at, bit)| Mutation::Flip { at, bit }),
        1 => (place, 1..1500usize).prop_map(|(at, length)| Mutation::Cut { at, length }),
        1 => (place, 1..1500usize).prop_map(|(at, length)| Mutation::Double { at, length }),
        1 => (place, 1..600usize).prop_map(|(at, length)| Mutation::Zero { at, length }),
    ];
    proptest::collection::vec(mutation, 1..5)
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let size = bytes.len();
        let range = |at: usize, length: usize| at % size..(at % size + length).min(size);
        match *mutation {
            _ if bytes.is_empty() => {}
            Mutation::Flip { at, bit } => {
                let at = at % bytes.len();
                bytes[at] ^= 1 << bit;
            }
            Mutation::Cut { at, length } => {
                bytes.drain(range(at, length));
            }
            Mutation::Double { at, length } => {
                let range = range(at, length);
                let copy = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, copy);
            }
            Mutation::Zero { at, length } => bytes[range(at, length)].fill(0),
        }
    }
    bytes
}

/// A layer with one of everything, unpacked without any digest to protect it.
fn rich_layer() -> Vec<u8> {
    Tar::new()
        .dir("bin")
        .file("bin/sh", "#!".repeat(300))
        .hard_link("bin/ash", "bin/sh")
        .symlink("lib", "usr/lib")
        .entry(Entry {
            path: b"x",
            pax: vec![(b"path", b"etc/a/b"), (b"SCHILY.xattr.user.a", b"b")],
            ..Entry::default()
        })
        .file("etc/.wh.gone", "")
        .file("etc/.wh..wh..opq", "")
        .entry(Entry { kind: b'L', path: b"n", data: b"long/name\0", ..Entry::default() })
        .file("short", "x")
        .finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever becomes of a valid archive, a load does not panic, makes nothing outside the store, and leaves it
    /// either as it was or with whole images.
    #[test]
    fn a_mutated_archive_never_breaks_the_store(changes in mutations(), oci in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let source = ImageSource::new("rich:latest", vec![rich_layer()]);
        let archive = if oci { oci_archive(&source, <[u8]>::to_vec) } else { docker_archive(&[source]) };
        let archive = mutate(archive, &changes);
        runtime.block_on(async {
            let fixture = Fixture::with_limits(tight());
            let before = fixture.contents();
            let loaded = fixture.store.load(&archive[..]).await;
            if loaded.is_err() {
                assert_eq!(fixture.contents(), before);
            }
            let after = fixture.contents();
            assert!(after.keys().all(|path| path.starts_with("outer/store") || path.as_os_str() == "outer"));
            let again = crate::image::ImageStore::open(&fixture.root()).unwrap();
            assert_eq!(again.list().await.unwrap().len(), loaded.map_or(0, |images| images.len()));
            assert_eq!(fixture.contents(), after, "opening again found nothing to repair");
        });
    }

    /// The same for the unpacking itself, whose digest would hide most mutations from it.
    #[test]
    fn a_mutated_layer_stays_in_its_directory(changes in mutations()) {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("outer/layer");
        std::fs::create_dir_all(&target).unwrap();
        let layer = mutate(rich_layer(), &changes);
        let limits = tight();
        let mut budget = limits.unpacked_bytes;
        // Either way is right: only what it touches counts.
        let _ = crate::image::unpack::unpack(&layer[..], "a layer", &target, &[], &mut budget, &limits);
        let names = |path: &std::path::Path| std::fs::read_dir(path).unwrap().count();
        assert_eq!((names(dir.path()), names(&dir.path().join("outer"))), (1, 1));
    }
}
