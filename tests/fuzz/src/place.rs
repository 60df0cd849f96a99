//! A small file system in memory that only this process sees.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// What is to stay as it is, beside the directory that is written to.
const CANARY: &str = "canary";
const WORKING: &str = "working";
/// An archive that unpacks to more than it should fills this, not the machine.
const SIZE: &str = "size=64m,nr_inodes=20k";

/// Mounted on `/mnt` of a mount namespace of the process's own.
#[derive(Debug)]
pub struct Place;

impl Place {
    pub fn new() -> Self {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).expect("fuzzing takes root: it unpacks files with their owners");
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), Some(SIZE)).expect("a tmpfs");
        fs::write(Self::path(CANARY), CANARY).expect("written");
        Self
    }

    fn path(name: &str) -> PathBuf {
        Path::new("/mnt").join(name)
    }

    /// An empty directory, the same each time.
    pub fn empty(&self) -> PathBuf {
        let working = Self::path(WORKING);
        if working.exists() {
            fs::remove_dir_all(&working).expect("removed");
        }
        fs::create_dir(&working).expect("made");
        working
    }

    /// Nothing was made or changed outside of the working directory, and nothing in it that opens a device.
    pub fn check(&self) {
        let mut names: Vec<_> =
            fs::read_dir("/mnt").expect("listed").map(|entry| entry.expect("entry").file_name()).collect();
        names.sort();
        assert_eq!(names, [CANARY, WORKING], "something was made outside");
        let canary = fs::symlink_metadata(Self::path(CANARY)).expect("the canary");
        assert!(canary.is_file() && canary.nlink() == 1 && canary.uid() == 0, "the canary was changed: {canary:?}");
        assert_eq!(fs::read(Self::path(CANARY)).expect("the canary"), CANARY.as_bytes());
        check_devices(&Self::path(WORKING));
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

fn check_devices(dir: &Path) {
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("entry").path();
        let metadata = fs::symlink_metadata(&path).expect("looked at");
        let kind = metadata.file_type();
        // A whiteout is the character device 0/0, which nobody can open.
        let is_device = kind.is_block_device() || kind.is_char_device() && metadata.rdev() != 0;
        assert!(!is_device && !kind.is_socket(), "{} is a device", path.display());
        if kind.is_dir() {
            check_devices(&path);
        }
    }
}
