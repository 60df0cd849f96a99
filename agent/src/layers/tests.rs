//! Layers as overlayfs leaves them. Whiteouts and opaque marks need root, as all of the agent does.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::{ffi::OsStrExt, fs::symlink},
    process::Command,
};

use nix::{
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::mkfifo,
};
use tempfile::TempDir;

use super::*;

/// Directories `2`, `1` (both of an image) and `0` (the container's).
struct Stack(TempDir);

impl Stack {
    fn new() -> Self {
        let stack = Self(tempfile::tempdir().expect("a directory"));
        for layer in ["0", "1", "2"] {
            fs::create_dir(stack.path(layer)).expect("made");
        }
        stack
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn file(&self, path: &str, text: &str) {
        self.dir(Path::new(path).parent().expect("a parent").to_str().expect("text"));
        fs::write(self.path(path), text).expect("written");
    }

    fn dir(&self, path: &str) {
        fs::create_dir_all(self.path(path)).expect("made");
    }

    fn whiteout(&self, path: &str) {
        mknod(&self.path(path), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).expect("root may");
    }

    fn opaque(&self, path: &str) {
        self.dir(path);
        File::open(self.path(path)).expect("open").set_xattr(beneath::OPAQUE, b"y").expect("root may");
    }

    fn layers(&self) -> Layers {
        Layers::open(&["0", "1", "2"].map(|layer| self.path(layer))).expect("opened")
    }

    fn changes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut tell = |change, path: &Path| {
            let letter = match change {
                Change::Added => 'A',
                Change::Changed => 'C',
                Change::Deleted => 'D',
            };
            found.push(format!("{letter} {}", path.as_os_str().as_bytes().escape_ascii()));
            Ok(())
        };
        self.layers().changes(&mut tell).expect("compared");
        found
    }

    fn export(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.layers().export(&mut out).expect("exported");
        out
    }
}

#[test]
fn changes_are_added_changed_or_deleted() {
    let stack = Stack::new();
    stack.file("2/etc/old", "old");
    stack.file("2/etc/kept", "kept");
    stack.file("2/usr/bin/tool", "1");
    stack.file("1/usr/bin/tool", "2");
    stack.file("1/var/cache/a", "");
    stack.file("1/var/cache/sub/b", "");
    stack.dir("1/gone");
    stack.dir("1/etc");
    stack.whiteout("1/etc/never");
    symlink("/etc", stack.path("1/link")).expect("made");

    stack.file("0/etc/old", "new");
    stack.file("0/etc/made", "");
    stack.whiteout("0/usr");
    stack.whiteout("0/gone");
    // Hides nothing: it was never there, or is hidden already.
    stack.whiteout("0/etc/never");
    stack.whiteout("0/nothing");
    // The directory was made anew, with something of the same name in it.
    stack.opaque("0/var/cache");
    stack.file("0/var/cache/sub/new", "");
    // A link became a directory.
    stack.file("0/link/file", "");
    assert_eq!(
        stack.changes(),
        [
            "C etc",
            "A etc/made",
            "C etc/old",
            "D gone",
            "C link",
            "A link/file",
            "D usr",
            "C var",
            "C var/cache",
            "D var/cache/a",
            "C var/cache/sub",
            "D var/cache/sub/b",
            "A var/cache/sub/new",
        ]
    );
}

#[test]
fn an_export_has_what_the_container_sees() {
    let stack = Stack::new();
    stack.file("2/etc/a", "lowest");
    stack.file("2/etc/b", "lowest");
    stack.file("2/hidden/x", "");
    stack.file("1/etc/a", "middle");
    stack.opaque("1/hidden");
    stack.file("1/gone/deep/x", "");
    stack.file("0/etc/a", "top");
    stack.whiteout("0/gone");
    symlink("a", stack.path("0/etc/link")).expect("made");
    fs::hard_link(stack.path("0/etc/a"), stack.path("0/etc/twin")).expect("linked");
    mkfifo(&stack.path("0/pipe"), Mode::S_IRWXU).expect("made");
    let name = OsStr::from_bytes(b"new\nline\x1b[2J\xff");
    fs::write(stack.path("0").join(name), "odd").expect("written");
    let long = format!("0/{}/{}", "d".repeat(200), "f".repeat(200));
    stack.file(&long, "long");
    File::open(stack.path("0/etc/a")).expect("open").set_xattr("user.mark", b"yes").expect("set");

    let bytes = stack.export();
    let mut archive = ::tar::Archive::new(bytes.as_slice());
    let mut found = BTreeMap::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("read");
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned()).unwrap_or_default();
        let path = entry.path_bytes().escape_ascii().to_string();
        found.insert(path, (entry.header().entry_type(), text + &link));
    }
    let expected = |kind, text: &str| (kind, text.to_owned());
    assert_eq!(found["etc/a"], expected(::tar::EntryType::Regular, "top"));
    assert_eq!(found["etc/b"], expected(::tar::EntryType::Regular, "lowest"));
    assert_eq!(found["etc/link"], expected(::tar::EntryType::Symlink, "a"));
    assert_eq!(found["etc/twin"], expected(::tar::EntryType::Link, "etc/a"));
    assert_eq!(found["pipe"].0, ::tar::EntryType::Fifo);
    assert_eq!(found["new\\nline\\x1b[2J\\xff"].1, "odd");
    assert_eq!(found[&long[2..]].1, "long");
    assert!(found.contains_key("hidden/") && !found.contains_key("hidden/x"), "{found:?}");
    assert!(!found.keys().any(|path| path.starts_with("gone")), "{found:?}");
    assert!(bytes.windows(28).any(|window| window == b"SCHILY.xattr.user.mark=yes\n\0"), "its attribute");
}

#[test]
fn a_huge_file_of_holes_is_a_small_archive() {
    let stack = Stack::new();
    let file = File::create(stack.path("0/huge")).expect("made");
    file.set_len(1 << 40).expect("no blocks");
    std::os::unix::fs::FileExt::write_all_at(&file, b"here", 5 << 30).expect("written");
    let bytes = stack.export();
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    let (archive, to) = (stack.path("out.tar"), stack.path("to"));
    fs::write(&archive, bytes).expect("written");
    fs::create_dir(&to).expect("made");
    let status = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&to).status().expect("tar runs");
    assert!(status.success());
    let back = File::open(to.join("huge")).expect("it is there");
    assert_eq!(back.metadata().expect("stat").len(), 1 << 40);
    let mut four = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&back, &mut four, 5 << 30).expect("read");
    assert_eq!(&four, b"here");
}

#[test]
fn a_tree_that_is_too_deep_is_refused_and_not_followed() {
    let stack = Stack::new();
    let mut dir =
        beneath::open_dir_at(&OwnedFd::from(File::open(stack.path("")).expect("open")), OsStr::new("0")).expect("open");
    let name = "d".repeat(200);
    for _ in 0..100 {
        let at = OwnedFd::from(dir);
        nix::sys::stat::mkdirat(&at, name.as_str(), Mode::S_IRWXU).expect("made");
        dir = beneath::open_dir_at(&at, OsStr::new(&name)).expect("open");
    }
    let refused = stack.layers().export(io::sink()).expect_err("too deep");
    assert!(refused.to_string().contains("nested too deep"), "{refused}");
    let refused = stack.layers().changes(&mut |_, _| Ok(())).expect_err("too deep");
    assert!(refused.to_string().contains("nested too deep"), "{refused}");
}

#[test]
fn the_own_layer_says_by_whiteouts_what_is_gone() {
    let stack = Stack::new();
    stack.file("1/etc/gone", "");
    stack.file("1/www/old", "");
    stack.file("0/etc/added", "text");
    stack.whiteout("0/etc/gone");
    stack.opaque("0/www");
    stack.file("0/www/new", "");
    let mut out = Vec::new();
    stack.layers().upper(&mut out).expect("written");
    let mut archive = ::tar::Archive::new(&out[..]);
    let names: Vec<String> = archive
        .entries()
        .expect("an archive")
        .map(|entry| entry.expect("an entry").path().expect("a path").to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["etc/", "etc/added", "etc/.wh.gone", "www/", "www/.wh..wh..opq", "www/new"]);

    stack.file("0/etc/.wh.added", "");
    let error = stack.layers().upper(&mut Vec::new()).expect_err("it would mean something else");
    assert!(error.to_string().contains("/.wh.added cannot be in an image"), "{error}");
}
