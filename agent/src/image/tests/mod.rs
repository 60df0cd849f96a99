//! The store as its users see it. Archives are built here, byte by byte where they must be wrong.
//!
//! Unpacking sets owners and makes device nodes, so these tests run as root, like the agent.

mod build;
mod commit;
mod hostile;
mod layers;
mod lifecycle;
mod registry;

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{ImageStore, digest::Digest, error::ImageError, limits::Limits};

/// A store in a directory of its own.
struct Fixture {
    store: ImageStore,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests unpack images and need root");
        let dir = tempfile::tempdir().unwrap();
        // One level below, so that an escape by `..` would be seen.
        let store =
            ImageStore::open_with(&dir.path().join("outer/store"), limits, Box::new(|| Ok(Vec::new()))).unwrap();
        Self { store, dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("outer/store")
    }

    /// Everything in and around the store.
    fn contents(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        describe(self.dir.path(), Path::new(""), &mut found);
        found
    }

    /// The archive is refused, and nothing is left of it.
    async fn refuses(&self, archive: &[u8]) -> ImageError {
        let before = self.contents();
        let error = match self.store.load(archive).await {
            Ok(images) => {
                panic!("the archive was taken: {:?}", images.iter().map(|image| &image.names).collect::<Vec<_>>())
            }
            Err(error) => error,
        };
        assert_eq!(self.contents(), before, "a refused archive left something ({error})");
        error
    }
}

/// Each file with what tells it from others: kind, mode, owner, and content or link target.
fn describe(root: &Path, relative: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in there(std::fs::read_dir(root.join(relative))).into_iter().flatten() {
        let name = relative.join(entry.unwrap().file_name());
        let path = root.join(&name);
        let Some(meta) = there(path.symlink_metadata()) else { continue };
        let mut text = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        if meta.is_file() {
            let Some(bytes) = there(std::fs::read(&path)) else { continue };
            text.push_str(&format!(" {}", Digest::of(&bytes)));
        } else if meta.is_symlink() {
            let Some(target) = there(std::fs::read_link(&path)) else { continue };
            text.push_str(&format!(" -> {}", target.display()));
        } else if meta.is_dir() {
            describe(root, &name, found);
        }
        found.insert(name, text);
    }
}

/// Unless it has gone: the store may be tidying up meanwhile.
fn there<T>(read: std::io::Result<T>) -> Option<T> {
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        read => Some(read.unwrap()),
    }
}
