use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::sys::stat::Mode;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;

fn root_of(dir: &Path) -> Root {
    Root::whole(File::open(dir).expect("a directory"))
}

fn strict(dir: &Path) -> Root {
    Root::strict(File::open(dir).expect("a directory"))
}

fn packed(dir: &Path, path: &str) -> Vec<u8> {
    let mut archive = Vec::new();
    pack(&root_of(dir), Path::new(path), false, &mut archive).unwrap_or_else(|error| panic!("{path}: {error}"));
    archive
}

fn copy(path: &str, contents: bool) -> Target {
    Target::Copy { path: path.into(), contents }
}

/// Every path below, with what it is.
fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(&path).expect("a directory").flatten() {
            let (path, meta) = (entry.path(), entry.path().symlink_metadata().expect("it is there"));
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            let what = match () {
                () if meta.is_dir() => "/".to_owned(),
                () if meta.is_symlink() => format!(" -> {}", fs::read_link(&path).expect("a link").display()),
                () if meta.is_file() => {
                    format!(" {:o} {}", meta.mode() & 0o7777, fs::read_to_string(&path).expect("text"))
                }
                () => " other".to_owned(),
            };
            found.push(format!("{name}{what}"));
            if meta.is_dir() {
                left.push(path);
            }
        }
    }
    found.sort();
    found
}

fn source() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("sub")).expect("made");
    fs::write(tree.join("file"), "words").expect("made");
    fs::set_permissions(tree.join("file"), fs::Permissions::from_mode(0o4751)).expect("ours");
    fs::write(tree.join("sub").join("n".repeat(200)), "long").expect("made");
    symlink("/etc/passwd", tree.join("link")).expect("made");
    nix::unistd::mkfifo(&tree.join("pipe"), Mode::S_IRWXU).expect("made");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for path in ["file", "sub"] {
        File::open(tree.join(path)).expect("it is there").set_modified(old).expect("ours");
    }
    dir
}

fn expected(at: &str) -> Vec<String> {
    let mut lines = vec![
        format!("{at}file 4751 words"),
        format!("{at}link -> /etc/passwd"),
        format!("{at}pipe other"),
        format!("{at}sub/"),
        format!("{at}sub/{} 644 long", "n".repeat(200)),
    ];
    let parents: Vec<&str> = at.trim_end_matches('/').split('/').filter(|part| !part.is_empty()).collect();
    lines.extend((1..=parents.len()).map(|count| format!("{}/", parents[..count].join("/"))));
    lines.sort();
    lines
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let from = source();
    let archive = packed(from.path(), "tree");
    for (target, at) in [
        (copy("", false), "tree/"),
        (copy("new", false), "new/"),
        (copy("/new/", false), "new/"),
        (copy("there", false), "there/tree/"),
        (copy("there", true), "there/"),
        (Target::Within("there".into()), "there/tree/"),
    ] {
        let to = tempfile::tempdir().expect("a folder");
        let expected = expected(at);
        if expected.contains(&"there/".to_owned()) {
            fs::create_dir(to.path().join("there")).expect("made");
        }
        for _ in ["at first", "and again, over what is there"] {
            unpack(&root_of(to.path()), &target, &archive[..]).unwrap_or_else(|error| panic!("{target:?}: {error}"));
            // What was there first is a directory the second time.
            if target == copy("new", false) || target == copy("/new/", false) {
                break;
            }
        }
        assert_eq!(listing(to.path()), expected, "{target:?}");
        let meta = |path: &str| to.path().join(at).join(path).symlink_metadata().expect("it is there");
        let of = |path: &str| from.path().join("tree").join(path).symlink_metadata().expect("it is there");
        for path in ["file", "sub", "link", "pipe"] {
            let (here, there) = (meta(path), of(path));
            assert_eq!((here.uid(), here.gid(), here.mtime()), (there.uid(), there.gid(), there.mtime()), "{path}");
            assert_eq!(here.mode(), there.mode(), "{path}");
        }
    }
}

#[test]
fn one_file_goes_where_cp_would_put_it() {
    let from = source();
    let archive = packed(from.path(), "/tree/file");
    let to = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(to.path().join("a/taken")).expect("made");
    fs::write(to.path().join("old"), "old").expect("made");
    let put = |path: &str| unpack(&root_of(to.path()), &copy(path, false), &archive[..]);
    put("a").expect("into a directory");
    put("a/other").expect("under a new name");
    put("old").expect("over what is there");
    assert!(matches!(put("b/"), Err(TreeError::NoDirectory(_))));
    assert!(matches!(put("no/where"), Err(TreeError::NoDirectory(_))));
    assert!(matches!(put("old/"), Err(TreeError::NoDirectory(_))));
    assert_eq!(listing(to.path()), ["a/", "a/file 4751 words", "a/other 4751 words", "a/taken/", "old 4751 words"]);

    let tree = packed(from.path(), "tree");
    let error = unpack(&root_of(to.path()), &copy("old", false), &tree[..]);
    assert!(matches!(error, Err(TreeError::OntoFile(_))), "{error:?}");
    fs::create_dir(to.path().join("a/file2")).expect("made");
    let error = unpack(&root_of(to.path()), &Target::Within("a".into()), &archive_of(&[("file2", "x")])[..]);
    assert!(matches!(error, Err(TreeError::OntoDirectory(_))), "{error:?}");
    let error = unpack(&root_of(to.path()), &Target::Within("none".into()), &archive[..]);
    assert!(matches!(error, Err(TreeError::NoDirectory(_))), "{error:?}");
}

#[test]
fn what_is_not_there_or_no_file_cannot_be_packed() {
    let from = source();
    let pack = |path: &str, follow| pack(&root_of(from.path()), Path::new(path), follow, std::io::sink());
    assert!(matches!(pack("none", false), Err(TreeError::NotFound(_))));
    let deep: PathBuf = std::iter::repeat_n("d", MAX_DEPTH + 2).collect();
    fs::create_dir_all(from.path().join("deep").join(deep)).expect("made");
    let mut archive = Vec::new();
    let result = super::pack(&root_of(from.path()), Path::new("deep"), false, &mut archive);
    assert!(matches!(result, Err(TreeError::TooDeep(_))), "{result:?}");
    let to = tempfile::tempdir().expect("a folder");
    assert!(unpack(&root_of(to.path()), &copy("", false), &archive[..]).is_err(), "half of it does not look whole");
    assert!(matches!(pack("tree/file/", false), Err(TreeError::NotADirectory(_))));
    assert!(pack("../../../tree/file", false).is_ok(), "as above the root of a file system");
    // The link leads to /etc/passwd of the root, where there is none.
    assert!(matches!(pack("tree/link", true), Err(TreeError::NotFound(_))));
    assert!(pack("tree/link", false).is_ok());
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("tree/socket")).expect("a socket");
    assert_eq!(pack("tree", false).expect("the rest").words().expect("words"), "left out: 0 devices, 1 sockets");
    assert!(matches!(pack("tree/socket", false), Err(TreeError::Unfit(_))));
}

/// Whatever the entries' names are.
fn raw(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (kind, name, rest) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let content = if *kind == EntryType::Regular { rest.as_bytes() } else { b"" };
        if *kind == EntryType::Symlink || *kind == EntryType::Link {
            header.as_old_mut().linkname[..rest.len()].copy_from_slice(rest.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content).expect("in memory");
    }
    archive.into_inner().expect("in memory")
}

fn archive_of(files: &[(&str, &str)]) -> Vec<u8> {
    raw(&files.iter().map(|(name, text)| (EntryType::Regular, *name, *text)).collect::<Vec<_>>())
}

#[test]
fn no_archive_leads_out_of_its_root() {
    use EntryType::{Char, Directory, Link, Regular, Symlink};
    let outside = tempfile::tempdir().expect("a folder");
    fs::write(outside.path().join("secret"), "secret").expect("made");
    let away = outside.path().display().to_string();
    let secret = format!("{away}/secret");
    let attempts: Vec<Vec<(EntryType, &str, &str)>> = vec![
        vec![(Regular, "../x", "x")],
        vec![(Regular, "/x", "x")],
        vec![(Directory, "d", ""), (Regular, "d/../../x", "x")],
        vec![(Symlink, "d", &away), (Regular, "d/x", "x")],
        vec![(Directory, "d", ""), (Symlink, "d/l", &away), (Regular, "d/l/x", "x")],
        vec![(Directory, "d", ""), (Symlink, "d/l", &away), (Directory, "d/l", ""), (Regular, "d/l/x", "x")],
        vec![(Directory, "d", ""), (Symlink, "d/l", ".."), (Regular, "d/l/../../x", "x")],
        vec![(Directory, "d", ""), (Link, "d/x", &secret)],
        vec![(Directory, "d", ""), (Symlink, "d/l", &away), (Link, "d/x", "d/l/secret")],
        vec![(Char, "d", "")],
    ];
    for entries in &attempts {
        let to = tempfile::tempdir().expect("a folder");
        let inner = to.path().join("inner");
        for target in [copy("", false), copy("new", false), Target::Within("".into())] {
            fs::create_dir_all(&inner).expect("made");
            let result = unpack(&strict(&inner), &target, &raw(entries)[..]);
            assert!(result.is_err(), "{entries:?} into {target:?}");
            // Where links are followed, they lead to within: what is made there is nobody's harm.
            let _ = unpack(&root_of(&inner), &target, &raw(entries)[..]);
            assert_eq!(listing(outside.path()), ["secret 644 secret"], "{entries:?}");
            let above: Vec<PathBuf> =
                fs::read_dir(to.path()).expect("ours").flatten().map(|entry| entry.path()).collect();
            assert!(above.len() == 1 && above[0] == inner, "{entries:?}");
            fs::remove_dir_all(&inner).expect("ours");
        }
    }
    // Another one beside the one that is copied, or nothing at all.
    let to = tempfile::tempdir().expect("a folder");
    for archive in [archive_of(&[("a", "1"), ("b", "2")]), raw(&[]), archive_of(&[("a/b", "1")])] {
        let error = unpack(&strict(to.path()), &copy("new", false), &archive[..]);
        assert!(matches!(error, Err(TreeError::Archive(_))), "{error:?}");
    }
    let mut cut = archive_of(&[("a", "123")]);
    cut.truncate(600);
    let error = unpack(&strict(to.path()), &copy("new", false), &cut[..]);
    assert!(matches!(error, Err(TreeError::BrokenOff(_) | TreeError::Archive(_))), "{error:?}");
}

/// The tree's owner puts a link to the outside in a directory's place and takes it away again, as fast as can be.
#[test]
fn who_swaps_directories_for_links_meanwhile_gains_nothing() {
    let outside = tempfile::tempdir().expect("a folder");
    fs::write(outside.path().join("file"), "secret").expect("made");
    let tree = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(tree.path().join("d/real")).expect("made");
    fs::write(tree.path().join("d/real/file"), "plain").expect("made");
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = {
        let (stop, dir, away) = (stop.clone(), tree.path().join("d"), outside.path().to_owned());
        std::thread::spawn(move || {
            symlink(&away, dir.join("link")).expect("made");
            let mut swaps = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let flag = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let at = nix::fcntl::AT_FDCWD;
                nix::fcntl::renameat2(at, &dir.join("real"), at, &dir.join("link"), flag).expect("both are there");
                swaps += 1;
            }
            swaps
        })
    };
    let archive = raw(&[
        (EntryType::Directory, "d", ""),
        (EntryType::Directory, "d/real", ""),
        (EntryType::Regular, "d/real/new", "x"),
    ]);
    for _ in 0..2_000 {
        for root in [root_of(tree.path()), strict(tree.path())] {
            let _ = unpack(&root, &Target::Within("".into()), &archive[..]);
            let mut packed = Vec::new();
            // It may meet the link instead of the directory, or miss both for a moment.
            let _ = pack(&root, Path::new("d"), false, &mut packed);
            let _ = pack(&root, Path::new("d/real/file"), true, &mut packed);
            assert!(!packed.windows(6).any(|words| words == b"secret"), "it got out");
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(swapper.join().expect("a thread") > 100);
    assert_eq!(listing(outside.path()), ["file 644 secret"]);
}

#[test]
fn a_file_that_changes_its_size_meanwhile_spoils_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("log");
    fs::write(&path, vec![b'a'; 1 << 20]).expect("made");
    struct Growing<'a>(&'a Path, Vec<u8>, bool);
    impl Write for Growing<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            // As soon as the header is out.
            if !std::mem::replace(&mut self.2, true) {
                File::options().write(true).open(self.0)?.set_len(1000)?;
            }
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut growing = Growing(&path, Vec::new(), false);
    pack(&root_of(dir.path()), Path::new("log"), false, &mut growing).expect("packed");
    let to = tempfile::tempdir().expect("a folder");
    unpack(&root_of(to.path()), &copy("", false), &growing.1[..]).expect("whole");
    assert_eq!(fs::metadata(to.path().join("log")).expect("made").len(), 1 << 20);
}
