//! An archive that `rctl cp` brings is unpacked, where something lies in the way already.

#![no_main]

use std::{fs, fs::File, os::unix::fs::symlink, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use roster_fuzz::{Place, archive::Archive};
use roster_tree::{Root, Target, unpack};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);

#[derive(Arbitrary, Debug)]
struct Copying {
    archive: Archive,
    /// Symbolic links are followed within the root, or not at all.
    strict: bool,
    within: bool,
    contents: bool,
    /// Of the target.
    path: u8,
}

fuzz_target!(|copying: Copying| {
    let directory = PLACE.empty();
    fs::create_dir_all(directory.join("a/b")).expect("made");
    fs::write(directory.join("a/c"), "c").expect("written");
    symlink("../canary", directory.join("b")).expect("made");
    symlink("/mnt", directory.join("c")).expect("made");
    let root = File::open(&directory).expect("opened");
    let root = if copying.strict { Root::strict(root) } else { Root::whole(root) };
    let path = PathBuf::from(["/", "a", "a/b", "a/d", "b", "c/x", "../x"][usize::from(copying.path) % 7]);
    let target = match copying.within {
        true => Target::Within(path),
        false => Target::Copy { path, contents: copying.contents },
    };
    let unpacked = unpack(&root, &target, &copying.archive.bytes()[..]);
    PLACE.check();
    if let Err(error) = unpacked {
        assert!(!error.to_string().is_empty());
    }
});
