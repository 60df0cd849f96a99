//! What a layer's directory looks like, and what overlayfs makes of it.

use std::{
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{
    Fixture,
    build::{Entry, ImageSource, MTIME, Tar, docker_archive},
};

async fn unpacked(fixture: &Fixture, layers: Vec<Vec<u8>>) -> Arc<[PathBuf]> {
    let archive = docker_archive(&[ImageSource::new("layers:latest", layers)]);
    fixture.store.load(&archive[..]).await.unwrap()[0].layers.clone()
}

fn opaque(path: &Path) -> Option<Vec<u8>> {
    xattr::get(path, "trusted.overlay.opaque").unwrap()
}

fn is_whiteout(path: &Path) -> bool {
    let meta = path.symlink_metadata().unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

#[tokio::test]
async fn owners_modes_times_and_attributes_are_as_the_archive_says() {
    // Version 2 of the kernel's vfs_cap_data, with cap_net_bind_service permitted and effective; a newline within.
    let mut capability = vec![1, 0, 0, 2, 0, 0x0a & 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    capability[5] = 0x04;
    let fixture = Fixture::new();
    let layer = Tar::new()
        .entry(Entry { kind: b'5', path: b"./", mode: 0o711, uid: 7, gid: 8, ..Entry::default() })
        .entry(Entry { kind: b'5', path: b"tmp/", mode: 0o1777, ..Entry::default() })
        .entry(Entry { path: b"su", mode: 0o4755, uid: 1000, gid: 100, data: b"#!", ..Entry::default() })
        .entry(Entry {
            path: b"ping",
            mode: 0o755,
            pax: vec![
                (b"SCHILY.xattr.security.capability", &capability),
                (b"SCHILY.xattr.user.note", b"two\nlines"),
                (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
                (b"SCHILY.xattr.security.selinux", b"x"),
                (b"mtime", b"1000000000.25"),
                (b"uid", b"4000000"),
            ],
            ..Entry::default()
        })
        .symlink("link", "/etc/passwd")
        .hard_link("hard", "su")
        .entry(Entry { kind: b'6', path: b"fifo", mode: 0o622, uid: 5, ..Entry::default() })
        .finish();
    let layers = unpacked(&fixture, vec![layer]).await;
    let at = |name: &str| layers[0].join(name).symlink_metadata().unwrap();

    let root = at("");
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid(), root.mtime()), (0o711, 7, 8, MTIME as i64));
    assert_eq!((at("tmp").mode() & 0o7777, at("tmp").mtime()), (0o1777, MTIME as i64));
    let su = at("su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 1000, 100, MTIME as i64));
    assert_eq!((at("hard").ino(), su.nlink()), (su.ino(), 2));
    let ping = at("ping");
    assert_eq!((ping.uid(), ping.mtime(), ping.mtime_nsec()), (4_000_000, 1_000_000_000, 250_000_000));
    let attribute = |name: &str| xattr::get(layers[0].join("ping"), name).unwrap();
    assert_eq!(attribute("security.capability"), Some(capability));
    assert_eq!(attribute("user.note"), Some(b"two\nlines".to_vec()));
    assert_eq!((attribute("trusted.overlay.opaque"), attribute("security.selinux")), (None, None));
    assert_eq!(std::fs::read_link(layers[0].join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(at("link").mtime(), MTIME as i64);
    let fifo = at("fifo");
    assert!(fifo.file_type().is_fifo());
    assert_eq!((fifo.mode() & 0o7777, fifo.uid()), (0o622, 5));
}

#[tokio::test]
async fn long_names_come_by_gnu_and_by_pax() {
    let deep = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let fixture = Fixture::new();
    let layer = Tar::new()
        .entry(Entry { path: b"short", data: b"pax", pax: vec![(b"path", deep.as_bytes())], ..Entry::default() })
        .entry(Entry {
            kind: b'L',
            path: b"././@LongLink",
            data: format!("{deep}2\0", deep = &deep[..400]).as_bytes(),
            ..Entry::default()
        })
        .file("short", "gnu")
        .finish();
    let layers = unpacked(&fixture, vec![layer]).await;
    assert_eq!(std::fs::read(layers[0].join(&deep)).unwrap(), b"pax");
    assert_eq!(std::fs::read(layers[0].join(format!("{}2", &deep[..400]))).unwrap(), b"gnu");
}

#[tokio::test]
async fn the_last_entry_of_a_name_counts() {
    let fixture = Fixture::new();
    let layer = Tar::new()
        .file("a", "first")
        .file("a", "second")
        .dir("b")
        .file("b/inside", "x")
        .file("b", "now a file")
        .file("c", "a file")
        .dir("c")
        .file("c/inside", "x")
        .symlink("d", "/etc")
        .file("d", "no longer a link")
        .finish();
    let layers = unpacked(&fixture, vec![layer]).await;
    let read = |name: &str| std::fs::read_to_string(layers[0].join(name)).unwrap();
    assert_eq!(
        (read("a"), read("b"), read("c/inside"), read("d")),
        ("second".into(), "now a file".into(), "x".into(), "no longer a link".into())
    );
    assert!(opaque(&layers[0].join("c")).is_some(), "the file before it hid what was below");
}

#[tokio::test]
async fn a_directory_left_out_looks_as_it_does_below() {
    let fixture = Fixture::new();
    let base = Tar::new()
        .entry(Entry { kind: b'5', path: b".", mode: 0o750, uid: 3, ..Entry::default() })
        .entry(Entry { kind: b'5', path: b"tmp", mode: 0o1777, uid: 9, gid: 9, ..Entry::default() })
        .finish();
    let layers = unpacked(&fixture, vec![base, Tar::new().file("tmp/new/file", "x").finish()]).await;
    let look = |name: &str| {
        let meta = layers[1].join(name).symlink_metadata().unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    assert_eq!(look(""), (0o750, 3, 0));
    assert_eq!(look("tmp"), (0o1777, 9, 9));
    assert_eq!(look("tmp/new"), (0o755, 0, 0));
}

#[tokio::test]
async fn device_nodes_are_left_out() {
    let fixture = Fixture::new();
    let layer = Tar::new()
        .entry(Entry { kind: b'4', path: b"sda", device: (8, 0), ..Entry::default() })
        .entry(Entry { kind: b'3', path: b"mem", device: (1, 1), ..Entry::default() })
        .entry(Entry { kind: b'3', path: b"hidden", device: (0, 0), ..Entry::default() })
        .file("after", "x")
        .finish();
    let layers = unpacked(&fixture, vec![layer]).await;
    let mut names: Vec<_> = std::fs::read_dir(&layers[0]).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["after", "hidden"]);
    assert!(is_whiteout(&layers[0].join("hidden")));
}

/// A base, and a layer above that removes, hides and replaces.
fn whiteout_layers() -> Vec<Vec<u8>> {
    let base = Tar::new()
        .dir("etc")
        .file("etc/gone", "x")
        .file("etc/kept", "kept")
        .dir("opaque")
        .file("opaque/old", "x")
        .dir("removed")
        .file("removed/deep", "x")
        .dir("again")
        .file("again/old", "x")
        .file("replaced", "below")
        .dir("todir")
        .finish();
    let top = Tar::new()
        .file("etc/.wh.gone", "")
        .dir("opaque")
        .file("opaque/new", "new")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.removed", "")
        .file(".wh.again", "")
        .file("again/new", "new")
        .file("replaced", "above")
        .file(".wh.replaced", "")
        .file(".wh..wh.plnk", "aufs")
        .file("todir", "now a file")
        .finish();
    vec![base, top]
}

#[tokio::test]
async fn whiteouts_take_overlayfs_form() {
    let fixture = Fixture::new();
    let layers = unpacked(&fixture, whiteout_layers()).await;
    let top = &layers[1];
    assert!(is_whiteout(&top.join("etc/gone")));
    assert!(is_whiteout(&top.join("removed")));
    assert_eq!(opaque(&top.join("opaque")).as_deref(), Some(&b"y"[..]));
    assert_eq!(opaque(&top.join("again")).as_deref(), Some(&b"y"[..]));
    assert_eq!(opaque(&top.join("etc")), None);
    assert_eq!(std::fs::read(top.join("replaced")).unwrap(), b"above");
    assert!(!top.join(".wh..wh.plnk").exists());
}

#[tokio::test]
async fn overlayfs_shows_the_layers_as_one_tree() {
    let fixture = Fixture::new();
    let layers = unpacked(&fixture, whiteout_layers()).await;
    let target = fixture.dir.path().join("merged");
    std::fs::create_dir(&target).unwrap();
    // A thread of its own, whose mount namespace goes with it.
    let seen = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let lower: Vec<_> = layers.iter().rev().map(|layer| layer.to_str().unwrap()).collect();
        let options = format!("lowerdir={}", lower.join(":"));
        mount(Some("overlay"), &target, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())).unwrap();
        let mut seen = std::collections::BTreeMap::new();
        super::describe(&target, Path::new(""), &mut seen);
        seen.into_keys().map(|path| path.display().to_string()).collect::<Vec<_>>()
    })
    .join()
    .unwrap();
    assert_eq!(seen, ["again", "again/new", "etc", "etc/kept", "opaque", "opaque/new", "replaced", "todir"]);
}

#[tokio::test]
async fn the_stores_directories_are_for_root_alone() {
    let fixture = Fixture::new();
    for dir in ["layers", "blobs/sha256", "staging"] {
        let mode = fixture.root().join(dir).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{dir}");
    }
}
